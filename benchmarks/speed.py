"""Speed of a recipe's models relative to torch.nn.LSTM of 100 units, taken in turn in one process.

Example: python -m benchmarks.speed --batch 128 --time 784 --rounds 5 --models lstm_s tp_rnn_m
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from seqpyramid import kernels
from seqpyramid.analysis.memory import resident_peak, restart_peak
from seqpyramid.analysis.speed import (
    Ratio,
    ReferenceLSTM,
    Step,
    inference_step,
    ratios,
    synthetic_batch,
    training_step,
)
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import UserError
from seqpyramid.models.base import SequenceModel
from seqpyramid.recipe import load
from seqpyramid.train.launch import environment, pick_device, tune_process

DEFAULT_RECIPE = "pmnist"
DEFAULT_MODELS = ("lstm_s", "lstm_m", "tp_rnn_s", "tp_rnn_m")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    parameters: int
    train: Ratio
    inference: Ratio


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    options = _parser().parse_args(arguments)
    if not options.untuned:
        tune_process()
    try:
        device = pick_device(options.device)
        recipe = load(options.recipe)
        spec = recipe.task.build().spec
        torch.manual_seed(0)
        models = {row: recipe.plan(row).model.build(spec) for row in options.models}
        # First, because what it tries must not meet the benchmark's own buffers.
        print(header(device), flush=True)
        before = cpu_seconds()
        rows = compare(
            models,
            spec,
            batch_size=options.batch,
            time=options.time,
            rounds=options.rounds,
            device=device,
            twins=options.twins,
        )
        after = cpu_seconds()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    print(f"Recipe {options.recipe}: B={options.batch}, T={options.time}, float32, {options.rounds} rounds.")
    if before is not None and after is not None:
        others = (after.others - before.others) / (after.available - before.available)
        print(f"Other processes used {others:.0%} of the CPU meanwhile; above some 5% measure again.")
    print()
    print(table(rows, batch_size=options.batch))
    return 0


def compare(
    models: Mapping[str, SequenceModel],
    spec: TaskSpec,
    *,
    batch_size: int,
    time: int,
    rounds: int,
    device: torch.device,
    twins: bool = False,
) -> list[Row]:
    """Measure the reference and the models on one synthetic batch: training steps first, then inference.

    With ``twins`` every model is measured on its plain twin too, whatever kernels there are.
    """
    batch = synthetic_batch(spec, batch_size=batch_size, time=time, device=device)
    reference = f"torch.nn.LSTM({spec.input_size},{ReferenceLSTM.hidden_size})"
    stack = f"{reference}, three layers"
    everyone = {reference: ReferenceLSTM(spec), stack: ReferenceLSTM(spec, layers=3), **models}
    for model in everyone.values():
        model.to(device)
    training = {name: training_step(model, batch) for name, model in everyone.items()}
    if twins:
        training |= {f"{name}, plain": plain(training[name]) for name in models}
    train = ratios(training, reference, rounds, device=device)
    forward = {name: inference_step(model, batch) for name, model in everyone.items()}
    if twins:
        forward |= {f"{name}, plain": plain(forward[name]) for name in models}
    inference = ratios(forward, reference, rounds, device=device)
    return [
        Row(name, everyone[name.removesuffix(", plain")].parameter_count, train[name], inference[name])
        for name in training
    ]


def plain(step: Step) -> Step:
    """The same step on the plain twin."""

    def run() -> None:
        before = kernels.chosen()
        kernels.choose("plain")
        step()
        kernels.choose(before)

    return run


def table(rows: Sequence[Row], *, batch_size: int) -> str:
    """Lay the rows out in Markdown; a ratio is followed by its range over the rounds."""
    lines = [
        "| model | parameters | training, seq/s | x reference | inference, seq/s | x reference |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.name, f"{row.parameters:,}"]
        for ratio in (row.train, row.inference):
            cells.append(f"{batch_size / ratio.seconds.median:,.0f}")
            cells.append(f"{ratio.median:.2f} ({ratio.min:.2f}-{ratio.max:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def header(device: torch.device) -> str:
    """Say what the figures depend on. Allocator and denormals are tried, not taken from the options."""
    known = environment(device)
    return (
        f"{known['device_name']}, {os.cpu_count()} CPU cores, {known['platform']}; torch {known['torch']}, "
        f"{known['threads']} threads, kernels {known['kernels']}; freed buffers {freed_buffers()}, "
        f"denormals {denormals()}."
    )


class CPUSeconds(NamedTuple):
    """CPU time since the machine started, over all cores."""

    available: float
    others: float
    """Used by other processes than this one."""


def cpu_seconds() -> CPUSeconds | None:
    """Read the machine's clocks; None where there is no /proc/stat (not Linux)."""
    clocks = Path("/proc/stat")
    if not clocks.exists():
        return None
    # The first line counts ticks: user, nice, system, idle, iowait, irq, softirq, steal.
    ticks = [int(word) for word in clocks.read_text().split(maxsplit=9)[1:9]]
    available = sum(ticks) / os.sysconf("SC_CLK_TCK")
    idle = (ticks[3] + ticks[4]) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return CPUSeconds(available, available - idle - own.user - own.system)


def denormals() -> str:
    """Try whether a product too small for a normal float32 number survives."""
    survives = bool((torch.tensor([1e-38]) * torch.tensor([1e-3])).item())
    return "kept" if survives else "flushed to zero"


def freed_buffers() -> str:
    """Try where a freed buffer of 64 MB goes."""
    size = 64 * 2**20
    restart_peak()
    before = resident_peak()
    block = torch.ones(size // 4)
    filled = resident_peak()
    del block
    restart_peak()
    after = resident_peak()
    if filled - before < size // 2 or after > filled:
        return "not observable here"
    return "kept by the process" if after - before > size // 2 else "returned to the kernel"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="whose models (default: %(default)s)")
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(DEFAULT_MODELS),
        help=f"its rows (default: {' '.join(DEFAULT_MODELS)})",
    )
    parser.add_argument("--batch", type=int, default=128, help="B, sequences (default: %(default)s)")
    parser.add_argument("--time", type=int, default=784, help="T, steps of a sequence (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: %(default)s)")
    parser.add_argument("--twins", action="store_true", help="measure the plain twin of every model too")
    parser.add_argument(
        "--untuned",
        action="store_true",
        help="leave the allocator and denormal numbers as the system has them",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
