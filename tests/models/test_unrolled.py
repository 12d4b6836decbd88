"""The step loop, and what the LSTM variants share."""

import pytest
import torch
from torch import nn

from seqpyramid.models.unrolled import unroll
from tests.models.numpy_lstm import SPEC, STEPS, build, normal, ramp, same_weights

PLAIN = {"zoneout_cell": 0.0, "zoneout_hidden": 0.0}
"""Zoneout that never zones out: the base class's LSTM."""
VARIANTS = ["zoneout_lstm", "bn_lstm", "recurrent_dropout_lstm", "ln_lstm"]


def test_each_sequence_stops_at_its_own_end() -> None:
    inputs, lengths = normal(4, 6, 3), torch.tensor([6, 2, 5, 1])
    start = (normal(4, 3, seed=1), normal(4, 3, seed=2))
    (h, c), steps = unroll(
        lambda t, now, state: (state[0] * now + state[1], state[1] + t * now),
        inputs,
        start,
        lengths,
        keep_steps=True,
    )
    for row, length in enumerate(lengths.tolist()):
        a, b = start[0][row], start[1][row]
        for t in range(length):
            a, b = a * inputs[row, t] + b, b + t * inputs[row, t]
            torch.testing.assert_close(steps[row, t], a, rtol=0, atol=0)
        torch.testing.assert_close(torch.stack([h[row], c[row]]), torch.stack([a, b]), rtol=0, atol=0)
        assert steps[row, length:].abs().sum() == 0


def test_no_step_runs_on_padding_alone() -> None:
    seen = []

    def step(t: int, now: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        seen.append(t)
        return state

    _, steps = unroll(step, normal(2, 9, 3), (normal(2, 3),), torch.tensor([4, 2]), keep_steps=True)
    assert seen == [0, 1, 2, 3]
    assert steps.shape == (2, 9, 3)


@pytest.mark.parametrize("name", VARIANTS)
def test_learned_initial_states_are_read(name: str) -> None:
    model, zeros = build(name, initial_state="learned", hidden_size=3), build(name, hidden_size=3)
    assert model.parameter_count == zeros.parameter_count + 2 * 3
    x = normal(2, 3, 2)
    torch.testing.assert_close(model(x).outputs, zeros(x).outputs, rtol=0, atol=0)
    for part in (0, 1):
        with torch.no_grad():
            model.first.zero_()[part] = normal(3, seed=7)
        assert not torch.allclose(model(x).outputs, zeros(x).outputs)


def test_learned_initial_states_are_h_and_c_of_torch() -> None:
    model = ramp(build("zoneout_lstm", initial_state="learned", hidden_size=3, **PLAIN))
    x = normal(2, 4, 2)
    first = [part.expand(1, 2, -1).contiguous() for part in model.first]
    expected = same_weights(model, nn.LSTM(2, 3, batch_first=True).double())(x, tuple(first))[0][:, -1]
    torch.testing.assert_close(model(x).summary, expected, rtol=1e-12, atol=1e-12)


def test_orthogonal_start() -> None:
    cell = build("zoneout_lstm", hidden_size=5, init="orthogonal", forget_bias=0.0).cell
    for weight in (cell.weight_ih, cell.weight_hh):
        torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]).double(), rtol=0, atol=1e-6)
    assert cell.bias_ih.abs().sum() == 0


def test_identity_start_is_the_candidates_rows() -> None:
    cell = build("zoneout_lstm", hidden_size=5, init="identity", forget_bias=1.5).cell
    i, f, g, o = cell.weight_hh.chunk(4)
    assert torch.equal(g, torch.eye(5).double())
    others = torch.cat([i, f, o])
    torch.testing.assert_close(others.T @ others, torch.eye(5).double(), rtol=0, atol=1e-6)
    assert cell.bias_ih.tolist() == [0] * 5 + [1.5] * 5 + [0] * 10


@pytest.mark.parametrize(("init", "bound"), [("torch", 5**-0.5), ("tensorflow", (6 / (2 + 5 + 20)) ** 0.5)])
def test_uniform_starts(init: str, bound: float) -> None:
    cell = build("ln_lstm", hidden_size=5, init=init).cell
    assert 0.9 * bound < cell.weight_hh.abs().max() <= bound
    assert (cell.bias_ih.abs().sum() == 0) == (init == "tensorflow")


@pytest.mark.parametrize("name", VARIANTS)
def test_one_clock_for_the_loop_and_no_state_unless_carried(name: str) -> None:
    model = build(name, hidden_size=3)
    assert model.step_loop
    output = model(normal(2, 3, 2))
    assert output.state is None
    assert output.steps is None
    assert build(name, STEPS, hidden_size=3)(normal(2, 3, 2)).steps.shape == (2, 3, 3)
    assert model.spec is SPEC
