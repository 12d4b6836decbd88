"""Levels of an architecture, each with a library of compiled kernels of its own, and which of them a processor can run.

It needs nothing but Python: setup.py reads it too.
"""

import platform
from pathlib import Path

LEVELS: dict[str, dict[str, frozenset[str]]] = {
    "x86_64": {
        "x86_64_v4": frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma"}),
        "x86_64_v3": frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}),
        "x86_64": frozenset(),
    },
    "aarch64": {"aarch64": frozenset()},
}
"""Architecture -> levels, the best first -> flags of the processor that the level needs."""

NAMES = {"AMD64": "x86_64", "arm64": "aarch64"}
"""What other systems call the same architectures."""


def known_levels(machine: str) -> dict[str, frozenset[str]]:
    """Levels that there are for an architecture, the best first, and the flags that each needs.

    >>> known_levels("arm64"), known_levels("riscv64")
    ({'aarch64': frozenset()}, {})
    """
    return LEVELS.get(NAMES.get(machine, machine), {})


def runnable_levels(flags: frozenset[str], machine: str) -> list[str]:
    """Levels that a processor with some flags can run, the best first.

    >>> runnable_levels(frozenset(), "x86_64"), runnable_levels(frozenset(), "riscv64")
    (['x86_64'], [])
    """
    return [level for level, needed in known_levels(machine).items() if needed <= flags]


def worth_building(runnable: list[str]) -> list[str]:
    """Levels for a processor and its lesser neighbours in a cluster: all that it runs but the one for any processor at
    all, unless that is all there is.

    >>> worth_building(["x86_64_v4", "x86_64_v3", "x86_64"]), worth_building(["x86_64"])
    (['x86_64_v4', 'x86_64_v3'], ['x86_64'])
    """
    return runnable[:-1] or runnable


def processor_flags(description: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor says it can do; empty where the system does not tell."""
    try:
        lines = description.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split()) for line in lines if line.startswith("flags")), frozenset())


def levels_here() -> list[str]:
    """Levels that this processor can run, the best first."""
    return runnable_levels(processor_flags(), platform.machine())
