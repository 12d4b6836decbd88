"""One HTML page with the tables and a dot plot a block: no scripts, no fonts or pictures from elsewhere.

The plots are inline SVG whose places along the axis are percentages, so that they stretch with the page while text
and marks keep their size. The tables turn into cards on a phone and into plain lines on paper.
"""

import math
from collections.abc import Iterable
from html import escape

from seqpyramid.compare.layout import Layout, lay_out, lay_out_pairs, number_format
from seqpyramid.compare.notation import DAGGER, NOTHING, Number
from seqpyramid.compare.tables import Block, Comparison

_MARGIN = 4.0
"""Percent of the width kept free at both ends of the axis, so that end labels are not cut."""
_LANE = 40
_LOG_RATIO = 100
"""Errors spanning more than this ratio get a logarithmic axis."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6472; --line: #d5dae1; --page: #ffffff;
  --band: #f4f6f9; --ours: #1f6fb4; --paper: #c2410c; --warn: #92400e; --warn-back: #fef3c7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa4b2; --line: #37404d; --page: #14181f;
  --band: #1c222b; --ours: #6db3f2; --paper: #fb923c; --warn: #fcd34d; --warn-back: #3a2f10; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 68rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; } p { margin: .25rem 0; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; }
td { white-space: nowrap; }
th { font-weight: 600; font-size: .85rem; color: var(--soft); vertical-align: bottom;
  border-bottom: 2px solid var(--line); }
td { border-bottom: 1px solid var(--line); } .right { text-align: right; }
td:first-child { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .9em; }
tr.best td.score { font-weight: 700; } tr.literature td { color: var(--soft); }
ul { margin: .75rem 0 0; padding-left: 1.1rem; color: var(--soft); font-size: .85rem; }
.warnings { background: var(--warn-back); color: var(--warn); border-radius: .4rem; padding: .6rem 1rem; }
.warnings ul { color: inherit; margin-top: .25rem; overflow-wrap: anywhere; }
svg.plot { display: block; width: 100%; overflow: visible; margin: .75rem 0; font-size: 12px; }
svg text { fill: var(--soft); } svg .name { fill: var(--ink); font-size: 13px; }
svg .grid { stroke: var(--line); } svg .seed { fill: var(--ours); fill-opacity: .45; }
svg .mean { stroke: var(--ours); stroke-width: 3; } svg .printed { fill: var(--page); stroke: var(--paper);
  stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; color: var(--soft); }
.legend svg { width: 14px; height: 14px; vertical-align: -2px; margin-right: .35rem; }
@media (max-width: 64rem) { table { font-size: 13px; } th, td { padding: .3rem; } }
@media (max-width: 46rem) {
  table { font-size: inherit; }
  thead { display: none; } table, tbody, tr, td { display: block; }
  tr { border: 1px solid var(--line); border-radius: .4rem; margin: 0 0 .75rem; padding: .3rem .1rem; }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .2rem .7rem;
    white-space: normal; text-align: right; }
  td::before { content: attr(data-label); color: var(--soft); text-align: left; font-family: system-ui, sans-serif; }
  td:first-child { font-weight: 600; font-size: 1em; } td.empty { display: none; }
}
@media print { body { max-width: none; padding: 0; font-size: 10pt; } td, th { padding: .15rem .4rem; }
  td { white-space: normal; } section { break-inside: avoid; } .scroll { overflow: visible; } }
"""


def to_html(tables: Comparison) -> str:
    """Write the whole page."""
    title = "Results beside the printed numbers"
    recipes = ", ".join(dict.fromkeys(block.recipe for block in tables.blocks))
    body = [f"<h1>{title}</h1>", f'<p class="soft">{escape(recipes)}</p>', *_warnings(tables.remarks)]
    for block in tables.blocks:
        layout = lay_out(block)
        pairs = lay_out_pairs(block)
        body += [
            "<section>",
            f"<h2>{escape(layout.title)}</h2>",
            *_table(layout),
            *_plot(block),
            *_list(layout.notes),
            f'<p class="soft"><small>task {escape(block.task)} {escape(block.task_fingerprint)}, '
            f"training {escape(block.train_fingerprint)}</small></p>",
            "</section>",
        ]
        if pairs:
            body += [
                "<section>",
                "<h3>Differences between rows</h3>",
                *_table(pairs),
                *_list(pairs.notes),
                "</section>",
            ]
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            *head,
            "</head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def _warnings(warnings: tuple[str, ...]) -> Iterable[str]:
    if warnings:
        yield '<div class="warnings"><strong>Warnings</strong>'
        yield from _list(warnings)
        yield "</div>"


def _list(texts: Iterable[str]) -> Iterable[str]:
    yield "<ul>"
    for text in texts:
        yield f"<li>{escape(text)}</li>"
    yield "</ul>"


def _table(layout: Layout) -> Iterable[str]:
    yield '<div class="scroll"><table><thead><tr>'
    for column in layout.columns:
        yield f'<th scope="col" class="{column.align}">{escape(column.header)}</th>'
    yield "</tr></thead><tbody>"
    for line in layout.lines:
        yield f'<tr class="{line.kind}">'
        for column, cell in zip(layout.columns, line.cells, strict=True):
            kind = f"{column.key} {column.align}" + (" empty" if cell == NOTHING else "")
            yield f'<td class="{kind}" data-label="{escape(column.header)}">{escape(cell)}</td>'
        yield "</tr>"
    yield "</tbody></table></div>"


class _Axis:
    """Maps values to percent of the width, and chooses round ticks."""

    def __init__(self, values: list[float], *, log: bool) -> None:
        self.log = log
        places = [self._warp(value) for value in values]
        self.low, self.high = min(places), max(places)
        if self.low == self.high:
            room = abs(self.low) * 0.01 or 0.5
            self.low, self.high = self.low - room, self.high + room

    def _warp(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def place(self, value: float) -> float:
        share = (self._warp(value) - self.low) / (self.high - self.low)
        return _MARGIN + share * (100 - 2 * _MARGIN)

    def ticks(self) -> list[float]:
        """Return 2 to 7 round values inside the axis.

        >>> [round(tick, 2) for tick in _Axis([0.91, 0.99], log=False).ticks()]
        [0.92, 0.94, 0.96, 0.98]
        """
        if self.log:
            decades = range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)
            return [10.0**decade for decade in decades]
        rough = (self.high - self.low) / 5
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(
            factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * (1 - 1e-9)
        )
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [step * i for i in range(first, last + 1)]


def _plot(block: Block) -> Iterable[str]:
    """Draw a lane a row: each seed a dot, their mean a bar, the printed number a diamond."""
    rows = [row for row in block.rows if row.score]
    if not rows:
        return
    number = number_format(block)
    printed = {
        row.name: row.printed.value
        for row in rows
        if row.printed and row.printed.value is not None and row.printed.metric == block.metric
    }
    values = [value for row in rows if row.score for value in row.score.values] + list(printed.values())
    log = block.mode == "min" and min(values) > 0 and max(values) / min(values) > _LOG_RATIO
    axis = _Axis(values, log=log)
    bottom = len(rows) * _LANE + 8
    caption = f"test {block.metric}{' (%)' if number.unit else ''}{', logarithmic' if log else ''}"
    direction = "higher" if block.mode == "max" else "lower"
    yield f'<svg class="plot" height="{bottom + 38}" role="img" aria-label="{escape(caption)} of each row">'
    for tick in axis.ticks():
        x = axis.place(tick)
        yield f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="4" y2="{bottom}"/>'
        yield f'<text x="{x:.2f}%" y="{bottom + 15}" text-anchor="middle">{_tick(number, tick)}</text>'
    for place, row in enumerate(rows):
        y = place * _LANE + 30
        name = f"{row.name} {DAGGER}" if row.modified else row.name
        yield f'<text class="name" x="0" y="{y - 13}">{escape(name)}</text>'
        yield f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
        if row.name in printed:
            value = printed[row.name]
            yield f'<svg x="{axis.place(value):.2f}%" y="{y}" overflow="visible">{_DIAMOND}'
            yield f"<title>printed {number.text(value)}</title></svg>"
        if row.score:
            for result in row.results:
                if block.metric not in result.test:
                    continue
                value = result.test[block.metric]
                yield f'<circle class="seed" cx="{axis.place(value):.2f}%" cy="{y}" r="4.5">'
                yield f"<title>seed {result.seed}: {number.text(value)}</title></circle>"
            x = axis.place(row.score.mean)
            yield f'<line class="mean" x1="{x:.2f}%" x2="{x:.2f}%" y1="{y - 9}" y2="{y + 9}"/>'
    yield f'<text x="50%" y="{bottom + 34}" text-anchor="middle">{escape(caption)}, {direction} is better</text>'
    yield "</svg>"
    yield '<p class="legend">'
    yield '<span><svg viewBox="-7 -7 14 14"><circle class="seed" r="4.5"/></svg>ours, a seed each</span>'
    yield '<span><svg viewBox="-7 -7 14 14"><line class="mean" y1="-7" y2="7"/></svg>ours, mean</span>'
    if printed:
        yield f'<span><svg viewBox="-7 -7 14 14">{_DIAMOND}</svg>printed in the paper</span>'
    yield "</p>"


_DIAMOND = '<path class="printed" d="M0-6 6 0 0 6-6 0Z"/>'


def _tick(number: Number, tick: float) -> str:
    value = 100 * tick if number.unit else tick
    # ten digits hide the binary error of the step without hiding a step
    return f"{value:.10g}"
