"""Which example is in which split: named, deterministic, and hashed.

A split is three index arrays over one numbering of all examples, each in ascending order, int64. Proportions are
whole numbers, as papers print them (7:1:2), so that no rounding of floats decides where an example goes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqpyramid.contracts import SPLITS, Split
from seqpyramid.errors import DataError

Indices = NDArray[np.int64]
Splits = Mapping[Split, Indices]
Proportions = tuple[int, int, int]
"""Shares of train, validation and test."""
Names = Sequence[str] | NDArray[Any]
"""One class, or one group, an example."""

_SWAPPED_GROUPS = 2_000  # beyond it, groups are so small a part that moving single ones is fine enough


def head(train_file: int, test_file: int, validation: int) -> Splits:
    """Take the first ``validation`` examples of the training file for validation, and the rest for training.

    TensorFlow's ``read_data_sets`` cuts MNIST so: the first 5,000 validate, the other 55,000 train. Examples of the
    test file are numbered after those of the training file.

    Raises:
        ValueError: nothing would be left to train on.

    >>> {name: indices.tolist() for name, indices in head(5, 2, 2).items()}
    {'train': [2, 3, 4], 'validation': [0, 1], 'test': [5, 6]}
    """
    if not 0 < validation < train_file:
        raise ValueError(f"cannot take {validation} of {train_file} training examples for validation")
    return {
        "train": np.arange(validation, train_file, dtype=np.int64),
        "validation": np.arange(validation, dtype=np.int64),
        "test": np.arange(train_file, train_file + test_file, dtype=np.int64),
    }


def consecutive(sizes: Mapping[Split, int]) -> Splits:
    """Number the examples through, one split behind the other, as data is that was generated for each.

    >>> {name: indices.tolist() for name, indices in consecutive({"train": 2, "validation": 1, "test": 2}).items()}
    {'train': [0, 1], 'validation': [2], 'test': [3, 4]}
    """
    ends = np.cumsum([sizes[name] for name in SPLITS]).tolist()
    return {
        name: np.arange(end - sizes[name], end, dtype=np.int64)
        for name, end in zip(SPLITS, ends, strict=True)
    }


def random(examples: int, proportions: Proportions, *, seed: int) -> Splits:
    """Shuffle all examples with numpy's PCG64 of this seed and cut them in proportion.

    >>> {name: len(indices) for name, indices in random(20, (7, 1, 2), seed=0).items()}
    {'train': 14, 'validation': 2, 'test': 4}
    """
    return stratified(np.zeros(examples, dtype=np.int64), proportions, seed=seed)


def stratified(labels: NDArray[np.integer], proportions: Proportions, *, seed: int) -> Splits:
    """Cut every class (or speaker) in proportion by itself, to the nearest whole example.

    >>> labels = np.repeat([0, 1], [10, 20])
    >>> [np.bincount(labels[indices]).tolist() for indices in stratified(labels, (7, 1, 2), seed=0).values()]
    [[7, 14], [1, 2], [2, 4]]
    """
    generator = np.random.default_rng(seed)
    total = sum(proportions)
    parts: dict[Split, list[Indices]] = {name: [] for name in SPLITS}
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        shares = np.cumsum(proportions)[:-1]
        cuts = (2 * len(members) * shares + total) // (2 * total)  # n * share / total, halves rounded up
        for name, part in zip(SPLITS, np.split(members, cuts), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)).astype(np.int64) for name, part in parts.items()}


def grouped(labels: Names, groups: Names, proportions: Proportions, *, seed: int) -> Splits:
    """Cut so that a group (a speaker, a patient) is in one split as a whole.

    Beginning with all in train, single groups are moved and pairs swapped, in an order drawn from the seed, as long as
    the squared distance to the proportions falls, counted over all examples and again over each class. Every class
    stays in train, and no split with a share is left empty; such a cut is near the proportions, but not proved nearest.

    Raises:
        DataError: there are not enough groups, or not enough groups of a class, for that.

    >>> groups = np.repeat(np.arange(10), 3)
    >>> [np.unique(groups[i]).size for i in grouped(groups % 2, groups, (6, 2, 2), seed=0).values()]
    [6, 2, 2]
    """
    class_names, classes = np.unique(np.asarray(labels), return_inverse=True)
    group_names, members = np.unique(np.asarray(groups), return_inverse=True)
    # column 0 counts all examples of a group, the others those of each class
    counts = np.zeros((len(group_names), 1 + len(class_names)))
    np.add.at(counts, (members, 1 + classes), 1)
    counts[:, 0] = counts[:, 1:].sum(axis=1)
    search = _GroupSearch(counts, proportions, np.random.default_rng(seed).permutation(len(group_names)))
    for split in (2, 1):
        if proportions[split] and not search.open(split):
            lone = class_names[(counts[:, 1:] > 0).sum(axis=0) == 1]
            why = f"; only one group has {', '.join(map(repr, lone[:5].tolist()))}" if lone.size else ""
            raise DataError(
                f"{len(group_names)} groups cannot be cut into {_words(proportions)} so that train keeps every "
                f"class{why}; give a split by hand, or groups that share their classes"
            )
    search.settle()
    chosen = search.where[members]
    return {name: np.flatnonzero(chosen == i).astype(np.int64) for i, name in enumerate(SPLITS)}


class _GroupSearch:
    """Local search of :func:`grouped`. Shapes: G groups, C = 1 + K columns of counts, 3 splits.

    Args:
        counts: (G, C) examples of each group, of all classes and of each.
        proportions: of the splits.
        order: (G,) in which groups are tried.
    """

    def __init__(
        self, counts: NDArray[np.float64], proportions: Proportions, order: NDArray[np.int64]
    ) -> None:
        self._counts, self._order = counts, order
        self._target = np.outer(np.array(proportions) / sum(proportions), counts.sum(axis=0))
        self._shares = np.array(proportions) > 0
        self.where = np.zeros(len(counts), dtype=np.int64)
        self._held = np.zeros_like(self._target)
        self._held[0] = counts.sum(axis=0)

    def open(self, split: int) -> bool:
        """Move the best group from train into the empty ``split``; False where train can spare none."""
        costs = np.array([self._gain(group, split) for group in self._order])
        best = int(np.argmin(costs))
        if costs[best] == np.inf:
            return False
        self._move(int(self._order[best]), split)
        return True

    def settle(self) -> None:
        """Move and swap until nothing gets better."""
        better = True
        while better:
            better = False
            for group in map(int, self._order):
                gains = [self._gain(group, split) for split in range(3)]
                split = int(np.argmin(gains))
                if gains[split] < -1e-9:
                    self._move(group, split)
                    better = True
                elif len(self._order) <= _SWAPPED_GROUPS:
                    better |= self._swap(group)

    def _gain(self, group: int, split: int) -> float:
        """Change of the squared distance if ``group`` moved; infinite where it may not."""
        here = int(self.where[group])
        left = self._held[here] - self._counts[group]
        if split == here or not self._shares[split] or left[0] == 0 or (here == 0 and (left == 0).any()):
            return np.inf
        rest = self._held - self._target
        change = self._counts[group]
        return float(2 * (change * (rest[split] - rest[here] + change)).sum())

    def _swap(self, group: int) -> bool:
        """Swap with the best group of another split, if that helps."""
        here = int(self.where[group])
        others = self._order[self.where[self._order] != here]
        there = self.where[others]
        change = self._counts[group] - self._counts[others]
        rest = self._held - self._target
        gains = 2 * (change * (rest[there] - rest[here] + change)).sum(axis=1)
        # train must keep every class, whichever of the two leaves it
        train = (
            self._held[0] - change if here == 0 else self._held[0] + np.where(there[:, None] == 0, change, 0)
        )
        gains[(train <= 0).any(axis=1)] = np.inf
        if not len(others) or gains.min() >= -1e-9:
            return False
        other = int(others[int(np.argmin(gains))])
        split = int(self.where[other])
        self._move(group, split)
        self._move(other, here)
        return True

    def _move(self, group: int, split: int) -> None:
        self._held[self.where[group]] -= self._counts[group]
        self._held[split] += self._counts[group]
        self.where[group] = split


def completed(
    given: Sequence[Split | None],
    labels: Names,
    groups: Names | None,
    proportions: Proportions,
    *,
    seed: int,
) -> Splits:
    """Keep the splits that the data comes with and cut those it lacks.

    Examples without a split are for training wherever others have one. A split that nothing was given for is cut from
    what there is for training, in proportion to its share and that of train: by :func:`grouped` where there are groups,
    else by :func:`stratified`. So with nothing given, all three are cut.

    Raises:
        DataError: a split would be empty, a group is in two of the splits given, or train never sees a class that
            validation or test has.

    >>> found = completed(["train"] * 10 + ["test"] * 4, np.arange(14) % 2, None, (4, 1, 0), seed=0)
    >>> {name: len(indices) for name, indices in found.items()}
    {'train': 8, 'validation': 2, 'test': 4}
    """
    names = np.asarray(labels)
    own = np.array([SPLITS.index(split or "train") for split in given], dtype=np.int64)
    if not len(own) == len(names) == (len(own) if groups is None else len(groups)):
        raise ValueError("not as many splits as labels or groups")
    if groups is not None:
        _refuse_shared_groups(own, np.asarray(groups))
    pool = np.flatnonzero(own == 0)
    missing = [i for i in (1, 2) if not (own == i).any()]
    if missing and pool.size:
        validation, test = (proportions[i] if i in missing else 0 for i in (1, 2))
        shares = (proportions[0], validation, test)
        if groups is None:
            cut = stratified(_numbers(names[pool]), shares, seed=seed)
        else:
            cut = grouped(names[pool], np.asarray(groups)[pool], shares, seed=seed)
        for i in missing:
            own[pool[cut[SPLITS[i]]]] = i
    found: dict[Split, Indices] = {
        name: np.flatnonzero(own == i).astype(np.int64) for i, name in enumerate(SPLITS)
    }
    for name in SPLITS:
        if not len(found[name]):
            raise DataError(
                f"no example is left for {name} ({len(own)} examples, cut {_words(proportions)}); "
                f"give {name} a larger share, or mark examples for it"
            )
    for name in SPLITS[1:]:
        unseen = np.setdiff1d(names[found[name]], names[found["train"]])
        if unseen.size:
            raise DataError(
                f"{name} has the class {str(unseen[0])!r}, which train never sees; "
                "add training examples of it, or remove it"
            )
    return found


def _refuse_shared_groups(own: NDArray[np.int64], groups: NDArray[Any]) -> None:
    first: dict[Any, int] = {}
    last: dict[Any, int] = {}
    for group, split in zip(groups.tolist(), own.tolist(), strict=True):
        first[group] = min(split, first.get(group, split))
        last[group] = max(split, last.get(group, split))
    for group, split in first.items():
        if split != last[group]:
            raise DataError(
                f"the group {str(group)!r} is in both {SPLITS[split]} and {SPLITS[last[group]]}, so one would leak "
                "into the other; put all of it into one split"
            )


def _numbers(names: NDArray[Any]) -> NDArray[np.int64]:
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _words(proportions: Proportions) -> str:
    return ":".join(map(str, proportions))


def split_hash(splits: Splits) -> str:
    """Return the first 16 hex digits of the SHA-256 of which example is in which split.

    Hashed are, for train, validation and test in this order: the name, a colon, the number of examples, a newline,
    and the indices as little-endian int64.
    """
    digest = hashlib.sha256()
    for name in SPLITS:
        digest.update(f"{name}:{len(splits[name])}\n".encode())
        digest.update(splits[name].astype("<i8").tobytes())
    return digest.hexdigest()[:16]
