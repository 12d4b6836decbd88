from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from seqpyramid.contracts import SPLITS, Batch
from seqpyramid.tasks.base import DataPlace
from seqpyramid.tasks.digits import Digits, DigitsConfig


def prepared(path: Path, **fields: object) -> Digits:
    task = DigitsConfig(**fields).build()
    task.prepare(DataPlace(path))
    return task


def everything(task: Digits) -> list[tuple[bytes, int]]:
    rows = []
    for split in SPLITS:
        dataset = task.dataset(split)
        batch = dataset.batch(torch.arange(len(dataset)))
        rows += [
            ((x * 16).round().to(torch.uint8).numpy().tobytes(), int(y))
            for x, y in zip(batch.x, batch.y, strict=True)
        ]
    return rows


def test_the_splits_hold_every_image_once(tmp_path: Path) -> None:
    images, labels = load_digits(return_X_y=True)
    expected = sorted(
        (image.astype(np.uint8).tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )
    assert sorted(everything(prepared(tmp_path))) == expected


def test_the_split_is_named_and_fixed(tmp_path: Path) -> None:
    found = DigitsConfig().build().prepare(DataPlace(tmp_path))
    assert found.splits == {"train": 1258, "validation": 180, "test": 359}
    assert found.split_hash == "c8b14fca9efc611a"
    for name, counts in found.details["class_counts"].items():
        assert max(counts) - min(counts) <= 7, name
    other = DigitsConfig(split_seed=1).build().prepare(DataPlace(tmp_path))
    assert other.split_hash != found.split_hash
    assert other.fingerprint == found.fingerprint


def test_nothing_is_written(tmp_path: Path) -> None:
    prepared(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_pixels_are_scaled(tmp_path: Path) -> None:
    batch = prepared(tmp_path).dataset("train").batch(torch.arange(100))
    assert batch.x.shape == (100, 64, 1)
    assert (batch.x.min().item(), batch.x.max().item()) == (0.0, 1.0)


def test_permuted_holds_the_same_pixels_in_another_order(tmp_path: Path) -> None:
    raster = prepared(tmp_path).dataset("train").batch(torch.arange(20))
    one, again, other = (
        prepared(tmp_path, order="permuted", permutation_seed=seed).dataset("train").batch(torch.arange(20))
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.x, again.x)
    assert not torch.equal(one.x, other.x)
    assert not torch.equal(one.x, raster.x)
    order = np.random.default_rng(0).permutation(64)
    assert torch.equal(one.x, raster.x[:, order])
    assert torch.equal(one.y, raster.y)


def test_a_seed_that_is_not_read_is_refused() -> None:
    with pytest.raises(ValueError, match="order=permuted"):
        DigitsConfig(permutation_seed=1)


def test_trivial_is_the_best_constant_answer(tmp_path: Path) -> None:
    task = prepared(tmp_path)
    dataset = task.dataset("test")
    batch = dataset.batch(torch.arange(len(dataset)))
    shares = batch.y.bincount(minlength=10).double() / len(batch.y)
    metrics = task.metrics()
    metrics.update(shares.log().expand(len(batch.y), 10), Batch(*batch))
    assert metrics.compute() == pytest.approx(task.trivial(), rel=1e-12)
    with pytest.raises(RuntimeError, match="prepare"):
        DigitsConfig().build().trivial()
