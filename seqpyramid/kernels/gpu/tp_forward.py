# Triton's language is no Python to a type checker: arguments are pointers, decorators make programs.
# mypy: allow-untyped-defs, allow-untyped-decorators, no-check-untyped-defs
"""The forward kernel of a TP-RNN layer: one program takes a tile of sequences through all steps.

What one thread of a program writes for another goes through memory (which the first-level cache of its processor
answers), with a barrier between. Where every state lies: :mod:`seqpyramid.kernels.gpu.tp_pyramid`.

Shapes: B batch, T time, H hidden units, M states of an aggregate at most, P places of states.
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
from seqpyramid.kernels.gpu.tp_theta import aggregate, load_tiles, tanh, when


@triton.jit(do_not_specialize=["batch", "time", "places"])
def forward(
    gates,  # (T, B, 4 H): U x + b; with KEEP it becomes i, f, g, o after their functions
    matrix,  # (H, 4 H), W transposed
    first,  # (PARTS, 3 M, M), W1 of h and of c
    second,  # (PARTS, 3 M, M), W2 transposed
    path_first,  # (6, 2), or None: no shortcut path
    path_second,  # (6, 2)
    lengths,  # (B,)
    states,  # (2, P, B, H), h and c
    emitted,  # (T', B, H)
    output,  # (B, H)
    sums,  # (programs, BLOCK_B, 4 H), scratch for W h
    rooms,  # (programs, 2, max(M, 2), 2, BLOCK_B, H), scratch for what is scrambled
    batch,
    time,
    places,
    LENGTH: tl.constexpr,
    GRANULARITY: tl.constexpr,
    LEVELS: tl.constexpr,
    STATES: tl.constexpr,
    NODES: tl.constexpr,
    EMITTED_LEVEL: tl.constexpr,
    EMITTED: tl.constexpr,  # states that a whole sub-pyramid emits
    SCRAMBLED: tl.constexpr,
    TOP_DOWN: tl.constexpr,
    TOP_FIRST: tl.constexpr,
    PARTS: tl.constexpr,  # 2: c is aggregated too
    KEEP: tl.constexpr,  # every state has a place of its own
    HIDDEN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_GATES: tl.constexpr,
    CHUNK: tl.constexpr,
    HELD: tl.constexpr,
):
    """Fill states, output and emitted, and with KEEP gates."""
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
    gates_unit = rows[:, None] * GATES + unit
    gates_plane = plane * 4

    # A tile of theta: the rows of h, then those of c.
    both = tl.arange(0, PARTS * BLOCK_B)
    part = both // BLOCK_B
    both_row = program * BLOCK_B + both % BLOCK_B
    both_length = tl.load(lengths + both_row, mask=both_row < batch, other=0)
    both_at = (part * places)[:, None] * plane + both_row[:, None] * HIDDEN + unit
    weights = part * (3 * STATES * STATES)
    room_plane: tl.constexpr = 2 * BLOCK_B * HIDDEN
    ROOM_STATES: tl.constexpr = STATES if STATES > 2 else 2
    room = rooms + program * (2 * ROOM_STATES * room_plane) + both[:, None] * HIDDEN
    path_room = rooms + program * (2 * ROOM_STATES * room_plane) + tile[:, None] * HIDDEN

    numbers = tl.arange(0, BLOCK_GATES)[None, :]
    sums_row = sums + (program * BLOCK_B + tile)[:, None] * GATES
    held = hold(matrix, HIDDEN, GATES, BLOCK_GATES, CHUNK, HELD)

    for t in range(tl.max(length, axis=0)):
        k = t // LENGTH
        steps = t % LENGTH + 1
        running = length > t
        inside = running[:, None] & real
        own = states + step_place(t, STATES, KEEP) * plane + at

        # The step. Its inputs are asked for before the product, which hides their way from memory.
        earlier = tl.maximum(t - 1, 0)
        before = driver_place(earlier, time, LENGTH, GRANULARITY, LEVELS, STATES, NODES, TOP_DOWN, KEEP)
        c_before = driver_place(
            earlier, time, LENGTH, GRANULARITY, LEVELS, STATES, NODES, TOP_DOWN and PARTS == 2, KEEP
        )
        driven = when(t > 0, running)
        c = tl.load(cells + c_before * plane + at, mask=driven[:, None] & real, other=0)
        gate = gates + t * gates_plane + gates_unit
        i = tl.load(gate, mask=inside, other=0)
        f = tl.load(gate + HIDDEN, mask=inside, other=0)
        g = tl.load(gate + 2 * HIDDEN, mask=inside, other=0)
        o = tl.load(gate + 3 * HIDDEN, mask=inside, other=0)
        recurrent = product(
            states + before * plane + some_row * HIDDEN,
            matrix,
            held,
            HIDDEN,
            GATES,
            BLOCK_B,
            BLOCK_GATES,
            CHUNK,
            HELD,
        )
        recurrent = tl.where(driven[:, None], recurrent, 0)
        tl.store(sums_row + numbers, recurrent, mask=running[:, None] & (numbers < GATES))
        tl.debug_barrier()
        i = tl.sigmoid(i + tl.load(sums_row + unit, mask=inside, other=0))
        f = tl.sigmoid(f + tl.load(sums_row + (HIDDEN + unit), mask=inside, other=0))
        g = tanh(g + tl.load(sums_row + (2 * HIDDEN + unit), mask=inside, other=0))
        o = tl.sigmoid(o + tl.load(sums_row + (3 * HIDDEN + unit), mask=inside, other=0))
        c = f * c + i * g
        tl.store(own, o * tanh(c), mask=inside)
        tl.store(own + places * plane, c, mask=inside)
        if KEEP:
            tl.store(gate, i, mask=inside)
            tl.store(gate + HIDDEN, f, mask=inside)
            tl.store(gate + 2 * HIDDEN, g, mask=inside)
            tl.store(gate + 3 * HIDDEN, o, mask=inside)
        tl.debug_barrier()

        # What is aggregated now.
        closing = (length == t + 1) | when(steps == LENGTH, running)
        someone_closes = tl.max(closing.to(tl.int32), axis=0) > 0
        if someone_closes | (steps % GRANULARITY == 0):
            both_running = both_length > t
            both_closing = (both_length == t + 1) | when(steps == LENGTH, both_running)
            reach = 1
            source_below = 0
            below = 0
            for level in range(LEVELS):
                span = reach * GRANULARITY
                due = (steps % span == 0) | (steps == LENGTH)
                if due | (someone_closes & ((level == 0) | (reach < steps))):
                    index = (steps - 1) // span
                    count = tl.cdiv(steps, reach) - index * GRANULARITY
                    mask = (both_closing | when(due, both_running))[:, None] & real
                    sources = group_places(
                        t,
                        level,
                        source_below,
                        index * GRANULARITY,
                        count,
                        time,
                        LENGTH,
                        STATES,
                        NODES,
                        KEEP,
                    )
                    e = load_tiles(states, sources, count, plane, both_at, mask, STATES)
                    y = aggregate(
                        first + weights,
                        second + weights,
                        e,
                        count,
                        room,
                        room_plane,
                        unit,
                        HIDDEN,
                        STATES,
                        SCRAMBLED,
                    )
                    node = node_place(k, level, below, index, time, GRANULARITY, STATES, NODES, KEEP)
                    tl.store(states + node * plane + both_at, y, mask=mask)
                    if level + 1 == EMITTED_LEVEL:
                        place = emitted + (k * EMITTED + index) * plane + both_row[:, None] * HIDDEN + unit
                        tl.store(place, y, mask=mask & (part == 0)[:, None])
                    tl.debug_barrier()
                source_below = below
                below += tl.cdiv(LENGTH, span)
                reach = span

        if someone_closes:
            mask = closing[:, None] & real
            top = top_place(k, steps, time, LENGTH, GRANULARITY, LEVELS, STATES, NODES, KEEP)
            path = path_place(k, time, LENGTH, LEVELS, STATES, NODES, KEEP)
            path_before = path_place(k - 1, time, LENGTH, LEVELS, STATES, NODES, KEEP)
            newest = tl.load(states + top * plane + at, mask=mask, other=0)
            if EMITTED_LEVEL > 1:  # a top below the emitted level stands in for it
                short = (steps <= GRANULARITY ** (EMITTED_LEVEL - 1)) & (steps < LENGTH)
                tl.store(emitted + k * EMITTED * plane + at, newest, mask=when(short, mask))
            if path_first is not None and k > 0:
                two = (top, path_before) if TOP_FIRST else (path_before, top)
                e = load_tiles(states, two, 2, plane, at, mask, 2)
                newest = aggregate(
                    path_first + tile * 0,
                    path_second + tile * 0,
                    e,
                    2,
                    path_room,
                    room_plane,
                    unit,
                    HIDDEN,
                    2,
                    SCRAMBLED,
                )
            tl.store(states + path * plane + at, newest, mask=mask)
            tl.debug_barrier()

    last = path_place((length - 1) // LENGTH, time, LENGTH, LEVELS, STATES, NODES, KEEP)
    mask = (rows < batch)[:, None] & real
    tl.store(output + at, tl.load(states + last[:, None] * plane + at, mask=mask, other=0), mask=mask)
