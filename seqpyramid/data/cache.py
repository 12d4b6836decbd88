"""The HDF5 cache: built once, checked whenever it is opened, never changed.

A cache is an HDF5 file behind a 512-byte user block (HDF5's own name for room before its data, so any HDF5 tool
reads it). The block holds the format number and the SHA-256 of everything after it. The hash is there because
``fletcher32`` guards the data chunks alone: a flipped bit in a header is silent, or makes the HDF5 library crash,
and must be seen before the library parses the file.

Inside are groups and chunked datasets of plain numbers, each with ``fletcher32``, and the attributes format,
fingerprint, code_version and created_by. Sequences of unequal lengths are one flat array and offsets.
"""

import hashlib
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

import seqpyramid
from seqpyramid.data.locks import only_builder
from seqpyramid.errors import DataError, IntegrityError, ResourceError, UserError
from seqpyramid.rundir import resource_error, write_atomically

FORMAT = 1
"""Raised when what a reader finds in a cache changes."""

_USER_BLOCK = 512
_MARK = b"seqpyramid cache "
_CHUNK_BYTES = 2**18  # four fit HDF5's default chunk cache, so appending never reads a chunk back
_READ_BYTES = 2**20
_MAX_DEPTH = 8
_REBUILD = "run `seqpyramid prepare-data RECIPE --force`"


def fingerprint(content: Mapping[str, Any]) -> str:
    """Return the first 16 hex digits of the SHA-256 of ``content`` as canonical JSON.

    >>> fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_path(folder: Path, task: str, fingerprint: str) -> Path:
    """Return where the cache of ``task`` with this fingerprint lives.

    >>> cache_path(Path("caches"), "digits", "0123456789abcdef").name
    'digits-0123456789abcdef.h5'
    """
    return folder / f"{task}-{fingerprint}.h5"


def point(folder: Path, task: str, key: str, fingerprint: str) -> None:
    """Remember which cache a source led to, so that later commands find it without the source.

    Args:
        folder: of the caches.
        task: registry name.
        key: fingerprint of the task's config without the source.
        fingerprint: of the cache.

    Raises:
        ResourceError: the folder cannot be written.
    """
    write_atomically(folder / f"{task}-{key}.latest", f"{fingerprint}\n".encode())


def pointed(folder: Path, task: str, key: str) -> str | None:
    """Return the fingerprint that :func:`point` remembered last; None if there is none."""
    try:
        found = (folder / f"{task}-{key}.latest").read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    return found if len(found) == 16 else None


def build(path: Path, fingerprint: str, write: Callable[[h5py.File], None], *, force: bool = False) -> bool:
    """Build the cache at ``path`` unless it is there; return whether this call built it.

    ``write`` fills an open file with :func:`store`, :func:`store_stream` and :func:`store_unequal`. One process
    builds at a time; the others wait and then find the result. The file is written beside its place, closed,
    checked, and renamed, so a process that dies leaves at most a temporary file, which the next builder removes.

    Raises:
        ResourceError: the disk is full or the folder cannot be written; an older cache is untouched.
    """
    if path.exists() and not force:
        return False
    with only_builder(path):
        if path.exists() and not force:
            return False
        put(path, fingerprint, write)
        return True


def put(path: Path, fingerprint: str, write: Callable[[h5py.File], None]) -> None:
    """Build the cache at ``path`` as :func:`build` does; the caller holds ``locks.only_builder``."""
    temporary = path.with_name(f".{path.name}.part")  # one name is enough: only the lock's holder writes it
    try:
        _write(temporary, path, fingerprint, write)
        _check(temporary, fingerprint, read_through=True).close()
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise resource_error(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


def open_checked(path: Path, fingerprint: str) -> h5py.File:
    """Open a cache for reading after reading all of it once; the caller closes it.

    Raises:
        DataError: there is no such file.
        IntegrityError: it is damaged, of another fingerprint, of a newer format, or no cache at all.
        ResourceError: the file may not be read.
    """
    return _check(path, fingerprint, read_through=False)


def store(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    """Store an array of numbers under ``name``."""
    rows = _chunk_rows(name, values)
    _create(group, name, values, min(rows, max(1, len(values))))[...] = values


def store_stream(group: h5py.Group, name: str, blocks: Iterable[NDArray[Any]]) -> None:
    """Store blocks, which differ in length alone, as one array: for what does not fit into memory at once.

    Raises:
        ValueError: there is no block at all.
    """
    dataset = None
    for block in blocks:
        if dataset is None:
            dataset = _create(group, name, block[:0], _chunk_rows(name, block))
        old = len(dataset)
        dataset.resize(old + len(block), axis=0)
        dataset[old:] = block
    if dataset is None:
        raise ValueError(f"{name}: nothing to store")


def store_unequal(group: h5py.Group, name: str, sequences: Iterable[NDArray[Any]]) -> None:
    """Store sequences of unequal lengths as ``name/values`` (all, end to end) and ``name/offsets`` (N + 1)."""
    ends = [0]

    def measured() -> Iterator[NDArray[Any]]:
        for sequence in sequences:
            ends.append(ends[-1] + len(sequence))
            yield sequence

    store_stream(group, f"{name}/values", measured())
    store(group, f"{name}/offsets", np.array(ends, dtype=np.int64))


def read_unequal(group: h5py.Group, name: str) -> list[NDArray[Any]]:
    """Read what :func:`store_unequal` stored, as views of one array in memory."""
    values = group[f"{name}/values"][...]
    return np.split(values, group[f"{name}/offsets"][1:-1])


def _chunk_rows(name: str, values: NDArray[Any]) -> int:
    if values.dtype.kind not in "biuf" or values.ndim == 0:
        raise ValueError(
            f"{name}: a cache holds arrays of numbers, not {values.dtype} of shape {values.shape}"
        )
    row = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    return max(1, _CHUNK_BYTES // max(1, row))


def _create(group: h5py.Group, name: str, like: NDArray[Any], rows: int) -> h5py.Dataset:
    return group.create_dataset(
        name,
        shape=like.shape,
        maxshape=(None, *like.shape[1:]),
        chunks=(rows, *like.shape[1:]),
        dtype=like.dtype,
        fletcher32=True,
    )


class _Sink(io.RawIOBase):
    """A file that HDF5 can write to without ever seeing a write fail.

    After a failed write the HDF5 library cannot close the file and crashes the process when it ends. So the
    first error is kept for :func:`_write` to raise once the file is closed, and what comes later is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer) or 0

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def write(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        written = 0
        try:
            while self.error is None and written < len(view):
                written += self._file.write(view[written:])
        except OSError as error:
            self.error = error
        return len(view)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Stops:
    """Stop signals, held back while HDF5 is at work and let through while it is not.

    HDF5 calls :class:`_Sink`, and what a signal's handler raises in there gets lost: the write counts as failed, the
    file cannot be closed, and the process crashes when it ends. What the handlers do is left to them.
    """

    def __init__(self) -> None:
        self.hold = True
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: list[int] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others are never interrupted
            for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
                handler = signal.getsignal(number)
                if callable(handler) and number not in self._before:
                    self._before[number] = handler
                    signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.deliver()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)
        if not self.hold and not _in_sink(frame):
            self.deliver()

    def deliver(self) -> None:
        """Hand over what came; call it where no exception can do harm."""
        while self._came:
            number = self._came.pop(0)
            self._before[number](number, None)


def _in_sink(frame: FrameType | None) -> bool:
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), _Sink):
            return True
        frame = frame.f_back
    return False


def _write(temporary: Path, path: Path, fingerprint: str, write: Callable[[h5py.File], None]) -> None:
    with _Stops() as stops, _Sink(temporary) as sink:
        try:
            with h5py.File(sink, "w", userblock_size=_USER_BLOCK) as file:
                file.attrs["format"] = FORMAT
                file.attrs["fingerprint"] = np.bytes_(fingerprint)
                file.attrs["code_version"] = np.bytes_(seqpyramid.__version__)
                file.attrs["created_by"] = np.bytes_(
                    f"seqpyramid with h5py {h5py.version.version} and HDF5 {h5py.version.hdf5_version}"
                )
                stops.hold = False
                try:
                    write(file)
                finally:
                    stops.hold = True
        except (OSError, RuntimeError, ValueError, KeyError):
            if sink.error is None:  # else HDF5 stumbled over what was dropped: the disk is to blame
                raise
        if sink.error is not None:
            raise resource_error(sink.error, path)
    _seal(temporary)


def _seal(path: Path) -> None:
    """Fill in the user block and wait until the file is on the disk."""
    with path.open("r+b") as stream:
        block = _user_block(FORMAT, _digest(stream))
        stream.seek(0)
        stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())


def _user_block(number: int, digest: str) -> bytes:
    return (_MARK + f"{number} sha256 {digest}\n".encode()).ljust(_USER_BLOCK, b"\0")


def _digest(stream: io.BufferedIOBase) -> str:
    """SHA-256 of what follows the user block."""
    stream.seek(_USER_BLOCK)
    digest = hashlib.sha256()
    while block := stream.read(_READ_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Wait until a rename is on the disk (a folder can be opened for that on POSIX only)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(path: Path, fingerprint: str, *, read_through: bool) -> h5py.File:
    _check_seal(path)
    file = None
    try:
        file = h5py.File(path, "r", locking=False)  # it never changes; locks fail on some network disks
        _check_attributes(path, file, fingerprint)
        _check_group(path, file, 0, read_through=read_through)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        _close(file)
        raise IntegrityError(f"{path}: this cache cannot be read ({error}); {_REBUILD}") from None
    except UserError:
        _close(file)
        raise
    return file


def _close(file: h5py.File | None) -> None:
    if file is not None:
        file.close()


def _check_seal(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            block = stream.read(_USER_BLOCK)
            digest = _digest(stream)
    except FileNotFoundError:
        raise DataError(f"{path}: no cache here yet; run `seqpyramid prepare-data RECIPE`") from None
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot read this cache ({error.strerror}); mend that, or {_REBUILD}"
        ) from None
    if not block.startswith(_MARK):
        raise IntegrityError(f"{path}: not a cache of seqpyramid, or its beginning is damaged; {_REBUILD}")
    number = block[len(_MARK) :].split(b" ", 1)[0]
    if number.isdigit() and int(number) > FORMAT:
        raise IntegrityError(
            f"{path}: written in cache format {int(number)}, but this version reads {FORMAT}; "
            f"upgrade seqpyramid, or {_REBUILD}"
        )
    if block != _user_block(FORMAT, digest):
        raise IntegrityError(f"{path}: this cache is damaged (cut short, or bytes changed); {_REBUILD}")


def _check_attributes(path: Path, file: h5py.File, fingerprint: str) -> None:
    found = bytes(file.attrs["fingerprint"]).decode(errors="replace")
    if int(file.attrs["format"]) != FORMAT:
        raise ValueError("its format number contradicts its beginning")
    if found != fingerprint:
        raise IntegrityError(
            f"{path}: holds data of fingerprint {found}, but {fingerprint} is needed; {_REBUILD}"
        )


def _check_group(path: Path, group: h5py.Group, depth: int, *, read_through: bool) -> None:
    """Refuse all that could lead out of the file, or that fletcher32 does not guard."""
    if depth > _MAX_DEPTH:  # a hard link may point back up
        raise ValueError(f"groups deeper than {_MAX_DEPTH}")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise IntegrityError(
                f"{path}: {group.name}{name} links elsewhere, which a cache may not; {_REBUILD}"
            )
        member = group[name]
        if isinstance(member, h5py.Group):
            _check_group(path, member, depth + 1, read_through=read_through)
        elif isinstance(member, h5py.Dataset):
            _check_dataset(path, member)
            if read_through:
                for start in range(0, len(member), member.chunks[0]):
                    member[start : start + member.chunks[0]]
        else:
            raise IntegrityError(f"{path}: {name} is neither a group nor a dataset; {_REBUILD}")


def _check_dataset(path: Path, dataset: h5py.Dataset) -> None:
    if dataset.is_virtual or dataset.external:
        raise IntegrityError(f"{path}: {dataset.name} keeps its data in another file; {_REBUILD}")
    if dataset.dtype.kind not in "biuf":
        raise ValueError(f"{dataset.name} holds {dataset.dtype}, not numbers")
    if not dataset.fletcher32:
        raise ValueError(f"{dataset.name} has no checksums")
    # no compression is used, so a dataset that claims more than it stores would only fill memory
    if dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize:
        raise ValueError(f"{dataset.name} claims more data than the file holds")
