"""A cache built from many files: in parallel, resumable at the file, one damaged file no reason to stop.

What is extracted from each file goes at once to a spool (:mod:`seqpyramid.data.spool`) beside the cache, in a folder
``.<cache>.spool`` that the calling process alone writes; when all is there, the spool is copied into the cache and
removed. So for a moment the disk holds everything twice, and memory holds little more than the files in flight.

The cache holds ``sequences/values`` (S, F) float32, ``sequences/offsets`` (K + 1) and ``kept`` (K), the indices of the
items in it, ascending; its bytes depend neither on the number of processes nor on interruptions.

Shapes: N items, K of them kept, T steps of one, S steps of all together, F features.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from seqpyramid.data import cache
from seqpyramid.data.locks import only_builder
from seqpyramid.data.progress import PROGRESS_SECONDS, Progress, Report
from seqpyramid.data.spool import Spool, Values
from seqpyramid.errors import DataError, ResourceError

Extract = Callable[[Path], Values]
"""Path -> (T, F) float32; where it meets a damaged file it raises a DataError that names it."""

_CHUNK_BYTES = 2**19
"""Of source files for a worker at once: small files would else cost more to hand over than to read."""
_CHUNK_ITEMS = 64
_CHUNKS_PER_WORKER = 8
"""At least, as far as there are files: the last chunk should not be waited for long, nor much be lost by a kill."""
_WORTH_WORKERS_BYTES = 2**24
"""Below this, starting processes takes longer than reading the files."""
_MAX_WORKERS = 61
"""What Windows can wait for."""
_HOPELESS = 100
"""If so many files fail and none succeeds, the fault is not the files'."""
_NAMED = 10
"""Damaged files that the message names."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Item:
    """One file of a corpus."""

    key: str
    """Path below the corpus' folder, with forward slashes; the same wherever the corpus lies."""
    path: Path


def listing_fingerprint(items: Sequence[Item]) -> str:
    """Return 16 hex digits for the keys and sizes of the files, in whatever order.

    The contents are not read: that would take minutes for the 11 GB of VCTK, at every command. So a file changed in
    place without changing its size is not seen; ``--force`` is for that.

    Raises:
        DataError: a file is not there.
    """
    try:
        listing = sorted((item.key, item.path.stat().st_size) for item in items)
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot look at this file ({error.strerror}); mend that and run again"
        ) from None
    return cache.fingerprint({"files": listing})


def build_corpus(
    path: Path,
    fingerprint: str,
    items: Sequence[Item],
    extract: Extract,
    *,
    workers: int | None = None,
    damaged: Literal["refuse", "skip"] = "refuse",
    force: bool = False,
    progress: Progress | None = None,
    extra: Callable[[h5py.File, NDArray[np.int64]], None] | None = None,
    extraction: str | None = None,
) -> bool:
    """Build the cache at ``path`` from ``items`` unless it is there; return whether this call built it.

    A call that was stopped, or that met damaged files, leaves its spool, and the next continues there. One process
    builds at a time; the others wait and then find the result.

    Args:
        path: of the cache.
        fingerprint: of the cache: what the files are and what is done with them.
        items: with keys of their own; the cache keeps their order.
        extract: a module's function, or ``functools.partial`` of one: it travels to other processes.
        workers: processes that extract; 1: this one; None: as many as there are CPUs, if the files are worth it.
        damaged: go without damaged files, or refuse to build; the others are read in any case.
        force: build anew, from the files and not from a spool.
        progress: called up to ten times a second.
        extra: stores more beside the sequences, given the indices (K,) of the items that are kept.
        extraction: names what is done with a file, and nothing of which files there are. With it, what was read of
            unchanged files still counts when the listing, and so ``fingerprint`` and ``path``, has become another:
            after a damaged file was mended, say.

    Raises:
        DataError: files are damaged or vanished (all named, up to ten), or nothing is left to keep.
        IntegrityError: the spool changed on the disk while it was written.
        ResourceError: the disk is full, the folder cannot be written, or a worker died.
        ValueError: no items, a key twice, no worker, or ``extract`` gives something else than float32 (T, F).
    """
    if not items or len({item.key for item in items}) != len(items):
        raise ValueError("a corpus needs items, each with a key of its own")
    if workers is not None and workers < 1:
        raise ValueError(f"cannot work with {workers} workers")
    if path.exists() and not force:
        return False
    name = path.name if extraction is None else f"corpus-{extraction}"
    folder = path.with_name(f".{name}.spool")
    with contextlib.ExitStack() as locks:
        locks.enter_context(only_builder(path))
        if path.exists() and not force:
            return False
        if extraction is not None:  # builders of other caches may write this spool, too
            locks.enter_context(only_builder(folder))
        with Spool(folder, extraction or fingerprint, fresh=force) as spool:
            kept = _fill(spool, items, extract, workers=workers, damaged=damaged, progress=progress)

            def write(file: h5py.File) -> None:
                keys = [items[index].key for index in kept]
                cache.store_stream(file, "sequences/values", spool.blocks(keys, progress))
                rows = [0, *(spool.records[key].rows for key in keys)]
                cache.store(file, "sequences/offsets", np.cumsum(rows, dtype=np.int64))
                cache.store(file, "kept", kept)
                if extra is not None:
                    extra(file, kept)

            cache.put(path, fingerprint, write)
            spool.remove()
    return True


def read_corpus(path: Path, fingerprint: str) -> tuple[list[Values], NDArray[np.int64]]:
    """Return the sequences, each (T, F), as views of one array in memory, and the indices (K,) of their items.

    Raises:
        DataError, IntegrityError, ResourceError: as :func:`seqpyramid.data.cache.open_checked`.
    """
    with cache.open_checked(path, fingerprint) as file:
        return cache.read_unequal(file, "sequences"), file["kept"][...]


class _Todo(NamedTuple):
    position: int
    """Among the items."""
    path: Path
    size: int
    """Bytes."""


class _Damage(NamedTuple):
    """In place of values: one sentence that names the file."""

    reason: str


def _fill(
    spool: Spool,
    items: Sequence[Item],
    extract: Extract,
    *,
    workers: int | None,
    damaged: Literal["refuse", "skip"],
    progress: Progress | None,
) -> NDArray[np.int64]:
    """Extract what the spool lacks; return the indices of the items that it then holds."""
    todo, faults = _missing(spool, items)
    good = len(items) - len(todo) - len(faults)
    report = Report(progress, "read files", len(items))
    with contextlib.closing(_extracted(extract, todo, _processes(workers, todo), report.again)) as results:
        for task, values in results:
            if isinstance(values, _Damage):
                faults[task.position] = values.reason
                if not good and len(faults) == _HOPELESS:
                    break
            else:
                spool.add(items[task.position].key, task.size, values)
                good += 1
            report(good + len(faults))
    spool.sync()
    if faults and (damaged == "refuse" or not good):
        raise DataError(_complaint(faults, len(items), any_good=good > 0))
    return np.array([index for index in range(len(items)) if index not in faults], dtype=np.int64)


def _missing(spool: Spool, items: Sequence[Item]) -> tuple[list[_Todo], dict[int, str]]:
    """Return the files whose values the spool does not hold, and the reasons why some cannot be looked at."""
    todo: list[_Todo] = []
    faults: dict[int, str] = {}
    for index, item in enumerate(items):
        try:
            size = item.path.stat().st_size
        except OSError as error:
            faults[index] = _os_reason(item.path, error)
            continue
        record = spool.records.get(item.key)
        if record is None or record.size != size:
            todo.append(_Todo(index, item.path, size))
    return todo, faults


def _complaint(faults: dict[int, str], total: int, *, any_good: bool) -> str:
    reasons = [faults[index] for index in sorted(faults)]
    more = [f"and {len(reasons) - _NAMED} more"] if len(reasons) > _NAMED else []
    advice = "mend or remove them, or set task.damaged=skip" if any_good else "mend this first"
    count = f"{len(reasons)} of {total} files cannot be used" if any_good else "none of the files can be used"
    return "\n  ".join([f"{count}; {advice}:", *reasons[:_NAMED], *more])


def _processes(workers: int | None, todo: Sequence[_Todo]) -> int:
    if workers is None:
        worth = sum(task.size for task in todo) >= _WORTH_WORKERS_BYTES
        workers = _usable_cpus() if worth else 1
    return max(1, min(workers, len(todo), _MAX_WORKERS))


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _extracted(
    extract: Extract, todo: Sequence[_Todo], workers: int, waiting: Callable[[], None]
) -> Generator[tuple[_Todo, Values | _Damage], None, None]:
    """Extract in the order of ``todo``; ``waiting`` is called again and again while there is nothing to give."""
    if workers == 1:
        for task in todo:
            yield task, _attempt(extract, task.path)
        return
    # Not multiprocessing.Pool: it waits for ever for a worker that died, and lets results pile up in this process.
    with _one_thread_each():
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _follow_parent)
        flight: deque[tuple[list[_Todo], Future[list[Values | _Damage]]]] = deque()
        try:
            for chunk in _chunks(todo, workers):
                flight.append((chunk, pool.submit(_attempt_all, extract, [task.path for task in chunk])))
                if len(flight) > 2 * workers:
                    yield from _landed(*flight.popleft(), waiting)
            while flight:
                yield from _landed(*flight.popleft(), waiting)
        finally:
            pool.shutdown(cancel_futures=True)


def _landed(
    chunk: list[_Todo], future: "Future[list[Values | _Damage]]", waiting: Callable[[], None]
) -> Iterator[tuple[_Todo, Values | _Damage]]:
    while True:
        try:
            results = future.result(timeout=PROGRESS_SECONDS)
        except TimeoutError:
            waiting()
        except BrokenProcessPool:
            raise ResourceError(
                f"{chunk[0].path}: a process that read this file or one soon after it died (not enough memory, or a "
                "file that crashes the decoder); run again, what was read is kept"
            ) from None
        else:
            break
    yield from zip(chunk, results, strict=True)


def _chunks(todo: Sequence[_Todo], workers: int) -> Iterator[list[_Todo]]:
    most = max(1, min(_CHUNK_ITEMS, len(todo) // (_CHUNKS_PER_WORKER * workers)))
    chunk: list[_Todo] = []
    size = 0
    for task in todo:
        chunk.append(task)
        size += task.size
        if len(chunk) == most or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Start workers with one thread: numerical libraries read these names once, when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, which shares the terminal, and die with it, however it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this runs in worker processes only")

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _attempt_all(extract: Extract, paths: list[Path]) -> list[Values | _Damage]:
    return [_attempt(extract, path) for path in paths]


def _attempt(extract: Extract, path: Path) -> Values | _Damage:
    try:
        values = extract(path)
    except DataError as error:
        reason = str(error)
        return _Damage(reason if str(path) in reason else f"{path}: {reason}")
    except OSError as error:
        return _Damage(_os_reason(path, error))
    if values.dtype != np.float32 or values.ndim != 2:
        raise ValueError(f"{path}: extracted {values.dtype} of shape {values.shape}, not float32 (T, F)")
    if not values.size:
        return _Damage(f"{path}: gives no step at all")
    return values


def _os_reason(path: Path, error: OSError) -> str:
    return f"{path}: cannot be read ({error.strerror or error})"
