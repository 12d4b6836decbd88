"""Memory of a training step, public implementations beside a recipe's rows, each in a process of its own.

Example: python -m benchmarks.public.memory --recipe dilated_pmnist --models dilated_lstm_50 \
           --public DilatedRNN-LSTM=DilatedRNN

What is reported is the growth of resident memory during the first training step over what was held just before it, as
in :mod:`seqpyramid.analysis.memory`, and before that the growth while the model was built: a graph of unrolled steps
is large before it ever runs. What is imported for it is in the latter figure too, some 350 MiB where that is
TensorFlow. The allocator is the system's own.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import NamedTuple

import torch

from benchmarks.candidates import Candidate, Setting, on_threads, references, rows
from benchmarks.command import add_models, add_numbers, command_parser, print_report
from benchmarks.machine import header
from benchmarks.public import add_public, public_candidates
from seqpyramid.analysis.memory import resident_peak, restart_peak
from seqpyramid.analysis.speed import ReferenceLSTM, synthetic_batch, training_step
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import ResourceError
from seqpyramid.recipe import load

DEFAULT_MODELS = ("tp_rnn_s", "tp_rnn_m")

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where candidates come from: an adapter, a recipe's row, or torch.nn.LSTM where there is neither."""

    setting: Setting
    recipe: str
    row: str = ""
    public: str = ""

    def __call__(self) -> list[Candidate]:
        """Make them ready to run.

        Raises:
            RecipeError: they are not there or cannot be built.
        """
        torch.manual_seed(0)
        if self.public:
            return public_candidates([self.public], self.setting)
        if self.row:
            return [on_threads(one) for one in rows(load(self.recipe), [self.row], self.setting)]
        return references(self.setting)[:1]


class Growth(NamedTuple):
    """Growth of a process's resident memory, in bytes."""

    name: str
    """Of the candidate."""
    others: int
    """Candidates of the same source that come after it."""
    built: int
    """From the imported benchmark to the candidate, ready to run."""
    step: int
    """From there to the peak of its first training step."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    return print_report(report(_parser().parse_args(arguments)), tuned=False)


def report(options: argparse.Namespace) -> Iterator[str]:
    """Measure what the options ask for, and give the report in Markdown, a line at a time.

    Raises:
        UserError: an option is wrong, or there is not memory enough.
    """
    recipe = load(options.recipe)
    setting = Setting(spec=recipe.task.build().spec, batch_size=options.batch, time=options.time, device=CPU)
    sources = [
        Source(setting=setting, recipe=options.recipe),
        *(Source(setting=setting, recipe=options.recipe, row=row) for row in options.models),
        *(Source(setting=setting, recipe=options.recipe, public=text) for text in options.public),
    ]
    yield header(CPU)
    yield f"Recipe {options.recipe}: B={options.batch}, T={options.time}, float32; MiB.\n"
    yield "| model | built | first training step | both | step, x reference |\n|---|---|---|---|---|"
    reference: Growth | None = None
    for source in sources:
        for found in growths(source):
            reference = reference or found
            yield line(found, reference)


def growths(source: Source) -> Iterator[Growth]:
    """Measure all candidates of a source, each in a process of its own.

    Raises:
        UserError: the source cannot be built.
        ResourceError: the machine has not memory enough.
    """
    index, others = 0, 1
    while others:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            try:
                found = process.submit(growth, source, index).result()
            except BrokenProcessPool:
                raise ResourceError(
                    f"the process measuring {source.public or source.row or 'the reference'} ended early, which "
                    "is how Linux ends one when memory runs out; choose a smaller --batch or --time"
                ) from None
        yield found
        index, others = index + 1, found.others


def growth(source: Source, index: int) -> Growth:
    """Measure one candidate of a source here, in a fresh process.

    Raises:
        UserError: the source cannot be built.
    """
    # A process's first step reads parts of PyTorch's libraries into memory; let a tiny one pay for that.
    tiny = TaskSpec(input_size=1, outputs=2)
    training_step(ReferenceLSTM(tiny), synthetic_batch(tiny, batch_size=2, time=2))()
    imported = held()
    candidates = source()
    built = held()
    candidates[index].training()
    return Growth(
        name=candidates[index].name,
        others=len(candidates) - index - 1,
        built=built - imported,
        step=resident_peak() - built,
    )


def held() -> int:
    """Resident memory now, in bytes, from which the peak starts again; on systems that cannot, the peak so far."""
    restart_peak()
    return resident_peak()


def line(found: Growth, reference: Growth) -> str:
    """One line of the table.

    >>> line(Growth("m", 0, 2**20, 2**22), Growth("r", 0, 0, 2**23))
    '| m | 1 | 4 | 5 | 0.50 |'
    """
    numbers = (found.built, found.step, found.built + found.step)
    mib = " | ".join(f"{number / 2**20:,.0f}" for number in numbers)
    return f"| {found.name} | {mib} | {found.step / reference.step:.2f} |"


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("public.memory", __doc__)
    parser.add_argument("--recipe", default="pmnist", help="whose models (default: %(default)s)")
    add_models(parser, DEFAULT_MODELS, "its rows, beside torch.nn.LSTM")
    add_numbers(parser, batch=(128, "B, sequences"), time=(784, "T, steps of a sequence"))
    add_public(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
