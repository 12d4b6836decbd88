"""TCN against its equations in NumPy, its receptive field, and what its starts really are."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.tcn import TCN, CausalConvolution, TCNConfig

Array = NDArray[np.float64]
SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
MNIST = TaskSpec(input_size=1, outputs=10, max_length=784)


def build(spec: TaskSpec = SPEC, **fields: object) -> TCN:
    torch.manual_seed(0)
    small = {"name": "tcn", "channels": 4, "layers": 3, "kernel_size": 3}
    model = TCNConfig.model_validate_json(json.dumps({**small, **fields})).build(spec).double().eval()
    assert isinstance(model, TCN)
    return model


def shake(model: TCN) -> TCN:
    """Weights large enough that every ReLU and every tap matters, g unlike the norm of V."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return model


def numpy_convolution(layer: CausalConvolution, x: Array, dilation: int) -> Array:
    """(T, F) -> (T, H), tap by tap; torch's last tap is the present."""
    weights = dict(layer.conv.named_parameters())
    g, V = (weights[f"parametrizations.weight.original{k}"].detach().numpy() for k in (0, 1))
    W = g * V / np.sqrt((V**2).sum((1, 2), keepdims=True))
    out = np.tile(weights["bias"].detach().numpy(), (len(x), 1))
    taps = W.shape[2]
    for t in range(len(x)):
        for j in range(taps):
            if t - j * dilation >= 0:
                out[t] += W[:, :, taps - 1 - j] @ x[t - j * dilation]
    return out


@pytest.mark.parametrize("channels", [4, 2])
def test_equals_the_equations_in_numpy(channels: int) -> None:
    model = shake(build(STEPS, channels=channels))
    x = torch.randn(2, 17, 2, dtype=torch.float64)
    steps = model(x).steps.detach().numpy()
    for row in range(2):
        expected = x[row].numpy()
        for level, block in enumerate(model.blocks):
            y = np.maximum(numpy_convolution(block.first, expected, 2**level), 0)
            y = np.maximum(numpy_convolution(block.second, y, 2**level), 0)
            around = expected
            if block.skip is not None:
                W = block.skip.weight.detach().numpy()[:, :, 0]
                around = expected @ W.T + block.skip.bias.detach().numpy()
            expected = np.maximum(y + around, 0)
        assert (model.blocks[0].skip is None) == (channels == 2)
        np.testing.assert_allclose(steps[row], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("layers", "kernel_size"), [(1, 2), (2, 3), (3, 2)])
def test_the_receptive_field_is_exact(layers: int, kernel_size: int) -> None:
    model = build(layers=layers, kernel_size=kernel_size)
    field = 1 + 2 * (kernel_size - 1) * (2**layers - 1)
    assert model.receptive_field == field
    with torch.no_grad():  # positive weights and inputs: no ReLU shuts, so every path counts
        for parameter in model.parameters():
            parameter.copy_(parameter.abs() + 0.1)
    x = torch.rand(1, field + 5, 2, dtype=torch.float64, requires_grad=True)
    model(x).summary.sum().backward()
    reached = x.grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [False] * 5 + [True] * field


def test_the_mnist_setting_sees_the_whole_image() -> None:
    assert TCNConfig().build(MNIST).receptive_field == 3061


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_small_start_survives_a_forward_pass(dtype: torch.dtype) -> None:
    model = build(channels=40, layers=2, kernel_size=7).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(1, 9, 2, dtype=dtype))
    for block in model.blocks:
        for layer in (block.first, block.second):
            assert abs(layer.conv.weight.std().item() / 0.01 - 1) < 0.1
    assert abs(model.blocks[0].skip.weight.std().item() / 0.01 - 1) < 0.25
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_released_start_is_small_on_the_skip_alone() -> None:
    model = build(channels=40, layers=2, kernel_size=7, init="released")
    uniform = (40 * 7) ** -0.5
    std = model.blocks[1].second.conv.weight.std().item()
    assert abs(std / (uniform / 3**0.5) - 1) < 0.05
    assert abs(model.blocks[0].skip.weight.std().item() / 0.01 - 1) < 0.25


def test_biases_start_as_torch_has_them() -> None:
    model = build(channels=40, layers=2, kernel_size=7)
    bound = (40 * 7) ** -0.5
    assert 0.8 * bound < model.blocks[1].first.conv.bias.abs().max() <= bound


def test_dropout_acts_after_both_convolutions_in_training_only() -> None:
    model, x = shake(build(dropout=0.5)), torch.randn(2, 9, 2, dtype=torch.float64)
    assert torch.equal(model(x).summary, model(x).summary)
    assert not torch.equal(model.train()(x).summary, model(x).summary)
    torch.manual_seed(0)
    block = shake(build(dropout=0.5, layers=1)).train().blocks[0]
    seen: list[float] = []
    block.dropout.register_forward_hook(lambda _, __, out: seen.append((out == 0).double().mean().item()))
    block(torch.randn(2, 2, 9, dtype=torch.float64))
    assert len(seen) == 2
    assert min(seen) > 0.4


def test_options_change_the_output() -> None:
    x = torch.randn(2, 9, 2, dtype=torch.float64)
    plain = build()(x).summary
    for fields in ({"init": "released"}, {"kernel_size": 4}, {"layers": 2}):
        assert not torch.allclose(build(**fields)(x).summary, plain), fields


def test_parameter_count_on_mnist() -> None:
    """Printed as 66K, cut off."""
    inner = 25 * 25 * 7 + 2 * 25
    first = 25 * 7 + 2 * 25 + inner + 2 * 25
    assert TCNConfig().build(MNIST).parameter_count == 66_910 == first + 14 * inner + 260


def test_a_checkpoint_holds_g_and_v() -> None:
    names = build(layers=1).state_dict().keys()
    assert {"blocks.0.first.conv.parametrizations.weight.original0", "blocks.0.skip.weight"} <= names


def test_too_many_blocks_are_refused() -> None:
    with pytest.raises(RecipeError, match="reaches before the first"):
        TCNConfig(layers=11).build(MNIST)
    TCNConfig(layers=10).build(MNIST)
