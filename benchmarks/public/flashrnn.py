"""FlashRNN, fused LSTM kernels for CUDA: github.com/NX-AI/flashrnn, its package ``flashrnn``.

What is used of it, as read in ``flashrnn/flashrnn/flashrnn.py``: ``flashrnn(Wx, R, b, states, function, config,
backend, dtype)`` with gates of inputs Wx (B, T, G, N, D), recurrent weights R (G, N, D, D), out of D by into D, and
biases b (G, N, D), which returns the states (S, B, T, N, D), h before c, and the last of them. N is the number of
heads, one here; gates are in torch's order. The product U x, which it leaves to its caller, is a linear layer.

On a GPU two of its backends run in float32: ``cuda_fused``, whose tiles want a D that they divide, with 128 units,
and ``cuda``, which takes any, with 100; both are compiled at their first step, for which it needs the CUDA toolkit. On
a CPU there is its plain loop, ``vanilla``.

    pip install flashrnn
    python -m benchmarks.speed --device cuda --public FlashRNN

Run here with flashrnn 1.0.8 on a CPU (``vanilla``, whose states are those of torch's LSTM to 1e-6); its CUDA
backends have not been run here.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.candidates import Candidate, Setting, candidate
from benchmarks.public.loading import imported, member
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.base import Encoding, SequenceModel, last_steps

NAME = "FlashRNN"

GATES = 4

BACKENDS = {"cuda": {"cuda_fused": 128, "cuda": 100}, "cpu": {"vanilla": 100}}
"""Type of the device -> backend -> units."""


def candidates(folder: Path | None, setting: Setting) -> list[Candidate]:
    """One LSTM layer with each of the backends for the device.

    Raises:
        RecipeError: the package is not installed, a folder was named, or there is no backend for the device.
    """
    if folder is not None:
        raise RecipeError(
            f"--public {NAME}={folder}: is used as installed; install it and give --public {NAME}"
        )
    if setting.device.type not in BACKENDS:
        raise RecipeError(
            f"--public {NAME}: has no backend for {setting.device.type}; measure with --device cpu or cuda"
        )
    function = member(imported("flashrnn", None, adapter=NAME), "flashrnn", adapter=NAME)
    return [
        candidate(
            f"{NAME}, LSTM {units}, {backend}", PublicLSTM(setting.spec, function, backend, units), setting
        )
        for backend, units in BACKENDS[setting.device.type].items()
    ]


class PublicLSTM(SequenceModel):
    """Their function, with its weights and our head.

    Args:
        spec: the task's side of the contract.
        function: theirs.
        backend: which of their ways of running it.
        units: D.
    """

    def __init__(self, spec: TaskSpec, function: Any, backend: str, units: int) -> None:
        super().__init__(spec, summary_size=units)
        self.function, self.backend, self.units = function, backend, units
        self.inputs = nn.Linear(spec.input_size, GATES * units, bias=False)
        self.recurrent = nn.Parameter(torch.empty(GATES, 1, units, units))
        self.bias = nn.Parameter(torch.empty(GATES, 1, units))
        bound = units**-0.5
        for p in (self.inputs.weight, self.recurrent, self.bias):
            nn.init.uniform_(p, -bound, bound)

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run their function over x (B, T, F)."""
        gates = self.inputs(x).view(*x.shape[:2], GATES, 1, self.units)
        states, _ = self.function(
            gates, self.recurrent, self.bias, function="lstm", backend=self.backend, dtype="float32"
        )
        steps = states[0, :, :, 0]
        return Encoding(last_steps(steps, lengths), steps=steps)

    def encoder_flops(self, time: int) -> int:
        """All gates read F inputs and D states."""
        return time * 2 * GATES * self.units * (self.spec.input_size + self.units)
