"""What a TP-RNN layer's forward pass needs and leaves behind.

Shapes: B sequences, T time, H hidden units, R rows of what a step reads (:mod:`seqpyramid.kernels.operations.steps`),
N closed sub-pyramids, j levels above the steps.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from seqpyramid.kernels.operations.pyramid import Segment, Skeleton, skeleton
from seqpyramid.kernels.operations.theta import Rooms, ThetaOperations
from seqpyramid.kernels.tp_rnn import Pyramids, Theta


@dataclass(frozen=True)
class Weights:
    """Of a layer."""

    steps: Tensor
    """[W, U, b] (4 H, R)."""
    theta_h: Theta
    theta_c: Theta | None
    theta_path: Theta | None

    @property
    def hidden(self) -> int:
        """H."""
        return len(self.steps) // 4


class Stretch(NamedTuple):
    """Steps ``first`` to ``last - 1`` of the layer, a segment of a sub-pyramid or what the end leaves of it."""

    pyramid: int
    segment: Segment
    first: int
    last: int

    @property
    def complete(self) -> bool:
        """Whether the segment's aggregations take place."""
        return self.last - self.first == self.segment.last - self.segment.first


class Course:
    """What happens when: the layer's segments, and the columns (sequences, longest first) that end.

    Args:
        pyramids: the layer's shape.
        lengths: of the sequences, not increasing.
    """

    def __init__(self, pyramids: Pyramids, lengths: list[int]) -> None:
        self.pyramids = pyramids
        self.skeleton: Skeleton = skeleton(pyramids.length, pyramids.granularity)
        self.time = lengths[0]
        self.most = min(pyramids.granularity, pyramids.length, self.time)
        """Steps of the longest segment."""
        self.closed = self.time // pyramids.length
        self._lengths = [-length for length in lengths]
        self.ending: dict[int, slice] = {}
        """Columns by the number of their steps."""
        for end in sorted(set(lengths)):
            self.ending[end] = slice(self.running(end + 1), self.running(end))

    def running(self, steps: int) -> int:
        """How many sequences have at least so many steps."""
        return bisect_right(self._lengths, -steps)

    def stretches(self) -> Iterator[Stretch]:
        """All segments in the order of time."""
        for pyramid in range(-(-self.time // self.pyramids.length)):
            origin = pyramid * self.pyramids.length
            for segment in self.skeleton.segments:
                if origin + segment.first < self.time:
                    last = min(origin + segment.last, self.time)
                    yield Stretch(pyramid, segment, origin + segment.first, last)

    def emitted(self, pyramid: int, made: int) -> int:
        """Place of a state of the emitted level among the next layer's inputs."""
        level = self.pyramids.emitted_level
        counts = self.skeleton.counts
        return pyramid * (counts[level] if level < len(counts) else 0) + made


class Nodes:
    """The aggregates of all levels.

    Args:
        memory: (j g, H, B) where only what waits is kept; else (all, H, B), see :meth:`needed`.
        course: of the layer.
        keep: whether aggregates stay.
    """

    def __init__(self, memory: Tensor, course: Course, *, keep: bool) -> None:
        self._counts, self._granularity = course.skeleton.counts, course.pyramids.granularity
        self._keep = keep
        self._levels = torch.split(memory, _sizes(course, keep=keep))

    @staticmethod
    def needed(course: Course, *, keep: bool) -> int:
        """How many states the memory has to hold."""
        return sum(_sizes(course, keep=keep))

    def group(self, pyramid: int, level: int, first: int, size: int) -> Tensor:
        """States ``first`` to ``first + size - 1`` of a level (1 at least), all of one group: (size, H, B)."""
        start = pyramid * self._counts[level] + first if self._keep else first % self._granularity
        return self._levels[level - 1][start : start + size]

    def one(self, pyramid: int, level: int, made: int) -> Tensor:
        """State ``made`` of a level: (H, B)."""
        return self.group(pyramid, level, made, 1)[0]


def _sizes(course: Course, *, keep: bool) -> list[int]:
    above = course.skeleton.counts[1:]
    if not keep:
        return [min(count, course.pyramids.granularity) for count in above]
    rest = course.skeleton.complete(course.time % course.pyramids.length)
    return [course.closed * count + more for count, more in zip(above, rest, strict=True)]


class Tape(NamedTuple):
    """What the backward pass reads."""

    read: Tensor
    """(T + 1, R, B): what each step reads: the state that drives it, its input and 1."""
    gates: Tensor
    """(T, 4, H, B)."""
    cells: Tensor
    """(T, H, B)."""
    nodes_h: Tensor
    """h of all aggregates, (., H, B)."""
    nodes_c: Tensor
    """c of them, or nothing."""
    path: Tensor
    """(N, H, B)."""


def tape(x: Tensor, course: Course, weights: Weights, *, keep: bool) -> Tape:
    """Memory for the forward pass; without ``keep`` as much as a segment needs, used again and again.

    ``x`` are the layer's inputs (B, T, F).
    """
    batch, hidden, rows = len(x), weights.hidden, weights.steps.shape[1]
    time = course.time if keep else course.most
    nodes = Nodes.needed(course, keep=keep)
    shape = (hidden, batch)
    return Tape(
        read=x.new_empty(time + 1, rows, batch),
        gates=x.new_empty(time if keep else 1, 4, *shape),
        cells=x.new_empty(time, *shape),
        nodes_h=x.new_empty(nodes, *shape),
        nodes_c=x.new_empty(0 if weights.theta_c is None else nodes, *shape),
        path=x.new_empty(course.closed if keep else min(course.closed, 1), *shape),
    )


class Thetas(NamedTuple):
    """The aggregations of a layer, ready to run."""

    h: ThetaOperations
    c: ThetaOperations | None
    path: ThetaOperations | None


def thetas_of(weights: Weights, rooms: Rooms, *, scrambled: bool) -> Thetas:
    """Make them, all working in the same buffers."""

    def made(theta: Theta) -> ThetaOperations:
        return ThetaOperations(theta, scrambled=scrambled, rooms=rooms)

    return Thetas(
        made(weights.theta_h),
        None if weights.theta_c is None else made(weights.theta_c),
        None if weights.theta_path is None else made(weights.theta_path),
    )
