"""Fetch one file, and accept it only with the right hash."""

from pathlib import Path
from typing import Any, BinaryIO

import pooch
from filelock import FileLock

from seqpyramid.errors import DataError
from seqpyramid.rundir import make_folder, resource_error

_CHUNK_BYTES = 2**16


def fetch(url: str, path: Path, md5: str, *, timeout: float = 30.0) -> None:
    """Download ``url`` to ``path`` unless it is there; two processes that want the same file fetch it once.

    The file is written beside its place and renamed once its MD5 is right, so nothing unverified ever has the name.

    Args:
        url: where from, http or https.
        path: where to; its folder is made.
        md5: hash of the file, 32 hex digits.
        timeout: longest silence of the server in seconds.

    Raises:
        DataError: the server does not answer, refuses, or sends something else.
        ResourceError: the disk is full or the folder cannot be written.
    """
    make_folder(path.parent)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire()
    except OSError as error:
        raise resource_error(error, path) from None
    temporary = path.with_name(f".{path.name}.part")
    try:
        if path.exists():
            return
        _download(url, temporary, timeout)
        found = pooch.file_hash(str(temporary), alg="md5")
        if found != md5:
            raise DataError(
                f"{url}: what came has MD5 {found} instead of {md5}; try again later, "
                "or fetch the file elsewhere and name its folder with --source"
            )
        temporary.replace(path)
    except OSError as error:
        raise resource_error(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)
        lock.release()


class _Target:
    """The file being written; tells errors of the disk from errors of the network, which are OSErrors too."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream

    def write(self, content: bytes) -> None:
        try:
            self._stream.write(content)
        except OSError as error:
            raise resource_error(error, self._path) from None

    def flush(self) -> None:
        """Left to the end: the downloader asks for it after every chunk."""


def _download(url: str, path: Path, timeout: float) -> None:
    responses: list[Any] = []  # the downloader leaves the connection open when it fails

    def remember(response: Any, **_: Any) -> None:
        responses.append(response)

    downloader = pooch.HTTPDownloader(chunk_size=_CHUNK_BYTES, timeout=timeout, hooks={"response": remember})
    try:
        stream = path.open("wb")
    except OSError as error:
        raise resource_error(error, path) from None
    with stream:
        try:
            downloader(url, _Target(path, stream), None)
        except OSError as error:
            response = getattr(error, "response", None)
            reason = (
                type(error).__name__ if response is None else f"the server answered {response.status_code}"
            )
            raise DataError(
                f"{url}: the download failed ({reason}); check the network, "
                "or fetch the file elsewhere and name its folder with --source"
            ) from None
        finally:
            for response in responses:
                response.close()
