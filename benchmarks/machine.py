"""What a figure depends on beside the code: processor, allocator, denormal numbers, and who else used the CPU."""

import os
from pathlib import Path
from typing import NamedTuple

import torch

from seqpyramid.analysis.memory import resident_peak, restart_peak
from seqpyramid.train.launch import environment


class CPUSeconds(NamedTuple):
    """CPU time since the machine started, over all cores."""

    available: float
    others: float
    """Used by processes that are not the benchmark's."""


def header(device: torch.device) -> str:
    """Say what the figures depend on. Allocator and denormals are tried, not taken from the options."""
    known = environment(device)
    return (
        f"{known['device_name']}, {os.cpu_count()} CPU cores, {known['platform']}; torch {known['torch']}, "
        f"{known['threads']} threads, kernels {known['kernels']}; freed buffers {freed_buffers()}, "
        f"denormals {denormals()}."
    )


def cpu_seconds(also: float = 0.0) -> CPUSeconds | None:
    """Read the machine's clocks; None where there is no /proc/stat (not Linux).

    Args:
        also: CPU seconds of the benchmark's processes that still run, which are not others' either.
    """
    clocks = Path("/proc/stat")
    if not clocks.exists():
        return None
    # The first line counts ticks: user, nice, system, idle, iowait, irq, softirq, steal.
    ticks = [int(word) for word in clocks.read_text().split(maxsplit=9)[1:9]]
    available = sum(ticks) / os.sysconf("SC_CLK_TCK")
    idle = (ticks[3] + ticks[4]) / os.sysconf("SC_CLK_TCK")
    # All that this process and its children that have ended used; the fifth number is the time on the wall.
    own = sum(os.times()[:4])
    return CPUSeconds(available, available - idle - own - also)


def share_of_others(before: CPUSeconds | None, after: CPUSeconds | None) -> str:
    """One sentence on what other processes used between two readings; empty where nothing is known."""
    if before is None or after is None or after.available <= before.available:
        return ""
    others = (after.others - before.others) / (after.available - before.available)
    return f"Other processes used {others:.0%} of the CPU meanwhile; above some 5% measure again."


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
