r"""Transformer encoder with the normalisation before each sub-layer: the control without recurrence.

Source: Vaswani et al., "Attention Is All You Need", NIPS 2017, arXiv:1706.03762, Sections 3.1-3.5; layer norm before
the sub-layers as in Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020,
arXiv:2002.04745. With x_t = W u_t + b + p_t, D dropout and N layer normalisation, each of the layers computes

.. math::
    x &\leftarrow x + D(W_O [A_1; \dots; A_h]), \qquad
    A = \mathrm{softmax}\Big(\frac{Q K^\top}{\sqrt{d}}\Big) V, \quad [Q, K, V] = W_{QKV} N(x), \quad d = H / h \\
    x &\leftarrow x + D(W_2\,\phi(W_1 N(x)))

and a last N closes the stack. All maps have biases. Dropout also acts on x before the first layer and on the softmax.

Positions p: ``sinusoidal``, :math:`p_{t,2i} = \sin(t / 10000^{2i/H})` and
:math:`p_{t,2i+1} = \cos(t / 10000^{2i/H})` from t = 0; or ``learned``, a vector for each of ``max_length`` steps,
started from a normal of deviation 0.02 (as later encoders do).

``attention: full`` lets every step see every valid step of its sequence; ``causal`` only itself and those before.

Not established for pixel sequences, and what was chosen: the summary (``mean`` over the valid steps; ``last`` is an
option), :math:`\phi` (``relu``, the first paper's; ``gelu`` is an option), the starts (torch's for linear maps), no
scaling of the embedded input.

Deviations: none beyond these choices.

Cost: attention takes T^2 products a head, so time (and, without a fused kernel, memory) grows with the square of T.

Shapes: B batch, T time, F input features, H units, h heads.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import DataError
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full, mask_steps
from seqpyramid.models.blocks import Summary, summarize
from seqpyramid.models.heads import HeadInit

Positions = Literal["sinusoidal", "learned"]
AttentionReach = Literal["full", "causal"]
FeedForwardActivation = Literal["relu", "gelu"]

WAVELENGTHS = 10_000
"""Ratio of the longest to the shortest sinusoid."""
POSITION_STD = 0.02


class TransformerConfig(ModelConfig):
    """Pre-norm Transformer encoder."""

    summary_line: ClassVar[str] = (
        "Transformer encoder (Vaswani et al. 2017), pre-norm: quadratic in the length"
    )
    name: Literal["transformer"] = "transformer"
    hidden_size: int = Field(default=64, gt=0, description="H, units")
    layers: int = Field(default=4, gt=0, description="number of layers")
    heads: int = Field(default=4, gt=0, description="h, attention heads; H is a multiple of it")
    feedforward_size: int = Field(default=256, gt=0, description="units inside the second sub-layer")
    activation: FeedForwardActivation = Field(default="relu", description="phi, of the second sub-layer")
    attention: AttentionReach = Field(default="full", description="whether a step sees later ones")
    positions: Positions = Field(default="sinusoidal", description="p, how a step knows where it is")
    max_length: int | None = Field(
        default=None,
        gt=0,
        description="steps that have a learned position; none: the task's longest sequence",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on inputs, attention and branches")
    summary: Summary = Field(default="mean", description="mean over the valid steps, or the last one")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def causal(self) -> bool:
        """Only if attention is told so."""
        return self.attention == "causal"

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Check the heads, the positions, and options that could have no effect."""
        found = super().problems(spec)
        if self.hidden_size % self.heads:
            found["heads"] = (
                f"is {self.heads}, which does not divide hidden_size ({self.hidden_size}); choose one that does"
            )
        if self.positions == "sinusoidal" and self.max_length is not None:
            found["max_length"] = "has no effect with sinusoidal positions; leave it out"
        if self.positions == "learned":
            if self.max_length is None and spec.max_length is None:
                found["positions"] = (
                    "are learned, but the task does not know its longest sequence; set max_length"
                )
            elif self.max_length and spec.max_length and self.max_length < spec.max_length:
                found["max_length"] = (
                    f"is {self.max_length}, but the task's sequences have {spec.max_length} steps; raise it"
                )
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        fields = self.model_dump(exclude={"name", "max_length"})
        return Transformer(spec, **fields, max_length=self.max_length or spec.max_length)


class Transformer(SequenceModel):
    """Positions and a stack of :class:`TransformerLayer`; arguments as in :class:`TransformerConfig`."""

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        layers: int,
        heads: int,
        feedforward_size: int,
        activation: FeedForwardActivation,
        attention: AttentionReach,
        positions: Positions,
        max_length: int | None,
        dropout: float,
        summary: Summary,
        head_init: HeadInit,
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.attention: AttentionReach = attention
        self.summary: Summary = summary
        self.input = nn.Linear(spec.input_size, hidden_size)
        self.positions: nn.Parameter | None = None
        if positions == "learned":
            assert max_length is not None  # the config made sure
            self.positions = nn.Parameter(POSITION_STD * torch.randn(max_length, hidden_size))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                hidden_size,
                heads=heads,
                feedforward_size=feedforward_size,
                activation=activation,
                dropout=dropout,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the layers over all steps at once.

        Raises:
            DataError: a sequence has more steps than there are learned positions.
        """
        time = x.shape[1]
        x = self.input(x)
        x = self.dropout(x + self._positions(lengths, x))
        causal = self.attention == "causal"
        valid = None
        if not causal and not all_full(lengths, time):  # a causal step never sees the padding behind it
            valid = (torch.arange(time) < lengths[:, None]).to(x.device)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, valid, causal=causal)
        x = self.norm(x)
        steps = mask_steps(x, lengths) if self.spec.needs == "steps" else None
        return Encoding(summarize(x, lengths, self.summary), steps=steps)

    def _positions(self, lengths: Tensor, x: Tensor) -> Tensor:
        """Positions (T, H); padding past the learned positions gets the last one."""
        if self.positions is None:
            return sinusoids(x).to(x.dtype)
        known = len(self.positions)
        if int(lengths.max()) > known:
            raise DataError(
                f"a sequence has {int(lengths.max())} steps, but the transformer learned positions for {known}; raise "
                "max_length or choose sinusoidal positions"
            )
        return self.positions[torch.arange(x.shape[1], device=x.device).clamp(max=known - 1)]

    def encoder_flops(self, time: int) -> int:
        """Linear maps at every step, and the two products of attention over all pairs of steps.

        A causal mask does not lower the count: the products are counted whole, as PyTorch counts them.
        """
        total = 2 * time * self.input.in_features * self.input.out_features
        return total + sum(layer.flops(time) for layer in cast("list[TransformerLayer]", list(self.layers)))


class TransformerLayer(nn.Module):
    """Attention and feed-forward map, each on a normalised input and added to it.

    Args:
        hidden_size: H.
        heads: h.
        feedforward_size: units inside the second sub-layer.
        activation: phi.
        dropout: rate.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        heads: int,
        feedforward_size: int,
        activation: FeedForwardActivation,
        dropout: float,
    ) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.activation: Callable[[Tensor], Tensor] = torch.relu if activation == "relu" else nnf.gelu
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.attention_output = nn.Linear(hidden_size, hidden_size)
        self.feedforward_norm = nn.LayerNorm(hidden_size)
        self.widen = nn.Linear(hidden_size, feedforward_size)
        self.narrow = nn.Linear(feedforward_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor | None, *, causal: bool) -> Tensor:
        """Map (B, T, H) to (B, T, H); ``valid`` (B, 1, 1, T) says which steps may be seen."""
        x = x + self.dropout(self._attend(self.attention_norm(x), valid, causal=causal))
        inner = self.activation(self.widen(self.feedforward_norm(x)))
        result: Tensor = x + self.dropout(self.narrow(inner))
        return result

    def _attend(self, x: Tensor, valid: Tensor | None, *, causal: bool) -> Tensor:
        batch, time, units = x.shape
        qkv = self.query_key_value(x).view(batch, time, 3, self.heads, units // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, h, T, d)
        rate = self.rate if self.training else 0.0
        seen = nnf.scaled_dot_product_attention(q, k, v, attn_mask=valid, dropout_p=rate, is_causal=causal)
        result: Tensor = self.attention_output(seen.transpose(1, 2).reshape(batch, time, units))
        return result

    def flops(self, time: int) -> int:
        """FLOPs over ``time`` steps."""
        maps = (self.query_key_value, self.attention_output, self.widen, self.narrow)
        linear: int = sum(2 * time * m.in_features * m.out_features for m in maps)
        return linear + 2 * (2 * time * time * self.attention_output.in_features)


def sinusoids(x: Tensor) -> Tensor:
    """Positions (T, H) for inputs (B, T, H): sines at even units, cosines of the same wavelength at odd ones.

    >>> sinusoids(torch.zeros(1, 2, 2))[0].tolist()
    [0.0, 1.0]
    """
    _, time, units = x.shape
    t = torch.arange(time, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))[:, None]
    unit = torch.arange(units, device=x.device)
    angle = t / WAVELENGTHS ** ((unit - unit % 2).to(t.dtype) / units)
    return torch.where(unit % 2 == 0, torch.sin(angle), torch.cos(angle))
