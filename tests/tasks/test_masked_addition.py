from pathlib import Path

import numpy as np
import pytest
import torch

from seqpyramid.contracts import SPLITS, Batch
from seqpyramid.data.loading import Dataset
from seqpyramid.errors import ResourceError
from seqpyramid.tasks.base import DataPlace
from seqpyramid.tasks.masked_addition import MaskedAddition, MaskedAdditionConfig

SMALL = {"length": 6, "train": 40, "validation": 10, "test": 10}


def prepared(path: Path, **fields: object) -> MaskedAddition:
    task = MaskedAdditionConfig(**{**SMALL, **fields}).build()
    task.prepare(DataPlace(path))
    return task


def everything(dataset: Dataset) -> Batch:
    return dataset.batch(torch.arange(len(dataset)))


@pytest.mark.parametrize("positions", ["anywhere", "halves"])
@pytest.mark.parametrize("length", [2, 3, 9])
def test_the_target_is_the_sum_of_what_the_mask_marks(tmp_path: Path, length: int, positions: str) -> None:
    task = prepared(tmp_path, length=length, positions=positions)
    for split in SPLITS:
        batch = everything(task.dataset(split))
        values, mask = batch.x.unbind(-1)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert (mask.sum(1) == 2).all()
        assert torch.allclose((values * mask).sum(1), batch.y, rtol=1e-6)
        assert 0 <= values.min() <= values.max() <= 1
        if positions == "halves":
            assert (mask[:, : length // 2].sum(1) == 1).all()


def test_anywhere_is_uniform_over_pairs_and_halves_over_its_own(tmp_path: Path) -> None:
    examples = 12_000
    for positions, pairs in (("anywhere", 6), ("halves", 4)):
        mask = everything(prepared(tmp_path, length=4, test=examples, positions=positions).dataset("test")).x[
            ..., 1
        ]
        codes = mask @ torch.tensor([1.0, 2.0, 4.0, 8.0])
        _, counts = codes.unique(return_counts=True)
        assert len(counts) == pairs
        deviation = (examples / pairs * (1 - 1 / pairs)) ** 0.5
        assert (counts - examples / pairs).abs().max() < 5 * deviation


def test_trivial_is_a_sixth_and_not_the_misprint(tmp_path: Path) -> None:
    task = prepared(tmp_path, length=2, test=40_000)
    batch = everything(task.dataset("test"))
    metrics = task.metrics()
    metrics.update(torch.ones(len(batch.y), 1), batch)
    measured = metrics.compute()
    expected = task.trivial()
    error = (1 / 15 - 1 / 36) ** 0.5 / len(
        batch.y
    ) ** 0.5  # of the mean of (sum - 1)^2, a triangular variable squared
    assert measured["mse"] == pytest.approx(expected["mse"], abs=4 * error)
    assert measured["loss"] == pytest.approx(expected["loss"], abs=4 * error)
    assert abs(measured["mse"] - 0.1767) > 8 * error


def test_a_longer_split_begins_with_the_shorter(tmp_path: Path) -> None:
    # 300,000 steps of 7 do not fit into one block
    small, large = (prepared(tmp_path, length=300_000, train=n, test=1, validation=1) for n in (2, 5))
    assert torch.equal(everything(large.dataset("train")).x[:2], everything(small.dataset("train")).x)


def test_seeds_and_splits_differ(tmp_path: Path) -> None:
    one, again, other = (prepared(tmp_path / name, data_seed=s) for name, s in (("a", 0), ("b", 0), ("c", 1)))
    x = everything(one.dataset("validation")).x
    assert torch.equal(x, everything(again.dataset("validation")).x)
    for channel in (0, 1):
        assert not torch.equal(x[..., channel], everything(other.dataset("validation")).x[..., channel])
        assert not torch.equal(x[..., channel], everything(one.dataset("test")).x[..., channel])


def test_every_field_is_in_the_fingerprint(tmp_path: Path) -> None:
    changes = [
        {},
        {"length": 7},
        {"train": 41},
        {"validation": 11},
        {"test": 11},
        {"positions": "halves"},
        {"data_seed": 1},
    ]
    found = [
        MaskedAdditionConfig(**{**SMALL, **change}).build().prepare(DataPlace(tmp_path)) for change in changes
    ]
    assert len({p.fingerprint for p in found}) == len(changes)
    assert all(p.built for p in found)
    assert len({p.split_hash for p in found}) == 4  # as many as there are different sizes


def test_generated_numbers_are_fixed(tmp_path: Path) -> None:
    """Data of another numpy must be the same data."""
    batch = everything(prepared(tmp_path).dataset("test"))
    values = np.random.default_rng([0, 2, 0]).random((10, 6), dtype=np.float32)
    np.testing.assert_array_equal(batch.x[..., 0].numpy(), values)
    np.testing.assert_allclose(batch.y[:3].numpy(), [1.0037270, 1.2193222, 0.5978669], rtol=1e-6)


@pytest.mark.parametrize(
    "bad", [{"length": 1}, {"length": 2**24}, {"train": 0}, {"positions": "ends"}, {"length": 9.0}]
)
def test_bad_fields(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        MaskedAdditionConfig(**{**SMALL, **bad})


def test_a_file_in_place_of_the_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "caches").write_text("in the way")
    with pytest.raises(ResourceError, match="caches"):
        prepared(tmp_path)
