r"""Zoneout LSTM: at every step some units keep their old value, at random.

Source: Krueger, Maharaj, Kramár, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville, Pal, "Zoneout: regularizing RNNs by
randomly preserving hidden activations", ICLR 2017, arXiv:1606.01305:

.. math::
    c_t &= d^c_t \odot c_{t-1} + (1 - d^c_t) \odot (f_t \odot c_{t-1} + i_t \odot g_t) \\
    h_t &= d^h_t \odot h_{t-1} + (1 - d^h_t) \odot o_t \odot \tanh(f_t \odot c_{t-1} + i_t \odot g_t)

with d^c_t ~ Bernoulli(z_c) and d^h_t ~ Bernoulli(z_h), drawn anew for every sequence, unit and step; outside training
both are replaced by their expectations z. Note that h_t reads the new cell before zoneout (equation and released code
agree). i, f, g, o are the LSTM's of :mod:`seqpyramid.models.cells`; parameters are the LSTM's.

What the released code settles for permuted MNIST: z_c = z_h = 0.15, orthogonal matrices, forget bias 1, learned h_0
and c_0. It also has a slip: the mask drawn for h is handed over for c as well. ``masks="shared"`` does the same, and
``separate`` is the equation; which of them the printed 93.1 % comes from is not established beyond that. The printed
42K parameters hold with zero (41,810) and with learned initial states (42,010).

Deviations: initial states are zero unless ``initial_state`` says ``learned``.

Speed: no fused layer has masks inside, so this is a step loop; only the input projections are hoisted out of it.

Shapes: B batch, T time, F input features, H hidden units.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import SequenceModel
from seqpyramid.models.cells import State
from seqpyramid.models.unrolled import LSTMInit, Step, UnrolledLSTM, UnrolledLSTMConfig, gates

Masks = Literal["separate", "shared"]


class ZoneoutLSTMConfig(UnrolledLSTMConfig):
    """Zoneout LSTM; the defaults are the paper's and its released code's for permuted MNIST."""

    summary_line: ClassVar[str] = (
        "Zoneout LSTM (Krueger et al., ICLR 2017): units keep their old value at random"
    )
    name: Literal["zoneout_lstm"] = "zoneout_lstm"
    zoneout_cell: float = Field(
        default=0.15, ge=0, lt=1, description="z_c, how often a unit of c keeps its value"
    )
    zoneout_hidden: float = Field(
        default=0.15, ge=0, lt=1, description="z_h, how often a unit of h keeps its value"
    )
    masks: Masks = Field(default="separate", description="one mask each for c and h, or one for both")
    forget_bias: float = Field(default=1.0, description="added to the first forget bias")
    init: LSTMInit = Field(default="orthogonal", description="start of the LSTM's weights")

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """One mask has one rate."""
        found = super().problems(spec)
        if self.masks == "shared" and self.zoneout_cell != self.zoneout_hidden:
            found["masks"] = (
                f"'shared' draws one mask for c and h, so zoneout_cell ({self.zoneout_cell}) and zoneout_hidden "
                f"({self.zoneout_hidden}) must be equal"
            )
        elif self.masks == "shared" and not self.zoneout_cell:
            found["masks"] = "has no effect when both zoneout rates are 0; leave it out"
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return ZoneoutLSTM(spec, **self.model_dump(exclude={"name"}))


class ZoneoutLSTM(UnrolledLSTM):
    """LSTM with zoneout; see :class:`ZoneoutLSTMConfig`.

    Args:
        spec: the task's side of the contract.
        zoneout_cell: z_c.
        zoneout_hidden: z_h.
        masks: whether c and h have a mask each.
        options: as in :class:`seqpyramid.models.unrolled.UnrolledLSTM`.
    """

    def __init__(
        self, spec: TaskSpec, *, zoneout_cell: float, zoneout_hidden: float, masks: Masks, **options: Any
    ) -> None:
        super().__init__(spec, **options)
        self.zoneout_cell, self.zoneout_hidden, self.masks = zoneout_cell, zoneout_hidden, masks

    def stepper(self, lengths: Tensor) -> Step:
        """Every step draws its own masks, c's before h's."""
        return self._step

    def _step(self, t: int, projected: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = gates(projected + self.cell.recur(h))
        new = f * c + i * g
        kept_c = self._kept(c, self.zoneout_cell)
        kept_h = kept_c if self.masks == "shared" else self._kept(h, self.zoneout_hidden)
        return mix(kept_h, h, o * torch.tanh(new)), mix(kept_c, c, new)

    def _kept(self, old: Tensor, rate: float) -> Tensor | float:
        """Which units keep their value (a mask, in training), or how much of it (the rate)."""
        return torch.empty_like(old).bernoulli_(rate) if self.training and rate else rate


def mix(kept: Tensor | float, old: Tensor, new: Tensor) -> Tensor:
    """Return ``kept`` of the old and the rest of the new; with a mask of 0 and 1, exactly one of the two.

    >>> mix(0.25, torch.tensor([4.0]), torch.tensor([8.0]))
    tensor([7.])
    """
    return kept * old + (1 - kept) * new
