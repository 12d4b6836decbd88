"""What was extracted so far from many files, kept on the disk so that a stopped build can go on.

Two files in a folder of their own:

    values.bin       float32 rows, end to end, as they came
    journal.jsonl    whose spool this is, then a line a file: key, size, rows, width, offset, crc32

Values are written before their line, neither is held back in the process, and both are forced to the disk every two
seconds: a killed process loses the files in flight, a machine without power some seconds. Whoever continues reads
the values through and believes only the lines that their CRC confirms.

Shapes: T steps of one file, S steps of a block, F features.
"""

import io
import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from seqpyramid.data.progress import Progress, Report
from seqpyramid.errors import IntegrityError
from seqpyramid.rundir import make_folder, resource_error

Values = NDArray[np.float32]

_FORMAT = 1
_SYNC_SECONDS = 2.0
_BLOCK_BYTES = 2**20
"""Copied from the spool into the cache at once."""


class Record(NamedTuple):
    """A line of the journal."""

    key: str
    size: int
    """Bytes of the source file."""
    rows: int
    width: int
    offset: int
    """Bytes from the beginning of values.bin."""
    crc32: int

    @property
    def nbytes(self) -> int:
        return 4 * self.rows * self.width


class Spool:
    """What was extracted so far, on the disk. The caller holds a lock."""

    def __init__(self, folder: Path, of: str, *, fresh: bool) -> None:
        self._folder = folder
        self._values_path, self._journal_path = folder / "values.bin", folder / "journal.jsonl"
        self._header = json.dumps({"spool": _FORMAT, "of": of}).encode() + b"\n"
        self.records: dict[str, Record] = {}
        make_folder(folder)
        try:
            end = 0 if fresh else self._recover()
            self._values = self._values_path.open("r+b" if end else "wb", buffering=0)
            self._journal = self._journal_path.open("r+b" if end else "wb", buffering=0)
            self._journal.truncate(end)
            self._journal.seek(end)
            self._end = self._values.seek(0, os.SEEK_END)
            if not end:
                _write_all(self._journal, self._header)
        except OSError as error:
            raise resource_error(error, folder) from None
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._values.close()
        self._journal.close()

    def _recover(self) -> int:
        """Read the records that are confirmed; return where the journal's last whole line ends."""
        try:
            with self._journal_path.open("rb") as journal, self._values_path.open("rb") as values:
                if journal.readline() != self._header:
                    return 0
                end = journal.tell()
                for line in journal:
                    record = _parse(line)
                    if record is None:
                        break
                    end += len(line)
                    if _content(values, record) is not None:
                        self.records[record.key] = record
                return end
        except FileNotFoundError:
            return 0

    def add(self, key: str, size: int, values: Values) -> None:
        """Append what came of one file.

        Raises:
            ResourceError: the disk is full.
        """
        other = next(iter(self.records.values()), None)
        if other is not None and other.width != values.shape[1]:
            raise ValueError(f"{key}: {values.shape[1]} features a step, where {other.key} has {other.width}")
        content = np.ascontiguousarray(values, dtype="<f4").tobytes()
        record = Record(key, size, len(values), values.shape[1], self._end, zlib.crc32(content))
        try:
            _write_all(self._values, content)
            _write_all(self._journal, json.dumps(record._asdict()).encode() + b"\n")
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise resource_error(error, self._folder) from None
        self._end += len(content)
        self.records[key] = record

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        try:
            os.fsync(self._values.fileno())
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise resource_error(error, self._folder) from None
        self._synced = time.monotonic()

    def blocks(self, keys: Sequence[str], progress: Progress | None) -> Iterator[Values]:
        """Give the values of these files, (S, F) a block, cut in the same places however they lie on the disk."""
        report = Report(progress, "write the cache", len(keys))
        parts: list[bytes] = []
        size = 0
        with self._values_path.open("rb") as values:
            for done, key in enumerate(keys, 1):
                record = self.records[key]
                content = _content(values, record)
                if content is None:
                    raise IntegrityError(
                        f"{self._values_path}: changed on the disk; run again to read anew what is lost"
                    )
                parts.append(content)
                size += len(content)
                if done == len(keys) or size >= _BLOCK_BYTES:
                    yield np.frombuffer(b"".join(parts), dtype="<f4").reshape(-1, record.width)
                    parts, size = [], 0
                report(done)

    def remove(self) -> None:
        """Delete it; a cache is in its place now."""
        try:
            self._values_path.unlink()
            self._journal_path.unlink()
            self._folder.rmdir()
        except OSError as error:
            raise resource_error(error, self._folder) from None


def _parse(line: bytes) -> Record | None:
    """Read a line of the journal; None where it is cut short or no record."""
    try:
        content = json.loads(line)
        record = Record(**content)
    except (ValueError, TypeError):
        return None
    numbers = all(isinstance(number, int) and number >= 0 for number in record[1:])
    return record if line.endswith(b"\n") and isinstance(record.key, str) and numbers else None


def _content(values: BinaryIO, record: Record) -> bytes | None:
    """Read what a record describes; None where it is not what was written."""
    if record.offset + record.nbytes > os.fstat(values.fileno()).st_size:
        return None
    values.seek(record.offset)
    content = values.read(record.nbytes)
    return content if zlib.crc32(content) == record.crc32 else None


def _write_all(stream: io.FileIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]
