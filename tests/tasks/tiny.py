"""A config of every task that is prepared in a moment, and the source it reads, where it reads any.

An entry without a source generates its own data or comes with an installed package.
"""

import gzip
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from seqpyramid.data import idx
from seqpyramid.tasks import TASKS
from seqpyramid.tasks.base import TaskConfig


@dataclass(frozen=True)
class Tiny:
    config: TaskConfig
    write_source: Callable[[Path, pytest.MonkeyPatch], None] | None = None
    """Writes into a folder what the user would name with --source."""


def write_mnist_twin(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write random images in MNIST's format and make the package take their hashes for MNIST's."""
    draw = np.random.default_rng(0)
    hashes = {}
    for name in idx.MNIST_SHA256:
        examples = 5_060 if name.startswith("train") else 40
        shape = (examples, 28, 28) if "images" in name else (examples,)
        values = draw.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        content = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + values.tobytes()
        hashes[name] = hashlib.sha256(content).hexdigest()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=0))
    patch.setattr(idx, "MNIST_SHA256", hashes)


TINY = {
    "digits": Tiny(TASKS["digits"]()),
    "masked_addition": Tiny(TASKS["masked_addition"](length=7, train=50, validation=20, test=30)),
    "pixel_mnist": Tiny(
        TASKS["pixel_mnist"](order="permuted", permutation="seeded", noise_to=800, validation_limit=50),
        write_mnist_twin,
    ),
}
