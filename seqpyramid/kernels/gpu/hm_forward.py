# Triton's language is no Python to a type checker: arguments are pointers, decorators make programs.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The forward pass of HM-LSTM's kernel: one program takes a tile of rows through all steps and layers.

Every layer is as large as the largest (see :mod:`seqpyramid.kernels.gpu.hm_weights`). h, c and z have one step more
than x: their first is the state before. ``now`` is a row's place in a step, ``now + batch`` its place in the next. What
threads of a program write for each other goes through memory, with a barrier between.

Shapes: B batch, T time, H hidden units of a layer, L layers; S of the boundary's row and its padding is 4 H + 4.
"""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """By the logistic function, which also runs in the interpreter; the error is absolute, not relative."""
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def boundary_value(x, slope, LOGISTIC: tl.constexpr):
    """Value of a soft boundary, between 0 and 1."""
    return tl.sigmoid(slope * x) if LOGISTIC else tl.minimum(tl.maximum((slope * x + 1) / 2, 0), 1)


@triton.jit(do_not_specialize=["boundaries", "steps", "batch"])
def forward(
    h,  # (T + 1, B, L, H)
    c,  # (T + 1, B, L, H); not KEEP: (B, L, H), overwritten
    z,  # (T + 1, B, L)
    gates,  # (T, B, L, 4, H); only with KEEP
    boundary_sums,  # (T, B, L), x of z~; only with KEEP
    inputs,  # (B, 3 H + BLOCK_K), scratch for X of one layer at one step, and zeros
    projected,  # (T, B, S), W x of the first layer
    matrix,  # (L, 3 H, 4 H) and BLOCK_K more rows
    boundary,  # (L, 3, H)
    bias,  # (L, S)
    lengths,  # (B,)
    slope,  # (1,)
    boundaries,  # bit l: layer l has a boundary
    steps,
    batch,
    LAYERS: tl.constexpr,
    HIDDEN: tl.constexpr,
    KEEP: tl.constexpr,
    CHOICE: tl.constexpr,
    SOFT: tl.constexpr,
    LOGISTIC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fill h, c and z from their first step on, and what the backward pass reads."""
    dtype = h.dtype.element_ty
    SUMS: tl.constexpr = 4 * HIDDEN + 4
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    valid = rows < batch
    length = tl.load(lengths + rows, mask=valid, other=0)
    a = tl.load(slope)
    sources = tl.arange(0, BLOCK_H)
    real = valid[:, None] & (sources < HIDDEN)[None, :]
    x_row = inputs + rows * (3 * HIDDEN + BLOCK_K)
    now = rows.to(tl.int64)
    for t in range(steps):
        going = t < length
        z_below = tl.full([BLOCK_B], 1, dtype)
        for layer in range(LAYERS):
            # what is not there has no rows and no columns
            width_above = tl.where(layer + 1 < LAYERS, HIDDEN, 0)
            width_below = tl.where(layer > 0, HIDDEN, 0)
            projects = t < tl.where(layer == 0, length, 0)
            at = (now * LAYERS + layer) * HIDDEN
            next_at = ((now + batch) * LAYERS + layer) * HIDDEN
            z_own = tl.load(z + now * LAYERS + layer, mask=valid, other=0)
            keeps = tl.where(going, (1 - z_own) * (1 - z_below), 1)
            updates = tl.where(going, (1 - z_own) * z_below, 0)

            # X, and its product with the one row of z~
            place = at[:, None] + sources[None, :]
            own = tl.load(h + place, mask=real, other=0)
            above = tl.load(h + place + HIDDEN, mask=real & (sources < width_above)[None, :], other=0)
            above *= z_own[:, None]
            place = next_at[:, None] + sources[None, :]
            below = tl.load(h + place - HIDDEN, mask=real & (sources < width_below)[None, :], other=0)
            below *= z_below[:, None]
            to = x_row[:, None] + sources[None, :]
            tl.store(to, above, mask=real)
            tl.store(to + HIDDEN, own, mask=real)
            tl.store(to + 2 * HIDDEN, below, mask=real)
            w = boundary + layer * 3 * HIDDEN + sources
            products = above * tl.load(w, mask=sources < HIDDEN, other=0)[None, :]
            products += own * tl.load(w + HIDDEN, mask=sources < HIDDEN, other=0)[None, :]
            products += below * tl.load(w + 2 * HIDDEN, mask=sources < HIDDEN, other=0)[None, :]
            x = tl.sum(products, axis=1) + tl.load(bias + layer * SUMS + 4 * HIDDEN)
            x += tl.load(projected + now * SUMS + 4 * HIDDEN, mask=projects, other=0)
            opened = boundary_value(x, a, LOGISTIC) if SOFT else (x > 0).to(dtype)
            z_new = tl.where(going & (((boundaries >> layer) & 1) == 1), opened, z_own)
            tl.store(z + (now + batch) * LAYERS + layer, z_new, mask=valid)
            if KEEP:
                tl.store(boundary_sums + now * LAYERS + layer, x, mask=valid)

            # Parts of X that are 0 in all rows of the tile are left out, and their weights are never fetched;
            # a tile whose rows all copy needs no gates, unless a boundary will learn from having chosen COPY.
            working = going if KEEP and CHOICE else keeps != 1
            works = tl.max(working.to(tl.int32), axis=0) > 0
            hears_above = tl.max((working & (z_own != 0)).to(tl.int32), axis=0) > 0
            hears_below = tl.max((working & (z_below != 0)).to(tl.int32), axis=0) > 0
            begin = HIDDEN - tl.where(hears_above, width_above, 0)
            end = tl.where(works, 2 * HIDDEN + tl.where(hears_below, width_below, 0), begin)
            tl.debug_barrier()  # X is complete

            for block in range(0, HIDDEN, BLOCK_U):
                columns = block * 4 + tl.arange(0, 4 * BLOCK_U)
                inside = columns < 4 * HIDDEN
                sums = tl.load(
                    projected + now[:, None] * SUMS + columns[None, :],
                    mask=projects[:, None] & inside[None, :],
                    other=0,
                )
                sums += tl.load(bias + layer * SUMS + columns, mask=inside, other=0)[None, :]
                k = tl.arange(0, BLOCK_K)
                weights = k[:, None] * (4 * HIDDEN) + columns[None, :]
                for first in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
                    # the last tile reaches over the end, where X is 0
                    left = tl.load(x_row[:, None] + (first + k)[None, :], mask=valid[:, None], other=0)
                    tile = matrix + (layer * 3 * HIDDEN + first) * (4 * HIDDEN)
                    right = tl.load(tile + weights, mask=inside[None, :], other=0)
                    sums = tl.dot(left, right, sums, input_precision=PRECISION, out_dtype=dtype)
                even, odd = tl.split(tl.reshape(sums, (BLOCK_B, BLOCK_U, 2, 2)))
                i, g = tl.split(even)
                f, o = tl.split(odd)
                i, f, g, o = tl.sigmoid(i), tl.sigmoid(f), tanh(g), tl.sigmoid(o)

                units = block + tl.arange(0, BLOCK_U)
                real_units = valid[:, None] & (units < HIDDEN)[None, :]
                if KEEP:
                    c_from = c + at[:, None] + units[None, :]
                    c_to = c + next_at[:, None] + units[None, :]
                    gate = gates + at[:, None] * 4 + units[None, :]
                    tl.store(gate, i, mask=real_units)
                    tl.store(gate + HIDDEN, f, mask=real_units)
                    tl.store(gate + 2 * HIDDEN, g, mask=real_units)
                    tl.store(gate + 3 * HIDDEN, o, mask=real_units)
                else:
                    c_from = c + ((rows * LAYERS + layer) * HIDDEN)[:, None] + units[None, :]
                    c_to = c_from
                c_old = tl.load(c_from, mask=real_units, other=0)
                h_old = tl.load(h + at[:, None] + units[None, :], mask=real_units, other=0)
                moves = (1 - keeps)[:, None]
                if not KEEP:
                    tl.debug_barrier()  # in a small tile several threads read the c that one overwrites
                c_new = moves * (i * g) + (updates[:, None] * f + keeps[:, None]) * c_old
                h_new = keeps[:, None] * h_old + moves * (o * tanh(c_new))
                tl.store(c_to, c_new, mask=real_units)
                tl.store(h + next_at[:, None] + units[None, :], h_new, mask=real_units)
            z_below = z_new
            tl.debug_barrier()  # the layer above, and the next step, read h and z; X may be overwritten
        now += batch
