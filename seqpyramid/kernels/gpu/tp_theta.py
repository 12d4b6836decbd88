# Triton's language is no Python to a type checker: arguments are pointers, decorators make programs.
# mypy: allow-untyped-defs, allow-untyped-decorators, no-check-untyped-defs
r"""The aggregation theta of TP-RNN inside a kernel: n states of a tile of rows into one.

With the states :math:`e_m`, :math:`p_d = \max(0, \sum_m W_{1,dm} e_m)`, :math:`s_m = \sigma(\sum_d W_{2,md} p_d)` and
s' = s, or s scrambled, :math:`y = \tanh(\sum_m s'_m \odot e_m)`; the backward pass is that of
:mod:`seqpyramid.kernels.tp_rnn`, but for the gradients of W1 and W2, which are sums over all units, rows and nodes and
are formed after the time loop (:mod:`seqpyramid.kernels.gpu.tp_theta_gradients`).

A row of a tile is one sequence's h or c (each with weights of its own), so that both go through theta at once. The
M states are a tuple of tiles, one element of each a thread; those past n are 0 and change nothing. Weights are read as
they are needed, one number for the whole row.

Scrambled, a row's weights as n numbers a unit, unit by unit, are read again as H numbers a state, state by state:
s'_m[u] is number m H + u of that list. They go through memory, written as they lie (state by state, coalesced) and
gathered on the other side; backwards alike.

Shapes: R rows of a tile, H hidden units, M states at most, n states now. Tiles are (R, H rounded up).
"""

import triton
import triton.language as tl

EXPANSION = tl.constexpr(3)
"""Rows of W1 for each of its columns."""


@triton.jit
def tanh(x):
    """From the exponential of a number below 0, which neither overflows nor cancels far from 0."""
    power = tl.exp(-2 * tl.abs(x))
    size = (1 - power) / (1 + power)
    return tl.where(x < 0, -size, size)


@triton.jit
def when(condition, mask):
    """The mask if a scalar condition holds, else nothing; their ``&`` would be an integer to Triton's interpreter."""
    return tl.where(condition, mask, False)


@triton.jit
def load_tiles(base, places, count, plane, at, mask, STATES: tl.constexpr):
    """The first ``count`` of some states, zeros after them.

    ``places`` are scalars, ``plane`` the numbers from one place to the next, ``at`` (R, H) the offsets in a place.
    """
    tiles = ()
    for m in tl.static_range(STATES):
        tiles += (tl.load(base + places[m] * plane + at, mask=when(m < count, mask), other=0),)
    return tiles


@triton.jit
def _hidden(first, e, d, STATES: tl.constexpr):
    """p_d."""
    p = tl.zeros_like(e[0])
    for m in tl.static_range(STATES):
        p += tl.load(first + d * STATES + m)[:, None] * e[m]
    return tl.maximum(p, 0)


@triton.jit
def _attention(first, second, e, count, STATES: tl.constexpr):
    """S of all states, unscrambled; ``first`` and ``second`` (R,) point to each row's W1 and transposed W2."""
    q = ()
    for _ in tl.static_range(STATES):
        q += (tl.zeros_like(e[0]),)
    for d in range(EXPANSION.value * count):
        p = _hidden(first, e, d, STATES)
        sums = ()
        for m in tl.static_range(STATES):
            sums += (q[m] + tl.load(second + d * STATES + m)[:, None] * p,)
        q = sums
    s = ()
    for m in tl.static_range(STATES):
        s += (tl.sigmoid(q[m]),)
    return s


@triton.jit
def _write(room, tiles, unit, inside, room_plane, STATES: tl.constexpr):
    """Tiles to memory; ``room`` (R, 1) points to where each row's unit 0 of state 0 goes."""
    for m in tl.static_range(STATES):
        tl.store(room + (m * room_plane + unit), tiles[m], mask=inside)


@triton.jit
def _scrambled(room, unit, inside, count, room_plane, HIDDEN: tl.constexpr, STATES: tl.constexpr):
    """S' from s in memory."""
    tiles = ()
    for m in tl.static_range(STATES):
        number = m * HIDDEN + unit
        source = room + ((number % count) * room_plane + number // count)
        tiles += (tl.load(source, mask=when(m < count, inside), other=0),)
    return tiles


@triton.jit
def _unscrambled(room, unit, inside, count, room_plane, HIDDEN: tl.constexpr, STATES: tl.constexpr):
    """And the way back."""
    tiles = ()
    for m in tl.static_range(STATES):
        number = unit * count + m
        source = room + ((number // HIDDEN) * room_plane + number % HIDDEN)
        tiles += (tl.load(source, mask=when(m < count, inside), other=0),)
    return tiles


@triton.jit
def aggregate(
    first,
    second,
    e,
    count,
    room,
    room_plane,
    unit,
    HIDDEN: tl.constexpr,
    STATES: tl.constexpr,
    SCRAMBLED: tl.constexpr,
):
    """Y (R, H) of the ``count`` states e."""
    s = _attention(first, second, e, count, STATES)
    if SCRAMBLED:
        inside = unit < HIDDEN
        _write(room, s, unit, inside, room_plane, STATES)
        tl.debug_barrier()
        s = _scrambled(room, unit, inside, count, room_plane, HIDDEN, STATES)
    total = tl.zeros_like(e[0])
    for m in tl.static_range(STATES):
        total += s[m] * e[m]
    return tanh(total)


@triton.jit
def aggregate_backward(
    first,
    second,
    e,
    count,
    a,
    room,
    room_plane,
    unit,
    HIDDEN: tl.constexpr,
    STATES: tl.constexpr,
    SCRAMBLED: tl.constexpr,
):
    """The gradients of e, a tuple, from a = dy (1 - y^2); there is a barrier between its start and its end."""
    s = _attention(first, second, e, count, STATES)
    ds = ()
    for m in tl.static_range(STATES):
        ds += (a * e[m],)
    s_read = s
    if SCRAMBLED:
        inside = unit < HIDDEN
        other_room = room + STATES * room_plane
        _write(room, s, unit, inside, room_plane, STATES)
        _write(other_room, ds, unit, inside, room_plane, STATES)
    tl.debug_barrier()
    if SCRAMBLED:
        s_read = _scrambled(room, unit, inside, count, room_plane, HIDDEN, STATES)
        ds = _unscrambled(other_room, unit, inside, count, room_plane, HIDDEN, STATES)
    dq = ()
    de = ()
    for m in tl.static_range(STATES):
        dq += (ds[m] * s[m] * (1 - s[m]),)
        de += (a * s_read[m],)
    for d in range(EXPANSION.value * count):
        r = tl.zeros_like(a)
        for m in tl.static_range(STATES):
            r += tl.load(second + d * STATES + m)[:, None] * dq[m]
        r = tl.where(_hidden(first, e, d, STATES) > 0, r, 0)
        sums = ()
        for m in tl.static_range(STATES):
            sums += (de[m] + tl.load(first + d * STATES + m)[:, None] * r,)
        de = sums
    return de
