r"""Fused layers for the CPU whose only state is h; Elman's layer itself.

.. math:: h_t = f(U x_t + W h_{t-1} + b), \qquad f = \tanh \text{ or } \max(0, \cdot)

Backward, :math:`\delta h_t` being what reaches a state from later steps and from the outputs:

.. math::
    \delta a &= \delta h_t \odot (1 - h_t^2) \quad\text{or}\quad \delta h_t \odot [h_t > 0] \\
    \delta h_{t-1} &= W^\top \delta a, \quad \delta x_t = U^\top \delta a \\
    \delta W &= \sum_t \delta a\, h_{t-1}^\top, \quad \delta U = \sum_t \delta a\, x_t^\top, \quad
    \delta b = \sum_t \delta a

Nothing is kept for it but h; with recomputation only h at the starts of segments, as :mod:`seqpyramid.kernels.lstm`
says. The layouts of packed weights are described in ``native/elman_layer.h``. The plain twins are torch's ``nn.RNN``
and the loop over :class:`seqpyramid.models.cells.ElmanCell`.

Shapes: B batch, T time, F inputs, H hidden units, G gates (1 here), P = H padded to whole vectors.
"""

from ctypes import c_int64, c_void_p
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from seqpyramid.kernels import library
from seqpyramid.kernels.lstm import (
    Segment,
    longest_first,
    padded,
    refuse_second_derivatives,
    run,
    segment_length,
    unit_stride,
    up_to_ends,
    widened,
)


class StateLayerArguments(library.Arguments):
    """The structure of the same name in ``native/elman_layer.h``, where its fields are explained."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "time", "inputs", "hidden", "threads")),
        *((name, c_void_p) for name in ("lengths", "x")),
        *((name, c_int64) for name in ("x_batch", "x_time")),
        *((name, c_void_p) for name in ("weight_ih", "weight_hh", "bias", "h_first", "h_last")),
        *((name, c_void_p) for name in ("steps", "planes")),
        ("segment", c_int64),
        *((name, c_void_p) for name in ("answer", "starts")),
        ("every", c_int64),
        ("d_steps", c_void_p),
        *((name, c_int64) for name in ("d_steps_batch", "d_steps_time")),
        *((name, c_void_p) for name in ("d_h_last", "d_x", "d_weight_ih", "d_weight_hh", "d_bias")),
        ("d_h_first", c_void_p),
    )


class Kernel(NamedTuple):
    """One cell's kernels."""

    name: str
    """In ``seqpyramid_<name>_forward_<dtype>``, ``..._backward_...`` and ``..._segment_...``."""
    planes: int
    """Numbers that they keep of each unit and step, besides h."""


def elman_layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    lengths: Tensor,
    state: Tensor | None = None,
    *,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    keep_steps: bool,
    every: int = 1,
    segment: Segment = None,
) -> tuple[Tensor | None, Tensor]:
    """Run x (B, T, F) through one layer, each sequence up to its own length.

    Args:
        x: the inputs.
        weight_ih: U (H, F).
        weight_hh: W (H, H).
        bias: b (H).
        lengths: (B,) integers on the CPU, from 1 to T.
        state: h (B, H) before the first step; None: zeros.
        nonlinearity: f.
        keep_steps: whether h of the steps is wanted.
        every: of how many of them one is, counted back from the last of T.
        segment: how many steps the backward pass runs again at a time; it changes no result.

    Returns:
        h of those steps (B, ceil(T / every), H), zero past ``lengths``, or None; and h (B, H) at each sequence's end.
    """
    kernel = Kernel(f"elman_{nonlinearity}", planes=0)
    return state_layer(
        kernel,
        x,
        weight_ih,
        weight_hh,
        bias,
        lengths,
        state,
        keep_steps=keep_steps,
        every=every,
        segment=segment,
    )


def state_layer(
    kernel: Kernel,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    lengths: Tensor,
    state: Tensor | None,
    *,
    keep_steps: bool,
    every: int,
    segment: Segment,
) -> tuple[Tensor | None, Tensor]:
    """Run any of these layers, its weights in the order of its kernel; else as :func:`elman_layer`."""
    order = longest_first(lengths)
    if order is not None:
        x, lengths = x.index_select(0, order), lengths.index_select(0, order)
        state = None if state is None else state.index_select(0, order)
    steps, h = run(
        StateLayer, kernel, x, weight_ih, weight_hh, bias, state, lengths, keep_steps, every, segment
    )
    if order is None:
        return steps, h
    back = order.argsort()
    return None if steps is None else steps.index_select(0, back), h.index_select(0, back)


class StateLayer(torch.autograd.Function):
    """A forward and a backward kernel as one differentiable operation; rows come longest first."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, Tensor]:
        """See :func:`state_layer`; what backward needs is kept unless ``ctx`` is None."""
        kernel, x, weight_ih, weight_hh, bias, h_first, lengths, keep_steps, every, segment = inputs
        batch, time, _ = x.shape
        hidden = weight_hh.shape[1]
        width = padded(hidden, x.dtype)
        x, lengths = unit_stride(x), lengths.contiguous()
        weights = [weight_ih.contiguous(), weight_hh.contiguous(), bias.contiguous()]
        h_first = widened(h_first, width)
        h_last = x.new_empty(batch, width)
        arguments = _arguments(x, weights, h_first, lengths, library.threads())
        if ctx is not None:
            arguments.segment = segment_length(f"{kernel.name}_segment", segment, arguments, x.dtype)
        steps = planes = starts = None
        if arguments.segment:
            starts = x.new_empty(-(-int(lengths[0]) // arguments.segment) - 1, batch, width)
        elif ctx is not None:
            planes = x.new_empty(time, batch, kernel.planes * width)
        if keep_steps or planes is not None:
            steps = up_to_ends(x, lengths, width)
        arguments.h_last = h_last.data_ptr()
        arguments.steps, arguments.planes, arguments.starts = map(library.pointer, (steps, planes, starts))
        library.call(f"{kernel.name}_forward", x.dtype, arguments)
        if ctx is not None:
            kept_steps = steps if starts is None else None
            ctx.save_for_backward(x, *weights, h_first, lengths, kept_steps, planes, starts)
            ctx.kernel, ctx.every = kernel, every
            ctx.segment, ctx.threads = arguments.segment, library.threads()
            ctx.set_materialize_grads(False)
        if steps is None or not keep_steps:
            return None, h_last[:, :hidden]
        return steps[(time - 1) % every :: every, :, :hidden].transpose(0, 1), h_last[:, :hidden]

    @staticmethod
    def backward(ctx: Any, d_steps: Tensor | None, d_h: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, U, W, b and the first h."""
        refuse_second_derivatives()
        x, weight_ih, weight_hh, bias, h_first, lengths, *kept = ctx.saved_tensors
        batch, _, inputs = x.shape
        hidden = weight_hh.shape[1]
        width = padded(hidden, x.dtype)
        weights = [weight_ih, weight_hh, bias]
        d_weights = [torch.zeros_like(weight) for weight in weights]
        d_x = up_to_ends(x, lengths, padded(inputs, x.dtype)) if ctx.needs_input_grad[1] else None
        d_first = None if h_first is None else x.new_empty(batch, width)
        d_steps = None if d_steps is None else unit_stride(d_steps)
        d_last = widened(d_h, width)

        arguments = _arguments(x, weights, h_first, lengths, ctx.threads)
        arguments.segment, arguments.every = ctx.segment, ctx.every
        arguments.steps, arguments.planes, arguments.starts = map(library.pointer, kept)
        if d_steps is not None:
            arguments.d_steps = d_steps.data_ptr()
            arguments.d_steps_batch, arguments.d_steps_time = d_steps.stride()[:2]
        arguments.d_h_last, arguments.d_x = library.pointer(d_last), library.pointer(d_x)
        arguments.d_weight_ih, arguments.d_weight_hh, arguments.d_bias = map(library.pointer, d_weights)
        arguments.d_h_first = library.pointer(d_first)
        library.call(f"{ctx.kernel.name}_backward", x.dtype, arguments)
        return (
            None,
            None if d_x is None else d_x[..., :inputs].transpose(0, 1),
            *d_weights,
            None if d_first is None else d_first[:, :hidden],
            *[None] * 4,
        )


def _arguments(
    x: Tensor, weights: list[Tensor], h_first: Tensor | None, lengths: Tensor, threads: int
) -> StateLayerArguments:
    batch, time, inputs = x.shape
    arguments = StateLayerArguments(
        batch=batch, time=time, inputs=inputs, hidden=weights[1].shape[1], threads=threads, x=x.data_ptr()
    )
    arguments.lengths = lengths.data_ptr()
    arguments.x_batch, arguments.x_time = x.stride()[:2]
    arguments.weight_ih, arguments.weight_hh, arguments.bias = map(library.pointer, weights)
    arguments.h_first = library.pointer(h_first)
    return arguments
