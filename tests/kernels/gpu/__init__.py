"""The kernels for GPUs: on a GPU, or else in Triton's interpreter, which Triton decides when it is first imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
