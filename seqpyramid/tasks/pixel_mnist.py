"""Pixel-by-pixel MNIST: 784 steps of one grey value, in raster order or permuted, clean or followed by noise.

Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv:1708.07747), whose files have MNIST's format, is read in the same ways
with ``images=fashion_mnist``. No paper in question prints numbers on it.

Sources: Le, Jaitly and Hinton, "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units",
arXiv:1504.00941 (pixel by pixel, and permuted); Chang et al., "Dilated Recurrent Neural Networks", NIPS 2017,
Sec. 4.2 and 4.5 (noise after the 784 pixels, to T = 1000 or 2000); Ma et al., "Temporal Pyramid Recurrent Neural
Network", AAAI 2020 (T = 1000, 2000, 3000; the noise is U[0, 1]).

"Permuted MNIST" is another task under every permutation, so each has a name, and its hash is recorded:

* ``tp_rnn_released``: ``RandomState(10).permutation(784)``, as TP-RNN's released code draws it;
* ``dilated_released``: ``RandomState(92916).permutation(784)``, as Dilated RNN's released code draws it;
* ``bit_reversal``: the numbers 0..1023 in bit-reversed order (10 bits), those below 784 kept;
* ``seeded``: ``default_rng(permutation_seed).permutation(784)``.

What the papers leave open: which noise follows which image. Here every example has noise of its own, drawn once
from (``noise_seed``, split) and the same in every epoch.

Shapes: N examples, B batch, T time steps (784, or ``noise_to``).
"""

import hashlib
from pathlib import Path
from typing import ClassVar, Literal, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from seqpyramid.contracts import SPLITS, Batch, Selection, Split, TaskSpec
from seqpyramid.data import cache, idx, splits
from seqpyramid.data.loading import ArrayDataset, Dataset, Example
from seqpyramid.tasks.base import DataPlace, Metrics, Prepared, Progress, Task, TaskConfig
from seqpyramid.tasks.metrics import ClassificationMetrics, cross_entropy, majority

PIXELS = 784
CLASSES = 10
_LAYOUT = 1
"""Raised when what :meth:`PixelMnist.prepare` stores changes."""

Order = Literal["raster", "permuted"]
Permutation = Literal["tp_rnn_released", "dilated_released", "bit_reversal", "seeded"]
NamedSplit = Literal["head_5000"]

CLASS_NAMES: dict[idx.Images, tuple[str, ...]] = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}

_VALIDATION: dict[NamedSplit, int] = {"head_5000": 5_000}


class PixelMnistConfig(TaskConfig):
    """Pixel-by-pixel MNIST."""

    summary_line: ClassVar[str] = (
        "MNIST or Fashion-MNIST read pixel by pixel, in raster order or permuted, clean or padded with noise"
    )

    name: Literal["pixel_mnist"] = "pixel_mnist"
    images: idx.Images = Field(
        default="mnist", description="mnist: handwritten digits; fashion_mnist: pieces of clothing"
    )
    order: Order = Field(default="raster", description="order in which the 784 pixels are read")
    permutation: Permutation | None = Field(
        default=None, description="which permutation; with order=permuted only"
    )
    permutation_seed: int = Field(default=0, ge=0, description="seed of permutation=seeded")
    noise_to: int | None = Field(
        default=None, gt=PIXELS, description="T, steps after padding with U[0, 1] noise behind the pixels"
    )
    noise_seed: int = Field(default=0, ge=0, description="seed of the noise")
    split: NamedSplit = Field(
        default="head_5000",
        description="head_5000: the first 5,000 of the training file validate, 55,000 train",
    )
    train_limit: int | None = Field(
        default=None, gt=0, le=55_000, description="use the first n only, for trials"
    )
    validation_limit: int | None = Field(default=None, gt=0, le=5_000, description="likewise")
    test_limit: int | None = Field(default=None, gt=0, le=10_000, description="likewise")

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        if self.order == "permuted" and self.permutation is None:
            raise ValueError(
                "order=permuted needs a permutation: tp_rnn_released, dilated_released, bit_reversal, seeded"
            )
        if self.order == "raster" and self.permutation is not None:
            raise ValueError(
                f"permutation={self.permutation} is not read with order=raster; set order=permuted"
            )
        if self.permutation != "seeded" and self.permutation_seed:
            raise ValueError("permutation_seed is read with permutation=seeded only")
        if self.noise_to is None and self.noise_seed:
            raise ValueError("noise_seed is read with noise_to only")
        return self

    def build(self) -> "PixelMnist":
        """Build the task; no data is touched."""
        return PixelMnist(
            images=self.images,
            permutation=self.permutation,
            permutation_seed=self.permutation_seed,
            noise_to=self.noise_to,
            noise_seed=self.noise_seed,
            split=self.split,
            limits={"train": self.train_limit, "validation": self.validation_limit, "test": self.test_limit},
        )


class PixelMnist(Task):
    """See the module's docstring; the arguments are the config's fields."""

    selection = Selection("accuracy", "max")

    def __init__(
        self,
        *,
        images: idx.Images,
        permutation: Permutation | None,
        permutation_seed: int,
        noise_to: int | None,
        noise_seed: int,
        split: NamedSplit,
        limits: dict[Split, int | None],
    ) -> None:
        self._images: idx.Images = images
        self.class_names = CLASS_NAMES[images]
        self._order = None if permutation is None else pixel_order(permutation, seed=permutation_seed)
        self._permutation = permutation
        self._noise_to, self._noise_seed = noise_to, noise_seed
        self._split, self._limits = split, limits
        self._fingerprint = cache.fingerprint(
            {"task": "pixel_mnist", "layout": _LAYOUT, "files": dict(idx.published(images))}
        )
        self._cache: Path | None = None
        self._indices: splits.Splits = {}
        self._class_counts: dict[Split, list[int]] = {}

    @property
    def spec(self) -> TaskSpec:
        """One grey value a step, ten classes."""
        return TaskSpec(input_size=1, outputs=CLASSES, max_length=self._noise_to or PIXELS)

    def prepare(self, place: DataPlace, *, force: bool = False, progress: Progress | None = None) -> Prepared:
        """Cache the pixels and labels of the four files; order, noise and split are applied to what is cached.

        So all variants share one cache. Images of the test file are numbered after those of the training file.
        """

        def write(file: h5py.File) -> None:
            files = idx.find_images(
                self._images, place.source, place.downloads, offline=place.offline, progress=progress
            )
            reading = f"read {idx.TITLES[self._images]}"
            if progress is not None:
                progress(reading, 0, 1)
            arrays = idx.read_images(self._images, files)
            images = [arrays["train-images-idx3-ubyte"], arrays["t10k-images-idx3-ubyte"]]
            labels = [arrays["train-labels-idx1-ubyte"], arrays["t10k-labels-idx1-ubyte"]]
            cache.store(file, "images", np.concatenate(images).reshape(-1, PIXELS))
            cache.store(file, "labels", np.concatenate(labels))
            cache.store(file, "files", np.array([len(part) for part in labels], dtype=np.int64))
            if progress is not None:
                progress(reading, 1, 1)

        path = cache.cache_path(place.caches, "pixel_mnist", self._fingerprint)
        built = cache.build(path, self._fingerprint, write, force=force)
        with cache.open_checked(path, self._fingerprint) as file:
            labels = file["labels"][...]
            train_file, test_file = (int(n) for n in file["files"][...])
        everything = splits.head(train_file, test_file, _VALIDATION[self._split])
        self._indices = {name: everything[name][: self._limits[name]] for name in SPLITS}
        self._class_counts = {
            name: np.bincount(labels[self._indices[name]], minlength=CLASSES).tolist() for name in SPLITS
        }
        self._cache = path
        return Prepared(
            path=path,
            fingerprint=self._fingerprint,
            built=built,
            splits={name: len(self._indices[name]) for name in SPLITS},
            split_hash=splits.split_hash(self._indices),
            details={
                "images": self._images,
                "permutation": self._permutation or "raster",
                "permutation_sha256": None if self._order is None else order_hash(self._order),
                "noise": None if self._noise_to is None else {"to": self._noise_to, "seed": self._noise_seed},
                "split": self._split,
                "class_counts": self._class_counts,
                "files_sha256" if self._images == "mnist" else "files_md5": dict(idx.published(self._images)),
            },
        )

    def dataset(self, split: Split) -> Dataset:
        """Return one split; x is (T, 1) in [0, 1], y the class."""
        if self._cache is None:
            raise RuntimeError("call prepare before dataset")
        chosen = self._indices[split]
        first, last = int(chosen[0]), int(chosen[-1])
        with cache.open_checked(self._cache, self._fingerprint) as file:
            pixels = file["images"][first : last + 1][chosen - first]
            labels = file["labels"][first : last + 1][chosen - first]
        if self._order is not None:
            pixels = np.ascontiguousarray(pixels[:, self._order])
        x, y = torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))
        if self._noise_to is None:
            return ArrayDataset(x, y, grey_values)
        return NoisyPixels(x, y, torch.from_numpy(self._noise(split, len(y), self._noise_to - PIXELS)))

    def _noise(self, split: Split, examples: int, steps: int) -> NDArray[np.float32]:
        """(N, steps) of U[0, 1); row n does not depend on how many rows are asked for."""
        generator = np.random.default_rng([self._noise_seed, SPLITS.index(split)])
        return generator.random((examples, steps), dtype=np.float32)

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy in nats."""
        return cross_entropy(outputs, batch.y)

    def metrics(self) -> Metrics:
        """Loss, accuracy and confusion matrix."""
        return ClassificationMetrics(CLASSES)

    def trivial(self) -> dict[str, float]:
        """Score of the best constant answers on the test split, exact; only after :meth:`prepare`.

        On the whole test file of MNIST the commonest digit, 1, is 1,135 of 10,000 (0.1135), and the entropy is
        2.3008, a little below ln 10 = 2.3026. Fashion-MNIST has 1,000 test images of each class: 0.1 and ln 10.
        """
        if self._cache is None:
            raise RuntimeError("call prepare before trivial")
        return majority(self._class_counts["test"])


class NoisyPixels(Dataset):
    """Pixels kept as uint8 and, behind them, noise kept as float32: as floats the pixels would take 4 times the room.

    Args:
        pixels: (N, 784) uint8.
        y: (N,) int64.
        noise: (N, T - 784) float32.
    """

    def __init__(self, pixels: Tensor, y: Tensor, noise: Tensor) -> None:
        self._pixels, self._y, self._noise = pixels, y, noise

    def __len__(self) -> int:
        return len(self._y)

    def __getitem__(self, index: int) -> Example:
        x = torch.cat([grey_values(self._pixels[index]), self._noise[index].unsqueeze(-1)])
        return Example(x, self._y[index])

    def batch(self, indices: Tensor) -> Batch:
        """Gather in one stroke."""
        here = indices.to(self._y.device)
        x = torch.cat([grey_values(self._pixels[here]), self._noise[here].unsqueeze(-1)], dim=1)
        return Batch(x, torch.full((len(x),), x.shape[1], dtype=torch.int64), self._y[here])

    @property
    def nbytes(self) -> int:
        """Size of all three arrays."""
        return self._pixels.nbytes + self._y.nbytes + self._noise.nbytes

    def to(self, device: torch.device) -> "NoisyPixels":
        """Hold the arrays on ``device``."""
        return NoisyPixels(self._pixels.to(device), self._y.to(device), self._noise.to(device))


def grey_values(stored: Tensor) -> Tensor:
    """(..., 784) uint8 -> (..., 784, 1) float32 in [0, 1].

    >>> grey_values(torch.tensor([[0, 51, 255]], dtype=torch.uint8)).flatten().tolist() == [0.0, np.float32(0.2), 1.0]
    True
    """
    return stored.float().div(255).unsqueeze(-1)


def pixel_order(permutation: Permutation, *, seed: int = 0) -> NDArray[np.int64]:
    """Return (784,): position t of the sequence shows pixel ``order[t]``; see the module's docstring.

    >>> pixel_order("bit_reversal")[:5].tolist()
    [0, 512, 256, 768, 128]
    """
    if permutation == "tp_rnn_released":
        order = np.random.RandomState(10).permutation(PIXELS)
    elif permutation == "dilated_released":
        order = np.random.RandomState(92916).permutation(PIXELS)
    elif permutation == "bit_reversal":
        reversed_bits = np.array([int(f"{number:010b}"[::-1], 2) for number in range(1024)])
        order = reversed_bits[reversed_bits < PIXELS]
    else:
        order = np.random.default_rng(seed).permutation(PIXELS)
    return order.astype(np.int64)


def order_hash(order: NDArray[np.int64]) -> str:
    """Return the first 16 hex digits of the SHA-256 of a permutation as little-endian int64.

    >>> order_hash(pixel_order("bit_reversal"))
    '30d91dc29f161321'
    """
    return hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16]
