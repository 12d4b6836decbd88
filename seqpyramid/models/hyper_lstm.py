r"""HyperLSTM: a small LSTM that rescales the weights of a large one at every step.

Source: Ha, Dai, Le, "HyperNetworks", ICLR 2017 (arXiv:1609.09106), the HyperLSTM of its appendix. For each gate
y of {i, f, g, o}:

.. math::
    \hat{x}_t &= [h_{t-1}; x_t], \qquad
    (\hat{h}_t, \hat{c}_t) = \mathrm{LSTM}(\hat{x}_t, \hat{h}_{t-1}, \hat{c}_{t-1}) \\
    z_h^y &= W_{\hat{h}h}^y \hat{h}_t + b_{\hat{h}h}^y, \qquad
    z_x^y = W_{\hat{h}x}^y \hat{h}_t + b_{\hat{h}x}^y, \qquad
    z_b^y = W_{\hat{h}b}^y \hat{h}_t \\
    y_t &= \mathrm{LN}\big(d_h^y(z_h^y) \odot W_h^y h_{t-1} + d_x^y(z_x^y) \odot W_x^y x_t + b^y(z_b^y)\big) \\
    d_h^y(z) &= W_{hz}^y z, \qquad d_x^y(z) = W_{xz}^y z, \qquad b^y(z) = W_{bz}^y z + b_0^y \\
    c_t &= \sigma(f_t) \odot c_{t-1} + \sigma(i_t) \odot \tanh(g_t), \qquad
    h_t = \sigma(o_t) \odot \tanh(\mathrm{LN}(c_t))

Without layer normalization (``layer_norm: false``) both LN are left out. The equations are from memory of the paper;
every one agrees with the authors' released cell (hardmaru/supercell), which settles what they leave open:

- LN is over the units of one gate, with gain 1 and shift 0 at the start, and 0.001 under the root; the small LSTM has
  LN of its own, with the usual place for an LSTM (each gate; c before tanh), and then no bias beside LN's shifts.
- Starts (``init: released``): W_hz and W_xz 0.1 / N_z, z_h and z_x constant 1 (weights 0, biases 1), so that d = 0.1
  at first; the weights of z_b normal of deviation 0.01, W_bz and b_0 0; W_h and the small LSTM's recurrent matrix
  orthogonal gate by gate; input matrices Glorot uniform over all four gates. **Consequence**: the small LSTM gets no
  gradient at the very first update, as all its ways out pass a zero matrix. ``init: torch`` starts every matrix as
  torch's own layers start (uniform in ±1/sqrt(H), ±1/sqrt(S), or ±1/sqrt(inputs) for the maps of z); the biases and
  LN start as released.
- The forget bias 1 is a constant added while running; here it is the start of the last shift before the gate (LN's,
  or b_0 without LN), which is the same function and the same training path.
- Recurrent dropout, where used, drops tanh(g) (Semeniuta et al. 2016), in the large LSTM only.

Parameter counts. With V one-hot inputs and a softmax over V characters, the layout above has 4,906,361 parameters for
H 1000, small LSTM 128, N_z 4, no LN, V 49, and 4,911,874 for V 50; the paper's Table 1 (Penn Treebank) prints 4.91M.
V 50 also gives its 4.25M, 12.26M (plain LSTMs), 4.92M (LN) and, with N_z 16 in both layers, 14.41M (two layers, LN).
Its 5.06M for N_z 16 in one layer comes out as 5.09M: not explained.

Speed: one clear step loop a layer; the products with x_t are hoisted out of it, and h_{t-1} is multiplied once for
both LSTMs.

Deviations: none known.

Shapes: B batch, T time steps, F input features, H hidden units, S units of the small LSTM, N embedding size, K layers.
"""

from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full, last_steps, mask_steps
from seqpyramid.models.cells import State
from seqpyramid.models.heads import HeadInit

HyperInit = Literal["released", "torch"]

FIRST_SCALE = 0.1
"""d_h and d_x before training."""
BIAS_EMBEDDING_DEVIATION = 0.01
"""Of the first W_hb."""
EPSILON = 1e-3
"""Under the root of layer normalization."""


class HyperLSTMConfig(ModelConfig):
    """HyperLSTM; the defaults are the released cell's."""

    summary_line: ClassVar[str] = (
        "HyperLSTM (Ha et al., ICLR 2017): a small LSTM rescales the weights of a large one"
    )
    name: Literal["hyper_lstm"] = "hyper_lstm"
    hidden_size: int = Field(default=100, gt=0, description="H, units of the large LSTM per layer")
    layers: int = Field(default=1, gt=0, description="K, number of stacked layers")
    hyper_size: int = Field(default=128, gt=0, description="S, units of the small LSTM")
    embedding_size: int = Field(
        default=4, gt=0, description="N_z, size of z; 16 is the paper's large embedding"
    )
    layer_norm: bool = Field(default=True, description="layer normalization in both LSTMs")
    forget_bias: float = Field(default=1.0, description="added to the first forget biases of both LSTMs")
    recurrent_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout of tanh(g) in the large LSTM"
    )
    init: HyperInit = Field(default="released", description="start of the weights")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def carries_state(self) -> bool:
        """Both LSTMs' states."""
        return True

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return HyperLSTM(spec, **self.model_dump(exclude={"name"}))


class HyperLSTM(SequenceModel):
    """K HyperLSTM layers, each on the states of the one below; arguments as in :class:`HyperLSTMConfig`."""

    step_loop = True

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        layers: int = 1,
        hyper_size: int,
        embedding_size: int,
        layer_norm: bool,
        forget_bias: float = 1.0,
        recurrent_dropout: float = 0.0,
        init: HyperInit = "released",
        head_init: HeadInit = "torch",
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.layers = nn.ModuleList(
            HyperLSTMLayer(
                spec.input_size if k == 0 else hidden_size,
                hidden_size,
                hyper_size=hyper_size,
                embedding_size=embedding_size,
                layer_norm=layer_norm,
                forget_bias=forget_bias,
                recurrent_dropout=recurrent_dropout,
                init=init,
            )
            for k in range(layers)
        )

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the layers; the state is one (h, c, small h, small c) a layer."""
        full = all_full(lengths, x.shape[1])
        carried: list[State] = []
        for k, layer in enumerate(self.layers):
            trace = layer(x, state[k] if state else None)
            if self.spec.carry_state:
                carried.append(
                    trace[-1]
                    if full
                    else tuple(
                        last_steps(torch.stack(part, dim=1), lengths) for part in zip(*trace, strict=True)
                    )
                )
            if k + 1 == len(self.layers) and full and self.spec.needs == "summary":
                return Encoding(trace[-1][0], state=carried or None)
            x = torch.stack([h for h, *_ in trace], dim=1)
        return Encoding(
            last_steps(x, lengths),
            steps=mask_steps(x, lengths) if self.spec.needs == "steps" else None,
            state=carried or None,
        )

    def encoder_flops(self, time: int) -> int:
        """Both LSTMs' gates and the maps to z and from z, in every layer and step."""
        return time * sum(layer.flops() for layer in cast("list[HyperLSTMLayer]", self.layers))


class Norm(nn.Module):
    """Layer normalization over the last axis, with a gain and a shift of their own shape.

    Args:
        shape: of gain and shift; broadcast against the input.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., H)."""
        return nnf.layer_norm(x, x.shape[-1:], eps=EPSILON) * self.gain + self.shift


class HyperLSTMLayer(nn.Module):
    """Both LSTMs of one layer. Gates come in torch's order i, f, g, o; the maps of z in the order h, x, b.

    Args:
        input_size: F.
        hidden_size: H.
        hyper_size: S.
        embedding_size: N.
        layer_norm: whether both LSTMs are normalized.
        forget_bias: start of both forget biases.
        recurrent_dropout: of tanh(g).
        init: see the module's docstring.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        hyper_size: int,
        embedding_size: int,
        layer_norm: bool,
        forget_bias: float = 1.0,
        recurrent_dropout: float = 0.0,
        init: HyperInit = "released",
    ) -> None:
        super().__init__()
        self.sizes = F, H, S, N = input_size, hidden_size, hyper_size, embedding_size
        self.weight_ih = nn.Parameter(torch.empty(4 * H, F))  # W_x
        self.weight_hh = nn.Parameter(torch.empty(4 * H, H))  # W_h
        self.bias = nn.Parameter(torch.zeros(4, 1, H))  # b_0
        self.hyper_weight_ih = nn.Parameter(torch.empty(4 * S, H + F))  # reads [h_{t-1}; x_t]
        self.hyper_weight_hh = nn.Parameter(torch.empty(4 * S, S))
        self.hyper_bias = None if layer_norm else nn.Parameter(torch.zeros(4 * S))
        self.embedding_weight = nn.Parameter(torch.empty(3, 4, N, S))  # from small h to z_h, z_x, z_b
        self.embedding_bias = nn.Parameter(torch.ones(2, 4, N))  # of z_h, z_x; z_b has none
        self.scale_weight = nn.Parameter(torch.empty(3, 4, H, N))  # W_hz, W_xz, W_bz
        self.gate_norm = Norm(4, 1, H) if layer_norm else None
        self.cell_norm = Norm(H) if layer_norm else None
        self.hyper_gate_norm = Norm(4, S) if layer_norm else None
        self.hyper_cell_norm = Norm(S) if layer_norm else None
        self.dropout = nn.Dropout(recurrent_dropout)
        self._start(init, forget_bias)

    @torch.no_grad()
    def _start(self, init: HyperInit, forget_bias: float) -> None:
        _, H, S, N = self.sizes
        if init == "torch":
            for weight, reads in (
                (self.weight_ih, H),
                (self.weight_hh, H),
                (self.hyper_weight_ih, S),
                (self.hyper_weight_hh, S),
                (self.embedding_weight, S),
                (self.scale_weight, N),
            ):
                nn.init.uniform_(weight, -(reads**-0.5), reads**-0.5)
        else:
            for weight in (self.weight_ih, self.hyper_weight_ih):
                nn.init.xavier_uniform_(weight)
            for weight in (self.weight_hh, self.hyper_weight_hh):
                for gate in weight.chunk(4):
                    nn.init.orthogonal_(gate)
            self.embedding_weight.zero_()
            nn.init.normal_(self.embedding_weight[2], std=BIAS_EMBEDDING_DEVIATION)
            self.scale_weight.fill_(FIRST_SCALE / N)
            self.scale_weight[2].zero_()
        if self.gate_norm is not None and self.hyper_gate_norm is not None:
            self.gate_norm.shift[1] += forget_bias
            self.hyper_gate_norm.shift[1] += forget_bias
        elif self.hyper_bias is not None:
            self.bias[1] += forget_bias
            self.hyper_bias[S : 2 * S] += forget_bias

    def forward(self, x: Tensor, state: State | None = None) -> list[State]:
        """Run (B, T, F); return (h, c, small h, small c) after every step."""
        _, H, S, N = self.sizes
        batch = len(x)
        if state is None:
            h, small_h = x.new_zeros(batch, H), x.new_zeros(batch, S)
            state = (h, h, small_h, small_h)
        h, c, small_h, small_c = state

        from_h, from_x = self.hyper_weight_ih[:, :H], self.hyper_weight_ih[:, H:]
        main_x = nnf.linear(x, self.weight_ih).unbind(1)
        small_x = nnf.linear(x, from_x, self.hyper_bias).unbind(1)
        reads_h = torch.cat(
            [self.weight_hh, from_h]
        ).T  # h meets W_h and the small LSTM's share in one product
        to_z = self.embedding_weight.view(12 * N, S).T
        z_bias = torch.cat([self.embedding_bias.view(-1), self.embedding_bias.new_zeros(4 * N)])
        from_z = self.scale_weight.view(12, H, N).transpose(1, 2)

        trace: list[State] = []
        for W_x, small in zip(main_x, small_x, strict=True):
            W_h = h @ reads_h
            small = torch.addmm(small + W_h[:, 4 * H :], small_h, self.hyper_weight_hh.T)
            gates = small.view(batch, 4, S)
            if self.hyper_gate_norm is not None:
                gates = self.hyper_gate_norm(gates)
            small_h, small_c = self._advance(gates.unbind(1), small_c, self.hyper_cell_norm)

            z = torch.addmm(z_bias, small_h, to_z).view(batch, 12, N).transpose(0, 1)
            d_h, d_x, b = torch.bmm(z, from_z).view(3, 4, batch, H).unbind(0)
            y = d_h * by_gate(W_h[:, : 4 * H]) + d_x * by_gate(W_x) + b + self.bias
            if self.gate_norm is not None:
                y = self.gate_norm(y)
            h, c = self._advance(y.unbind(0), c, self.cell_norm, self.dropout)
            trace.append((h, c, small_h, small_c))
        return trace

    @staticmethod
    def _advance(
        gates: tuple[Tensor, ...], c: Tensor, norm: nn.Module | None, dropout: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """LSTM step from the four gates (B, H): (h, c)."""
        i, f, g, o = gates
        candidate = torch.tanh(g)
        if dropout is not None:
            candidate = dropout(candidate)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * candidate
        return torch.sigmoid(o) * torch.tanh(c if norm is None else norm(c)), c

    def flops(self) -> int:
        """FLOPs of one step."""
        F, H, S, N = self.sizes
        small = 4 * S * (F + H + S)
        large = 4 * H * (F + H)
        return 2 * (small + large + 12 * N * (S + H))


def by_gate(gates: Tensor) -> Tensor:
    """Put the four gates in front: (B, 4 H) -> (4, B, H).

    >>> by_gate(torch.arange(4.0).reshape(1, 4)).shape
    torch.Size([4, 1, 1])
    """
    return gates.view(len(gates), 4, -1).transpose(0, 1)
