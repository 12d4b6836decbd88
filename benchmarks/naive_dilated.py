"""The Dilated RNN evaluated as its authors' released code does it, to hold the product's ways against.

"Naive" means lists of slices: every layer pads the sequence to a multiple of its dilation d, cuts it into the list of
its d interleaved sub-sequences, joins them on the batch axis, runs one of torch's own layers over all of them (no
kernel of this package), cuts the states into d blocks again and interleaves those. Every layer computes all T steps,
L T in all, also where nothing but the last is read. It is no step-by-step loop in Python; that would be slower still.

Source: Chang et al., "Dilated Recurrent Neural Networks", NIPS 2017, section 2.1 and its released code's way of
evaluation. Equations and shapes: :mod:`seqpyramid.models.dilated`, whose outputs and gradients this has.

Shapes: B batch, T time steps, F input features, H hidden units, d dilation.
"""

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from seqpyramid import kernels
from seqpyramid.models.base import Encoding, SequenceModel, last_steps, mask_steps
from seqpyramid.models.dilated import DilatedRNN, windows


class NaiveDilatedRNN(SequenceModel):
    """A copy of a Dilated RNN, its weights and its head, evaluated by lists of slices.

    Args:
        model: what to copy; its ``spec`` says whether the last step or every step is read.
    """

    def __init__(self, model: DilatedRNN) -> None:
        super().__init__(model.spec, summary_size=model.dilations[0] * model.sizes[-1])
        self.dilated = copy.deepcopy(model)
        self.head = self.dilated.head

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Compute every state of every layer over x (B, T, F), then read what the task needs."""
        x = x.transpose(0, 1)
        for layer, dilation in zip(self.dilated.layers, self.dilated.dilations, strict=True):
            x = all_states(layer, x, dilation)
        steps = x.transpose(0, 1)
        if self.spec.needs == "summary":
            return Encoding(self.dilated.recent(steps, lengths))
        steps = mask_steps(windows(steps, self.dilated.dilations[0]), lengths)
        return Encoding(last_steps(steps, lengths), steps=steps)

    def encoder_flops(self, time: int) -> int:
        """Gates of all steps of all layers, the padding's included."""
        layers = zip(self.dilated.dilations, pairwise(self.dilated.sizes), strict=True)
        return sum(
            2 * self.dilated.gates * above * (below + above) * (time + -time % dilation)
            for dilation, (below, above) in layers
        )


def all_states(layer: nn.Module, x: Tensor, dilation: int) -> Tensor:
    """Run one layer over a list of ``dilation`` slices: (T, B, F) -> (T, B, H)."""
    time, batch, features = x.shape
    missing = -time % dilation
    if missing:
        x = torch.cat([x, x.new_zeros(missing, batch, features)])
    slices = [x[first::dilation] for first in range(dilation)]
    states = run_plain(layer, torch.cat(slices, dim=1))
    blocks = torch.split(states, batch, dim=1)
    return torch.stack(blocks, dim=1).reshape(time + missing, batch, -1)[:time]


def run_plain(layer: nn.Module, x: Tensor) -> Tensor:
    """All states of one layer without a kernel: (T, B, F) -> (T, B, H)."""
    before = kernels.chosen()
    kernels.choose("plain")
    try:
        steps: Tensor = layer(x)[0]
    finally:
        kernels.choose(before)
    return steps
