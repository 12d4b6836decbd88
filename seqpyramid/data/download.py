"""Fetch one file from the first mirror that has it, go on where a download broke off, and accept only the right hash.

What has come lies beside its place in ``.NAME.part`` until its hash is right, so nothing unverified ever has the name.
A download that breaks off leaves that file for the next one, which asks the server for the rest alone; beside it,
``.NAME.part.json`` tells which version of the file the server had, so that two versions are not sewn together.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from seqpyramid.data.locks import only_builder
from seqpyramid.data.progress import Progress
from seqpyramid.errors import DataError, ResourceError
from seqpyramid.rundir import resource_error, write_json

# urllib and not requests (nor pooch, which is built on it): a file ending in .gz must arrive as it is stored, and
# requests unpacks what a server labels "Content-Encoding: gzip"; proxies and the system's certificates work in both.

_CHUNK_BYTES = 2**18
_PROGRESS_BYTES = 2**22
_MAX_BYTES = 2**35
"""Three times the largest corpus: where nothing says how long a file is, a server may not fill the disk."""
_TRIES = 3
"""Connections to one mirror that may end with little gained; each goes on where the one before broke off."""
_GAIN_BYTES = 2**20
"""A connection that brought as much was worth it."""
_BY_HAND = "or fetch the file elsewhere and name its folder with --source"


class Hash(NamedTuple):
    """What a file must be."""

    algorithm: Literal["sha256", "md5"]
    digits: str
    """Hexadecimal, small letters."""

    def __str__(self) -> str:
        return f"{self.algorithm.replace('sha', 'SHA-').replace('md5', 'MD5')} {self.digits}"


def fetch(
    urls: Sequence[str],
    path: Path,
    *,
    expected: Hash,
    size: int | None = None,
    timeout: float = 30.0,
    progress: Progress | None = None,
) -> None:
    """Download a file unless it is there; two processes that want the same file fetch it once.

    Args:
        urls: mirrors of the same bytes, http or https, tried in turn.
        path: where to; its folder is made.
        expected: hash of the file.
        size: of the file in bytes, where it is known.
        timeout: longest silence of a server in seconds.
        progress: hears how many bytes have come, and how many are checked.

    Raises:
        DataError: no mirror answers, or all refuse, break off or send something else. What has come is kept for the
            next time unless its hash is wrong.
        ResourceError: the disk is full (what has come is kept) or the folder cannot be written.
    """
    with only_builder(path):
        if path.exists():
            return
        part = _Part(path, expected, size)
        failures = []
        for url in urls:
            try:
                _from_mirror(url, part, timeout, progress)
            except _MirrorError as error:
                failures.append(f"{url}: {error}")
            else:
                part.publish()
                return
    if len(failures) == 1:
        raise DataError(f"{failures[0]}; try again later, {_BY_HAND}")
    raise DataError(
        f"{path.name}: no mirror gave it ({', '.join(failures) or 'there is none'}); try again later, {_BY_HAND}"
    )


def verify(path: Path, expected: Hash, *, progress: Progress | None = None) -> None:
    """Read a file through and compare its hash.

    Raises:
        DataError: it is another.
        ResourceError: the file cannot be read.
    """
    found = _hash(path, expected.algorithm, progress)
    if found != expected:
        raise DataError(
            f"{path}: has {found} instead of {expected.digits}, so it is damaged or something else; delete it and run "
            "again, or name the folder of a good copy with --source"
        )


class _MirrorError(Exception):
    """One mirror did not give the file; the message says why, without the address."""


class _BrokenOffError(_MirrorError):
    """The connection ended before the file did; asking again may get the rest."""


@dataclass(frozen=True)
class _Origin:
    """Which version of the file the bytes in the part belong to."""

    url: str
    version: str | None
    """Strong entity tag or date, as the server wrote it; None if it named neither."""


class _Part:
    """The file that is growing, and what is known of it."""

    def __init__(self, path: Path, expected: Hash, size: int | None) -> None:
        self.path, self.expected, self.size = path, expected, size
        self.file = path.with_name(f".{path.name}.part")
        self._note = path.with_name(f".{path.name}.part.json")

    def have(self) -> int:
        """Bytes that are there."""
        try:
            return self.file.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise resource_error(error, self.file) from None

    def origin(self) -> _Origin | None:
        """Where they came from, if that is known."""
        try:
            told = json.loads(self._note.read_text(encoding="utf-8"))
            return _Origin(str(told["url"]), None if told["version"] is None else str(told["version"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextlib.contextmanager
    def writing(self, start: int, origin: _Origin) -> Iterator[Callable[[bytes], None]]:
        """Give a function that appends behind byte ``start``; what stood there goes.

        Raises:
            ResourceError: the disk is full or the file cannot be written.
        """
        write_json(self._note, {"url": origin.url, "version": origin.version})
        try:
            descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise resource_error(error, self.file) from None

        def append(content: bytes) -> None:
            view = memoryview(content)
            try:
                while view:
                    view = view[os.write(descriptor, view) :]
            except OSError as error:
                raise resource_error(error, self.file) from None

        try:
            try:
                if start < os.fstat(descriptor).st_size:
                    os.ftruncate(descriptor, start)
                os.lseek(descriptor, start, os.SEEK_SET)
            except OSError as error:
                raise resource_error(error, self.file) from None
            yield append
        finally:
            os.close(descriptor)

    def forget(self) -> None:
        """Delete what has come."""
        self.file.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def publish(self) -> None:
        """Give the checked file its name, once it is on the disk."""
        try:
            descriptor = os.open(self.file, os.O_RDWR | getattr(os, "O_BINARY", 0))
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self.file.replace(self.path)
            self._note.unlink(missing_ok=True)
        except OSError as error:
            raise resource_error(error, self.path) from None


def _from_mirror(url: str, part: _Part, timeout: float, progress: Progress | None) -> None:
    """Complete the part from one mirror and check it.

    A wrong hash after a continued download says nothing against this mirror, for the beginning may have been at
    fault: it is asked again, from the start.
    """
    fruitless = 0
    while True:
        before = part.have()
        try:
            if part.size is None or before != part.size:
                _receive(url, part, timeout, progress)
        except _BrokenOffError:
            fruitless += part.have() - before < _GAIN_BYTES
            if fruitless == _TRIES:
                raise
            continue
        found = _hash(part.file, part.expected.algorithm, progress)
        if found == part.expected:
            return
        part.forget()
        fruitless += 1
        if not before or fruitless == _TRIES:
            raise _MirrorError(f"what came has {found} instead of {part.expected.digits}")


def _receive(url: str, part: _Part, timeout: float, progress: Progress | None) -> None:
    """Ask for what is missing, and append it."""
    have, origin = part.have(), part.origin()
    if part.size is not None and have > part.size:
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "seqpyramid", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if origin is not None and origin.url == url and origin.version is not None:
            request.add_header("If-Range", origin.version)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            start, end = _place(response, have, part.size)
            _append(response, part, _Origin(url, _version(response)), start, end, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            part.forget()
            raise _BrokenOffError("the server has no more than what came before") from None
        raise _MirrorError(f"the server answered {error.code}") from None
    except TimeoutError:
        raise _BrokenOffError(f"the server was silent for {timeout:g} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise _MirrorError(f"no connection within {timeout:g} s") from None
        raise _BrokenOffError(f"the download failed ({reason or type(error).__name__})") from None


def _place(response: Any, have: int, size: int | None) -> tuple[int, int | None]:
    """Return where the answer's bytes belong: the first, and the one behind the last if the server tells.

    Whatever shows that this is not the file is refused here, before a byte of the part is given up for it.
    """
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise _MirrorError("the server sent a web page instead of the file")
    length = response.headers.get("Content-Length")
    announced = int(length) if length is not None and length.isdecimal() else None
    start, whole = 0, announced
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if told is None or int(told[1]) != have:
            raise _MirrorError("the server sent another part of the file than was asked for")
        start = have
        whole = int(told[3]) if told[3] != "*" else None if announced is None else start + announced
    elif response.status != http.HTTPStatus.OK:
        raise _MirrorError(f"the server answered {response.status}")
    if size is not None and whole is not None and whole != size:
        raise _MirrorError(f"the server announces {whole} bytes where the file has {size}")
    return start, whole if whole is not None else size


def _append(
    response: Any, part: _Part, origin: _Origin, start: int, end: int | None, progress: Progress | None
) -> None:
    limit = _MAX_BYTES if end is None else end
    have = said = start
    with part.writing(start, origin) as append:
        while have <= limit and (content := response.read1(_CHUNK_BYTES)):
            have += len(content)
            if have <= limit:
                append(content)
            if progress is not None and have - said >= _PROGRESS_BYTES:
                said = have
                progress(f"download {part.path.name}", have, max(have, end or 0))
    if have > limit:
        part.forget()
        raise _MirrorError(f"the server sent more than the {limit} bytes that the file may have")
    if end is not None and have < end:
        raise _BrokenOffError(f"the download failed (cut off after {have} of {end} bytes)")
    if progress is not None:
        progress(f"download {part.path.name}", have, have)


def _version(response: Any) -> str | None:
    """Strong entity tag, else date: what If-Range may be asked with."""
    tag = response.headers.get("ETag")
    if tag is not None and tag.startswith('"'):
        return str(tag)
    date = response.headers.get("Last-Modified")
    return None if date is None else str(date)


def _hash(path: Path, algorithm: Literal["sha256", "md5"], progress: Progress | None) -> Hash:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    done = said = 0
    try:
        with path.open("rb") as stream:
            total = os.fstat(stream.fileno()).st_size
            while block := stream.read(_CHUNK_BYTES):
                digest.update(block)
                done += len(block)
                if progress is not None and done - said >= _PROGRESS_BYTES:
                    said = done
                    progress(f"check {path.name.strip('.').removesuffix('.part')}", done, max(done, total))
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be read ({error.strerror}); mend that, or name the folder of another copy with --source"
        ) from None
    return Hash(algorithm, digest.hexdigest())
