"""One pass over a split: metrics as sums and counts, and predictions where they are asked for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqpyramid.contracts import Batch
from seqpyramid.data.loading import Dataset
from seqpyramid.models.base import SequenceModel
from seqpyramid.tasks.base import Task
from seqpyramid.train.launch import Stop


class StopEvaluation(Exception):  # noqa: N818 (control flow, not an error)
    """A stop was requested in the middle of a pass."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass found."""

    metrics: dict[str, float]
    outputs: Tensor | None
    """(N, ...) outputs of the head on the CPU, in the split's order; only if collected."""
    targets: Tensor | None


def evaluate(
    model: SequenceModel,
    task: Task,
    dataset: Dataset,
    *,
    device: torch.device,
    batch_size: int,
    precision: str = "fp32",
    collect: bool = False,
    stop: Stop = lambda: False,
) -> Evaluation:
    """Run the model once over a dataset, in order.

    Raises:
        StopEvaluation: ``stop()`` came true between two batches.
    """
    was_training = model.training
    model.eval()
    metrics = task.metrics()
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    state = None
    try:
        with torch.inference_mode(), autocast(device, precision):
            for indices in dataset.plan(batch_size, seed=0, epoch=0, shuffle=False):
                if stop():
                    raise StopEvaluation
                batch = to_device(dataset.batch(indices), device)
                result = task.run(model, batch, state)
                state = result.state
                metrics.update(result.outputs, batch)
                if collect:  # on the device until the end: a copy would wait for it at every batch
                    outputs.append(result.outputs.float())
                    targets.append(batch.y)
    finally:
        model.train(was_training)
    return Evaluation(
        metrics=metrics.compute(),
        outputs=torch.cat(outputs).cpu() if collect else None,
        targets=torch.cat(targets).cpu() if collect else None,
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move inputs and targets; lengths stay on the CPU, where reading them never waits."""
    return Batch(batch.x.to(device, non_blocking=True), batch.lengths, batch.y.to(device, non_blocking=True))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which matrix products run in bfloat16, where the recipe says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
