"""Every level of the architecture: what this processor cannot run is emulated."""

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from seqpyramid.kernels import library
from tests.kernels import COMPILER, EMULATED, LEVELS, from_setup, level_flags


@pytest.fixture(params=[*LEVELS, *EMULATED])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each level in turn, its kernels in place of those that would be chosen here."""
    name: str = request.param
    if name in EMULATED:
        compiled: ctypes.CDLL = request.getfixturevalue("emulated")
    else:
        compiled = library.open_library(library.library_file(name))
    monkeypatch.setattr(library, "load", lambda: compiled)
    return name


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The widest level's kernels, made of what every x86-64-v3 has; there is no permission to ask for."""
    # Processes that share the work (pytest-xdist) share the library: their folders have one parent.
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "emulated"
    path = folder / "kernels.so"
    with FileLock(folder.with_suffix(".lock")):
        if not path.exists():
            _compile_emulated(path)
    return ctypes.CDLL(str(path))


def _compile_emulated(path: Path) -> None:
    path.parent.mkdir()
    command = [str(COMPILER), *from_setup("FLAGS").replace("-O3", "-O1").split(), *level_flags("x86_64_v3")]
    command += ["-w", "-D__AVX512F__", "-D__AVX512BW__", "-D__AMX_BF16__", "-DSEQPYRAMID_EMULATED"]
    command += ["-isystem", str(Path(__file__).parent / "emulated")]

    def compile_one(source: Path) -> str:
        target = path.with_name(f"{source.stem}.o")
        subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True, capture_output=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sorted(library.FOLDER.glob("*.cpp"))))
    subprocess.run([str(COMPILER), "-shared", "-pthread", *objects, "-o", str(path)], check=True)
