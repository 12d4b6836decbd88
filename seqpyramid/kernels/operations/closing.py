"""The sequences that end inside a sub-pyramid close it for themselves, and the shortcut path takes in the newest top.

Forward and backward passes share this: what a closing aggregates is not kept but formed again.

Shapes: B sequences, H hidden units.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from seqpyramid.kernels.operations.pyramid import levels
from seqpyramid.kernels.operations.states import Course, Nodes
from seqpyramid.kernels.operations.theta import ThetaOperations


class Closed(NamedTuple):
    """One aggregation of those that end: ``common`` states that all sequences have, then perhaps one of their own."""

    level: int
    common: int
    e: Tensor
    """(n, H, columns)."""
    y: Tensor
    """(H, columns)."""


def close(
    course: Course, nodes: Nodes, waiting: Tensor, theta: ThetaOperations, end: int
) -> tuple[list[Closed], Tensor]:
    """Aggregate h of the sequences with ``end`` steps up to their top.

    Args:
        course: of the layer.
        nodes: h of its aggregates.
        waiting: (n, H, B), h of the steps since the last aggregation.
        theta: of h.
        end: the number of steps, no multiple of L.

    Returns:
        The aggregations, from the lowest level up, and the top (H, columns).
    """
    pyramid, steps = divmod(end, course.pyramids.length)
    columns = course.ending[end]
    closed: list[Closed] = []
    for level, count in enumerate(course.skeleton.waiting(steps)):
        if level == 0:
            states = waiting[:count, :, columns]
        else:
            first = steps // course.pyramids.granularity**level - count
            states = nodes.group(pyramid, level, first, count)[..., columns]
        if closed:
            e = torch.cat([states, closed[-1].y[None]])
        elif count:
            e = states.contiguous()
        else:
            continue
        y = torch.empty_like(e[0])
        theta.aggregate(e, y)
        closed.append(Closed(level, count, e, y))
    if closed:
        return closed, closed[-1].y
    return closed, nodes.one(pyramid, levels(steps, course.pyramids.granularity), 0)[:, columns]


def newest(before: Tensor, top: Tensor, *, top_first: bool) -> Tensor:
    """The two states of the shortcut path in their order: (2, ...)."""
    return torch.stack((top, before) if top_first else (before, top))
