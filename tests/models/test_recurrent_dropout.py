"""Recurrent dropout against its equations, the plain LSTM, and its masks."""

import numpy as np
import pytest
import torch
from torch import nn

from seqpyramid.errors import RecipeError
from tests.models.numpy_lstm import (
    MNIST,
    STEPS,
    Array,
    build,
    cell,
    close,
    normal,
    ramp,
    same_weights,
    squashed,
)

NAME = "recurrent_dropout_lstm"


def numpy_lstm(x: Array, model: nn.Module, factors: list[Array | float]) -> Array:
    """(T, F) -> h of every step, g multiplied by that step's factor."""
    U, W, b = cell(model)  # type: ignore[arg-type]
    h, c = np.zeros(W.shape[1]), np.zeros(W.shape[1])
    states = []
    for x_t, d in zip(x, factors, strict=True):
        i, f, g, o = squashed(U @ x_t + W @ h + b)
        c = f * c + i * (d * g)
        h = o * np.tanh(c)
        states.append(h)
    return np.stack(states)


@pytest.mark.parametrize(("scaling", "factor"), [("test", 0.7), ("training", 1.0)])
@pytest.mark.parametrize("mask", ["per_step", "per_sequence"])
def test_equals_the_equations_outside_training(scaling: str, factor: float, mask: str) -> None:
    model = ramp(build(NAME, STEPS, hidden_size=4, rate=0.3, scaling=scaling, mask=mask))
    x, lengths = normal(2, 6, 2), torch.tensor([6, 4])
    output = model(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        close(output.steps[row, :length], numpy_lstm(x[row, :length].numpy(), model, [factor] * length))


@pytest.mark.parametrize(("scaling", "size"), [("test", 1.0), ("training", 1 / 0.6)])
@pytest.mark.parametrize("mask", ["per_step", "per_sequence"])
def test_equals_the_equations_in_training(scaling: str, size: float, mask: str) -> None:
    model = ramp(build(NAME, STEPS, hidden_size=4, rate=0.4, scaling=scaling, mask=mask)).train()
    x = normal(2, 6, 2)
    torch.manual_seed(3)
    steps = model(x).steps
    torch.manual_seed(3)
    masks = [
        torch.empty(2, 4, dtype=torch.float64).bernoulli_(0.6) for _ in range(6 if mask == "per_step" else 1)
    ]
    for row in range(2):
        factors = [size * masks[t % len(masks)][row].numpy() for t in range(6)]
        close(steps[row], numpy_lstm(x[row].numpy(), model, factors))


@pytest.mark.parametrize("training", [True, False])
def test_without_dropout_it_is_the_plain_lstm(training: bool) -> None:
    model = build(NAME, STEPS, hidden_size=4, rate=0.0)
    x = normal(3, 6, 2)
    expected = same_weights(model, nn.LSTM(2, 4, batch_first=True).double())(x)[0]
    torch.testing.assert_close(model.train(training)(x).steps, expected, rtol=1e-12, atol=1e-12)


def test_a_dropped_unit_keeps_its_memory() -> None:
    """With the gates open and everything dropped, the cell stays as it was: no memory is lost."""
    model = build(NAME, STEPS, hidden_size=3, rate=0.999).train()
    with torch.no_grad():
        for p in model.cell.parameters():
            p.zero_()
        model.cell.bias_ih[3:6] = 50.0
    start = (torch.zeros(2, 3, dtype=torch.float64), normal(2, 3, seed=5))
    torch.manual_seed(0)
    steps = model(normal(2, 8, 2), state=start).steps
    torch.testing.assert_close(
        steps, (0.5 * torch.tanh(start[1]))[:, None].expand(2, 8, 3), rtol=1e-12, atol=0
    )


def test_parameter_count_is_the_lstms() -> None:
    assert build(NAME, MNIST).parameter_count == build("lstm", MNIST).parameter_count == 41_810


@pytest.mark.parametrize("fields", [{"mask": "per_sequence"}, {"scaling": "training"}])
def test_options_without_effect_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="no effect when rate is 0"):
        build(NAME, rate=0.0, **fields)
