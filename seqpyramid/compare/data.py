"""Everything of a comparison as plain nested values, and as JSON."""

import json
import math
from typing import Any

from seqpyramid.compare.statistics import Summary, TTest
from seqpyramid.compare.tables import Comparison, Row
from seqpyramid.papers import Printed


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


def to_json(tables: Comparison) -> str:
    """Write :func:`to_data` as JSON."""
    return json.dumps(to_data(tables), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
