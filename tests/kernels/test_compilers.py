"""The kernels' sources under other compilers, and for other processors, than those of the machine that tests them."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from seqpyramid.kernels import library
from seqpyramid.kernels.levels import known_levels
from tests.kernels import from_setup, level_flags

COMPILERS = {
    "clang++": ("x86_64", ["clang++", "--target=x86_64-linux-gnu"]),
    "clang++ for arm64": ("aarch64", ["clang++", "--target=aarch64-linux-gnu"]),
    "g++ for arm64": ("aarch64", ["aarch64-linux-gnu-g++"]),
}
"""Architecture and command of each."""


def check(command: list[str], source: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, "-fsyntax-only", str(source)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", COMPILERS)
def test_sources_compile_without_a_warning(name: str, tmp_path: Path) -> None:
    architecture, compiler = COMPILERS[name]
    probe = tmp_path / "probe.cpp"
    probe.write_text("#include <thread>\n", encoding="utf-8")
    if not shutil.which(compiler[0]) or check([*compiler, "-std=c++17"], probe).returncode:
        pytest.skip("no such compiler, or no headers for what it compiles for")
    sources = sorted(library.FOLDER.glob("*.cpp"))
    flags = " ".join(level_flags(next(iter(known_levels(architecture)))))
    command = [*compiler, *f"{from_setup('FLAGS')} {from_setup('QUIET')} {flags} -Werror".split()]
    assert sources
    with ThreadPoolExecutor() as pool:
        for finished in pool.map(lambda source: check(command, source), sources):
            assert finished.returncode == 0, finished.stderr[-3000:]
