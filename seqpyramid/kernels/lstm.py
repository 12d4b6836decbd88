r"""A fused LSTM layer for the CPU: all steps of all sequences in one call, forward and backward.

.. math::
    [a^i, a^f, a^g, a^o] &= U x_t + W h_{t-1} + b \\
    c_t &= \sigma(a^f) \odot c_{t-1} + \sigma(a^i) \odot \tanh(a^g), \qquad h_t = \sigma(a^o) \odot \tanh(c_t)

Backward, :math:`\delta h_t` and :math:`\delta c_t` being what reaches a state from later steps and from the outputs,
:math:`i, f, g, o` the gates after their functions:

.. math::
    \delta c_t &\mathrel{+}= \delta h_t \odot o \odot (1 - \tanh^2 c_t) \\
    \delta a &= [\delta c_t\, g\, i (1 - i),\ \delta c_t\, c_{t-1} f (1 - f),\ \delta c_t\, i (1 - g^2),\
        \delta h_t \tanh(c_t)\, o (1 - o)] \\
    \delta c_{t-1} &= \delta c_t \odot f, \quad \delta h_{t-1} = W^\top \delta a, \quad \delta x_t = U^\top \delta a \\
    \delta W &= \sum_t \delta a\, h_{t-1}^\top, \quad \delta U = \sum_t \delta a\, x_t^\top, \quad
    \delta b = \sum_t \delta a

Kept for it are the gates and c; h is formed again. Gates may be kept in 16 bits each, as multiples of 1/65535 or, g, of
1/32767, which rounds gradients (by 1e-5 of their norm over 784 steps) and no output. With recomputation only h and c at
the starts of segments are kept: the backward pass runs one segment after the other forward again, the last first, and
then backward, with the same results bit for bit. The layouts of packed weights are described in ``native/gates.h``. The
plain twin is the loop over :class:`seqpyramid.models.cells.LSTMCell`.

Shapes: B batch, T time, F inputs, H hidden units, P = H padded to whole vectors.
"""

from ctypes import addressof, c_int64, c_void_p
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from seqpyramid.kernels import library

State = tuple[Tensor, Tensor]
"""h and c, each (B, H)."""

Segment = int | Literal["auto"] | None
"""Length of the segments that the backward pass runs again, in the kernel's own unit; ``auto``: as long as needs the
least memory; None: everything is kept, and nothing run again."""


class LstmArguments(library.Arguments):
    """The structure of the same name in ``native/lstm.cpp``, where its fields are explained."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "time", "inputs", "hidden", "threads")),
        *((name, c_void_p) for name in ("lengths", "x")),
        *((name, c_int64) for name in ("x_batch", "x_time")),
        *((name, c_void_p) for name in ("weight_ih", "weight_hh", "bias", "h_first", "c_first")),
        *((name, c_void_p) for name in ("h_last", "c_last", "steps")),
        ("every", c_int64),
        *((name, c_void_p) for name in ("cells", "gates")),
        *((name, c_int64) for name in ("rounded", "segment")),
        *((name, c_void_p) for name in ("answer", "starts", "d_steps")),
        *((name, c_int64) for name in ("d_steps_batch", "d_steps_time")),
        *(
            (name, c_void_p)
            for name in ("d_h_last", "d_c_last", "d_x", "d_weight_ih", "d_weight_hh", "d_bias")
        ),
        *((name, c_void_p) for name in ("d_h_first", "d_c_first")),
    )


def lstm_layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    lengths: Tensor,
    state: State | None = None,
    *,
    keep_steps: bool,
    every: int = 1,
    segment: Segment = None,
    rounded: bool = False,
) -> tuple[Tensor | None, State]:
    """Run x (B, T, F) through one layer, each sequence up to its own length.

    Args:
        x: the inputs.
        weight_ih: U (4 H, F), rows i, f, g, o.
        weight_hh: W (4 H, H).
        bias: b (4 H).
        lengths: (B,) integers on the CPU, from 1 to T.
        state: h and c before the first step; None: zeros.
        keep_steps: whether h of the steps is wanted.
        every: of how many of them one is, counted back from the last of T.
        segment: how many steps the backward pass runs again at a time; it changes no result.
        rounded: whether gates are kept in 16 bits, where they are kept.

    Returns:
        h of those steps (B, ceil(T / every), H), zero past ``lengths``, or None; and h and c, each (B, H), at each
        sequence's end.
    """
    order = longest_first(lengths)
    if order is not None:
        x, lengths = x.index_select(0, order), lengths.index_select(0, order)
        state = None if state is None else (state[0].index_select(0, order), state[1].index_select(0, order))
    h_first, c_first = (None, None) if state is None else state
    steps, h, c = run(
        LstmLayer,
        x,
        weight_ih,
        weight_hh,
        bias,
        h_first,
        c_first,
        lengths,
        keep_steps,
        every,
        segment,
        rounded,
    )
    if order is None:
        return steps, (h, c)
    back = order.argsort()
    return (
        None if steps is None else steps.index_select(0, back),
        (h.index_select(0, back), c.index_select(0, back)),
    )


class LstmLayer(torch.autograd.Function):
    """The two kernels as one differentiable operation; rows come longest first."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, Tensor, Tensor]:
        """See :func:`lstm_layer`; what backward needs is kept unless ``ctx`` is None."""
        x, weight_ih, weight_hh, bias, h_first, c_first, lengths, keep_steps, every, segment, rounded = inputs
        batch, time, _ = x.shape
        hidden = weight_hh.shape[1]
        width = padded(hidden, x.dtype)
        x = unit_stride(x)
        weights = [weight_ih.contiguous(), weight_hh.contiguous(), bias.contiguous()]
        first = [widened(part, width) for part in (h_first, c_first)]
        last = x.new_empty(2, batch, width)
        steps = up_to_ends(x, lengths, width, every) if keep_steps else None
        arguments = _arguments(x, weights, first, lengths, library.threads(), every)
        arguments.h_last, arguments.c_last = last[0].data_ptr(), last[1].data_ptr()
        arguments.steps = library.pointer(steps)
        kept: dict[str, Tensor] = {}
        if ctx is not None:
            arguments.segment = segment_length("lstm_segment", segment, arguments, x.dtype)
            if arguments.segment:
                starts = -(-int(lengths[0]) // arguments.segment) - 1
                kept = {"starts": x.new_empty(starts, 2, batch, width)}
            else:
                kept = {
                    "cells": x.new_empty(time, batch, width),
                    "gates": new_gates(x, time, batch, hidden, rounded=rounded),
                }
        arguments.rounded = rounded
        for name, tensor in kept.items():
            setattr(arguments, name, tensor.data_ptr())
        library.call("lstm_forward", x.dtype, arguments)
        if ctx is not None:
            ctx.save_for_backward(x, *weights, *first, lengths, *kept.values())
            ctx.names, ctx.segment, ctx.threads = tuple(kept), arguments.segment, library.threads()
            ctx.rounded, ctx.every = rounded, every
            ctx.set_materialize_grads(False)
        h, c = last[..., :hidden].unbind(0)
        return None if steps is None else steps[..., :hidden].transpose(0, 1), h, c

    @staticmethod
    def backward(
        ctx: Any, d_steps: Tensor | None, d_h: Tensor | None, d_c: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, U, W, b and the first h and c."""
        refuse_second_derivatives()
        x, weight_ih, weight_hh, bias, h_first, c_first, lengths, *kept = ctx.saved_tensors
        batch, _, inputs = x.shape
        hidden = weight_hh.shape[1]
        width = padded(hidden, x.dtype)
        weights = [weight_ih, weight_hh, bias]
        d_weights = [torch.zeros_like(weight) for weight in weights]
        d_x = up_to_ends(x, lengths, padded(inputs, x.dtype)) if ctx.needs_input_grad[0] else None
        d_first = None if h_first is None else x.new_empty(2, batch, width)
        d_steps = None if d_steps is None else unit_stride(d_steps)
        d_last = [widened(part, width) for part in (d_h, d_c)]

        arguments = _arguments(x, weights, [h_first, c_first], lengths, ctx.threads, ctx.every)
        arguments.segment, arguments.rounded = ctx.segment, ctx.rounded
        for name, tensor in zip(ctx.names, kept, strict=True):
            setattr(arguments, name, tensor.data_ptr())
        if d_steps is not None:
            arguments.d_steps = d_steps.data_ptr()
            arguments.d_steps_batch, arguments.d_steps_time = d_steps.stride()[:2]
        arguments.d_h_last, arguments.d_c_last = map(library.pointer, d_last)
        arguments.d_x = library.pointer(d_x)
        arguments.d_weight_ih, arguments.d_weight_hh, arguments.d_bias = map(library.pointer, d_weights)
        if d_first is not None:
            arguments.d_h_first, arguments.d_c_first = d_first[0].data_ptr(), d_first[1].data_ptr()
        library.call("lstm_backward", x.dtype, arguments)
        return (
            None if d_x is None else d_x[..., :inputs].transpose(0, 1),
            *d_weights,
            *((None, None) if d_first is None else d_first[..., :hidden].unbind(0)),
            *[None] * 5,
        )


def up_to_ends(x: Tensor, lengths: Tensor, width: int, every: int = 1) -> Tensor:
    """Memory (ceil(T / every), B, width) that a kernel fills up to each row's end; past the shortest one it is 0."""
    batch, time, _ = x.shape
    first, shortest = (time - 1) % every, int(lengths[-1])
    room = x.new_empty(len(range(first, time, every)), batch, width)
    room[len(range(first, shortest, every)) :] = 0
    return room


def new_gates(x: Tensor, time: int, batch: int, hidden: int, *, rounded: bool) -> Tensor:
    """Memory for the gates of all steps, as the loaded library lays them out."""
    width = library.gates_width(hidden, x.dtype)
    return x.new_empty(time, batch, width, dtype=torch.int16 if rounded else x.dtype)


def segment_length(function: str, asked: Segment, arguments: Any, dtype: torch.dtype) -> int:
    """Length of a segment for a kernel's structure, 0 where nothing is run again."""
    if asked is None:
        return 0
    return answer(function, arguments, dtype) if asked == "auto" else asked


def answer(function: str, arguments: Any, dtype: torch.dtype) -> int:
    """What a kernel writes to the integer that its structure's ``answer`` points to."""
    found = c_int64()
    arguments.answer = addressof(found)
    library.call(function, dtype, arguments)
    arguments.answer = None
    return found.value


def _arguments(
    x: Tensor, weights: list[Tensor], first: list[Tensor | None], lengths: Tensor, threads: int, every: int
) -> LstmArguments:
    batch, time, inputs = x.shape
    arguments = LstmArguments(
        batch=batch, time=time, inputs=inputs, hidden=weights[1].shape[1], threads=threads, x=x.data_ptr()
    )
    arguments.lengths, arguments.every = lengths.data_ptr(), every
    arguments.x_batch, arguments.x_time = x.stride()[:2]
    arguments.weight_ih, arguments.weight_hh, arguments.bias = map(library.pointer, weights)
    arguments.h_first, arguments.c_first = map(library.pointer, first)
    return arguments


def run(layer: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Apply a layer, by its inference path (``ctx`` None, nothing kept) where no gradient is wanted."""
    if torch.is_grad_enabled() and any(isinstance(i, Tensor) and i.requires_grad for i in inputs):
        return layer.apply(*inputs)  # type: ignore[no-untyped-call]
    return layer.forward(None, *inputs)


def refuse_second_derivatives() -> None:
    """Say no where a graph of the backward pass is asked for; a kernel would leave itself out of it in silence.

    Raises:
        RuntimeError: the backward pass runs with ``create_graph=True``.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused kernels have no second derivative; choose the plain ones (--kernels plain)"
        )


def longest_first(lengths: Tensor) -> Tensor | None:
    """The order of rows that the kernels ask for; None where it is the given one.

    >>> longest_first(torch.tensor([3, 9, 3])), longest_first(torch.tensor([7, 7, 2]))
    (tensor([1, 0, 2]), None)
    """
    if bool((lengths[1:] <= lengths[:-1]).all()):
        return None
    return lengths.argsort(descending=True, stable=True)


def padded(size: int, dtype: torch.dtype) -> int:
    """A size rounded up to whole vectors of the loaded library."""
    lanes = library.vector_bytes() // dtype.itemsize
    return -(-size // lanes) * lanes


def widened(states: Tensor | None, width: int) -> Tensor | None:
    """States (..., H) with zeros up to the kernels' width, side by side."""
    if states is None:
        return None
    return functional.pad(states, (0, width - states.shape[-1])).contiguous()


def unit_stride(x: Tensor) -> Tensor:
    """X itself if its features lie side by side in memory, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()
