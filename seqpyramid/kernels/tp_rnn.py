r"""A fused TP-RNN layer for the CPU: LSTM steps, sub-pyramids and shortcut path in one time loop.

Equations (1)-(4) and (7)-(10) of :mod:`seqpyramid.models.tp_rnn` with an LSTM and the method ``ours``; the step and its
backward pass stand in :mod:`seqpyramid.kernels.lstm`. For an aggregate :math:`y = \theta(e_1, \dots, e_n)` with
:math:`p = \max(0, W_1 e)`, :math:`s = \sigma(W_2 p)` and s' = s, or s scrambled:

.. math::
    a &= \delta y \odot (1 - y^2), \qquad \delta s'_m = a \odot e_m, \qquad
    \delta q_m = \delta s_m \odot s_m \odot (1 - s_m) \\
    r &= [p > 0] \odot W_2^\top \delta q, \qquad \delta e_m = a \odot s'_m + (W_1^\top r)_m \\
    \delta W_1 &= \sum r\, e^\top, \qquad \delta W_2 = \sum \delta q\, p^\top

What reaches an aggregate: its own aggregate's :math:`\delta e`, the step that it drives, the next layer, and, for a
top, the shortcut path, itself an aggregate of two states a sub-pyramid. Kept are gates and c of the steps, and h and c
of the aggregates; p and s are formed again.

Recomputation keeps less: only h, c and the path at the starts of segments, some whole sub-pyramids each. The backward
pass runs one segment after the other forward again, the last first, and then backward; results are the same bit for
bit. With N segments of n steps memory is N starts and one n, hence grows with the square root of T, but for the layer's
inputs and outputs.

Shapes: B batch, T time, F inputs, H hidden units, P = H padded to whole vectors, M = g states at most.
"""

from ctypes import c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqpyramid.kernels import library
from seqpyramid.kernels.lstm import (
    Segment,
    answer,
    longest_first,
    new_gates,
    padded,
    refuse_second_derivatives,
    run,
    segment_length,
    unit_stride,
    widened,
)

WEIGHTS = (
    *("weight_ih", "weight_hh", "bias"),
    *("h_first", "h_second", "c_first", "c_second", "path_first", "path_second"),
)


class Pyramids(NamedTuple):
    """How a layer's sub-pyramids are built; the names are those of :class:`seqpyramid.models.tp_rnn.TPRNNLayer`."""

    length: int
    granularity: int
    emitted_level: int
    emitted_time: int
    """T', the most states that a sequence hands to the next layer."""
    scrambled: bool
    top_down: bool
    top_first: bool
    """Whether the shortcut path is theta(top, o), not theta(o, top)."""


class TpRnnArguments(library.Arguments):
    """The structure of the same name in ``native/tp_rnn.cpp``, where its fields are explained."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "time", "inputs", "hidden", "threads")),
        *((name, c_int64) for name in ("length", "granularity", "emitted_level", "emitted_time")),
        *((name, c_int64) for name in ("scrambled", "top_down", "aggregate_cell", "top_first")),
        *((name, c_void_p) for name in ("lengths", "x")),
        *((name, c_int64) for name in ("x_batch", "x_time")),
        *((name, c_void_p) for name in WEIGHTS),
        *((name, c_void_p) for name in ("output", "emitted")),
        ("segment", c_int64),
        *((name, c_void_p) for name in ("answer", "cells", "gates")),
        ("rounded", c_int64),
        *((name, c_void_p) for name in ("node_h", "node_c", "path", "starts")),
        *((name, c_void_p) for name in ("d_output", "d_emitted")),
        *((name, c_int64) for name in ("d_emitted_batch", "d_emitted_time")),
        *((name, c_void_p) for name in ("d_x", *(f"d_{weight}" for weight in WEIGHTS))),
    )


class Theta(NamedTuple):
    """Weights of an aggregation."""

    first: Tensor
    """W1 (3 M, M)."""
    second: Tensor
    """W2 (M, 3 M)."""


def tp_rnn_layer(
    x: Tensor,
    cell: tuple[Tensor, Tensor, Tensor],
    theta_h: Theta,
    theta_c: Theta | None,
    theta_path: Theta | None,
    lengths: Tensor,
    pyramids: Pyramids,
    segment: Segment = None,
    rounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run x (B, T, F) through one layer, each sequence up to its own length.

    Args:
        x: the inputs.
        cell: U (4 H, F), W (4 H, H) and b (4 H), rows i, f, g, o.
        theta_h: of h.
        theta_c: of c; None: c is not aggregated.
        theta_path: of the shortcut path; None: the output is the last top.
        lengths: (B,) integers on the CPU, from 1 to T.
        pyramids: the layer's shape.
        segment: how many sub-pyramids the backward pass runs again at a time; it changes no result.
        rounded: whether gates are kept in 16 bits, where they are kept.

    Returns:
        The output (B, H) and the next layer's inputs (B, T', H), zero past what a sequence has.
    """
    order = longest_first(lengths)
    if order is not None:
        x, lengths = x.index_select(0, order), lengths.index_select(0, order)
    nothing = (None, None)
    weights = (*cell, *theta_h, *(theta_c or nothing), *(theta_path or nothing))
    output, emitted = run(TpRnnLayer, x, *weights, lengths, pyramids, segment, rounded)
    if order is None:
        return output, emitted
    back = order.argsort()
    return output.index_select(0, back), emitted.index_select(0, back)


class TpRnnLayer(torch.autograd.Function):
    """The two kernels as one differentiable operation; rows come longest first."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """See :func:`tp_rnn_layer`; what backward needs is kept unless ``ctx`` is None."""
        x, *weights, lengths, pyramids, segment, rounded = inputs
        x = unit_stride(x)
        weights = [None if weight is None else weight.contiguous() for weight in weights]
        batch, hidden = len(x), weights[1].shape[1]
        width = padded(hidden, x.dtype)
        arguments = _arguments(x, weights, lengths, pyramids, library.threads())
        kept: dict[str, Tensor] = {}
        if ctx is not None:
            arguments.segment = segment_length("tp_rnn_segment", segment, arguments, x.dtype)
            kept = {
                name: x.new_empty(count, batch, width)
                for name, count in _kept_states(arguments, x.dtype).items()
            }
            if not arguments.segment:
                kept["gates"] = new_gates(x, arguments.time, batch, hidden, rounded=rounded)
        arguments.rounded = rounded
        for name, tensor in kept.items():
            setattr(arguments, name, tensor.data_ptr())
        output = x.new_empty(batch, width)
        emitted = x.new_zeros(pyramids.emitted_time, batch, width)
        arguments.output, arguments.emitted = output.data_ptr(), emitted.data_ptr()
        library.call("tp_rnn_forward", x.dtype, arguments)
        if ctx is not None:
            ctx.save_for_backward(x, lengths, *weights, *kept.values())
            ctx.names, ctx.pyramids, ctx.segment = tuple(kept), pyramids, arguments.segment
            ctx.threads, ctx.rounded = library.threads(), rounded
            ctx.set_materialize_grads(False)
        return output[:, :hidden], emitted[..., :hidden].transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_emitted: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weights."""
        refuse_second_derivatives()
        x, lengths, *rest = ctx.saved_tensors
        weights, kept = rest[: len(WEIGHTS)], rest[len(WEIGHTS) :]
        batch, time, inputs = x.shape
        width = padded(weights[1].shape[1], x.dtype)
        d_weights = [None if weight is None else torch.zeros_like(weight) for weight in weights]
        d_x = x.new_zeros(time, batch, padded(inputs, x.dtype)) if ctx.needs_input_grad[0] else None
        d_output = widened(d_output, width)
        d_emitted = None if d_emitted is None else unit_stride(d_emitted)

        arguments = _arguments(x, weights, lengths, ctx.pyramids, ctx.threads)
        arguments.segment, arguments.rounded = ctx.segment, ctx.rounded
        for name, tensor in zip(ctx.names, kept, strict=True):
            setattr(arguments, name, tensor.data_ptr())
        arguments.d_output, arguments.d_x = library.pointer(d_output), library.pointer(d_x)
        if d_emitted is not None:
            arguments.d_emitted = d_emitted.data_ptr()
            arguments.d_emitted_batch, arguments.d_emitted_time = d_emitted.stride()[:2]
        for name, d_weight in zip(WEIGHTS, d_weights, strict=True):
            setattr(arguments, f"d_{name}", library.pointer(d_weight))
        library.call("tp_rnn_backward", x.dtype, arguments)
        # As in the plain loop, weights that met no state have no gradient, which is not the same as one of zero.
        used = dict.fromkeys(WEIGHTS, True)
        length, longest = ctx.pyramids.length, int(lengths[0])
        used["c_first"] = used["c_second"] = longest > min(length, ctx.pyramids.granularity)
        used["path_first"] = used["path_second"] = longest > length and d_output is not None
        d_used = [d if used[name] else None for name, d in zip(WEIGHTS, d_weights, strict=True)]
        return (None if d_x is None else d_x[..., :inputs].transpose(0, 1), *d_used, *[None] * 4)


def _kept_states(arguments: TpRnnArguments, dtype: torch.dtype) -> dict[str, int]:
    """What the backward pass needs beside gates: name -> states a sequence."""
    tops = -(-arguments.time // arguments.length)
    if arguments.segment:
        states = 2 if arguments.path_first is None else 3
        return {"starts": (-(-tops // arguments.segment) - 1) * states}
    nodes = answer("tp_rnn_nodes", arguments, dtype)
    kept = {"cells": arguments.time, "node_h": nodes, "path": tops}
    return kept | ({"node_c": nodes} if arguments.aggregate_cell else {})


def _arguments(
    x: Tensor, weights: list[Tensor | None], lengths: Tensor, pyramids: Pyramids, threads: int
) -> TpRnnArguments:
    arguments = TpRnnArguments(
        batch=len(x), time=int(lengths[0]), inputs=x.shape[2], threads=threads, **pyramids._asdict()
    )
    arguments.x, arguments.lengths = x.data_ptr(), lengths.data_ptr()
    arguments.x_batch, arguments.x_time = x.stride()[:2]
    for name, weight in zip(WEIGHTS, weights, strict=True):
        setattr(arguments, name, library.pointer(weight))
    weight_hh = weights[WEIGHTS.index("weight_hh")]
    assert weight_hh is not None
    arguments.hidden = weight_hh.shape[1]
    arguments.aggregate_cell = weights[WEIGHTS.index("c_first")] is not None
    return arguments
