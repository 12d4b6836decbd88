r"""Recurrent cells: one time step each; unrolling is the business of the model.

A cell splits its step in two: :meth:`Cell.project` maps the inputs of all steps at once (one large matrix product),
:meth:`Cell.step` adds the recurrent part of one step.

- Elman (1990): :math:`h_t = \tanh(U x_t + W h_{t-1} + b)`
- LSTM (Gers et al. 2000): :math:`c_t = \sigma(f) c_{t-1} + \sigma(i) \tanh(g)`, :math:`h_t = \sigma(o) \tanh(c_t)`
  with :math:`[i, f, g, o] = U x_t + W h_{t-1} + b`
- GRU (Cho et al. 2014, arXiv:1406.1078v1; torch's form, reset after the product):
  :math:`h_t = (1 - z) n + z h_{t-1}`, :math:`n = \tanh(U_n x_t + b_n + r (W_n h_{t-1} + b'_n))`,
  :math:`[r, z] = \sigma(U x_t + W h_{t-1} + b)`

Gate order in the weights' rows is torch's: i, f, g, o and r, z, n.

Shapes: B batch, F inputs, H hidden units, G gates (1, 4 or 3).
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

State = tuple[Tensor, ...]
"""(h,) or (h, c), each (B, H)."""

Bias = Literal["single", "double"]
CellInit = Literal["torch", "tensorflow"]
CellName = Literal["lstm", "gru", "elman"]


class Cell(nn.Module, ABC):
    """Weights of one cell and its step.

    Args:
        input_size: F.
        hidden_size: H.
        bias: ``single`` adds one vector (the papers' parameter counts), ``double`` two, as torch's layers do.
        init: ``torch``: uniform in ±1/sqrt(H); ``tensorflow``: Glorot uniform over the joint matrix
            (F + H) x (G H), biases 0.
        forget_bias: start of an LSTM's forget bias (added to it under either init).
    """

    gates: ClassVar[int]
    states: ClassVar[int] = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: Bias = "single",
        init: CellInit = "torch",
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__()
        rows = self.gates * hidden_size
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(rows))
        self.bias_hh = nn.Parameter(torch.empty(rows)) if bias == "double" else None
        start_cell(list(self.parameters()), input_size, hidden_size, init=init)
        if forget_bias:
            with torch.no_grad():
                self.bias_ih[hidden_size : 2 * hidden_size] += forget_bias

    def project(self, x: Tensor) -> Tensor:
        """Map inputs (..., F) to their share of the gates (..., G H), first bias included."""
        return nnf.linear(x, self.weight_ih, self.bias_ih)

    def recur(self, h: Tensor) -> Tensor:
        """Map a state (B, H) to its share of the gates (B, G H)."""
        return nnf.linear(h, self.weight_hh, self.bias_hh)

    @abstractmethod
    def step(self, projected: Tensor, state: State) -> State:
        """Advance one step from projected inputs (B, G H)."""

    def initial(self, batch: int) -> State:
        """Return the zero state."""
        return tuple(self.weight_hh.new_zeros(batch, self.hidden_size) for _ in range(self.states))

    def flops(self) -> int:
        """FLOPs of one step, its input projection included."""
        return 2 * self.gates * self.hidden_size * (self.input_size + self.hidden_size)


class ElmanCell(Cell):
    """h = tanh(U x + W h + b)."""

    gates = 1

    def step(self, projected: Tensor, state: State) -> State:
        """Advance (h,) by one step."""
        return (torch.tanh(projected + self.recur(state[0])),)


class LSTMCell(Cell):
    """LSTM with a forget gate, without peepholes."""

    gates = 4
    states = 2

    def step(self, projected: Tensor, state: State) -> State:
        """Advance (h, c) by one step."""
        h, c = state
        i, f, g, o = (projected + self.recur(h)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class GRUCell(Cell):
    """GRU with the reset gate after the recurrent product."""

    gates = 3

    def step(self, projected: Tensor, state: State) -> State:
        """Advance (h,) by one step."""
        (h,) = state
        r_x, z_x, n_x = projected.chunk(3, dim=1)
        r_h, z_h, n_h = self.recur(h).chunk(3, dim=1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        return ((1 - z) * n + z * h,)


CELLS: dict[CellName, type[Cell]] = {"lstm": LSTMCell, "gru": GRUCell, "elman": ElmanCell}


def start_cell(parameters: list[nn.Parameter], input_size: int, hidden_size: int, *, init: CellInit) -> None:
    """Give a cell's weights (G H, F), (G H, H) and biases (G H) their first values; see :class:`Cell`."""
    for parameter in parameters:
        if init == "torch":
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)
        elif parameter.ndim == 1:
            nn.init.zeros_(parameter)
        else:
            bound = (6 / (input_size + hidden_size + len(parameter))) ** 0.5
            nn.init.uniform_(parameter, -bound, bound)
