r"""Mixture density outputs: a head's numbers as a density of pen positions.

Source: Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, Sec. 4.1 (mixture density
outputs). The head's numbers become the weights, means, deviations and correlations of M Gaussians over two
coordinates, and the probability of one event, the end of a stroke:

.. math::
    e &= \sigma(\hat{e}), \quad \pi^j = \mathrm{softmax}(\hat{\pi})^j, \quad \mu^j = \hat{\mu}^j, \quad
    \sigma^j = \exp(\hat{\sigma}^j), \quad \rho^j = \tanh(\hat{\rho}^j) \\
    p(x) &= \sum_j \pi^j \, N(x \mid \mu^j, \sigma^j, \rho^j) \cdot
        \begin{cases} e & \text{the stroke ends} \\ 1 - e & \text{otherwise} \end{cases} \\
    N(x \mid \mu, \sigma, \rho) &= \frac{1}{2 \pi \sigma_1 \sigma_2 \sqrt{1 - \rho^2}}
        \exp\Big(\frac{-Z}{2 (1 - \rho^2)}\Big), \quad
    Z = a^2 + b^2 - 2 \rho a b, \quad a = \frac{x_1 - \mu_1}{\sigma_1}, \quad b = \frac{x_2 - \mu_2}{\sigma_2}

Layout of the 6M + 1 numbers: e, M weights, M means of the first coordinate, M of the second, M and M logarithms of
deviations, M correlations before the tanh.

Computed as :math:`Z / (1 - \rho^2) = (a \cosh r - b \sinh r)^2 + b^2` and :math:`1 - \rho^2 = 1 / \cosh^2 r`, where
:math:`r = \hat{\rho}`, so that nothing cancels near :math:`|\rho| = 1`; the sum over j is a log-sum-exp.

Deviations: the paper's e is the logistic function of :math:`-\hat{e}`, which is the same family. r is kept within
:data:`LARGEST_R` and the deviations above a floor, because pens repeat whole numbers, and the likelihood of a spike
or a line through them grows without end; the paper names no such bounds.

Shapes: ... any leading axes, M components.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

LARGEST_R = 5.0
"""Bound of the correlation before its tanh: |ρ| below 0.99991."""


class Mixture(NamedTuple):
    """M Gaussians over two coordinates."""

    log_weights: Tensor
    """(..., M), their exponentials add up to 1."""
    means: Tensor
    """(..., M, 2)."""
    log_deviations: Tensor
    """(..., M, 2)."""
    r: Tensor
    """(..., M): the correlation is tanh(r)."""


def width(components: int) -> int:
    """Return how many numbers :func:`split` reads, 6M + 1.

    >>> width(20)
    121
    """
    return 6 * components + 1


def split(outputs: Tensor, components: int, *, smallest_deviation: float) -> tuple[Tensor, Mixture, Tensor]:
    """Name the parts of a head's outputs (..., 6M + 1 or more).

    Args:
        outputs: see the module's docstring for the layout.
        components: M.
        smallest_deviation: deviations below it are taken for it.

    Returns:
        the logit of e (...), the mixture, and the numbers left over (..., K - 6M - 1).
    """
    sizes = [1, 6 * components, outputs.shape[-1] - width(components)]
    end, parts, rest = torch.split(outputs, sizes, dim=-1)
    weights, *others = parts.reshape(*parts.shape[:-1], 6, components).unbind(-2)
    mixture = Mixture(
        log_weights=weights.log_softmax(-1),
        means=torch.stack(others[:2], dim=-1),
        log_deviations=torch.stack(others[2:4], dim=-1).clamp(min=math.log(smallest_deviation)),
        r=others[4].clamp(-LARGEST_R, LARGEST_R),
    )
    return end.squeeze(-1), mixture, rest


def log_density(mixture: Mixture, points: Tensor) -> Tensor:
    """Return the logarithm (...) of the mixture's density at ``points`` (..., 2), in nats."""
    a, b = ((points.unsqueeze(-2) - mixture.means) * torch.exp(-mixture.log_deviations)).unbind(-1)
    r = mixture.r
    squares = (a * torch.cosh(r) - b * torch.sinh(r)).square() + b.square()
    log_cosh = r.abs() + torch.log1p(torch.exp(-2 * r.abs())) - math.log(2)
    logs = log_cosh - mixture.log_deviations.sum(-1) - math.log(2 * math.pi) - squares / 2
    return torch.logsumexp(mixture.log_weights + logs, dim=-1)


def draw(mixture: Mixture, *, temperature: float, generator: Generator) -> Tensor:
    r"""Draw a point (B, 2) from each of B mixtures.

    The temperature is the paper's bias (Sec. 5.4), :math:`b = 1 / \text{temperature} - 1`: weights are the softmax of
    :math:`\hat{\pi} (1 + b)` and deviations :math:`\exp(\hat{\sigma} - b)`. So 1 draws from the model as it is, and
    0 takes the mean of the heaviest component.

    Raises:
        ValueError: the temperature is negative.
    """
    if temperature < 0:
        raise ValueError(f"a temperature of {temperature} is below 0")
    weights, device = mixture.log_weights, mixture.means.device
    noise = torch.randn(len(weights), 2, generator=generator, device=device, dtype=weights.dtype)
    if temperature == 0:
        component, shrink = weights.argmax(-1), 0.0
    else:
        below = weights - weights.max(-1, keepdim=True).values  # else both may overflow near 0
        sharpened = torch.softmax(below / temperature, dim=-1)
        component = torch.multinomial(sharpened, 1, generator=generator).squeeze(-1)
        shrink = math.exp(1 - 1 / temperature)
    rows = torch.arange(len(weights), device=device)
    r, first, second = mixture.r[rows, component], noise[:, 0], noise[:, 1]
    correlated = torch.stack([first, torch.tanh(r) * first + second / torch.cosh(r)], dim=-1)
    deviations = mixture.log_deviations[rows, component].exp() * shrink
    return mixture.means[rows, component] + deviations * correlated
