"""Straight lines through measured points, and how far the points lie from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_POINTS = 3
"""Two points lie on a line whatever they are."""


@dataclass(frozen=True)
class Line:
    """y = constant + slope x, and the points' distance from it relative to each point's own y."""

    constant: float
    slope: float
    residual: float
    """Root of the mean square."""
    worst: float
    """The largest, without its sign."""

    def at(self, x: float) -> float:
        """The line's y."""
        return self.constant + self.slope * x


def fit(xs: Sequence[float], ys: Sequence[float]) -> Line | None:
    """Least squares of the relative residuals; None where there are fewer than three different x.

    Relative, because x spans a factor of forty and a measurement's noise grows with what is measured: a plain fit
    would look at the longest sequences only.

    >>> line = fit([1, 2, 4], [3.0, 5.0, 9.0])
    >>> round(line.constant, 9), round(line.slope, 9), round(line.worst, 9)
    (1.0, 2.0, 0.0)
    """
    if len(set(xs)) < LEAST_POINTS:
        return None
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    weighted = np.stack([1 / y, x / y], axis=1)
    (constant, slope), *_ = np.linalg.lstsq(weighted, np.ones_like(y))
    off = np.abs(weighted @ [constant, slope] - 1)
    return Line(float(constant), float(slope), float(np.sqrt(np.mean(off**2))), float(off.max()))
