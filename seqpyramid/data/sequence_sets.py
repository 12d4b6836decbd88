"""The sequences of a data set, read from whatever files it consists of, and the hashes that tell it from others.

Shapes: T time steps, F channels.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqpyramid.contracts import Split
from seqpyramid.data import arrays
from seqpyramid.data.manifest import FORMATS, SetFiles
from seqpyramid.data.sequence_tables import read_table, read_tables
from seqpyramid.data.timeseries import Series, read_ts, read_tsv
from seqpyramid.errors import DataError

Values = NDArray[np.float32]

_READERS = {"ts": read_ts, "tsv": read_tsv, "npz": arrays.read_npz, "hdf5": arrays.read_hdf5}
_LISTED_FILES = 20  # of more, a result names the hash of all alone


def read_set(files: SetFiles) -> tuple[Series, list[str]]:
    """Read a set with labels, with the splits that files or their names give, and what to call each sequence.

    Raises:
        DataError: a file is missing or damaged, has no labels, or does not fit the others.
    """
    if files.format == "csv":
        return read_tables(files.entries), [str(entry.path) for entry in files.entries]
    called: list[str] = []
    values: list[Values] = []
    labels: list[str] = []
    given: list[Split | None] = []
    groups: list[str] = []
    for path, split in files.files:
        part = _READERS[files.format](path)
        if part.labels is None:
            raise DataError(f"{path}: has no labels, without which nothing can be learnt; add them")
        if split is not None and part.splits is not None:
            raise DataError(
                f"{path}: is for {split} by its name, but names splits itself; remove one of the two"
            )
        if values and part.values[0].shape[1] != values[0].shape[1]:
            raise DataError(
                f"{path}: {part.values[0].shape[1]} channels, but {files.files[0][0].name} has "
                f"{values[0].shape[1]}; the files are not of one set"
            )
        called += [f"{path}[{row}]" for row in range(len(part.values))]
        values += part.values
        labels += part.labels
        given += part.splits if part.splits is not None else [split] * len(part.values)
        groups += part.groups or []
    if groups and len(groups) < len(values):
        raise DataError(
            f"{files.files[0][0].parent}: only some of the files have groups; give all of them groups"
        )
    return Series(values, labels, given, groups or None), called


def read_unlabelled(path: Path) -> Iterator[tuple[str, Values]]:
    """Yield name and raw values (T, F) of every sequence of a file; labels are passed over, a ``.csv`` is one sequence.

    Raises:
        DataError: the file is missing, damaged, or of no format that is read.
    """
    for kind, endings in FORMATS.items():
        if path.suffix.lower() in endings:
            if kind == "csv":
                yield str(path), read_table(path).values
            else:
                for row, value in enumerate(_READERS[kind](path).values):
                    yield f"{path}[{row}]", value
            return
    known = ", ".join(ending for endings in FORMATS.values() for ending in endings)
    raise DataError(f"{path}: its ending is none of {known}; convert it to one of these")


def content_hashes(files: SetFiles) -> list[list[str | None]]:
    """Return what a fingerprint holds of each file: its content and what it is, but not where it lies.

    Raises:
        DataError: a file cannot be read.
    """
    if files.format == "csv":
        return [[entry.label, entry.split, entry.group, _sha256(entry.path)] for entry in files.entries]
    return [[files.format, split, _sha256(path)] for path, split in files.files]


def named_hashes(files: SetFiles, hashes: list[list[str | None]]) -> dict[str, str | None]:
    """Return the hashes of the files by name; of many files, or of files of one name, one hash of all hashes."""
    paths = [entry.path for entry in files.entries] or [path for path, _ in files.files]
    if len(paths) > _LISTED_FILES or len({path.name for path in paths}) < len(paths):
        digest = hashlib.sha256("\n".join(str(words[-1]) for words in hashes).encode()).hexdigest()
        return {"of the hashes of all": digest}
    return {path.name: words[-1] for path, words in zip(paths, hashes, strict=True)}


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); mend the file or its permissions"
        ) from None
