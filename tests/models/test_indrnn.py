"""IndRNN against its equation, its bound, and its start."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.indrnn import IndRNN, StepsBatchNorm
from tests.models.numpy_lstm import MNIST, STEPS, Array, arrays, build, close, normal, ramp

T100 = TaskSpec(input_size=2, outputs=3, max_length=100)
FREE = {"bound": "none", "layers": 2, "hidden_size": 4}


def numpy_norm(x: Array, norm: nn.BatchNorm1d) -> Array:
    gamma, beta, mean, variance = arrays(norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return gamma * (x - mean) / np.sqrt(variance + norm.eps) + beta


def numpy_layers(x: Array, model: IndRNN, batch_norm: str, squash: object = None) -> Array:
    """(T, F) -> (T, H) of the top layer."""
    for k, layer in enumerate(model.layers):
        W, b, u = arrays(layer.weight, layer.bias, layer.u)
        if layer.largest is not None:
            u = np.clip(u, -layer.largest, layer.largest)
        h, out = np.zeros(len(b)), []
        for x_t in x:
            a = W @ x_t + b
            if batch_norm == "before":
                a = numpy_norm(a, model.norms[k])
            h = np.tanh(a + u * h) if squash == "tanh" else np.maximum(0, a + u * h)
            out.append(h)
        x = np.stack(out)
        if batch_norm == "after":
            x = numpy_norm(x, model.norms[k])
    return x


@pytest.mark.parametrize("batch_norm", ["none", "before", "after"])
@pytest.mark.parametrize("bound", ["none", "one"])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_equals_the_equation_in_numpy(batch_norm: str, bound: str, nonlinearity: str) -> None:
    options = {"layers": 3, "hidden_size": 4, "bound": bound, "nonlinearity": nonlinearity, "dropout": 0.3}
    model = ramp(build("indrnn", STEPS, batch_norm=batch_norm, **options))
    with torch.no_grad():
        for layer in model.layers:
            layer.u *= 2.5  # so that the bound acts
        for k, norm in enumerate(model.norms):
            norm.running_mean.copy_(normal(4, seed=k))
            norm.running_var.copy_(normal(4, seed=9 + k).square() + 0.1)
    assert any((layer.u.abs() > 1).any() for layer in model.layers)
    x, lengths = normal(2, 6, 2), torch.tensor([6, 4])
    output = model(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = numpy_layers(x[row, :length].numpy(), model, batch_norm, nonlinearity)
        close(output.steps[row, :length], expected)
        close(output.summary[row], expected[-1])
        assert output.steps[row, length:].abs().sum() == 0


def test_is_a_relu_network_with_a_diagonal_matrix() -> None:
    model = build("indrnn", STEPS, **(FREE | {"layers": 1}))
    torch_layer = nn.RNN(2, 4, nonlinearity="relu", batch_first=True).double()
    layer = model.layers[0]
    with torch.no_grad():
        torch_layer.weight_ih_l0.copy_(layer.weight)
        torch_layer.weight_hh_l0.copy_(torch.diag(layer.u))
        torch_layer.bias_ih_l0.copy_(layer.bias)
        torch_layer.bias_hh_l0.zero_()
    x = normal(2, 6, 2)
    torch.testing.assert_close(model(x).steps, torch_layer(x)[0], rtol=1e-12, atol=1e-12)


def test_batch_norm_in_training_is_over_the_valid_steps_of_all_sequences() -> None:
    model = build("indrnn", STEPS, batch_norm="after", **(FREE | {"layers": 1})).train()
    layer, x, lengths = model.layers[0], normal(3, 5, 2), torch.tensor([5, 2, 4])
    plain = build("indrnn", STEPS, **(FREE | {"layers": 1}))
    plain.layers.load_state_dict(model.layers.state_dict())
    states = plain(x, lengths).steps
    valid = torch.cat([states[row, :length] for row, length in enumerate(lengths)])
    expected = (valid - valid.mean(0)) / torch.sqrt(valid.var(0, correction=0) + 1e-5)
    steps = model(x, lengths).steps
    found = torch.cat([steps[row, :length] for row, length in enumerate(lengths)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.norms[0].running_mean, 0.1 * valid.mean(0), rtol=1e-6, atol=1e-9)
    assert layer.u.requires_grad


def test_full_and_ragged_batch_norm_agree() -> None:
    norm = StepsBatchNorm(3).double()
    steps = normal(2, 4, 3)
    padded = torch.cat([steps, torch.full((2, 2, 3), 1e3, dtype=torch.float64)], dim=1)
    found = norm(padded, torch.tensor([4, 4]))
    torch.testing.assert_close(found[:, :4], norm(steps, torch.tensor([4, 4])), rtol=1e-12, atol=1e-12)
    assert found[:, 4:].abs().sum() == 0


def test_dropout_has_one_mask_a_sequence() -> None:
    model = build("indrnn", STEPS, **(FREE | {"hidden_size": 40, "layers": 1}), dropout=0.4)
    with torch.no_grad():
        model.layers[0].bias += 1.0  # so that no unit is silent by itself
    x = normal(3, 6, 2) * 0.1
    plain, dropped = model(x).steps, model.train()(x).steps
    ratio = dropped / plain
    gone = ratio == 0
    torch.testing.assert_close(ratio[~gone], torch.full_like(ratio[~gone], 1 / 0.6), rtol=1e-10, atol=0)
    assert torch.equal(gone.all(dim=1), gone.any(dim=1))
    assert 0.2 < gone.double().mean() < 0.6
    assert not torch.equal(gone[0], gone[1])


@pytest.mark.parametrize(
    ("spec", "fields", "largest"),
    [
        (T100, {"growth": 5.0}, 5 ** (1 / 100)),
        (T100, {}, 2 ** (1 / 100)),
        (T100, {"bound": "one"}, 1.0),
        (T100, {"bound": "none"}, None),
        (STEPS, {}, 1.0),
    ],
)
def test_bound(spec: TaskSpec, fields: dict[str, object], largest: float | None) -> None:
    model = build("indrnn", spec, layers=2, hidden_size=3, **fields)
    layer = model.layers[0]
    with torch.no_grad():
        layer.u.copy_(torch.tensor([1.7, -1.7, 0.3], dtype=torch.float64))
    values = [1.7, -1.7, 0.3] if largest is None else [largest, -largest, 0.3]
    expected = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(layer.bounded(), expected, rtol=1e-12, atol=0)
    assert layer.u[0] == 1.7, "evaluation changes no parameter"
    model.train()(normal(2, 4, 2))
    torch.testing.assert_close(layer.u.detach(), expected, rtol=1e-12, atol=0)


def test_a_weight_beyond_the_bound_still_learns() -> None:
    model = build("indrnn", bound="one", layers=1, hidden_size=3).train()
    with torch.no_grad():
        model.layers[0].u.fill_(1.5)
        model.layers[0].bias.fill_(1.0)
    model(normal(2, 4, 2) * 0.1).outputs.sum().backward()
    assert (model.layers[0].u.grad != 0).all()


def test_a_state_that_would_overflow_in_the_padding_spoils_no_gradient() -> None:
    model = build("indrnn", **FREE)
    with torch.no_grad():
        for layer in model.layers:
            layer.u.fill_(1e100)
    model(normal(2, 9, 2), torch.tensor([1, 2])).outputs.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_start() -> None:
    spec = TaskSpec(input_size=8, outputs=3, max_length=50)
    model = build("indrnn", spec, hidden_size=400, layers=3, input_init="he_over_length")
    top = 2 ** (1 / 50)
    for layer in model.layers[:2]:
        assert 0 <= layer.u.min() < 0.02
        assert top - 0.02 < layer.u.max() <= top
    last = model.layers[2].u
    assert 1 / top <= last.min() < 1 < last.max() <= top
    for layer, fan_in in zip(model.layers, (8, 400, 400), strict=True):
        assert abs(layer.weight.std().item() / math.sqrt(2 / (50 * fan_in)) - 1) < 0.05
        assert layer.bias.abs().sum() == 0


def test_other_starts() -> None:
    small = build("indrnn", hidden_size=50, layers=2, input_init="small_uniform")
    for layer in small.layers:
        assert 0.0019 < layer.weight.abs().max() <= 0.002000001
        assert layer.bias.abs().sum() == 0
    assert torch.equal(small.layers[1].u, torch.ones(50).double())
    uniform = build("indrnn", hidden_size=50, layers=2, last_start="uniform")
    assert uniform.layers[1].u.min() < 0.2
    bound = 50**-0.5
    assert 0.9 * bound < uniform.layers[1].weight.abs().max() <= bound
    assert 0.8 * bound < uniform.layers[1].bias.abs().max() <= bound


def test_parameter_count() -> None:
    model = build("indrnn", MNIST)
    assert model.parameter_count == 128 * 3 + 5 * 128 * 130 + 1_290 == 84_874
    assert build("indrnn", MNIST, batch_norm="after").parameter_count == 84_874 + 6 * 2 * 128


@pytest.mark.parametrize(
    ("spec", "fields", "message"),
    [
        (T100, {"growth": 3.0, "bound": "one"}, "no effect with bound 'one'"),
        (STEPS, {"growth": 3.0}, "does not know; leave it out"),
        (STEPS, {"input_init": "he_over_length"}, "does not know; choose another"),
    ],
)
def test_impossible_settings_are_explained(spec: TaskSpec, fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build("indrnn", spec, **fields)
