"""Where the wall time of one epoch goes: forward, backward, optimiser, and by name what is around them.

The real training runs for one epoch of a recipe's row, on real data, with its validation, records, checkpoints and
progress, twice: untouched, on a clean clock, and with a stopwatch around the parts of a step. There is no profiler: the
stopwatch reads the clock at the ends of a part, and what that costs is the difference of the two wall times.

On a CUDA device the stopwatch waits for the device at both ends of a part and steps run kernel by kernel, so that
nothing overlaps; the untouched epoch overlaps what it can, and replays CUDA graphs.

Example: python -m benchmarks.epoch --recipe pmnist --model lstm_s --source FOLDER task.train_limit=10000
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import torch
from torch import Tensor

from seqpyramid.console import TrainingProgress
from seqpyramid.contracts import Batch, ModelOutput
from seqpyramid.errors import UserError
from seqpyramid.models.base import SequenceModel, use_threads
from seqpyramid.recipe import RunPlan, load
from seqpyramid.rundir import RunDir
from seqpyramid.tasks.base import DataPlace, Task
from seqpyramid.train.graphs import Measured
from seqpyramid.train.launch import StopRequests, environment, pick_device, tune_process
from seqpyramid.train.loop import Training
from seqpyramid.train.observe import Observer

WARMUP_STEPS = 10
"""Unmeasured steps before the first epoch: they fault in memory and fill caches."""

FORWARD, BACKWARD, OPTIMISER = "forward and loss", "backward", "optimiser"
INSIDE = (FORWARD, BACKWARD, OPTIMISER)
VALIDATION_FORWARD = "forward of the validation pass"
STEP_PARTS = (
    "gathering the batch",
    "zeroing gradients, adding up losses",
    "dividing, norm and clipping of gradients",
    "reading loss and norm",
    "learning rate and bookkeeping of the step",
)
GATHERING, ZEROING, CONDITIONING, READING, BOOKKEEPING = STEP_PARTS
AROUND = ("rest of the validation pass", "records", "checkpoints", "progress", "between the steps")
VALIDATION, RECORDS, CHECKPOINTS, PROGRESS, BETWEEN = AROUND


class Stopwatch:
    """Adds up seconds by name; what runs inside something else is taken out of it.

    Args:
        clock: tells seconds.
        settle: called before each look at the clock; waits for a device that works behind the host's back.
    """

    def __init__(
        self, clock: Callable[[], float] = perf_counter, settle: Callable[[], None] = lambda: None
    ) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock, self._settle = clock, settle
        self._running: list[str] = []
        self._since = 0.0

    def start(self, name: str) -> None:
        """What runs from now on counts under ``name``, until it stops."""
        self._look()
        self._running.append(name)

    def stop(self) -> None:
        """Go on with what was running before."""
        self._look()
        self._running.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside under ``name``."""
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def _look(self) -> None:
        self._settle()
        now = self._clock()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


class TimedTraining(Training):
    """The training loop with a stopwatch around its parts; same arguments, then the stopwatch."""

    def __init__(self, *arguments: Any, stopwatch: Stopwatch, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._watch = stopwatch
        self.model.register_forward_pre_hook(self._validation_starts)
        self.model.register_forward_hook(self._validation_stops)

    def _validation_starts(self, model: torch.nn.Module, inputs: object) -> None:
        if not model.training:
            self._watch.start(VALIDATION_FORWARD)

    def _validation_stops(self, model: torch.nn.Module, inputs: object, output: object) -> None:
        if not model.training:
            self._watch.stop()

    def fit(self, stop: StopRequests) -> Any:
        with self._watch.part(BETWEEN):
            return super().fit(stop)

    def _step(self, indices: Tensor, records: IO[str]) -> None:
        with self._watch.part(BOOKKEEPING):
            super()._step(indices, records)

    def _measure(self, parts: Iterable[Batch]) -> Measured:
        with self._watch.part(ZEROING):
            return super()._measure(parts)

    def _gather(self, indices: Tensor) -> Batch:
        with self._watch.part(GATHERING):
            return super()._gather(indices)

    def _forward(self, batch: Batch, state: Any) -> tuple[ModelOutput, Tensor, Tensor]:
        with self._watch.part(FORWARD):
            return super()._forward(batch, state)

    def _backward(self, loss: Tensor) -> None:
        with self._watch.part(BACKWARD):
            super()._backward(loss)

    def _condition(self, loss_sum: Tensor, count: Tensor) -> Tensor:
        with self._watch.part(CONDITIONING):
            return super()._condition(loss_sum, count)

    def _read(self, measured: Measured) -> tuple[float, float]:
        with self._watch.part(READING):
            return super()._read(measured)

    def _move(self) -> None:
        with self._watch.part(OPTIMISER):
            super()._move()

    def _validate(self, records: IO[str], stop: StopRequests) -> None:
        with self._watch.part(VALIDATION):
            super()._validate(records, stop)

    def _record_training(self, records: IO[str], rate: float) -> None:
        with self._watch.part(RECORDS):
            super()._record_training(records, rate)

    def _save(self, records: IO[str]) -> None:
        with self._watch.part(CHECKPOINTS):
            super()._save(records)


class TimedObserver(Observer):
    """Passes everything on to another observer, with a stopwatch around it."""

    def __init__(self, other: Observer, stopwatch: Stopwatch) -> None:
        self._other, self._watch = other, stopwatch

    def started(self, *, step: int, total_steps: int, steps_per_epoch: int) -> None:
        with self._watch.part(PROGRESS):
            self._other.started(step=step, total_steps=total_steps, steps_per_epoch=steps_per_epoch)

    def stepped(self, *, step: int, epoch: int, loss: float) -> None:
        with self._watch.part(PROGRESS):
            self._other.stepped(step=step, epoch=epoch, loss=loss)

    def recorded(self, record: dict[str, Any]) -> None:
        with self._watch.part(PROGRESS):
            self._other.recorded(record)


@dataclass(frozen=True)
class EpochProfile:
    """Seconds of one epoch."""

    parts: dict[str, float]
    """By name, as the stopwatch has them; what ran inside something else is not in it."""
    steps: int
    wall: float
    """Of the epoch with the stopwatch."""
    clean_wall: float
    """Of the same epoch without it."""

    @property
    def inside(self) -> float:
        """Forward, backward and optimiser of the training steps."""
        return sum(self.parts.get(name, 0.0) for name in INSIDE)

    @property
    def share_of_steps(self) -> float:
        """Of the time of the training steps, validation and checkpoints left out."""
        return self.inside / (self.inside + sum(self.parts.get(name, 0.0) for name in STEP_PARTS))

    @property
    def share_of_epoch(self) -> float:
        """Of the wall time of the whole epoch, where the validation's forward pass counts as one."""
        return (self.inside + self.parts.get(VALIDATION_FORWARD, 0.0)) / self.wall


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    options = _parser().parse_args(arguments)
    tune_process(options.kernels)
    try:
        device = pick_device(options.device)
        recipe = load(
            options.recipe, overrides=(*options.overrides, "train.max_steps=null", "train.epochs=1")
        )
        plan = recipe.plan(options.model or recipe.model)
        task = plan.task.build()
        task.prepare(DataPlace(options.data_dir, options.source, offline=True))
        profile = profile_epoch(plan, task, device, threads=options.threads)
        known = environment(device)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    print(
        f"{options.recipe} {plan.row}, batches of {plan.train.batch_size}, {profile.steps} steps; "
        f"{known['device_name']}; torch {known['torch']}, {known['threads']} threads, "
        f"kernels {known['kernels']}.\n"
    )
    print(table(profile))
    print()
    print(summary(profile))
    return 0


def profile_epoch(plan: RunPlan, task: Task, device: torch.device, *, threads: int | None) -> EpochProfile:
    """Run one epoch on a clean clock, then again with a stopwatch, from the same start.

    Args:
        plan: whose training ends after one epoch.
        task: prepared.
        device: where to train.
        threads: CPU threads; None: as suits the model.
    """
    short = plan.train.model_copy(update={"max_steps": WARMUP_STEPS})
    _epoch(replace(plan, train=short), task, device, threads)
    clean_wall, _ = _epoch(plan, task, device, threads)
    stopwatch = Stopwatch()
    if device.type != "cpu":
        stopwatch = Stopwatch(settle=lambda: torch.accelerator.synchronize(device))
        plan = replace(plan, train=plan.train.model_copy(update={"cuda_graphs": "off"}))
    wall, steps = _epoch(plan, task, device, threads, stopwatch)
    return EpochProfile(dict(stopwatch.seconds), steps, wall, clean_wall)


def _epoch(
    plan: RunPlan, task: Task, device: torch.device, threads: int | None, stopwatch: Stopwatch | None = None
) -> tuple[float, int]:
    """Train as ``seqpyramid train`` does; return wall seconds and steps."""
    torch.manual_seed(plan.seed)
    model: SequenceModel = plan.model.build(task.spec)
    use_threads(model, threads)
    progress = TrainingProgress(plan.row, task.selection.metric)
    with tempfile.TemporaryDirectory() as folder, StopRequests() as stop:
        run = RunDir(Path(folder))
        here = environment(device)
        if stopwatch is None:
            training = Training(plan, run, model, task, device=device, observer=progress, environment=here)
        else:
            observer = TimedObserver(progress, stopwatch)
            training = TimedTraining(
                plan,
                run,
                model,
                task,
                device=device,
                observer=observer,
                environment=here,
                stopwatch=stopwatch,
            )
        start = perf_counter()
        try:
            standing = training.fit(stop)
        finally:
            progress.close()
        return perf_counter() - start, standing.step


def table(profile: EpochProfile) -> str:
    """Lay out in Markdown where the seconds went; the largest of what is not inside comes first."""
    rest = [name for name in profile.parts if name not in (*INSIDE, VALIDATION_FORWARD)]
    rest.sort(key=lambda name: -profile.parts[name])
    lines = ["| part of the epoch | seconds | share of wall time | ms a step |", "|---|---|---|---|"]
    for name in (*INSIDE, VALIDATION_FORWARD, *rest):
        seconds = profile.parts.get(name, 0.0)
        a_step = f"{1e3 * seconds / profile.steps:.3f}" if name in (*INSIDE, *STEP_PARTS) else ""
        lines.append(f"| {name} | {seconds:.3f} | {seconds / profile.wall:.2%} | {a_step} |")
    lines.append(f"| whole epoch | {profile.wall:.3f} | 100% | |")
    return "\n".join(lines)


def summary(profile: EpochProfile) -> str:
    """Say how much is inside, and what the stopwatch costs."""
    return (
        f"Inside forward, backward and optimiser: {profile.share_of_steps:.1%} of the training steps' time; "
        f"with the validation's forward pass {profile.share_of_epoch:.1%} of the epoch.\n"
        f"The same epoch without the stopwatch: {profile.clean_wall:.3f} s, "
        f"{profile.clean_wall / profile.wall:.1%} of the time with it."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.epoch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", default="pmnist", help="file or bundled name (default: %(default)s)")
    parser.add_argument("--model", help="its row (default: the recipe's)")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path.home() / ".cache" / "seqpyramid",
        help="where caches live (default: %(default)s)",
    )
    parser.add_argument("--source", type=Path, help="folder with your own copy of the data")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as suits the model)")
    parser.add_argument("--kernels", default="auto", help="plain, fused or auto (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as task.train_limit=10000")
    return parser


if __name__ == "__main__":
    sys.exit(main())
