"""The contract every task keeps.

A task knows its data, its loss and its metrics, and nothing of models. It is built from its config without
touching data; :meth:`Task.prepare` builds or opens the cache; only then can :meth:`Task.dataset` be asked for.

Shapes: B batch, T time steps, F input features, K outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from seqpyramid.contracts import Batch, Needs, Selection, Split, TaskSpec
from seqpyramid.data.loading import Dataset, Example, collate

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``, called while a cache is built."""


@dataclass(frozen=True)
class DataPlace:
    """Where data lives: ``root`` holds downloads and caches, ``source`` the user's own copy, if any."""

    root: Path
    source: Path | None = None
    offline: bool = False
    """Never download; say what is missing instead."""

    @property
    def caches(self) -> Path:
        """Folder of the HDF5 caches."""
        return self.root / "caches"

    @property
    def downloads(self) -> Path:
        """Folder of the files fetched or placed by hand."""
        return self.root / "downloads"


@dataclass(frozen=True)
class Prepared:
    """What :meth:`Task.prepare` found or made."""

    path: Path | None
    """The cache file."""
    fingerprint: str
    """Names the data and its preprocessing: hash of what went in."""
    built: bool
    """False when a good cache was already there."""
    splits: dict[str, int]
    """Examples in each split."""
    split_hash: str
    """SHA-256 (first 16 hex digits) of which example is in which split."""
    details: dict[str, Any] = field(default_factory=dict)
    """Facts worth recording with a result: permutation hash, source file hashes, class counts."""


class Metrics(ABC):
    """Accumulates one pass over a split as sums and counts, so that batching can never change the result."""

    @abstractmethod
    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Add one batch; nothing is copied to the host here."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the metrics of everything added so far (one wait for the device)."""


class TaskConfig(BaseModel):
    """One entry of the TASKS table."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    summary_line: ClassVar[str]
    """One line for ``seqpyramid list``."""

    name: str

    @property
    def needs(self) -> Needs:
        """What the task reads of a model."""
        return "summary"

    def build(self) -> "Task":
        """Build the task; no data is touched."""
        raise NotImplementedError


class Task(ABC):
    """See the module's docstring."""

    selection: Selection
    """Which validation metric selects the checkpoint."""
    class_names: tuple[str, ...] | None = None
    """Names of the K classes; None where the task is no classification."""

    @property
    @abstractmethod
    def spec(self) -> TaskSpec:
        """All that a model may know. Tasks over the user's own data know it only after :meth:`prepare`."""

    @abstractmethod
    def prepare(self, place: DataPlace, *, force: bool = False, progress: Progress | None = None) -> Prepared:
        """Build the cache, or open a good one; ``force`` builds it anew.

        Raises:
            DataError: the source is missing or damaged.
            IntegrityError: the cache is damaged.
            ResourceError: the disk is full or the folder cannot be written.
        """

    @abstractmethod
    def dataset(self, split: Split) -> Dataset:
        """Return one split; only after :meth:`prepare`."""

    def collate(self, examples: list[Example]) -> Batch:
        """Pad some examples to one length."""
        return collate(examples)

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (sum of the losses, number of targets), both scalars on the outputs' device."""

    @abstractmethod
    def metrics(self) -> Metrics:
        """Return a fresh accumulator; it always computes ``loss`` (mean a target) among its numbers."""

    @abstractmethod
    def trivial(self) -> dict[str, float]:
        """Score of the best constant answer, from theory; a test holds it against data."""
