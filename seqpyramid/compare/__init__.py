"""Tables of our results beside the papers' printed numbers. Reads result files only and never imports torch."""

from seqpyramid.compare.collect import PaperRef, Result, Results, collect
from seqpyramid.compare.data import to_data, to_json
from seqpyramid.compare.render import to_csv, to_latex, to_markdown, to_terminal
from seqpyramid.compare.report import to_html
from seqpyramid.compare.tables import Block, Comparison, Pair, Row, build_tables

__all__ = [
    "Block",
    "Comparison",
    "Pair",
    "PaperRef",
    "Result",
    "Results",
    "Row",
    "build_tables",
    "collect",
    "to_csv",
    "to_data",
    "to_html",
    "to_json",
    "to_latex",
    "to_markdown",
    "to_terminal",
]
