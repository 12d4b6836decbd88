"""Predictions of one split as a CSV file, and what is read off them: report and confusion matrix.

A line an example, in the split's order: index, target, predicted, then for classification one probability a class.
"""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from seqpyramid.errors import IntegrityError
from seqpyramid.rundir import write_atomically
from seqpyramid.train.evaluate import Evaluation


class Predictions(NamedTuple):
    """Class names of targets and predictions, in the split's order."""

    targets: NDArray[np.str_]
    predicted: NDArray[np.str_]


def write_predictions(path: Path, found: Evaluation, class_names: tuple[str, ...] | None) -> None:
    """Write the outputs collected by an evaluation."""
    if found.outputs is None or found.targets is None:
        raise ValueError("the evaluation collected no outputs")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    if class_names is None:
        rows.writerow(["index", "target", "predicted"])
        values = zip(found.targets.flatten().tolist(), found.outputs.flatten().tolist(), strict=True)
        rows.writerows([i, f"{y:.8g}", f"{p:.8g}"] for i, (y, p) in enumerate(values))
    else:
        rows.writerow(["index", "target", "predicted", *(f"p({name})" for name in class_names)])
        probabilities = torch.softmax(found.outputs, dim=-1)
        chosen = probabilities.argmax(-1).tolist()
        for i, (y, p) in enumerate(zip(found.targets.tolist(), probabilities.tolist(), strict=True)):
            rows.writerow([i, class_names[y], class_names[chosen[i]], *(f"{v:.6g}" for v in p)])
    write_atomically(path, text.getvalue().encode())


def read_predictions(path: Path) -> Predictions:
    """Read targets and predictions back.

    Raises:
        IntegrityError: the file is no predictions file.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    if (
        not rows
        or rows[0][:3] != ["index", "target", "predicted"]
        or any(len(r) != len(rows[0]) for r in rows)
    ):
        raise IntegrityError(f"{path}: not a whole predictions file; run `seqpyramid eval --again`")
    body = np.array([row[1:3] for row in rows[1:]], dtype=np.str_)
    return Predictions(body[:, 0], body[:, 1])


def write_report(path: Path, found: Predictions, class_names: tuple[str, ...]) -> str:
    """Write precision, recall and F1 of every class; return the text."""
    from sklearn.metrics import classification_report

    text: str = classification_report(
        found.targets, found.predicted, labels=list(class_names), digits=4, zero_division=0
    )
    write_atomically(path, text.encode())
    return text


def write_confusion(path: Path, found: Predictions, class_names: tuple[str, ...], title: str) -> None:
    """Draw the confusion matrix, rows are targets, shade is the share of the row, numbers are counts."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(found.targets, found.predicted, labels=list(class_names))
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    size = min(20.0, max(4.8, 0.48 * len(class_names) + 1.8))
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(size, size), layout="constrained")
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=90 if max(map(len, class_names)) > 2 else 0)
        axes.set_yticks(ticks, class_names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("target")
        axes.set_title(title)
        if len(class_names) <= 30:
            for row, column in np.ndindex(counts.shape):
                if counts[row, column]:
                    shade = "white" if share[row, column] > 0.5 else "black"
                    axes.text(
                        column, row, counts[row, column], ha="center", va="center", color=shade, fontsize=8
                    )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
