import math

import numpy as np
import pytest
import torch

from seqpyramid.tasks import mixture_density
from seqpyramid.tasks.mixture_density import LARGEST_R, Mixture, draw, log_density, split, width

M = 3
FLOOR = 1e-3


def random_outputs(*leading: int, seed: int = 0, extra: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*leading, width(M) + extra, generator=generator, dtype=torch.float64)


def density_of(outputs: np.ndarray, point: np.ndarray) -> float:
    """One density, written from the paper's equations."""
    weights, mu_1, mu_2, sigma_1, sigma_2, rho = outputs[1:].reshape(6, M)
    weights = np.exp(weights) / np.exp(weights).sum()
    sigma_1, sigma_2, rho = np.exp(sigma_1), np.exp(sigma_2), np.tanh(rho)
    total = 0.0
    for j in range(M):
        a, b = (point[0] - mu_1[j]) / sigma_1[j], (point[1] - mu_2[j]) / sigma_2[j]
        z = a**2 + b**2 - 2 * rho[j] * a * b
        scale = 2 * np.pi * sigma_1[j] * sigma_2[j] * np.sqrt(1 - rho[j] ** 2)
        total += weights[j] * np.exp(-z / (2 * (1 - rho[j] ** 2))) / scale
    return float(total)


def test_density_is_the_papers() -> None:
    outputs, points = random_outputs(4, 5), 2 * random_outputs(4, 5, seed=1)[..., :2]
    end, mixture, rest = split(outputs, M, smallest_deviation=FLOOR)
    assert torch.equal(end, outputs[..., 0])
    assert rest.shape == (4, 5, 0)
    found = log_density(mixture, points)
    expected = [
        [math.log(density_of(o, p)) for o, p in zip(os, ps, strict=True)]
        for os, ps in zip(outputs.numpy(), points.numpy(), strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-10)


def test_what_is_left_over_comes_last() -> None:
    outputs = random_outputs(2, extra=2)
    *_, rest = split(outputs, M, smallest_deviation=FLOOR)
    assert torch.equal(rest, outputs[:, -2:])


def test_density_integrates_to_one() -> None:
    outputs = random_outputs(1, seed=2) / 2
    _, mixture, _ = split(outputs, M, smallest_deviation=FLOOR)
    line = torch.linspace(-12, 12, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    total = log_density(mixture, grid).exp().sum() * (line[1] - line[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_gradient() -> None:
    outputs, points = random_outputs(2, seed=3).requires_grad_(), random_outputs(2, seed=4)[:, :2]

    def of(values: torch.Tensor) -> torch.Tensor:
        return log_density(split(values, M, smallest_deviation=FLOOR)[1], points)

    assert torch.autograd.gradcheck(of, (outputs,))
    (gradient,) = torch.autograd.grad(of(outputs).sum(), outputs)
    assert (gradient[:, 0] == 0).all()
    assert (gradient[:, 1:] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [50.0, 1e4])
def test_extreme_outputs_have_a_finite_density_and_gradient(dtype: torch.dtype, size: float) -> None:
    outputs = (random_outputs(200, seed=5) * size).to(dtype).requires_grad_()
    found = log_density(split(outputs, M, smallest_deviation=FLOOR)[1], torch.zeros(200, 2, dtype=dtype))
    assert found.isfinite().all()
    (gradient,) = torch.autograd.grad(found.sum(), outputs)
    assert gradient.isfinite().all()


def test_spikes_and_lines_have_a_floor() -> None:
    outputs = torch.zeros(width(M), dtype=torch.float64)
    outputs[1 + 3 * M :] = -1e6
    _, mixture, _ = split(outputs, M, smallest_deviation=0.01)
    np.testing.assert_allclose(mixture.log_deviations.exp(), 0.01, rtol=1e-12)
    assert (mixture.r == -LARGEST_R).all()
    peak = log_density(mixture, torch.zeros(2, dtype=torch.float64))
    assert peak.item() == pytest.approx(-math.log(2 * math.pi * 0.01**2 / math.cosh(LARGEST_R)), rel=1e-12)


def mixtures(rows: int) -> Mixture:
    outputs = random_outputs(1, seed=6).expand(rows, -1)
    return split(outputs, M, smallest_deviation=FLOOR)[1]


def expected_moments(mixture: Mixture, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the first row under the paper's bias b = 1 / temperature - 1."""
    b = 1 / temperature - 1
    weights = (mixture.log_weights[0] * (1 + b)).softmax(-1).numpy()
    sigma, rho = np.exp(mixture.log_deviations[0].numpy() - b), np.tanh(mixture.r[0].numpy())
    means = mixture.means[0].numpy()
    mean = weights @ means
    second = np.zeros((2, 2))
    for w, (s, t), r, m in zip(weights, sigma, rho, means, strict=True):
        second += w * (np.array([[s * s, r * s * t], [r * s * t, t * t]]) + np.outer(m, m))
    return mean, second - np.outer(mean, mean)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.4])
def test_draws_have_the_moments_of_the_biased_mixture(temperature: float) -> None:
    mixture = mixtures(200_000)
    found = draw(mixture, temperature=temperature, generator=torch.Generator().manual_seed(0)).numpy()
    mean, covariance = expected_moments(mixture, temperature)
    spread = np.sqrt(np.diag(covariance))
    assert np.abs((found.mean(0) - mean) / spread).max() < 0.01
    assert np.abs((np.cov(found.T) - covariance) / np.outer(spread, spread)).max() < 0.02


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1e-320])
def test_cold_draws_are_the_mean_of_the_heaviest(temperature: float) -> None:
    mixture = mixtures(5)
    found = draw(mixture, temperature=temperature, generator=torch.Generator().manual_seed(0))
    heaviest = int(mixture.log_weights[0].argmax())
    assert torch.equal(found, mixture.means[:, heaviest])


def test_draws_come_from_the_generator_alone() -> None:
    def draws(seed: int) -> torch.Tensor:
        return draw(mixtures(9), temperature=1.0, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert torch.equal(draws(1), draws(1))
    assert not torch.equal(draws(1), draws(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_negative_temperature_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="below 0"):
        mixture_density.draw(mixtures(1), temperature=-1.0, generator=torch.Generator())
