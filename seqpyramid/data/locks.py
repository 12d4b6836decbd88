"""One process at a time makes a file or a folder; the others wait."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from seqpyramid.rundir import make_folder, resource_error


@contextlib.contextmanager
def only_builder(path: Path) -> Iterator[None]:
    """Hold the lock of what shall be at ``path``, whose folder is made; other builders wait.

    Raises:
        ResourceError: the folder cannot be written.
    """
    make_folder(path.parent)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire()
    except OSError as error:
        raise resource_error(error, path) from None
    try:
        yield
    finally:
        lock.release()
