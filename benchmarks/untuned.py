"""The same candidates as torch comes: in a child process whose allocator nobody has touched.

glibc returns large freed buffers to the kernel and faults them in again at every step, unless a process asks otherwise,
as ``seqpyramid train`` does. A process cannot undo that, so the untouched state needs a process of its own. Its steps
are asked for one at a time from the parent's rounds, so both states meet the same machine and a ratio between them is
taken within a round, like any other. Asking costs well under a millisecond.

Denormal numbers are flushed to zero in the child too: where they are not, torch's backward pass may take ten times as
long, and a ratio to it would flatter everything else. Only the allocator differs.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import process_time
from typing import Any, Literal, NamedTuple

import torch

from seqpyramid.analysis.speed import Step
from seqpyramid.recipe import load

from .candidates import Candidate, Setting, on_threads, references, rows
from .machine import freed_buffers

AS_IT_COMES = ", as torch comes"

Kind = Literal["training", "inference"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the child builds."""

    recipe: str
    models: tuple[str, ...]
    setting: Setting


class Description(NamedTuple):
    """What the child says of one candidate."""

    name: str
    parameters: int
    forward_flops: int | None


class Child:
    """The process at work.

    Args:
        connection: to it; the process has just been started.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.freed_buffers: str = self._answer()
        """Where the child's freed buffers go, as it has tried."""
        described: list[Description] = self._answer()
        self.candidates = [
            Candidate(
                name=one.name + AS_IT_COMES,
                parameters=one.parameters,
                training=self._step("training", one.name),
                inference=self._step("inference", one.name),
                forward_flops=one.forward_flops,
            )
            for one in described
        ]

    def cpu_seconds(self) -> float:
        """CPU time that the process has used."""
        used: float = self._ask(None)
        return used

    def _step(self, kind: Kind, name: str) -> Step:
        def run() -> None:
            self._ask((kind, name))

        return run

    def _ask(self, for_what: tuple[Kind, str] | None) -> Any:
        with _ended_is_a_bug():
            self._connection.send(for_what)
        return self._answer()

    def _answer(self) -> Any:
        with _ended_is_a_bug():
            return self._connection.recv()


@contextmanager
def _ended_is_a_bug() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise RuntimeError("the process that runs models as torch comes has ended; see its output") from None


@contextmanager
def as_torch_comes(order: Order) -> Iterator[Child]:
    """Start the process, and end it with the block."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, order), daemon=True)
    process.start()
    there.close()  # so that a process that dies ends the wait for its answer
    try:
        with here:
            yield Child(here)
    finally:
        # It ends when its pipe closes, unless it is in the middle of a step that nobody waits for.
        process.join(timeout=1)
        process.kill()
        process.join()


def _serve(connection: Connection, order: Order) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, and closes the pipe
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    with connection, contextlib.suppress(EOFError, ConnectionError):
        # First, because what it tries must not meet the models' buffers.
        connection.send(freed_buffers())
        everyone = references(order.setting)[:1]
        everyone += [on_threads(one) for one in rows(load(order.recipe), order.models, order.setting)]
        steps: dict[tuple[Kind, str], Step] = {}
        for one in everyone:
            steps["training", one.name], steps["inference", one.name] = one.training, one.inference
        connection.send([Description(one.name, one.parameters, one.forward_flops) for one in everyone])
        while True:
            asked: tuple[Kind, str] | None = connection.recv()
            if asked is None:
                connection.send(process_time())
            else:
                steps[asked]()
                connection.send(None)
