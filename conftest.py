"""What the whole run needs before anything is imported: the GPU kernels' interpreter, where there is no GPU."""

import os
from importlib.util import find_spec

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is first imported

collect_ignore_glob = [] if find_spec("triton") else ["seqpyramid/kernels/gpu/*_*.py"]
