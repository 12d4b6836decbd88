r"""HM-LSTM: all layers over all steps in one call; the plain twin is :meth:`seqpyramid.models.hm_lstm.HMLSTM`'s loop.

Forward, for layer l at step t, with :math:`\zeta = z_{t-1}^l`, :math:`\beta = z_t^{l-1}` (1 in the first layer):

.. math::
    X &= [h_{t-1}^l;\ \zeta h_{t-1}^{l+1};\ \beta h_t^{l-1};\ 1], \qquad
    [i, f, g, o] = [\sigma, \sigma, \tanh, \sigma](W X), \qquad x = w X \\
    k &= (1 - \zeta)(1 - \beta), \quad u = (1 - \zeta) \beta, \quad m = 1 - k \\
    c_t &= m\, i g + (u f + k)\, c_{t-1}, \qquad h_t = k\, h_{t-1} + m\, o \tanh c_t, \qquad z_t = s(x)

w is the row of z~ and the last column of W and w is b; s is a step at 0, or p, the function of z~ itself (``soft``):
:math:`p(x) = \max(0, \min(1, (a x + 1) / 2))`, or :math:`\sigma(a x)` (``logistic``).

Backward, with :math:`\bar v` for the gradient of v, :math:`\bar h_t` and so on complete before their step:

.. math::
    \bar x &= p'(x)\, \bar z_t, \qquad
    \bar c_t \leftarrow \bar c_t + m\, \bar h_t o (1 - \tanh^2 c_t) \\
    D &= [m \bar c_t g\, i(1-i);\ u \bar c_t c_{t-1} f(1-f);\ m \bar c_t i (1-g^2);\ m \bar h_t \tanh(c_t)\, o(1-o)] \\
    \bar X &= W^\top D + w \bar x, \qquad \bar W \mathrel{+}= D X^\top, \qquad \bar w \mathrel{+}= \bar x X^\top \\
    \bar c_{t-1} &= (u f + k)\, \bar c_t, \qquad \bar h_{t-1} = k\, \bar h_t + \bar X_1, \qquad
    \bar h_{t-1}^{l+1} \mathrel{+}= \zeta \bar X_2, \qquad \bar h_t^{l-1} \mathrel{+}= \beta \bar X_3 \\
    \bar \zeta &= \bar X_2 \cdot h_{t-1}^{l+1} + F - \beta U - (1 - \beta) K, \qquad
    \bar \beta = \bar X_3 \cdot h_t^{l-1} + (1 - \zeta)(U - K) \\
    K &= \bar c_t \cdot c_{t-1} + \bar h_t \cdot h_{t-1}, \quad
    F = \bar c_t \cdot i g + \bar h_t \cdot o \tanh c_t, \quad U = F + \bar c_t \cdot f c_{t-1}

:math:`\bar z_t` of a step is that of p (straight-through). K, F and U are what a boundary learns from having chosen
COPY, FLUSH or UPDATE (``choice``); without it they are 0. A layer that copies makes no gates on the way forward. On
the way back they are needed for F and U alone, and since h and c stay as they are, those of the last step are those of
all that copy in a row: what F and U have more than K is made once. In FLUSH, where u = k = 0, nothing but U reads f:
without ``choice``, rows make none where many flush. A sequence that has ended keeps h, c and z.

The output module, equations (11) and (12) of the model, reads :math:`h = [h^1; \dots; h^L]` of each step at once, so
that h need not be handed on:

.. math::
    g^l &= \sigma(w^l h), \qquad y = [g^1 h^1; \dots; g^L h^L], \qquad e = \mathrm{ReLU}(W^e y) \\
    \bar s &= [e > 0]\, \bar e, \qquad \bar y = W^{e\top} \bar s, \qquad
    \bar u^l = g^l (1 - g^l)\, \bar y^l \cdot h^l, \qquad
    \bar h = [g^1 \bar y^1; \dots; g^L \bar y^L] + \textstyle\sum_l \bar u^l w^l \\
    \bar W^e &\mathrel{+}= \bar s y^\top, \qquad \bar w^l \mathrel{+}= \bar u^l h

Kept for the backward pass: the gates (in 16 bits each where ``rounded``, see :mod:`seqpyramid.kernels.lstm`), c, h, z
and x of every step, g and e; X and y are made again. D exists for one block of units of one layer at one step. With
recomputation h and c at the starts of segments stand in for gates, c and h: the backward pass makes those of one
segment after the other again, the last first, with the same results bit for bit.

Shapes: B batch, T time, F input features, H hidden units of a layer, L layers, S sum of H, E embedding size.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqpyramid.kernels import library
from seqpyramid.kernels.library import pointer
from seqpyramid.kernels.lstm import Segment, new_gates, padded, refuse_second_derivatives, segment_length

State = tuple[Tensor, Tensor, Tensor]
"""h (B, H), c (B, H) and z (B, 1) of one layer."""


class Layer(NamedTuple):
    """One layer's weights."""

    weight: Tensor
    """(4 H + boundary, columns); rows i, f, g, o, z~; columns of the layer itself, the one above, the one below."""
    bias: Tensor | None
    """(4 H + boundary,)"""
    hidden: int
    above: int
    """H of the layer above; 0: there is none, and what columns stand there meet nothing."""
    below: int
    """H of the layer below, or F."""


class Options(NamedTuple):
    """What the boundaries are and learn from; see the module's docstring."""

    slope: float
    soft: bool
    logistic: bool
    choice: bool
    rounded: bool = False
    """Whether gates are kept in 16 bits."""
    segment: Segment = None
    """How many steps the backward pass runs again at a time; it changes no result."""


class OutputModule(NamedTuple):
    """What reads h."""

    gates: Tensor
    """w^l in rows (L, S)."""
    embedding: Tensor
    """W^e (E, S)."""


class LayerArguments(ctypes.Structure):
    """``LayerCall`` of native/hm_problem.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("hidden", "above", "below", "columns", "below_at", "boundary")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "first_h", "first_c", "first_z")),
        *((name, ctypes.c_void_p) for name in ("last_h", "last_c", "last_z", "cells", "gates")),
        ("starts", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("d_weight", "d_bias", "d_h", "d_c", "d_z")),
    )


class ReadArguments(ctypes.Structure):
    """``ReadCall`` of native/output_module.h."""

    _fields_ = (
        ("embedded", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("gates", "embedding", "g", "e", "d_e")),
        *((name, ctypes.c_int64) for name in ("d_step", "d_row")),
        *((name, ctypes.c_void_p) for name in ("d_gates", "d_embedding")),
    )


class CallArguments(library.Arguments):
    """``Call`` of native/hm_problem.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "steps", "batch", "threads")),
        *((name, ctypes.c_int64) for name in ("soft", "logistic", "choice", "rounded", "segment")),
        ("answer", ctypes.c_void_p),
        ("slope", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("lengths", "x")),
        *((name, ctypes.c_int64) for name in ("x_row", "x_step")),
        *((name, ctypes.c_void_p) for name in ("h", "z", "x_z", "d_h", "d_z", "d_x")),
        ("read", ReadArguments),
        ("layer", ctypes.POINTER(LayerArguments)),
    )


def unroll(
    x: Tensor,
    lengths: Tensor,
    layers: Sequence[Layer],
    states: Sequence[State],
    options: Options,
    output: OutputModule | None = None,
) -> tuple[Tensor, Tensor, tuple[State, ...]]:
    """Run the layers over x (B, T, F).

    Returns:
        h of all layers side by side (B, T, S) or, with an output module, e (B, T, E); z (B, T, L); and the states after
        each sequence's own end. Past that end, h and z stay as they are, and e is 0.
    """
    tensors = [
        tensor
        for layer, state in zip(layers, states, strict=True)
        for tensor in (layer.weight, layer.bias, *state)
    ]
    tensors += output or []
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors))
    sizes = [(layer.hidden, layer.above, layer.below) for layer in layers]
    lengths = lengths.contiguous()
    steps, z, *after = _Unroll.apply(x, lengths, sizes, options, keep, *tensors)  # type: ignore[no-untyped-call]
    last = tuple((after[n], after[n + 1], after[n + 2]) for n in range(0, len(after), 3))
    return steps.transpose(0, 1), z.transpose(0, 1), last


class _Unroll(torch.autograd.Function):
    """Tensors of a layer, in this order: weight, bias, first h, c, z; then the output module's; time stands first."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        lengths: Tensor,
        sizes: list[tuple[int, int, int]],
        options: Options,
        keep: bool,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        x = x if x.stride(2) == 1 else x.contiguous()
        tensors = tuple(tensor if tensor is None else tensor.contiguous() for tensor in tensors)
        batch, time, _ = x.shape
        arguments = _arguments(x, lengths, sizes, options, tensors)
        if keep:
            arguments.segment = segment_length("hm_lstm_segment", options.segment, arguments, x.dtype)
        read, embedded = arguments.read, arguments.read.embedded
        wanted = not embedded or (keep and not arguments.segment)
        h = x.new_empty(time, batch, sum(hidden for hidden, _, _ in sizes)) if wanted else None
        z = x.new_empty(time, batch, len(sizes))
        e = x.new_empty(time, batch, embedded) if embedded else None
        x_z = torch.empty_like(z) if keep else None
        g = torch.empty_like(z) if keep and embedded else None
        arguments.h, arguments.z, arguments.x_z = pointer(h), pointer(z), pointer(x_z)
        read.g, read.e = pointer(g), pointer(e)
        after: list[Tensor] = []
        kept: list[Tensor] = []
        for n, (hidden, _, _) in enumerate(sizes):
            layer = arguments.layer[n]
            last = [x.new_empty(batch, size) for size in (hidden, hidden, 1)]
            layer.last_h, layer.last_c, layer.last_z = map(pointer, last)
            after += last
            width = padded(hidden, x.dtype)
            if keep and arguments.segment:
                starts = x.new_empty(-(-time // arguments.segment) - 1, 2, batch, width)
                layer.starts = pointer(starts)
                kept.append(starts)
            elif keep:
                cells = x.new_empty(time, batch, width)
                gates = new_gates(x, time, batch, hidden, rounded=options.rounded)
                layer.cells, layer.gates = pointer(cells), pointer(gates)
                kept += [cells, gates]
        library.call("hm_lstm_forward", x.dtype, arguments)
        if keep:
            ctx.set_materialize_grads(False)
            ctx.sizes, ctx.options = sizes, options
            ctx.segment, ctx.threads = arguments.segment, arguments.threads
            h_kept = None if arguments.segment else h
            ctx.save_for_backward(x, lengths, h_kept, z, x_z, g, e, *kept, *tensors)
        steps = h if e is None else e
        assert steps is not None  # h is wanted where there is no e
        return steps, z, *after

    @staticmethod
    def backward(
        ctx: Any, d_steps: Tensor | None, d_z: Tensor | None, *d_after: Tensor | None
    ) -> tuple[Any, ...]:
        refuse_second_derivatives()
        x, lengths, h, z, x_z, g, e, *others = ctx.saved_tensors
        names = ("starts",) if ctx.segment else ("cells", "gates")
        kept, tensors = others[: len(names) * len(ctx.sizes)], others[len(names) * len(ctx.sizes) :]
        arguments = _arguments(x, lengths, ctx.sizes, ctx.options, tensors)
        arguments.segment, arguments.threads = ctx.segment, ctx.threads
        d_z = d_z if d_z is None else d_z.contiguous()
        # Zero, because the kernel adds to the weights' gradients and leaves out the steps past an end.
        d_x = torch.zeros(x.shape, dtype=x.dtype) if ctx.needs_input_grad[0] else None
        arguments.h, arguments.z, arguments.x_z = pointer(h), pointer(z), pointer(x_z)
        arguments.d_z, arguments.d_x = pointer(d_z), pointer(d_x)
        gradients: list[Tensor | None] = []
        for n in range(len(ctx.sizes)):
            layer = arguments.layer[n]
            for name, tensor in zip(names, kept[len(names) * n :], strict=False):
                setattr(layer, name, pointer(tensor))
            weight, bias, *first = tensors[5 * n : 5 * n + 5]
            d_weight, d_bias = (t if t is None else torch.zeros_like(t) for t in (weight, bias))
            d_states = [
                torch.zeros_like(state) if d is None else d.clone(memory_format=torch.contiguous_format)
                for d, state in zip(d_after[3 * n : 3 * n + 3], first, strict=True)
            ]
            layer.d_weight, layer.d_bias = pointer(d_weight), pointer(d_bias)
            layer.d_h, layer.d_c, layer.d_z = map(pointer, d_states)
            gradients += [d_weight, d_bias, *d_states]
        read = arguments.read
        if not read.embedded:
            d_steps = d_steps if d_steps is None else d_steps.contiguous()
            arguments.d_h = pointer(d_steps)
        else:
            d_output = [torch.zeros_like(weight) for weight in tensors[5 * len(ctx.sizes) :]]
            read.d_gates, read.d_embedding = map(pointer, d_output)
            read.g, read.e = pointer(g), pointer(e)
            if d_steps is not None:
                d_steps = d_steps if d_steps.stride(2) == 1 else d_steps.contiguous()
                read.d_e, read.d_step, read.d_row = pointer(d_steps), d_steps.stride(0), d_steps.stride(1)
            gradients += d_output
        library.call("hm_lstm_backward", x.dtype, arguments)
        return d_x, None, None, None, None, *gradients


def _arguments(
    x: Tensor,
    lengths: Tensor,
    sizes: Sequence[tuple[int, int, int]],
    options: Options,
    tensors: Sequence[Tensor | None],
) -> CallArguments:
    """What both passes share."""
    arguments = CallArguments()
    arguments.layers, arguments.batch, arguments.steps = len(sizes), x.shape[0], x.shape[1]
    arguments.threads = library.threads()
    arguments.slope, arguments.soft = options.slope, options.soft
    arguments.logistic, arguments.choice = options.logistic, options.choice
    arguments.rounded = options.rounded
    arguments.lengths = pointer(lengths)
    arguments.x, arguments.x_row, arguments.x_step = pointer(x), x.stride(0), x.stride(1)
    arguments.layer = (LayerArguments * len(sizes))()
    for n, (hidden, above, below) in enumerate(sizes):
        weight, bias, h, c, z = tensors[5 * n : 5 * n + 5]
        assert weight is not None
        layer = arguments.layer[n]
        layer.hidden, layer.above, layer.below = hidden, above, below
        layer.columns, layer.below_at = weight.shape[1], weight.shape[1] - below
        layer.boundary = weight.shape[0] - 4 * hidden
        layer.weight, layer.bias = pointer(weight), pointer(bias)
        layer.first_h, layer.first_c, layer.first_z = map(pointer, (h, c, z))
    if output := tensors[5 * len(sizes) :]:
        gates, embedding = output
        assert embedding is not None
        arguments.read.embedded = len(embedding)
        arguments.read.gates, arguments.read.embedding = pointer(gates), pointer(embedding)
    return arguments
