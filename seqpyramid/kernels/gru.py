r"""Fused GRU layers for the CPU, with the reset gate after the recurrent product (torch) or before it (TensorFlow).

.. math::
    r, z &= \sigma(U_{rz} x_t + W_{rz} h_{t-1} + b_{rz}), \qquad h_t = (1 - z) \odot n + z \odot h_{t-1} \\
    \text{after:}\quad n &= \tanh(U_n x_t + b_n + r \odot q), \quad q = W_n h_{t-1} + b'_n \\
    \text{before:}\quad n &= \tanh(U_n x_t + b_n + W_n s), \quad s = r \odot h_{t-1}

Backward, :math:`\delta h_t` being what reaches a state from later steps and from the outputs:

.. math::
    \delta a_z &= \delta h_t \odot (h_{t-1} - n) \odot z (1 - z), \quad
        \delta a_n = \delta h_t \odot (1 - z) \odot (1 - n^2) \\
    \text{after:}\quad \delta q &= \delta a_n \odot r, \quad \delta a_r = \delta a_n \odot q \odot r (1 - r), \quad
        \delta h_{t-1} = \delta h_t \odot z + W^\top [\delta a_r, \delta a_z, \delta q] \\
    \text{before:}\quad \delta s &= W_n^\top \delta a_n, \quad
        \delta a_r = \delta s \odot h_{t-1} \odot r (1 - r), \quad
        \delta h_{t-1} = \delta h_t \odot z + \delta s \odot r + W_{rz}^\top [\delta a_r, \delta a_z]

Gradients of weights are sums over steps of these times what the weights were multiplied with. Kept are h and the
planes r, z, n and q; with recomputation only h at the starts of segments, as :mod:`seqpyramid.kernels.lstm` says. The
plain twins are torch's ``nn.GRU``, the loop over :class:`seqpyramid.models.cells.GRUCell` and
:class:`seqpyramid.models.dilated.ResetBeforeGRU`.

Shapes: B batch, T time, F inputs, H hidden units.
"""

import torch
from torch import Tensor

from seqpyramid.kernels.elman import Kernel, state_layer
from seqpyramid.kernels.lstm import Segment


def gru_layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor | None,
    lengths: Tensor,
    state: Tensor | None = None,
    *,
    keep_steps: bool,
    every: int = 1,
    segment: Segment = None,
) -> tuple[Tensor | None, Tensor]:
    """Run x (B, T, F) through one layer, each sequence up to its own length; reset after the product.

    Args:
        x: the inputs.
        weight_ih: U (3 H, F), rows r, z, n.
        weight_hh: W (3 H, H).
        bias_ih: b (3 H).
        bias_hh: b' (3 H), which is not the same as a part of b for n; None: zeros.
        lengths: (B,) integers on the CPU, from 1 to T.
        state: h (B, H) before the first step; None: zeros.
        keep_steps: whether h of the steps is wanted.
        every: of how many of them one is, counted back from the last of T.
        segment: how many steps the backward pass runs again at a time; it changes no result.

    Returns:
        h of those steps (B, ceil(T / every), H), zero past ``lengths``, or None; and h (B, H) at each sequence's end.
    """
    hidden = weight_hh.shape[1]
    after = torch.zeros_like(bias_ih) if bias_hh is None else bias_hh
    gates = 2 * hidden
    bias = torch.cat([bias_ih[gates:], (bias_ih + after)[:gates], after[gates:]])
    weight_ih = weight_ih.roll(hidden, 0)  # n, r, z: planes that read x, then those that read h, side by side
    kernel = Kernel("gru", planes=4)
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


def reset_before_gru_layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_gates: Tensor,
    weight_candidate: Tensor,
    bias: Tensor,
    lengths: Tensor,
    state: Tensor | None = None,
    *,
    keep_steps: bool,
    every: int = 1,
    segment: Segment = None,
) -> tuple[Tensor | None, Tensor]:
    """Run x (B, T, F) through one layer; reset before the product.

    Args:
        x: the inputs.
        weight_ih: U (3 H, F), rows r, z, n.
        weight_gates: W_rz (2 H, H).
        weight_candidate: W_n (H, H).
        bias: b (3 H).
        lengths: (B,) integers on the CPU, from 1 to T.
        state: h (B, H) before the first step; None: zeros.
        keep_steps: whether h of the steps is wanted.
        every: of how many of them one is, counted back from the last of T.
        segment: how many steps the backward pass runs again at a time; it changes no result.

    Returns:
        As :func:`gru_layer`.
    """
    hidden = weight_candidate.shape[1]
    weight_hh = torch.cat([weight_candidate, weight_gates])
    kernel = Kernel("reset_before_gru", planes=3)
    return state_layer(
        kernel,
        x,
        weight_ih.roll(hidden, 0),
        weight_hh,
        bias.roll(hidden, 0),
        lengths,
        state,
        keep_steps=keep_steps,
        every=every,
        segment=segment,
    )
