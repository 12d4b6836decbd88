"""The peephole LSTM against its equations in NumPy and against torch's LSTM."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.peephole import PeepholeLSTM, PeepholeLSTMConfig

Array = NDArray[np.float64]
SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")


def build(spec: TaskSpec = SPEC, **fields: object) -> PeepholeLSTM:
    torch.manual_seed(0)
    config = PeepholeLSTMConfig.model_validate_json(json.dumps({"hidden_size": 4} | fields))
    model = config.build(spec).double().eval()
    assert isinstance(model, PeepholeLSTM)
    return model


def inputs(batch: int = 2, time: int = 7) -> Tensor:
    return torch.randn(batch, time, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def numpy_stack(x: Array, model: PeepholeLSTM, candidate: str) -> Array:
    """Equations (7)-(11) of Graves 2013 gate by gate, with the peepholes as the diagonal matrices they stand for."""
    for cell in model.layers:
        rows = [np.split(p.detach().numpy(), 4) for p in (cell.weight_ih, cell.weight_hh, cell.bias_ih)]
        (U_i, U_f, U_g, U_o), (W_i, W_f, W_g, W_o), (b_i, b_f, b_g, b_o) = rows
        if cell.bias_hh is not None:
            d_i, d_f, d_g, d_o = np.split(cell.bias_hh.detach().numpy(), 4)
            b_i, b_f, b_g, b_o = b_i + d_i, b_f + d_f, b_g + d_g, b_o + d_o
        P_i, P_f, P_o = (np.diag(p) for p in cell.peepholes.detach().numpy())
        h, c, out = np.zeros(len(b_i)), np.zeros(len(b_i)), []
        for x_t in x:
            i = sigmoid(U_i @ x_t + W_i @ h + P_i @ c + b_i)
            f = sigmoid(U_f @ x_t + W_f @ h + P_f @ c + b_f)
            g = U_g @ x_t + W_g @ h + b_g
            c = f * c + i * (np.tanh(g) if candidate == "tanh" else sigmoid(g))
            o = sigmoid(U_o @ x_t + W_o @ h + P_o @ c + b_o)
            h = o * np.tanh(c)
            out.append(h)
        x = np.stack(out)
    return x


@pytest.mark.parametrize("candidate", ["tanh", "sigmoid"])
@pytest.mark.parametrize(("layers", "bias"), [(1, "single"), (2, "double")])
def test_equals_the_equations_in_numpy(candidate: str, layers: int, bias: str) -> None:
    model, x = build(STEPS, candidate=candidate, layers=layers, bias=bias), inputs()
    for row in range(2):
        expected = numpy_stack(x[row].numpy(), model, candidate)
        np.testing.assert_allclose(model(x).steps[row].detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_without_peepholes_it_is_torchs_lstm() -> None:
    model = build(STEPS, layers=2, bias="double", peephole_init="zeros")
    reference = nn.LSTM(2, 4, num_layers=2, batch_first=True).double()
    weights = {
        f"{name}_l{k}": value
        for k, cell in enumerate(model.layers)
        for name, value in cell.state_dict().items()
        if name != "peepholes"
    }
    reference.load_state_dict(weights)
    torch.testing.assert_close(model(inputs()).steps, reference(inputs())[0], rtol=1e-12, atol=1e-12)


def test_carried_state_is_h_and_c_of_each_layer() -> None:
    spec = TaskSpec(input_size=2, outputs=3, carry_state=True)
    model, lengths = build(spec, layers=2), torch.tensor([7, 3])
    output = model(inputs(), lengths)
    assert [[part.shape for part in layer] for layer in output.state] == [[(2, 4), (2, 4)]] * 2
    torch.testing.assert_close(output.state[1][0], output.summary, rtol=0, atol=0)
    short = model(inputs()[1:, :3])
    torch.testing.assert_close(output.state[0][1][1], short.state[0][1][0], rtol=1e-12, atol=1e-12)
    assert build(layers=2)(inputs()).state is None


def test_three_more_parameters_a_unit_than_an_lstm() -> None:
    h, i = 4, 2
    assert build().parameter_count == 4 * h * (i + h + 1) + 3 * h + (3 * h + 3)
    assert build(bias="double").parameter_count - build().parameter_count == 4 * h
    assert build(layers=2).parameter_count - build().parameter_count == 4 * h * (2 * h + 1) + 3 * h
    mnist = PeepholeLSTMConfig(hidden_size=100).build(TaskSpec(input_size=1, outputs=10))
    assert mnist.parameter_count == 41_810 + 300


@pytest.mark.parametrize(
    "fields",
    [
        {"candidate": "sigmoid"},
        {"bias": "double"},
        {"forget_bias": 1.0},
        {"init": "tensorflow"},
        {"peephole_init": "zeros"},
        {"head_init": "standard_normal"},
        {"layers": 2},
    ],
)
def test_every_option_changes_the_output(fields: dict[str, object]) -> None:
    assert not torch.allclose(build(**fields)(inputs()).outputs, build()(inputs()).outputs)


def test_initial_weights() -> None:
    model = build(hidden_size=400, forget_bias=1.5, init="tensorflow")
    cell, bound = model.layers[0], 400**-0.5
    assert cell.peepholes.abs().max() <= bound
    assert abs(cell.peepholes.std().item() / (bound / 3**0.5) - 1) < 0.05
    assert torch.equal(cell.bias_ih[400:800], torch.full((400,), 1.5, dtype=torch.float64))
    assert cell.bias_ih[:400].abs().sum() + cell.bias_ih[800:].abs().sum() == 0
    assert build(peephole_init="zeros").layers[0].peepholes.abs().sum() == 0


def test_dropout_acts_between_layers_in_training_only() -> None:
    model = build(layers=2, dropout=0.5)
    assert torch.equal(model(inputs()).outputs, model(inputs()).outputs)
    model.train()
    assert not torch.equal(model(inputs()).outputs, model(inputs()).outputs)


def test_dropout_of_one_layer_is_refused() -> None:
    with pytest.raises(RecipeError, match="dropout: acts between layers, and there is only one"):
        build(dropout=0.5)
