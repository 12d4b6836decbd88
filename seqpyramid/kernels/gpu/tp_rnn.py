r"""A fused TP-RNN layer for CUDA devices, written in Triton: one launch for all steps, forward and backward.

Equations, and the derivation of the backward pass, are those of :mod:`seqpyramid.kernels.tp_rnn`, whose function of the
same name this one stands in for. Around the two launches are matrix products over all steps at once: U x + b before
the forward one; after the backward one the gradients of U, b, x and W from the gradients of the steps' sums, and those
of theta's weights (:mod:`seqpyramid.kernels.gpu.tp_theta_gradients`). Nothing is added up in an order that may change
from run to run, so results repeat bit for bit.

Kept for the backward pass: i, f, g, o and h and c of every step, h and c of every aggregate: 6 H numbers a step and
sequence, and 2 H an aggregate. Without gradients nothing is kept but what U x + b takes while the layer runs.

Layout. Steps wait for each other and sequences do not, so a program has as few rows as keep every multiprocessor at
work: one at B = 128, on 132 of them. One row's step at H = 100 is 40,000 multiplications with 160 KB of weights. From
the second-level cache these come too slowly (64 bytes a cycle: 2,500 cycles a step), and from the first-level one in
1,250 (128 bytes a cycle), so what fits stays on registers: 80 of the 100 rows of W transposed forward, 256 of W's 400
backward. The others come from the first-level cache in 250 and 450 cycles, beside 400 of multiplying (128 a cycle; H =
100 is done as 128, so 28 % of the multiplications, though not of the bytes, are for nothing). Matrix units have no part
in it: they take 16 rows at least, and then eight multiprocessors would work and 124 rest. Of an aggregate, h and c go
through theta side by side, an element a thread.

Compiled for compute capability 9.0 (Triton 3.9, H = 100, g = 7) both kernels take 255 registers of a thread and spill
none. A step is about 590 instructions of a warp forward and 640 backward, and 8 warps share 4 schedulers: no less than
0.6 and 0.65 microseconds at 2 GHz; with 7 barriers each, 0.8 to 1 is to be expected. An aggregate of 7 states counts
1.5 and 3.3 microseconds that way. The 784, 112 and 28 steps of TP-RNN-M's layers with their 184 aggregates then take
2.4 ms a training step, plus what is done at once. All of this is counted, not measured; the constants of
:mod:`seqpyramid.kernels.gpu.tp_launch` are where to tune it on a device.

Shapes: B batch, T time, F inputs, H hidden units, T' states for the next layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional

from seqpyramid.kernels.gpu.tp_backward import backward
from seqpyramid.kernels.gpu.tp_forward import forward
from seqpyramid.kernels.gpu.tp_launch import BACKWARD_REGISTERS, FORWARD_REGISTERS, Launch
from seqpyramid.kernels.gpu.tp_pyramid import drivers
from seqpyramid.kernels.lstm import refuse_second_derivatives, run
from seqpyramid.kernels.tp_rnn import Pyramids, Theta


def tp_rnn_layer(
    x: Tensor,
    cell: tuple[Tensor, Tensor, Tensor],
    theta_h: Theta,
    theta_c: Theta | None,
    theta_path: Theta | None,
    lengths: Tensor,
    pyramids: Pyramids,
) -> tuple[Tensor, Tensor]:
    """Run x (B, T, F) through one layer, each sequence up to its own length.

    Arguments and results are those of :func:`seqpyramid.kernels.tp_rnn.tp_rnn_layer`. Tensors, but for ``lengths``, are
    on a CUDA device, or on the CPU where Triton's kernels are interpreted. There is no ``segment``: nothing runs again.
    """
    nothing = (None, None)
    weights = (*cell, *theta_h, *(theta_c or nothing), *(theta_path or nothing))
    output, emitted = run(TpRnnLayer, x, *weights, lengths, pyramids)
    return output, emitted


class TpRnnLayer(torch.autograd.Function):
    """The launches as one differentiable operation."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """See :func:`tp_rnn_layer`; what backward needs is kept unless ``ctx`` is None."""
        x, weight_ih, weight_hh, bias, *thetas, lengths, pyramids = inputs
        time, ragged = int(lengths.max()), bool((lengths != lengths[0]).any())
        # filled, not copied, where it can be: a copy from the host has no place in a captured graph
        ends = torch.full((len(x),), time, dtype=torch.int32, device=x.device)
        if ragged:
            ends.copy_(lengths)
        launch = Launch(x, weight_hh, thetas, time, pyramids)
        batch, hidden, counts = launch.batch, launch.hidden, launch.counts
        steps = x[:, :time].transpose(0, 1).reshape(time * batch, -1)
        gates = torch.addmm(bias, steps, weight_ih.t()).view(time, batch, 4 * hidden)
        places = counts.shared_places if ctx is None else counts.kept_places(time, pyramids.length)
        # what a short sequence lacks is multiplied by zeros later on, so it must be a number
        new = x.new_zeros if ragged else x.new_empty
        states = new(2, places, batch, hidden)
        emitted = x.new_zeros(pyramids.emitted_time, batch, hidden)
        output = x.new_empty(batch, hidden)
        with torch.cuda.device(x.get_device()):
            forward[(launch.programs,)](
                gates,
                weight_hh.t().contiguous(),
                launch.first,
                launch.second,
                launch.path_first,
                launch.path_second,
                ends,
                states,
                emitted,
                output,
                x.new_empty(launch.programs, launch.rows, 4 * hidden),
                launch.rooms(),
                batch,
                time,
                places,
                KEEP=ctx is not None,
                BLOCK_GATES=triton.next_power_of_2(4 * hidden),
                **launch.over_time(hidden, 4 * hidden, FORWARD_REGISTERS),
            )
        if ctx is not None:
            ctx.save_for_backward(x, weight_ih, weight_hh, *thetas, ends, states, gates)
            ctx.pyramids, ctx.ragged = pyramids, ragged
            ctx.set_materialize_grads(False)
        return output, emitted.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_emitted: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weights."""
        refuse_second_derivatives()
        x, weight_ih, weight_hh, *thetas, ends, states, gates = ctx.saved_tensors
        pyramids = ctx.pyramids
        time = len(gates)
        launch = Launch(x, weight_hh, thetas, time, pyramids)
        batch, hidden, counts = launch.batch, launch.hidden, launch.counts
        places = states.shape[1]
        d_states = x.new_zeros(2, counts.shared_places, batch, hidden)
        d_gates = (x.new_zeros if ctx.ragged else x.new_empty)(gates.shape)
        d_nodes = x.new_empty(launch.parts, places - time, batch, hidden)
        with torch.cuda.device(x.get_device()):
            backward[(launch.programs,)](
                gates,
                weight_hh.contiguous(),
                launch.first,
                launch.second,
                launch.path_first,
                launch.path_second,
                ends,
                states,
                None if d_output is None else d_output.contiguous(),
                None if d_emitted is None else d_emitted.transpose(0, 1).contiguous(),
                d_states,
                d_gates,
                d_nodes,
                launch.rooms(),
                batch,
                time,
                places,
                counts.shared_places,
                places - time,
                **launch.over_time(4 * hidden, hidden, BACKWARD_REGISTERS),
            )
            d_thetas = _theta_gradients(
                launch, thetas, states, d_nodes, ends, output_read=d_output is not None
            )
        steps = x[:, :time].transpose(0, 1).reshape(time * batch, -1)
        d_sums = d_gates.view(time * batch, 4 * hidden)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (d_sums @ weight_ih).view(time, batch, -1).transpose(0, 1)
            d_x = functional.pad(d_x, (0, 0, 0, x.shape[1] - time))
        before = states[0].index_select(0, drivers(time, pyramids, x.device)).view(-1, hidden)
        d_weight_hh = d_sums[batch:].t() @ before
        return (d_x, d_sums.t() @ steps, d_weight_hh, d_sums.sum(0), *d_thetas, None, None)


def _theta_gradients(
    launch: Launch,
    thetas: Sequence[Tensor | None],
    states: Tensor,
    d_nodes: Tensor,
    ends: Tensor,
    *,
    output_read: bool,
) -> list[Tensor | None]:
    """The gradients of all six matrices; as in the plain loop, one that met no state has none, not one of zero."""
    shape, time = launch.pyramids, launch.time
    pyramids = triton.cdiv(time, shape.length)
    d_within = launch.theta_gradients(states, d_nodes, ends, pyramids * launch.counts.nodes, path=False)
    found: list[Tensor | None] = [None] * 6
    found[:2] = (d_weight[0] for d_weight in d_within)
    if launch.parts == 2 and time > min(shape.length, shape.granularity):
        found[2:4] = (d_weight[1] for d_weight in d_within)
    if launch.path_first is not None and output_read and pyramids > 1:
        d_path = launch.theta_gradients(states, d_nodes, ends, pyramids - 1, path=True)
        found[4:] = (d_weight[0] for d_weight in d_path)
    return [None if d is None else _widened(d, like=weight) for d, weight in zip(found, thetas, strict=True)]


def _widened(d_weight: Tensor, *, like: Tensor | None) -> Tensor:
    """With zeros for the weights that no group is large enough to meet."""
    assert like is not None
    missing = [size - have for size, have in zip(like.shape, d_weight.shape, strict=True)]
    return functional.pad(d_weight, (0, missing[1], 0, missing[0]))
