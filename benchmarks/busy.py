"""Training steps beside processes that keep the CPU busy, against the same steps on a quiet machine.

Blocks of rounds take turns, quiet and busy, so that both meet the same machine; the busy processes are started for
each busy block and stopped after it, whatever happens. A network whose threads meet at a barrier in every time step
waits there for whoever's thread the scheduler has put aside, which the worst step shows better than the median.

The steps should run on the threads that ``seqpyramid train`` chooses, :func:`benchmarks.candidates.on_threads`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from seqpyramid.analysis.speed import Step, take_rounds
from seqpyramid.errors import ResourceError

LEAST_STEPS = 20
"""Measured steps in each state: fewer say nothing about the worst."""

BLOCK = 5
"""Rounds between two changes of state."""

# A spinner ends by itself when the benchmark was killed and nobody can stop it.
SPIN = """
import os, sys
parent = int(sys.argv[1])
print("spinning", flush=True)
while os.getppid() == parent:
    sum(range(100_000))
"""


@dataclass
class Beside:
    """Seconds of one candidate's steps in both states."""

    quiet: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    @property
    def slowdown(self) -> float:
        """Median beside busy processes over median without."""
        return median(self.busy) / median(self.quiet)

    @property
    def worst(self) -> float:
        """Longest step beside busy processes over the quiet median."""
        return max(self.busy) / median(self.quiet)


@contextmanager
def spinning(count: int) -> Iterator[list[int]]:
    """Keep ``count`` processes spinning, each on one core, while the block runs; their process ids are given.

    Raises:
        ResourceError: the system starts no more processes.
    """
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            try:
                spinner = subprocess.Popen(
                    [sys.executable, "-c", SPIN, str(os.getpid())], stdout=subprocess.PIPE
                )
            except OSError as error:
                raise ResourceError(
                    f"--busy {count}: the system starts no more processes ({error.strerror}); ask for fewer"
                ) from None
            started.append(spinner)
        for spinner in started:
            assert spinner.stdout is not None  # it is a pipe
            spinner.stdout.readline()  # Python's start takes longer than a step
        yield [spinner.pid for spinner in started]
    finally:
        for spinner in started:
            spinner.kill()
        for spinner in started:
            spinner.communicate()


def beside_busy(steps: Mapping[str, Step], *, busy: int, rounds: int) -> dict[str, Beside]:
    """Measure steps on the CPU in blocks that are quiet and beside ``busy`` processes by turns.

    Args:
        steps: the candidates.
        busy: processes to start.
        rounds: in each state, rounded up to whole blocks, at least :data:`LEAST_STEPS`.

    Raises:
        ResourceError: the system starts no more processes.
    """
    found = {name: Beside() for name in steps}
    blocks = -(-max(rounds, LEAST_STEPS) // BLOCK)
    take_rounds(steps, 1, warmup=1)
    for _ in range(blocks):
        for name, seconds in take_rounds(steps, BLOCK, warmup=0).items():
            found[name].quiet += seconds
        with spinning(busy):
            for name, seconds in take_rounds(steps, BLOCK, warmup=0).items():
                found[name].busy += seconds
    return found


def busy_table(found: Mapping[str, Beside]) -> str:
    """Lay the two states out in Markdown, milliseconds a training step."""
    lines = [
        "| model | quiet, ms: median / worst | busy, ms: median / worst | slowdown | worst / quiet median |",
        "|---|---|---|---|---|",
    ]
    for name, beside in found.items():
        cells = [name]
        cells += [f"{_ms(median(s))} / {_ms(max(s))}" for s in (beside.quiet, beside.busy)]
        cells += [f"{beside.slowdown:.1f}", f"{beside.worst:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"
