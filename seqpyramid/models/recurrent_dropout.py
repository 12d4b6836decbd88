r"""LSTM with recurrent dropout: only what is written into the cell is dropped, never the cell itself.

Source: Semeniuta, Severyn, Barth, "Recurrent dropout without memory loss", COLING 2016, arXiv:1603.05118v2:

.. math::
    c_t = f_t \odot c_{t-1} + i_t \odot d(g_t), \qquad h_t = o_t \odot \tanh(c_t)

where d zeroes units with probability p; i, f, g, o are the LSTM's of :mod:`seqpyramid.models.cells`, and so are the
parameters.

Not established, as the paper was not at hand; hence options:

- ``scaling``. ``test``: d(g) = mask * g in training and (1 - p) g outside, the usual form of the time and, as
  remembered, the paper's (default). ``training``: mask * g / (1 - p) in training and g outside. The two differ in more
  than a factor, because g is bounded.
- ``mask``. ``per_step`` draws a mask for every step, ``per_sequence`` one for all steps of a sequence; the paper
  compares both and, by its summaries, recommends the first (default). A sequence that continues over batches gets a new
  one in each.
- ``rate``. 0.25 by default, the rate at which the authors of Zoneout (arXiv:1606.01305) ran it on characters.
- the start of the weights: torch's, without an addition to the forget bias.

Deviations: none known beyond these.

Speed: no fused layer has a mask inside, so this is a step loop; only the input projections are hoisted out of it.

Shapes: B batch, T time, F input features, H hidden units.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import SequenceModel
from seqpyramid.models.cells import State
from seqpyramid.models.unrolled import Step, UnrolledLSTM, UnrolledLSTMConfig, gates

MaskSpan = Literal["per_step", "per_sequence"]
Scaling = Literal["test", "training"]


class RecurrentDropoutLSTMConfig(UnrolledLSTMConfig):
    """LSTM with dropout of the cell's new content."""

    summary_line: ClassVar[str] = (
        "Recurrent-dropout LSTM (Semeniuta et al., COLING 2016): drops what is written into the cell"
    )
    name: Literal["recurrent_dropout_lstm"] = "recurrent_dropout_lstm"
    rate: float = Field(default=0.25, ge=0, lt=1, description="p, how often a unit of g is dropped")
    mask: MaskSpan = Field(default="per_step", description="how long one mask holds")
    scaling: Scaling = Field(default="test", description="where the rate is made up for")

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse options that could have no effect."""
        found = super().problems(spec)
        for field in ("mask", "scaling"):
            if not self.rate and field in self.model_fields_set:
                found[field] = "has no effect when rate is 0; leave it out"
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return RecurrentDropoutLSTM(spec, **self.model_dump(exclude={"name"}))


class RecurrentDropoutLSTM(UnrolledLSTM):
    """LSTM with recurrent dropout; see :class:`RecurrentDropoutLSTMConfig`.

    Args:
        spec: the task's side of the contract.
        rate: p.
        mask: how long one mask holds.
        scaling: where the rate is made up for.
        options: as in :class:`seqpyramid.models.unrolled.UnrolledLSTM`.
    """

    def __init__(
        self, spec: TaskSpec, *, rate: float, mask: MaskSpan, scaling: Scaling, **options: Any
    ) -> None:
        super().__init__(spec, **options)
        self.rate, self.mask, self.scaling = rate, mask, scaling

    def stepper(self, lengths: Tensor) -> Step:
        """One step; a mask for all of them is drawn here."""
        held = self._factor(len(lengths)) if self.mask == "per_sequence" else None

        def step(t: int, projected: Tensor, state: State) -> State:
            h, c = state
            i, f, g, o = gates(projected + self.cell.recur(h))
            c = f * c + i * ((self._factor(len(h)) if held is None else held) * g)
            return o * torch.tanh(c), c

        return step

    def _factor(self, batch: int) -> Tensor | float:
        """What g is multiplied by: a mask in training, a number outside."""
        kept = 1 - self.rate
        if not (self.training and self.rate):
            return kept if self.scaling == "test" else 1.0
        mask = self.cell.weight_hh.new_empty(batch, self.cell.hidden_size).bernoulli_(kept)
        return mask if self.scaling == "test" else mask / kept
