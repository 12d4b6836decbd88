"""What the kernels' tests share: a skip where nothing is compiled, threads, and a comparison with the plain twin."""

import ast
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seqpyramid import kernels
from seqpyramid.kernels import library
from seqpyramid.kernels.levels import levels_here
from seqpyramid.kernels.lstm import Segment
from tests.conftest import REPOSITORY

LEVELS = [level for level in levels_here() if library.library_file(level).exists()]
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
WITH_TILES = "x86_64_v4 with AMX"
"""The widest level where the processor has tiles; elsewhere emulated in plain C++ (``emulated/immintrin.h``)."""
EVERY_LEVEL = [*LEVELS, *([WITH_TILES] if COMPILER and "x86_64_v3" in LEVELS else [])]
"""That and the levels that run here, on vectors."""

EMULATION = (
    *("-w", "-D__AVX512F__", "-D__AVX512BW__", "-D__AMX_BF16__", "-DSEQPYRAMID_EMULATED"),
    *("-isystem", str(Path(__file__).parent / "emulated")),
)
"""The compiler's flags for the code of the widest level, beside those of x86-64-v3."""

needs_kernels = pytest.mark.skipif(
    not LEVELS, reason="no compiled kernels (python setup.py build_ext --inplace)"
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Relative to the largest entry."""


def from_setup(name: str) -> Any:
    """A constant of setup.py, which cannot be imported: it would build."""
    tree = ast.parse((REPOSITORY / "setup.py").read_text(encoding="utf-8"))
    (value,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name
    )
    return value


FIRST_AND_LAST = list(dict.fromkeys((LEVELS or ["none"])[k] for k in (0, -1)))
"""The widest level that was built and runs here, and the narrowest."""


def level_flags(level: str) -> list[str]:
    """What setup.py compiles a level with; that with tiles is emulated."""
    if level == WITH_TILES:
        return [*level_flags("x86_64_v3"), *EMULATION]
    return " ".join(from_setup(flags).get(level, "") for flags in ("LEVEL_FLAGS", "IF_KNOWN")).split()


@contextmanager
def running(mode: kernels.Mode, threads: int = 1) -> Iterator[None]:
    """One of the twins on some threads."""
    before = kernels.chosen(), torch.get_num_threads()
    kernels.choose(mode)
    torch.set_num_threads(threads)
    library.use_threads(threads)
    try:
        yield
    finally:
        kernels.choose(before[0])
        torch.set_num_threads(before[1])
        library.use_threads(None)


def assert_same(expected: Sequence[Tensor], found: Sequence[Tensor], *, slack: float = 1.0) -> None:
    """Agreement up to rounding, each tensor measured by its largest entry."""
    assert len(expected) == len(found) > 0
    for k, (e, f) in enumerate(zip(expected, found, strict=True)):
        assert e.shape == f.shape
        scale = max(e.abs().max().item(), 1e-3 if e.dtype == torch.float32 else 1e-9) if e.numel() else 1.0
        worst = (e - f).abs().max().item() if e.numel() else 0.0
        assert worst <= slack * TOLERANCE[e.dtype] * scale, f"tensor {k}: {worst / scale:.1e} off"


def assert_recomputation_changes_no_bit(
    layer: Callable[[Segment], Sequence[Tensor | None]], leaves: Sequence[Tensor], segments: Sequence[Segment]
) -> None:
    """Outputs and gradients of a layer are the same however many steps its backward pass runs again at a time."""
    found = []
    for segment in (None, *segments):
        outputs = [o for o in layer(segment) if o is not None]
        generator = torch.Generator().manual_seed(2)
        loss = torch.stack([(o * torch.randn(o.shape, generator=generator)).sum() for o in outputs])
        found.append([*outputs, *torch.autograd.grad(loss.sum(), leaves)])
    expected, *others = found
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))
    assert expected[-1].abs().sum() > 0


def asked_segments(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the length of the segments of every kernel call from now on."""
    seen: list[int] = []
    call = library.call
    monkeypatch.setattr(
        library, "call", lambda name, dtype, found: (seen.append(found.segment), call(name, dtype, found))
    )
    return seen
