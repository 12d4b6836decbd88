"""Group results into blocks that may be compared, lay them out, and render them as text.

A block holds one protocol: one recipe, one task fingerprint, one training fingerprint. A row holds the seeds of
one model in it. Numbers are never mixed over blocks, and never over rows. :func:`build_tables` computes,
:func:`lay_out` words the cells once, and each ``to_...`` only writes them in its own notation.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from seqpyramid.compare.collect import PaperRef, Result, Results
from seqpyramid.compare.statistics import Summary, TTest, paired, summarize, welch
from seqpyramid.papers import PAPERS, Printed, lookup, missing, printed

if TYPE_CHECKING:
    from rich.console import Console

DAGGER = "†"
NOTHING = "–"
_HIGHER_IS_BETTER = ("accuracy", "log_likelihood")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The seeds of one model in one protocol."""

    name: str
    """The recipe's row name; followed by the model's fingerprint where two rows of a block share the name."""
    results: tuple[Result, ...]
    score: Summary | None
    """Test metric over seeds; None if the test split was never read."""
    validation: Summary | None
    seconds: Summary | None
    printed: Printed | None
    difference: float | None
    """Mean minus printed value; None for a modified row, which is no reproduction, and where nothing is printed."""

    @property
    def first(self) -> Result:
        """Any of the results: all that they share can be read here."""
        return self.results[0]

    @property
    def modified(self) -> tuple[str, ...]:
        """Overrides of the recipe."""
        return self.first.modified

    @property
    def label(self) -> str:
        """The row's name as printed, or our own."""
        return self.printed.label if self.printed else self.first.row


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows of one block."""

    first: str
    second: str
    difference: float
    """Mean of the first minus mean of the second."""
    welch: TTest | None
    paired: TTest | None
    """Over the seeds that both have."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows that share a recipe, a task and a training protocol."""

    title: str
    recipe: str
    task: str
    task_fingerprint: str
    train_fingerprint: str
    metric: str
    mode: Literal["max", "min"]
    papers: tuple[PaperRef, ...]
    rows: tuple[Row, ...]
    literature: tuple[Printed, ...]
    """Printed rows that were not run."""
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> float | None:
        """The best mean of the block."""
        means = [row.score.mean for row in self.rows if row.score]
        return (max if self.mode == "max" else min)(means) if means else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All blocks, and what the reader must know of how they came about."""

    blocks: tuple[Block, ...]
    warnings: tuple[str, ...] = ()
    """What was left out while grouping."""
    beside: tuple[str, ...] = ()
    """What :func:`collect` found beside the results: damaged files, unfinished runs."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """All that a reader of a written table must be told."""
        return self.beside + self.warnings


class _Protocol(NamedTuple):
    recipe: str
    task_fingerprint: str
    train_fingerprint: str
    metric: str
    mode: Literal["max", "min"]


def build_tables(results: Sequence[Result], *, literature: bool = False) -> Comparison:
    """Group results into blocks and rows.

    Of two results with one row, one set of fingerprints and one seed the first is kept, and a warning names both.

    Args:
        results: from :func:`seqpyramid.compare.collect.collect`; what it
            found beside them goes into the written tables.
        literature: also list the rows of the paper's table that were not run.
    """
    warnings: list[str] = []
    blocks: dict[_Protocol, list[Result]] = {}
    for result in _without_duplicates(results, warnings):
        metric, mode = _compared_metric(result)
        key = _Protocol(result.recipe, result.fingerprint.task, result.fingerprint.train, metric, mode)
        blocks.setdefault(key, []).append(result)
    # the recipe as it is comes before its overridden versions
    ordered = sorted(blocks, key=lambda key: (key.recipe, min(len(r.modified) for r in blocks[key]), key))
    return Comparison(
        blocks=tuple(_block(key, blocks[key], ordered, literature) for key in ordered),
        warnings=tuple(warnings),
        beside=tuple(_beside(results)) if isinstance(results, Results) else (),
    )


def _beside(results: Results) -> Iterable[str]:
    yield from results.problems
    if results.unfinished:
        names = ", ".join(map(str, results.unfinished))
        yield f"{len(results.unfinished)} unfinished: {names}; run `seqpyramid train` again to continue"


def _without_duplicates(results: Iterable[Result], warnings: list[str]) -> list[Result]:
    kept: dict[tuple[object, ...], Result] = {}
    for result in results:
        key = (result.recipe, result.row, result.fingerprint, result.seed)
        if key in kept:
            warnings.append(
                f"{result.path}: same row, fingerprints and seed as {kept[key].path}; only that one is used"
            )
        else:
            kept[key] = result
    return list(kept.values())


def _compared_metric(result: Result) -> tuple[str, Literal["max", "min"]]:
    """Choose the metric that the paper prints, if the run measured it; else the one that selected the checkpoint."""
    for cell in printed(*result.paper) if result.paper else []:
        if cell.metric in result.test and cell.metric != result.metric:
            return cell.metric, "max" if cell.metric in _HIGHER_IS_BETTER else "min"
    return result.metric, result.mode


def _block(key: _Protocol, results: list[Result], all_keys: list[_Protocol], literature: bool) -> Block:
    groups: dict[tuple[str, str, tuple[str, ...]], list[Result]] = {}
    for result in results:
        groups.setdefault((result.row, result.fingerprint.model, result.modified), []).append(result)
    names = Counter(row for row, _, _ in groups)
    as_printed = Counter(row for row, _, modified in groups if not modified)
    rows = [
        # the recipe's own row keeps its plain name beside its overridden versions
        _row(
            row if names[row] == 1 or (not modified and as_printed[row] == 1) else f"{row} [{model[:8]}]",
            key.metric,
            group,
        )
        for (row, model, modified), group in groups.items()
    ]
    rows = _distinct(sorted(rows, key=_printed_order))
    references = tuple(dict.fromkeys(row.first.paper for row in rows if row.first.paper))
    ran = {row.printed for row in rows}
    return Block(
        title=_title(key, results, references, [other for other in all_keys if other.recipe == key.recipe]),
        recipe=key.recipe,
        task=results[0].task,
        task_fingerprint=key.task_fingerprint,
        train_fingerprint=key.train_fingerprint,
        metric=key.metric,
        mode=key.mode,
        papers=references,
        rows=tuple(rows),
        literature=tuple(cell for ref in references for cell in printed(*ref) if cell not in ran)
        if literature
        else (),
        pairs=tuple(_pairs(rows, key.metric)),
        notes=tuple(_notes(rows, key.metric, references)),
    )


def _row(name: str, metric: str, group: list[Result]) -> Row:
    group = sorted(group, key=lambda result: result.seed)
    reference = group[0].paper
    cell = lookup(*reference, group[0].row) if reference else None
    score = _summary(result.test.get(metric) for result in group)
    comparable = score and cell and cell.value is not None and cell.metric == metric and not group[0].modified
    return Row(
        name=name,
        results=tuple(group),
        score=score,
        validation=_summary(result.validation.get(metric) for result in group),
        seconds=_summary(result.seconds for result in group),
        printed=cell,
        difference=score.mean - cell.value
        if comparable and score and cell and cell.value is not None
        else None,
    )


def _summary(values: Iterable[float | None]) -> Summary | None:
    known = [value for value in values if value is not None]
    return summarize(known) if known else None


def _printed_order(row: Row) -> tuple[int, int, str]:
    reference = row.first.paper
    column = printed(*reference) if reference else []
    place = column.index(row.printed) if row.printed in column else len(column)
    return place, len(row.modified), row.name


def _distinct(rows: list[Row]) -> list[Row]:
    """Number the rows that even the model's fingerprint does not tell apart (overrides worded differently)."""
    seen: Counter[str] = Counter()
    named = []
    for row in rows:
        seen[row.name] += 1
        named.append(row if seen[row.name] == 1 else replace(row, name=f"{row.name} #{seen[row.name]}"))
    return named


def _title(
    key: _Protocol, results: list[Result], references: Sequence[PaperRef], siblings: list[_Protocol]
) -> str:
    title = key.recipe
    if references:
        title += ": " + "; ".join(
            f"{PAPERS[ref.paper].short if ref.paper in PAPERS else ref.paper}, {ref.table}, {ref.column}"
            for ref in references
        )
    parts = []
    if len({sibling.task_fingerprint for sibling in siblings}) > 1:
        parts.append(f"task {key.task_fingerprint[:8]}")
    if len({sibling.train_fingerprint for sibling in siblings}) > 1:
        parts.append(f"training {key.train_fingerprint[:8]}")
    if len({(sibling.metric, sibling.mode) for sibling in siblings}) > 1:
        parts.append(f"by {key.metric}")
    if parts:
        # overrides of the model make rows, not blocks
        overrides = dict.fromkeys(
            override for result in results for override in result.modified if not override.startswith("model")
        )
        parts.append("overridden: " + ", ".join(overrides) if overrides else "no overrides")
    return f"{title} ({', '.join(parts)})" if parts else title


def _pairs(rows: Sequence[Row], metric: str) -> Iterable[Pair]:
    for a, b in combinations(rows, 2):
        if a.score and b.score and a.score.n > 1 and b.score.n > 1:
            yield Pair(
                first=a.name,
                second=b.name,
                difference=a.score.mean - b.score.mean,
                welch=welch(a.score.values, b.score.values),
                paired=paired(_by_seed(a, metric), _by_seed(b, metric)),
            )


def _by_seed(row: Row, metric: str) -> dict[int, float]:
    return {result.seed: result.test[metric] for result in row.results if metric in result.test}


def _notes(rows: Sequence[Row], metric: str, references: Sequence[PaperRef]) -> Iterable[str]:
    results = [result for row in rows for result in row.results]
    yield from filter(None, (missing(*reference) for reference in references))
    trivial = {result.trivial[metric] for result in results if metric in result.trivial}
    if len(trivial) == 1:
        yield f"the best constant answer scores {Number(metric, 2).text(trivial.pop())}{Number(metric, 2).unit}"
    for row in rows:
        if row.modified:
            yield f"{DAGGER} {row.name}: {', '.join(row.modified)}; modified, not a reproduction"
        if len({result.parameters for result in row.results}) > 1:
            yield f"{row.name}: the runs differ in their number of parameters, so their data differ"
        untested = [result for result in row.results if metric not in result.test]
        if untested:
            yield f"{row.name}: {len(untested)} of {len(row.results)} runs without a test {metric}"
    if len({result.data for result in results}) > 1:
        versions = ", ".join(sorted({result.data[0][:8] or "unknown" for result in results}))
        yield f"these runs read different data or splits (data {versions}), so their numbers do not compare"
    if any(result.test_accesses != 1 for result in results):
        yield "test accesses: how often each run read the test split; a clean number comes from one reading"
    devices = sorted({result.device for result in results if result.device})
    if len(devices) > 1:
        yield f"training times come from different devices ({', '.join(devices)})"


@dataclass(frozen=True)
class Number:
    """How the numbers of one metric are written."""

    metric: str
    decimals: int
    """Decimals of a percentage."""

    @property
    def unit(self) -> str:
        """Unit behind a number standing alone."""
        return " %" if self._percent else ""

    @property
    def difference_unit(self) -> str:
        """Unit of a difference."""
        return " (pp)" if self._percent else ""

    @property
    def _percent(self) -> bool:
        return "accuracy" in self.metric

    def text(self, value: float) -> str:
        """Write a value.

        >>> Number("accuracy", 2).text(0.98714), Number("mse", 2).text(0.00123456)
        ('98.71', '0.001235')
        """
        if self._percent:
            return f"{100 * value:.{self.decimals}f}"
        if self.metric == "bpc":
            return f"{value:.3f}"
        return f"{value:.4g}"

    def spread(self, value: float) -> str:
        """Write a standard deviation."""
        return self.text(value) if self._percent or self.metric == "bpc" else f"{value:.2g}"

    def signed(self, value: float) -> str:
        """Write a difference.

        >>> Number("accuracy", 1).signed(-0.0031), Number("accuracy", 1).signed(-0.0001)
        ('−0.3', '0.0')
        """
        text = self.text(abs(value))
        if float(text) == 0:
            return text
        return ("+" if value > 0 else "−") + text

    def summary(self, summary: Summary | None) -> str:
        """Write mean and deviation; a single seed says so.

        >>> Number("accuracy", 1).summary(summarize([0.98, 0.99])), Number("accuracy", 1).summary(summarize([0.98]))
        ('98.5 ± 0.7', '98.0 (one seed)')
        """
        if summary is None:
            return NOTHING
        if summary.sd is None:
            return f"{self.text(summary.mean)} (one seed)"
        return f"{self.text(summary.mean)} ± {self.spread(summary.sd)}"

    def cell(self, cell: Printed) -> str:
        """Write a printed value, in our unit where the paper prints a fraction."""
        if cell.value is None or not self._percent or not cell.printed.startswith("."):
            return cell.printed if cell.printed not in ("", "-") else NOTHING
        return f"{100 * cell.value:.{max(len(cell.printed) - 3, 0)}f}"


def number_format(block: Block) -> Number:
    """Choose the decimals: a second one only where the test split is large enough for it to mean anything.

    One example of 2,000 moves an accuracy by 0.05 points.
    """
    counts = [result.test["count"] for row in block.rows for result in row.results if "count" in result.test]
    return Number(block.metric, 2 if counts and min(counts) >= 2000 else 1)


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


def _in(unit: str) -> str:
    return f" ({unit.strip()})" if unit else ""


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _p(test: TTest | None) -> str:
    if test is None or math.isnan(test.p):
        return NOTHING
    return "<0.0001" if test.p < 1e-4 else f"{test.p:.2g}" if test.p < 0.1 else f"{test.p:.2f}"


def _layouts(tables: Comparison) -> Iterable[Layout]:
    for block in tables.blocks:
        yield lay_out(block)
        pairs = lay_out_pairs(block)
        if pairs:
            yield pairs


_WIDE = 110
_SPARE = ("label", "validation", "seconds")
"""What a terminal below that many characters does not show: the row says what the label says."""


def to_terminal(tables: Comparison, console: "Console") -> None:
    """Print the tables; warnings belong on the other stream and are left to the caller."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for layout in _layouts(tables):
        keys = [column.key for column in layout.columns]
        left_out = [key for key in _SPARE if key in keys and console.width < _WIDE]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column in layout.columns:
            if column.key not in left_out:
                header = Text(column.header.replace(", ", "\n").replace(" (", "\n("))
                table.add_column(header, justify=column.align, overflow="fold", vertical="bottom")
        for line in layout.lines:
            words = dict(zip(keys, line.cells, strict=True))
            if "label" in left_out and words["row"] == NOTHING:
                words["row"] = words["label"]
            cells = [
                Text(word, style="bold" if line.kind == "best" and key == "score" else "")
                for key, word in words.items()
                if key not in left_out
            ]
            table.add_row(*cells, style="dim" if line.kind == "literature" else "")
        console.print(Text(layout.title, style="bold"))
        console.print(table, Text())
        if left_out:
            headers = ", ".join(layout.columns[keys.index(key)].header for key in left_out)
            console.print(Text(f"left out, as the terminal is narrow: {headers}", style="dim"))
        for note in layout.notes:
            console.print(Text(note, style="dim"))
        console.print()


def to_markdown(tables: Comparison) -> str:
    """Write GitHub-flavoured Markdown."""
    parts = []
    for layout in _layouts(tables):
        rows = [
            [_markdown(column.header) for column in layout.columns],
            ["---:" if column.align == "right" else ":---" for column in layout.columns],
            *_with_best(
                layout, [[_markdown(cell) for cell in line.cells] for line in layout.lines], "**{}**"
            ),
        ]
        lines = [f"| {' | '.join(cells)} |" for cells in rows]
        notes = [f"- {_markdown(note)}" for note in layout.notes]
        parts.append("\n".join([f"### {_markdown(layout.title)}", "", *lines, "", *notes]))
    if tables.remarks:
        parts.append("\n".join(["### Warnings", "", *(f"- {_markdown(text)}" for text in tables.remarks)]))
    return "\n\n".join(parts) + "\n"


def _with_best(layout: Layout, rows: list[list[str]], pattern: str) -> Iterable[list[str]]:
    """Set the best score into ``pattern``."""
    for line, cells in zip(layout.lines, rows, strict=True):
        yield [
            pattern.format(cell) if line.kind == "best" and column.key == "score" else cell
            for column, cell in zip(layout.columns, cells, strict=True)
        ]


def _markdown(text: str) -> str:
    for special in "\\`*_<>[]|#":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "≈": r"$\approx$",
    "–": "--",
    DAGGER: r"$^{\dagger}$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def to_latex(tables: Comparison) -> str:
    """Write LaTeX tables for the ``booktabs`` package."""
    parts = []
    for layout in _layouts(tables):
        aligns = "".join(column.align[0] for column in layout.columns)
        rows = [[_latex(cell) for cell in line.cells] for line in layout.lines]
        body = []
        for place, cells in enumerate(_with_best(layout, rows, r"\textbf{{{}}}")):
            line = layout.lines[place]
            if line.kind == "literature" and place and layout.lines[place - 1].kind != "literature":
                body.append(r"\midrule")
            # an empty group keeps a cell that begins with a bracket from being read as an argument of the line end
            body.append(f"{{}}{' & '.join(cells)} \\\\")
        parts.append(
            "\n".join(
                [
                    r"\begin{table}[t]",
                    r"\centering\small",
                    rf"\caption{{{_latex(layout.title)}}}",
                    rf"\begin{{tabular}}{{{aligns}}}",
                    r"\toprule",
                    " & ".join(_latex(column.header) for column in layout.columns) + r" \\",
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                    "",
                    r"\raggedright\footnotesize",
                    *(rf"{_latex(note)}\par" for note in layout.notes),
                    r"\end{table}",
                ]
            )
        )
    warnings = [f"% warning: {' '.join(warning.split())}" for warning in tables.remarks]
    return "\n".join(["% \\usepackage{booktabs}", *warnings, ""]) + "\n\n".join(parts) + "\n"


_CSV: dict[str, Callable[[Block, Row], object]] = {
    "recipe": lambda block, row: block.recipe,
    "task": lambda block, row: block.task,
    "task_fingerprint": lambda block, row: block.task_fingerprint,
    "train_fingerprint": lambda block, row: block.train_fingerprint,
    "model_fingerprint": lambda block, row: row.first.fingerprint.model,
    "row": lambda block, row: row.first.row,
    "label": lambda block, row: row.label,
    "model": lambda block, row: row.first.model,
    "modified": lambda block, row: "; ".join(row.modified),
    "parameters": lambda block, row: row.first.parameters,
    "printed_parameters": lambda block, row: row.printed and row.printed.parameters,
    "metric": lambda block, row: block.metric,
    "mode": lambda block, row: block.mode,
    "n": lambda block, row: row.score.n if row.score else 0,
    "mean": lambda block, row: row.score and row.score.mean,
    "sd": lambda block, row: row.score and row.score.sd,
    "standard_error": lambda block, row: row.score and row.score.standard_error,
    "interval_low": lambda block, row: row.score and row.score.interval and row.score.interval[0],
    "interval_high": lambda block, row: row.score and row.score.interval and row.score.interval[1],
    "printed_value": lambda block, row: row.printed and row.printed.value,
    "printed": lambda block, row: row.printed and row.printed.printed,
    "paper": lambda block, row: row.printed and row.printed.paper,
    "table": lambda block, row: row.printed and row.printed.table,
    "column": lambda block, row: row.printed and row.printed.column,
    "difference": lambda block, row: row.difference,
    "validation": lambda block, row: row.validation and row.validation.mean,
    "test_accesses": lambda block, row: " ".join(str(result.test_accesses) for result in row.results),
    "seconds": lambda block, row: row.seconds and row.seconds.mean,
    "seeds": lambda block, row: " ".join(str(result.seed) for result in row.results),
}


def to_csv(tables: Comparison) -> str:
    """Write one flat line a row, raw numbers (an accuracy is a fraction); printed-only rows have no ``n``."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(_CSV), lineterminator="\n")
    writer.writeheader()
    for block in tables.blocks:
        for row in block.rows:
            writer.writerow({key: read(block, row) for key, read in _CSV.items()})
        for cell in block.literature:
            writer.writerow(
                {
                    "recipe": block.recipe,
                    "task": block.task,
                    "row": cell.row,
                    "label": cell.label,
                    "printed_parameters": cell.parameters,
                    "metric": cell.metric,
                    "mode": block.mode,
                    "printed_value": cell.value,
                    "printed": cell.printed,
                    "paper": cell.paper,
                    "table": cell.table,
                    "column": cell.column,
                }
            )
    return stream.getvalue()


def to_data(tables: Comparison) -> dict[str, Any]:
    """Return everything as plain nested values; fractions stay fractions and an undefined p is None."""
    return {
        "tables": [
            {
                "title": block.title,
                "recipe": block.recipe,
                "task": block.task,
                "fingerprint": {"task": block.task_fingerprint, "train": block.train_fingerprint},
                "metric": block.metric,
                "mode": block.mode,
                "rows": [_row_data(row, block.metric) for row in block.rows],
                "literature": [_printed_data(cell) for cell in block.literature],
                "pairs": [
                    {
                        "rows": [pair.first, pair.second],
                        "difference": pair.difference,
                        "welch": _test_data(pair.welch),
                        "paired": _test_data(pair.paired),
                    }
                    for pair in block.pairs
                ],
                "notes": list(block.notes),
            }
            for block in tables.blocks
        ],
        "warnings": list(tables.remarks),
    }


def _row_data(row: Row, metric: str) -> dict[str, Any]:
    return {
        "row": row.first.row,
        "name": row.name,
        "label": row.label,
        "model": row.first.model,
        "model_fingerprint": row.first.fingerprint.model,
        "parameters": row.first.parameters,
        metric: _summary_data(row.score),
        "seeds": [result.seed for result in row.results],
        "paper": _printed_data(row.printed) if row.printed else None,
        "difference": row.difference,
        "modified": list(row.modified),
        "validation": _summary_data(row.validation),
        "test_accesses": [result.test_accesses for result in row.results],
        "seconds": row.seconds.mean if row.seconds else None,
        "results": [str(result.path) for result in row.results],
    }


def _summary_data(summary: Summary | None) -> dict[str, Any] | None:
    if summary is None:
        return None
    return {
        "mean": summary.mean,
        "sd": summary.sd,
        "n": summary.n,
        "standard_error": summary.standard_error,
        "interval_95": list(summary.interval) if summary.interval else None,
        "values": list(summary.values),
    }


def _printed_data(cell: Printed) -> dict[str, Any]:
    return {
        "row": cell.row,
        "label": cell.label,
        "value": cell.value,
        "printed": cell.printed,
        "metric": cell.metric,
        "paper": cell.paper,
        "table": cell.table,
        "column": cell.column,
        "parameters": cell.parameters,
        "note": cell.note,
    }


def _test_data(test: TTest | None) -> dict[str, Any] | None:
    if test is None:
        return None
    numbers = {"t": test.statistic, "degrees": test.degrees, "p": test.p}
    return {name: None if math.isnan(value) else value for name, value in numbers.items()} | {"n": test.n}


def to_json(tables: Comparison) -> str:
    """Write :func:`to_data` as JSON."""
    return json.dumps(to_data(tables), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
