"""The commands as a user types them: real files, real runs of a tiny recipe, exit codes and what is printed."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from seqpyramid.cli import app, parse_seeds
from seqpyramid.errors import EXIT_CODES, RecipeError
from seqpyramid.rundir import RunDir
from tests.kernels import LEVELS, needs_kernels

TINY = """
title: tiny digits
paper: {paper: ma2020, table: Table 1, column: pMNIST}
task: {name: digits}
train: {lr: 1e-2, batch_size: 100, max_steps: 12, eval_every: 6}
models:
  lstm_s: {name: lstm, hidden_size: 4}
  tp_rnn_s: {name: tp_rnn, hidden_size: 4, pyramid_length: [16], granularity: [4]}
model: tp_rnn_s
sources: {train.lr: "a trial"}
"""


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)  # type: ignore[no-any-return]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQPYRAMID_DATA", str(tmp_path / "data"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def run(*args: object) -> Result:
    found = CliRunner().invoke(app, [str(arg) for arg in args])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Result(found.exit_code, found.stdout, found.stderr)


def test_train_prints_one_json_object_with_the_promised_keys(place: Path) -> None:
    found = run("train", "tiny.yaml", "--json").json
    assert {"parameters", "accuracy", "loss", "test", "validation", "seconds", "run"} <= set(found)
    assert found["run"] == "runs/tiny/tp_rnn_s/seed-0"
    assert 0 <= found["accuracy"] == found["test"]["accuracy"] <= 1
    assert (place / found["run"] / "result.json").exists()
    again = run("train", "tiny.yaml", "--json").json
    assert again == found


def test_rows_and_seeds_make_a_folder_each(place: Path) -> None:
    found = run("train", "tiny.yaml", "--model", "all", "--seeds", "0-1", "--json").json
    assert [r["run"] for r in found["runs"]] == [
        f"runs/tiny/{row}/seed-{n}" for row in ("lstm_s", "tp_rnn_s") for n in (0, 1)
    ]
    table = list(csv.DictReader(io.StringIO(run("compare", "--format", "csv").out)))
    assert {line["row"]: line["n"] for line in table} == {"lstm_s": "2", "tp_rnn_s": "2"}


def test_an_override_may_leave_another_row_behind(place: Path) -> None:
    """A dilation of 32 does not fit 20 steps, but the plain row does."""
    (place / "adding.yaml").write_text(
        TINY.replace(
            "{name: digits}", "{name: masked_addition, length: 100, train: 40, validation: 20, test: 20}"
        )
        .replace(
            "{name: tp_rnn, hidden_size: 4, pyramid_length: [16], granularity: [4]}",
            "{name: dilated_rnn, cell: elman, hidden_size: 3, layers: 6}",
        )
        .replace("paper: {paper: ma2020, table: Table 1, column: pMNIST}\n", "")
    )
    assert run("train", "adding.yaml", "task.length=20", "--model", "lstm_s", "--json").code == 0
    for args in (("train", "adding.yaml", "task.length=20"), ("validate", "adding.yaml", "task.length=20")):
        found = run(*args)
        assert found.code == 2
        assert "models.tp_rnn_s.layers" in found.err
        assert "has dilation 32" in found.err


def test_out_names_the_folder(place: Path) -> None:
    assert run("train", "tiny.yaml", "--out", "here", "--seed", "3", "--json").json["run"] == "here"
    assert json.loads((place / "here" / "result.json").read_text())["seed"] == 3
    assert (
        run("train", "tiny.yaml", "--out", "many", "--seeds", "1", "--json").json["run"]
        == "many/tp_rnn_s/seed-1"
    )


def test_overrides_mark_a_run_modified(place: Path) -> None:
    found = run("train", "tiny.yaml", "train.max_steps=6", "model.hidden_size=5", "--json").json
    assert found["modified"] == ["train.max_steps=6", "model.hidden_size=5"]
    assert found["steps"] == 6
    assert "not a reproduction" in run("compare", found["run"]).out


def test_the_table_on_the_screen_says_what_to_do_next(place: Path) -> None:
    out = run("train", "tiny.yaml").out
    for word in (
        "validation",
        "test",
        "params",
        "run: runs/tiny/tp_rnn_s/seed-0",
        "next: seqpyramid eval",
    ):
        assert word in out


def test_eval_writes_predictions_report_and_picture(place: Path) -> None:
    trained = run("train", "tiny.yaml", "--json").json
    found = run("eval", trained["run"], "--json").json
    assert found["accuracy"] == trained["accuracy"]
    assert found["test_accesses"] == 1
    lines = Path(found["predictions"]).read_text().splitlines()
    assert len(lines) == 1 + trained["data"]["splits"]["test"]
    right = sum(line.split(",")[1] == line.split(",")[2] for line in lines[1:])
    assert right / (len(lines) - 1) == pytest.approx(found["accuracy"])
    assert "precision" in Path(found["report"]).read_text()
    assert Path(found["confusion"]).read_bytes().startswith(b"\x89PNG")
    validation = run("eval", trained["run"], "--split", "validation", "--json").json
    assert validation["accuracy"] == pytest.approx(trained["validation"]["accuracy"])
    assert "accuracy" in run("eval", trained["run"]).out


def test_eval_of_a_regression_has_no_report(place: Path) -> None:
    text = TINY.replace(
        "task: {name: digits}",
        "task: {name: masked_addition, length: 20, train: 200, validation: 50, test: 50}",
    )
    Path("adding.yaml").write_text(
        text.replace("paper: {paper: ma2020, table: Table 1, column: pMNIST}", "paper: null")
    )
    trained = run("train", "adding.yaml", "--json").json
    assert trained["metric"] == "mse"
    assert trained["trivial"]["mse"] == pytest.approx(1 / 6)
    found = run("eval", trained["run"], "--json").json
    assert "report" not in found
    assert len(Path(found["predictions"]).read_text().splitlines()) == 51


def test_profile_says_parameters_flops_speed_memory(place: Path) -> None:
    found = run(
        "profile", "tiny.yaml", "--batch-size", "4", "--repeats", "1", "--json", "--gradients", "g.png"
    ).json
    assert found["flops"]["agrees"]
    assert found["parameters_printed"] == "42.4K"
    assert found["length"] == 64
    assert found["speed"]["train_sequences_per_second"] > 0
    memory, both = found["memory"], found["recompute"]
    assert memory["train_bytes"] > 0
    assert memory["kept_bytes_per_step"] == memory["kept_bytes"] / (4 * 64)
    if LEVELS:
        assert not both["chosen"]
        assert both["without"] == {key: memory[key] for key in ("train_bytes", "kept_bytes")}
        assert both["with"]["kept_bytes"] < memory["kept_bytes"] / 4
    else:
        assert both is None
    assert Path("g.png").read_bytes().startswith(b"\x89PNG")


@needs_kernels
def test_recomputation_is_asked_for_by_an_override_and_moves_no_number(place: Path) -> None:
    no = run("train", "tiny.yaml", "model.recompute=true", "--kernels", "plain", "--out", "2")
    assert (no.code, no.err.splitlines()[-1]) == (2, "error: model.recompute needs the compiled kernels (a CPU, "
        "precision fp32, --kernels not plain), which cannot run here; set it to false")  # fmt: skip
    results = [run("train", "tiny.yaml", *more, "--json", "--out", k).json
               for k, more in enumerate([(), ("model.recompute=true",)])]  # fmt: skip
    stored = [json.loads(Path(str(k), "result.json").read_text()) for k in range(2)]
    assert results[0]["test"] == results[1]["test"]
    assert stored[0]["fingerprint"] == stored[1]["fingerprint"]
    assert stored[1]["modified"] == []
    assert "recompute: true" in Path("1", "recipe.yaml").read_text()
    Path("irnn.yaml").write_text(TINY.replace("name: lstm,", "name: irnn,"))
    no = run("train", "irnn.yaml", "models.lstm_s.recompute=true")
    assert no.code == 2
    assert no.err == (
        "error: override: models.lstm_s.recompute: unknown key; it is an option of rnn, lstm, gru, tp_rnn and 2 "
        "more, not of irnn\n"
    )


@needs_kernels
def test_gates_in_16_bits_move_numbers_and_say_so(place: Path) -> None:
    found = run("train", "tiny.yaml", "model.gates_in_16_bits=true", "--json").json
    stored = json.loads(Path(found["run"], "result.json").read_text())
    assert stored["modified"] == ["model.gates_in_16_bits=true"]


def test_prepare_data_builds_once(place: Path) -> None:
    text = TINY.replace(
        "task: {name: digits}", "task: {name: masked_addition, length: 20, train: 20, validation: 5, test: 5}"
    )
    Path("adding.yaml").write_text(text)
    first, second = (run("prepare-data", "adding.yaml", "--json").json for _ in range(2))
    assert (first["built"], second["built"]) == (True, False)
    assert first["fingerprint"] == second["fingerprint"]
    assert Path(first["cache"]).exists()
    assert run("prepare-data", "adding.yaml", "--force", "--json").json["built"]
    assert "split_hash" in run("prepare-data", "adding.yaml").out


def test_list_validate_show(place: Path) -> None:
    found = run("list", "--json").json
    assert {"lstm", "tp_rnn"} <= set(found["models"])
    assert {"digits", "pixel_mnist"} <= set(found["tasks"])
    assert {"quickstart", "pmnist"} <= set(found["recipes"])
    assert all(found["models"].values())
    assert set(run("list", "tasks", "--json").json) == {"tasks"}
    assert run("validate", *found["recipes"], "--json").json["valid"]
    shown = run("show", "tiny.yaml", "--json").json["fields"]
    assert shown["train.lr"] == {"value": 0.01, "source": "a trial"}
    assert shown["train.batch_size"]["source"] == "assumed"
    only = run("show", "tiny.yaml", "--model", "lstm_s", "--json").json["fields"]
    assert not any(path.startswith("models.tp_rnn_s") for path in only)
    assert run("show", "tiny.yaml", "--schema").json["type"] == "object"


@pytest.mark.parametrize("style", ["terminal", "markdown", "latex", "csv", "json", "html"])
def test_compare_in_every_format(place: Path, style: str) -> None:
    run("train", "tiny.yaml", "--model", "all")
    out = run("compare", "--format", style).out
    # the terminal wraps a long name; the words themselves are the same
    assert "tp_rnn_s" in out.replace("\\_", "_")
    assert "96.0" in out or "0.96" in out  # the paper's number
    if style != "terminal":
        run("compare", "--format", style, "--output", f"table.{style}")
        assert Path(f"table.{style}").read_text().rstrip("\n") == out.rstrip("\n")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("train", "tiny.yaml", "train.lrr=1"), 2, "did you mean 'lr'"),
        (("train", "tiny.yaml", "train.lr=.nan"), 2, "not a finite number"),
        (("train", "tiny.yaml", "--model", "tp_rn_s"), 2, "did you mean 'tp_rnn_s'"),
        (("train", "tiny.yaml", "model=nothing"), 2, "no row is called 'nothing'"),
        (("train", "nosuch.yaml"), 2, "nosuch.yaml"),
        (("train", "quickstar"), 2, "did you mean 'quickstart'"),
        (("train", "tiny.yaml", "--seeds", "3-x"), 2, "not a list of seeds"),
        (("train", "tiny.yaml", "--seed", "1", "--seeds", "1,2"), 2, "exclude each other"),
        (("train", "tiny.yaml", "--device", "abacus"), 2, "no such device"),
        (
            ("train", "tiny.yaml", "models.tp_rnn_s.pyramid_length=[65]"),
            2,
            "longer than the task's sequences",
        ),
        (("train", "pmnist", "--offline"), 3, "--source"),
        (("train", "tiny.yaml", "--source", "nowhere"), 3, "no such folder"),
        (("train", "tiny.yaml", "--out", "tiny.yaml/run"), 6, "cannot write here"),
        (("eval", "nowhere"), 2, "no run here"),
        (("compare", "nowhere"), 2, "nowhere"),
        (("validate",), 2, ""),
        (("validate", "train.lr=3"), 2, "no recipe among the arguments"),
        (("profile", "tiny.yaml", "--length", "0"), 2, ""),
        (("train", "tiny.yaml", "train.lr=1e38", "train.optimizer=sgd"), 4, "diverged at step"),
    ],
)
def test_bad_input_gets_a_sentence_and_its_code(
    place: Path, args: tuple[str, ...], code: int, says: str
) -> None:
    found = run(*args)
    assert found.code == code
    assert found.code in EXIT_CODES
    assert says in found.err.replace("\n", " ")
    assert "Traceback" not in found.err
    assert found.out == ""


def test_errors_are_json_too_where_asked(place: Path) -> None:
    found = run("train", "tiny.yaml", "train.lrr=1", "--json")
    assert found.json["exit_code"] == found.code == 2
    assert "lrr" in found.json["error"]


@pytest.mark.parametrize(
    "args", [("train", "--sed", "1"), ("sample", "run", "--steps", "0"), ("no-command",), ("eval",)]
)
def test_what_the_parser_refuses_is_json_too(place: Path, args: tuple[str, ...]) -> None:
    found = run(*args, "--json")
    assert found.json["exit_code"] == found.code == 2
    assert found.json["error"]
    assert run(*args).out == ""


def test_commands_to_type_next_are_quoted(place: Path) -> None:
    assert "seqpyramid eval 'a b'\n" in run("train", "tiny.yaml", "--out", "a b").out


def test_a_damaged_checkpoint_is_refused(place: Path) -> None:
    folder = Path(run("train", "tiny.yaml", "--json").json["run"])
    best = folder / "checkpoints" / "best.pt"
    raw = bytearray(best.read_bytes())
    raw[len(raw) // 2] ^= 16
    best.write_bytes(raw)
    found = run("eval", folder)
    assert (found.code, "damaged" in found.err) == (5, True)


def test_an_unfinished_run_keeps_its_test_split(place: Path) -> None:
    folder = Path(run("train", "tiny.yaml", "--json").json["run"])
    (folder / "result.json").unlink()
    assert "has not ended" in run("eval", folder).err
    assert run("eval", folder, "--split", "validation", "--json").json["test_accesses"] == 1


def test_parse_seeds_refuses_doubles() -> None:
    with pytest.raises(RecipeError, match="every seed once"):
        parse_seeds("1,0-2")


# --- real processes -------------------------------------------------------------------------------------------------


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "seqpyramid.cli", *args]


def wait_for(path: Path, process: subprocess.Popen[str], lines: int) -> None:
    """Until a file has some lines; the process must be alive all the while."""
    until = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_continues(place: Path, number: signal.Signals) -> None:
    args = ("train", "tiny.yaml", "train.max_steps=400", "train.eval_every=10", "--out", "run", "--json")
    process = subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(place / "run" / "metrics.jsonl", process, 4)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert re.search(r"saved step \d+", err)
    assert json.loads(out)["exit_code"] == 128 + number
    found = run(*args)
    assert "continuing at step" in found.err
    assert found.json["steps"] == 400
    records = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "validation"] == list(range(10, 401, 10))


SPEECH = """
title: tiny speech
task: {name: audio_folder, path: sounds, features: {kind: mfcc}, workers: 2}
train: {lr: 1e-2, batch_size: 100, max_steps: 2}
models:
  lstm_s: {name: lstm, hidden_size: 4}
model: lstm_s
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("name", "number"),
    [("prepare-data", signal.SIGINT), ("prepare-data", signal.SIGTERM), ("train", signal.SIGTERM)],
)
def test_a_signal_ends_a_build_in_one_sentence(place: Path, name: str, number: signal.Signals) -> None:
    (place / "speech.yaml").write_text(SPEECH)
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 8000)
    for label in ("cat", "dog"):
        (place / "sounds" / label).mkdir(parents=True)
        soundfile.write(place / "sounds" / label / "0.wav", sound, 8000)
        for other in range(1, 1000):
            os.link(place / "sounds" / label / "0.wav", place / "sounds" / label / f"{other}.wav")
    process = subprocess.Popen(
        command(name, "speech.yaml", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    journals = place / "data" / "caches"
    while not list(journals.glob(".*.spool/journal.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    wait_for(next(journals.glob(".*.spool/journal.jsonl")), process, 40)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert json.loads(out)["exit_code"] == 128 + number
    assert err.startswith(f"error: stopped by {number.name}; nothing is half-written")
    assert err.count("\n") == 1
    assert not list(journals.glob("*.h5"))
    assert list(journals.glob(".*.spool/journal.jsonl"))


def test_a_run_folder_has_one_user_at_a_time(place: Path) -> None:
    with RunDir(place / "run").lock():
        found = run("train", "tiny.yaml", "--out", "run")
    assert found.code == 6
    assert "another process" in found.err


def test_killed_without_warning_it_continues_too(place: Path) -> None:
    args = ("train", "tiny.yaml", "train.max_steps=300", "train.eval_every=10", "--json")
    process = subprocess.Popen(
        command(*args, "--out", "a"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(place / "a" / "metrics.jsonl", process, 6)
    process.kill()
    process.communicate()
    found = [run(*args, "--out", folder) for folder in "ab"]
    assert [(one.code, one.err) for one in found if one.code] == []
    continued, whole = (one.json for one in found)
    for key in ("test", "validation", "best", "checkpoint"):
        assert continued[key] == whole[key], key


def test_the_reader_may_leave_early(place: Path) -> None:
    with subprocess.Popen(command("list"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 0


def test_help_names_every_command() -> None:
    env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    found = subprocess.run(command("--help"), capture_output=True, text=True, check=True, env=env)
    for name in (
        "prepare-data",
        "init",
        "train",
        "eval",
        "predict",
        "sample",
        "profile",
        "compare",
        "list",
        "validate",
        "show",
    ):
        assert f" {name} " in found.stdout


OPTIONS = {
    "train": "data-dir device force help json kernels model offline out resume seed seeds source tensorboard threads",
    "eval": "again data-dir device help json kernels offline source split threads",
    "prepare-data": "data-dir force help json offline picture source",
    "profile": "batch-size data-dir device gradients help json kernels length model offline repeats source threads",
    "predict": "device help json kernels output threads",
    "sample": "count device help json kernels output prime seed steps stop temperature threads",
    "init": "data-dir force help json label-pattern output",
    "compare": "format help json literature output",
    "list": "help json",
    "validate": "help json",
    "show": "help json model schema",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_frozen(name: str) -> None:
    """Scripts rely on these; adding one is a decision, so it is made here too."""
    env = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    out = CliRunner().invoke(app, [name, "--help"], env=env).output
    assert sorted(set(re.findall(r"--([a-z][a-z-]*)", out.split("Options", 1)[1]))) == OPTIONS[name].split()
