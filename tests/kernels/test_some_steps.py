"""A layer of which one of several steps is wanted, against the same layer with all steps, bit for bit."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from seqpyramid.kernels.elman import elman_layer
from seqpyramid.kernels.gru import gru_layer, reset_before_gru_layer
from seqpyramid.kernels.lstm import lstm_layer
from tests.kernels import needs_kernels, running

pytestmark = needs_kernels

B, T, F, H = 11, 23, 3, 19

Layer = tuple[Callable[..., tuple[Tensor | None, object]], list[tuple[int, ...]]]
"""The function, and the sizes of its weights."""

LAYERS: dict[str, Layer] = {
    "lstm": (lstm_layer, [(4 * H, F), (4 * H, H), (4 * H,)]),
    "gru": (gru_layer, [(3 * H, F), (3 * H, H), (3 * H,), (3 * H,)]),
    "reset_before": (reset_before_gru_layer, [(3 * H, F), (2 * H, H), (H, H), (3 * H,)]),
    "tanh": (elman_layer, [(H, F), (H, H), (H,)]),
    "relu": (partial(elman_layer, nonlinearity="relu"), [(H, F), (H, H), (H,)]),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("segment", [None, "auto", 4])
def test_one_of_several_steps(level: str, name: str, ragged: bool, segment: int | str | None) -> None:
    layer, sizes = LAYERS[name]
    torch.manual_seed(0)
    leaves = [torch.randn(size).mul_(0.3).requires_grad_() for size in [(B, T, F), *sizes]]
    lengths = torch.randint(1, T + 1, (B,)) if ragged else torch.full((B,), T)
    for every in (1, 2, 3, 8, T, T + 4):
        first = (T - 1) % every
        found = []
        with running("fused", 2):
            for asked in (1, every):
                steps, _ = layer(*leaves, lengths, keep_steps=True, every=asked, segment=segment)
                assert steps is not None
                steps = steps[:, first::every] if asked != every else steps
                gradients = torch.autograd.grad(steps.sin().sum(), leaves)
                with torch.no_grad():
                    alone = layer(*leaves, lengths, keep_steps=True, every=asked)[0]
                assert alone is not None
                assert torch.equal(alone[:, first::every] if asked != every else alone, steps)
                found.append([steps, *gradients])
        assert found[0][0].shape[1] == -(-T // every)
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
