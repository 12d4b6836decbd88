"""What crosses the door between a task and a model; imported by both sides, imports neither (nor torch).

Shapes: B batch, T time steps, F input features, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Needs = Literal["summary", "steps"]

NOT_IN_FINGERPRINT: dict[str, Any] = {"fingerprint": False}
"""``json_schema_extra`` of a config's field that moves no number, or that is reported beside the fingerprint."""


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
    causal: bool = False
    """Whether a step's answer stands in later steps, so that a model which reads ahead would see it."""
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


class ModelOutput(NamedTuple):
    """What a model returns for a batch."""

    outputs: Tensor
    """(B, K) where the task needs a summary, (B, T, K) where it needs steps."""
    summary: Tensor
    """(B, H): the state at each sequence's own last valid step, or what the paper's classifier reads."""
    steps: Tensor | None
    """(B, T, H), zero past ``lengths``."""
    state: Any
    """To carry into the next batch; None unless the task carries state."""
    aux_loss: Tensor | None
    """Scalar added to the task's mean loss."""
    diagnostics: dict[str, Tensor]
    """Named scalars worth logging."""


class Model(Protocol):
    """All that a task may do with a model."""

    training: bool

    def __call__(self, x: Tensor, lengths: Tensor | None = None, state: Any = None) -> ModelOutput:
        """Run x (B, T, F), continuing from ``state`` if given."""


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
