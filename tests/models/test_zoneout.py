"""Zoneout against its equations, the plain LSTM, and its masks."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqpyramid.errors import RecipeError
from seqpyramid.models.zoneout import ZoneoutLSTM
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


def numpy_zoneout(
    x: Array, model: ZoneoutLSTM, kept: list[tuple[Array | float, Array | float]]
) -> list[Array]:
    """(T, F) -> h of every step; ``kept`` holds d^c and d^h of every step."""
    U, W, b = cell(model)
    h, c = np.zeros(W.shape[1]), np.zeros(W.shape[1])
    states = []
    for x_t, (d_c, d_h) in zip(x, kept, strict=True):
        i, f, g, o = squashed(U @ x_t + W @ h + b)
        h, c = (
            d_h * h + (1 - d_h) * (o * np.tanh(f * c + i * g)),
            d_c * c + (1 - d_c) * (f * c + i * g),
        )
        states.append(h)
    return states


def test_equals_the_equations_outside_training() -> None:
    model = ramp(build("zoneout_lstm", STEPS, hidden_size=4, zoneout_cell=0.3, zoneout_hidden=0.1))
    x, lengths = normal(2, 6, 2), torch.tensor([6, 4])
    output = model(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = numpy_zoneout(x[row, :length].numpy(), model, [(0.3, 0.1)] * length)
        close(output.steps[row, :length], np.stack(expected))


@pytest.mark.parametrize("masks", ["separate", "shared"])
def test_equals_the_equations_in_training(masks: str) -> None:
    rate = 0.5 if masks == "shared" else 0.2
    model = build("zoneout_lstm", STEPS, hidden_size=4, zoneout_cell=0.5, zoneout_hidden=rate, masks=masks)
    x = normal(2, 6, 2)
    torch.manual_seed(3)
    steps = ramp(model).train()(x).steps
    torch.manual_seed(3)
    drawn: list[tuple[Tensor, Tensor]] = []
    for _ in range(6):
        d_c = torch.empty(2, 4, dtype=torch.float64).bernoulli_(0.5)
        drawn.append((d_c, d_c if masks == "shared" else torch.empty_like(d_c).bernoulli_(rate)))
    assert 0 < torch.stack([d_c for d_c, _ in drawn]).mean() < 1
    for row in range(2):
        kept = [(d_c[row].numpy(), d_h[row].numpy()) for d_c, d_h in drawn]
        close(steps[row], np.stack(numpy_zoneout(x[row].numpy(), model, kept)))


@pytest.mark.parametrize("training", [True, False])
def test_without_zoneout_it_is_the_plain_lstm(training: bool) -> None:
    model = build("zoneout_lstm", STEPS, hidden_size=4, zoneout_cell=0.0, zoneout_hidden=0.0)
    x = normal(3, 6, 2)
    expected = same_weights(model, nn.LSTM(2, 4, batch_first=True).double())(x)[0]
    torch.testing.assert_close(model.train(training)(x).steps, expected, rtol=1e-12, atol=1e-12)


def test_a_kept_unit_keeps_its_very_value() -> None:
    model = build("zoneout_lstm", STEPS, hidden_size=50, zoneout_cell=0.0, zoneout_hidden=0.4).train()
    steps = model(normal(4, 60, 2)).steps
    kept = (steps[:, 1:] == steps[:, :-1]).double().mean().item()
    assert abs(kept - 0.4) < 0.02


@pytest.mark.parametrize("rates", [{"zoneout_cell": 0.5}, {"zoneout_hidden": 0.5}])
def test_each_rate_acts(rates: dict[str, float]) -> None:
    x = normal(2, 6, 2)
    fields = {"hidden_size": 4, "zoneout_cell": 0.0, "zoneout_hidden": 0.0}
    assert not torch.allclose(
        build("zoneout_lstm", **fields)(x).outputs, build("zoneout_lstm", **(fields | rates))(x).outputs
    )


def test_parameter_count_is_the_lstms() -> None:
    assert build("zoneout_lstm", MNIST).parameter_count == build("lstm", MNIST).parameter_count == 41_810
    assert build("zoneout_lstm", MNIST, initial_state="learned").parameter_count == 42_010


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"masks": "shared", "zoneout_cell": 0.3},
            r"zoneout_cell \(0.3\) and zoneout_hidden \(0.15\) must be equal",
        ),
        (
            {"masks": "shared", "zoneout_cell": 0.0, "zoneout_hidden": 0.0},
            "no effect when both zoneout rates are 0",
        ),
    ],
)
def test_impossible_settings_are_explained(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build("zoneout_lstm", **fields)
