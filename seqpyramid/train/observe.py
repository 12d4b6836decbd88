"""Who watches a run: a do-nothing observer to derive from, and TensorBoard event files (an extra)."""

from pathlib import Path
from typing import Any

from seqpyramid.errors import RecipeError


def what_differs(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name what differs between two environments among the things that a bitwise repeat needs.

    >>> what_differs({"torch": "2.6", "threads": 1}, {"torch": "2.6", "threads": 2})
    ['threads 1 -> 2']
    """
    keys = ("seqpyramid", "torch", "device", "device_name", "threads", "kernels")
    return [f"{key} {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


class Observer:
    """Told of everything; does nothing."""

    def started(self, *, step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Training starts or continues at ``step``."""

    def resumed(self, *, step: int, before: dict[str, Any], now: dict[str, Any]) -> None:
        """A checkpoint of an earlier process was read."""

    def stepped(self, *, step: int, epoch: int, loss: float) -> None:
        """One optimiser step is done; called often, so be quick."""

    def recorded(self, record: dict[str, Any]) -> None:
        """A line went to metrics.jsonl."""


class Observers(Observer):
    """Passes everything on to several."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def started(self, *, step: int, total_steps: int, steps_per_epoch: int) -> None:
        for observer in self._observers:
            observer.started(step=step, total_steps=total_steps, steps_per_epoch=steps_per_epoch)

    def resumed(self, *, step: int, before: dict[str, Any], now: dict[str, Any]) -> None:
        for observer in self._observers:
            observer.resumed(step=step, before=before, now=now)

    def stepped(self, *, step: int, epoch: int, loss: float) -> None:
        for observer in self._observers:
            observer.stepped(step=step, epoch=epoch, loss=loss)

    def recorded(self, record: dict[str, Any]) -> None:
        for observer in self._observers:
            observer.recorded(record)


class TensorBoard(Observer):
    """Writes every record as scalars.

    Args:
        folder: of the event files.

    Raises:
        RecipeError: the extra is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RecipeError('--tensorboard needs an extra: pip install "seqpyramid[tensorboard]"') from None
        self._writer = SummaryWriter(str(folder))

    def recorded(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, (int, float)) and name not in ("step", "best"):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])
        self._writer.flush()
