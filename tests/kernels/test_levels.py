"""Which levels a processor runs, which of them an installation builds, and which one is loaded."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seqpyramid.kernels import levels, library
from tests.conftest import REPOSITORY
from tests.kernels import COMPILER, LEVELS, from_setup

EVERYTHING = frozenset().union(*levels.LEVELS["x86_64"].values())


def test_the_best_level_that_runs_comes_first() -> None:
    assert levels.runnable_levels(frozenset(["avx2"]), "x86_64") == ["x86_64"]
    assert levels.runnable_levels(EVERYTHING, "AMD64") == ["x86_64_v4", "x86_64_v3", "x86_64"]
    assert levels.runnable_levels(EVERYTHING - {"avx512vl"}, "x86_64") == ["x86_64_v3", "x86_64"]
    assert levels.runnable_levels(frozenset(), "arm64") == ["aarch64"]


def test_flags_are_those_of_the_first_processor(tmp_path: Path) -> None:
    description = tmp_path / "cpuinfo"
    description.write_text("model name\t: x\nflags\t\t: fpu avx2 fma\n\nflags\t\t: fpu\n", encoding="utf-8")
    assert {"avx2", "fma", "fpu"} <= levels.processor_flags(description)
    assert levels.processor_flags(tmp_path / "none") == frozenset()


def test_setup_has_flags_for_every_level() -> None:
    assert list(from_setup("LEVEL_FLAGS")) == [level for known in levels.LEVELS.values() for level in known]


@pytest.mark.parametrize(
    ("named", "built"),
    [
        ("", levels.worth_building(levels.levels_here())),
        ("all", list(levels.known_levels("x86_64"))),
        ("x86_64", ["x86_64"]),
        ("x86_64_v3, x86_64", ["x86_64_v3", "x86_64"]),
        ("x86_64,v9", None),
    ],
)
@pytest.mark.skipif("x86_64" not in levels.levels_here(), reason="levels of x86-64")
def test_an_installation_builds_what_runs_here_or_what_is_asked_for(
    named: str, built: list[str] | None, tmp_path: Path
) -> None:
    shutil.copytree(REPOSITORY / "seqpyramid", tmp_path / "seqpyramid", ignore=_all_but_levels)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    native = tmp_path / "seqpyramid/kernels/native"
    native.mkdir()
    (native / "library.cpp").write_text("", encoding="utf-8")
    (native / "kernels_of_before.so").write_bytes(b"")
    finished = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "SEQPYRAMID_LEVELS": named},
        capture_output=True,
        text=True,
        check=False,
    )
    found = {path.name for path in native.glob("*.so")}
    if built is None:
        assert finished.returncode
        assert "SEQPYRAMID_LEVELS is 'x86_64,v9'; say all, or some of x86_64_v4," in finished.stderr
        assert found == {"kernels_of_before.so"}
    elif COMPILER:
        assert not finished.returncode, finished.stderr
        assert found == {library.library_file(level).name for level in built}


def _all_but_levels(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name not in {"kernels", "levels.py"}}


@pytest.mark.skipif(len(LEVELS) < 2, reason="one level built and runnable (SEQPYRAMID_LEVELS=all builds all)")
def test_one_notice_where_a_better_level_might_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(library.library_file(LEVELS[-1]), tmp_path)
    assert library.load(tmp_path) is not None
    assert library.load(tmp_path) is not None
    printed = capsys.readouterr().err
    assert printed.count("SEQPYRAMID_LEVELS=all") == 1
    assert f"here are for {LEVELS[-1]}; this processor runs {levels.levels_here()[0]}" in printed
