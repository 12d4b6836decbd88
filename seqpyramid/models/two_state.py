"""The loop that coRNN and LEM share: two states y and z, of which y is read.

A clear loop over steps (``step_loop``), the input projections hoisted out of it.

Shapes: B batch, T time, H units, P projected inputs of one step.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, SequenceModel, last_steps, mask_steps
from seqpyramid.models.heads import HeadInit


class TwoStateModel(SequenceModel):
    """One layer with states y and z, each (B, H); the state carried on is (y, z).

    Args:
        spec: the task's side of the contract.
        hidden_size: H.
        head_init: start of the classifier's weights.
    """

    step_loop = True

    def __init__(self, spec: TaskSpec, *, hidden_size: int, head_init: HeadInit) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.hidden_size = hidden_size

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Map the inputs of all steps at once: (B, T, F) -> (B, T, P)."""

    @abstractmethod
    def step(self, projected: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Advance (y, z) by one step from projected inputs (B, P)."""

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run all steps."""
        projected = self.project(x)
        y, z = state if state else 2 * [projected.new_zeros(len(x), self.hidden_size)]
        ys, zs = [], []
        for now in projected.unbind(1):
            y, z = self.step(now, y, z)
            ys.append(y)
            if self.spec.carry_state:
                zs.append(z)
        all_y = torch.stack(ys, dim=1)
        steps = mask_steps(all_y, lengths) if self.spec.needs == "steps" else None
        summary = last_steps(all_y, lengths)
        carried = (summary, last_steps(torch.stack(zs, dim=1), lengths)) if self.spec.carry_state else None
        return Encoding(summary, steps=steps, state=carried)
