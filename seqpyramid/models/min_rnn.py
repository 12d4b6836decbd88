r"""minGRU and minLSTM: gates that look at the input alone, so that the recurrence is linear in the state.

Source: Feng, Tung, Ahmed, Bengio, Hajimirsadeghi, "Were RNNs All We Needed?", 2024, arXiv:2410.01201.

minGRU:

.. math::
    z_t = \sigma(W_z x_t + b_z), \qquad h_t = (1 - z_t) \odot h_{t-1} + z_t \odot \tilde{h}_t

minLSTM:

.. math::
    f_t &= \sigma(W_f x_t + b_f), \quad i_t = \sigma(W_i x_t + b_i), \quad
    f'_t = \frac{f_t}{f_t + i_t}, \quad i'_t = \frac{i_t}{f_t + i_t} \\
    h_t &= f'_t \odot h_{t-1} + i'_t \odot \tilde{h}_t

with the candidate :math:`\tilde{h}_t = W_h x_t + b_h` (``candidate: linear``), and h = 0 before the first step. All
steps are one :func:`seqpyramid.models.scan.linear_scan`.

``candidate: positive`` is the form that the paper's version in logarithms needs, where no h may be negative:
:math:`\tilde{h} = g(W_h x + b_h)` with g(v) = v + 1/2 for v >= 0 and sigmoid(v) below. It is computed here with the
ordinary scan, which has the same values, from h = 0.

Layers. ``residual: false``: layer k reads the states of layer k - 1, nothing else. ``residual: true``, with H units
between the layers and E = ``expansion`` x H states in them:

.. math:: x^{k+1} = x^k + D(W^k h^k + b^k), \qquad h^k = \text{minGRU}(\mathrm{LayerNorm}(x^k))

after a linear map of the input, with a last LayerNorm on top.

Not established, and what was chosen: the form of the residual block (normalisation before, one linear map after; the
paper's has a convolution and an MLP besides in some tasks); the starts (torch's for linear maps); ``forget_bias`` is
added to minLSTM's first b_f, 0 unless asked for.

Deviations: f' is computed as sigmoid(log f - log i), the same number, also where f and i both vanish.

Precision: states are computed in float32 at least.

Shapes: B batch, T time, F input features, H units, E states of a layer.
"""

from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, last_steps, mask_steps
from seqpyramid.models.heads import HeadInit
from seqpyramid.models.scan import at_least_float32, linear_scan

Candidate = Literal["linear", "positive"]
MinCell = Literal["min_gru", "min_lstm"]

PRODUCTS: dict[MinCell, int] = {"min_gru": 2, "min_lstm": 3}
"""Linear maps of the input in one layer."""


class MinRNNConfig(ModelConfig):
    """Fields that both share."""

    hidden_size: int = Field(default=128, gt=0, description="H, units per layer")
    layers: int = Field(default=1, gt=0, description="number of layers")
    candidate: Candidate = Field(default="linear", description="h~: linear, or made positive by g")
    residual: bool = Field(default=False, description="put each layer into a normalised residual block")
    expansion: int = Field(default=1, gt=0, description="E / H, states per unit of a residual block")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout between layers, or on each residual branch"
    )
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def carries_state(self) -> bool:
        """The state is the last h of each layer."""
        return True

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse options that could have no effect."""
        found = super().problems(spec)
        if self.expansion > 1 and not self.residual:
            found["expansion"] = "has no effect without residual; set that to true, or raise hidden_size"
        if self.dropout and self.layers == 1 and not self.residual:
            found["dropout"] = "acts between layers, and there is only one; set layers to 2 or more"
        return found


class MinGRUConfig(MinRNNConfig):
    """minGRU."""

    summary_line: ClassVar[str] = "minGRU (Feng et al. 2024): a gate on the input alone, parallel in time"
    name: Literal["min_gru"] = "min_gru"

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return MinRNN(spec, cell="min_gru", **self.model_dump(exclude={"name"}))


class MinLSTMConfig(MinRNNConfig):
    """minLSTM."""

    summary_line: ClassVar[str] = "minLSTM (Feng et al. 2024): two gates on the input alone, parallel in time"
    name: Literal["min_lstm"] = "min_lstm"
    forget_bias: float = Field(default=0.0, description="added to the first b_f")

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return MinRNN(spec, cell="min_lstm", **self.model_dump(exclude={"name"}))


class MinRNN(SequenceModel):
    """Layers of one kind; arguments as in the configs, and ``cell`` says which kind."""

    def __init__(
        self,
        spec: TaskSpec,
        *,
        cell: MinCell,
        hidden_size: int,
        layers: int,
        candidate: Candidate,
        residual: bool,
        expansion: int,
        dropout: float,
        head_init: HeadInit,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.residual = residual
        self.dropout = nn.Dropout(dropout)
        self.input = nn.Linear(spec.input_size, hidden_size) if residual else nn.Identity()
        self.layers, self.norms, self.outputs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for k in range(layers):
            below = hidden_size if k or residual else spec.input_size
            layer = MinLayer(
                below, expansion * hidden_size, cell=cell, candidate=candidate, forget_bias=forget_bias
            )
            self.layers.append(layer)
            if residual:
                self.norms.append(nn.LayerNorm(hidden_size))
                self.outputs.append(nn.Linear(expansion * hidden_size, hidden_size))
        self.norm = nn.LayerNorm(hidden_size) if residual else nn.Identity()

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run all layers over all steps; the state is a list of h (B, E), one a layer."""
        x, ends = self.input(x), []
        for k, layer in enumerate(self.layers):
            before = state[k] if state else None
            if self.residual:
                h = layer(self.norms[k](x), before)
                x = x + self.dropout(self.outputs[k](h))
            else:
                x = h = layer(self.dropout(x) if k else x, before)
            if self.spec.carry_state:
                ends.append(last_steps(h, lengths))
        x = self.norm(x)
        steps = mask_steps(x, lengths) if self.spec.needs == "steps" else None
        return Encoding(last_steps(x, lengths), steps=steps, state=ends if self.spec.carry_state else None)

    def encoder_flops(self, time: int) -> int:
        """Every linear map at every step; the scan is element-wise."""
        maps = [cast(MinLayer, layer).maps for layer in self.layers]
        maps += [module for module in (self.input, *self.outputs) if isinstance(module, nn.Linear)]
        return sum(2 * time * linear.in_features * linear.out_features for linear in maps)


class MinLayer(nn.Module):
    """One layer: the linear maps as one, rows in the order h~, z or h~, f, i.

    Args:
        input_size: F.
        hidden_size: E.
        cell: which of the two.
        candidate: form of h~.
        forget_bias: added to the first b_f, minLSTM only.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        cell: MinCell,
        candidate: Candidate,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.cell, self.candidate = cell, candidate
        self.maps = nn.Linear(input_size, PRODUCTS[cell] * hidden_size)
        if forget_bias:
            with torch.no_grad():
                self.maps.bias[hidden_size : 2 * hidden_size] += forget_bias

    def forward(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        """Map (B, T, F) to all h (B, T, E), from ``initial`` (B, E) or zero."""
        mapped = self.maps(x)
        candidate, *gates = at_least_float32(mapped).chunk(PRODUCTS[self.cell], dim=-1)
        if self.candidate == "positive":
            candidate = torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate))
        if self.cell == "min_gru":
            logit = -gates[0]  # of 1 - z
        else:
            f, i = gates
            logit = nnf.softplus(-i) - nnf.softplus(-f)  # log f - log i
        if initial is not None:
            initial = initial.to(candidate.dtype)
        h = linear_scan(torch.sigmoid(logit), torch.sigmoid(-logit) * candidate, initial)
        return h.to(mapped.dtype)
