# Triton's language is no Python to a type checker: arguments are pointers, decorators make programs.
# mypy: allow-untyped-defs, allow-untyped-decorators, no-check-untyped-defs
r"""The gradients of theta's weights, formed for all aggregates of a layer at once.

.. math::
    \delta W_1 = \sum r\, e^\top, \qquad \delta W_2 = \sum \delta q\, p^\top

over units, sequences and aggregates (:mod:`seqpyramid.kernels.tp_rnn` has the symbols). All of it follows from the
states and from a = dy (1 - y^2) of every aggregate, so nothing here waits for anything. A column is one unit of one
sequence at one aggregate: e, p, q stand in a tile with a row each for a state or a row of W1, and everything is small
matrix products. Each program adds up the tiles that fall to it, always the same; their sums are added on the host.

Shapes: B batch, T time, H hidden units, M states of an aggregate at most, P places of states.
"""

import triton
import triton.language as tl

from seqpyramid.kernels.gpu.tp_pyramid import path_place, top_place
from seqpyramid.kernels.gpu.tp_theta import EXPANSION


@triton.jit
def _mix(weights, values, PRECISION: tl.constexpr):
    return tl.dot(weights, values, input_precision=PRECISION, out_dtype=values.dtype)


@triton.jit(do_not_specialize=["batch", "time", "places", "node_places", "nodes"])
def theta_gradients(
    states,  # (2, P, B, H), h and c
    d_nodes,  # (PARTS, P - T, B, H), a
    lengths,  # (B,)
    first,  # (PARTS, 3 M, M)
    second,  # (PARTS, 3 M, M), W2 transposed
    sums,  # (programs, PARTS, 2, D, M rounded up), D = 3 M up to whole blocks: for W1 and for W2 transposed
    batch,
    time,
    places,
    node_places,  # P - T
    nodes,  # aggregates
    LENGTH: tl.constexpr,
    GRANULARITY: tl.constexpr,
    LEVELS: tl.constexpr,
    PYRAMID_STATES: tl.constexpr,
    NODES: tl.constexpr,
    PATH: tl.constexpr,  # those of the shortcut path, M = 2; else those of the sub-pyramids
    TOP_FIRST: tl.constexpr,
    SCRAMBLED: tl.constexpr,
    STATES: tl.constexpr,  # M
    HIDDEN: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCKS: tl.constexpr,  # of rows of W1
    PRECISION: tl.constexpr,
):
    """Fill sums."""
    program = tl.program_id(0)
    part = tl.program_id(1)
    block = tl.program_id(2)
    dtype = states.dtype.element_ty
    D: tl.constexpr = 3 * STATES
    plane = tl.cast(batch, tl.int64) * HIDDEN
    states += part * places * plane
    d_nodes += part * node_places * plane
    first += part * (D * STATES)
    second += part * (D * STATES)
    m = tl.arange(0, BLOCK_M)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    own = (d < D)[:, None] & (m < STATES)[None, :]
    own_first = tl.load(first + d[:, None] * STATES + m[None, :], mask=own, other=0)
    own_second = tl.load(second + d[:, None] * STATES + m[None, :], mask=own, other=0)
    d_first = tl.zeros([BLOCK_D, BLOCK_M], dtype)
    d_second = tl.zeros([BLOCK_D, BLOCK_M], dtype)

    tiles = tl.cdiv(batch * HIDDEN, COLUMNS)
    for task in range(program, nodes * tiles, tl.num_programs(0)):
        # Which states each column aggregates: `count` of them from place `start` on, every `stride` places.
        column = task % tiles * COLUMNS + tl.arange(0, COLUMNS)
        row = column // HIDDEN
        unit = column % HIDDEN
        length = tl.load(lengths + row, mask=row < batch, other=0)
        if PATH:
            k = task // tiles + 1
            steps = tl.minimum(tl.maximum(length - k * LENGTH, 0), LENGTH).to(tl.int32)
            before = path_place(k - 1, time, LENGTH, LEVELS, PYRAMID_STATES, NODES, True)
            top = top_place(k, steps, time, LENGTH, GRANULARITY, LEVELS, PYRAMID_STATES, NODES, True)
            count = tl.where(steps > 0, 2, 0)
            if TOP_FIRST:
                start = top
                stride = before - top
            else:
                start = before + steps * 0
                stride = top - before
            node = path_place(k, time, LENGTH, LEVELS, PYRAMID_STATES, NODES, True) - time
        else:
            node = task // tiles
            k = node // NODES
            index = node % NODES
            # Its level, from below.
            level = index * 0
            reach = index * 0 + 1
            below = index * 0
            source_below = index * 0
            end = 0
            for j in tl.static_range(1, LEVELS):
                size = (LENGTH + GRANULARITY**j - 1) // GRANULARITY**j
                higher = index >= end + size
                source_below = tl.where(higher, end, source_below)
                end += size
                level = tl.where(higher, j, level)
                reach = tl.where(higher, GRANULARITY**j, reach)
                below = tl.where(higher, end, below)
            index -= below
            steps = tl.minimum(tl.maximum(length - k * LENGTH, 0), LENGTH).to(tl.int32)
            count = tl.minimum(tl.cdiv(steps, reach) - index * GRANULARITY, GRANULARITY)
            count = tl.where((level == 0) | (reach < steps), tl.maximum(count, 0), 0)
            start = time + k * NODES + source_below
            start = tl.where(level == 0, k * LENGTH, start) + index * GRANULARITY + steps * 0
            stride = steps * 0 + 1

        there = m[:, None] < count[None, :]
        places_of = start[None, :] + m[:, None] * stride[None, :]
        e = tl.load(states + places_of * plane + column[None, :], mask=there, other=0)
        a_row = d_nodes + node * plane + row * HIDDEN
        a_row = a_row[None, :]
        if SCRAMBLED:
            number = unit[None, :] * count[None, :] + m[:, None]
            state = start[None, :] + number // HIDDEN * stride[None, :]
            source = states + state * plane + (row * HIDDEN)[None, :] + number % HIDDEN
            ds = tl.load(a_row + number % HIDDEN, mask=there, other=0) * tl.load(source, mask=there, other=0)
        else:
            ds = tl.load(a_row + unit[None, :], mask=there, other=0) * e

        p = tl.maximum(_mix(own_first, e, PRECISION), 0)
        p = tl.where(d[:, None] < EXPANSION.value * count[None, :], p, 0)
        q = _mix(tl.trans(own_second), p, PRECISION)
        for other in range(1, BLOCKS):
            d_other = (block + other) % BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
            whole = (d_other < D)[:, None] & (m < STATES)[None, :]
            other_first = tl.load(first + d_other[:, None] * STATES + m[None, :], mask=whole, other=0)
            other_second = tl.load(second + d_other[:, None] * STATES + m[None, :], mask=whole, other=0)
            more = tl.maximum(_mix(other_first, e, PRECISION), 0)
            more = tl.where(d_other[:, None] < EXPANSION.value * count[None, :], more, 0)
            q += _mix(tl.trans(other_second), more, PRECISION)
        s = tl.sigmoid(q)
        dq = ds * s * (1 - s)
        r = tl.where(p > 0, _mix(own_second, dq, PRECISION), 0)
        d_first = tl.dot(r, tl.trans(e), d_first, input_precision=PRECISION, out_dtype=dtype)
        d_second = tl.dot(p, tl.trans(dq), d_second, input_precision=PRECISION, out_dtype=dtype)

    part_sums = (program * tl.num_programs(1) + part) * 2 * (BLOCKS * BLOCK_D * BLOCK_M)
    to = sums + part_sums + d[:, None] * BLOCK_M + m[None, :]
    tl.store(to, d_first)
    tl.store(to + BLOCKS * BLOCK_D * BLOCK_M, d_second)
