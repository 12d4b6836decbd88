"""The profile of an epoch: its arithmetic, and that it sees every part of the real training."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from seqpyramid.recipe import load
from seqpyramid.tasks.base import DataPlace

RECIPE = """
title: tiny
paper: null
task: {name: digits}
train: {lr: 1e-2, batch_size: 400, accumulate: 2, epochs: 1}
models:
  gru: {name: gru, hidden_size: 4}
model: gru
sources: {}
"""


@pytest.fixture
def epoch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return importlib.import_module("benchmarks.epoch")


def test_what_runs_inside_something_else_is_taken_out_of_it(epoch: ModuleType) -> None:
    now = 0.0
    settled = []
    watch = epoch.Stopwatch(clock=lambda: now, settle=lambda: settled.append(now))
    with watch.part("outer"):
        now = 1.0
        with watch.part("inner"):
            now = 3.0
            with watch.part("outer"):
                now = 3.5
        now = 7.0
        with watch.part("inner"):
            now = 7.25
    now = 100.0
    assert watch.seconds == {"outer": 1.0 + 0.5 + 3.5, "inner": 2.25}
    assert settled == [
        0.0,
        1.0,
        3.0,
        3.5,
        3.5,
        7.0,
        7.25,
        7.25,
    ]  # the device is idle at every look at the clock


def test_a_part_ends_with_an_exception(epoch: ModuleType) -> None:
    now = 0.0
    watch = epoch.Stopwatch(clock=lambda: now)

    def fail() -> None:
        nonlocal now
        with watch.part("inner"):
            now = 2.0
            raise ValueError("wrong")

    with watch.part("outer"):
        with pytest.raises(ValueError, match="wrong"):
            fail()
        now = 5.0
    assert watch.seconds == {"inner": 2.0, "outer": 3.0}


def profile(epoch: ModuleType) -> object:
    seconds = [3.0, 4.0, 1.0, 0.5, *[0.1] * len(epoch.STEP_PARTS), *[0.2] * len(epoch.AROUND)]
    names = [*epoch.INSIDE, epoch.VALIDATION_FORWARD, *epoch.STEP_PARTS, *epoch.AROUND]
    parts = dict(zip(names, seconds, strict=True))
    return epoch.EpochProfile(parts, steps=100, wall=10.0, clean_wall=9.5)


def test_shares_are_of_the_steps_and_of_the_epoch(epoch: ModuleType) -> None:
    found = profile(epoch)
    assert found.inside == 8.0
    assert found.share_of_steps == pytest.approx(8 / 8.5)
    assert found.share_of_epoch == pytest.approx(0.85)
    said = epoch.summary(found)
    assert "94.1% of the training steps' time" in said
    assert "85.0% of the epoch" in said
    assert "9.500 s, 95.0%" in said


def test_the_table_names_every_part(epoch: ModuleType) -> None:
    lines = epoch.table(profile(epoch)).splitlines()
    assert len(lines) == 2 + len(epoch.INSIDE) + 1 + len(epoch.STEP_PARTS) + len(epoch.AROUND) + 1
    assert lines[2] == "| forward and loss | 3.000 | 30.00% | 30.000 |"
    assert lines[6].startswith("| rest of the validation pass | 0.200 | 2.00% |")  # the largest of the rest
    assert lines[-1] == "| whole epoch | 10.000 | 100% | |"


def test_every_part_of_the_real_training_is_seen(epoch: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    plan = load(str(path)).plan("gru")
    task = plan.task.build()
    task.prepare(DataPlace(tmp_path / "data"))
    found = epoch.profile_epoch(plan, task, torch.device("cpu"), threads=1)
    names = {*epoch.INSIDE, epoch.VALIDATION_FORWARD, *epoch.STEP_PARTS, *epoch.AROUND}
    assert set(found.parts) == names
    assert all(seconds > 0 for seconds in found.parts.values())
    assert found.steps == -(-len(task.dataset("train")) // 400)
    assert 0.8 * found.wall < sum(found.parts.values()) <= found.wall  # nothing is missed or counted twice
    assert found.clean_wall > 0


def test_missing_data_ends_with_one_sentence(
    epoch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(epoch, "tune_process", lambda *_: None)  # it would change this process for good
    code = epoch.main(["--recipe", "pmnist", "--model", "lstm_s", "--data-dir", str(tmp_path)])
    assert code == 3
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
