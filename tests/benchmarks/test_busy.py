"""Busy processes are started for their blocks, and never outlive them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import busy
from benchmarks.busy import SPIN, Beside, beside_busy, busy_table, spinning
from seqpyramid.errors import ResourceError


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def soon(holds: Callable[[], bool]) -> bool:
    """Whether something comes true within some seconds."""
    for _ in range(200):
        if holds():
            return True
        time.sleep(0.05)
    return False


def test_processes_spin_inside_the_block_and_end_with_it() -> None:
    with spinning(2) as processes:
        assert len(set(processes)) == 2
        assert all(map(alive, processes))
        if Path("/proc/self/stat").exists():
            before = [ticks(process) for process in processes]
            assert soon(lambda: all(ticks(p) > b for p, b in zip(processes, before, strict=True)))
    assert not any(map(alive, processes))


def ticks(process: int) -> int:
    """CPU time that a process has used."""
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[11])


def test_processes_end_when_the_block_fails() -> None:
    seen: list[int] = []

    def fail() -> None:
        with spinning(1) as processes:
            seen.extend(processes)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(seen) == 1
    assert not alive(seen[0])


def test_those_that_started_end_when_another_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def one_only(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(start(*arguments, **options))  # type: ignore[call-overload]
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", one_only)
    with pytest.raises(ResourceError, match="--busy 2: the system starts no more processes"), spinning(2):
        pass
    assert started[0].returncode == -signal.SIGKILL


def test_processes_end_by_themselves_when_the_benchmark_is_killed() -> None:
    benchmark = (
        "import os, subprocess, sys; spin = [sys.executable, '-c', sys.argv[1], str(os.getpid())];"
        "print(subprocess.Popen(spin, stdout=subprocess.DEVNULL).pid, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", benchmark, SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        assert started.stdout is not None
        spinner = int(started.stdout.readline())
        time.sleep(0.2)  # it spins
        assert alive(spinner)
        started.kill()
    assert soon(lambda: not alive(spinner))


def test_quiet_and_busy_blocks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ["quiet"]

    class Spinning:
        def __init__(self, count: int) -> None:
            assert count == 3

        def __enter__(self) -> None:
            state[0] = "busy"

        def __exit__(self, *_: object) -> None:
            state[0] = "quiet"

    monkeypatch.setattr(busy, "spinning", Spinning)
    seen: list[str] = []
    found = beside_busy({"a": lambda: seen.append(state[0]), "b": lambda: None}, busy=3, rounds=22)
    # two steps to warm up, then 25 of each state, which is the next multiple of a block
    assert seen == ["quiet"] * 2 + (["quiet"] * 5 + ["busy"] * 5) * 5
    assert {name: (len(one.quiet), len(one.busy)) for name, one in found.items()} == {
        "a": (25, 25),
        "b": (25, 25),
    }


def test_twenty_steps_are_the_least() -> None:
    found = beside_busy({"a": lambda: None}, busy=1, rounds=1)
    assert len(found["a"].quiet) == len(found["a"].busy) == 20


def test_the_table_gives_the_median_and_the_worst() -> None:
    text = busy_table({"a": Beside(quiet=[0.1, 0.2, 0.1], busy=[0.4, 0.2, 1.5])})
    assert text.splitlines()[2] == "| a | 100.0 / 200.0 | 400.0 / 1,500.0 | 4.0 | 15.0 |"
