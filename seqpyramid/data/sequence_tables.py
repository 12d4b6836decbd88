"""Sequences as tables: a CSV file each, a line a time step, a column a feature.

The first line may name the columns; it is taken for that where none of its fields is a number. Fields are separated by
tabs, semicolons or commas: by the first of these that the first line has. An empty field, ``?`` and NaN are missing
values. All files of a data set have the same columns, and where they name them, the same names in the same order.

Shapes: T time steps, F features.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqpyramid.data.manifest import Entry
from seqpyramid.data.timeseries import Series, numbers, single, text_lines
from seqpyramid.errors import DataError

_SEPARATORS = "\t;,"
_MISSING = ("", "?")


@dataclass(frozen=True)
class Table:
    """One sequence."""

    values: NDArray[np.float32]
    """(T, F); missing values are NaN, and all others finite."""
    columns: tuple[str, ...] | None
    """Names of the F features; None where the file does not name them."""


def read_table(path: Path) -> Table:
    """Read one file; see the module's docstring.

    Raises:
        DataError: it is missing or no table of numbers; the sentence names the line.
    """
    columns: tuple[str, ...] | None = None
    separator: str | None = None
    rows: list[NDArray[np.float64]] = []
    for number, line in text_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        if separator is None:
            separator = next((mark for mark in _SEPARATORS if mark in line), ",")
            columns = _header(where, line, separator)
            if columns is not None:
                continue
        rows.append(numbers(where, line, separator, missing=_MISSING))
        width = len(rows[0]) if columns is None else len(columns)
        if len(rows[-1]) != width:
            raise DataError(
                f"{where}: {len(rows[-1])} fields, but the first line has {width}; "
                "mend the line (the file may be cut short)"
            )
    if not rows:
        raise DataError(f"{path}: has no line of numbers; a table has a line a time step")
    return Table(single(str(path), np.stack(rows)), columns)


def read_tables(entries: Sequence[Entry]) -> Series:
    """Read the files of a manifest or of one folder a class.

    Raises:
        DataError: a file is damaged, or its columns are not those of the first.
    """
    values: list[NDArray[np.float32]] = []
    first: tuple[Path, tuple[str, ...]] | None = None
    for entry in entries:
        table = read_table(entry.path)
        if values and table.values.shape[1] != values[0].shape[1]:
            raise DataError(
                f"{entry.path}: {table.values.shape[1]} columns, but {entries[0].path} has "
                f"{values[0].shape[1]}; give all files the same columns"
            )
        values.append(table.values)
        if table.columns is None:
            continue
        first = first or (entry.path, table.columns)
        for i, (mine, other) in enumerate(zip(table.columns, first[1], strict=True)):
            if mine != other:
                raise DataError(
                    f"{entry.path}: column {i + 1} is called {mine!r}, but {other!r} in {first[0]}; "
                    "give all files the same columns in the same order"
                )
    groups = [entry.group for entry in entries]
    named = [group for group in groups if group is not None]
    return Series(
        values,
        [entry.label for entry in entries],
        [entry.split for entry in entries],
        named if len(named) == len(groups) else None,
    )


def _header(where: str, line: str, separator: str) -> tuple[str, ...] | None:
    """Names of the columns, or None where the line is numbers."""
    try:
        (fields,) = csv.reader([line], delimiter=separator, strict=True)
    except csv.Error as error:
        raise DataError(f"{where}: no line of a table ({error}); mend it") from None
    names = tuple(field.strip() for field in fields)
    numeric = [_is_number(name) for name in names]
    if all(numeric):
        return None
    if any(numeric[i] and names[i] not in _MISSING for i in range(len(names))):
        raise DataError(
            f"{where}: {names[numeric.index(False)]!r} is no number, yet others are, so this is neither names nor "
            "values; mend the line"
        )
    for i, name in enumerate(names):
        if not name:
            raise DataError(f"{where}: column {i + 1} has no name; name all columns, or none")
        if name in names[:i]:
            raise DataError(f"{where}: two columns are called {name!r}; rename one")
    return names


def _is_number(text: str) -> bool:
    if text in _MISSING:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
