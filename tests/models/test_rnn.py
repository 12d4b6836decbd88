"""The fused stacks against their equations in NumPy, and their options."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models import MODELS
from seqpyramid.models.cells import CELLS
from seqpyramid.models.rnn import RecurrentStack

Array = NDArray[np.float64]
SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")


def build(name: str, spec: TaskSpec = SPEC, **fields: object) -> RecurrentStack:
    torch.manual_seed(0)
    config = MODELS.lookup(name).model_validate_json(json.dumps({"name": name, "hidden_size": 4, **fields}))
    return config.build(spec).double().eval()


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def numpy_stack(name: str, x: Array, model: RecurrentStack) -> Array:
    """(T, F) -> (T, H), one step after the other."""
    for layer in model.layers:
        U, W, b, d = (p.detach().numpy() for p in layer.parameters())
        h, c = np.zeros(layer.hidden_size), np.zeros(layer.hidden_size)
        out = []
        for x_t in x:
            if name == "rnn":
                h = np.tanh(U @ x_t + b + W @ h + d)
            elif name == "lstm":
                i, f, g, o = np.split(U @ x_t + b + W @ h + d, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:
                (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(U @ x_t + b, 3), np.split(W @ h + d, 3)
                r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
                h = (1 - z) * np.tanh(n_x + r * n_h) + z * h
            out.append(h)
        x = np.stack(out)
    return x


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("bias", ["single", "double"])
@pytest.mark.parametrize("layers", [1, 2])
def test_equals_the_equations_in_numpy(name: str, bias: str, layers: int) -> None:
    model = build(name, STEPS, bias=bias, layers=layers)
    x = torch.randn(2, 7, 2, dtype=torch.float64)
    steps = model(x).steps
    for row in range(2):
        expected = numpy_stack(name, x[row].numpy(), model)
        np.testing.assert_allclose(steps[row].detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "cell"), [("rnn", "elman"), ("lstm", "lstm"), ("gru", "gru")])
def test_the_cells_are_the_fused_layers_step_by_step(name: str, cell: str) -> None:
    layer = build(name, bias="double").layers[0]
    one = CELLS[cell](2, 4, bias="double").double()
    one.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    state = one.initial(3)
    for projected, expected in zip(one.project(x).unbind(1), layer(x)[0].unbind(1), strict=True):
        state = one.step(projected, state)
        torch.testing.assert_close(state[0], expected, rtol=1e-12, atol=1e-12)


def test_single_bias_is_one_vector_a_layer() -> None:
    single, double = build("lstm"), build("lstm", bias="double")
    assert double.parameter_count - single.parameter_count == 4 * 4
    assert single.layers[0].bias_hh_l0.abs().sum() == 0


def test_relu_option_reaches_the_layer() -> None:
    model = build("rnn", STEPS, nonlinearity="relu")
    assert model(3 * torch.randn(2, 9, 2, dtype=torch.float64)).steps.min() == 0


def test_forget_bias_reaches_the_forget_gate() -> None:
    difference = build("lstm", forget_bias=1.5).layers[0].bias_ih_l0 - build("lstm").layers[0].bias_ih_l0
    torch.testing.assert_close(difference[4:8], torch.full((4,), 1.5, dtype=torch.float64))
    assert difference[:4].abs().sum() + difference[8:].abs().sum() == 0


def test_dropout_acts_between_layers_in_training_only() -> None:
    model = build("gru", layers=2, dropout=0.5)
    x = torch.randn(2, 5, 2, dtype=torch.float64)
    assert torch.equal(model(x).outputs, model(x).outputs)
    model.train()
    assert not torch.equal(model(x).outputs, model(x).outputs)


def test_summed_outputs_of_all_layers() -> None:
    model = build("lstm", layers=2, output_aggregation="sum", output_maps=True)
    x = torch.randn(2, 5, 2, dtype=torch.float64)
    lower, _ = model.layers[0](x)
    upper, _ = model.layers[1](lower)
    expected = lower[:, -1] @ model.output.maps[0] + upper[:, -1] @ model.output.maps[1]
    torch.testing.assert_close(model(x).summary, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_maps": True}, "no effect without output_aggregation"),
        ({"dropout": 0.5}, "there is only one"),
    ],
)
def test_options_without_effect_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build("lstm", **fields)
