"""What the equation tests of the LSTM variants share: ramp weights, and the LSTM's parts in NumPy."""

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.models import MODELS
from seqpyramid.models.base import SequenceModel

Array = NDArray[np.float64]
SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
MNIST = TaskSpec(input_size=1, outputs=10, max_length=784)


def build(name: str, spec: TaskSpec = SPEC, **fields: object) -> Any:
    """A model of the table in float64, in evaluation mode."""
    torch.manual_seed(0)
    config = MODELS.lookup(name).model_validate_json(json.dumps({"name": name, **fields}))
    return config.build(spec).double().eval()


def ramp(model: nn.Module) -> Any:
    """Weights from a sine ramp: no two equal, so that a transposed or swapped block cannot pass."""
    n = 0
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.sin(torch.arange(n, n + p.numel(), dtype=p.dtype) * 1.7).reshape(p.shape) * 0.6)
            n += p.numel()
    return model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def arrays(*tensors: Tensor) -> list[Array]:
    return [tensor.detach().numpy() for tensor in tensors]


def cell(model: SequenceModel) -> list[Array]:
    """U, W, b of the model's cell."""
    return arrays(model.cell.weight_ih, model.cell.weight_hh, model.cell.bias_ih)  # type: ignore[union-attr]


def squashed(v: Array) -> list[Array]:
    """i, f, g, o from what is added up for them, (4 H,) or (B, 4 H)."""
    i, f, g, o = np.split(v, 4, axis=-1)
    return [sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)]


def same_weights(model: nn.Module, torch_lstm: nn.LSTM) -> nn.LSTM:
    """Torch's own LSTM with the weights of a variant's cell."""
    with torch.no_grad():
        torch_lstm.weight_ih_l0.copy_(model.cell.weight_ih)
        torch_lstm.weight_hh_l0.copy_(model.cell.weight_hh)
        torch_lstm.bias_ih_l0.copy_(model.cell.bias_ih)
        torch_lstm.bias_hh_l0.zero_()
    return torch_lstm


def close(found: Tensor, expected: Array) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10, atol=1e-10)
