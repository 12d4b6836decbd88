r"""What the models without a step loop share: the block around a map along time, and the summary of all steps.

The block is the one of the released S4 classifier (state-spaces/s4, ``example.py``) and of a public LRU
(NicolasZucchet/minimal-LRU), with M the map along time, D dropout and N layer normalisation:

.. math:: x \leftarrow N(x + D(\mathrm{GLU}(W D(\mathrm{GELU}(M(x))) + b))) \qquad \text{(post)}

or, with ``norm: pre``, M reads N(x) and the sum is left as it is. Both codes drop a unit at all steps of a sequence
together. A batch norm, which one of them has as an option, is left out: there, sequences look at their neighbours.

Shapes: B batch, T time, H units.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.models.base import last_steps, mask_steps

NormPlace = Literal["pre", "post"]
Summary = Literal["mean", "last"]


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
        self, mixer: nn.Module, hidden_size: int, *, norm: NormPlace, dropout: float, tied_dropout: bool
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
        """FLOPs of the block's own product over ``time`` steps, M left out."""
        return 2 * time * self.output.in_features * self.output.out_features


def summarize(steps: Tensor, lengths: Tensor, how: Summary) -> Tensor:
    """Take the mean over each sequence's valid steps, or its last one: (B, T, H) -> (B, H).

    >>> summarize(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([2]), "mean")
    tensor([[2.]])
    """
    if how == "last":
        return last_steps(steps, lengths)
    counts = lengths.to(device=steps.device, dtype=steps.dtype)
    return mask_steps(steps, lengths).sum(1) / counts[:, None]
