"""Compile the C++ kernels while the package is built; everything else stands in pyproject.toml.

Each source is compiled once a level of the architecture, since the vectors' width follows the level: for the levels
that this processor runs, or those that SEQPYRAMID_LEVELS names ("all", or some with commas between), as for a wheel
that others will install. Where a compiler is missing or fails, the package is built without kernels and runs without.
"""

import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
NATIVE = Path("seqpyramid/kernels/native")

FLAGS = (
    "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math -pthread"
)
QUIET = "-Wall -Wextra -Wno-psabi -Wno-ignored-attributes -Wno-unknown-pragmas -Wno-unknown-warning-option"

LEVEL_FLAGS = {
    "x86_64_v4": "-march=x86-64-v4 -mprefer-vector-width=512",
    "x86_64_v3": "-march=x86-64-v3",
    "x86_64": "-march=x86-64 -O2",  # of processors so old that the time to compile counts for more
    # GCC's scheduler brings factors forward until a tile's sums no longer fit the registers; Clang has no such flag.
    "aarch64": "-fno-schedule-insns -Wno-ignored-optimization-argument",
}
"""Level (seqpyramid/kernels/levels.py) -> the compiler's flags."""

IF_KNOWN = {"x86_64_v4": "-mamx-tile -mamx-bf16"}
"""More flags of a level where the compiler knows them; the library asks the processor before it makes use of them."""


class BuildKernels(build_ext):
    """Compile the kernels into the wheel, or beside their sources for an editable install."""

    def run(self) -> None:
        folder = (ROOT if self.inplace else Path(self.build_lib)) / NATIVE
        levels = wanted_levels(os.environ.get("SEQPYRAMID_LEVELS", ""))
        compiler = find_compiler()
        if compiler is None or not levels:
            reason = "no C++ compiler found" if levels else f"no kernels for {platform.machine()}"
            print(f"seqpyramid: {reason}; recurrences will run in torch's operations", file=sys.stderr)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob("kernels_*.so"):
            if earlier.stem.removeprefix("kernels_") not in levels:
                earlier.unlink()  # of other sources, perhaps: it would be found stale
        failures = build(compiler, levels, folder, Path(self.build_temp))
        for level, failure in failures.items():
            print(f"seqpyramid: kernels for {level} not built\n{failure}", file=sys.stderr)
        if len(failures) == len(levels):
            print("seqpyramid: no kernels, recurrences will run in torch's operations", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        folder = (ROOT if self.inplace else Path(self.build_lib)) / NATIVE
        return [str(path) for path in folder.glob("kernels_*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlainPythonWheel(bdist_wheel):
    """The kernels do not depend on Python's version, so neither does the wheel."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def wanted_levels(named: str) -> list[str]:
    """Levels to build, by what the environment names."""
    levels = runpy.run_path(str(ROOT / "seqpyramid/kernels/levels.py"))
    known = list(levels["known_levels"](platform.machine()))
    if named == "all":
        return known
    worth: list[str] = levels["worth_building"](levels["levels_here"]())
    if not named:
        return worth
    chosen = [level.strip() for level in named.split(",")]
    if not set(chosen) <= set(known):
        raise SystemExit(
            f"seqpyramid: SEQPYRAMID_LEVELS is {named!r}; say all, or some of {', '.join(known)}"
        )
    return chosen


def find_compiler() -> list[str] | None:
    """The command in CXX, else the first usual one that is installed."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def build(compiler: list[str], levels: list[str], folder: Path, temporary: Path) -> dict[str, str]:
    """Compile every source for some levels, then link one library a level; what went wrong, by level."""
    sources = sorted((ROOT / NATIVE).glob("*.cpp"))
    more = {level: flags for level, flags in IF_KNOWN.items() if level in levels and knows(compiler, flags)}

    def compile_one(level: str, source: Path) -> Path:
        target = temporary / level / f"{source.stem}.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = f"{FLAGS} {QUIET} {LEVEL_FLAGS[level]} {more.get(level, '')}".split()
        run([*compiler, *flags, "-c", str(source), "-o", str(target)])
        return target

    failures = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {level: [pool.submit(compile_one, level, source) for source in sources] for level in levels}
        for level, parts in jobs.items():
            library = folder / f"kernels_{level}.so"
            unfinished = library.with_suffix(".unfinished")
            try:
                objects = [str(part.result()) for part in parts]
                run([*compiler, "-shared", "-pthread", *objects, "-o", str(unfinished)])
            except (subprocess.CalledProcessError, OSError) as error:
                failures[level] = str(getattr(error, "stderr", None) or error)
                library.unlink(missing_ok=True)  # of other sources: it would be found stale
                continue
            unfinished.replace(library)  # a process that has the old one loaded keeps it
    return failures


def knows(compiler: list[str], flags: str) -> bool:
    """Whether the compiler takes some flags."""
    try:
        run([*compiler, *flags.split(), "-x", "c++", "-fsyntax-only", os.devnull])
    except (subprocess.CalledProcessError, OSError):
        return False
    return True


def run(command: list[str]) -> None:
    """Run a compiler; its messages come with the exception."""
    subprocess.run(command, check=True, capture_output=True, text=True)


setup(
    ext_modules=[Extension("seqpyramid.kernels.native", sorted(map(str, NATIVE.glob("*.cpp"))))],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlainPythonWheel},
)
