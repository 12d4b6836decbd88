# Triton's language is no Python to a type checker: arguments are pointers, decorators make programs.
# mypy: allow-untyped-defs, allow-untyped-decorators, no-check-untyped-defs
r"""The backward kernel of a TP-RNN layer's time loop, from the last step to the first.

A state's gradient waits in a place that is used again (``d_states``, see :mod:`seqpyramid.kernels.gpu.tp_pyramid`):
everyone who has read the state adds to it, and who has made it takes it and leaves zeros. Kept for what comes after the
loop are the gradients of the steps' sums (``d_gates``), and a = dy (1 - y^2) of every aggregate (``d_nodes``), of which
the gradients of all weights and of x follow at once.

Numbers are loaded and overwritten on either side of a barrier, because threads that stand for the same element load it
each for itself.

Shapes: B batch, T time, H hidden units, M states of an aggregate at most, P places of states, Q places of gradients.
"""

import triton
import triton.language as tl

from seqpyramid.kernels.gpu.tp_product import hold, product
from seqpyramid.kernels.gpu.tp_pyramid import (
    driver_place,
    group_places,
    node_place,
    path_place,
    step_place,
    top_place,
)
from seqpyramid.kernels.gpu.tp_theta import aggregate_backward, load_tiles, tanh, when


@triton.jit
def _theta_backward(
    first,
    second,
    states,
    d_states,
    node,
    sources,
    d_node,
    d_sources,
    count,
    more,
    a_to,
    plane,
    at,
    d_at,
    mask,
    room,
    room_plane,
    unit,
    HIDDEN: tl.constexpr,
    STATES: tl.constexpr,
    SCRAMBLED: tl.constexpr,
):
    """Hand the gradient of an aggregate to its ``count`` sources.

    ``more`` (R, H) is added to it first; ``a_to`` are pointers to where a goes; ``at`` and ``d_at`` the offsets in a
    place of states and of gradients.
    """
    e = load_tiles(states, sources, count, plane, at, mask, STATES)
    waiting = load_tiles(d_states, d_sources, count, plane, d_at, mask, STATES)
    y = tl.load(states + node * plane + at, mask=mask, other=0)
    taken = d_states + d_node * plane + d_at
    a = (tl.load(taken, mask=mask, other=0) + more) * (1 - y * y)
    tl.store(a_to, a, mask=mask)
    de = aggregate_backward(first, second, e, count, a, room, room_plane, unit, HIDDEN, STATES, SCRAMBLED)
    tl.store(taken, tl.zeros_like(a), mask=mask)
    for m in tl.static_range(STATES):
        tl.store(d_states + d_sources[m] * plane + d_at, waiting[m] + de[m], mask=when(m < count, mask))
    tl.debug_barrier()


@triton.jit(do_not_specialize=["batch", "time", "places", "d_places", "node_places"])
def backward(
    gates,  # (T, B, 4 H): i, f, g, o
    matrix,  # (4 H, H), W
    first,  # (PARTS, 3 M, M), W1 of h and of c
    second,  # (PARTS, 3 M, M), W2 transposed
    path_first,  # (6, 2), or None: no shortcut path
    path_second,  # (6, 2)
    lengths,  # (B,)
    states,  # (2, P, B, H), h and c
    d_output,  # (B, H), or None
    d_emitted,  # (T', B, H), or None
    d_states,  # (2, Q, B, H), zeros
    d_gates,  # (T, B, 4 H)
    d_nodes,  # (PARTS, P - T, B, H)
    rooms,  # as forward
    batch,
    time,
    places,
    d_places,
    node_places,  # P - T
    LENGTH: tl.constexpr,
    GRANULARITY: tl.constexpr,
    LEVELS: tl.constexpr,
    STATES: tl.constexpr,
    NODES: tl.constexpr,
    EMITTED_LEVEL: tl.constexpr,
    EMITTED: tl.constexpr,
    SCRAMBLED: tl.constexpr,
    TOP_DOWN: tl.constexpr,
    TOP_FIRST: tl.constexpr,
    PARTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    CHUNK: tl.constexpr,
    HELD: tl.constexpr,
):
    """Fill d_gates and d_nodes; the arguments without a word here are those of the forward kernel."""
    GATES: tl.constexpr = 4 * HIDDEN
    program = tl.program_id(0)
    tile = tl.arange(0, BLOCK_B)
    rows = program * BLOCK_B + tile
    length = tl.load(lengths + rows, mask=rows < batch, other=0)
    some_row = tl.minimum(rows, batch - 1)  # to read from where there is no row
    unit = tl.arange(0, BLOCK_H)[None, :]
    real = unit < HIDDEN
    plane = tl.cast(batch, tl.int64) * HIDDEN
    at = rows[:, None] * HIDDEN + unit
    cells = states + places * plane
    d_cells = d_states + d_places * plane
    gates_row = rows * GATES
    gates_plane = plane * 4

    # A tile of theta: the rows of h, then those of c.
    both = tl.arange(0, PARTS * BLOCK_B)
    part = both // BLOCK_B
    both_row = program * BLOCK_B + both % BLOCK_B
    both_length = tl.load(lengths + both_row, mask=both_row < batch, other=0)
    row_at = both_row[:, None] * HIDDEN + unit
    both_at = (part * places)[:, None] * plane + row_at
    both_d_at = (part * d_places)[:, None] * plane + row_at
    both_a = d_nodes + ((part * node_places)[:, None] * plane + row_at)
    weights = part * (3 * STATES * STATES)
    room_plane: tl.constexpr = 2 * BLOCK_B * HIDDEN
    ROOM_STATES: tl.constexpr = STATES if STATES > 2 else 2
    room = rooms + program * (2 * ROOM_STATES * room_plane) + both[:, None] * HIDDEN
    path_room = rooms + program * (2 * ROOM_STATES * room_plane) + tile[:, None] * HIDDEN

    held = hold(matrix, GATES, HIDDEN, BLOCK_H, CHUNK, HELD)

    if d_output is not None:
        last = path_place((length - 1) // LENGTH, time, LENGTH, LEVELS, STATES, NODES, False)
        whole = (rows < batch)[:, None] & real
        tl.store(
            d_states + last[:, None] * plane + at, tl.load(d_output + at, mask=whole, other=0), mask=whole
        )
        tl.debug_barrier()

    longest = tl.max(length, axis=0)
    for done in range(longest):
        t = longest - 1 - done
        k = t // LENGTH
        steps = t % LENGTH + 1
        running = length > t
        inside = running[:, None] & real
        closing = (length == t + 1) | when(steps == LENGTH, running)
        someone_closes = tl.max(closing.to(tl.int32), axis=0) > 0

        if someone_closes:
            ending = closing[:, None] & real
            d_top = top_place(k, steps, time, LENGTH, GRANULARITY, LEVELS, STATES, NODES, False)
            d_path = path_place(k, time, LENGTH, LEVELS, STATES, NODES, False)
            passes_on = k == 0
            if path_first is None:
                passes_on = k >= 0
            d_newest = tl.zeros([BLOCK_B, BLOCK_H], states.dtype.element_ty)
            if d_emitted is not None and EMITTED_LEVEL > 1:
                short = (steps <= GRANULARITY ** (EMITTED_LEVEL - 1)) & (steps < LENGTH)
                d_newest += tl.load(d_emitted + k * EMITTED * plane + at, mask=when(short, ending), other=0)
            if passes_on:
                d_newest += tl.load(d_states + d_path * plane + at, mask=ending, other=0)
            d_newest += tl.load(d_states + d_top * plane + at, mask=ending, other=0)
            tl.debug_barrier()
            tl.store(d_states + d_top * plane + at, d_newest, mask=ending)
            if passes_on:
                tl.store(d_states + d_path * plane + at, tl.zeros_like(d_newest), mask=ending)
            tl.debug_barrier()
            if path_first is not None and k > 0:
                path = path_place(k, time, LENGTH, LEVELS, STATES, NODES, True)
                path_before = path_place(k - 1, time, LENGTH, LEVELS, STATES, NODES, True)
                d_path_before = path_place(k - 1, time, LENGTH, LEVELS, STATES, NODES, False)
                top = top_place(k, steps, time, LENGTH, GRANULARITY, LEVELS, STATES, NODES, True)
                if TOP_FIRST:
                    two = (top, path_before)
                    d_two = (d_top, d_path_before)
                else:
                    two = (path_before, top)
                    d_two = (d_path_before, d_top)
                _theta_backward(
                    path_first + tile * 0,
                    path_second + tile * 0,
                    states,
                    d_states,
                    path,
                    two,
                    d_path,
                    d_two,
                    2,
                    tl.zeros_like(d_newest),
                    d_nodes + (path - time) * plane + at,
                    plane,
                    at,
                    at,
                    ending,
                    path_room,
                    room_plane,
                    unit,
                    HIDDEN,
                    2,
                    SCRAMBLED,
                )

        if someone_closes | (steps % GRANULARITY == 0):
            both_running = both_length > t
            both_closing = (both_length == t + 1) | when(steps == LENGTH, both_running)
            span = GRANULARITY**LEVELS
            below = NODES - 1  # nodes of all levels but the top's
            for above in range(LEVELS):
                level = LEVELS - 1 - above
                reach = span // GRANULARITY
                source_below = below
                if level > 0:
                    source_below = below - tl.cdiv(LENGTH, reach)
                due = (steps % span == 0) | (steps == LENGTH)
                if due | (someone_closes & ((level == 0) | (reach < steps))):
                    index = (steps - 1) // span
                    count = tl.cdiv(steps, reach) - index * GRANULARITY
                    mask = (both_closing | when(due, both_running))[:, None] & real
                    group = index * GRANULARITY
                    sources = group_places(
                        t, level, source_below, group, count, time, LENGTH, STATES, NODES, True
                    )
                    d_sources = group_places(
                        t, level, source_below, group, count, time, LENGTH, STATES, NODES, False
                    )
                    node = node_place(k, level, below, index, time, GRANULARITY, STATES, NODES, True)
                    d_node = node_place(k, level, below, index, time, GRANULARITY, STATES, NODES, False)
                    more = tl.zeros([PARTS * BLOCK_B, BLOCK_H], states.dtype.element_ty)
                    if d_emitted is not None:
                        emits = when(level + 1 == EMITTED_LEVEL, mask & (part == 0)[:, None])
                        place = d_emitted + (k * EMITTED + index) * plane + row_at
                        more += tl.load(place, mask=emits, other=0)
                    _theta_backward(
                        first + weights,
                        second + weights,
                        states,
                        d_states,
                        node,
                        sources,
                        d_node,
                        d_sources,
                        count,
                        more,
                        both_a + (node - time) * plane,
                        plane,
                        both_at,
                        both_d_at,
                        mask,
                        room,
                        room_plane,
                        unit,
                        HIDDEN,
                        STATES,
                        SCRAMBLED,
                    )
                below = source_below
                span = reach

        # The step.
        driven = when(t > 0, running)
        driven_inside = driven[:, None] & real
        by_aggregates: tl.constexpr = TOP_DOWN and PARTS == 2
        c_before = driver_place(t - 1, time, LENGTH, GRANULARITY, LEVELS, STATES, NODES, by_aggregates, True)
        dc_before = driver_place(
            t - 1, time, LENGTH, GRANULARITY, LEVELS, STATES, NODES, by_aggregates, False
        )
        dh_before = driver_place(t - 1, time, LENGTH, GRANULARITY, LEVELS, STATES, NODES, TOP_DOWN, False)
        gate = gates + t * gates_plane + gates_row[:, None] + unit
        i = tl.load(gate, mask=inside, other=0)
        f = tl.load(gate + HIDDEN, mask=inside, other=0)
        g = tl.load(gate + 2 * HIDDEN, mask=inside, other=0)
        o = tl.load(gate + 3 * HIDDEN, mask=inside, other=0)
        squashed = tanh(tl.load(cells + t * plane + at, mask=inside, other=0))
        c = tl.load(cells + c_before * plane + at, mask=driven_inside, other=0)
        own = step_place(t, STATES, False) * plane + at
        dh = tl.load(d_states + own, mask=inside, other=0)
        dc = tl.load(d_cells + own, mask=inside, other=0)
        dh_waiting = tl.load(d_states + dh_before * plane + at, mask=driven_inside, other=0)
        dc_waiting = tl.load(d_cells + dc_before * plane + at, mask=driven_inside, other=0)
        dc += dh * o * (1 - squashed * squashed)
        d_gate = d_gates + t * gates_plane + gates_row[:, None] + unit
        tl.store(d_gate, dc * g * i * (1 - i), mask=inside)
        tl.store(d_gate + HIDDEN, dc * c * f * (1 - f), mask=inside)
        tl.store(d_gate + 2 * HIDDEN, dc * i * (1 - g * g), mask=inside)
        tl.store(d_gate + 3 * HIDDEN, dh * squashed * o * (1 - o), mask=inside)
        tl.debug_barrier()
        tl.store(d_states + own, tl.zeros_like(dh), mask=inside)
        tl.store(d_cells + own, tl.zeros_like(dc), mask=inside)
        tl.store(d_cells + dc_before * plane + at, dc_waiting + dc * f, mask=driven_inside)
        handed = product(
            d_gates + t * gates_plane + some_row * GATES,
            matrix,
            held,
            GATES,
            HIDDEN,
            BLOCK_B,
            BLOCK_H,
            CHUNK,
            HELD,
        )
        tl.store(d_states + dh_before * plane + at, dh_waiting + handed, mask=driven_inside)
        tl.debug_barrier()
