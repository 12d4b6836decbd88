"""Statistics over seeds: mean, deviation, interval, and two t-tests, over the values as given.

Sources: Student (1908) for the interval and the paired test; Welch (1947) for two samples of unequal
variance.
``scipy.special`` is imported where it is needed, so that importing ``compare`` stays quick.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ROUNDING = 1e-12
"""A deviation below this share of the values is the rounding of equal numbers, not a spread."""


@dataclass(frozen=True)
class Summary:
    """What n values say. ``sd`` and what follows from it are None for a single value."""

    values: tuple[float, ...]
    mean: float
    sd: float | None
    """Sample standard deviation, ddof = 1."""
    standard_error: float | None
    interval: tuple[float, float] | None
    """95 % confidence interval of the mean (Student's t with n - 1 degrees of freedom)."""

    @property
    def n(self) -> int:
        """Number of values."""
        return len(self.values)


@dataclass(frozen=True)
class TTest:
    """A two-sided t-test; ``p`` is NaN where the values have no spread to test against."""

    statistic: float
    degrees: float
    p: float
    n: int
    """Values of the smaller sample, or pairs."""


def summarize(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Summarise at least one value.

    >>> summary = summarize([1.0, 2.0, 3.0])
    >>> summary.mean, summary.sd
    (2.0, 1.0)
    >>> summarize([0.1]).sd is None, summarize([0.1, 0.1, 0.1]).sd
    (True, 0.0)
    """
    if not values:
        raise ValueError("nothing to summarise")
    # the standard library computes both in exact fractions, so equal values give a deviation of exactly 0
    mean = statistics.mean(values)
    if len(values) == 1:
        return Summary((values[0],), mean, None, None, None)
    sd = statistics.stdev(values)
    error = sd / math.sqrt(len(values))
    half = _t_quantile(0.5 + confidence / 2, len(values) - 1) * error
    return Summary(tuple(values), mean, sd, error, (mean - half, mean + half))


def welch(a: Sequence[float], b: Sequence[float]) -> TTest | None:
    """Test whether two samples of unequal variance have one mean; None below two values in either.

    t = (mean a - mean b) / sqrt(s_a^2 / n_a + s_b^2 / n_b), with the Welch-Satterthwaite degrees of freedom.
    """
    if len(a) < 2 or len(b) < 2:
        return None
    share_a = statistics.variance(a) / len(a)
    share_b = statistics.variance(b) / len(b)
    error = math.sqrt(share_a + share_b)
    smaller = min(len(a), len(b))
    if error <= _ROUNDING * max(map(abs, (*a, *b))):
        return TTest(math.nan, math.nan, math.nan, smaller)
    degrees = (share_a + share_b) ** 2 / (share_a**2 / (len(a) - 1) + share_b**2 / (len(b) - 1))
    statistic = (statistics.mean(a) - statistics.mean(b)) / error
    return TTest(statistic, degrees, _two_sided(statistic, degrees), smaller)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> TTest | None:
    """Test the differences of two rows over the seeds (keys) that both have; None below two such seeds."""
    common = sorted(a.keys() & b.keys())
    if len(common) < 2:
        return None
    differences = [a[seed] - b[seed] for seed in common]
    error = statistics.stdev(differences) / math.sqrt(len(common))
    scale = max(abs(side[seed]) for side in (a, b) for seed in common)
    degrees = float(len(common) - 1)
    if error <= _ROUNDING * scale:
        return TTest(math.nan, degrees, math.nan, len(common))
    statistic = statistics.mean(differences) / error
    return TTest(statistic, degrees, _two_sided(statistic, degrees), len(common))


def _two_sided(statistic: float, degrees: float) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -abs(statistic)))


def _t_quantile(probability: float, degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))
