import hashlib

import numpy as np
import pytest

from seqpyramid.contracts import SPLITS
from seqpyramid.data import splits
from seqpyramid.errors import DataError


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


@pytest.mark.parametrize(("groups", "examples"), [(20, 400), (100, 2_000)])
def test_grouped_keeps_groups_whole_and_near_the_proportions(groups: int, examples: int) -> None:
    draw = np.random.default_rng(0)
    members = draw.integers(0, groups, examples)
    labels = draw.integers(0, 5, examples)
    found = splits.grouped(labels, members, (8, 1, 1), seed=0)
    check_partition(found, examples)
    inside = [set(members[found[name]]) for name in SPLITS]
    assert sum(map(len, inside)) == len(set().union(*inside)) == groups
    assert set(labels[found["train"]]) == set(labels)
    for name, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(found[name]) / examples - share) < 0.02
    again, other = (splits.grouped(labels, members, (8, 1, 1), seed=seed) for seed in (0, 1))
    assert splits.split_hash(found) == splits.split_hash(again) != splits.split_hash(other)


def test_grouped_leaves_every_class_in_train() -> None:
    # class 2 is in one group only, which is as large as the test split should be
    members = np.repeat(np.arange(9), 10)
    labels = np.where(members == 4, 2, np.arange(90) % 2)
    for seed in range(20):
        found = splits.grouped(labels, members, (7, 1, 1), seed=seed)
        assert 4 in members[found["train"]]
        assert [len(found[name]) for name in SPLITS] == [70, 10, 10]


def test_grouped_balances_classes_too() -> None:
    members = np.repeat([f"s{i}" for i in range(12)], 10)
    labels = np.repeat(["a", "b"], 60)
    found = splits.grouped(labels, members, (4, 1, 1), seed=3)
    for name in SPLITS:
        assert (labels[found[name]] == "a").mean() == 0.5


def test_grouped_never_empties_train_of_a_class() -> None:
    cut = 0
    for seed in range(300):
        draw = np.random.default_rng(seed)
        members, labels = draw.integers(0, 8, 24), draw.integers(0, 6, 24)
        try:
            found = splits.grouped(labels, members, (2, 1, 1), seed=seed)
        except DataError:
            continue
        cut += 1
        assert set(labels[found["train"]]) == set(labels)
        assert min(map(len, found.values())) > 0
    assert cut > 200


@pytest.mark.parametrize(
    ("labels", "members"),
    [(["a", "b", "c"], ["x", "y", "z"]), (["a", "b", "a"], ["x", "y", "y"]), (["a", "b"], ["x", "x"])],
)
def test_grouped_says_where_it_is_impossible(labels: list[str], members: list[str]) -> None:
    with pytest.raises(DataError, match="groups cannot be cut into 8:1:1"):
        splits.grouped(labels, members, (8, 1, 1), seed=0)


def test_completed_cuts_all_where_nothing_is_given() -> None:
    labels = np.random.default_rng(0).choice(["a", "b", "c"], 200)
    found = splits.completed([None] * 200, labels, None, (7, 1, 2), seed=5)
    numbers = np.unique(labels, return_inverse=True)[1]
    assert splits.split_hash(found) == splits.split_hash(splits.stratified(numbers, (7, 1, 2), seed=5))
    members = np.arange(200) // 5
    found = splits.completed([None] * 200, labels, members, (7, 1, 2), seed=5)
    assert splits.split_hash(found) == splits.split_hash(splits.grouped(labels, members, (7, 1, 2), seed=5))


def test_completed_keeps_what_is_given() -> None:
    labels = np.arange(60) % 3
    given = ["train"] * 30 + ["test"] * 20 + [None] * 10
    found = splits.completed(given, labels, None, (3, 1, 9), seed=0)
    check_partition(found, 60)
    assert found["test"].tolist() == list(range(30, 50))
    assert np.bincount(labels[found["validation"]]).tolist() == [
        3,
        3,
        3,
    ]  # a quarter of 14, 13 and 13, halves to train
    everything = splits.completed(
        ["train", "validation", "test"] * 20, np.arange(60) // 30, None, (1, 0, 0), seed=0
    )
    assert [len(everything[name]) for name in SPLITS] == [20, 20, 20]


def test_completed_cuts_validation_by_whole_groups() -> None:
    given = ["train"] * 40 + ["test"] * 10
    members = np.arange(50) // 5
    found = splits.completed(given, np.arange(50) % 2, members, (3, 1, 1), seed=0)
    assert found["test"].tolist() == list(range(40, 50))
    assert not set(members[found["train"]]) & set(members[found["validation"]])
    assert len(found["validation"]) == 10


@pytest.mark.parametrize(
    ("given", "labels", "members", "sentence"),
    [
        (["train", "validation", "test"], "aab", None, "test has the class 'b', which train never sees"),
        (["validation", "test"], "aa", None, "no example is left for train"),
        (["train", "test"], "aa", None, "no example is left for validation"),
        (["train", "validation", "test"], "aaa", ["s1", "s2", "s1"], "group 's1' is in both train and test"),
        (["train", None, "test"], "aaa", ["s1", "s2", "s2"], "group 's2' is in both train and test"),
    ],
)
def test_completed_refuses(given: list, labels: str, members: list[str] | None, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        splits.completed(given, list(labels), members, (2, 0, 0), seed=0)
