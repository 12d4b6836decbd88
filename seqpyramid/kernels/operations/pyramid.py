"""Which states a sub-pyramid of L steps aggregates, and after which step: bookkeeping by integers only.

Steps are the states of level 0. Every g states of a level make one of the next as soon as they are there; the last
step closes the sub-pyramid: what still waits at a level is aggregated, full group or short, up to one top at level J.
A sequence that ends inside a sub-pyramid closes it for itself alone.

States of a level are numbered in the order in which they are made, so that a group lies side by side.
"""

from functools import cache
from typing import NamedTuple


class Aggregation(NamedTuple):
    """The states ``first`` to ``first + size - 1`` of a level become state ``made`` of the next."""

    level: int
    first: int
    size: int
    made: int


class Segment(NamedTuple):
    """Steps ``first`` to ``last - 1``, after which there is something to aggregate, from the lowest level up."""

    first: int
    last: int
    aggregations: tuple[Aggregation, ...]


class Skeleton(NamedTuple):
    """The shape of one sub-pyramid."""

    length: int
    granularity: int
    counts: tuple[int, ...]
    """States of every level, from the steps to the top."""
    segments: tuple[Segment, ...]

    def complete(self, steps: int) -> list[int]:
        """States of every level from 1 that are there after some steps of an open sub-pyramid."""
        return [steps // self.granularity**level for level in range(1, len(self.counts))]

    def waiting(self, steps: int) -> list[int]:
        """States that are in no aggregate yet, of every level that a sequence ending here still aggregates.

        >>> skeleton(9, 3).waiting(2), skeleton(9, 3).waiting(8), skeleton(9, 3).waiting(3)
        ([2], [2, 2], [0])
        """
        g = self.granularity
        return [steps // g**level % g for level in range(levels(steps, g))]


@cache
def skeleton(length: int, granularity: int) -> Skeleton:
    """Plan a sub-pyramid of L steps.

    >>> skeleton(3, 2).segments[0]
    Segment(first=0, last=2, aggregations=(Aggregation(level=0, first=0, size=2, made=0),))
    >>> [tuple(a) for a in skeleton(3, 2).segments[1].aggregations]
    [(0, 2, 1, 1), (1, 0, 2, 0)]
    """
    top = levels(length, granularity)
    counts = tuple(-(-length // granularity**level) for level in range(top + 1))
    segments = []
    for first in range(0, length, granularity):
        last = min(first + granularity, length)
        aggregations = []
        for level in range(top):
            group = granularity ** (level + 1)
            if last % group and last < length:
                break
            made = -(-last // group) - 1
            start = made * granularity
            aggregations.append(Aggregation(level, start, min(granularity, counts[level] - start), made))
        segments.append(Segment(first, last, tuple(aggregations)))
    return Skeleton(length, granularity, counts, tuple(segments))


def levels(steps: int, granularity: int) -> int:
    """J: aggregations between a step and the top of a sub-pyramid of that many steps.

    >>> [levels(n, 5) for n in (1, 5, 6, 125, 126)]
    [1, 1, 2, 3, 4]
    """
    level, reach = 1, granularity
    while reach < steps:
        level, reach = level + 1, reach * granularity
    return level
