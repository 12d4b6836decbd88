"""The process that trains: its device, threads, memory, floating point, and the signals that end it."""

import ctypes
import platform
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import torch

import seqpyramid
from seqpyramid.errors import RecipeError, StoppedError
from seqpyramid.kernels import Mode, choose, library, ready

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 is what clusters can be asked to send before a time limit."""


def tune_process(kernels: Mode = "auto") -> None:
    """Set up kernels, floating point and memory; call it once, before the first tensor operation.

    - Denormal numbers become zero. Gradients of a long plain RNN underflow towards the first steps, and processors
      that handle denormals in microcode take ten times longer for an LSTM's backward pass then. No result moves
      by more than 1e-38.
    - ``kernels``: whether models run their compiled twins, see :mod:`seqpyramid.kernels`.
    - glibc keeps freed buffers. By default it returns every large one to the kernel, and more than half of an
      LSTM's training step on a CPU is spent in faulting the pages in again.
    """
    choose(kernels)
    torch.set_flush_denormal(True)
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in (
            (-3, 1 << 30),
            (-1, 2**31 - 1),
            (-2, 64 << 20),
        ):  # mmap and trim threshold, pad
            libc.mallopt(parameter, value)


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is the first CUDA device, else the CPU.

    Raises:
        RecipeError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RecipeError(
            f"--device {name}: there is no such device here; try --device auto or --device cpu"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"--device {name}: only cpu and cuda are supported")
    return device


def environment(device: torch.device) -> dict[str, Any]:
    """Describe what a run's bytes depend on: versions, machine, threads."""
    described: dict[str, Any] = {
        "seqpyramid": seqpyramid.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a plain str, or a checkpoint would not load
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "kernels": _kernels(),
        "platform": platform.platform(),
        "flush_denormal": (torch.tensor(1e-30) * 1e-10).item() == 0.0,
    }
    return described


def _kernels() -> str:
    if not ready():
        return "plain"
    tiles = ", products on AMX" if library.tiles() else ""
    return f"compiled, vectors of {library.vector_bytes()} bytes{tiles}, {library.threads()} threads"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 (a device file)
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class StopRequests:
    """Records a stop signal so that the loop can save and leave at a step's end; a second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def error(self, saved: str) -> StoppedError:
        """The exception that ends the command after ``saved`` was written."""
        number = self.signal_number or signal.SIGTERM
        name = signal.Signals(number).name
        return StoppedError(
            number, f"stopped by {name}; saved {saved}; the same command again continues from here"
        )


Stop = Callable[[], bool]
"""Asked between batches: has a stop been requested?"""
