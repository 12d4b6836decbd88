"""Fused recurrent layers with hand-derived backward passes; each has a plain twin that it is tested against.

A model asks :func:`fused` at every forward pass and runs either its plain loop, which is the specification, or a
kernel, which gives the same outputs and gradients several times faster. :func:`choose` sets what all models do:

- ``auto``: the kernel where it can take over: there is a compiled library, the tensors are float32 or float64 on the
  CPU, and nothing watches or transforms single operations (FLOP counters, tracing, compilation, autocast, vmap).
- ``fused``: the same, but the lack of a library is an error.
- ``plain``: never. Second derivatives need this: a kernel has no derivative of its backward pass, and says so.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from seqpyramid.errors import RecipeError
from seqpyramid.kernels import library

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
    """Whether a kernel may take over for these inputs and weights."""
    return (
        all(t.device.type == "cpu" and t.dtype is tensors[0].dtype for t in tensors)
        and tensors[0].dtype in library.SUFFIXES
        and not _operations_matter()
        and ready()
    )


def _operations_matter() -> bool:
    """Whether someone looks at the operations themselves, which a kernel hides."""
    return (
        _get_current_dispatch_mode() is not None
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch.is_autocast_enabled("cpu")
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
