"""Dilated CNN against its equation in NumPy, its receptive field, and its two ways of running."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqpyramid.analysis.structure import receptive_field
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.dilated_cnn import DilatedCNN, DilatedCNNConfig

SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")


def config(**fields: object) -> DilatedCNNConfig:
    base: dict[str, object] = {"filters": 4, "layers": 3}
    return DilatedCNNConfig.model_validate_json(json.dumps(base | fields))


def build(spec: TaskSpec = SPEC, **fields: object) -> DilatedCNN:
    torch.manual_seed(0)
    return config(**fields).build(spec).double().eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("T", [1, 7, 16, 21])
def test_equals_the_equation_in_numpy(activation: str, layers: int, T: int) -> None:
    phi = {"relu": lambda a: np.maximum(a, 0), "tanh": np.tanh}[activation]
    fields = {"layers": layers, "activation": activation}
    model, stepwise = build(**fields), build(STEPS, **fields)
    x = noise(3, T, 2)
    lengths = torch.tensor([T, (T + 1) // 2, max(1, T - 1)])
    output, steps = model(x, lengths), stepwise(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        below = x[row, :length].numpy()
        for k, layer in enumerate(model.layers):
            W = layer.weight.detach().numpy()
            F = below.shape[1]
            W0, W1 = W[:, :F], W[:, F:]
            above = []
            for t in range(length):
                older = below[t - 2**k] if t >= 2**k else np.zeros(F)
                above.append(phi(W0 @ older + W1 @ below[t]))
            below = np.stack(above)
        np.testing.assert_allclose(steps.steps[row, :length].detach().numpy(), below, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(output.summary[row].detach().numpy(), below[-1], rtol=1e-10, atol=1e-10)
        assert not steps.steps[row, length:].any()


def test_a_layer_is_torchs_convolution() -> None:
    model = build(STEPS)
    x = noise(2, 13, 2)
    signal = x.transpose(1, 2)
    for k, layer in enumerate(model.layers):
        taps = torch.stack(layer.weight.chunk(2, dim=1), dim=2)
        padded = nn.functional.pad(signal, (2**k, 0))
        signal = torch.relu(nn.functional.conv1d(padded, taps, dilation=2**k))
    torch.testing.assert_close(model(x).steps, signal.transpose(1, 2), rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_the_cone_equals_all_steps(layers: int, ends: list[int]) -> None:
    model = build(layers=layers, activation="tanh")
    lengths = torch.tensor(ends)
    x = noise(len(ends), max(ends), 2, seed=sum(ends)).requires_grad_()
    one = model.cone(x, lengths)
    other = model.dense(x)[torch.arange(len(ends)), lengths - 1]
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    weights = noise(*one.shape, seed=1)
    leaves = [x, *model.layers.parameters()]
    ones, others = (torch.autograd.grad((v * weights).sum(), leaves) for v in (one, other))
    for a, b in zip(ones, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_receptive_field_is_the_formula(layers: int) -> None:
    x = noise(1, 40, 2).requires_grad_()
    build(layers=layers, activation="tanh")(x).summary.sum().backward()
    reached = (x.grad[0].abs().sum(1) > 0).nonzero().flatten().tolist()
    field = receptive_field([2**k for k in range(layers)])
    assert field == 2**layers
    assert reached == list(range(40 - field, 40))


def test_ten_layers_miss_the_digit_before_a_thousand_steps_of_noise() -> None:
    """The paper's reason for the 11th layer: 784 pixels, then noise up to 2,000 steps."""
    assert (
        receptive_field([2**k for k in range(10)])
        < 2000 - 784 + 1
        <= receptive_field([2**k for k in range(11)])
    )


def test_parameter_counts() -> None:
    mnist = TaskSpec(input_size=1, outputs=10, max_length=784)
    assert DilatedCNNConfig().build(mnist).parameter_count == 7_450
    assert DilatedCNNConfig(filters=50).build(mnist).parameter_count == 45_610


def test_options_reach_the_model() -> None:
    x = noise(2, 9, 2)
    summary = build()(x).summary
    assert not torch.allclose(build(activation="tanh")(x).summary, summary)
    assert not torch.allclose(build(layers=2)(x).summary, summary)
    assert not torch.allclose(build(init="torch")(x).summary, summary)
    assert build(filters=7)(x).summary.shape == (2, 7)


@pytest.mark.parametrize(("init", "bound"), [("tensorflow", (6 / 200) ** 0.5), ("torch", 100**-0.5)])
def test_starts(init: str, bound: float) -> None:
    model = build(filters=50, init=init)
    weight = model.layers[1].weight
    assert 0.98 * bound < weight.abs().max() <= bound
    assert abs(weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.05
    assert model.layers[0].bias is None
    assert abs(build(filters=300).head.linear.weight.std().item() - 1) < 0.06


def test_a_tap_that_only_meets_zeros_is_refused() -> None:
    with pytest.raises(RecipeError, match="layers: is 4, but the last layer's dilation of 8 reaches before"):
        config(layers=4).build(TaskSpec(input_size=1, outputs=3, max_length=8))
    config(layers=4).build(TaskSpec(input_size=1, outputs=3, max_length=9))
