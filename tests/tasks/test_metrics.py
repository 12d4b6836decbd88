import math

import numpy as np
import pytest
import torch

from seqpyramid.contracts import Batch
from seqpyramid.tasks.metrics import (
    ClassificationMetrics,
    RegressionMetrics,
    cross_entropy,
    majority,
    squared_error,
)


def batch_of(y: torch.Tensor) -> Batch:
    return Batch(torch.zeros(len(y), 1, 1), torch.ones(len(y), dtype=torch.int64), y)


def test_classification_against_numpy() -> None:
    draw = np.random.default_rng(0)
    logits, y = draw.normal(size=(50, 4)), draw.integers(0, 4, 50)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(50), y]
    confusion = np.zeros((4, 4), dtype=int)
    for true, predicted in zip(y, logits.argmax(1), strict=True):
        confusion[true, predicted] += 1
    outputs, targets = torch.from_numpy(logits), torch.from_numpy(y)
    metrics = ClassificationMetrics(4)
    for o, t in zip(outputs.split(8), targets.split(8), strict=True):
        metrics.update(o, batch_of(t))
    assert metrics.compute() == pytest.approx(
        {"loss": losses.mean(), "accuracy": confusion.trace() / 50}, rel=1e-12
    )
    np.testing.assert_array_equal(metrics.confusion.numpy(), confusion)
    total, count = cross_entropy(outputs, targets)
    assert (total.item(), count.item()) == (pytest.approx(losses.sum(), rel=1e-12), 50)


def test_regression_against_numpy() -> None:
    draw = np.random.default_rng(0)
    outputs, y = draw.normal(size=(30, 1)), draw.normal(size=30)
    errors = (outputs[:, 0] - y) ** 2
    metrics = RegressionMetrics()
    for o, t in zip(torch.from_numpy(outputs).split(7), torch.from_numpy(y).split(7), strict=True):
        metrics.update(o, batch_of(t))
    assert metrics.compute() == pytest.approx({"loss": errors.mean(), "mse": errors.mean()}, rel=1e-12)
    total, count = squared_error(torch.from_numpy(outputs), torch.from_numpy(y))
    assert (total.item(), count.item()) == (pytest.approx(errors.sum(), rel=1e-12), 30)


def test_small_losses_are_not_lost_in_a_large_sum() -> None:
    """In single precision 2**24 + 1 is 2**24."""
    metrics = RegressionMetrics()
    metrics.update(torch.tensor([[4096.0]]), batch_of(torch.zeros(1)))
    for _ in range(9):
        metrics.update(torch.tensor([[1.0]]), batch_of(torch.zeros(1)))
    assert metrics.compute()["mse"] == (2**24 + 9) / 10


def test_no_gradient_is_kept() -> None:
    metrics = ClassificationMetrics(2)
    metrics.update(torch.zeros(3, 2, requires_grad=True), batch_of(torch.tensor([0, 1, 1])))
    assert not metrics.confusion.requires_grad
    assert metrics.compute()["loss"] == pytest.approx(math.log(2))


def test_majority() -> None:
    assert majority([5] * 10) == {"accuracy": 0.1, "loss": pytest.approx(math.log(10))}
    assert majority([3, 0]) == {"accuracy": 1.0, "loss": 0.0}
