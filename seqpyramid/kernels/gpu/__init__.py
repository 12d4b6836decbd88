"""Fused recurrent layers for CUDA devices, written in Triton; each has a plain twin that it is tested against.

Nothing here is imported before :func:`available` has said yes: Triton comes with torch's CUDA builds and is missing
elsewhere. With ``TRITON_INTERPRET=1`` Triton runs kernels step by step on the CPU, which is how the tests see them.
"""

import os
from functools import cache
from importlib.util import find_spec

import torch


@cache
def available() -> bool:
    """Whether Triton can be imported here and has something to run on."""
    return find_spec("triton") is not None and (torch.cuda.is_available() or interpreted())


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"
