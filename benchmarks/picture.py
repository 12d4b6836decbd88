"""Curves as a picture: one panel an axis, both scales logarithmic, so that a cost in proportion rises by 45 degrees."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from seqpyramid.errors import RecipeError
from seqpyramid.rundir import write_atomically

from .curves import LABELS, Curve

FORMATS = (".svg", ".png")


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is measured.

    Raises:
        RecipeError: its name ends otherwise than the formats there are, or its folder does not exist.
    """
    if path.suffix not in FORMATS:
        raise RecipeError(f"--picture {path}: give a name that ends in {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise RecipeError(f"--picture {path}: there is no folder {path.parent}; make it first")


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw measured points, training filled and inference hollow, and the lines that they should lie on.

    Raises:
        ResourceError: the file cannot be written.
    """
    import matplotlib as mpl  # heavy, and only pictures need it
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes = list(dict.fromkeys(curve.axis for curve in curves))
    models = list(dict.fromkeys(curve.model for curve in curves))
    figure = Figure(figsize=(max(4.2 * len(axes), 6), 4.6), layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    shown = {}
    for axis, panel in zip(axes, panels, strict=True):
        large = 1e-6 if axis == "memory" else 1e3
        for curve in (one for one in curves if one.axis == axis):
            xs = [point.x for point in curve.points]
            colour = f"C{models.index(curve.model)}"
            for training in (True, False):
                label = f"{curve.model}, {'training' if training else 'inference'}"
                costs = [cost * large for cost in curve.costs(training)]
                face = colour if training else "none"
                (shown[label],) = panel.plot(xs, costs, "o", color=colour, markerfacecolor=face)
                line = curve.line(training)
                if line is not None:
                    dense = np.geomspace(min(xs), max(xs), 100)
                    panel.plot(dense, [line.at(x) * large for x in dense], color=colour, linewidth=0.8)
        panel.set_xscale("log")
        panel.set_yscale("log")
        ticks = sorted({point.x for curve in curves if curve.axis == axis for point in curve.points})
        panel.set_xticks(ticks, [f"{x:,}" for x in ticks], rotation=45)
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # a range may have no power of ten in it
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        panel.yaxis.set_minor_formatter(StrMethodFormatter("{x:,g}"))
        panel.set_xlabel(LABELS[axis])
        panel.set_ylabel("growth of memory, MB" if axis == "memory" else "a step, ms")
        panel.grid(visible=True, which="both", alpha=0.2)
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=3, fontsize="small")
    picture = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "seqpyramid"}):
        figure.savefig(picture, format=path.suffix.removeprefix("."), dpi=150)
    write_atomically(path, picture.getvalue())
