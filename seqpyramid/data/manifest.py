"""Which files make up a data set of the user's own, and what each of them is.

Two layouts are read:

* a manifest, a CSV file with the columns ``path`` and ``label``, and if wanted ``split`` and ``group``, in any order,
  separated by commas, semicolons or tabs; lines that are empty are passed over;
* one folder a class, with its files at any depth, under the root itself or under ``train``, ``validation``, ``test``.

Paths of a manifest are relative to the folder of the CSV. Absolute ones and ``..`` are allowed: a manifest is written
by the user, files are only ever read through it, and keeping it away from read-only recordings is good practice. A
file may be named once only, under whatever spelling or link: as two examples it could train and test at once.

:func:`find_set` looks further: for one file that holds a whole set, or one for each split, as the archives name them
(``GunPoint_TRAIN.ts`` and ``GunPoint_TEST.ts``), in a folder of its own or in a folder of many sets.

The words for splits, in any case: ``train`` or ``training``; ``validation``, ``valid``, ``val`` or ``dev``; ``test`` or
``testing``.
"""

import csv
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from seqpyramid.contracts import Split
from seqpyramid.errors import DataError
from seqpyramid.registry import near_miss

SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

FORMATS: dict[str, tuple[str, ...]] = {
    "ts": (".ts",),
    "tsv": (".tsv",),
    "npz": (".npz",),
    "hdf5": (".h5", ".hdf5"),
    "csv": (".csv",),
}
"""Endings of the files of each format that :func:`find_set` knows; a ``.csv`` is a manifest or one sequence."""

_REQUIRED = ("path", "label")
_COLUMNS = (*_REQUIRED, "split", "group")
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Entry:
    """One file of a data set."""

    path: Path
    label: str
    split: Split | None
    """None where the layout does not say."""
    group: str | None
    """What must stay in one split, such as a speaker; None where the layout does not say."""


@dataclass(frozen=True)
class SetFiles:
    """The files of one data set."""

    format: str
    """Key of :data:`FORMATS`."""
    files: tuple[tuple[Path, Split | None], ...]
    """Files that hold many sequences, and the split that their names give; empty for csv."""
    entries: tuple[Entry, ...] = ()
    """Files that hold one sequence each; csv only."""
    strays: tuple[Path, ...] = ()
    """Files in the class folders that were passed over; csv only."""


def split_of(where: str, word: str) -> Split | None:
    """Understand the word for a split; an empty one is None.

    Raises:
        DataError: it is no word for a split; ``where`` begins the sentence.
    """
    if not word:
        return None
    split = SPLIT_WORDS.get(word.lower())
    if split is None:
        shown = repr(word if len(word) <= 40 else f"{word[:37]}...")
        raise DataError(
            f"{where}: unknown split {shown}{near_miss(word.lower()[:40], SPLIT_WORDS)}; "
            "write train, validation or test, or nothing"
        )
    return split


def read_manifest(csv_path: Path) -> list[Entry]:
    """Read a manifest; see the module's docstring. Entries come in the order of its lines.

    Raises:
        DataError: it is missing, no such table, or a line of it is wrong or names a file that is not there.
    """
    try:
        with csv_path.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            delimiter = next((mark for mark in _DELIMITERS if mark in head), ",")
            lines = csv.reader(stream, delimiter=delimiter, strict=True)
            try:
                rows = [(lines.line_num, [field.strip() for field in row]) for row in lines]
            except csv.Error as error:
                raise DataError(
                    f"{csv_path}, line {lines.line_num}: no line of a CSV table ({error}); mend it"
                ) from None
    except FileNotFoundError:
        raise DataError(f"{csv_path}: no such manifest; name a CSV file with --source") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{csv_path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(
            f"{csv_path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from None
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows:
        raise DataError(f"{csv_path}: is empty; write a line {','.join(_REQUIRED)} and a line a file")
    columns = _columns(csv_path, *rows[0])
    entries: list[Entry] = []
    seen: dict[Path, int] = {}
    for number, row in rows[1:]:
        where = f"{csv_path}, line {number}"
        if len(row) != len(columns):
            raise DataError(
                f"{where}: {len(row)} fields, but the first line names {len(columns)} columns "
                f"({', '.join(columns)}); mend the line, and quote a field that holds {delimiter!r}"
            )
        entry = _entry(where, csv_path.parent, dict(zip(columns, row, strict=True)))
        real = entry.path.resolve()
        if real in seen:
            raise DataError(
                f"{where}: {entry.path} is named on line {seen[real]} already; remove one of the lines"
            )
        seen[real] = number
        entries.append(entry)
    if not entries:
        raise DataError(f"{csv_path}: names no file; write a line a file below the first")
    return entries


def folder_entries(root: Path, suffixes: Collection[str]) -> list[Entry]:
    """List the files of one folder a class, sorted by split folder, class and path; see the module's docstring.

    ``train`` may be a class too (bus, car, train): folders are taken for splits where they name two different
    splits, or where there is nothing but ``train``. What begins with a dot is passed over; what else is passed over
    is told by :func:`stray_files`.

    Args:
        root: the folder.
        suffixes: of the files that count, such as ``{".csv"}``; upper and lower case are the same.

    Raises:
        DataError: there is no such folder, it holds no such file in a class folder, or folders of splits and of
            classes lie side by side.
    """
    return _walk(root, suffixes)[0]


def stray_files(root: Path, suffixes: Collection[str]) -> list[Path]:
    """List the files under ``root`` that :func:`folder_entries` passes over, but for those that begin with a dot.

    Raises:
        DataError: as :func:`folder_entries`.
    """
    return _walk(root, suffixes)[1]


def find_set(source: Path, name: str | None = None, format: str | None = None) -> SetFiles:
    """Find the files of a data set.

    Args:
        source: a file; or a folder, of one set or of many.
        name: which set of a folder; None where there is one only.
        format: key of :data:`FORMATS`; None takes what is there.

    Raises:
        DataError: there is no such set, or it is not clear which is meant.
    """
    formats = {format: FORMATS[format]} if format is not None else FORMATS
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder; mend the path")
    if source.is_file():
        return _one_file(source, name, formats)
    if name is None:
        found = _set_in(source, None, formats)
        if found is not None:
            return found
        raise DataError(
            f"{source}: holds no sequences ({_endings(formats)}, manifest.csv, or a folder a class with CSV files)"
            f"{_sets_below(source, formats)}"
        )
    own = source / name
    found = _set_in(own, None, formats) if own.is_dir() else None
    found = found or _set_in(source, name, formats)
    if found is not None:
        return found
    folders, files = _look(source)
    near = near_miss(name, [folder.name for folder in folders] + list(_by_name(files, formats)))
    raise DataError(f"{source}: no data set {name!r} in it{near}{_sets_below(source, formats)}")


def _one_file(path: Path, name: str | None, formats: dict[str, tuple[str, ...]]) -> SetFiles:
    if name is not None:
        raise DataError(f"{path}: is a file, not a folder of sets, so leave out the set's name {name!r}")
    for kind, endings in formats.items():
        if path.suffix.lower() in endings:
            if kind == "csv":
                return SetFiles(kind, (), tuple(read_manifest(path)))
            return SetFiles(kind, ((path, None),))
    raise DataError(
        f"{path}: its ending is none of {_endings(formats)}; name another file, or mend the format"
    )


def _set_in(folder: Path, name: str | None, formats: dict[str, tuple[str, ...]]) -> SetFiles | None:
    """The set called ``name`` among the files of a folder, or the only one; None if there is none."""
    folders, files = _look(folder)
    sets = _by_name(files, formats)
    if name is not None:
        sets = {other: members for other, members in sets.items() if other.lower() == name.lower()}
    if len(sets) > 1:
        raise DataError(
            f"{folder}: holds {len(sets)} data sets ({_some(sets)}); choose one by name (task.dataset)"
        )
    if sets:
        return _whole(folder, *next(iter(sets.items())))
    if "csv" not in formats:
        return None
    manifest = folder / f"{name or 'manifest'}.csv"
    if manifest.is_file():
        return SetFiles("csv", (), tuple(read_manifest(manifest)))
    holds_tables = any(path.suffix.lower() == ".csv" for inner in folders for path in _files(inner))
    if name is None and holds_tables:
        entries, strays = _walk(folder, FORMATS["csv"])
        return SetFiles("csv", (), tuple(entries), tuple(strays))
    return None


def _by_name(
    files: list[Path], formats: dict[str, tuple[str, ...]]
) -> dict[str, list[tuple[str, Path, Split | None]]]:
    """Group files that hold many sequences by the name of their set: format, path and split of each."""
    sets: dict[str, list[tuple[str, Path, Split | None]]] = {}
    for path in files:
        for kind, endings in formats.items():
            if kind != "csv" and path.suffix.lower() in endings:
                stem, _, word = path.stem.rpartition("_")
                split = SPLIT_WORDS.get(word.lower()) if stem else None
                sets.setdefault(stem if split else path.stem, []).append((kind, path, split))
    return sets


def _whole(folder: Path, name: str, members: list[tuple[str, Path, Split | None]]) -> SetFiles:
    """Check that the files of one name are one set, and all of it."""
    kinds = sorted({kind for kind, _, _ in members})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: holds {name} in several formats ({', '.join(kinds)}); choose one (task.format)"
        )
    splits = [split for _, _, split in members]
    names = ", ".join(path.name for _, path, _ in members)
    if len(set(splits)) < len(splits) or (None in splits and len(splits) > 1):
        raise DataError(f"{folder}: which of {names} is meant is not clear; move one away, or name a file")
    if None not in splits:
        for needed in ("train", "test"):
            if needed not in splits:
                raise DataError(
                    f"{folder}: has {names}, but no {name}_{needed.upper()} file; put it there, "
                    "or name a single file to split it"
                )
    return SetFiles(kinds[0], tuple((path, split) for _, path, split in members))


def _sets_below(folder: Path, formats: dict[str, tuple[str, ...]]) -> str:
    """Say what could be chosen instead."""
    folders, files = _look(folder)
    inner = [child.name for child in folders if _by_name(_look(child)[1], formats)]
    known = sorted({*inner, *_by_name(files, formats)})
    return (
        f"; it has the sets {_some(known)}: choose one by name (task.dataset)" if known else "; mend the path"
    )


def _some(names: Collection[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")


def _endings(formats: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(ending for endings in formats.values() for ending in endings)


def _columns(path: Path, number: int, row: list[str]) -> list[str]:
    names = [name.lower() for name in row]
    where = f"{path}, line {number}"
    for name in names:
        if name not in _COLUMNS:
            raise DataError(
                f"{where}: unknown column {name!r}{near_miss(name, _COLUMNS)}; "
                f"the first line names the columns, of {', '.join(_COLUMNS)}"
            )
        if names.count(name) > 1:
            raise DataError(f"{where}: column {name!r} is there twice; remove one")
    for name in _REQUIRED:
        if name not in names:
            raise DataError(f"{where}: no column {name!r}; add it (needed: {', '.join(_REQUIRED)})")
    return names


def _entry(where: str, folder: Path, fields: dict[str, str]) -> Entry:
    for name in _REQUIRED:
        if not fields[name]:
            raise DataError(f"{where}: the {name} is empty; fill it in or remove the line")
    if "\0" in fields["path"]:
        raise DataError(f"{where}: the path holds a zero byte; mend the line")
    path = folder / fields["path"]
    try:
        there = path.is_file()
    except OSError as error:
        raise DataError(
            f"{where}: {path} cannot be looked at ({error.strerror}); mend the path or the permissions"
        ) from None
    if not there:
        raise DataError(f"{where}: no file {path}; mend the path, which is relative to the manifest's folder")
    split = split_of(where, fields.get("split", ""))
    if "group" in fields and not fields["group"]:
        raise DataError(f"{where}: the group is empty; fill it in, or leave the whole column out")
    return Entry(path, fields["label"], split, fields.get("group"))


def _walk(root: Path, suffixes: Collection[str]) -> tuple[list[Entry], list[Path]]:
    wanted = {suffix.lower() for suffix in suffixes}
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name one that holds a folder a class with --source")
    folders, strays = _look(root)
    named = {SPLIT_WORDS[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_WORDS}
    if len(named) < 2 and not (named == {"train"} and len(folders) == 1):
        entries = _classes(folders, wanted, None, strays)
    else:
        entries = []
        for folder in folders:
            split = SPLIT_WORDS.get(folder.name.lower())
            if split is None:
                if _classes([folder], wanted, None, strays):
                    raise DataError(
                        f"{folder}: lies beside folders of splits ({', '.join(sorted(named))}), so whether it is a "
                        "class or a split is not clear; move it away, or into one of them"
                    )
                continue
            inner, loose = _look(folder)
            for path in loose:
                if path.suffix.lower() in wanted:
                    raise DataError(f"{path}: lies in no folder of a class; move it to {folder}/CLASS/")
            strays += loose
            entries += _classes(inner, wanted, split, strays)
    if not entries:
        raise DataError(
            f"{root}: no {' or '.join(sorted(wanted))} file in a folder of its class ({len(folders)} folders and "
            f"{len(strays)} other files are there); put the files into {root}/CLASS/"
        )
    return entries, strays


def _classes(folders: list[Path], wanted: set[str], split: Split | None, strays: list[Path]) -> list[Entry]:
    """Entries of class folders; what is none is added to ``strays``."""
    entries = []
    for folder in folders:
        for path in _files(folder):
            if path.suffix.lower() in wanted:
                entries.append(Entry(path, folder.name, split, None))
            else:
                strays.append(path)
    return entries


def _look(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files right in ``folder``, sorted, but for those that begin with a dot."""
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); mend the permissions") from None
    return [path for path in inside if path.is_dir()], [path for path in inside if not path.is_dir()]


def _files(folder: Path) -> list[Path]:
    """All files below ``folder``, sorted; links to folders are not followed, so there are no rings."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); mend the permissions")

    found = []
    for here, inner, names in os.walk(folder, onerror=refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(here) / name for name in names if not name.startswith(".")]
    return sorted(found)
