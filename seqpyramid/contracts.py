"""What crosses the door between a task and a model; imported by both sides, imports neither (nor torch).

Shapes: B batch, T time steps, F input features, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Needs = Literal["summary", "steps"]


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """All that a model may know of a task."""

    input_size: int
    """F, features of one time step."""
    outputs: int
    """K, width of the head: classes, or regression targets."""
    needs: Needs = "summary"
    """Whether the head reads one summary a sequence or every step."""
    carry_state: bool = False
    """Whether sequences continue over batches, so the model must return its state."""
    max_length: int | None = None
    """T of the longest sequence, where the task knows it before it sees data."""


class Batch(NamedTuple):
    """Some sequences, padded on the right to one length."""

    x: Tensor
    """(B, T, F) inputs; whatever stands past ``lengths`` is padding."""
    lengths: Tensor
    """(B,) integer steps, at least 1; kept on the CPU so that reading it never waits for a device."""
    y: Tensor
    """(B,) or (B, T, ...) targets, as the task defines them."""


@dataclass(frozen=True)
class Selection:
    """Which validation metric chooses the best checkpoint, and in which direction."""

    metric: str
    mode: Literal["max", "min"]

    def improves(self, new: float, best: float | None) -> bool:
        """Whether ``new`` is strictly better than ``best`` (``None``: nothing yet; NaN never improves).

        >>> Selection("accuracy", "max").improves(0.9, 0.8), Selection("loss", "min").improves(0.9, 0.8)
        (True, False)
        """
        if new != new:
            return False
        if best is None:
            return True
        return new > best if self.mode == "max" else new < best
