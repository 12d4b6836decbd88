"""Sequences as arrays: ``.npz`` and HDF5 files with agreed names.

    x        (N, T, F), or (N, T) for one feature: numbers; NaN is a missing value
    y        (N,) classes: whole numbers, or text
    lengths  (N,) steps of each sequence, 1 to T; what stands behind them is not read; without it all have T steps
    split    (N,) text: train, validation or test
    group    (N,) whole numbers or text: what must stay in one split

or, instead of ``split``, each of the others by itself for each split: ``x_train``, ``y_train``, ``x_test`` and so on,
with the words for splits of :mod:`seqpyramid.data.manifest`. Names may be in any case. ``y`` may be left out where no
labels are wanted. Other names are refused: a ``lenghts`` that is passed over would train on padding.

A file may come from anywhere, so it never runs code and never fills memory: pickled objects, links out of the file,
virtual and external data sets are refused; so is an array whose header disagrees with its bytes, or whose content
unpacks to more than 128 MiB and more than 200 times its stored size (NumPy's own files of zeros reach 1000 times).

Shapes: N sequences, T time steps, F features.
"""

import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from seqpyramid.contracts import SPLITS, Split
from seqpyramid.data.manifest import SPLIT_WORDS, split_of
from seqpyramid.data.timeseries import Series, plain_label, single
from seqpyramid.errors import DataError
from seqpyramid.registry import near_miss

_PARTS = ("x", "y", "lengths", "group")
_NAMES = (*_PARTS, "split")
_SMALL = 2**27
_RATIO = 200
_READ_BYTES = 2**20


@dataclass(frozen=True)
class _Member:
    """One array of a file, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    text: bool
    read: Callable[[], NDArray[Any]]


def read_npz(path: Path) -> Series:
    """Read a ``.npz`` file; see the module's docstring.

    Raises:
        DataError: it is missing, damaged, hostile, or its arrays do not fit together.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members: dict[str, _Member] = {}
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    raise DataError(f"{path}: {info.filename!r} in it is no array; write it with numpy.savez")
                name = _new_name(path, info.filename.removesuffix(".npy"), members)
                members[name] = _npy(path, archive, info)
            return _series(path, members)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check its name") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: no .npz file, or damaged ({error}); write it with numpy.savez") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None


def read_hdf5(path: Path) -> Series:
    """Read an HDF5 file; see the module's docstring.

    Raises:
        DataError: it is missing, damaged, hostile, or its arrays do not fit together.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check its name")
    try:
        with h5py.File(path, "r", locking=False) as file:
            members: dict[str, _Member] = {}
            for name in file:
                key = _new_name(path, name, members)
                members[key] = _hdf5_member(path, file, name)
            return _series(path, members)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(f"{path}: no HDF5 file, or damaged ({error}); write it again") from None


def _new_name(path: Path, name: str, members: dict[str, _Member]) -> str:
    """Bring a name into the form x or x_train, refusing unknown ones before anything of theirs is looked at."""
    part, _, word = name.lower().partition("_")
    split = SPLIT_WORDS.get(word)
    known = part in _NAMES if not word else part in _PARTS and split is not None
    if not known:
        shown = name if len(name) <= 40 else f"{name[:37]}..."
        wishes = [*_NAMES, *(f"{part}_{split}" for part in _PARTS for split in SPLITS)]
        raise DataError(
            f"{path}: unknown array {shown!r}{near_miss(shown.lower(), wishes)}; "
            f"names are {', '.join(_NAMES)}, or x_train, y_train and so on; rename or remove it"
        )
    key = part if split is None else f"{part}_{split}"
    if key in members:
        raise DataError(f"{path}: two arrays mean {key}; remove one")
    return key


def _npy(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    where = f"{path}: {info.filename}"
    _refuse_bomb(where, info.file_size, info.compress_size)
    with archive.open(info) as stream:
        shape, fortran, dtype, header = _npy_header(where, stream)
    if dtype.kind not in "biufUS":
        raise DataError(
            f"{where} holds {_kind(dtype)}, which may run code when it is read, or is no number; "
            "store plain numbers or text"
        )
    announced = math.prod(shape) * dtype.itemsize
    if announced != info.file_size - header:
        raise DataError(
            f"{where} announces {announced} bytes in shape {shape} but holds {info.file_size - header}; write it again"
        )

    def read() -> NDArray[Any]:
        with archive.open(info) as stream:
            stream.read(header)
            content = bytearray()  # grows with what is there
            while block := stream.read(_READ_BYTES):
                content += block
        if len(content) != announced:
            raise DataError(f"{where} is cut short; write it again")
        return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if fortran else "C")

    return _Member(shape, dtype, dtype.kind in "US", read)


def _npy_header(where: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran's order, dtype, and bytes of the header; nothing is allocated for the array."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise DataError(f"{where} is in version {version} of NumPy's format; write plain numbers or text")
    return tuple(int(n) for n in shape), bool(fortran), dtype, stream.tell()


def _hdf5_member(path: Path, file: h5py.File, name: str) -> _Member:
    where = f"{path}: {name}"
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise DataError(f"{where} is a link, which may lead out of the file; store the array itself")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{where} is no array; store it as a data set")
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{where} keeps its data in another file; store the array itself")
    if dataset.shape is None:
        raise DataError(f"{where} is empty; write it again")
    text = h5py.check_string_dtype(dataset.dtype) is not None
    if not text and dataset.dtype.kind not in "biuf":
        raise DataError(f"{where} holds {_kind(dataset.dtype)}; store plain numbers or text")
    _refuse_bomb(where, math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size())

    def read() -> NDArray[Any]:
        if text:
            return np.array(dataset.asstr()[...].tolist(), dtype=np.str_)
        values: NDArray[Any] = dataset[...]
        return values

    return _Member(tuple(int(n) for n in dataset.shape), dataset.dtype, text, read)


def _refuse_bomb(where: str, unpacked: int, stored: int) -> None:
    if unpacked > _SMALL and unpacked > _RATIO * stored:
        raise DataError(
            f"{where} would unpack {stored} bytes to {unpacked}, which no recording does; store what is there alone"
        )


def _kind(dtype: np.dtype[Any]) -> str:
    return "Python objects" if dtype.hasobject else f"values of type {str(dtype)[:40]}"


def _series(path: Path, members: dict[str, _Member]) -> Series:
    """Put the arrays of a file together."""
    suffixed = [split for split in SPLITS if any(name.endswith(f"_{split}") for name in members)]
    if not suffixed:
        return _part(path, members, None)
    plain = [name for name in members if "_" not in name]
    if plain:
        raise DataError(
            f"{path}: has {plain[0]} beside arrays of single splits (_{suffixed[0]}); use one of the two layouts"
        )
    parts = []
    for split in suffixed:
        mine = {name: member for name, member in members.items() if name.endswith(f"_{split}")}
        parts.append(_part(path, mine, split))
    features = {part.values[0].shape[1] for part in parts}
    if len(features) > 1:
        raise DataError(f"{path}: x has {sorted(features)} features in different splits; make them equal")
    labelled = [part.labels is not None for part in parts]
    grouped = [part.groups is not None for part in parts]
    for name, present in (("y", labelled), ("group", grouped)):
        if any(present) and not all(present):
            raise DataError(f"{path}: {name}_{suffixed[present.index(False)]} is missing; add it")
    return Series(
        values=[value for part in parts for value in part.values],
        labels=[label for part in parts for label in part.labels or ()] if all(labelled) else None,
        splits=[split for part in parts for split in part.splits or ()],
        groups=[group for part in parts for group in part.groups or ()] if all(grouped) else None,
    )


def _part(path: Path, members: dict[str, _Member], split: Split | None) -> Series:
    """The sequences of one split, or of a file without splits in its names."""

    def found(part: str) -> tuple[str, _Member | None]:
        name = part if split is None else f"{part}_{split}"
        return f"{path}: {name}", members.get(name)

    where, x = found("x")
    if x is None:
        raise DataError(f"{where.replace(': ', ': no array called ')}; add it")
    if x.text:
        raise DataError(f"{where} holds text; store numbers of shape (N, T, F) or (N, T)")
    if len(x.shape) not in (2, 3) or min(x.shape) < 1:
        raise DataError(f"{where} has shape {x.shape}, not (N, T, F) or (N, T) with at least one of each")
    for part in ("y", "lengths", "group", "split"):
        name, member = found(part)
        if member is not None and member.shape != x.shape[:1]:
            raise DataError(
                f"{name} has shape {member.shape}, but x has {x.shape[0]} sequences; make it that long"
            )
    name, member = found("lengths")
    lengths = None if member is None else _lengths(name, member, x.shape[1])
    values = _values(where, x, lengths)
    name, member = found("y")
    labels = None if member is None else _texts(name, member)
    name, member = found("group")
    groups = None if member is None else _texts(name, member)
    splits: list[Split | None] | None = None if split is None else [split] * len(values)
    name, member = found("split")
    if member is not None and split is None:
        if not member.text:
            raise DataError(f"{name} holds numbers; write train, validation or test")
        splits = [split_of(f"{name}[{i}]", word) for i, word in enumerate(_plain(name, member))]
    return Series(values, labels, splits, groups)


def _lengths(where: str, member: _Member, longest: int) -> NDArray[np.int64]:
    if member.text or member.dtype.kind not in "iu":
        raise DataError(f"{where} holds {_kind(member.dtype)}; store whole numbers")
    lengths = member.read()
    wrong = np.flatnonzero((lengths < 1) | (lengths > longest))
    if wrong.size:
        row = int(wrong[0])
        raise DataError(f"{where}[{row}] is {lengths[row]}, but x has {longest} steps; write 1 to {longest}")
    return lengths.astype(np.int64)


def _values(where: str, x: _Member, lengths: NDArray[np.int64] | None) -> list[NDArray[np.float32]]:
    raw = x.read()
    raw = raw[..., None] if raw.ndim == 2 else raw
    values: list[NDArray[np.float32]] = []
    for row, sequence in enumerate(raw):
        read = sequence if lengths is None else sequence[: lengths[row]]
        if np.isinf(read).any():
            step = int(np.argwhere(np.isinf(read))[0, 0])
            raise DataError(f"{where}[{row}] is infinite at step {step}; write NaN where a value is missing")
        values.append(single(f"{where}[{row}]", read.astype(np.float64)))
    return values


def _texts(where: str, member: _Member) -> list[str]:
    """Classes or groups as text; whole numbers without a fraction."""
    texts = _plain(where, member)
    for row, text in enumerate(texts):
        if not text:
            raise DataError(f"{where}[{row}] is empty; write a name")
    return texts


def _plain(where: str, member: _Member) -> list[str]:
    """Every entry as text, empty ones too."""
    values = member.read()
    if values.dtype.kind == "f":
        if not (np.isfinite(values) & (values == np.floor(values))).all():
            raise DataError(f"{where} holds fractions; name classes and groups by whole numbers or text")
        return [plain_label(repr(value)) for value in values.tolist()]
    if values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is no UTF-8 text ({error.reason}); write it as UTF-8") from None
    return [str(value).strip() for value in values.tolist()]
