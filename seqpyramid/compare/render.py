"""Render tables as text: for a terminal, as Markdown, as LaTeX and as CSV."""

import csv
import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from seqpyramid.compare.layout import Layout, layouts
from seqpyramid.compare.notation import DAGGER, NOTHING
from seqpyramid.compare.tables import Block, Comparison, Row

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 110
_SPARE = ("label", "validation", "seconds")
"""What a terminal below that many characters does not show: the row says what the label says."""


def to_terminal(tables: Comparison, console: "Console") -> None:
    """Print the tables; warnings belong on the other stream and are left to the caller."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for layout in layouts(tables):
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
    for layout in layouts(tables):
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
    for layout in layouts(tables):
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
