"""What a cache of recordings costs beyond decoding and resampling them, in time and in memory.

Example: python -m benchmarks.audio_cache --source fsdd --files 2000 --rounds 5
"""

import argparse
import functools
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import soundfile
import soxr

from seqpyramid.data.audio import AUDIO_SUFFIXES
from seqpyramid.data.corpus import Item, build_corpus, listing_fingerprint
from seqpyramid.data.features import MfccFeatures, RawFeatures, read_features
from seqpyramid.errors import UserError

Extractor = RawFeatures | MfccFeatures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        files = found(options.source)[: options.files]
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPU cores; {len(files)} files, "
            f"{sum(file.stat().st_size for file in files) / 2**20:.1f} MB; {options.rounds} rounds.\n"
        )
        costs = measure(files, sample_rate=options.sample_rate, rounds=options.rounds)
        print(table(costs), flush=True)
        print()
        print(memory_table(files, sample_rate=options.sample_rate))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


def found(source: Path) -> list[Path]:
    """Recordings anywhere below ``source``, in a fixed order."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise UserError(
            f"{source}: holds no {', '.join(sorted(AUDIO_SUFFIXES))} files; name another --source"
        )
    return files


def decode_alone(files: Sequence[Path], sample_rate: int) -> None:
    """What nobody can save: the libraries' own work, file after file, nothing kept and nothing checked."""
    for file in files:
        samples, rate = soundfile.read(file, dtype="float32")
        soxr.resample(samples, rate, sample_rate, quality="VHQ")


def extract_alone(files: Sequence[Path], features: Extractor) -> None:
    """Decode, check and extract; nothing kept."""
    for file in files:
        read_features(file, features=features, channel="only")


def build(files: Sequence[Path], features: Extractor, workers: int) -> None:
    """Build a cache in a folder of its own and throw it away."""
    items = [Item(str(file), file) for file in files]
    extract = functools.partial(read_features, features=features, channel="only")
    with tempfile.TemporaryDirectory() as folder:
        build_corpus(Path(folder) / "corpus.h5", listing_fingerprint(items), items, extract, workers=workers)


class Cost(NamedTuple):
    """Of one run, in seconds."""

    wall: float
    cpu: float
    """Of this process and its workers: what a busy machine moves least."""


def measure(files: Sequence[Path], *, sample_rate: int, rounds: int) -> dict[str, list[Cost]]:
    """Cost of each candidate in each round; they take turns, after one unmeasured round."""
    raw, mfcc = RawFeatures(sample_rate=sample_rate), MfccFeatures()
    candidates: dict[str, Callable[[], None]] = {
        "decode and resample alone": lambda: decode_alone(files, sample_rate),
        "raw: build, workers=1": lambda: build(files, raw, 1),
        "raw: build, workers=2": lambda: build(files, raw, 2),
        "mfcc: extract alone": lambda: extract_alone(files, mfcc),
        "mfcc: build, workers=1": lambda: build(files, mfcc, 1),
        "mfcc: build, workers=2": lambda: build(files, mfcc, 2),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in candidates}
    for measured in range(rounds + 1):
        for name, run in candidates.items():
            wall, cpu = time.perf_counter(), sum(os.times()[:4])
            run()
            if measured:
                costs[name].append(Cost(time.perf_counter() - wall, sum(os.times()[:4]) - cpu))
    return costs


def table(costs: dict[str, list[Cost]]) -> str:
    """Lay the costs out in Markdown; a ratio is taken within a round, and followed by its range."""
    lines = ["| | seconds | x alone | CPU seconds | x alone |", "|---|---|---|---|---|"]
    reference: list[Cost] = []
    for name, own in costs.items():
        reference = own if name.endswith("alone") else reference
        cells = [name]
        for kind in (0, 1):
            ratios = [one[kind] / other[kind] for one, other in zip(own, reference, strict=True)]
            cells.append(f"{statistics.median(one[kind] for one in own):.2f}")
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def memory_table(files: Sequence[Path], *, sample_rate: int) -> str:
    """Peak memory of a process that builds from a quarter of the files, and of one that builds from all."""
    features = RawFeatures(sample_rate=sample_rate)
    quarter = files[: max(1, len(files) // 4)]
    lines = ["| files | peak memory of the building process, MB |", "|---|---|"]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for some in (quarter, files):
            lines.append(f"| {len(some)} | {pool.apply(peak_of_build, (some, features)) / 2**20:.1f} |")
    return "\n".join(lines)


def peak_of_build(files: Sequence[Path], features: Extractor) -> int:
    """Build in this process; return its peak in bytes."""
    build(files, features, 1)
    # Not ru_maxrss, which a process inherits from the one that started it; not seqpyramid.analysis.memory, because
    # the workers would load torch with it.
    status = Path("/proc/self/status")
    if not status.exists():
        raise UserError("the peak memory of a process can be read on Linux only")
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audio_cache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", type=Path, required=True, help="folder of recordings of one channel")
    parser.add_argument("--files", type=int, default=None, help="take the first n only")
    parser.add_argument(
        "--sample-rate", type=int, default=1000, help="Hz of raw speech (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
