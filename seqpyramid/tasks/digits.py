"""Small digits read pixel by pixel: 64 steps of one grey value; comes with scikit-learn, so nothing is fetched.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998; scikit-learn carries its test part, 1,797 images of 8 x 8 pixels in 17 grey levels (0 to 16). No paper's table
rests on it: it is there for a first run in seconds.

The split is 7:1:2 within each class. Shapes: N examples, T = 64 time steps.
"""

import hashlib
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from seqpyramid.contracts import SPLITS, Batch, Selection, Split, TaskSpec
from seqpyramid.data import cache, splits
from seqpyramid.data.loading import ArrayDataset, Dataset
from seqpyramid.tasks.base import DataPlace, Metrics, Prepared, Progress, Task, TaskConfig
from seqpyramid.tasks.metrics import ClassificationMetrics, cross_entropy, majority

PIXELS = 64
CLASSES = 10
LEVELS = 16
PROPORTIONS = (7, 1, 2)

Order = Literal["raster", "permuted"]


class DigitsConfig(TaskConfig):
    """Small digits, pixel by pixel."""

    summary_line: ClassVar[str] = (
        "8 x 8 digits of scikit-learn read pixel by pixel (1,797 images; nothing to fetch)"
    )

    name: Literal["digits"] = "digits"
    split_seed: int = Field(default=0, ge=0, description="seed of the stratified 7:1:2 split")
    order: Order = Field(default="raster", description="order in which the 64 pixels are read")
    permutation_seed: int = Field(default=0, ge=0, description="seed of the permutation of order=permuted")

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        if self.order == "raster" and self.permutation_seed:
            raise ValueError("permutation_seed is read with order=permuted only")
        return self

    def build(self) -> "Digits":
        """Build the task; no data is touched."""
        return Digits(
            split_seed=self.split_seed,
            permutation_seed=self.permutation_seed if self.order == "permuted" else None,
        )


class Digits(Task):
    """See the module's docstring.

    Args:
        split_seed: of the split.
        permutation_seed: of ``default_rng(seed).permutation(64)``; None reads the pixels in raster order.
    """

    selection = Selection("accuracy", "max")
    class_names = tuple("0123456789")

    def __init__(self, *, split_seed: int, permutation_seed: int | None) -> None:
        self._split_seed = split_seed
        self._permutation_seed = permutation_seed
        self._data: dict[Split, tuple[Tensor, Tensor]] = {}

    @property
    def spec(self) -> TaskSpec:
        """One grey value a step, ten classes."""
        return TaskSpec(input_size=1, outputs=CLASSES, max_length=PIXELS)

    def prepare(self, place: DataPlace, *, force: bool = False, progress: Progress | None = None) -> Prepared:
        """Read the images; there is no cache, as an installed package is one already, so ``built`` is False."""
        from sklearn.datasets import load_digits  # takes a second, and recipes load without it

        images, labels = load_digits(return_X_y=True)
        pixels = images.astype(np.uint8)
        if self._permutation_seed is not None:
            pixels = pixels[:, np.random.default_rng(self._permutation_seed).permutation(PIXELS)]
        labels = labels.astype(np.int64)
        indices = splits.stratified(labels, PROPORTIONS, seed=self._split_seed)
        self._data = {
            name: (torch.from_numpy(pixels[chosen]), torch.from_numpy(labels[chosen]))
            for name, chosen in indices.items()
        }
        content = hashlib.sha256(pixels.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
        return Prepared(
            path=None,
            fingerprint=cache.fingerprint({"task": "digits", "content": content}),
            built=False,
            splits={name: len(indices[name]) for name in SPLITS},
            split_hash=splits.split_hash(indices),
            details={
                "order": "raster"
                if self._permutation_seed is None
                else f"permuted, seed {self._permutation_seed}",
                "class_counts": {name: np.bincount(labels[indices[name]]).tolist() for name in SPLITS},
            },
        )

    def dataset(self, split: Split) -> Dataset:
        """Return one split; x is (64, 1) in [0, 1], y the digit."""
        if not self._data:
            raise RuntimeError("call prepare before dataset")
        return ArrayDataset(*self._data[split], grey_values)

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy in nats."""
        return cross_entropy(outputs, batch.y)

    def metrics(self) -> Metrics:
        """Loss, accuracy and confusion matrix."""
        return ClassificationMetrics(CLASSES)

    def trivial(self) -> dict[str, float]:
        """Score of the best constant answers on the test split, exact; only after :meth:`prepare`."""
        if not self._data:
            raise RuntimeError("call prepare before trivial")
        _, labels = self._data["test"]
        return majority(labels.bincount(minlength=CLASSES).tolist())


def grey_values(stored: Tensor) -> Tensor:
    """(B, 64) levels 0 to 16 -> (B, 64, 1) float32 in [0, 1]."""
    return stored.float().div(LEVELS).unsqueeze(-1)
