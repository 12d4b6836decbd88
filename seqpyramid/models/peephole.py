r"""LSTM with peephole connections: the gates see the cell.

Sources: Gers and Schmidhuber, "Recurrent nets that time and count", IJCNN 2000; the form of Graves, "Generating
sequences with recurrent neural networks", 2013, arXiv:1308.0850, equations (7)-(11):

.. math::
    i_t &= \sigma(U_i x_t + W_i h_{t-1} + p_i \odot c_{t-1} + b_i) \\
    f_t &= \sigma(U_f x_t + W_f h_{t-1} + p_f \odot c_{t-1} + b_f) \\
    c_t &= f_t \odot c_{t-1} + i_t \odot g(U_g x_t + W_g h_{t-1} + b_g) \\
    o_t &= \sigma(U_o x_t + W_o h_{t-1} + p_o \odot c_t + b_o) \\
    h_t &= o_t \odot \tanh(c_t)

The output gate looks at the new cell. The peepholes are diagonal: three vectors, so 3 H parameters a layer more than
an LSTM. ``candidate`` is g: ``tanh`` as Graves has it, or ``sigmoid`` as Goodfellow, Bengio and Courville print it in
"Deep Learning" (2016, section 10.10.1), and courses after them. Layer k reads the states of layer k-1.

Not established: how the peepholes start. Chosen here: ``uniform`` draws them from ±1/sqrt(H) like torch's other
weights, whatever ``init`` is; ``zeros`` starts as a plain LSTM.

Deviations: exact gradients through time, where the paper of 2000 truncates them.

Speed: no fused layer has peepholes, so this is a step loop; only the input projections are hoisted out of it.

Shapes: B batch, T time, F input features, H hidden units, K layers.
"""

from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, last_steps, mask_steps
from seqpyramid.models.cells import Bias, CellInit, LSTMCell, State
from seqpyramid.models.heads import HeadInit

Candidate = Literal["tanh", "sigmoid"]
PeepholeInit = Literal["uniform", "zeros"]


class PeepholeLSTMConfig(ModelConfig):
    """Peephole LSTM stack."""

    summary_line: ClassVar[str] = (
        "Peephole LSTM (Gers & Schmidhuber 2000; Graves 2013): gates that see the cell"
    )
    name: Literal["peephole_lstm"] = "peephole_lstm"
    hidden_size: int = Field(default=100, gt=0, description="H, units per layer")
    layers: int = Field(default=1, gt=0, description="K, number of stacked layers")
    candidate: Candidate = Field(default="tanh", description="g, what squashes the cell's new content")
    bias: Bias = Field(
        default="single", description="one bias vector per layer (papers' counts) or torch's two"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout between layers")
    forget_bias: float = Field(default=0.0, description="added to the first forget bias")
    init: CellInit = Field(default="torch", description="start of the weights and biases")
    peephole_init: PeepholeInit = Field(default="uniform", description="start of the peepholes")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def carries_state(self) -> bool:
        """The state is (h, c) of each layer."""
        return True

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse an option that could have no effect."""
        found = super().problems(spec)
        if self.dropout and self.layers == 1:
            found["dropout"] = "acts between layers, and there is only one; set layers to 2 or more"
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return PeepholeLSTM(spec, **self.model_dump(exclude={"name"}))


class PeepholeLSTMCell(LSTMCell):
    """LSTM cell with three diagonal peepholes, the rows p_i, p_f, p_o of one (3, H) parameter.

    Args:
        input_size: F.
        hidden_size: H.
        candidate: g.
        peephole_init: start of the peepholes.
        bias: as in :class:`seqpyramid.models.cells.Cell`.
        init: as there.
        forget_bias: as there.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        candidate: Candidate = "tanh",
        peephole_init: PeepholeInit = "uniform",
        bias: Bias = "single",
        init: CellInit = "torch",
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__(input_size, hidden_size, bias=bias, init=init, forget_bias=forget_bias)
        self.squash = torch.tanh if candidate == "tanh" else torch.sigmoid
        self.peepholes = nn.Parameter(torch.zeros(3, hidden_size))
        if peephole_init == "uniform":
            nn.init.uniform_(self.peepholes, -(hidden_size**-0.5), hidden_size**-0.5)

    def step(self, projected: Tensor, state: State) -> State:
        """Advance (h, c) by one step."""
        h, c = state
        gates = (projected + self.recur(h)).view(len(h), 4, -1)  # (B, 4, H): i, f, g, o
        p_if, p_o = self.peepholes[:2], self.peepholes[2]
        i, f = torch.sigmoid(gates[:, :2] + p_if * c[:, None]).unbind(1)
        c = f * c + i * self.squash(gates[:, 2])
        o = torch.sigmoid(gates[:, 3] + p_o * c)
        return o * torch.tanh(c), c


class PeepholeLSTM(SequenceModel):
    """K layers of peephole cells.

    Args:
        spec: the task's side of the contract.
        hidden_size: H.
        layers: K.
        candidate: g.
        bias: one vector a layer or two.
        dropout: between layers.
        forget_bias: added to the first forget bias.
        init: start of the weights and biases.
        peephole_init: start of the peepholes.
        head_init: start of the classifier's weights.
    """

    step_loop = True

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        layers: int,
        candidate: Candidate = "tanh",
        bias: Bias = "single",
        dropout: float = 0.0,
        forget_bias: float = 0.0,
        init: CellInit = "torch",
        peephole_init: PeepholeInit = "uniform",
        head_init: HeadInit = "torch",
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.layers = nn.ModuleList(
            PeepholeLSTMCell(
                below,
                above,
                candidate=candidate,
                peephole_init=peephole_init,
                bias=bias,
                init=init,
                forget_bias=forget_bias,
            )
            for below, above in pairwise([spec.input_size] + [hidden_size] * layers)
        )
        self.dropout = nn.Dropout(dropout)

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run all layers over the batch; the state is a list of (h, c), one a layer."""
        states = []
        for k, cell in enumerate(self._cells()):
            x, after = self._unroll(cell, self.dropout(x) if k else x, lengths, state[k] if state else None)
            states.append(after)
        steps = mask_steps(x, lengths) if self.spec.needs == "steps" else None
        carried = states if self.spec.carry_state else None
        return Encoding(last_steps(x, lengths), steps=steps, state=carried)

    def _unroll(
        self, cell: PeepholeLSTMCell, x: Tensor, lengths: Tensor, state: State | None
    ) -> tuple[Tensor, State]:
        """Return all h (B, T, H), and the state at each sequence's own end if it is carried."""
        state = cell.initial(len(x)) if state is None else state
        hs, cs = [], []
        for projected in cell.project(x).unbind(1):
            state = cell.step(projected, state)
            hs.append(state[0])
            cs.append(state[1])
        steps = torch.stack(hs, dim=1)
        if self.spec.carry_state:
            state = last_steps(steps, lengths), last_steps(torch.stack(cs, dim=1), lengths)
        return steps, state

    def _cells(self) -> list[PeepholeLSTMCell]:
        return cast("list[PeepholeLSTMCell]", list(self.layers))

    def encoder_flops(self, time: int) -> int:
        """Gates of every layer and step; the peepholes are element by element."""
        return time * sum(cell.flops() for cell in self._cells())
