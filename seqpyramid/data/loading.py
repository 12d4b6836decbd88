"""Examples, datasets and the order in which they are read.

The order of an epoch is a pure function of (seed, epoch), so a resumed run skips to its place at no cost.

Shapes: N examples, B batch, T time steps, F input features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seqpyramid.contracts import Batch

IGNORED = -1
"""Target of a step that is not scored: padding, or what is read for its context alone."""


class Example(NamedTuple):
    """One sequence and its target."""

    x: Tensor
    """(T, F)."""
    y: Tensor


def collate(examples: list[Example]) -> Batch:
    """Pad examples with zeros on the right to the longest of them.

    >>> collate([Example(torch.ones(2, 1), torch.tensor(0)), Example(torch.ones(3, 1), torch.tensor(1))]).x[0].T
    tensor([[1., 1., 0.]])
    """
    return Batch(
        x=pad_sequence([e.x for e in examples], batch_first=True),
        lengths=torch.tensor([len(e.x) for e in examples]),
        y=torch.stack([e.y for e in examples]),
    )


def collate_steps(examples: list[Example], *, padding: float = 0.0) -> Batch:
    """Pad examples whose targets are one a step; ``padding`` stands past the end of the targets.

    >>> both = [Example(torch.ones(n, 1), torch.ones(n)) for n in (1, 2)]
    >>> collate_steps(both, padding=IGNORED).y.tolist()
    [[1.0, -1.0], [1.0, 1.0]]
    """
    return Batch(
        x=pad_sequence([e.x for e in examples], batch_first=True),
        lengths=torch.tensor([len(e.x) for e in examples]),
        y=pad_sequence([e.y for e in examples], batch_first=True, padding_value=padding),
    )


class Dataset(ABC):
    """One split of a task."""

    @abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Return one example as the model will see it."""

    def batch(self, indices: Tensor) -> Batch:
        """Gather the examples named by ``indices`` (B,); override where it can be done in one stroke."""
        return collate([self[int(i)] for i in indices])

    def to(self, device: torch.device) -> Self:
        """Return the dataset with its stored arrays on ``device``; by default they stay where they are."""
        return self

    @property
    def nbytes(self) -> int:
        """Size of the stored arrays, where they could move to a device; 0 where they cannot."""
        return 0

    def plan(self, batch_size: int, *, seed: int, epoch: int, shuffle: bool = True) -> list[Tensor]:
        """Return the index tensors (B,) of one epoch's batches, in order; the last may be short."""
        order = shuffled(len(self), seed=seed, epoch=epoch) if shuffle else torch.arange(len(self))
        return list(torch.split(order, batch_size))


def shuffled(n: int, *, seed: int, epoch: int) -> Tensor:
    """Return a permutation of 0..n-1 that depends on (n, seed, epoch) alone.

    >>> shuffled(5, seed=0, epoch=1).tolist() == shuffled(5, seed=0, epoch=1).tolist()
    True
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(n, generator=generator)


class ArrayDataset(Dataset):
    """Sequences of one length, held as one array and turned into inputs a batch at a time.

    Args:
        x: (N, ...) stored values, any dtype.
        y: (N, ...) targets.
        transform: (B, ...) stored values -> (B, T, F) inputs; runs where the data lies.
    """

    def __init__(self, x: Tensor, y: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        if len(x) != len(y):
            raise ValueError(f"{len(x)} sequences but {len(y)} targets")
        self._x, self._y, self._transform = x, y, transform

    def __len__(self) -> int:
        return len(self._y)

    def __getitem__(self, index: int) -> Example:
        return Example(self._transform(self._x[index : index + 1])[0], self._y[index])

    def batch(self, indices: Tensor) -> Batch:
        """Gather in one stroke."""
        here = indices.to(self._x.device)
        x = self._transform(self._x[here])
        return Batch(x, torch.full((len(x),), x.shape[1], dtype=torch.int64), self._y[here])

    @property
    def nbytes(self) -> int:
        """Size of both arrays."""
        return self._x.nbytes + self._y.nbytes

    def to(self, device: torch.device) -> Self:
        """Hold the arrays on ``device``."""
        return type(self)(self._x.to(device), self._y.to(device), self._transform)
