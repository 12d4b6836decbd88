"""Lay out a block: choose columns and decimals, word the cells, number the footnotes, in no notation yet."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from seqpyramid.compare.notation import DAGGER, NOTHING, Number
from seqpyramid.compare.statistics import TTest
from seqpyramid.compare.tables import Block, Comparison


class Column(NamedTuple):
    """One column of a layout."""

    key: str
    header: str
    align: Literal["left", "right"]


class Line(NamedTuple):
    """One line of a layout; ``kind`` is for emphasis."""

    kind: Literal["ours", "best", "literature"]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """A table whose cells are worded and whose footnotes are numbered, in no notation yet."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def number_format(block: Block) -> Number:
    """Choose the decimals: a second one only where the test split is large enough for it to mean anything.

    One example of 2,000 moves an accuracy by 0.05 points.
    """
    counts = [result.test["count"] for row in block.rows for result in row.results if "count" in result.test]
    return Number(block.metric, 2 if counts and min(counts) >= 2000 else 1)


def lay_out(block: Block) -> Layout:
    """Word the cells of a block."""
    number = number_format(block)
    footnotes = _Footnotes()
    with_paper = any(row.printed for row in block.rows) or bool(block.literature)
    with_accesses = any(result.test_accesses != 1 for row in block.rows for result in row.results)
    columns = [Column("row", "row", "left")]
    if with_paper:
        columns.append(Column("label", "in the paper", "left"))
    columns.append(Column("parameters", "parameters" + (", ours / printed" if with_paper else ""), "right"))
    columns.append(Column("score", f"test {block.metric}{_in(number.unit)}", "right"))
    if with_paper:
        columns.append(Column("printed", "printed", "right"))
        columns.append(Column("difference", f"difference{number.difference_unit}", "right"))
    columns.append(Column("validation", "validation", "right"))
    if with_accesses:
        columns.append(Column("accesses", "test accesses", "right"))
    columns.append(Column("seconds", "seconds", "right"))
    columns.append(Column("n", "n", "right"))

    def line(kind: Literal["ours", "best", "literature"], words: dict[str, str]) -> Line:
        return Line(kind, tuple(words.get(column.key, NOTHING) for column in columns))

    lines = []
    for row in block.rows:
        best = row.score is not None and row.score.mean == block.best and len(block.rows) > 1
        parameters = f"{row.first.parameters:,}"
        if with_paper:
            parameters += f" / {(row.printed and row.printed.parameters_printed) or NOTHING}"
        words = {
            "row": f"{row.name} {DAGGER}" if row.modified else row.name,
            "parameters": parameters,
            "score": number.summary(row.score),
            "validation": number.text(row.validation.mean) if row.validation else NOTHING,
            "accesses": ", ".join(str(result.test_accesses) for result in row.results),
            "seconds": _seconds(row.seconds.mean) if row.seconds else NOTHING,
            "n": str(row.score.n if row.score else 0),
        }
        if row.printed:
            words["label"] = row.printed.label
            words["printed"] = number.cell(row.printed) + footnotes.mark(row.printed.note)
        if row.difference is not None:
            words["difference"] = number.signed(row.difference)
        lines.append(line("best" if best else "ours", words))
    for cell in block.literature:
        lines.append(
            line(
                "literature",
                {
                    "row": cell.row or NOTHING,
                    "label": cell.label,
                    "parameters": f"{NOTHING} / {cell.parameters_printed}" if cell.parameters else NOTHING,
                    "printed": number.cell(cell) + footnotes.mark(cell.note),
                },
            )
        )
    better = "higher" if block.mode == "max" else "lower"
    legend = [f"test {block.metric}: mean ± standard deviation over n seeds; {better} is better"]
    numbered = [f"[{place}] {text}" for place, text in enumerate(footnotes.texts, start=1)]
    return Layout(block.title, tuple(columns), tuple(lines), (*legend, *block.notes, *numbered))


def lay_out_pairs(block: Block) -> Layout | None:
    """Word the differences between the rows; None where no two rows have two seeds each."""
    if not block.pairs:
        return None
    number = number_format(block)
    lines = tuple(
        Line(
            "ours",
            (
                f"{pair.first} − {pair.second}",
                number.signed(pair.difference),
                _p(pair.welch),
                _p(pair.paired),
                str(pair.paired.n) if pair.paired else NOTHING,
            ),
        )
        for pair in block.pairs
    )
    columns = (
        Column("rows", "rows", "left"),
        Column("difference", f"difference{number.difference_unit}", "right"),
        Column("welch", "p, Welch", "right"),
        Column("paired", "p, paired by seed", "right"),
        Column("n", "common seeds", "right"),
    )
    notes = ["p: two-sided t-tests over seeds"]
    if len(lines) > 1:
        notes.append(f"p is not corrected for the {len(lines)} pairs")
    return Layout(f"{block.title}: differences between rows", columns, lines, tuple(notes))


def layouts(tables: Comparison) -> Iterable[Layout]:
    """Lay out every block, each followed by the differences between its rows."""
    for block in tables.blocks:
        yield lay_out(block)
        pairs = lay_out_pairs(block)
        if pairs:
            yield pairs


class _Footnotes:
    """Numbers each distinct text once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return f" [{self.texts.index(text) + 1}]"


def _in(unit: str) -> str:
    return f" ({unit.strip()})" if unit else ""


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _p(test: TTest | None) -> str:
    if test is None or math.isnan(test.p):
        return NOTHING
    return "<0.0001" if test.p < 1e-4 else f"{test.p:.2g}" if test.p < 0.1 else f"{test.p:.2f}"
