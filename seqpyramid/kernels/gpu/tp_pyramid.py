# Triton's language is no Python to a type checker: arguments are pointers, decorators make programs.
# mypy: allow-untyped-defs, allow-untyped-decorators, no-check-untyped-defs
r"""Where the states of a TP-RNN layer lie, by integers only: the same arithmetic on the host and inside kernels.

Steps t = 0 ... T-1 fall into sub-pyramids k = t // L; r = t % L + 1 counts the steps of the open one. Node i of
level j stands over its steps i g^j + 1 ... (i+1) g^j, the last node of a level over what is left. After step r, level
by level from below, node (r-1) // g^j of level j is formed

- for all sequences, where g^j divides r or r = L;
- for those that end here, up to the level of their top, the first j with g^j >= r,

out of the nodes of level j - 1 over these r steps that are in no node of level j yet. What drives the next step is the
node formed last, if one was formed for all.

A state has an address, its *place*. Where all states are kept for a backward pass, each has its own:

=====================================  ======================================
step t                                 t
node i of level j of sub-pyramid k     T + k A + nodes of levels 1 ... j-1 + i
o_k of the shortcut path               T + N A + k
=====================================  ======================================

with A nodes a sub-pyramid and N sub-pyramids. Without a backward pass, and for gradients on their way, which live as
long as their states do, few are alive at once, and places are used again: M + 1 for steps, M for each level (of one
level only the nodes of one group wait), 2 for the path. In both, what is aggregated lies side by side, but for steps
that wrap.

Shapes: T time, L length of a sub-pyramid, g granularity, J levels, M = min(g, L) states of an aggregate at most.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqpyramid.kernels.tp_rnn import Pyramids


class Sizes(NamedTuple):
    """What follows from L, g and the emitted level."""

    levels: int
    """J, between the steps and the top."""
    states: int
    """M."""
    nodes: int
    """A."""
    emitted: int
    """States that a whole sub-pyramid hands to the next layer."""

    def kept_places(self, time: int, length: int) -> int:
        """Places where every state has its own."""
        return time - (-time // length) * (self.nodes + 1)

    @property
    def shared_places(self) -> int:
        """Places where they are used again."""
        return self.states + 1 + self.levels * self.states + 2


def sizes(pyramids: Pyramids) -> Sizes:
    """Count.

    >>> sizes(Pyramids(49, 7, 1, 112, scrambled=True, top_down=True, top_first=True))
    Sizes(levels=2, states=7, nodes=8, emitted=7)
    """
    length, granularity = pyramids.length, pyramids.granularity
    counts = [-(-length // granularity)]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // granularity))
    emitted = counts[pyramids.emitted_level - 1] if pyramids.emitted_level <= len(counts) else 0
    return Sizes(len(counts), min(granularity, length), sum(counts), emitted)


@lru_cache(maxsize=64)
def drivers(time: int, pyramids: Pyramids, device: torch.device) -> Tensor:
    """Kept places (T - 1) of the h that drive steps 1 ... T - 1.

    >>> shape = Pyramids(4, 2, 1, 3, scrambled=True, top_down=True, top_first=True)
    >>> drivers(7, shape, torch.device("cpu")).tolist()
    [0, 7, 2, 9, 4, 10]
    """
    step = torch.arange(time - 1)
    place = step
    if pyramids.top_down:
        k, steps = step // pyramids.length, step % pyramids.length + 1
        counts = sizes(pyramids)
        offset, span = time, pyramids.granularity
        for _ in range(counts.levels):
            due = (steps % span == 0) | (steps == pyramids.length)
            place = torch.where(due, offset + k * counts.nodes + (steps - 1) // span, place)
            offset, span = offset - (-pyramids.length // span), span * pyramids.granularity
    return place.to(device)


@triton.jit
def step_place(t, STATES: tl.constexpr, KEEP: tl.constexpr):
    """Of step t."""
    return t if KEEP else t % (STATES + 1)


@triton.jit
def node_place(
    k,
    level,
    below,
    index,
    time,
    GRANULARITY: tl.constexpr,
    STATES: tl.constexpr,
    NODES: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Of node ``index`` of level ``level`` + 1 in sub-pyramid k; ``below``: how many nodes the levels under it have."""
    return time + k * NODES + below + index if KEEP else STATES + 1 + level * STATES + index % GRANULARITY


@triton.jit
def path_place(
    k,
    time,
    LENGTH: tl.constexpr,
    LEVELS: tl.constexpr,
    STATES: tl.constexpr,
    NODES: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Of o_k."""
    return time + tl.cdiv(time, LENGTH) * NODES + k if KEEP else STATES + 1 + LEVELS * STATES + k % 2


@triton.jit
def top_place(
    k,
    steps,
    time,
    LENGTH: tl.constexpr,
    GRANULARITY: tl.constexpr,
    LEVELS: tl.constexpr,
    STATES: tl.constexpr,
    NODES: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Of the top of sub-pyramid k where it closes after ``steps`` of its steps."""
    level = steps * 0
    below = steps * 0
    for j in tl.static_range(1, LEVELS):
        higher = steps > GRANULARITY**j
        level += tl.where(higher, 1, 0)
        below += tl.where(higher, (LENGTH + GRANULARITY**j - 1) // GRANULARITY**j, 0)
    return node_place(k, level, below, 0, time, GRANULARITY, STATES, NODES, KEEP)


@triton.jit
def driver_place(
    t,
    time,
    LENGTH: tl.constexpr,
    GRANULARITY: tl.constexpr,
    LEVELS: tl.constexpr,
    STATES: tl.constexpr,
    NODES: tl.constexpr,
    BY_AGGREGATES: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Of what drives step t + 1: step t, or the aggregate formed last after it, where aggregates drive."""
    place = step_place(t, STATES, KEEP)
    if BY_AGGREGATES:
        steps = t % LENGTH + 1
        closes = steps == LENGTH
        if closes | (steps % GRANULARITY == 0):
            span = GRANULARITY
            below = 0
            for level in range(LEVELS):
                index = (steps - 1) // span
                node = node_place(t // LENGTH, level, below, index, time, GRANULARITY, STATES, NODES, KEEP)
                place = tl.where(closes | (steps % span == 0), node, place)
                below += tl.cdiv(LENGTH, span)
                span *= GRANULARITY
    return place


@triton.jit
def group_places(
    t,
    level,
    below,
    first,
    count,
    time,
    LENGTH: tl.constexpr,
    STATES: tl.constexpr,
    NODES: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Of the ``count`` states, from number ``first`` of their level on, that are aggregated after step t.

    ``level`` is theirs, 0 for steps; ``below``: how many nodes the levels under it have.
    """
    places = ()
    for m in tl.static_range(STATES):
        step = t + 1 - count + m
        if KEEP:
            node = time + (t // LENGTH) * NODES + below + first + m
        else:
            step = (step + STATES + 1) % (STATES + 1)
            node = STATES + 1 + (level - 1) * STATES + m
        places += (tl.where(level == 0, step, node),)
    return places
