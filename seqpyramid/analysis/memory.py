"""Peak memory of one training step and of one inference step.

What is reported is the growth during a step over what was held just before it: activations, and for training
the gradients and Adam's state; the weights and the batch itself are not in it.

On CUDA PyTorch's allocator knows the peak. On the CPU only the operating system does, by the high-water mark
of a process's resident memory, so each step runs in a fresh process: memory that an earlier step left with
the C library would be used again and hide the growth. ``ru_maxrss`` alone would not do: on Linux a process may
start from the mark of the one that started it. /proc has the mark of this process alone, and can set it back.
What libraries load on first use is in the figure too: a few megabytes on the CPU say nothing.
"""

import contextlib
import multiprocessing
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from seqpyramid import kernels
from seqpyramid.analysis.speed import ReferenceLSTM, Step, inference_step, synthetic_batch, training_step
from seqpyramid.contracts import Batch, TaskSpec
from seqpyramid.errors import ResourceError, UserError
from seqpyramid.kernels import library
from seqpyramid.models.base import ModelConfig, SequenceModel

Build = Callable[[], tuple[SequenceModel, Tensor, Tensor, Tensor]]
"""Returns (model, x, lengths, y); must survive pickling to be called in another process."""

Kind = Literal["train", "inference"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc_pid_clear_refs(5)


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """Growth of memory during one step."""

    train_bytes: int
    inference_bytes: int


@dataclass(frozen=True, kw_only=True)
class SyntheticBuild:
    """A :data:`Build` of a model from its config, with a synthetic batch."""

    config: ModelConfig
    spec: TaskSpec
    batch_size: int
    time: int

    def __call__(self) -> tuple[SequenceModel, Tensor, Tensor, Tensor]:
        """Build the model and draw the batch."""
        batch = synthetic_batch(self.spec, batch_size=self.batch_size, time=self.time)
        return self.config.build(self.spec), batch.x, batch.lengths, batch.y


def peak_memory(build: Build, device: torch.device) -> MemoryReport:
    """Measure what one training step and one inference step add to the memory in use.

    On the CPU the main module of the program is imported again by the processes started here, so a script
    needs the usual ``if __name__ == "__main__":``.

    Raises:
        UserError: ``build`` raised it.
        ResourceError: a step needs more memory than the machine or the device has.
    """
    return MemoryReport(
        train_bytes=memory_growth(build, "train", device),
        inference_bytes=memory_growth(build, "inference", device),
    )


def memory_growth(build: Build, kind: Kind, device: torch.device) -> int:
    """Measure what one step of one kind adds, in bytes; see :func:`peak_memory`."""
    grow = _growth_in_fresh_process if device.type == "cpu" else _growth_on_cuda
    return grow(build, kind, device)


def resident_peak() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def restart_peak() -> None:
    """Set this process's peak back to the memory it holds now, on systems that can; elsewhere it stays."""
    if _CLEAR.exists():
        with contextlib.suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)


def _growth_in_fresh_process(build: Build, kind: Kind, device: torch.device) -> int:
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    with receiver:
        process = spawn.Process(target=_send_growth, args=(build, kind, _surroundings(), sender))
        process.start()
        sender.close()  # so that a process that dies ends the wait
        try:
            answer: int | UserError = receiver.recv()
        except EOFError:
            answer = -1
        process.join()
    if isinstance(answer, UserError):
        raise answer
    if process.exitcode == -signal.SIGKILL:  # how Linux ends a process when memory runs out
        raise _too_large(kind, device)
    if process.exitcode != 0:
        raise RuntimeError(
            f"the process measuring one {kind} step ended with {process.exitcode}; see its output"
        )
    return answer


def _surroundings() -> tuple[kernels.Mode, int, int]:
    """What a process here runs on, and a fresh one must be told: kernels, their threads, torch's threads."""
    return kernels.chosen(), library.threads(), torch.get_num_threads()


def _send_growth(
    build: Build, kind: Kind, surroundings: tuple[kernels.Mode, int, int], sender: Connection
) -> None:
    mode, kernel_threads, torch_threads = surroundings
    kernels.choose(mode)
    library.use_threads(kernel_threads)
    torch.set_num_threads(torch_threads)
    try:
        sender.send(_growth_on_cpu(build, kind))
    except UserError as error:
        sender.send(error)


def _growth_on_cpu(build: Build, kind: Kind) -> int:
    # A process's first step reads parts of PyTorch's libraries into memory; let a tiny one pay for that.
    tiny = TaskSpec(input_size=1, outputs=2)
    _step(kind, ReferenceLSTM(tiny), synthetic_batch(tiny, batch_size=2, time=2))()
    model, x, lengths, y = build()
    step = _step(kind, model, Batch(x, lengths, y))
    restart_peak()
    before = resident_peak()
    try:
        step()
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # there is no class of its own for this on the CPU
            raise
        raise _too_large(kind, torch.device("cpu")) from None
    return resident_peak() - before


def _growth_on_cuda(build: Build, kind: Kind, device: torch.device) -> int:
    model, x, lengths, y = build()
    step = _step(kind, model.to(device), Batch(x.to(device), lengths, y.to(device)))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        step()
    except torch.OutOfMemoryError:
        raise _too_large(kind, device) from None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _step(kind: Kind, model: SequenceModel, batch: Batch) -> Step:
    return training_step(model, batch) if kind == "train" else inference_step(model, batch)


def _too_large(kind: Kind, device: torch.device) -> ResourceError:
    return ResourceError(
        f"one {kind} step needs more memory than {device} has; choose a smaller batch or shorter sequences"
    )
