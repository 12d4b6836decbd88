r"""A TP-RNN layer in torch's operations, with the backward pass derived by hand.

The same function as :func:`seqpyramid.kernels.tp_rnn.tp_rnn_layer`, where the equations stand, for any device and
dtype. The batch is the last axis of every buffer, so that a gate, a state and a group of states are each one piece of
memory; :mod:`steps` and :mod:`theta` beside this file say what that saves. Kept for the backward pass are the gates and
c of the steps, what each step reads, h and c of the aggregates, and the shortcut path; h of the steps, p and s are
formed again. Unlike in the compiled kernel, sequences that have ended run on with the others, as in the plain loop.

Shapes: B batch, T time, F inputs, H hidden units, T' inputs of the next layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqpyramid.kernels.lstm import longest_first, refuse_second_derivatives, run
from seqpyramid.kernels.operations.backward import BackwardPass
from seqpyramid.kernels.operations.forward import ForwardPass
from seqpyramid.kernels.operations.states import Course, Tape, Weights, tape
from seqpyramid.kernels.operations.steps import joined, parted
from seqpyramid.kernels.tp_rnn import WEIGHTS, Pyramids, Theta


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

    Args:
        x: the inputs.
        cell: U (4 H, F), W (4 H, H) and b (4 H), rows i, f, g, o.
        theta_h: of h.
        theta_c: of c; None: c is not aggregated. Without top-down connections nothing would read it.
        theta_path: of the shortcut path; None: the output is the last top.
        lengths: (B,) integers on the CPU, from 1 to T.
        pyramids: the layer's shape.

    Returns:
        The output (B, H) and the next layer's inputs (B, T', H), zero past what a sequence has.

    Raises:
        RuntimeError: in the backward pass, where second derivatives are asked for.
    """
    order = longest_first(lengths)
    if order is not None:
        lengths = lengths.index_select(0, order)
        order = order.to(x.device)
        x = x.index_select(0, order)
    nothing = (None, None)
    weights = (*cell, *theta_h, *(theta_c or nothing), *(theta_path or nothing))
    output, emitted = run(TpRnnOperations, x, *weights, lengths, pyramids)
    if order is None:
        return output, emitted
    back = order.argsort()
    return output.index_select(0, back), emitted.index_select(0, back)


class TpRnnOperations(torch.autograd.Function):
    """Both passes as one differentiable operation; rows come longest first."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """See :func:`tp_rnn_layer`; what backward needs is kept unless ``ctx`` is None."""
        x, *weights, lengths, pyramids = inputs
        layer, course = _arranged(weights, pyramids), Course(pyramids, lengths.tolist())
        if len(course.ending) > 1:
            # what runs on past its end has gradients of zero, which times NaN would not stay so
            past = torch.arange(x.shape[1]) >= lengths[:, None]
            x = x.masked_fill(past[..., None].to(x.device), 0)
        kept = tape(x, course, layer, keep=ctx is not None)
        forward = ForwardPass(x, layer, course, kept, keep=ctx is not None)
        forward.run()
        if ctx is not None:
            ctx.save_for_backward(*weights, *kept)
            ctx.course, ctx.inputs_shape = course, x.shape
            ctx.set_materialize_grads(False)
        return forward.output.t(), forward.emitted.permute(2, 0, 1)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_emitted: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weights."""
        refuse_second_derivatives()
        course, pyramids = ctx.course, ctx.course.pyramids
        weights, kept = ctx.saved_tensors[: len(WEIGHTS)], Tape(*ctx.saved_tensors[len(WEIGHTS) :])
        layer = _arranged(weights, pyramids)
        backward = BackwardPass(
            layer,
            course,
            kept,
            d_output=None if d_output is None else d_output.t(),
            d_emitted=None if d_emitted is None else d_emitted.permute(1, 2, 0),
            input_gradient=ctx.needs_input_grad[0],
        )
        backward.run()

        gradients: dict[str, Tensor | None] = dict.fromkeys(WEIGHTS)
        gradients |= zip(WEIGHTS, parted(backward.steps.d_weight, layer.hidden), strict=False)
        # As in the plain loop, weights that met no state have no gradient, which is not the same as one of zero.
        aggregated = {
            "h": True,
            "c": course.time > min(pyramids.length, pyramids.granularity),
            "path": course.time > pyramids.length and d_output is not None,
        }
        for name, theta in backward.thetas._asdict().items():
            if theta is not None and aggregated[name]:
                gradients |= {f"{name}_{field}": d for field, d in theta.d_weights._asdict().items()}
        d_x = backward.d_x
        if d_x is not None:  # nothing is read past the longest sequence
            d_x = functional.pad(d_x, (0, 0, 0, 0, 0, ctx.inputs_shape[1] - course.time)).permute(2, 0, 1)
        return (d_x, *gradients.values(), None, None)


def _arranged(weights: Sequence[Any], pyramids: Pyramids) -> Weights:
    """Arrange the tensors of WEIGHTS for the time loops."""
    weight_ih, weight_hh, bias, h_first, h_second, *others = weights
    theta_c, theta_path = (None if pair[0] is None else Theta(*pair) for pair in (others[:2], others[2:]))
    return Weights(
        steps=joined(weight_ih, weight_hh, bias),
        theta_h=Theta(h_first, h_second),
        theta_c=theta_c if pyramids.top_down else None,
        theta_path=theta_path,
    )
