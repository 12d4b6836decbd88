"""The Clockwork RNN against its equation in NumPy, its clock, its options and what it must reduce to."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqpyramid.analysis.cost import flops
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.clockwork import ClockworkRNN, ClockworkRNNConfig

Array = NDArray[np.float64]
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
STREAM = TaskSpec(input_size=2, outputs=3, needs="steps", carry_state=True)


def build(spec: TaskSpec = STEPS, **fields: object) -> ClockworkRNN:
    torch.manual_seed(0)
    base: dict[str, object] = {"name": "clockwork_rnn", "hidden_size": 6, "periods": [1, 2, 4]}
    model = ClockworkRNNConfig.model_validate_json(json.dumps(base | fields)).build(spec).double().eval()
    n = 0
    with torch.no_grad():  # a sine ramp: no two weights equal
        for p in model.parameters():
            p.copy_(torch.sin(torch.arange(n, n + p.numel()) * 1.7).reshape(p.shape) * 0.7)
            n += p.numel()
    return model


def inputs(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numpy_clockwork(x: Array, model: ClockworkRNN, start: int = 0, h: Array | None = None) -> Array:
    """(T, F) -> (T, H), unit by unit: the block of every pair of modules is looked up on its own."""
    g, H = len(model.periods), model.hidden_size
    k = H // g
    W, b = model.weight_ih.detach().numpy(), model.bias.detach().numpy()
    rows = [p.detach().numpy() for p in model.weight_hh]
    h = np.zeros(H) if h is None else h
    out = []
    for t, x_t in enumerate(x, start=start):
        new = h.copy()
        for m in range(g):
            if t % model.periods[m]:
                continue
            total = W[m * k : (m + 1) * k] @ x_t + b[m * k : (m + 1) * k]
            for n in range(m, g):
                U = rows[m][:, (n - m) * k : (n - m + 1) * k]
                total = total + U @ h[n * k : (n + 1) * k]
            new[m * k : (m + 1) * k] = np.tanh(total)
        h = new
        out.append(h)
    return np.stack(out)


PERIODS = [[1], [3], [1, 2], [1, 2, 4], [2, 3, 6], [1, 3, 4], [2, 4, 5], [1, 2, 3, 5, 7, 11]]


@pytest.mark.parametrize("periods", PERIODS)
def test_equals_the_equation_in_numpy(periods: list[int]) -> None:
    model, x = build(periods=periods), inputs(2, 14, 2)
    found = model(x).steps.detach().numpy()
    for row in range(2):
        np.testing.assert_allclose(found[row], numpy_clockwork(x[row].numpy(), model), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("periods", [[1, 2, 4], [1, 3, 4], [2, 3, 6]])
def test_each_sequence_keeps_its_own_phase(periods: list[int]) -> None:
    """After unequal lengths the clocks differ; every row must go on at its own, and keep what is not due."""
    model = build(STREAM, periods=periods)
    x, lengths = inputs(4, 5, 2), torch.tensor([5, 2, 3, 1])
    first = model(x, lengths)
    assert first.state[1].tolist() == [5, 2, 3, 1]
    more = inputs(4, 9, 2, seed=2)
    second = model(more, torch.tensor([9, 4, 9, 1]), state=first.state)
    assert second.state[1].tolist() == [14, 6, 12, 2]
    third = model(more, state=second.state).steps.detach().numpy()
    for row, (a, b) in enumerate(zip([5, 2, 3, 1], [9, 4, 9, 1], strict=True)):
        joined = np.concatenate([x[row, :a], more[row, :b], more[row]])
        expected = numpy_clockwork(joined, model)
        np.testing.assert_allclose(
            second.steps[row, :b].detach(), expected[a : a + b], rtol=1e-10, atol=1e-10
        )
        np.testing.assert_allclose(third[row], expected[a + b :], rtol=1e-10, atol=1e-10)


def test_carrying_the_clock_matters() -> None:
    model, x = build(STREAM), inputs(1, 8, 2)
    h, clock = model(x[:, :3]).state
    whole = model(x).steps[:, 3:]
    torch.testing.assert_close(model(x[:, 3:], state=(h, clock)).steps, whole, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(x[:, 3:], state=(h, clock * 0)).steps, whole)


def test_the_first_step_updates_every_module_and_idle_ones_copy_bitwise() -> None:
    steps = build(periods=[1, 2, 4])(inputs(1, 9, 2)).steps[0]
    assert (steps[0] != 0).all()
    for module, period in enumerate([1, 2, 4]):
        mine = steps[:, 2 * module : 2 * module + 2]
        for t in range(1, 9):
            assert torch.equal(mine[t], mine[t - 1]) == (t % period != 0), (module, t)


def test_a_slow_module_hears_no_faster_one() -> None:
    model, x = build(), inputs(1, 9, 2)
    before = model(x).steps
    with torch.no_grad():
        model.weight_hh[0].mul_(-2)
        model.weight_ih[:2].mul_(3)
    after = model(x).steps
    assert torch.equal(after[..., 2:], before[..., 2:])
    assert not torch.equal(after[..., :2], before[..., :2])
    with torch.no_grad():
        model.weight_ih[4:].mul_(3)
    assert not torch.equal(model(x).steps[..., :2], after[..., :2])


def test_one_module_of_period_one_is_the_elman_rnn() -> None:
    model, rnn, x = build(periods=[1]), nn.RNN(2, 6, batch_first=True).double(), inputs(3, 7, 2)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(model.weight_ih)
        rnn.weight_hh_l0.copy_(model.weight_hh[0])
        rnn.bias_ih_l0.copy_(model.bias)
        rnn.bias_hh_l0.zero_()
    torch.testing.assert_close(model(x).steps, rnn(x)[0], rtol=1e-12, atol=1e-12)


def test_one_slow_module_is_the_elman_rnn_on_every_third_input() -> None:
    slow, fast, x = build(periods=[3]), build(periods=[1]), inputs(2, 10, 2)
    torch.testing.assert_close(slow(x).steps[:, ::3], fast(x[:, ::3]).steps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("F", "hidden", "g"), [(1, 100, 10), (13, 264, 8), (2, 6, 1)])
def test_parameter_count(F: int, hidden: int, g: int) -> None:
    config = ClockworkRNNConfig(hidden_size=hidden, periods=tuple(2**m for m in range(g)))
    k = hidden // g
    expected = hidden * F + k**2 * g * (g + 1) // 2 + hidden + 10 * hidden + 10
    assert config.build(TaskSpec(input_size=F, outputs=10)).parameter_count == expected


def test_idle_modules_cost_nothing() -> None:
    """Of 8 steps with periods 1, 2, 4, modules compute 8, 4 and 2 times, over the columns from the first due."""
    found = flops(build(TaskSpec(input_size=2, outputs=3)).float(), 8)
    products = 8 * 2 * 6 + (8 + 4 + 2) * 2 * 6
    assert found.counted == found.closed_form == 2 * products + 2 * 6 * 3


def test_first_weights() -> None:
    torch.manual_seed(0)
    paper, as_torch = (
        ClockworkRNNConfig(hidden_size=240, init=init).build(TaskSpec(input_size=50, outputs=2))
        for init in ("paper", "torch")
    )
    for weight in (paper.weight_ih, *paper.weight_hh):
        assert abs(weight.std().item() / 0.1 - 1) < 0.06
        assert weight.abs().max() > 0.2  # not cut
    assert paper.bias.abs().sum() == 0
    for weight in (as_torch.weight_ih, *as_torch.weight_hh, as_torch.bias):
        assert 0.97 * 240**-0.5 < weight.abs().max() <= 240**-0.5


def test_head_init_reaches_the_head() -> None:
    torch.manual_seed(0)
    config = ClockworkRNNConfig(hidden_size=8, head_init="released_tp_rnn")
    assert torch.equal(config.build(STEPS).head.linear.bias, torch.full((3,), 0.1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"periods": [2, 1, 4]}, r"must increase from the fastest module to the slowest, not \[2, 1, 4\]"),
        ({"periods": [1, 1, 4]}, "must increase"),
        ({"periods": [0, 1, 2]}, "at least 1 step"),
        ({"hidden_size": 7}, "3 modules cannot share equally; choose a multiple of 3"),
        ({"periods": [1, 2, 20]}, "never update after the first step; choose periods below 20"),
    ],
)
def test_impossible_settings_are_explained(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build(TaskSpec(input_size=2, outputs=3, max_length=20), **fields)
    assert len(caught.value.problems) == 1


def test_a_stream_may_have_periods_longer_than_its_pieces() -> None:
    build(TaskSpec(input_size=2, outputs=3, max_length=3, carry_state=True))
