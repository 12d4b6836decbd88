"""Lines of on-line handwriting as IAM-OnDB stores them: XML files of strokes, and the lists of its splits.

Source: Liwicki and Bunke, "IAM-OnDB: an On-Line English Sentence Database Acquired from Handwritten Text on a
Whiteboard", ICDAR 2005. ``lineStrokes/a01/a01-000/a01-000u-01.xml`` is line 01 of form a01-000u: a StrokeSet of
Strokes of Points with x (to the right) and y (downwards), in units of the board. Times and the description of the
board are not read. The lists of task IAM-OnDB-t1 (``trainset.txt`` and three more) name forms, one a line.

The files come from elsewhere, so nothing in them is trusted: a document type or an entity is refused before it is
expanded, and files and coordinates have limits far above those of any line of writing.

Shapes: N points of a line.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from seqpyramid.errors import DataError

LISTS = ("trainset.txt", "testset_v.txt", "testset_t.txt", "testset_f.txt")
"""Of IAM-OnDB-t1: training, first and second validation, final test."""

MAX_FILE_BYTES = 16 * 2**20
"""Of a line's file; those of the corpus have some ten thousand bytes."""
MAX_COORDINATE = 1e6
"""Far above the board's size; float32 holds whole numbers up to it, and their differences, exactly."""

_LINES_FOLDER = "lineStrokes"
_LINE = re.compile(r"([a-z]\d{2}-\d{3}[a-z]?)-\d{2,3}")
_FORM = re.compile(r"[a-z]\d{2}-\d{3}[a-z]?")
_NUMBER = re.compile(r"[+-]?\d{1,12}(\.\d{1,12})?", re.ASCII)
_MEND = "unpack it again from the publisher's archive"


@dataclass(frozen=True)
class Corpus:
    """What a folder holds."""

    lines: Mapping[str, Path]
    """Name of the line (``a01-000u-01``) -> its file, in the order of the names."""
    lists: Mapping[str, Path]
    """Those of :data:`LISTS` that are there."""

    def digests(self) -> Iterator[str]:
        """Yield the name of each file with the SHA-256 (hex) of its content, in a fixed order.

        Raises:
            DataError: a file cannot be read.
        """
        for name, path in (*self.lines.items(), *sorted(self.lists.items())):
            yield f"{name} {hashlib.sha256(_read(path)).hexdigest()}"


def find_corpus(source: Path) -> Corpus:
    """List the lines below ``source/lineStrokes`` or ``source``, and the lists in ``source`` or a folder in it.

    Raises:
        DataError: there is no such folder, no line, or a file that is not named like a line.
    """
    if not source.is_dir():
        raise DataError(f"{source}: not a folder; name with --source the folder that holds {_LINES_FOLDER}/")
    inner = source / _LINES_FOLDER
    folder = inner if inner.is_dir() else source
    lines: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.xml"), key=lambda path: (path.stem, path.parts)):
        if _LINE.fullmatch(path.stem) is None:
            raise DataError(
                f"{path}: not named like a line (a01-000u-01.xml); "
                f"name with --source the folder that holds {_LINES_FOLDER}/"
            )
        if path.stem in lines:
            raise DataError(f"{path}: the same line as {lines[path.stem]}; remove one of the two")
        lines[path.stem] = path
    if not lines:
        raise DataError(
            f"{folder}: no line of IAM-OnDB (a01/a01-000/a01-000u-01.xml) here; "
            f"name with --source the folder that holds {_LINES_FOLDER}/"
        )
    lists = {}
    for name in LISTS:
        found = [path for path in (source / name, *sorted(source.glob(f"*/{name}"))) if path.is_file()]
        if found:
            lists[name] = found[0]
    return Corpus(lines, lists)


def form_of(line: str) -> str:
    """Return the form that a line stands on.

    >>> form_of("a01-000u-01")
    'a01-000u'
    """
    return line.rpartition("-")[0]


def read_line(path: Path) -> NDArray[np.float64]:
    """Read one line.

    Returns:
        (N, 3): x and y in units of the board, y downwards, and 1 where a stroke ends, else 0. A stroke without a
        point leaves no trace.

    Raises:
        DataError: the file cannot be read, is not XML, declares a document type, has no StrokeSet, a point without
            a number for x or y, or no point at all.
    """
    return _LineReader(path).read()


def read_list(path: Path) -> frozenset[str]:
    """Read the forms that a list names.

    Raises:
        DataError: the file cannot be read, or a line of it is no form.
    """
    forms = set()
    for number, row in enumerate(_read(path).decode("ascii", errors="replace").splitlines(), start=1):
        name = row.strip()
        if name and _FORM.fullmatch(name) is None:
            raise DataError(f"{path}, line {number}: {name[:40]!r} names no form (as a01-000u); {_MEND}")
        forms.add(name)
    return frozenset(forms - {""})


def read_lists(corpus: Corpus) -> dict[str, int]:
    """Return for each form in a list which of :data:`LISTS` it is in.

    Raises:
        DataError: a list is damaged, or two of them name the same form.
    """
    parts: dict[str, int] = {}
    for part, name in enumerate(LISTS):
        if name not in corpus.lists:
            continue
        for form in sorted(read_list(corpus.lists[name])):
            if form in parts:
                raise DataError(f"{corpus.lists[name]}: {form} is in {LISTS[parts[form]]} too; {_MEND}")
            parts[form] = part
    return parts


def joined(strokes: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Put strokes (n, 2) behind each other: (N, 3), the last column 1 on the last point of each; some may be empty.

    >>> joined([np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([[5.0, 2.0]])]).tolist()
    [[0.0, 0.0, 0.0], [1.0, 2.0, 1.0], [5.0, 2.0, 1.0]]
    """
    points = np.concatenate(strokes)
    pen = np.zeros((len(points), 1))
    pen[np.cumsum([len(stroke) for stroke in strokes]) - 1] = 1
    return np.hstack([points, pen])


def moves(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn positions (P, 3) into moves; the first row's is (0, 0).

    >>> moves(np.array([[0, 0, 0], [3, 1, 1], [2, 2, 1]], dtype=np.float32)).tolist()
    [[0.0, 0.0, 0.0], [3.0, 1.0, 1.0], [-1.0, 1.0, 1.0]]
    """
    found = points.copy()
    found[1:, :2] = np.diff(points[:, :2], axis=0)
    found[:1, :2] = 0
    return found


def draw_lines(lines: Sequence[NDArray[np.float64]], ended: Sequence[bool]) -> bytes:
    """Draw lines (P, 3) below each other as a PNG file.

    All are in one scale, the widest fills the page, and each is as high as it needs to be, within bounds, as a model
    that has learnt little leaves the page. A line that did not end by itself is followed by a grey bar.
    """
    from matplotlib.collections import LineCollection  # heavy, and only pictures need it
    from matplotlib.figure import Figure

    page, least, most = 10.0, 0.35, 2.5  # inches
    sizes = [np.maximum(np.ptp(line[:, :2], axis=0), 1.0) for line in lines]
    unit = page / max(float(size[0]) for size in sizes)
    heights = [float(np.clip(size[1] * unit, least, most)) for size in sizes]
    gap, margin = 0.3, 0.3
    height = sum(heights) + gap * (len(lines) - 1) + 2 * margin
    figure = Figure(figsize=(page + 2 * margin, height), dpi=150, facecolor="white")
    top = height - margin
    for line, size, inches, whole in zip(lines, sizes, heights, ended, strict=True):
        top -= inches
        scale = min(unit, inches / float(size[1]))
        axes = figure.add_axes(
            (margin / (page + 2 * margin), top / height, page / (page + 2 * margin), inches / height)
        )
        axes.set_axis_off()
        left, upper = line[:, :2].min(axis=0)
        middle = upper + float(size[1]) / 2
        axes.set_xlim(left, left + page / scale)
        axes.set_ylim(
            middle + inches / scale / 2, middle - inches / scale / 2
        )  # y of the board grows downwards
        parts = [part for part in np.split(line, np.flatnonzero(line[:, 2]) + 1) if len(part)]
        axes.add_collection(
            LineCollection(
                [part[:, :2] for part in parts if len(part) > 1],
                colors="black",
                linewidths=1.4,
                capstyle="round",
                joinstyle="round",
                clip_on=False,
            )
        )
        dots = np.array([part[0, :2] for part in parts if len(part) == 1]).reshape(-1, 2)
        axes.scatter(dots[:, 0], dots[:, 1], s=4, color="black", linewidths=0, clip_on=False)
        if not whole:
            reach = 0.1 / scale
            x, y = line[:, 0].max() + reach, line[-1, 1]
            axes.plot([x, x], [y - reach, y + reach], color="0.6", linewidth=3, clip_on=False)
        top -= gap
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


class _LineReader:
    """One pass of the expat parser over one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inside: list[str] = []
        self._points: list[float] = []
        self._ends = [0]
        self._sets = 0
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        # before any entity is expanded, so that a bomb never goes off
        self._parser.StartDoctypeDeclHandler = lambda *_: self._refuse("declares a document type")
        self._parser.EntityDeclHandler = lambda *_: self._refuse("declares an entity")
        self._parser.ExternalEntityRefHandler = lambda *_: self._refuse("refers to another file")

    def read(self) -> NDArray[np.float64]:
        try:
            self._parser.Parse(_read(self._path), True)
        except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: an unknown encoding
            self._refuse(f"is not XML ({str(error).partition(':')[0]})")
        if not self._sets:
            raise DataError(f"{self._path}: no StrokeSet here, so this is no line of IAM-OnDB; {_MEND}")
        if not self._points:
            raise DataError(f"{self._path}: its StrokeSet has no point; {_MEND}, or leave the line out")
        points = np.array(self._points).reshape(-1, 2)
        return joined([points[start:end] for start, end in pairwise(self._ends)])

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._inside.append(name)
        if name == "StrokeSet":
            self._sets += 1
        elif name == "Point" and self._inside[-3:-1] == ["StrokeSet", "Stroke"]:
            self._points += (self._coordinate("x", attributes), self._coordinate("y", attributes))

    def _end(self, name: str) -> None:
        self._inside.pop()
        if name == "Stroke":
            self._ends.append(len(self._points) // 2)

    def _coordinate(self, axis: str, attributes: dict[str, str]) -> float:
        text = attributes.get(axis)
        if text is None:
            self._refuse(f"has a Point without {axis}")
        if _NUMBER.fullmatch(text) is None:
            self._refuse(f"has a Point whose {axis} is {text[:20]!r}, not a number")
        value = float(text)
        if abs(value) > MAX_COORDINATE:
            self._refuse(f"has a Point whose {axis} is {text[:20]}, far beyond any board")
        return value

    def _refuse(self, what: str) -> NoReturn:
        raise DataError(f"{self._path}, line {self._parser.CurrentLineNumber}: {what}; {_MEND}") from None


def _read(path: Path) -> bytes:
    """Read a file, but no giant."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_MEND}") from None
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{path}: larger than {MAX_FILE_BYTES} bytes, so this is none of IAM-OnDB; {_MEND}")
    return content
