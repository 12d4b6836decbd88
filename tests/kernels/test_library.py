"""Finding, choosing and building the compiled kernels, and the functions that they are made of."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from seqpyramid import kernels
from seqpyramid.errors import RecipeError
from seqpyramid.kernels import library
from seqpyramid.kernels.lstm import LstmArguments, lstm_layer
from tests.kernels import COMPILER, EVERY_LEVEL, LEVELS, level_flags, needs_kernels, running

X = torch.zeros(1)


def without_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    library.load.cache_clear()
    found = library.load.__wrapped__
    monkeypatch.setattr(library, "load", lambda: found(folder))


def test_one_notice_where_nothing_is_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert library.load(tmp_path) is None
    assert library.load(tmp_path) is None
    assert capsys.readouterr().err.count("no compiled kernels") == 1


def test_without_a_library_auto_is_plain_and_fused_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_library(monkeypatch, tmp_path)
    assert not library.available()
    assert not kernels.fused(X)
    with pytest.raises(RecipeError, match="no compiled kernels"):
        kernels.choose("fused")
    assert kernels.chosen() == "auto"


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(RecipeError, match="plain, fused, auto"):
        kernels.choose("fast")  # type: ignore[arg-type]


@needs_kernels
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_when_a_kernel_may_take_over() -> None:
    assert kernels.fused(X, X)
    assert kernels.fused(X.double())
    assert not kernels.fused(X, X.double())
    assert not kernels.fused(X.bfloat16())
    assert not kernels.fused(X.to("meta"))
    with FlopCounterMode(display=False):
        assert not kernels.fused(X)
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels.fused(X)
    seen = []
    torch.func.vmap(lambda x: seen.append(kernels.fused(x)) or x)(X)
    torch.jit.trace(lambda x: seen.append(kernels.fused(x)) or x + 1, X, check_trace=False)
    assert not any(seen)
    assert seen
    with running("plain"):
        assert not kernels.fused(X)


@needs_kernels
def test_a_library_of_other_sources_is_refused() -> None:
    class Shorter(library.Arguments):
        _fields_ = (("batch", ctypes.c_int64),)

    with pytest.raises(library.StaleLibraryError):
        library.call("lstm_forward", torch.float32, Shorter())
    with pytest.raises(library.StaleLibraryError):
        library.call("no_such_kernel", torch.float32, LstmArguments())


ACCURACY = r"""
#include <cstdio>
#include "vector.h"
using namespace seqpyramid;
template <class T> void table(double step) {
  for (double x = -30; x < 30; x += step * LANES<T>) {
    Vector<T> v;
    for (long k = 0; k < LANES<T>; ++k) v[k] = T(x + step * k);
    const Vector<T> e = exp<T>(v), s = sigmoid<T>(v), t = tanh<T>(v), small = tanh<T>(v * T(1e-6));
    for (long k = 0; k < LANES<T>; ++k)
      std::printf("%.20g %.20g %.20g %.20g %.20g\n", double(v[k]), double(e[k]), double(s[k]), double(t[k]),
                  double(small[k]));
  }
}
int main() { SEQPYRAMID_TYPE }
"""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("level", EVERY_LEVEL or ["none"])
@pytest.mark.parametrize(("type_", "epsilon"), [("float", 2.0**-23), ("double", 2.0**-52)])
def test_functions_are_accurate_to_the_last_digits(
    tmp_path: Path, type_: str, epsilon: float, level: str
) -> None:
    assert COMPILER is not None
    source, program = tmp_path / "accuracy.cpp", tmp_path / "accuracy"
    source.write_text(ACCURACY.replace("SEQPYRAMID_TYPE", f"table<{type_}>(0.0137);"), encoding="utf-8")
    flags = ["-std=c++17", "-O2", "-w", "-I", str(library.FOLDER), *level_flags(level)]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(program)], check=True, capture_output=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    x, *found = np.loadtxt(printed.splitlines()).T.astype(np.longdouble)
    dtype = np.float32 if type_ == "float" else np.float64
    tiny = (x.astype(dtype) * dtype(1e-6)).astype(np.longdouble)
    exact = [np.exp(x), 1 / (1 + np.exp(-x)), np.tanh(x), np.tanh(tiny)]
    for name, wanted, got in zip(["exp", "sigmoid", "tanh", "small tanh"], exact, found, strict=True):
        worst = np.max(np.abs(got - wanted) / np.abs(wanted)) / epsilon
        assert worst < 4, f"{name}: {float(worst):.1f} units in the last place"


def test_the_levels_found_here_run() -> None:
    for level in LEVELS:
        assert library.open_library(library.library_file(level)).seqpyramid_vector_bytes() in (16, 32, 64)


@needs_kernels
@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_threads_of_torch_or_of_their_own_have_the_callers_mode(own: bool, flush: bool) -> None:
    compiled = library.load()
    assert compiled is not None
    weights = torch.ones(64, 1), torch.zeros(64, 16), torch.zeros(64)
    denormal = torch.full((70, 3, 1), 1e-39)  # h is about a quarter of it, or 0 where it is flushed
    before = torch.full((100_000,), 1e-39)
    try:
        library.use_team(compiled, None if own else library.torch_team())
        torch.set_flush_denormal(flush)
        with running("fused", threads=4):
            h = lstm_layer(denormal, *weights, torch.full((70,), 3), keep_steps=False)[1][0]
            torch.set_flush_denormal(False)
            after = before * 1  # by the same threads
    finally:
        torch.set_flush_denormal(False)
        library.use_team(compiled, library.torch_team())
    assert h.count_nonzero() == (0 if flush else h.numel())
    assert torch.equal(after, before)


@pytest.mark.skipif(
    sys.platform != "linux" or "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info(),
    reason="torch's operations run on other threads than OpenMP's",
)
def test_torchs_threads_are_found_where_its_operations_have_any() -> None:
    assert library.torch_team()


FORKED = """
import os, sys, torch
from seqpyramid.kernels import library
from seqpyramid.kernels.lstm import lstm_layer

def run():
    weights = torch.ones(64, 1), torch.eye(16).repeat(4, 1), torch.zeros(64)
    return lstm_layer(torch.ones(64, 5, 1), *weights, torch.full((64,), 5), keep_steps=False)[1][0]

torch.set_num_threads(4)
library.use_threads(4)
expected = run()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(run(), expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_kernels
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system that forks")
def test_a_forked_process_has_threads_too() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=60)
