"""Parameters and FLOPs of a model.

FLOPs are those of matrix products, two a multiply-add, the way PyTorch's own counter counts them. A model
states them in closed form (:meth:`~seqpyramid.models.base.SequenceModel.flops`); here that statement is held
against a count of the operators that really run.

Shapes: B batch, T time steps, F input features.
"""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from seqpyramid.models.base import SequenceModel

TRAINING_FACTOR = 3
"""Forward passes that a training step costs, by the usual estimate: the backward pass forms two products (for
the inputs and for the weights) where the forward pass forms one."""


class ParameterCount(TypedDict):
    """Trainable numbers of a module."""

    total: int
    by_part: dict[str, int]
    """Child of the module (or its own parameter) -> trainable numbers; parts without any are left out."""


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """FLOPs of one forward pass over one sequence."""

    closed_form: int
    """What the model states."""
    counted: int | None
    """What PyTorch's counter saw; None where the model branches on values, so that it cannot run without."""

    @property
    def agrees(self) -> bool:
        """Whether both are known and the same number."""
        return self.counted == self.closed_form

    @property
    def training(self) -> int:
        """Estimate for one training step over one sequence: ``TRAINING_FACTOR`` forward passes."""
        return TRAINING_FACTOR * self.closed_form


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count trainable numbers, in all and by top-level part; a shared one counts once, in its first part.

    >>> count_parameters(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    {'total': 13, 'by_part': {'0': 9, '2': 4}}
    """
    by_part: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_part[name.partition(".")[0]] += parameter.numel()
    return {"total": by_part.total(), "by_part": dict(by_part)}


def flops(model: SequenceModel, time: int) -> FlopCount:
    """Hold the model's closed form against a count over one sequence of ``time`` steps.

    The count runs on a copy without values (the ``meta`` device), so it takes neither memory nor arithmetic.
    It must not run on the CPU: there ``nn.LSTM`` is one fused operator that the counter takes for free.

    Raises:
        DataError: ``time`` is below 1.
    """
    meta = torch.device("meta")
    x = torch.zeros(1, max(time, 0), model.spec.input_size, device=meta)
    counter = FlopCounterMode(display=False)
    counted: int | None
    try:
        with torch.no_grad(), counter:
            copy.deepcopy(model).to(meta)(x, torch.full((1,), time))
        counted = counter.get_total_flops()
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        counted = None
    return FlopCount(closed_form=model.flops(time), counted=counted)
