# Triton's language is no Python to a type checker: arguments are pointers, decorators make programs.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The backward pass of HM-LSTM's kernel, from the last step to the first and from the top layer down.

It gives D and the gradient of x of z~ at every step, from which the weights' gradients are products of whole
matrices, and carries the gradients of h, c and z in memory. Symbols are those of :mod:`seqpyramid.kernels.hm_lstm`,
arrays those of :mod:`seqpyramid.kernels.gpu.hm_forward`.
"""

import triton
import triton.language as tl

from seqpyramid.kernels.gpu.hm_forward import tanh


@triton.jit
def boundary_slope(x, slope, LOGISTIC: tl.constexpr):
    """Derivative of a boundary's value; at both ends of the slope, too, as torch's clamp has it."""
    if LOGISTIC:
        p = tl.sigmoid(slope * x)
        steepness = slope * p * (1 - p)
    else:
        p = (slope * x + 1) / 2
        steepness = tl.where((p >= 0) & (p <= 1), slope / 2, 0)
    return steepness


@triton.jit(do_not_specialize=["boundaries", "steps", "batch"])
def backward(
    h,  # (T + 1, B, L, H)
    c,  # (T + 1, B, L, H)
    z,  # (T + 1, B, L)
    gates,  # (T, B, L, 4, H)
    boundary_sums,  # (T, B, L)
    matrix,  # (L, 4 H, 3, H)
    boundary,  # (L, 3, H)
    lengths,  # (B,)
    slope,  # (1,)
    d_h_steps,  # (T, B, L, H), of the outputs; only with D_H
    d_z_steps,  # (T, B, L), of the outputs; only with D_Z
    d_h,  # (B, L, H), of the last state; then of the first
    d_c,  # (B, L, H), the same
    d_z,  # (B, L), the same
    d_sums,  # (T, B, L, S): D, and the gradient of x
    boundaries,  # bit l: layer l has a boundary
    steps,
    batch,
    LAYERS: tl.constexpr,
    HIDDEN: tl.constexpr,
    D_H: tl.constexpr,
    D_Z: tl.constexpr,
    CHOICE: tl.constexpr,
    LOGISTIC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fill d_sums, and leave the gradients of the first state in d_h, d_c and d_z."""
    dtype = h.dtype.element_ty
    SUMS: tl.constexpr = 4 * HIDDEN + 4
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    valid = rows < batch
    length = tl.load(lengths + rows, mask=valid, other=0)
    a = tl.load(slope)
    last = steps - 1
    now = last.to(tl.int64) * batch + rows
    for n in range(steps):
        going = last - n < length
        d_z_below = tl.zeros([BLOCK_B], dtype)
        for m in range(LAYERS):
            layer = LAYERS - 1 - m
            at = (now * LAYERS + layer) * HIDDEN
            next_at = ((now + batch) * LAYERS + layer) * HIDDEN
            state = (rows * LAYERS + layer) * HIDDEN
            d_at = d_sums + (now * LAYERS + layer) * SUMS
            z_at = rows * LAYERS + layer
            z_own = tl.load(z + now * LAYERS + layer, mask=valid, other=0)
            z_below = tl.load(
                z + (now + batch) * LAYERS + layer - 1, mask=rows < tl.where(layer > 0, batch, 0), other=1
            )
            keeps = tl.where(going, (1 - z_own) * (1 - z_below), 1)
            updates = tl.where(going, (1 - z_own) * z_below, 0)
            moves = 1 - keeps

            d_z_new = tl.load(d_z + z_at, mask=valid, other=0) + d_z_below
            if D_Z:
                d_z_new += tl.load(d_z_steps + now * LAYERS + layer, mask=valid, other=0)
            decides = going & (((boundaries >> layer) & 1) == 1)
            x = tl.load(boundary_sums + now * LAYERS + layer, mask=valid, other=0)
            d_x = tl.where(decides, boundary_slope(x, a, LOGISTIC) * d_z_new, 0)
            tl.store(d_at + 4 * HIDDEN, d_x, mask=valid)
            d_z_own = tl.where(decides, 0, d_z_new)
            d_z_below = tl.zeros([BLOCK_B], dtype)  # for the layer below, the next in this loop

            copied = tl.zeros([BLOCK_B], dtype)
            flushed = tl.zeros([BLOCK_B], dtype)
            recalled = tl.zeros([BLOCK_B], dtype)
            for block in range(0, HIDDEN, BLOCK_U):
                units = block + tl.arange(0, BLOCK_U)
                real = valid[:, None] & (units < HIDDEN)[None, :]
                gate = gates + at[:, None] * 4 + units[None, :]
                i = tl.load(gate, mask=real, other=0)
                f = tl.load(gate + HIDDEN, mask=real, other=0)
                g = tl.load(gate + 2 * HIDDEN, mask=real, other=0)
                o = tl.load(gate + 3 * HIDDEN, mask=real, other=0)
                c_old = tl.load(c + at[:, None] + units[None, :], mask=real, other=0)
                h_old = tl.load(h + at[:, None] + units[None, :], mask=real, other=0)
                tanh_c = tanh(tl.load(c + next_at[:, None] + units[None, :], mask=real, other=0))
                d_h_new = tl.load(d_h + state[:, None] + units[None, :], mask=real, other=0)
                if D_H:
                    d_h_new += tl.load(d_h_steps + at[:, None] + units[None, :], mask=real, other=0)
                d_c_new = tl.load(d_c + state[:, None] + units[None, :], mask=real, other=0)
                tl.debug_barrier()  # in a small tile several threads read what one overwrites
                d_o = d_h_new * tanh_c
                d_c_new += moves[:, None] * d_h_new * o * (1 - tanh_c * tanh_c)
                if CHOICE:
                    copied += tl.sum(d_c_new * c_old + d_h_new * h_old, axis=1)
                    flushed += tl.sum(d_c_new * i * g + d_o * o, axis=1)
                    recalled += tl.sum(d_c_new * f * c_old, axis=1)
                d_gate = d_at[:, None] + units[None, :]
                moved = moves[:, None] * d_c_new
                tl.store(d_gate, moved * g * i * (1 - i), mask=real)
                tl.store(d_gate + HIDDEN, updates[:, None] * d_c_new * c_old * f * (1 - f), mask=real)
                tl.store(d_gate + 2 * HIDDEN, moved * i * (1 - g * g), mask=real)
                tl.store(d_gate + 3 * HIDDEN, moves[:, None] * d_o * o * (1 - o), mask=real)
                d_c_old = (updates[:, None] * f + keeps[:, None]) * d_c_new
                tl.store(d_c + state[:, None] + units[None, :], d_c_old, mask=real)
                tl.store(d_h + state[:, None] + units[None, :], keeps[:, None] * d_h_new, mask=real)
            if CHOICE:
                updated = flushed + recalled
                chosen_own = flushed - z_below * updated - (1 - z_below) * copied
                d_z_own += tl.where(going, chosen_own, 0)
                d_z_below += tl.where(going, (1 - z_own) * (updated - copied), 0)

            # D is 0 where a row copies; a tile whose rows all do fetches no weights
            end = tl.where(tl.max((moves != 0).to(tl.int32), axis=0) > 0, 4 * HIDDEN, 0)
            # what is not there has no columns
            width_above = tl.where(layer + 1 < LAYERS, HIDDEN, 0)
            width_below = tl.where(layer > 0, HIDDEN, 0)
            tl.debug_barrier()  # D and k d_h are complete

            for block in range(0, HIDDEN, BLOCK_U):
                units = block + tl.arange(0, BLOCK_U)
                inside = units < HIDDEN
                real = valid[:, None] & inside[None, :]
                real_above = valid[:, None] & (units < width_above)[None, :]
                real_below = valid[:, None] & (units < width_below)[None, :]
                above = tl.zeros([BLOCK_B, BLOCK_U], dtype)
                own = tl.zeros([BLOCK_B, BLOCK_U], dtype)
                below = tl.zeros([BLOCK_B, BLOCK_U], dtype)
                k = tl.arange(0, BLOCK_K)
                weights = k[:, None] * (3 * HIDDEN) + units[None, :]
                for first in tl.range(0, end, BLOCK_K, num_stages=STAGES):
                    left = tl.load(d_at[:, None] + (first + k)[None, :], mask=valid[:, None], other=0)
                    tile = matrix + (layer * 4 * HIDDEN + first) * (3 * HIDDEN)
                    to_above = tl.load(tile + weights, mask=(units < width_above)[None, :], other=0)
                    to_own = tl.load(tile + HIDDEN + weights, mask=inside[None, :], other=0)
                    to_below = tl.load(
                        tile + 2 * HIDDEN + weights, mask=(units < width_below)[None, :], other=0
                    )
                    above = tl.dot(left, to_above, above, input_precision=PRECISION, out_dtype=dtype)
                    own = tl.dot(left, to_own, own, input_precision=PRECISION, out_dtype=dtype)
                    below = tl.dot(left, to_below, below, input_precision=PRECISION, out_dtype=dtype)
                w = boundary + layer * 3 * HIDDEN + units
                above += d_x[:, None] * tl.load(w, mask=inside, other=0)[None, :]
                own += d_x[:, None] * tl.load(w + HIDDEN, mask=inside, other=0)[None, :]
                below += d_x[:, None] * tl.load(w + 2 * HIDDEN, mask=inside, other=0)[None, :]
                place = at[:, None] + units[None, :]
                h_above = tl.load(h + place + HIDDEN, mask=real_above, other=0)
                h_below = tl.load(h + place + batch * (LAYERS * HIDDEN) - HIDDEN, mask=real_below, other=0)
                d_z_own += tl.sum(above * h_above, axis=1)
                d_z_below += tl.sum(below * h_below, axis=1)
                d_to = d_h + state[:, None] + units[None, :]
                d_own = tl.load(d_to, mask=real, other=0) + own
                d_above = tl.load(d_to + HIDDEN, mask=real_above, other=0) + z_own[:, None] * above
                d_below = tl.load(d_to - HIDDEN, mask=real_below, other=0) + z_below[:, None] * below
                tl.debug_barrier()
                tl.store(d_to, d_own, mask=real)
                tl.store(d_to + HIDDEN, d_above, mask=real_above)
                tl.store(d_to - HIDDEN, d_below, mask=real_below)
            tl.store(d_z + z_at, d_z_own, mask=valid)
            tl.debug_barrier()  # the layer below and the step before read d_h, d_c and d_z
        now -= batch
