"""Everything that ``seqpyramid profile`` says of one recipe row, on synthetic data of the task's shape."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from seqpyramid import kernels
from seqpyramid.analysis.cost import count_parameters, flops
from seqpyramid.analysis.gradients import gradient_flow
from seqpyramid.analysis.kept import kept_bytes
from seqpyramid.analysis.memory import SyntheticBuild, memory_growth, peak_memory
from seqpyramid.analysis.speed import measure
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.kernels import library
from seqpyramid.models.base import use_threads
from seqpyramid.papers import lookup
from seqpyramid.recipe import RunPlan

GRADIENT_SEQUENCES = 4


def profile_row(
    plan: RunPlan,
    spec: TaskSpec,
    *,
    batch_size: int | None,
    length: int | None,
    repeats: int,
    device: torch.device,
    threads: int | None = None,
    with_gradients: bool = False,
) -> tuple[dict[str, Any], Tensor | None]:
    """Profile one row.

    Args:
        plan: the row.
        spec: of its task, prepared where that is needed to know it.
        batch_size: B; None takes the recipe's.
        length: T; None takes the task's longest sequence.
        repeats: timed steps.
        device: where to run.
        threads: CPU threads; None: as suits the model.
        with_gradients: also return the gradient norm at each time step, see :mod:`.gradients`.

    Raises:
        RecipeError: the task has no longest sequence, and no length was given.
    """
    time = length or spec.max_length
    if time is None:
        raise RecipeError(f"{plan.recipe}: the task has no longest sequence; give --length")
    batch_size = batch_size or plan.train.batch_size
    torch.manual_seed(plan.seed)
    model = plan.model.build(spec)
    use_threads(model, threads)
    parameters = count_parameters(model)
    counted = flops(model, time)
    speed = measure(model, spec, batch_size=batch_size, time=time, device=device, repeats=repeats)
    build = SyntheticBuild(config=plan.model, spec=spec, batch_size=batch_size, time=time)
    memory = peak_memory(build, device)
    kept = kept_bytes(build, device)
    printed = lookup(plan.paper.paper, plan.paper.table, plan.paper.column, plan.row) if plan.paper else None
    curve = gradient_flow(model, time=time, batch=GRADIENT_SEQUENCES) if with_gradients else None
    described: dict[str, Any] = {
        "recipe": plan.recipe,
        "row": plan.row,
        "model": plan.model.name,
        "batch_size": batch_size,
        "length": time,
        "parameters": parameters["total"],
        "parameters_by_part": parameters["by_part"],
        "parameters_printed": printed.parameters_printed if printed else None,
        "flops": {
            "forward": counted.closed_form,
            "counted": counted.counted,
            "agrees": counted.agrees,
            "training": counted.training,
        },
        "speed": asdict(speed),
        "memory": asdict(memory) | {"kept_bytes": kept, "kept_bytes_per_step": kept / (batch_size * time)},
        "recompute": _recomputation(build, device, memory.train_bytes, kept),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "kernel_threads": library.threads(),
    }
    return described, curve


def _recomputation(
    build: SyntheticBuild, device: torch.device, train_bytes: int, kept: int
) -> dict[str, Any] | None:
    """Say what a training step takes with recomputation and without; None where the row cannot have it here."""
    chosen = getattr(build.config, "recompute", None)
    if chosen is None or device.type != "cpu" or not kernels.ready():
        return None
    config = build.config.model_copy(update={"recompute": not chosen})
    if config.problems(build.spec):
        return None
    other = replace(build, config=config)
    here = {"train_bytes": train_bytes, "kept_bytes": kept}
    there = {
        "train_bytes": memory_growth(other, "train", device),
        "kept_bytes": kept_bytes(other, device),
    }
    return {"chosen": chosen, "with": here if chosen else there, "without": there if chosen else here}
