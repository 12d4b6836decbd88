"""Which example is in which split: named, deterministic, and hashed.

A split is three index arrays over one numbering of all examples, each in ascending order, int64. Proportions are
whole numbers, as papers print them (7:1:2), so that no rounding of floats decides where an example goes.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from seqpyramid.contracts import SPLITS, Split

Indices = NDArray[np.int64]
Splits = Mapping[Split, Indices]
Proportions = tuple[int, int, int]
"""Shares of train, validation and test."""


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
