"""Many labelled recordings: how they are named, and how their sequences of unequal lengths are held in memory.

Shapes: N sequences, B batch, T time steps, F features, S time steps of all sequences together.
"""

import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqpyramid.contracts import Batch
from seqpyramid.data import cache
from seqpyramid.data.loading import Dataset, Example
from seqpyramid.data.manifest import Entry
from seqpyramid.errors import DataError

Floats = NDArray[np.float64]

_READ_STEPS = 2**18


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that reads digits as numbers, and sorts them before letters.

    >>> sorted(["10", "b2", "9", "b10"], key=natural)
    ['9', '10', 'b2', 'b10']
    """
    parts = re.findall(r"([0-9]+)|([^0-9]+)", text)
    return [(0, int(digits), digits) if digits else (1, 0, letters) for digits, letters in parts]


def relative_key(path: Path, root: Path) -> str:
    """Name a file by its path from ``root``, with slashes on every system; ``..`` leads out where it must.

    >>> relative_key(Path("/a/b/c.wav"), Path("/a/d"))
    '../b/c.wav'
    """
    return Path(os.path.relpath(path, root)).as_posix()


def pattern_entries(root: Path, pattern: str, suffixes: Collection[str]) -> list[Entry]:
    """List the recordings at any depth under ``root`` whose names say what they are, sorted by path.

    Args:
        root: the folder.
        pattern: a regular expression that matches the whole name without its ending; its group ``label`` is the
            class, and its group ``group``, if any, what must stay in one split where that is asked for.
        suffixes: of the files that count, in lower case.

    Raises:
        DataError: there is no recording, or one does not match: it would be lost silently.
    """
    try:
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot look here ({error.strerror}); mend that") from None
    if not paths:
        raise DataError(
            f"{root}: no {', '.join(sorted(suffixes))} file is in it or below; name another folder"
        )
    entries, unmatched = [], []
    for path in paths:
        match = re.fullmatch(pattern, path.stem)
        label = match["label"] if match is not None else None
        if match is None or not label:
            unmatched.append(path)
        else:
            entries.append(Entry(path, label, None, match.groupdict().get("group")))
    if unmatched:
        raise DataError(
            f"{unmatched[0]}: the name does not match task.label_pattern {pattern!r} ({len(unmatched)} of "
            f"{len(paths)} recordings do not); widen the pattern, or move them elsewhere"
        )
    return entries


def store_facts(file: h5py.File, facts: dict[str, Any]) -> None:
    """Store JSON in a cache, which holds numbers alone, as the bytes of its text (ASCII, so any file name fits)."""
    text = json.dumps(facts, sort_keys=True, allow_nan=False).encode("ascii")
    cache.store(file, "facts", np.frombuffer(text, dtype=np.uint8))


def read_facts(file: h5py.File) -> dict[str, Any]:
    """Read what :func:`store_facts` stored."""
    facts: dict[str, Any] = json.loads(file["facts"][...].tobytes())
    return facts


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of every feature, (F,) each; a feature that never changes is left at its mean."""

    mean: Floats
    deviation: Floats

    @classmethod
    def fit(cls, file: h5py.File, chosen: NDArray[np.int64]) -> Self:
        """Measure the steps of the ``chosen`` sequences of a cache, in float64 and a part at a time.

        The sums are taken about the first step, so that a large mean does not swallow a small deviation.
        """
        values = file["sequences/values"]
        count, origin = 0, values[0].astype(np.float64)
        total, squares = np.zeros_like(origin), np.zeros_like(origin)
        for first, last in _runs(file["sequences/offsets"][...], chosen):
            for start in range(first, last, _READ_STEPS):
                part = values[start : min(last, start + _READ_STEPS)].astype(np.float64) - origin
                count += len(part)
                total += part.sum(axis=0)
                squares += np.square(part).sum(axis=0)
        mean = total / count
        return cls(mean + origin, np.sqrt(np.maximum(squares / count - np.square(mean), 0)))

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Subtract the means and divide by the deviations: (T, F) -> (T, F).

        In float64, and so a part at a time: whole corpora are scaled here.
        """
        divisor = np.where(self.deviation > 0, self.deviation, 1.0)
        scaled = np.empty_like(values)
        for start in range(0, len(values), _READ_STEPS):
            scaled[start : start + _READ_STEPS] = (values[start : start + _READ_STEPS] - self.mean) / divisor
        return scaled

    def as_json(self) -> dict[str, list[float]]:
        """Return both as lists."""
        return {"mean": self.mean.tolist(), "deviation": self.deviation.tolist()}

    @classmethod
    def from_json(cls, stored: dict[str, list[float]]) -> Self:
        """Undo :meth:`as_json`."""
        return cls(np.array(stored["mean"], np.float64), np.array(stored["deviation"], np.float64))


def read_chosen(file: h5py.File, chosen: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read some sequences (ascending) of a cache: their steps end to end (S, F), and their offsets (N + 1)."""
    offsets = file["sequences/offsets"][...]
    own = np.concatenate([[0], np.cumsum(offsets[chosen + 1] - offsets[chosen])]).astype(np.int64)
    values = file["sequences/values"]
    steps = np.empty((int(own[-1]), values.shape[1]), dtype=np.float32)
    done = 0
    for first, last in _runs(offsets, chosen):
        values.read_direct(steps, np.s_[first:last], np.s_[done : done + last - first])
        done += last - first
    return steps, own


def _runs(offsets: NDArray[np.int64], chosen: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Where the chosen sequences lie, neighbours joined: one read a run is many times faster than one a sequence."""
    breaks = np.flatnonzero(np.diff(chosen) != 1) + 1
    return [(int(offsets[run[0]]), int(offsets[run[-1] + 1])) for run in np.split(chosen, breaks) if run.size]


class SequenceDataset(Dataset):
    """Sequences of unequal lengths, held end to end and gathered a batch at a time.

    Args:
        steps: (S, F) float32, one sequence after the other.
        offsets: (N + 1,) int64 on the CPU: sequence n is ``steps[offsets[n]:offsets[n + 1]]``.
        y: (N,) targets.
    """

    def __init__(self, steps: Tensor, offsets: Tensor, y: Tensor) -> None:
        self._steps, self._offsets, self._y = steps, offsets, y

    def __len__(self) -> int:
        return len(self._y)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        first, last = self._offsets[index : index + 2].tolist()
        return Example(self._steps[first:last], self._y[index])

    def batch(self, indices: Tensor) -> Batch:
        """Gather in one stroke; zeros stand past each sequence's end."""
        rows, device = indices.cpu(), self._steps.device
        first = self._offsets[rows]
        lengths = self._offsets[rows + 1] - first
        steps = torch.arange(int(lengths.max()))
        outside = (steps >= lengths[:, None]).to(device)
        places = (first[:, None] + steps).clamp_(max=len(self._steps) - 1).to(device)
        x = self._steps.index_select(0, places.flatten()).view(*places.shape, -1)
        return Batch(x.masked_fill_(outside[..., None], 0.0), lengths, self._y[rows.to(device)])

    def to(self, device: torch.device) -> Self:
        """Hold the arrays on ``device``; the offsets stay, for lengths are read on the CPU."""
        return type(self)(self._steps.to(device), self._offsets, self._y.to(device))

    @property
    def nbytes(self) -> int:
        """Size of steps and targets."""
        return self._steps.nbytes + self._y.nbytes
