r"""Weighted aggregation of a few states into one: the :math:`\theta` of TP-RNN, and its use over layers.

Source: Ma, Lin, Chen, Cottrell, "Temporal Pyramid Recurrent Neural Network", AAAI 2020, equations (6)-(10):

.. math::
    E &= [e_1, \dots, e_M] \in \mathbb{R}^{d_h \times M} \\
    S &= f_2(W_2 f_1(W_1 E^\top))^\top, \qquad W_1 \in \mathbb{R}^{D \times M},\ W_2 \in \mathbb{R}^{M \times D} \\
    \tilde{E} &= S \odot E, \qquad \hat{e} = f\Big(\sum_m \tilde{e}_m\Big)

with f1 = ReLU, f2 = sigmoid, f = tanh, no biases.

What the released code settles: D = 3 M; both matrices start from a normal of deviation 0.1 truncated at two
deviations; a group of n < M states uses the top-left slices W1[:3n, :n] and W2[:n, :3n]; the output aggregation (6)
multiplies each layer's output by a matrix of its own first and leaves out the tanh.

Where paper and released code differ: S comes out with rows (sequence, unit) and one column a state, and the code
*reshapes* it to (sequence, state, unit) where equation (9) asks for a transpose. ``attention="scrambled"`` does as
the code does; the published numbers presumably come from it. ``"aligned"`` is equation (9).

Not established: what exactly "Mean", "Max" and "SENet" of Table 4 compute. Chosen here: mean and maximum over the M
states, element by element, without weights and without tanh; SENet as squeeze and excitation over the states (Hu et
al. 2018): the mean of each state over its units goes through W1 and W2 and weights that state as a whole, then (10).

Shapes: B batch, H hidden units (the paper's d_h), M states at most, n states now, K layers.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

AggregationMethod = Literal["ours", "senet", "mean", "max"]
Attention = Literal["aligned", "scrambled"]

EXPANSION = 3
"""D / M in the released code."""


class StateAggregation(nn.Module):
    """The function theta over at most M states of one size.

    Args:
        states: M.
        method: ``ours`` is equations (7)-(10), the others are the rows of the paper's Table 4.
        attention: which weight meets which element, see the module's docstring.
        squash: whether tanh closes (10).
    """

    def __init__(
        self,
        states: int,
        *,
        method: AggregationMethod = "ours",
        attention: Attention = "aligned",
        squash: bool = True,
    ) -> None:
        super().__init__()
        self.states, self.method, self.attention, self.squash = states, method, attention, squash
        if method in ("ours", "senet"):
            self.W1 = nn.Parameter(torch.empty(EXPANSION * states, states))
            self.W2 = nn.Parameter(torch.empty(states, EXPANSION * states))
            for weight in (self.W1, self.W2):
                nn.init.trunc_normal_(weight, std=0.1, a=-0.2, b=0.2)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Aggregate n states of shape (..., H) into one (..., H).

        >>> StateAggregation(3, method="mean")([torch.tensor([[1.0]]), torch.tensor([[3.0]])])
        tensor([[2.]])
        """
        e = torch.stack(list(states))  # (n, ..., H): the paper's E transposed, the states leading
        if self.method == "mean":
            return e.mean(0)
        if self.method == "max":
            return e.amax(0)
        mixed = (self._weights(e) * e).sum(0)
        return torch.tanh(mixed) if self.squash else mixed

    def _weights(self, e: Tensor) -> Tensor:
        """S, one weight for each state and unit: (n, ..., H), or (n, ..., 1) for SENet."""
        n = len(e)
        W1, W2 = self.W1[: EXPANSION * n, :n], self.W2[:n, : EXPANSION * n]
        squeezed = e.mean(-1, keepdim=True) if self.method == "senet" else e
        s = torch.sigmoid(W2 @ torch.relu(W1 @ squeezed.reshape(n, -1)))  # (n, B*H)
        if self.attention == "aligned" or self.method == "senet":
            return s.view(squeezed.shape)
        scrambled = s.T.reshape(-1, n, e.shape[-1])  # rows (b, h) read again as (b, n, h), as the code does
        return scrambled.transpose(0, 1).reshape(e.shape)

    def flops(self, n: int, hidden: int) -> int:
        """FLOPs of the two matrix products over n states of ``hidden`` units."""
        if self.method in ("mean", "max"):
            return 0
        columns = 1 if self.method == "senet" else hidden
        return 2 * (2 * EXPANSION * n * n * columns)


class OutputAggregation(nn.Module):
    """Equation (6): one output from the outputs of K layers.

    Args:
        layers: K.
        hidden_size: H.
        method: as in :class:`StateAggregation`, or ``sum``: the layers are added without attention, which is what
            the printed parameter count of the LSTM-M baseline leaves room for.
        attention: as in :class:`StateAggregation`.
        maps: multiply each layer's output by a matrix (H, H) of its own first (released code; not in the paper).
        squash: close with tanh (paper) or not (released code).
    """

    def __init__(
        self,
        layers: int,
        hidden_size: int,
        *,
        method: AggregationMethod | Literal["sum"] = "ours",
        attention: Attention = "aligned",
        maps: bool = False,
        squash: bool = True,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.maps = nn.ParameterList()
        if maps:
            for _ in range(layers):
                weight = torch.empty(hidden_size, hidden_size)
                self.maps.append(nn.Parameter(nn.init.trunc_normal_(weight, std=0.1, a=-0.2, b=0.2)))
        self.squash = squash
        self.theta = (
            None
            if method == "sum"
            else StateAggregation(layers, method=method, attention=attention, squash=squash)
        )

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """Aggregate K outputs (..., H) into one (..., H)."""
        if len(self.maps):
            outputs = [output @ weight for output, weight in zip(outputs, self.maps, strict=True)]
        if self.theta is not None:
            result: Tensor = self.theta(outputs)
            return result
        total = torch.stack(list(outputs)).sum(0)
        return torch.tanh(total) if self.squash else total

    def flops(self, layers: int) -> int:
        """FLOPs of aggregating one sequence's outputs of ``layers`` layers."""
        maps = 2 * self.hidden_size**2 * len(self.maps)
        return maps + (self.theta.flops(layers, self.hidden_size) if self.theta is not None else 0)
