r"""HM-LSTM on a GPU: all layers over all steps in one launch each way, in Triton.

Equations, straight-through gradient and options are those of the CPU's kernel, :mod:`seqpyramid.kernels.hm_lstm`, and
so is :func:`unroll`; the plain twin is :meth:`seqpyramid.models.hm_lstm.HMLSTM`'s loop. The output module, equations
(11) and (12), is a few large matrix products and stays on its plain twin.

A program takes ``BLOCK_B`` rows through all steps and layers. A layer needs the one above at the step before and the
one below at this step, so the T L links of the chain are serial, and no program waits for another. Before the launch,
one product gives the first layer's share of x at all steps; after the backward launch, which leaves D and the gradient
of z~'s sum at every step, whole products give the gradients of weights and inputs. Nothing is added atomically: results
repeat bit for bit.

Kept for the backward pass: gates, c, h, z and z~'s sum of every step, 6 H + 2 numbers a row, layer and step; D is
another 4 H while it runs. Without gradients h and z alone are kept, and c of one step.

Where the time goes on an H200, by estimate: no GPU was at hand (L = 3, H = 100, B = 128, float32). A step meets seven
blocks of 100 x 400 weights, 1.12 MB, more than one multiprocessor holds (256 KB of registers, 227 KB of shared memory),
so each program reads them from L2 at every step, and multiplies them as often as it has rows:

- 64 bytes a clock at 1.75 GHz: 10 us, as long as no more than about 49 programs share the 5.5 TB/s of L2;
- 280 thousand multiply-adds a row at 128 a clock: 1.25 us a row, 1.6 us with 100 units padded to 128, whose weights
  are not fetched. What the compiler makes of 4 rows for sm_90 issues 16 thousand instructions a warp and step forward
  (362 for 16 sources, 256 of them multiply-adds) and 24 thousand backward (320 for 16, 192 of them; a layer's absent
  neighbour is multiplied by 0): 9 and 14 us.

So 4 rows a program, 32 programs, balance the two; 8 rows issue 28 and 39 thousand, and 2 rows make 64 programs that
read for 13 us. With the latencies of three links a step, T = 784 should take 20 to 25 ms both ways: above the 10 ms
aimed at, which needs one tile's weights spread over several multiprocessors that exchange h at every step. Three passes
of tf32 on tensor cores take at least 16 rows and issue 37 thousand instructions forward, worth trying from B = 512 on.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from seqpyramid.kernels.gpu import hm_weights
from seqpyramid.kernels.gpu.hm_backward import backward
from seqpyramid.kernels.gpu.hm_forward import forward
from seqpyramid.kernels.gpu.hm_weights import Sizes
from seqpyramid.kernels.hm_lstm import Layer, Options, State
from seqpyramid.kernels.lstm import refuse_second_derivatives, run

BLOCK_B = 4
"""Rows of a program."""
BLOCK_U = 128
"""Units whose sums a program holds at a time; less where a layer has fewer."""
BLOCK_K = 16
"""Numbers that one product of tiles adds up: 16 is the least that Triton 3.6 takes, and 4 H is a multiple of it."""
WARPS = 4
STAGES = 4
"""Tiles of weights under way from L2."""
PRECISION = "ieee"
"""Of products of tiles: "ieee" is float32's own arithmetic; "tf32x3" needs BLOCK_B = 16."""
WEIGHT_BYTES = 32 * 2**20
"""Where reading all weights at each step takes as long, by estimate, as a step's launches in the plain loop."""

DTYPES = (torch.float32, torch.float64)


def admits(layers: Sequence[Layer], dtype: torch.dtype) -> bool:
    """Whether the kernel takes layers of these sizes and this dtype.

    >>> weight = torch.empty(0)
    >>> def stack(size):
    ...     return [Layer(weight, None, size, size, 1), Layer(weight, None, size, 0, size)]
    >>> [admits(stack(size), torch.float32) for size in (100, 512, 2048)]
    [True, True, False]
    >>> admits(stack(100), torch.bfloat16)
    False
    """
    size = hm_weights.common_size([(layer.hidden, layer.above, layer.below) for layer in layers])
    blocks = 3 * len(layers) - 2
    return dtype in DTYPES and blocks * 4 * size**2 * dtype.itemsize <= WEIGHT_BYTES


def unroll(
    x: Tensor, lengths: Tensor, layers: Sequence[Layer], states: Sequence[State], options: Options
) -> tuple[Tensor, Tensor, tuple[State, ...]]:
    """Run the layers over x (B, T, F); all on one device.

    Returns:
        h of all layers side by side (B, T, sum of H), z (B, T, L), and the states after each sequence's own end.
        Past that end, h and z stay as they are.

    Raises:
        RuntimeError: the backward pass runs with ``create_graph=True``.
    """
    tensors = [
        tensor
        for layer, state in zip(layers, states, strict=True)
        for tensor in (layer.weight, layer.bias, *state)
    ]
    sizes = [(layer.hidden, layer.above, layer.below) for layer in layers]
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        h, z, *after = run(_Unroll, x, lengths, sizes, options, *tensors)
    last = tuple((after[n], after[n + 1], after[n + 2]) for n in range(0, len(after), 3))
    return h.transpose(0, 1), z.transpose(0, 1), last


class _Unroll(torch.autograd.Function):
    """Tensors of a layer, in this order: weight, bias, first h, c, z; time stands first in h and z."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lengths: Tensor, sizes: list[Sizes], options: Options, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        keep = ctx is not None
        batch, time, _ = x.shape
        size, count = hm_weights.common_size(sizes), len(sizes)
        matrices, biases, states = _by_kind(tensors)
        packed = hm_weights.pack(sizes, matrices, biases, spare=BLOCK_K)
        lengths, slope = lengths.to(x.device), x.new_full((1,), options.slope)
        h, z = x.new_empty(time + 1, batch, count, size), x.new_empty(time + 1, batch, count)
        c = x.new_empty(time + 1 if keep else 1, batch, count, size)
        h[0], c[0] = hm_weights.pack_states(states[0], size), hm_weights.pack_states(states[1], size)
        z[0] = torch.cat(states[2], dim=1)
        gates = x.new_empty(time, batch, count, 4, size) if keep else h
        boundary_sums = x.new_empty(time, batch, count) if keep else z
        forward[_grid(batch)](
            h,
            c,
            z,
            gates,
            boundary_sums,
            x.new_zeros(batch, 3 * size + BLOCK_K),
            x.transpose(0, 1) @ packed.first.T,
            packed.matrix,
            packed.boundary,
            packed.bias,
            lengths,
            slope,
            _boundaries(sizes, matrices),
            time,
            batch,
            KEEP=keep,
            SOFT=options.soft,
            BLOCK_H=triton.next_power_of_2(size),
            **_constants(sizes, options),
        )
        if keep:
            ctx.set_materialize_grads(False)
            ctx.sizes, ctx.options = sizes, options
            ctx.save_for_backward(x, lengths, slope, h, c, z, gates, boundary_sums, *tensors)
        after = [
            part.clone(memory_format=torch.contiguous_format)  # a view would hold all steps
            for n, (hidden, _, _) in enumerate(sizes)
            for part in (h[-1, :, n, :hidden], c[-1, :, n, :hidden], z[-1, :, n, None])
        ]
        return hm_weights.unpack_steps(h[1:], sizes), z[1:], *after

    @staticmethod
    def backward(
        ctx: Any, d_h_steps: Tensor | None, d_z_steps: Tensor | None, *d_after: Tensor | None
    ) -> tuple[Any, ...]:
        refuse_second_derivatives()
        x, lengths, slope, h, c, z, gates, boundary_sums, *tensors = ctx.saved_tensors
        sizes: list[Sizes] = ctx.sizes
        batch, time, _ = x.shape
        size = h.shape[-1]
        matrices, biases, states = _by_kind(tensors)
        packed = hm_weights.pack(sizes, matrices, biases)
        d_first = [
            [torch.zeros_like(s) if d is None else d for d, s in zip(d_after[n::3], states[n], strict=True)]
            for n in range(3)
        ]
        d_h, d_c = hm_weights.pack_states(d_first[0], size), hm_weights.pack_states(d_first[1], size)
        d_z = torch.cat(d_first[2], dim=1)
        d_sums = x.new_empty(time, batch, len(sizes), 4 * size + 4)
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            backward[_grid(batch)](
                h,
                c,
                z,
                gates,
                boundary_sums,
                packed.transposed(),
                packed.boundary,
                lengths,
                slope,
                h if d_h_steps is None else hm_weights.pack_steps(d_h_steps, sizes, size),
                z if d_z_steps is None else d_z_steps.contiguous(),
                d_h,
                d_c,
                d_z,
                d_sums,
                _boundaries(sizes, matrices),
                time,
                batch,
                D_H=d_h_steps is not None,
                D_Z=d_z_steps is not None,
                **_constants(sizes, ctx.options),
            )
        gradients: list[Tensor | None] = []
        inputs, d_x = x.transpose(0, 1), None
        for n, (hidden, _, below) in enumerate(sizes):
            rows, columns = matrices[n].shape
            d_layer = hm_weights.sums_gradient(d_sums, n, hidden, rows)
            if n == 0 and ctx.needs_input_grad[0]:
                d_x = (d_layer @ matrices[0][:, columns - below :]).view(time, batch, below).transpose(0, 1)
            gradients += [
                hm_weights.weight_gradient(d_layer, h, z, inputs, n, sizes, columns),
                None if biases[n] is None else d_layer.sum(0),
                d_h[:, n, :hidden],
                d_c[:, n, :hidden],
                d_z[:, n, None],
            ]
        return d_x, None, None, None, *gradients


def _by_kind(
    tensors: Sequence[Tensor | None],
) -> tuple[list[Tensor], list[Tensor | None], tuple[list[Tensor], ...]]:
    """Sort what :class:`_Unroll` gets into matrices, biases, and the first h, c and z."""
    matrices, h, c, z = (
        [tensor for tensor in tensors[kind::5] if tensor is not None] for kind in (0, 2, 3, 4)
    )
    return matrices, list(tensors[1::5]), (h, c, z)


def _grid(batch: int) -> tuple[int]:
    return (triton.cdiv(batch, BLOCK_B),)


def _boundaries(sizes: Sequence[Sizes], matrices: Sequence[Tensor]) -> int:
    """Bit l: layer l has a row for z~."""
    rows = zip(sizes, matrices, strict=True)
    return sum((len(matrix) > 4 * hidden) << n for n, ((hidden, _, _), matrix) in enumerate(rows))


def _constants(sizes: Sequence[Sizes], options: Options) -> dict[str, Any]:
    """What both launches are compiled for."""
    size = hm_weights.common_size(sizes)
    return {
        "LAYERS": len(sizes),
        "HIDDEN": size,
        "CHOICE": options.choice,
        "LOGISTIC": options.logistic,
        "BLOCK_B": BLOCK_B,
        "BLOCK_U": min(BLOCK_U, triton.next_power_of_2(size)),
        "BLOCK_K": BLOCK_K,
        "STAGES": STAGES,
        "PRECISION": PRECISION,
        "num_warps": WARPS,
    }
