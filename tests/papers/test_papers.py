"""The printed tables: every number belongs where it stands, and nothing is left over."""

import re
import subprocess
import sys

import pytest

from seqpyramid.papers import (
    PAPERS,
    Printed,
    chang2017,
    chung2017,
    lookup,
    ma2020,
    missing,
    papers,
    parse,
    printed,
)

CELLS = [cell for paper in papers() for cell in paper.cells]


@pytest.mark.parametrize(
    ("paper", "table", "column", "row", "value", "parameters"),
    [
        ("ma2020", "Table 1", "pMNIST", "tp_rnn_s", 0.960, 42_400),
        ("ma2020", "Table 1", "MNIST", "tp_rnn_m", 0.992, 234_000),
        ("ma2020", "Table 1", "pMNIST", "hm_lstm", 0.946, 353_000),
        ("ma2020", "Table 1", "MNIST", "irnn", 0.970, None),
        ("ma2020", "Table 2", "SFC", "dilated_lstm", 0.767, 239_000),
        ("ma2020", "Table 2", "STI", "tp_rnn_m", 1.0, 234_000),
        ("ma2020", "Table 3", "MFCC", "lstm_s", 0.923, 56_600),
        ("ma2020", "Table 3", "raw 1 kHz", "dilated_lstm", 0.907, 246_000),
        ("ma2020", "Table 3", "raw 1.5 kHz", "tp_rnn_m", 0.955, 245_000),
        ("ma2020", "Table 3", "raw 1 kHz", "lstm_m", None, 243_000),
        ("ma2020", "Table 4", "pMNIST", "tp_rnn_m_senet", 0.960, None),
        ("ma2020", "Table 5", "pMNIST", "tp_rnn_s_no_tdc", 0.955, None),
        ("ma2020", "Figure 3", "T=200", "dilated_lstm", None, 233_000),
        ("ma2020", "Figure 3", "T=1000", "dilated_lstm", None, 239_000),
        ("ma2020", "Supplementary Table 2", "raw 1 kHz", "dilated_lstm_8_1024", 0.765, None),
        ("ma2020", "Supplementary Figure 4", "T=3000", "tp_rnn_s", 0.984, None),
        ("chang2017", "Table 1", "pMNIST", "dilated_rnn_50", 0.961, 44_000),
        ("chang2017", "Table 2", "PTB", "dilated_gru", 1.27, 1_420_000),
        ("chang2017", "Table 3", "raw", "dilated_gru_8", 0.74, 133_000),
        ("chung2017", "Table 1", "PTB", "ln_hm_lstm", 1.24, None),
        ("chung2017", "Table 1", "enwik8", "ln_hm_lstm", 1.32, None),
        ("chung2017", "Table 2", "text8", "hm_lstm", 1.32, None),
        ("chung2017", "Table 3", "IAM-OnDB", "hm_lstm", 1137.0, None),
    ],
)
def test_known_cells(
    paper: str, table: str, column: str, row: str, value: float | None, parameters: int | None
) -> None:
    cell = lookup(paper, table, column, row)
    assert cell is not None
    assert (cell.value, cell.parameters) == (value, parameters)


def test_whole_columns() -> None:
    column = printed("ma2020", "Table 1", "pMNIST")
    assert [cell.printed for cell in column] == (
        [
            "82.0",
            "94.0",
            "94.0",
            "94.0",
            "94.2",
            "90.8",
            "95.2",
            "96.0",
            "91.3",
            "92.3",
            "94.6",
            "95.9",
            "96.0",
            "96.7",
        ]
    )
    assert [cell.label for cell in column if cell.row is None] == ["SAB", "ASLSTM", "r-LSTM"]
    column = printed("ma2020", "Table 3", "raw 1.5 kHz")
    assert [cell.printed for cell in column] == ["/", "/", "/", "89.8", "91.0", "95.5"]
    assert [len(printed("chang2017", "Table 1", name)) for name in ("MNIST", "pMNIST")] == [20, 20]


@pytest.mark.parametrize(
    "cell", CELLS, ids=lambda cell: f"{cell.paper}-{cell.table}-{cell.column}-{cell.label}"
)
def test_every_cell_is_sound(cell: Printed) -> None:
    digits = cell.printed.removeprefix("≈")
    if cell.value is None:
        assert digits in ("-", "/", "")
    elif cell.metric == "accuracy":
        assert 0 < cell.value <= 1
        scale = 1 if digits.startswith(".") else 100
        assert round(cell.value * scale, 9) == float(digits)
    else:
        assert cell.value == float(digits)
    assert cell.row is None or re.fullmatch(r"[a-z][a-z0-9_]*", cell.row)
    assert (cell.parameters is None) == (cell.parameters_printed is None)
    if cell.printed in ("", "/") or cell.printed.startswith("≈"):
        assert cell.note


def test_rows_are_unique_in_a_column() -> None:
    places = [(cell.paper, cell.table, cell.column, cell.row or cell.label) for cell in CELLS]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("module", [ma2020, chang2017, chung2017], ids=lambda module: module.KEY)
def test_every_note_meets_a_cell(module: object) -> None:
    notes = module.NOTES  # type: ignore[attr-defined]
    cells = PAPERS[module.KEY].cells  # type: ignore[attr-defined]
    for table, column, label in notes:
        assert any(
            cell.table == table and column in ("*", cell.column) and label in ("*", cell.label)
            for cell in cells
        ), (table, column, label)


def test_misprints_are_noted() -> None:
    bn_lstm = lookup("ma2020", "Table 1", "MNIST", "bn_lstm")
    urnn = lookup("ma2020", "Table 1", "pMNIST", "urnn")
    assert bn_lstm is not None
    assert "99.0" in bn_lstm.note
    assert urnn is not None
    assert "91.4" in urnn.note


def test_printed_counts_agree_with_counting() -> None:
    """Recompute LSTM counts from the equations: 4h(i + h + 1) a layer, hC + C for the classifier."""

    def lstm(inputs: int, hidden: int) -> int:
        return 4 * hidden * (inputs + hidden + 1)

    for column, inputs, classes in (("MFCC", 13, 109), ("raw 1 kHz", 1, 109)):
        dilated = lookup("ma2020", "Table 3", column, "dilated_lstm")
        single = lookup("ma2020", "Table 3", column, "lstm_s")
        assert single is not None
        assert single.parameters == pytest.approx(lstm(inputs, 100) + 101 * classes, abs=50)
        assert dilated is not None
        assert dilated.parameters == pytest.approx(
            lstm(inputs, 59) + 8 * lstm(59, 59) + 60 * classes, abs=500
        )


def test_what_is_not_there_is_said() -> None:
    assert missing("ma2020", "Table 1", "pMNIST") == ""
    assert "known: ma2020" in missing("ma2021", "Table 1", "pMNIST")
    assert "Table 3" in missing("ma2020", "Table 9", "pMNIST")
    assert "MNIST, pMNIST" in missing("ma2020", "Table 1", "pmnist")
    assert printed("ma2021", "Table 1", "pMNIST") == []
    assert lookup("ma2020", "Table 1", "pMNIST", "none") is None


@pytest.mark.parametrize(
    "text",
    [
        "row | label | A\nx | X | 1",
        "row | label | parameters | A\nx | X | 1K | 1 | 2",
        "row | label | parameters | A\nx | X | 1K | a",
    ],
    ids=["header", "cells", "number"],
)
def test_a_bad_table_does_not_load(text: str) -> None:
    with pytest.raises(ValueError):
        list(parse("p", "Table 1", "accuracy in %", text, {}))


def test_papers_need_no_torch() -> None:
    code = "import sys, seqpyramid.papers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
