"""Time and memory of a step against the length, the hidden size, the batch and the threads.

Example: python -m benchmarks.scaling --models tp_rnn_m --axes time memory --picture scaling.svg

A step's work is in proportion to T and to B, so time over T and over B, and memory over T, should be straight lines,
and the figure a step and row constant; over H the products grow with its square, so there the rate of arithmetic is
what should stay. A layer's L and g of a TP-RNN do not depend on T: they stay the recipe's at every length.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from seqpyramid.analysis.memory import peak_memory
from seqpyramid.analysis.speed import ReferenceLSTM, synthetic_batch
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.base import ALL_THREADS, ModelConfig, SequenceModel
from seqpyramid.recipe import load
from seqpyramid.train.launch import pick_device

from . import command
from .candidates import Candidate, Setting, candidate, configured, on_threads
from .curves import AXES, Axis, Curve, Point, curve_table
from .machine import cpu_seconds, header, share_of_others
from .picture import check_picture, draw
from .rounds import measure

DEFAULT_MODELS = ("tp_rnn_m",)


@dataclass(frozen=True)
class Subject:
    """A model whose size can be chosen, or torch.nn.LSTM where there is no config."""

    name: str
    config: ModelConfig | None = None

    def build(self, spec: TaskSpec) -> SequenceModel:
        """Build it with the same start every time.

        Raises:
            RecipeError: it cannot serve the task.
        """
        torch.manual_seed(0)
        return ReferenceLSTM(spec) if self.config is None else self.config.build(spec)

    def sized(self, hidden: int) -> "Subject":
        """The same model with ``hidden`` units in each layer.

        Raises:
            RecipeError: the model has no such size.
        """
        for field in ("hidden_size", "hidden_sizes"):
            size = getattr(self.config, field, None)
            if self.config is not None and size is not None:
                sizes = (hidden,) * len(size) if isinstance(size, tuple) else hidden
                return Subject(self.name, self.config.model_copy(update={field: sizes}))
        raise RecipeError(f"{self.name} has no hidden size to choose; leave it out, or the axis hidden")


@dataclass(frozen=True)
class Build:
    """What :func:`seqpyramid.analysis.memory.peak_memory` calls in a process of its own."""

    subject: Subject
    setting: Setting

    def __call__(self) -> tuple[SequenceModel, Tensor, Tensor, Tensor]:
        """Build the model and draw the batch."""
        at = self.setting
        batch = synthetic_batch(at.spec, batch_size=at.batch_size, time=at.time)
        return self.subject.build(at.spec), batch.x, batch.lengths, batch.y


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and draw; return the exit code."""
    return command.print_report(report(_parser().parse_args(arguments)))


def report(options: argparse.Namespace) -> Iterator[str]:
    """Measure the axes asked for, and give the report in Markdown, an axis at a time.

    Raises:
        UserError: an option is wrong, or the picture cannot be written.
    """
    device = pick_device(options.device)
    if device.type != "cpu" and "threads" in options.axes:
        raise RecipeError(
            "--axes threads is about the CPU; name the other axes, or measure with --device cpu"
        )
    if options.picture is not None:
        check_picture(options.picture)
    recipe = load(options.recipe)
    # The recipe's own longest sequence is no bound here.
    spec = replace(recipe.task.build().spec, max_length=None)
    setting = Setting(spec=spec, batch_size=options.batch, time=options.time, device=device)
    long = replace(setting, batch_size=options.long_batch)
    subjects = [
        Subject(setting.reference),
        *(Subject(row, configured(recipe, row)) for row in options.models),
    ]
    if "hidden" in options.axes:
        for subject in subjects[1:]:
            subject.sized(1)  # refused now or after minutes
    yield header(device)
    yield (
        f"Recipe {options.recipe}, float32, {options.rounds} rounds of all points of an axis in turn. T and memory: "
        f"B={options.long_batch}; H and threads: B={options.batch}; H, B and threads: T={options.time}."
    )
    curves = []
    before = cpu_seconds()
    for axis in options.axes:
        if axis == "memory":
            found = [memory_curve(subject, options.times, long) for subject in subjects]
        else:
            found = time_curves(axis, subjects, _points(axis, options, long, setting), rounds=options.rounds)
        curves += found
        for curve in found:
            compared = found[0].model == setting.reference != curve.model
            yield f"\n{curve_table(curve, found[0] if compared else None)}"
    yield f"\n{share_of_others(before, cpu_seconds())}"
    if options.picture is not None:
        draw(curves, options.picture)
        yield f"The curves are drawn in {options.picture}."


def time_curves(
    axis: Axis, subjects: Sequence[Subject], points: Sequence[tuple[int, Setting]], *, rounds: int
) -> list[Curve]:
    """Time training and inference steps of all subjects at all points of one axis, all of them in turn.

    The reference has one size, so it has no curve over H.

    Raises:
        RecipeError: a model cannot be built with the task, or has no size to choose.
    """
    if axis == "hidden":
        subjects = [subject for subject in subjects if subject.config is not None]
    everyone: dict[tuple[str, int], Candidate] = {}
    for subject in subjects:
        for x, at in points:
            sized = subject.sized(x) if axis == "hidden" else subject
            one = candidate(f"{subject.name} at {x}", sized.build(at.spec), at)
            everyone[subject.name, x] = on_threads(one, x if axis == "threads" else None)
    measured = measure(list(everyone.values()), rounds=rounds, device=points[0][1].device)
    return [
        Curve(
            subject.name,
            axis,
            [
                Point(
                    x=x,
                    rows=at.batch_size * at.time,
                    training=measured.training[one.name],
                    inference=measured.inference[one.name],
                    training_flops=(one.training_flops or 0) * at.batch_size,
                )
                for x, at in points
                for one in [everyone[subject.name, x]]
            ],
        )
        for subject in subjects
    ]


def memory_curve(subject: Subject, times: Sequence[int], at: Setting) -> Curve:
    """Growth of memory in one step at every length, on the CPU each in a process of its own.

    Raises:
        ResourceError: a step needs more memory than there is.
    """
    points = []
    for time in times:
        found = peak_memory(Build(subject, replace(at, time=time)), at.device)
        points.append(
            Point(
                x=time,
                rows=at.batch_size * time,
                training=[float(found.train_bytes)],
                inference=[float(found.inference_bytes)],
            )
        )
    return Curve(subject.name, "memory", points)


def _points(axis: Axis, options: argparse.Namespace, long: Setting, at: Setting) -> list[tuple[int, Setting]]:
    if axis == "time":
        return [(time, replace(long, time=time)) for time in options.times]
    if axis == "batch":
        return [(batch, replace(at, batch_size=batch)) for batch in options.batches]
    return [(x, at) for x in (options.hidden if axis == "hidden" else options.threads)]


def _parser() -> argparse.ArgumentParser:
    parser = command.command_parser("scaling", __doc__)
    command.add_recipe_and_device(parser)
    command.add_models(parser, DEFAULT_MODELS, "its rows, beside torch.nn.LSTM")
    parser.add_argument(
        "--axes", nargs="+", choices=AXES, default=list(AXES), help="what to measure against (default: all)"
    )
    numbers: dict[str, tuple[list[int], str]] = {
        "times": ([784, 1568, 3136, 6272, 12544, 30000], "T of the axes time and memory"),
        "hidden": ([20, 50, 100, 200, 300, 512], "H of the axis hidden"),
        "batches": ([1, 2, 4, 8, 16, 32, 64, 128, 256, 512], "B of the axis batch"),
        "threads": (powers_up_to(ALL_THREADS), "threads of the axis threads"),
    }
    for name, (default, what) in numbers.items():
        parser.add_argument(
            f"--{name}", nargs="+", type=command.positive, default=default, metavar="N", help=what
        )
    command.add_numbers(
        parser,
        batch=(128, "B of the axes hidden and threads"),
        long_batch=(16, "B of the axes time and memory, where long sequences need it small"),
        time=(784, "T of the axes hidden, batch and threads"),
        rounds=(5, "measured rounds"),
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves too: .svg or .png")
    return parser


def powers_up_to(most: int) -> list[int]:
    """1, 2, 4 ... and the number itself.

    >>> powers_up_to(6)
    [1, 2, 4, 6]
    """
    return [*(2**k for k in range((most - 1).bit_length())), most]


if __name__ == "__main__":
    sys.exit(main())
