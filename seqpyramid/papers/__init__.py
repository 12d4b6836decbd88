"""The papers' printed tables as data: every number with its table, row and column.

One module a paper holds its tables as text laid out like the printed page, so that a person can hold them
against the PDF; this file reads them. Nothing here is measured by us, and nothing here imports torch.

A table's text has the header ``row | label | parameters | <column> | ...``. ``row`` is our row name, or ``-``
for a number that we only quote. A cell holds the number as printed, without its unit: ``-`` where the paper
leaves it out, ``/`` where it reports a failure, nothing where only a figure exists; ``≈`` marks a reading off
a figure.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from seqpyramid.papers import chang2017, chung2017, ma2020

Metric = Literal["accuracy", "mse", "bpc", "log_likelihood"]

_SCALES: Mapping[str, tuple[Metric, float]] = {
    "accuracy in %": ("accuracy", 0.01),
    "accuracy": ("accuracy", 1.0),
    "mse": ("mse", 1.0),
    "bpc": ("bpc", 1.0),
    "log_likelihood": ("log_likelihood", 1.0),
}
_UNITS = {"k": 1_000, "M": 1_000_000}
_HEADER = ["row", "label", "parameters"]


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One cell of a printed table."""

    paper: str
    table: str
    column: str
    row: str | None
    """Our row name; None for a number that is quoted only."""
    label: str
    """The row's name as printed."""
    metric: Metric
    value: float | None
    """Accuracy as a fraction, bpc in bits a character, log-likelihood in nats; None: no number is printed."""
    printed: str
    """The cell as printed ("96.0", "/"); "≈98.3" is read off a figure, "" means that only a figure exists."""
    parameters: int | None
    """What the printed count stands for: 42400 for "42.4K"."""
    parameters_printed: str | None
    note: str = ""
    """Known misprints and mismatches, or where the paper took the number from."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One paper and the cells of its tables, in printed order."""

    key: str
    title: str
    authors: str
    venue: str
    arxiv: str | None
    cells: tuple[Printed, ...]

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        """Table -> its columns, in printed order."""
        columns: dict[str, dict[str, None]] = {}
        for cell in self.cells:
            columns.setdefault(cell.table, {})[cell.column] = None
        return {table: tuple(names) for table, names in columns.items()}

    @property
    def short(self) -> str:
        """First author's surname and the year: "Ma et al. 2020"."""
        surname = self.authors.split(",")[0].split()[-1]
        return f"{surname} et al. {self.venue.split()[-1]}"


def count(printed: str) -> int:
    """Return what a printed parameter count stands for.

    >>> count("42.4K"), count("4.25M"), count("68k")
    (42400, 4250000, 68000)
    """
    unit = printed[-1].replace("K", "k")
    return round(float(printed[:-1]) * _UNITS[unit])


def parse(
    paper: str,
    table: str,
    scale: str,
    text: str,
    notes: Mapping[tuple[str, str, str], str],
) -> Iterator[Printed]:
    """Read one table's text, row by row.

    Args:
        paper: key of the paper.
        table: its name as printed ("Table 1").
        scale: a key of the scales: what the cells' numbers measure, and in which unit.
        text: the table; see the module's docstring.
        notes: (table, column, label) -> note; ``*`` stands for every column, or for every label.

    >>> text = "row | label | parameters | A\\nlstm | LSTM | 2K | 96.0"
    >>> [(cell.row, cell.value, cell.parameters) for cell in parse("x", "Table 1", "accuracy in %", text, {})]
    [('lstm', 0.96, 2000)]
    """
    metric, factor = _SCALES[scale]
    header, *rows = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    if header[:3] != _HEADER:
        raise ValueError(f"{paper}, {table}: the header must begin with {' | '.join(_HEADER)}")
    for row, label, parameters, *cells in rows:
        for column, printed in zip(header[3:], cells, strict=True):
            known = parameters not in ("-", "")
            said = [notes[key] for key in _note_keys(table, column, label) if key in notes]
            yield Printed(
                paper=paper,
                table=table,
                column=column,
                row=None if row == "-" else row,
                label=label,
                metric=metric,
                # rounding undoes the binary error of the scaling: 95.7 % is 0.957
                value=None
                if printed in ("-", "/", "")
                else round(float(printed.removeprefix("≈")) * factor, 6),
                printed=printed,
                parameters=count(parameters) if known else None,
                parameters_printed=parameters if known else None,
                note="; ".join(said),
            )


def _note_keys(table: str, column: str, label: str) -> list[tuple[str, str, str]]:
    return [(table, column, label), (table, "*", label), (table, column, "*"), (table, "*", "*")]


PAPERS: Mapping[str, Paper] = MappingProxyType(
    {
        module.KEY: Paper(
            key=module.KEY,
            title=module.TITLE,
            authors=module.AUTHORS,
            venue=module.VENUE,
            arxiv=module.ARXIV,
            cells=tuple(
                cell
                for table, scale, text in module.TABLES
                for cell in parse(module.KEY, table, scale, text, module.NOTES)
            ),
        )
        for module in (ma2020, chang2017, chung2017)
    }
)


def papers() -> list[Paper]:
    """Return the papers, newest first."""
    return list(PAPERS.values())


def printed(paper: str, table: str, column: str) -> list[Printed]:
    """Return one printed column from top to bottom; empty where the papers hold no such column."""
    if paper not in PAPERS:
        return []
    return [cell for cell in PAPERS[paper].cells if (cell.table, cell.column) == (table, column)]


def lookup(paper: str, table: str, column: str, row: str) -> Printed | None:
    """Return the cell printed for our row, or None."""
    return next((cell for cell in printed(paper, table, column) if cell.row == row), None)


def missing(paper: str, table: str, column: str) -> str:
    """Say in one sentence what is not known of a reference to a printed column; "" where all is known.

    >>> missing("ma2020", "Table 1", "pmnist")
    "paper 'ma2020' prints no column 'pmnist' in 'Table 1' (printed there: MNIST, pMNIST)"
    """
    if paper not in PAPERS:
        return f"no printed tables of a paper {paper!r} are stored here (known: {', '.join(PAPERS)})"
    tables = PAPERS[paper].tables
    if table not in tables:
        return f"no table {table!r} of paper {paper!r} is stored here (known: {', '.join(tables)})"
    if column not in tables[table]:
        known = ", ".join(tables[table])
        return f"paper {paper!r} prints no column {column!r} in {table!r} (printed there: {known})"
    return ""
