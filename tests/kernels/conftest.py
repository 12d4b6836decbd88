"""Every level of the architecture, and the widest one with AMX, which is emulated where the processor has none."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from seqpyramid.kernels import library
from tests.kernels import COMPILER, EVERY_LEVEL, WITH_TILES, from_setup, level_flags


@pytest.fixture(params=EVERY_LEVEL)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each in turn, its kernels in place of those that would be chosen here."""
    name: str = request.param
    with_tiles = name == WITH_TILES
    if not with_tiles:
        compiled = library.open_library(library.library_file(name))
    elif library.available() and library.tiles():
        compiled = library.open_library(library.library_file("x86_64_v4"))
    else:
        compiled = request.getfixturevalue("emulated")
    monkeypatch.setattr(library, "load", lambda: compiled)
    compiled.seqpyramid_use_tiles(with_tiles)
    assert library.tiles() == with_tiles
    yield name
    compiled.seqpyramid_use_tiles(1)  # as whoever else has it loaded found it


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The widest level's kernels, made of what every x86-64-v3 has."""
    # Processes that share the work (pytest-xdist) share the library: their folders have one parent.
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "emulated"
    path = folder / "kernels.so"
    with FileLock(folder.with_suffix(".lock")):
        if not path.exists():
            _compile_emulated(path)
    return library.open_library(path)


def _compile_emulated(path: Path) -> None:
    path.parent.mkdir()
    command = [str(COMPILER), *from_setup("FLAGS").replace("-O3", "-O1").split(), *level_flags(WITH_TILES)]

    def compile_one(source: Path) -> str:
        target = path.with_name(f"{source.stem}.o")
        subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True, capture_output=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sorted(library.FOLDER.glob("*.cpp"))))
    subprocess.run([str(COMPILER), "-shared", "-pthread", *objects, "-o", str(path)], check=True)
