"""The batch-normalized LSTM against its equations, in training and outside, and its population statistics."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.bn_lstm import BatchNormLSTM, StepwiseBatchNorm
from tests.models.numpy_lstm import (
    MNIST,
    STEPS,
    Array,
    arrays,
    build,
    cell,
    close,
    normal,
    ramp,
    same_weights,
    squashed,
)

SITES = ("norm_h", "norm_x", "norm_c")


def parameters(model: BatchNormLSTM) -> tuple[list[Array], list[Array]]:
    """[U, W, b] and [gamma_h, gamma_x, gamma_c, beta_c]."""
    return cell(model), arrays(model.norm_h.gamma, model.norm_x.gamma, model.norm_c.gamma, model.norm_c.beta)


def random_statistics(model: BatchNormLSTM) -> dict[str, tuple[Array, Array]]:
    """Give every site and step statistics of its own, and return them."""
    for n, site in enumerate(SITES):
        norm = getattr(model, site)
        norm.mean.copy_(normal(*norm.mean.shape, seed=n))
        norm.variance.copy_(normal(*norm.mean.shape, seed=10 + n).square() + 0.1)
    return {
        site: (getattr(model, site).mean.numpy().copy(), getattr(model, site).variance.numpy().copy())
        for site in SITES
    }


def test_equals_the_equations_outside_training() -> None:
    model = ramp(build("bn_lstm", STEPS, hidden_size=4, statistics_steps=5, epsilon=1e-3))
    statistics = random_statistics(model)
    (U, W, b), (gamma_h, gamma_x, gamma_c, beta_c) = parameters(model)

    def bn(site: str, z: Array, t: int, gamma: Array) -> Array:
        mean, variance = (part[min(t, 4)] for part in statistics[site])  # beyond T_max = 5 the last ones
        result: Array = gamma * (z - mean) / np.sqrt(variance + 1e-3)
        return result

    x, lengths = normal(2, 8, 2), torch.tensor([8, 4])
    output = model(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        h, c = np.zeros(4), np.zeros(4)
        for t in range(length):
            x_t = x[row, t].numpy()
            i, f, g, o = squashed(bn("norm_h", W @ h, t, gamma_h) + bn("norm_x", U @ x_t, t, gamma_x) + b)
            c = f * c + i * g
            h = o * np.tanh(bn("norm_c", c, t, gamma_c) + beta_c)
            close(output.steps[row, t], h)
        close(output.summary[row], h)
    assert all(np.array_equal(getattr(model, site).mean.numpy(), statistics[site][0]) for site in SITES)


def test_equals_the_equations_in_training() -> None:
    """Batch statistics of the rows that still run; the population's where only one does; running averages."""
    options = {"hidden_size": 4, "statistics_steps": 4, "epsilon": 1e-3, "statistics_rate": 0.25}
    model = ramp(build("bn_lstm", STEPS, initial_noise=0.3, **options)).train()
    population = random_statistics(model)
    expected_mean = {site: population[site][0].copy() for site in SITES}
    expected_variance = {site: population[site][1].copy() for site in SITES}
    (U, W, b), (gamma_h, gamma_x, gamma_c, beta_c) = parameters(model)

    def bn(site: str, z: Array, t: int, gamma: Array) -> Array:
        if len(z) > 1:
            mean, variance = z.mean(0), ((z - z.mean(0)) ** 2).mean(0)
            if t < 4:
                expected_mean[site][t] = 0.75 * expected_mean[site][t] + 0.25 * mean
                expected_variance[site][t] = 0.75 * expected_variance[site][t] + 0.25 * variance
        else:
            mean, variance = expected_mean[site][min(t, 3)], expected_variance[site][min(t, 3)]
        result: Array = gamma * (z - mean) / np.sqrt(variance + 1e-3)
        return result

    x, lengths = normal(4, 8, 2), torch.tensor([5, 8, 1, 6])
    torch.manual_seed(3)
    steps = model(x, lengths).steps
    torch.manual_seed(3)
    h = 0.3 * torch.randn(4, 4, dtype=torch.float64).numpy()
    c = np.zeros((4, 4))
    for t in range(8):
        rows = np.flatnonzero(lengths.numpy() > t)
        x_t = x[rows, t].numpy()
        v = bn("norm_h", h[rows] @ W.T, t, gamma_h) + bn("norm_x", x_t @ U.T, t, gamma_x) + b
        i, f, g, o = squashed(v)
        c[rows] = f * c[rows] + i * g
        h[rows] = o * np.tanh(bn("norm_c", c[rows], t, gamma_c) + beta_c)
        close(steps[rows, t], h[rows])
        others = np.setdiff1d(np.arange(4), rows)
        assert steps[others, t].abs().sum() == 0
    for site in SITES:
        close(getattr(model, site).mean, expected_mean[site])
        close(getattr(model, site).variance, expected_variance[site])


def test_gradients_pass_through_the_batchs_statistics() -> None:
    norm = StepwiseBatchNorm(3, steps=2, rate=0.1, gamma=0.7, epsilon=1e-3, offset=True).double()
    z = normal(5, 3).requires_grad_()
    for rows in (torch.arange(5), torch.tensor([0, 2, 3])):

        def run(z: Tensor, rows: Tensor = rows) -> Tensor:
            return norm(z, 1, rows)[rows]

        assert torch.autograd.gradcheck(run, (z,))
    rest = norm(z, 0, torch.arange(5))
    torch.testing.assert_close(rest.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    assert torch.autograd.grad(rest.sum(), z)[0].abs().max() < 1e-12


def test_one_sequence_alone_in_training_uses_the_population() -> None:
    model = build("bn_lstm", hidden_size=3, initial_noise=0.0)
    random_statistics(model)
    before = model.norm_h.mean.clone()
    x = normal(1, 6, 2)
    expected = model(x).outputs
    torch.testing.assert_close(model.train()(x).outputs, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(model.norm_h.mean, before)


def test_population_becomes_the_batchs_statistics() -> None:
    """Trained often enough on one batch, evaluation of that batch is what training saw."""
    model = build("bn_lstm", hidden_size=4, initial_noise=0.0, statistics_rate=0.5).train()
    x = normal(6, 5, 2)
    with torch.no_grad():
        for _ in range(60):
            seen = model(x).outputs
        torch.testing.assert_close(model.eval()(x).outputs, seen, rtol=1e-6, atol=1e-6)


def test_with_neutral_statistics_it_is_the_lstm_but_for_the_offsets() -> None:
    """Gains 1, population 0 and 1, no epsilon to speak of: the plain LSTM."""
    model = build("bn_lstm", STEPS, hidden_size=4, initial_gamma=1.0, epsilon=1e-14, init="torch")
    x = normal(2, 6, 2)
    expected = same_weights(model, nn.LSTM(2, 4, batch_first=True).double())(x)[0]
    torch.testing.assert_close(model(x).steps, expected, rtol=1e-10, atol=1e-10)


def test_noise_acts_in_training_only() -> None:
    x = normal(3, 5, 2)
    noisy, silent = (build("bn_lstm", hidden_size=4, initial_noise=noise) for noise in (0.5, 0.0))
    assert torch.equal(noisy(x).outputs, silent(x).outputs)
    assert not torch.equal(noisy.train()(x).outputs, noisy(x).outputs)
    assert torch.equal(silent.train()(x).outputs, silent(x).outputs)


@pytest.mark.parametrize(
    ("spec", "fields", "steps"),
    [
        (TaskSpec(input_size=2, outputs=3, max_length=9), {}, 9),
        (TaskSpec(input_size=2, outputs=3, max_length=9), {"statistics_steps": 4}, 4),
        (STEPS, {"statistics_steps": 20}, 20),
        (STEPS, {}, 784),
    ],
)
def test_steps_with_statistics(spec: TaskSpec, fields: dict[str, int], steps: int) -> None:
    model = build("bn_lstm", spec, hidden_size=3, **fields)
    assert model.norm_x.mean.shape == model.norm_h.variance.shape == (steps, 12)
    assert model.norm_c.mean.shape == (steps, 3)


def test_start() -> None:
    model = build("bn_lstm", hidden_size=4, initial_gamma=0.25)
    for site in SITES:
        norm = getattr(model, site)
        assert torch.equal(norm.gamma, torch.full_like(norm.gamma, 0.25))
        assert norm.mean.abs().sum() == 0
        assert torch.equal(norm.variance, torch.ones_like(norm.variance))
    assert model.norm_c.beta.abs().sum() == 0
    assert torch.equal(model.cell.weight_hh[8:12], torch.eye(4).double())
    assert torch.equal(model.cell.bias_ih[4:8], torch.ones(4).double())
    assert torch.equal(build("bn_lstm").norm_c.gamma, torch.full((100,), 0.1).double())


def test_parameter_count() -> None:
    lstm = build("lstm", MNIST).parameter_count
    assert build("bn_lstm", MNIST).parameter_count == lstm + 400 + 400 + 200 == 42_810


def test_statistics_of_steps_that_no_sequence_has_are_refused() -> None:
    with pytest.raises(RecipeError, match="is 10, but the task's sequences have at most 9 steps"):
        build("bn_lstm", TaskSpec(input_size=2, outputs=3, max_length=9), statistics_steps=10)
