"""Curves of a step's cost over one quantity, and their tables.

Shapes: B batch, T time steps, H hidden units.
"""

from dataclasses import dataclass
from statistics import median
from typing import Literal

from seqpyramid.analysis.speed import Ratio

from .lines import Line, fit
from .rounds import shown

Axis = Literal["time", "hidden", "batch", "threads", "memory"]

AXES: tuple[Axis, ...] = ("time", "hidden", "batch", "threads", "memory")

LABELS: dict[Axis, str] = {"time": "T", "hidden": "H", "batch": "B", "threads": "threads", "memory": "T"}

STRAIGHT: frozenset[Axis] = frozenset({"time", "batch", "memory"})
"""Where the cost should be a constant and a multiple of x."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one training step and one inference step cost."""

    x: int
    rows: int
    """B x T, over which the step's work is spread."""
    training: list[float]
    """Seconds, round by round; on the axis ``memory`` one number of bytes."""
    inference: list[float]
    training_flops: int | None = None


@dataclass(frozen=True)
class Curve:
    """One model's points."""

    model: str
    axis: Axis
    points: list[Point]

    def costs(self, training: bool) -> list[float]:
        """Median cost of each point."""
        return [median(point.training if training else point.inference) for point in self.points]

    def line(self, training: bool) -> Line | None:
        """The straight line that the points should lie on; None where theory has none, or the points are too few."""
        if self.axis not in STRAIGHT:
            return None
        return fit([point.x for point in self.points], self.costs(training))


def curve_table(curve: Curve, reference: Curve | None = None) -> str:
    """Lay a curve out in Markdown, and say below how far its points are from a line.

    Args:
        curve: what to show.
        reference: the same axis of the model that ratios are to. A ratio of times is the speed, 2 is twice as fast,
            taken within rounds; one of memory is the growth, 0.5 is half of it.
    """
    unit, per = ("MB", "bytes a step and row") if curve.axis == "memory" else ("ms", "ns a step and row")
    head = [LABELS[curve.axis]]
    for kind in ("training", "inference"):
        head += [f"{kind}, {unit}", per]
        head += [f"x {reference.model}"] if reference else []
        head += ["GFLOP/s"] if kind == "training" and curve.axis != "memory" else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    large, small = (1e-6, 1.0) if curve.axis == "memory" else (1e3, 1e9)
    for k, point in enumerate(curve.points):
        cells = [f"{point.x:,}"]
        for training in (True, False):
            cost = curve.costs(training)[k]
            cells += [_figures(cost * large), _figures(cost / point.rows * small)]
            cells += [_ratio(point, reference.points[k], training, curve.axis)] if reference else []
            if training and point.training_flops is not None:
                cells.append(_figures(point.training_flops / cost / 1e9))
        lines.append(f"| {' | '.join(cells)} |")
    notes = [_line_note(curve, training, large, unit) for training in (True, False)]
    notes.append(_threads_note(curve))
    return "\n".join([f"{curve.model}, over {LABELS[curve.axis]}:", "", *lines, *filter(None, notes)])


def _ratio(point: Point, base: Point, training: bool, axis: Axis) -> str:
    own, theirs = (p.training if training else p.inference for p in (point, base))
    return f"{own[0] / theirs[0]:.2f}" if axis == "memory" else shown(Ratio.of(own, theirs))


def _line_note(curve: Curve, training: bool, large: float, unit: str) -> str:
    line = curve.line(training)
    if line is None:
        return ""
    return (
        f"\n{'Training' if training else 'Inference'} as a line: {_figures(line.constant * large)} {unit} + "
        f"{_figures(line.slope * large)} {unit} x {LABELS[curve.axis]}; the points lie {line.residual:.1%} from it "
        f"(root mean square), {line.worst:.1%} at most."
    )


def _threads_note(curve: Curve) -> str:
    if curve.axis != "threads" or len(curve.points) < 2:
        return ""
    first, last = curve.points[0], curve.points[-1]
    gains = [Ratio.of(last.training, first.training), Ratio.of(last.inference, first.inference)]
    training, inference = map(shown, gains)
    return f"\nSpeed on {last.x} threads relative to {first.x}: training {training}, inference {inference}."


def _figures(number: float) -> str:
    """Three figures that mean something, without an exponent.

    >>> _figures(1234.5), _figures(0.012345), _figures(0.0)
    ('1,234', '0.0123', '0')
    """
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
