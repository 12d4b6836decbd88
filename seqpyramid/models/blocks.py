r"""What the models without a step loop share: the block around a map along time, and the summary of all steps.

The block is the one of the released S4 classifier (state-spaces/s4, ``example.py``) and of a public LRU
(NicolasZucchet/minimal-LRU), with M the map along time, D dropout and N layer normalisation:

.. math:: x \leftarrow N(x + D(\mathrm{GLU}(W D(\mathrm{GELU}(M(x))) + b))) \qquad \text{(post)}

or, with ``norm: pre``, M reads N(x) and the sum is left as it is. Both codes drop a unit at all steps of a sequence
together. A batch norm, which one of them has as an option, is left out: there, sequences look at their neighbours.

Shapes: B batch, T time, H units.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, last_steps, mask_steps
from seqpyramid.models.heads import HeadInit

NormPlace = Literal["pre", "post"]
Summary = Literal["mean", "last"]


class Mixer(nn.Module, ABC):
    """A map along time, M: (B, T, H) -> (B, T, H)."""

    @abstractmethod
    def forward(self, u: Tensor) -> Tensor:
        """Map (B, T, H) to (B, T, H)."""

    @abstractmethod
    def flops(self, time: int) -> int:
        """FLOPs of its matrix products over ``time`` steps."""


class GatedStackConfig(ModelConfig):
    """What every :class:`GatedStack` can be asked for."""

    norm: NormPlace = Field(default="post", description="layer norm before or after each block")
    final_norm: bool = Field(default=False, description="a layer norm after the last block")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout after GELU and GLU of each block")
    tied_dropout: bool = Field(default=True, description="drop a unit at all steps of a sequence together")
    summary: Summary = Field(default="mean", description="mean over the valid steps, or the last one")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse an option that could have no effect."""
        found = super().problems(spec)
        if not self.tied_dropout and not self.dropout:
            found["tied_dropout"] = "has no effect without dropout; leave it out or set dropout"
        return found


class GatedStack(SequenceModel):
    """A linear map, a block around each mixer, and one summary of all steps.

    Args:
        spec: the task's side of the contract.
        mixers: M of each block, from the bottom.
        hidden_size: H.
        norm: see :class:`GatedBlock`.
        final_norm: a layer norm after the last block.
        dropout: see :class:`GatedBlock`.
        tied_dropout: see :class:`GatedBlock`.
        summary: see :func:`summarize`.
        head_init: start of the classifier's weights.
    """

    def __init__(
        self,
        spec: TaskSpec,
        mixers: Sequence[Mixer],
        *,
        hidden_size: int,
        norm: NormPlace,
        final_norm: bool,
        dropout: float,
        tied_dropout: bool,
        summary: Summary,
        head_init: HeadInit,
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.summary: Summary = summary
        self.input = nn.Linear(spec.input_size, hidden_size)
        self.blocks = nn.ModuleList(
            GatedBlock(mixer, hidden_size, norm=norm, dropout=dropout, tied_dropout=tied_dropout)
            for mixer in mixers
        )
        self.norm = nn.LayerNorm(hidden_size) if final_norm else nn.Identity()

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the blocks over all steps at once."""
        x = self.input(x)
        for block in self.blocks:
            x = block(x, lengths)
        x = self.norm(x)
        steps = mask_steps(x, lengths) if self.spec.needs == "steps" else None
        return Encoding(summarize(x, lengths, self.summary), steps=steps)

    def encoder_flops(self, time: int) -> int:
        """Linear maps and the mixers' products."""
        blocks = sum(block.flops(time) for block in cast("list[GatedBlock]", list(self.blocks)))
        return 2 * time * self.input.in_features * self.input.out_features + blocks


class GatedBlock(nn.Module):
    """Residual block around a map along time.

    Args:
        mixer: M, (B, T, H) -> (B, T, H).
        hidden_size: H.
        norm: whether the block's input or its sum is normalised.
        dropout: rate, after the GELU and after the GLU.
        tied_dropout: drop a unit at all steps of a sequence or at none.
    """

    def __init__(
        self, mixer: Mixer, hidden_size: int, *, norm: NormPlace, dropout: float, tied_dropout: bool
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm_place, self.dropout, self.tied_dropout = norm, dropout, tied_dropout
        self.norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, 2 * hidden_size)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map (B, T, H) to (B, T, H)."""
        # A transform along all of time rounds every step together with the padding, so that must always be zero.
        y = mask_steps(self.norm(x) if self.norm_place == "pre" else x, lengths)
        y = self._drop(nnf.gelu(self.mixer(y)))
        y = x + self._drop(nnf.glu(self.output(y)))
        result: Tensor = y if self.norm_place == "pre" else self.norm(y)
        return result

    def _drop(self, x: Tensor) -> Tensor:
        if not self.tied_dropout:
            return nnf.dropout(x, self.dropout, self.training)
        kept = torch.ones_like(x[:, :1])
        return x * nnf.dropout(kept, self.dropout, self.training)

    def flops(self, time: int) -> int:
        """FLOPs of M and of the block's own product over ``time`` steps."""
        return self.mixer.flops(time) + 2 * time * self.output.in_features * self.output.out_features


def summarize(steps: Tensor, lengths: Tensor, how: Summary) -> Tensor:
    """Take the mean over each sequence's valid steps, or its last one: (B, T, H) -> (B, H).

    >>> summarize(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([2]), "mean")
    tensor([[2.]])
    """
    if how == "last":
        return last_steps(steps, lengths)
    counts = lengths.to(device=steps.device, dtype=steps.dtype)
    return mask_steps(steps, lengths).sum(1) / counts[:, None]
