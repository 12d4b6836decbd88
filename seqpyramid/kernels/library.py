"""The compiled kernels: finding, loading and calling them.

The C++ sources in ``native`` are compiled once a level of the architecture (``levels.py``), into libraries that lie
beside them; the best one that this processor can run is loaded with ctypes. Nothing in them knows of Python or torch:
they get pointers and sizes in one structure a call.

Without a library, for want of a compiler when the package was installed, everything runs on its plain twin.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqpyramid.kernels.levels import levels_here

FOLDER = Path(__file__).parent / "native"

SUFFIXES = {torch.float32: "float32", torch.float64: "float64"}
"""The dtypes that there are kernels for."""


_threads: int | None = None


class StaleLibraryError(RuntimeError):
    """A library was built from other sources than the Python files beside it."""


class Arguments(ctypes.Structure):
    """Base of a call's arguments; a subclass adds the fields of the C structure of the same name, in its order."""

    _fields_: ClassVar[Sequence[tuple[str, Any]]] = (("size", ctypes.c_int64),)

    size: int


def library_file(level: str, folder: Path = FOLDER) -> Path:
    """Where the library of a level lies."""
    return folder / f"kernels_{level}.so"


def open_library(path: Path) -> ctypes.CDLL:
    """Load one library, and let it use AMX where the processor and the system have it, and torch's threads.

    Raises:
        OSError: it is not there, or was made for another system.
        StaleLibraryError: it was built from other sources.
    """
    library = ctypes.CDLL(str(path))
    try:
        library.seqpyramid_use_tiles(1)
        use_team(library, torch_team())
    except AttributeError:
        raise _stale() from None
    if hasattr(
        os, "register_at_fork"
    ):  # a forked process has none of the runtime's threads, and would wait for them
        os.register_at_fork(after_in_child=lambda: use_team(library, None))
    return library


def torch_team() -> int | None:
    """Address of the function by which torch's operations run on OpenMP's threads; None where they do not."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def use_team(library: ctypes.CDLL, team: int | None) -> None:
    """Let a library's kernels run on the threads of an OpenMP runtime, or on their own ones."""
    library.seqpyramid_use_team(ctypes.c_void_p(team))


@cache
def load(folder: Path = FOLDER) -> ctypes.CDLL | None:
    """Load the best library that runs here, with one notice where there is none, or a better one might be had."""
    levels = levels_here()
    for level in levels:
        try:
            library = open_library(library_file(level, folder))
        except OSError:
            continue
        if level != levels[0]:
            print(
                f"seqpyramid: the compiled kernels here are for {level}; this processor runs {levels[0]}, so "
                "installing again on it, or with SEQPYRAMID_LEVELS=all set, gives faster ones",
                file=sys.stderr,
            )
        return library
    print(
        "seqpyramid: no compiled kernels here, so recurrences run in torch's operations, several times slower; "
        "installing again with a C++ compiler at hand builds them",
        file=sys.stderr,
    )
    return None


def available() -> bool:
    """Whether there are compiled kernels for this processor."""
    return load() is not None


def call(function: str, dtype: torch.dtype, arguments: Arguments) -> None:
    """Call ``seqpyramid_<function>_<dtype>``.

    Raises:
        StaleLibraryError: the library's structure has another size, or it lacks the function.
        MemoryError: there was no memory for the packed weights.
    """
    library = load()
    assert library is not None  # callers asked available()
    arguments.size = ctypes.sizeof(arguments)
    try:
        code = library[f"seqpyramid_{function}_{SUFFIXES[dtype]}"](ctypes.byref(arguments))
    except AttributeError:
        code = STALE
    if code == STALE:
        raise _stale()
    if code:
        raise MemoryError(f"no memory for the kernel {function}")


def _stale() -> StaleLibraryError:
    return StaleLibraryError(
        f"the compiled kernels in {FOLDER} are older than their Python files; install the package again"
    )


def use_threads(count: int | None) -> None:
    """Let the kernels run on so many threads from now on; None: as many as torch's operations."""
    global _threads
    _threads = count


def threads() -> int:
    """Threads that a kernel call may use."""
    return _threads or torch.get_num_threads()


def vector_bytes() -> int:
    """Bytes of one vector of the loaded library."""
    library = load()
    assert library is not None  # callers asked available()
    return int(library.seqpyramid_vector_bytes())


def tiles() -> bool:
    """Whether float32 products run on AMX's tiles."""
    library = load()
    assert library is not None  # callers asked available()
    return bool(library.seqpyramid_tiles())


def gates_width(hidden: int, dtype: torch.dtype) -> int:
    """Numbers of a row of an LSTM layer's gates, as the loaded library lays them out."""
    library = load()
    assert library is not None  # callers asked available()
    function = library[f"seqpyramid_gates_width_{SUFFIXES[dtype]}"]
    function.argtypes, function.restype = (ctypes.c_int64,), ctypes.c_int64
    return int(function(hidden))


STALE = 2
"""What a kernel returns when it gets a structure of another size; 1 is want of memory (see native/interface.h)."""


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a tensor's first element, for a ``c_void_p`` field."""
    return None if tensor is None else tensor.data_ptr()
