"""Losses and metrics of the two kinds of tasks, as sums and counts.

Sums are float64 and counts int64, on the device of the outputs: adding single-precision losses one batch at a time
would make the mean depend on how the split was cut, and reading a sum would make every batch wait for the device.

Shapes: B batch, K classes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from seqpyramid.contracts import Batch
from seqpyramid.data.loading import IGNORED
from seqpyramid.tasks.base import Metrics


def cross_entropy(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross entropies in nats and the number of targets.

    Args:
        outputs: (B, K) logits.
        y: (B,) classes, int64.
    """
    return F.cross_entropy(_at_least_single(outputs), y, reduction="sum"), _count(outputs, y)


def squared_error(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the squared errors and the number of targets.

    Args:
        outputs: (B, 1) predictions.
        y: (B,) targets, floating.
    """
    return (_at_least_single(outputs).squeeze(-1) - y).square().sum(), _count(outputs, y)


def symbol_cross_entropy(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross entropies in nats over the scored steps, and how many these are.

    Args:
        outputs: (B, T, K) logits.
        y: (B, T) symbols, int64; :data:`~seqpyramid.data.loading.IGNORED` where a step is not scored.
    """
    losses = F.cross_entropy(
        _at_least_single(outputs).flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return losses, (y != IGNORED).sum()


class SymbolMetrics(Metrics):
    """Mean loss, bits a symbol and accuracy of one answer among K symbols at every step."""

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor] | None = None  # loss, and scored and right steps

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Add one batch of (B, T, K) logits; steps whose target is :data:`IGNORED` do not count."""
        outputs = outputs.detach()
        if self._sums is None:
            self._sums = (
                torch.zeros((), dtype=torch.float64, device=outputs.device),
                torch.zeros(2, dtype=torch.int64, device=outputs.device),
            )
        loss, counts = self._sums
        losses = F.cross_entropy(
            _at_least_single(outputs).flatten(0, 1), batch.y.flatten(), ignore_index=IGNORED, reduction="none"
        )
        loss += losses.sum(dtype=torch.float64)
        counts += torch.stack([(batch.y != IGNORED).sum(), (outputs.argmax(dim=-1) == batch.y).sum()])

    def compute(self) -> dict[str, float]:
        """Return ``loss`` (nats a symbol), ``bpc`` (the same in bits) and ``accuracy`` (a fraction).

        Raises:
            ValueError: no batch was added.
        """
        if self._sums is None:
            raise ValueError("no batch was added")
        loss, scored, right = torch.cat([self._sums[0][None], self._sums[1].double()]).tolist()
        return {"loss": loss / scored, "bpc": loss / scored / math.log(2), "accuracy": right / scored}


class ClassificationMetrics(Metrics):
    """Mean loss, accuracy and confusion matrix of single-label classification into K classes."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._sums: tuple[Tensor, Tensor] | None = None  # loss and flat confusion matrix

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Add one batch of (B, K) logits."""
        outputs = outputs.detach()
        if self._sums is None:
            self._sums = (
                torch.zeros((), dtype=torch.float64, device=outputs.device),
                torch.zeros(self._classes**2, dtype=torch.int64, device=outputs.device),
            )
        loss, confusion = self._sums
        losses = F.cross_entropy(_at_least_single(outputs), batch.y, reduction="none")
        loss += losses.sum(dtype=torch.float64)
        cells = batch.y * self._classes + outputs.argmax(dim=-1)
        confusion.index_add_(0, cells, torch.ones_like(cells))  # bincount would wait for the device

    @property
    def confusion(self) -> Tensor:
        """(K, K) counts, int64: rows are the true classes, columns the predicted ones."""
        return self._added()[1].view(self._classes, self._classes)

    def compute(self) -> dict[str, float]:
        """Return ``loss`` (nats) and ``accuracy`` (a fraction).

        Raises:
            ValueError: no batch was added.
        """
        total, confusion = self._added()[0], self.confusion
        # counts below 2**53 are exact in float64, so all three travel in one copy
        sums = torch.stack([total, confusion.diagonal().sum().double(), confusion.sum().double()])
        loss, correct, count = sums.tolist()
        return {"loss": loss / count, "accuracy": correct / count}

    def _added(self) -> tuple[Tensor, Tensor]:
        if self._sums is None:
            raise ValueError("no batch was added")
        return self._sums


class RegressionMetrics(Metrics):
    """Mean squared error of one number a sequence, under the names ``loss`` and ``mse``."""

    def __init__(self) -> None:
        self._error: Tensor | None = None
        self._count = 0

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Add one batch of (B, 1) predictions."""
        errors = (_at_least_single(outputs.detach()).squeeze(-1) - batch.y).square()
        if self._error is None:
            self._error = torch.zeros((), dtype=torch.float64, device=outputs.device)
        self._error += errors.sum(dtype=torch.float64)
        self._count += len(errors)

    def compute(self) -> dict[str, float]:
        """Return ``loss`` and ``mse``, which are the same number.

        Raises:
            ValueError: no batch was added.
        """
        if self._error is None:
            raise ValueError("no batch was added")
        mse = self._error.item() / self._count
        return {"loss": mse, "mse": mse}


def majority(class_counts: Sequence[int]) -> dict[str, float]:
    """Score the best constant answers on a split whose classes occur so often; both are exact.

    ``accuracy`` is the share of the commonest class, reached by always naming it. ``loss`` is the entropy of the
    classes in nats, reached by always answering their frequencies, and is ln K where all are equally frequent.

    >>> majority([1, 1, 2]) == {"accuracy": 0.5, "loss": 1.5 * math.log(2)}
    True
    """
    total = sum(class_counts)
    shares = [count / total for count in class_counts if count]
    return {"accuracy": max(shares), "loss": -math.fsum(share * math.log(share) for share in shares)}


def _at_least_single(outputs: Tensor) -> Tensor:
    """Half precision has too few digits for a sum over a batch."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


def _count(outputs: Tensor, y: Tensor) -> Tensor:
    return torch.full((), y.numel(), dtype=torch.int64, device=outputs.device)
