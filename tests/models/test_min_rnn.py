"""minGRU and minLSTM against their equations in NumPy, and what they must reduce to."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models import MODELS
from seqpyramid.models.min_rnn import MinLayer, MinRNN

Array = NDArray[np.float64]
SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
MNIST = TaskSpec(input_size=1, outputs=10)
NAMES = ["min_gru", "min_lstm"]


def build(name: str, spec: TaskSpec = SPEC, **fields: object) -> MinRNN:
    torch.manual_seed(0)
    config = MODELS.lookup(name).model_validate_json(json.dumps({"name": name, "hidden_size": 3, **fields}))
    model = config.build(spec).double().eval()
    assert isinstance(model, MinRNN)
    return model


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def linear(layer: torch.nn.Module, x: Array) -> Array:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def numpy_layer(layer: MinLayer, x: Array) -> Array:
    """(T, F) -> (T, E), one step after the other."""
    h, out = np.zeros(layer.maps.out_features // (2 if layer.cell == "min_gru" else 3)), []
    for x_t in x:
        if layer.cell == "min_gru":
            v, z = np.split(linear(layer.maps, x_t), 2)
            keep, write = 1 - sigmoid(z), sigmoid(z)
        else:
            v, f, i = np.split(linear(layer.maps, x_t), 3)
            keep = sigmoid(f) / (sigmoid(f) + sigmoid(i))
            write = sigmoid(i) / (sigmoid(f) + sigmoid(i))
        if layer.candidate == "positive":
            v = np.array([value + 0.5 if value >= 0 else sigmoid(value) for value in v])
        h = keep * h + write * v
        out.append(h)
    return np.stack(out)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("candidate", ["linear", "positive"])
@pytest.mark.parametrize("layers", [1, 2])
def test_equals_the_equations_in_numpy(name: str, candidate: str, layers: int) -> None:
    model = build(name, STEPS, candidate=candidate, layers=layers)
    x = 2 * torch.randn(2, 11, 2, dtype=torch.float64)
    steps = model(x).steps
    for row in range(2):
        expected = x[row].numpy()
        for layer in model.layers:
            expected = numpy_layer(layer, expected)
        np.testing.assert_allclose(steps[row].detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_residual_blocks_equal_numpy(name: str) -> None:
    model = build(name, STEPS, residual=True, expansion=2, layers=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)

    def normalised(norm: torch.nn.Module, x: Array) -> Array:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()

    x = torch.randn(1, 9, 2, dtype=torch.float64)
    expected = linear(model.input, x[0].numpy())
    for layer, norm, output in zip(model.layers, model.norms, model.outputs, strict=True):
        expected = expected + linear(output, numpy_layer(layer, normalised(norm, expected)))
    np.testing.assert_allclose(
        model(x).steps[0].detach().numpy(), normalised(model.norm, expected), rtol=1e-10, atol=1e-10
    )


def test_a_min_lstm_whose_gates_sum_to_one_is_a_min_gru() -> None:
    lstm, gru = build("min_lstm", STEPS), build("min_gru", STEPS)
    with torch.no_grad():
        for of_lstm, of_gru in zip(
            lstm.layers[0].maps.parameters(), gru.layers[0].maps.parameters(), strict=True
        ):
            candidate, z = of_gru.chunk(2)
            of_lstm.copy_(torch.cat([candidate, -z, z]))
    x = torch.randn(2, 7, 2, dtype=torch.float64)
    torch.testing.assert_close(lstm(x).steps, gru(x).steps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_shut_gates_keep_the_state_and_open_ones_replace_it(name: str) -> None:
    model = build(name, TaskSpec(input_size=2, outputs=3, needs="steps", carry_state=True))
    x, before = torch.randn(2, 5, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    maps = model.layers[0].maps
    with torch.no_grad():
        maps.weight[3:] = 0
        maps.bias[3:6], maps.bias[6:] = (50.0 if name == "min_lstm" else -50.0), -50.0
    torch.testing.assert_close(model(x, state=[before]).steps, before[:, None].expand(2, 5, 3))
    with torch.no_grad():
        maps.bias[3:6], maps.bias[6:] = (-50.0 if name == "min_lstm" else 50.0), 50.0
    torch.testing.assert_close(model(x, state=[before]).steps, maps(x)[..., :3])


def test_gates_that_both_vanish_stay_finite() -> None:
    model = build("min_lstm").float()
    with torch.no_grad():
        model.layers[0].maps.bias[3:] = -200.0  # both sigmoids are 0 in float32
    output = model(torch.randn(2, 5, 2))
    output.outputs.sum().backward()
    assert torch.isfinite(output.outputs).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_positive_candidates_never_make_a_negative_state() -> None:
    x = 3 * torch.randn(2, 9, 2, dtype=torch.float64)
    for name in NAMES:
        assert build(name, STEPS, candidate="positive")(x).steps.min() >= 0
        assert build(name, STEPS)(x).steps.min() < 0


def test_forget_bias_reaches_f_alone() -> None:
    difference = (
        build("min_lstm", forget_bias=1.5).layers[0].maps.bias - build("min_lstm").layers[0].maps.bias
    )
    expected = torch.tensor([0, 0, 0, 1.5, 1.5, 1.5, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("fields", [{"layers": 2, "dropout": 0.5}, {"residual": True, "dropout": 0.5}])
def test_dropout_acts_in_training_only(fields: dict[str, object]) -> None:
    model, x = build("min_gru", **fields), torch.randn(2, 5, 2, dtype=torch.float64)
    assert torch.equal(model(x).summary, model(x).summary)
    assert not torch.equal(model.train()(x).summary, model(x).summary)


@pytest.mark.parametrize("name", NAMES)
def test_carried_state_of_a_residual_stack(name: str) -> None:
    model = build(
        name,
        TaskSpec(input_size=2, outputs=3, carry_state=True),
        residual=True,
        expansion=2,
        layers=2,
    )
    x = torch.randn(2, 9, 2, dtype=torch.float64)
    first = model(x[:, :4])
    assert [h.shape for h in first.state] == [(2, 6), (2, 6)]
    torch.testing.assert_close(model(x[:, 4:], state=first.state).outputs, model(x).outputs)
    assert build(name)(x).state is None


def test_parameter_counts_on_mnist() -> None:
    def count(name: str, **fields: object) -> int:
        return build(name, MNIST, hidden_size=128, **fields).parameter_count

    H, head = 128, 1290
    gru, lstm = 2 * (H * H + H), 3 * (H * H + H)
    assert count("min_gru", layers=4) == 2 * 2 * H + 3 * gru + head == 100_874
    assert count("min_lstm", layers=4) == 3 * 2 * H + 3 * lstm + head == 150_666
    outer = 2 * H + 2 * H + head
    assert count("min_gru", layers=4, residual=True) == 4 * (gru + H * H + 3 * H) + outer == 200_970
    assert count("min_lstm", layers=3, residual=True) == 3 * (lstm + H * H + 3 * H) + outer == 200_714


def test_half_precision_scans_in_float32() -> None:
    """Small writes into a long memory would be lost if each step were rounded to bfloat16."""
    layer = MinLayer(2, 3, cell="min_gru", candidate="linear")
    with torch.no_grad():
        layer.maps.bias[3:] = -4.0
        layer.maps.bias[:3] = 1.0
    layer = layer.to(torch.bfloat16)
    x = torch.randn(2, 300, 2, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    candidate, z = layer.maps(x).double().chunk(2, dim=-1)
    h, found = torch.zeros(2, 3, dtype=torch.float64), layer(x)
    assert found.dtype == torch.bfloat16
    for t in range(300):
        h = h + torch.sigmoid(z[:, t]) * (candidate[:, t] - h)
        torch.testing.assert_close(found[:, t].double(), h, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expansion": 2}, "no effect without residual"),
        ({"dropout": 0.5}, "there is only one"),
    ],
)
def test_options_without_effect_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build("min_gru", **fields)
