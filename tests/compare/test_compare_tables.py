"""Collecting, grouping and rendering, over real result files."""

import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from seqpyramid.compare import (
    build_tables,
    collect,
    to_csv,
    to_data,
    to_html,
    to_json,
    to_latex,
    to_markdown,
    to_terminal,
)
from seqpyramid.compare.layout import lay_out, lay_out_pairs
from seqpyramid.compare.notation import Number
from seqpyramid.errors import IntegrityError, UserError
from seqpyramid.rundir import RESULT_FORMAT, RunDir, write_json

PMNIST = {"paper": "ma2020", "table": "Table 1", "column": "pMNIST"}
ADDING = {"paper": "ma2020", "table": "Figure 3", "column": "T=200"}


def write_run(
    root: Path, row: str = "tp_rnn_s", seed: int = 0, score: float | None = 0.96, **changes: Any
) -> Path:
    """Write the result file that a finished run leaves, and return its folder."""
    metric = changes.pop("metric", "accuracy")
    fingerprint = {"all": f"all-{row}", "task": "t" * 16, "train": "r" * 16, "model": f"model-{row:-<10}"}
    fingerprint |= changes.pop("fingerprint", {})
    folder = root / changes.pop("folder", f"{changes.get('recipe', 'pmnist')}/{row}/seed-{seed}")
    content: dict[str, Any] = {
        "format": RESULT_FORMAT,
        "status": "finished",
        "recipe": "pmnist",
        "row": row,
        "model": "tp_rnn",
        "task": "pixel_mnist",
        "seed": seed,
        "fingerprint": fingerprint,
        "modified": [],
        "paper": PMNIST,
        "parameters": 42_422,
        "metric": metric,
        "mode": "max" if metric == "accuracy" else "min",
        "validation": {"loss": 0.1, "count": 5_000, metric: 0.97},
        "test": None if score is None else {"loss": 0.1, "count": 10_000, metric: score},
        "trivial": {metric: 0.1135},
        "seconds": 412.0,
        "test_accesses": 1,
        "data": {"splits": {}, "split_hash": "abc", "fingerprint": "d" * 16, "details": {}},
        "environment": {"device": "cpu"},
    }
    write_json(RunDir(folder).result, content | changes)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds of one row, one of another."""
    for seed, score in enumerate((0.958, 0.961, 0.964)):
        write_run(tmp_path, "tp_rnn_s", seed, score)
    write_run(tmp_path, "lstm_s", 0, 0.915, parameters=41_810)
    return tmp_path


def only_block(path: Path, **options: bool) -> Any:
    (block,) = build_tables(collect([path]), **options).blocks
    return block


def row_of(block: Any, name: str) -> Any:
    (row,) = [row for row in block.rows if row.name == name]
    return row


def cells(block: Any, name: str) -> dict[str, str]:
    layout = lay_out(block)
    (line,) = [line for line in layout.lines if line.cells[0] == name]
    return dict(zip([column.key for column in layout.columns], line.cells, strict=True))


class TestCollect:
    def test_every_kind_of_path_reaches_the_same_results(self, runs: Path) -> None:
        assert len(collect([runs])) == 4
        assert [r.seed for r in collect([runs / "pmnist/tp_rnn_s"])] == [0, 1, 2]
        one = runs / "pmnist/lstm_s/seed-0"
        assert [r.row for r in collect([one])] == ["lstm_s"]
        assert [r.row for r in collect([str(RunDir(one).result)])] == ["lstm_s"]

    def test_overlapping_paths_and_links_read_a_file_once(self, runs: Path) -> None:
        (runs / "again").symlink_to(runs / "pmnist")
        (runs / "pmnist" / "loop").symlink_to(runs)
        results = collect([runs, runs / "pmnist/lstm_s/seed-0"])
        assert len(results) == 4
        assert build_tables(results).remarks == ()

    def test_reads_what_the_file_says(self, runs: Path) -> None:
        (result,) = collect([runs / "pmnist/lstm_s"])
        assert (result.recipe, result.row, result.parameters) == ("pmnist", "lstm_s", 41_810)
        assert result.test["accuracy"] == 0.915
        assert result.fingerprint.model == "model-lstm_s----"
        assert result.paper == ("ma2020", "Table 1", "pMNIST")

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", '{"format": 99}', "\x00\x01", "[" * 100_000],
        ids=["empty", "cut", "list", "future", "binary", "deep"],
    )
    def test_a_damaged_file_is_named_and_the_rest_is_read(self, runs: Path, text: str) -> None:
        damaged = RunDir(runs / "pmnist/hm_lstm/seed-0")
        damaged.path.mkdir(parents=True)
        damaged.result.write_text(text)
        results = collect([runs])
        assert len(results) == 4
        (problem,) = results.problems
        assert str(damaged.result) in problem
        assert problem in build_tables(results).remarks
        with pytest.raises(IntegrityError, match=re.escape(str(damaged.result))) as caught:
            collect([damaged.path])
        assert caught.value.code == 5

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("row", None),
            ("seed", 1.5),
            ("seed", True),
            ("fingerprint", {"all": "x"}),
            ("modified", "train.lr=1"),
            ("mode", "best"),
            ("parameters", "42K"),
            ("paper", {"paper": "ma2020"}),
            ("test", [0.9]),
        ],
    )
    def test_a_wrong_key_is_named(self, tmp_path: Path, key: str, value: Any) -> None:
        folder = write_run(tmp_path)
        file = RunDir(folder).result
        content = json.loads(file.read_text()) | {key: value}
        file.write_text(json.dumps(content))
        with pytest.raises(IntegrityError, match=f"{re.escape(str(file))}: {key}"):
            collect([tmp_path])

    def test_a_score_that_is_not_finite_is_refused(self, tmp_path: Path) -> None:
        file = RunDir(write_run(tmp_path)).result
        file.write_text(file.read_text().replace("0.96", "NaN"))
        with pytest.raises(IntegrityError, match=r"test\.accuracy"):
            collect([tmp_path])

    def test_unfinished_runs_are_counted_and_named(self, runs: Path) -> None:
        run = RunDir(runs / "pmnist/tp_rnn_m/seed-7")
        run.path.mkdir(parents=True)
        run.recipe.write_text("title: x\n")
        results = collect([runs])
        assert results.unfinished == [run.path]
        (warning,) = build_tables(results).remarks
        assert warning.startswith("1 unfinished")
        assert str(run.path) in warning
        with pytest.raises(UserError, match="no run has finished yet") as caught:
            collect([run.path])
        assert caught.value.code == 2

    def test_a_result_that_is_not_final_is_unfinished(self, runs: Path) -> None:
        folder = write_run(runs, "tp_rnn_m", status="stopped")
        results = collect([runs])
        assert len(results) == 4
        assert results.unfinished == [folder]

    def test_nothing_there_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="seqpyramid train"):
            collect([tmp_path])
        with pytest.raises(UserError, match="no such file or folder"):
            collect([tmp_path / "none"])


class TestBlocks:
    def test_mean_deviation_and_difference(self, runs: Path) -> None:
        row = row_of(only_block(runs), "tp_rnn_s")
        assert row.score.values == (0.958, 0.961, 0.964)
        assert row.score.mean == pytest.approx(0.961, abs=1e-15)
        assert row.score.sd == pytest.approx(0.003, abs=1e-15)
        assert row.difference == pytest.approx(0.961 - 0.960, abs=1e-12)
        assert cells(only_block(runs), "tp_rnn_s") == {
            "row": "tp_rnn_s",
            "label": "TP-RNN-S",
            "parameters": "42,422 / 42.4K",
            "score": "96.10 ± 0.30",
            "printed": "96.0",
            "difference": "+0.10",
            "validation": "97.00",
            "seconds": "412",
            "n": "3",
        }

    def test_one_seed_is_shown_as_one_seed(self, runs: Path) -> None:
        block = only_block(runs)
        assert row_of(block, "lstm_s").score.sd is None
        assert cells(block, "lstm_s")["score"] == "91.50 (one seed)"
        assert cells(block, "lstm_s")["n"] == "1"

    def test_a_small_test_split_gets_one_decimal(self, tmp_path: Path) -> None:
        write_run(tmp_path, test={"count": 360, "accuracy": 0.9615})
        assert cells(only_block(tmp_path), "tp_rnn_s")["score"] == "96.2 (one seed)"

    def test_rows_stand_in_the_papers_order(self, runs: Path) -> None:
        assert [row.name for row in only_block(runs).rows] == ["lstm_s", "tp_rnn_s"]

    @pytest.mark.parametrize("part", ["task", "train"])
    def test_another_protocol_is_another_block(self, runs: Path, part: str) -> None:
        write_run(runs, "tp_rnn_s", 3, 0.99, fingerprint={part: "0123456789abcdef"}, modified=[f"{part}.x=1"])
        first, second = build_tables(collect([runs])).blocks
        assert row_of(first, "tp_rnn_s").score.n == 3
        assert [row.score.n for row in second.rows] == [1]
        word = {"task": "task", "train": "training"}[part]
        assert f"({word} {part[0] if part == 'task' else 'r'}" in first.title
        assert "no overrides" in first.title
        assert f"({word} 01234567, overridden: {part}.x=1)" in second.title
        other = {"task": "training", "train": "task"}[part]
        assert f"{other} " not in second.title

    def test_overrides_of_the_model_do_not_describe_the_block(self, runs: Path) -> None:
        changes = ["train.x=1", "models.tp_rnn_s.y=2", "model.z=3"]
        write_run(runs, "tp_rnn_s", 3, 0.99, fingerprint={"train": "0123456789abcdef"}, modified=changes)
        block = build_tables(collect([runs])).blocks[1]
        assert block.title.endswith("overridden: train.x=1)")

    def test_another_recipe_is_another_block(self, runs: Path) -> None:
        write_run(runs, "tp_rnn_s", 0, 0.987, recipe="mnist", paper=PMNIST | {"column": "MNIST"})
        titles = [block.title for block in build_tables(collect([runs])).blocks]
        assert titles == ["mnist: Ma et al. 2020, Table 1, MNIST", "pmnist: Ma et al. 2020, Table 1, pMNIST"]

    def test_a_modified_row_is_marked_and_not_compared(self, runs: Path) -> None:
        change = "model.hidden_size=64"
        write_run(
            runs, "tp_rnn_s", 0, 0.95, folder="x", modified=[change], fingerprint={"model": "feedbeef" * 2}
        )
        block = only_block(runs)
        row = row_of(block, "tp_rnn_s [feedbeef]")
        assert row.difference is None
        assert row_of(block, "tp_rnn_s").score.n == 3
        shown = cells(block, "tp_rnn_s [feedbeef] †")
        assert (shown["printed"], shown["difference"]) == ("96.0", "–")
        assert any(change in note and "not a reproduction" in note for note in block.notes)
        data = to_data(build_tables(collect([runs])))["tables"][0]["rows"]
        assert [entry["modified"] for entry in data] == [[], [], [change]]

    def test_a_duplicate_seed_is_used_once_and_named(self, runs: Path) -> None:
        write_run(runs, "tp_rnn_s", 1, 0.5, folder="zz-again")
        tables = build_tables(collect([runs]))
        assert row_of(tables.blocks[0], "tp_rnn_s").score.values == (0.958, 0.961, 0.964)
        (warning,) = tables.warnings
        assert "zz-again" in warning
        assert "pmnist/tp_rnn_s/seed-1" in warning

    def test_test_accesses_show_only_when_not_one(self, runs: Path) -> None:
        assert "accesses" not in cells(only_block(runs), "tp_rnn_s")
        write_run(runs, "tp_rnn_m", 0, 0.967, test_accesses=4)
        block = only_block(runs)
        assert cells(block, "tp_rnn_m")["accesses"] == "4"
        assert cells(block, "tp_rnn_s")["accesses"] == "1, 1, 1"
        assert any("test accesses" in note for note in block.notes)

    def test_a_run_without_test_result_counts_no_score(self, runs: Path) -> None:
        write_run(runs, "tp_rnn_s", 3, None, test_accesses=0)
        write_run(runs, "hm_lstm", 0, None, test_accesses=0)
        block = only_block(runs)
        assert row_of(block, "tp_rnn_s").score.n == 3
        assert cells(block, "hm_lstm")["score"] == "–"
        assert any("1 of 4 runs without a test accuracy" in note for note in block.notes)
        assert "seed 3:" not in to_html(build_tables(collect([runs])))

    def test_different_data_are_told(self, runs: Path) -> None:
        assert not any("different data" in note for note in only_block(runs).notes)
        write_run(runs, "tp_rnn_m", 0, 0.967, data={"fingerprint": "e" * 16, "split_hash": "abc"})
        assert any("different data" in note and "eeeeeeee" in note for note in only_block(runs).notes)

    def test_an_unknown_printed_column_is_told(self, tmp_path: Path) -> None:
        write_run(tmp_path, paper=PMNIST | {"column": "pmnist"})
        block = only_block(tmp_path)
        assert row_of(block, "tp_rnn_s").printed is None
        assert any("prints no column 'pmnist'" in note for note in block.notes)

    def test_a_recipe_without_paper_has_no_printed_columns(self, tmp_path: Path) -> None:
        write_run(tmp_path, paper=None, recipe="own")
        block = only_block(tmp_path)
        assert block.title == "own"
        assert set(cells(block, "tp_rnn_s")) == {"row", "parameters", "score", "validation", "seconds", "n"}

    def test_literature_rows_only_on_demand(self, runs: Path) -> None:
        assert only_block(runs).literature == ()
        block = only_block(runs, literature=True)
        labels = [cell.label for cell in block.literature]
        assert len(labels) == 12
        assert "SAB" in labels
        assert "TP-RNN-S" not in labels
        lines = [line for line in lay_out(block).lines if line.kind == "literature"]
        assert lines[0].cells[:2] == ("irnn", "iRNN")
        misprint = next(line for line in lines if line.cells[1] == "uRNN")
        mark = re.search(r"94\.0 (\[\d+\])", " ".join(misprint.cells))
        assert mark
        assert any(note.startswith(mark[1]) and "91.4" in note for note in lay_out(block).notes)

    def test_an_error_is_better_when_lower(self, tmp_path: Path) -> None:
        for row, score in (("lstm_s", 0.16), ("tp_rnn_s", 0.0012345)):
            write_run(tmp_path, row, 0, score, recipe="adding_200", paper=ADDING, metric="mse")
        block = only_block(tmp_path)
        assert (block.metric, block.mode, block.best) == ("mse", "min", 0.0012345)
        assert [line.kind for line in lay_out(block).lines] == ["ours", "best"]
        shown = cells(block, "tp_rnn_s")
        assert shown["score"] == "0.001234 (one seed)" or shown["score"] == "0.001235 (one seed)"
        assert shown["printed"].startswith("– [")
        assert shown["difference"] == "–"
        assert "lower is better" in lay_out(block).notes[0]
        assert "logarithmic" in to_html(build_tables(collect([tmp_path])))

    def test_the_papers_metric_is_compared_where_the_run_has_it(self, tmp_path: Path) -> None:
        paper = {"paper": "chung2017", "table": "Table 2", "column": "text8"}
        write_run(
            tmp_path,
            "ln_hm_lstm",
            recipe="text8",
            paper=paper,
            metric="loss",
            test={"loss": 0.9, "bpc": 1.3, "count": 5},
        )
        block = only_block(tmp_path)
        assert (block.metric, block.mode) == ("bpc", "min")
        assert row_of(block, "ln_hm_lstm").difference == pytest.approx(0.01)
        assert cells(block, "ln_hm_lstm")["difference"] == "+0.010"

        write_run(tmp_path, metric="loss", test={"loss": 0.1, "accuracy": 0.97, "count": 5})
        block = next(b for b in build_tables(collect([tmp_path])).blocks if b.recipe == "pmnist")
        assert (block.metric, block.mode) == ("accuracy", "max")

    def test_printed_fractions_are_shown_in_our_unit(self, tmp_path: Path) -> None:
        paper = {"paper": "chang2017", "table": "Table 3", "column": "raw"}
        write_run(tmp_path, "dilated_gru_8", 0, 0.75, paper=paper)
        shown = cells(only_block(tmp_path), "dilated_gru_8")
        assert shown["printed"].split()[0] == "74"
        assert shown["difference"] == "+1.00"

    def test_pairs_of_rows(self, runs: Path) -> None:
        assert lay_out_pairs(only_block(runs)) is None
        for seed, score in ((1, 0.918), (2, 0.916), (5, 0.912)):
            write_run(runs, "lstm_s", seed, score)
        block = only_block(runs)
        (pair,) = block.pairs
        assert (pair.first, pair.second) == ("lstm_s", "tp_rnn_s")
        assert pair.difference == pytest.approx((0.915 + 0.918 + 0.916 + 0.912) / 4 - 0.961)
        assert pair.paired is not None
        assert pair.paired.n == 3
        expected = stats.ttest_rel([0.915, 0.918, 0.916], [0.958, 0.961, 0.964])
        assert pair.paired.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert pair.welch is not None
        assert pair.welch.p < 1e-4
        layout = lay_out_pairs(block)
        assert layout is not None
        assert layout.lines[0].cells == ("lstm_s − tp_rnn_s", "−4.57", "<0.0001", "0.0014", "3")

    def test_equal_seeds_have_no_p(self, tmp_path: Path) -> None:
        for row in ("lstm_s", "lstm_m"):
            for seed in range(3):
                write_run(tmp_path, row, seed, 0.1135)
        tables = build_tables(collect([tmp_path]))
        assert cells(tables.blocks[0], "lstm_s")["score"] == "11.35 ± 0.00"
        layout = lay_out_pairs(tables.blocks[0])
        assert layout is not None
        assert layout.lines[0].cells[1:4] == ("0.00", "–", "–")
        assert to_data(tables)["tables"][0]["pairs"][0]["welch"]["p"] is None


class TestRenderers:
    @pytest.fixture
    def nasty(self, tmp_path: Path) -> Path:
        """Every special character that a user can bring in, through an override."""
        write_run(
            tmp_path, "tp_rnn_s", 0, 0.95, modified=['models.tp_rnn_s.x="a|b & <i> 5% $x_1 {y} ~^\\, #"']
        )
        write_run(tmp_path, "lstm_s", 0, 0.9)
        return tmp_path

    def test_no_name_of_a_row_becomes_markup(self, tmp_path: Path) -> None:
        write_run(tmp_path, "<i>[bold]a|b_c", folder="x", paper=None)
        tables = build_tables(collect([tmp_path]))
        console = Console(file=io.StringIO(), width=100)
        to_terminal(tables, console)
        assert "<i>[bold]a|b_c" in console.file.getvalue()  # type: ignore[attr-defined]
        assert "<i>" not in to_html(tables)
        assert r"\<i\>\[bold\]a\|b\_c" in to_markdown(tables)
        assert r"$<$i$>$[bold]a\textbar{}b\_c" in to_latex(tables)

    def test_json_holds_raw_numbers(self, runs: Path) -> None:
        content = json.loads(to_json(build_tables(collect([runs]), literature=True)))
        (table,) = content["tables"]
        row = next(row for row in table["rows"] if row["row"] == "tp_rnn_s")
        assert table["recipe"] == "pmnist"
        assert row["label"] == "TP-RNN-S"
        assert row["accuracy"]["values"] == [0.958, 0.961, 0.964]
        assert (row["accuracy"]["n"], row["parameters"]) == (3, 42_422)
        assert row["accuracy"]["mean"] == pytest.approx(0.961)
        assert row["accuracy"]["sd"] == pytest.approx(0.003)
        paper = row["paper"]
        assert (paper["value"], paper["printed"], paper["table"], paper["column"]) == (
            0.96,
            "96.0",
            "Table 1",
            "pMNIST",
        )
        assert (row["modified"], row["test_accesses"]) == ([], [1, 1, 1])
        assert len(table["literature"]) == 12

    def test_csv_is_one_line_a_row_and_survives_commas(self, nasty: Path) -> None:
        lines = list(csv.DictReader(io.StringIO(to_csv(build_tables(collect([nasty]), literature=True)))))
        assert len(lines) == 14
        assert lines[0]["row"] == "lstm_s"
        assert float(lines[0]["mean"]) == 0.9
        assert (lines[0]["sd"], lines[0]["printed_parameters"]) == ("", "41800")
        assert float(lines[0]["difference"]) == pytest.approx(-0.013)
        assert lines[1]["modified"] == 'models.tp_rnn_s.x="a|b & <i> 5% $x_1 {y} ~^\\, #"'
        assert lines[1]["difference"] == ""
        assert (lines[2]["label"], lines[2]["printed_value"], lines[2]["n"]) == ("iRNN", "0.82", "")

    def test_markdown_tables_have_equal_columns(self, nasty: Path) -> None:
        text = to_markdown(build_tables(collect([nasty]), literature=True))
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) == 2 + 14
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {10}
        assert r"a\|b & \<i\>" in text
        assert r"| **95.00 (one seed)** |" in text

    def test_latex_leaves_no_special_character_bare(self, nasty: Path) -> None:
        text = to_latex(build_tables(collect([nasty]), literature=True))
        assert (
            r"a\textbar{}b \& $<$i$>$ 5\% \$x\_1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}, \#"
            in text
        )
        assert r"\toprule" in text
        assert r"tp\_rnn\_s $^{\dagger}$" in text
        body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 1 + 14
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {8}
        assert not re.search(r"(?<!\\)[_%#]", body)
        assert text.count("{") == text.count("}")
        assert all(ord(character) < 128 for character in body)

    @pytest.mark.parametrize("width", [80, 160])
    def test_terminal_prints_every_number(self, nasty: Path, width: int) -> None:
        console = Console(file=io.StringIO(), width=width)
        to_terminal(build_tables(collect([nasty]), literature=True), console)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, text.splitlines())) <= width
        for piece in ("lstm_s", "tp_rnn_s †", "90.00 (one seed)", "42,422 / 42.4K", "r-LSTM", "94.2"):
            assert piece in text
        assert "a|b & <i> 5%" in text
        assert ("TP-RNN-S" in text) is (width == 160)
        assert ("left out" in text) is (width == 80)

    def test_every_written_table_carries_the_warnings(self, runs: Path) -> None:
        write_run(runs, "tp_rnn_s", 1, 0.5, folder="zz-again")
        (runs / "damaged").mkdir()
        RunDir(runs / "damaged").result.write_text("{")
        tables = build_tables(collect([runs]))
        assert len(tables.warnings) == 1
        for text in (to_markdown(tables), to_latex(tables), to_html(tables), to_json(tables)):
            assert "zz-again" in text
            assert "damaged/result.json" in text

    def test_html_is_whole_and_self_contained(self, nasty: Path) -> None:
        text = to_html(build_tables(collect([nasty]), literature=True))
        page = _Page()
        page.feed(text)
        page.close()
        assert page.open == []
        assert page.cells == 14 * 9
        assert "<i>" not in text
        assert "a|b &amp; &lt;i&gt;" in text
        assert not re.search(r"https?:|url\(|@import|<script|<link|<img", text)
        assert "prefers-color-scheme" in text

    def test_plot_places_follow_the_numbers(self, runs: Path) -> None:
        text = to_html(build_tables(collect([runs])))
        dots = {
            seed: float(place)
            for place, seed in re.findall(r'cx="([\d.]+)%" cy="70" r="4.5">\s*<title>seed (\d)', text)
        }
        assert list(dots) == ["0", "1", "2"]
        assert dots["0"] < dots["1"] < dots["2"]
        assert dots["1"] - dots["0"] == pytest.approx(dots["2"] - dots["1"], abs=0.011)
        # 0.913 is printed for lstm_s and is the lowest value, 0.964 the highest: the ends of the axis
        assert dots["2"] == 96.0
        assert '<svg x="4.00%" y="30"' in text
        share = (0.960 - 0.913) / (0.964 - 0.913)
        assert f'<svg x="{4 + 92 * share:.2f}%" y="70"' in text

    def test_equal_values_still_make_a_plot(self, tmp_path: Path) -> None:
        write_run(tmp_path, paper=None, score=0.0)
        assert 'cx="50.00%"' in to_html(build_tables(collect([tmp_path])))


class _Page(HTMLParser):
    """Checks that tags close in order, and counts cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.cells += tag == "td"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_numbers_are_rounded_not_cut() -> None:
    number = Number("accuracy", 2)
    assert number.text(0.98719) == "98.72"
    assert number.signed(-0.00004) == "0.00"
    assert number.signed(0.0123) == "+1.23"


def test_comparing_needs_no_torch() -> None:
    code = "import sys, seqpyramid.compare; sys.exit('torch' in sys.modules or 'scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
