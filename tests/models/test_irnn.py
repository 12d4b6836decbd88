"""IRNN against its equation, torch's layer, and its start."""

import numpy as np
import pytest
import torch

from tests.models.numpy_lstm import MNIST, STEPS, arrays, build, close, normal, ramp


@pytest.mark.parametrize("lengths", [[7, 7], [7, 4]])
def test_equals_the_equation_in_numpy(lengths: list[int]) -> None:
    model = ramp(build("irnn", STEPS, hidden_size=4))
    model.layer.bias_hh_l0.data.zero_()
    U, W, b = arrays(model.layer.weight_ih_l0, model.layer.weight_hh_l0, model.layer.bias_ih_l0)
    x = normal(2, 7, 2)
    output = model(x, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        h = np.zeros(4)
        for t in range(length):
            h = np.maximum(0, U @ x[row, t].numpy() + W @ h + b)
            close(output.steps[row, t], h)
        close(output.summary[row], h)
        assert output.steps[row, length:].abs().sum() == 0


def test_is_the_relu_network_of_the_table_with_another_start() -> None:
    model = build("irnn", hidden_size=4, input_deviation=0.5)
    relu = build("rnn", hidden_size=4, nonlinearity="relu")
    relu.layers[0].load_state_dict(model.layer.state_dict())
    relu.head.load_state_dict(model.head.state_dict())
    x = normal(3, 6, 2)
    torch.testing.assert_close(model(x).outputs, relu(x).outputs, rtol=1e-12, atol=1e-12)
    assert model.parameter_count == relu.parameter_count


def test_start() -> None:
    model = build("irnn", MNIST, hidden_size=400)
    assert torch.equal(model.layer.weight_hh_l0, torch.eye(400).double())
    assert abs(model.layer.weight_ih_l0.std().item() / 1e-3 - 1) < 0.15
    assert abs(model.layer.weight_ih_l0.mean().item()) < 2e-4
    assert model.layer.bias_ih_l0.abs().sum() == model.layer.bias_hh_l0.abs().sum() == 0
    other = build("irnn", MNIST, hidden_size=400, input_deviation=0.2, identity_scale=0.01)
    assert torch.equal(other.layer.weight_hh_l0, (0.01 * torch.eye(400)).double())
    assert abs(other.layer.weight_ih_l0.std().item() / 0.2 - 1) < 0.15


def test_at_the_start_it_adds_up_its_inputs() -> None:
    model = build("irnn", hidden_size=6)
    x = normal(2, 5, 2).abs()
    with torch.no_grad():
        model.layer.weight_ih_l0.abs_()
    expected = (x @ model.layer.weight_ih_l0.T).sum(1)
    torch.testing.assert_close(model(x).summary, expected, rtol=1e-12, atol=0)


def test_a_state_that_would_overflow_in_the_padding_spoils_no_gradient() -> None:
    model = build("irnn", hidden_size=3, input_deviation=1.0)
    with torch.no_grad():
        model.layer.weight_hh_l0 *= 1e200
    x = normal(2, 6, 2)
    model(x, torch.tensor([1, 1])).outputs.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_parameter_count() -> None:
    assert build("irnn", MNIST).parameter_count == 11_210
