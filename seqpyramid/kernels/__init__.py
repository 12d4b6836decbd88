"""Fused recurrent layers with hand-derived backward passes; each has a plain twin that it is tested against.

A model asks at every forward pass which of them may take over, and runs that or its plain loop, which is the
specification; all give the same outputs and gradients.

- :func:`fused`: the compiled ones, for float32 and float64 on the CPU, where there is a library.
- :func:`on_gpu`: :mod:`seqpyramid.kernels.gpu`, for the same types on a CUDA device, where there is Triton.
- :func:`by_operations`: :mod:`seqpyramid.kernels.operations`, torch operations in place, anywhere.

None may while something watches or transforms single operations (FLOP counters, tracing, compilation, autocast,
vmap). :func:`choose` sets what all models do:

- ``auto``: the first kernel of these that may take over.
- ``fused``: the same, but the lack of a compiled library is an error.
- ``plain``: never. Second derivatives need this: a kernel has no derivative of its backward pass, and says so.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from seqpyramid.errors import RecipeError
from seqpyramid.kernels import gpu, library

Mode = Literal["plain", "fused", "auto"]

_mode: Mode = "auto"


def choose(mode: Mode) -> None:
    """Set which of the two twins models run from now on.

    Raises:
        RecipeError: the mode is unknown, or ``fused`` is asked for and there is no compiled library.
    """
    global _mode
    if mode not in get_args(Mode):
        raise RecipeError(f"--kernels {mode}: choose {', '.join(get_args(Mode))}")
    if mode == "fused" and not library.available():
        raise RecipeError(
            "--kernels fused: no compiled kernels here; use auto or plain, or install a compiler"
        )
    _mode = mode


def chosen() -> Mode:
    """The mode in force."""
    return _mode


def ready() -> bool:
    """Whether models with a kernel will use it, as far as that can be said without their tensors."""
    return _mode != "plain" and library.available()


def fused(*tensors: Tensor) -> bool:
    """Whether a compiled kernel may take over for these inputs and weights."""
    return _alike(tensors, "cpu") and not _operations_matter() and ready()


def on_gpu(*tensors: Tensor) -> bool:
    """Whether a kernel for CUDA devices may take over for these inputs and weights."""
    return _alike(tensors, "cuda") and _mode != "plain" and not _operations_matter() and gpu.available()


def by_operations(*tensors: Tensor) -> bool:
    """Whether a hand-derived backward pass in torch operations may take over for these inputs and weights."""
    return _alike(tensors, tensors[0].device.type) and _mode != "plain" and not _operations_matter()


def _alike(tensors: Sequence[Tensor], device: str) -> bool:
    """Whether all lie on such a device and have one type that there are kernels for."""
    dtype = tensors[0].dtype
    return dtype in library.SUFFIXES and all(t.device.type == device and t.dtype is dtype for t in tensors)


def _operations_matter() -> bool:
    """Whether someone looks at the operations themselves, which a kernel hides."""
    return (
        _get_current_dispatch_mode() is not None
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch.is_autocast_enabled("cpu")
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
