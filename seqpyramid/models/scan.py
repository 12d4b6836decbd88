r"""Linear recurrences over time in logarithmically many parallel steps.

.. math:: h_t = a_t \odot h_{t-1} + b_t, \qquad t = 1, \dots, T

Two neighbouring steps are one step: :math:`h_{t+1} = (a_{t+1} a_t) h_{t-1} + (a_{t+1} b_t + b_{t+1})`. So the T steps
are joined in pairs, the T/2 joined steps are solved in the same way, which gives every second h, and one more product
gives the others: about 3 T products in 2 log2 T operations, and no more memory than a few copies of b.

What a step depends on, and in which order it is summed, is fixed by its own t: neither later steps nor padding can move
even its last bit.

The gradient is a scan again, from the end to the start, with :math:`\bar h` the derivative by h:

.. math::
    g_t = \bar h_t + a_{t+1}^* g_{t+1}, \qquad \bar b_t = g_t, \qquad \bar a_t = g_t \odot h_{t-1}^*

so that a and h are all that is kept for it.

Shapes: B batch, T time, H units.
"""

from typing import Any

import torch
from torch import Tensor


def linear_scan(a: Tensor, b: Tensor, initial: Tensor | None = None) -> Tensor:
    """Return all h (B, T, H) of ``h[t] = a[t] * h[t - 1] + b[t]``, real or complex.

    Args:
        a: factors (B, T, H); B and T may also be 1, for factors that sequences or steps share.
        b: inputs (B, T, H), of the same dtype.
        initial: h before the first step (B, H); None means zero.

    Raises:
        TypeError: a and b differ in dtype.

    >>> linear_scan(torch.full((1, 1, 1), 2.0), torch.ones(1, 4, 1)).flatten().tolist()
    [1.0, 3.0, 7.0, 15.0]
    """
    if a.dtype != b.dtype:
        raise TypeError(f"a scan needs factors and inputs of one dtype, not {a.dtype} and {b.dtype}")
    if initial is not None:
        b = torch.cat([b[:, :1] + a[:, :1] * initial[:, None], b[:, 1:]], dim=1)
    result: Tensor = _LinearScan.apply(a, b)  # type: ignore[no-untyped-call]
    return result


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision, in which a long recurrence loses its small terms; leave float32 and float64 alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _LinearScan(torch.autograd.Function):
    """The scan from zero; its backward pass is differentiable as well, being made of a scan and products."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = _scan(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        a, h = ctx.saved_tensors
        # Reversed in time, step t needs the factor of step t + 1. The wrapped-around first one meets h = 0.
        following = a.conj() if a.shape[1] == 1 else a.conj().flip(1).roll(1, dims=1)
        g = linear_scan(following.resolve_conj(), gradient.flip(1)).flip(1)
        if not ctx.needs_input_grad[0]:
            return None, g
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)
        return (g * before.conj()).sum_to_size(a.shape), g


def _scan(a: Tensor, b: Tensor) -> Tensor:
    time = b.shape[1]
    if time == 1:
        return b.clone()
    pairs = time // 2
    first, second = slice(0, 2 * pairs, 2), slice(1, None, 2)
    a_second = _steps(a, second)
    joined = _scan(a_second * _steps(a, first), torch.addcmul(b[:, second], a_second, b[:, first]))
    h = torch.empty_like(b)
    h[:, second] = joined
    h[:, 0] = b[:, 0]
    later = slice(2, None, 2)
    h[:, later] = torch.addcmul(b[:, later], _steps(a, later), joined[:, : (time - 1) // 2])
    return h


def _steps(a: Tensor, chosen: slice) -> Tensor:
    """Take some steps' factors; a single one serves all."""
    return a if a.shape[1] == 1 else a[:, chosen]
