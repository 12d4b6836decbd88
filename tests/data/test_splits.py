import hashlib

import numpy as np
import pytest

from seqpyramid.contracts import SPLITS
from seqpyramid.data import splits


def check_partition(found: splits.Splits, examples: int) -> None:
    together = np.concatenate([found[name] for name in SPLITS])
    assert sorted(together.tolist()) == list(range(examples))
    for name in SPLITS:
        assert found[name].dtype == np.int64
        assert (np.diff(found[name]) > 0).all()


def test_head_of_mnist_is_tensorflows() -> None:
    found = splits.head(60_000, 10_000, 5_000)
    check_partition(found, 70_000)
    assert (found["validation"][0], found["validation"][-1]) == (0, 4_999)
    assert (found["train"][0], found["train"][-1]) == (5_000, 59_999)
    assert (found["test"][0], found["test"][-1]) == (60_000, 69_999)


@pytest.mark.parametrize("validation", [0, 5, 6])
def test_head_leaves_something_to_train_on(validation: int) -> None:
    with pytest.raises(ValueError, match="validation"):
        splits.head(5, 2, validation)


@pytest.mark.parametrize("examples", [10, 11, 97, 1000])
def test_random_is_a_partition_in_proportion(examples: int) -> None:
    found = splits.random(examples, (7, 1, 2), seed=3)
    check_partition(found, examples)
    for name, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        assert abs(len(found[name]) - share * examples) < 1


def test_random_depends_on_the_seed_alone() -> None:
    one, again, other = (splits.random(100, (7, 1, 2), seed=seed) for seed in (0, 0, 1))
    assert splits.split_hash(one) == splits.split_hash(again) != splits.split_hash(other)
    assert one["test"].tolist() != list(range(80, 100))


def test_stratified_cuts_each_class() -> None:
    labels = np.random.default_rng(0).choice(4, 500, p=[0.1, 0.2, 0.3, 0.4])
    found = splits.stratified(labels, (7, 1, 2), seed=0)
    check_partition(found, 500)
    for name, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        counts = np.bincount(labels[found[name]], minlength=4)
        assert (abs(counts - share * np.bincount(labels)) < 1).all()


def test_halves_are_rounded_up_without_floats() -> None:
    # 5 * 7 / 10 = 3.5 -> 4 and 5 * 8 / 10 = 4
    assert [len(part) for part in splits.random(5, (7, 1, 2), seed=0).values()] == [4, 0, 1]


def test_split_hash_is_what_it_says() -> None:
    found = splits.head(3, 1, 1)
    content = b"".join(
        f"{name}:{len(indices)}\n".encode() + b"".join(i.to_bytes(8, "little") for i in indices)
        for name, indices in (("train", [1, 2]), ("validation", [0]), ("test", [3]))
    )
    assert splits.split_hash(found) == hashlib.sha256(content).hexdigest()[:16]
    moved = {**found, "train": np.array([1]), "validation": np.array([0, 2])}
    assert splits.split_hash(moved) != splits.split_hash(found)
