r"""Gated-feedback RNN: every layer hears every layer's last state, each pair through a gate of its own.

Source: Chung, Gulcehre, Cho, Bengio, "Gated Feedback Recurrent Neural Networks", ICML 2015 (arXiv:1502.02367),
section 3. With :math:`h_t^0 = x_t` and :math:`h_{t-1}^*` the last states of all L layers, one below the other:

.. math::
    g^{i \to j} &= \sigma(w^{i \to j} \cdot h_t^{j-1} + u^{i \to j} \cdot h_{t-1}^*) \\
    h_t^j &= \tanh\Big(W^j h_t^{j-1} + \sum_{i=1}^{L} g^{i \to j} U^{i \to j} h_{t-1}^i + b^j\Big)

where g, the global reset gate from layer i to layer j, is one number a sequence and step. With LSTM cells only the
new memory content hears the other layers; the unit-wise gates are those of a stacked LSTM:

.. math::
    \tilde{c}_t^j &= \tanh\Big(W_c^j h_t^{j-1} + \sum_{i=1}^{L} g^{i \to j} U_c^{i \to j} h_{t-1}^i + b_c^j\Big) \\
    [i, f, o] &= \sigma(W^j h_t^{j-1} + U^j h_{t-1}^j + b^j), \qquad
    c_t^j = f \odot c_{t-1}^j + i \odot \tilde{c}_t^j, \qquad h_t^j = o \odot \tanh(c_t^j)

What is not established, and what is done here. The equations are from memory, and agree with a reader's summary and
with two reimplementations where those are clear. The equation of g has no bias; one reimplementation adds one:
``gate_bias: true`` does (starting at 0). The cells' biases, one vector a layer, are the usual ones. Unit-wise gates
that read the own layer only: remembered, and so in a reimplementation. The classifier reads the top layer's state.
The starts (``init``) follow the other cells: torch's uniform in ±1/sqrt(H), or Glorot uniform over all that a layer
reads (F + L H) and its G H rows (L rows for g), biases 0.

``feedback: ungated`` sets every g to 1 and drops its weights (all layers fully connected over time), the control
that shows what the gates do. With U of the own layer alone that is a stack of the plain cells.

Speed: one clear step loop over all layers; the first layer's input products are hoisted out of it, and one batched
product a step holds every U. GRU cells, which the paper has too, are not here.

Deviations: none known beyond the choices above.

Shapes: B batch, T time steps, F input features, H hidden units, L layers, G gates of the cell (1 or 4).
"""

from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full, last_steps, mask_steps
from seqpyramid.models.cells import CellInit, State
from seqpyramid.models.heads import HeadInit

GatedFeedbackCell = Literal["elman", "lstm"]
Feedback = Literal["gated", "ungated"]


class GatedFeedbackRNNConfig(ModelConfig):
    """Gated-feedback RNN."""

    summary_line: ClassVar[str] = (
        "Gated-feedback RNN (Chung et al., ICML 2015): gated links between all layers over time"
    )
    name: Literal["gated_feedback_rnn"] = "gated_feedback_rnn"
    cell: GatedFeedbackCell = Field(default="lstm", description="the recurrence of each layer")
    hidden_size: int = Field(default=100, gt=0, description="H, units per layer")
    layers: int = Field(default=3, gt=0, description="L, number of stacked layers")
    feedback: Feedback = Field(default="gated", description="gated: g of the equations; ungated: g = 1")
    gate_bias: bool = Field(default=False, description="whether g has a bias (not in the paper's equation)")
    forget_bias: float = Field(default=0.0, description="added to the LSTM's first forget biases")
    init: CellInit = Field(default="torch", description="start of the recurrent weights")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def carries_state(self) -> bool:
        """The last states of all layers."""
        return True

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse options that could have no effect."""
        found = super().problems(spec)
        if self.gate_bias and self.feedback == "ungated":
            found["gate_bias"] = "has no effect without gates; set feedback to 'gated'"
        if self.forget_bias and self.cell == "elman":
            found["forget_bias"] = "has no effect on an Elman cell, which does not forget; set cell to 'lstm'"
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return GatedFeedbackRNN(spec, **self.model_dump(exclude={"name"}))


class GatedFeedbackRNN(SequenceModel):
    """L layers that hear each other; arguments as in :class:`GatedFeedbackRNNConfig`."""

    step_loop = True

    def __init__(
        self,
        spec: TaskSpec,
        *,
        cell: GatedFeedbackCell,
        hidden_size: int,
        layers: int,
        feedback: Feedback = "gated",
        gate_bias: bool = False,
        forget_bias: float = 0.0,
        init: CellInit = "torch",
        head_init: HeadInit = "torch",
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.cell, self.hidden_size, self.gated = cell, hidden_size, feedback == "gated"
        self.layers = nn.ModuleList(
            FeedbackLayer(
                spec.input_size if j == 0 else hidden_size,
                hidden_size,
                layers=layers,
                cell=cell,
                gated=self.gated,
                gate_bias=gate_bias,
                forget_bias=forget_bias,
                init=init,
            )
            for j in range(layers)
        )

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run all layers step by step; the state is (h,) or (h, c), each (B, L, H)."""
        if state is None:
            h = x.new_zeros(len(x), len(self.layers), self.hidden_size)
            state = (h, h) if self.cell == "lstm" else (h,)
        weights = self._join()
        lowest = nnf.linear(x, *weights.inputs[0]).unbind(1)
        trace: list[State] = []
        for drive in lowest:
            state = self._step(weights, drive, state)
            trace.append(state)

        full = all_full(lengths, x.shape[1])
        carried: State | None = None
        if self.spec.carry_state:
            carried = tuple(
                part[-1] if full else last_steps(torch.stack(part, dim=1), lengths)
                for part in zip(*trace, strict=True)
            )
        if full and self.spec.needs == "summary":
            return Encoding(trace[-1][0][:, -1], state=carried)
        steps = torch.stack([after[0][:, -1] for after in trace], dim=1)
        return Encoding(
            last_steps(steps, lengths),
            steps=mask_steps(steps, lengths) if self.spec.needs == "steps" else None,
            state=carried,
        )

    def _join(self) -> "JoinedWeights":
        """Put together, once a batch, what one product a step can read."""
        layers = cast("list[FeedbackLayer]", list(self.layers))
        recurrent = torch.cat([layer.feedback_weight for layer in layers], dim=1)
        if self.cell == "lstm":
            units = torch.stack([cast(Tensor, layer.unit_weight) for layer in layers])
            recurrent = torch.cat([recurrent, units], dim=1)
        gates = torch.cat([cast(Tensor, layer.gate_weight_hh) for layer in layers]).T if self.gated else None
        return JoinedWeights([layer.input_weights() for layer in layers], recurrent.transpose(1, 2), gates)

    def _step(self, weights: "JoinedWeights", drive: Tensor, state: State) -> State:
        """Advance all layers by one step, the lowest of them driven by its input products."""
        h, L, H = state[0], len(self.layers), self.hidden_size
        before = torch.bmm(
            h.transpose(0, 1), weights.recurrent
        )  # (L, B, ...): all that h_{t-1} is multiplied with
        links = before[:, :, : L * H].view(L, len(h), L, H).unbind(2)  # [j][i] is U^{i -> j} h^i
        gates_h = None if weights.gates is None else (h.flatten(1) @ weights.gates).chunk(L, dim=1)
        new_h: list[Tensor] = []
        new_c: list[Tensor] = []
        for j, heard in enumerate(links):
            driven = drive if j == 0 else nnf.linear(new_h[-1], *weights.inputs[j])
            if gates_h is not None:
                g = torch.sigmoid(driven[:, -L:] + gates_h[j])
                heard = heard * g.T[:, :, None]
            content = torch.tanh(driven[:, :H] + heard.sum(0))
            if self.cell == "elman":
                new_h.append(content)
                continue
            units = torch.sigmoid(driven[:, H : 4 * H] + before[j, :, L * H :])
            i, f, o = units.chunk(3, dim=1)
            new_c.append(f * state[1][:, j] + i * content)
            new_h.append(o * torch.tanh(new_c[-1]))
        return tuple(torch.stack(part, dim=1) for part in (new_h, new_c) if part)

    def encoder_flops(self, time: int) -> int:
        """Input products of every layer, the products of all last states, and those of the global gates."""
        L, H = len(self.layers), self.hidden_size
        rows = (4 if self.cell == "lstm" else 1) * H
        gates = L if self.gated else 0
        inputs = (self.spec.input_size + (L - 1) * H) * (rows + gates)
        recurrent = L * H * (L * H + rows - H)
        return 2 * time * (inputs + recurrent + L * H * L * gates)


class JoinedWeights(NamedTuple):
    """The weights of all layers, as the steps read them."""

    inputs: list[tuple[Tensor, Tensor]]
    """For each layer a matrix (G H + L, F) of W and w, and its bias."""
    recurrent: Tensor
    """(L, H, L H + (G - 1) H): for each layer i its U^{i -> j} for all j, and U of its unit-wise gates."""
    gates: Tensor | None
    """(L H, L L): u of all global gates, those into layer 1 first."""


class FeedbackLayer(nn.Module):
    """Weights of layer j. An LSTM's rows are in the order new content, i, f, o.

    Args:
        input_size: F, or H of the layer below.
        hidden_size: H.
        layers: L.
        cell: the recurrence.
        gated: whether there are global gates.
        gate_bias: whether they have a bias.
        forget_bias: added to the LSTM's first forget bias.
        init: see the module's docstring.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        layers: int,
        cell: GatedFeedbackCell,
        gated: bool = True,
        gate_bias: bool = False,
        forget_bias: float = 0.0,
        init: CellInit = "torch",
    ) -> None:
        super().__init__()
        F, H, L = input_size, hidden_size, layers
        rows = 4 * H if cell == "lstm" else H
        self.weight_ih = nn.Parameter(torch.empty(rows, F))
        self.bias = nn.Parameter(torch.empty(rows))
        self.feedback_weight = nn.Parameter(torch.empty(L, H, H))  # [i] is U^{i -> j}
        self.unit_weight = nn.Parameter(torch.empty(3 * H, H)) if cell == "lstm" else None
        self.gate_weight_ih = nn.Parameter(torch.empty(L, F)) if gated else None
        self.gate_weight_hh = nn.Parameter(torch.empty(L, L * H)) if gated else None
        self.gate_bias = nn.Parameter(torch.zeros(L)) if gated and gate_bias else None

        def bound(outputs: int) -> float:
            return float(H**-0.5 if init == "torch" else (6 / (F + L * H + outputs)) ** 0.5)

        for weight in (self.weight_ih, self.feedback_weight, self.unit_weight):
            if weight is not None:
                nn.init.uniform_(weight, -bound(rows), bound(rows))
        for weight in (self.gate_weight_ih, self.gate_weight_hh):
            if weight is not None:
                nn.init.uniform_(weight, -bound(L), bound(L))
        if init == "torch":
            nn.init.uniform_(self.bias, -bound(rows), bound(rows))
        else:
            nn.init.zeros_(self.bias)
        if forget_bias:
            with torch.no_grad():
                self.bias[2 * H : 3 * H] += forget_bias

    def input_weights(self) -> tuple[Tensor, Tensor]:
        """Join W and w, which read the same input, and their biases."""
        if self.gate_weight_ih is None:
            return self.weight_ih, self.bias
        no_bias = self.bias.new_zeros(len(self.gate_weight_ih))
        bias = torch.cat([self.bias, no_bias if self.gate_bias is None else self.gate_bias])
        return torch.cat([self.weight_ih, self.gate_weight_ih]), bias
