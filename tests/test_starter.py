"""``init``, ``predict`` and ``sample``: from a folder of the user's own to an answer, through real commands."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from seqpyramid import starter
from seqpyramid.errors import DataError
from seqpyramid.recipe import load

from .test_cli import run

SHORT = ("train.epochs=2", "train.patience=null", "--model", "lstm_s", "--threads", "1")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQPYRAMID_DATA", str(tmp_path / "data"))
    return tmp_path


def write_arrays(path: Path, n: int = 60, length: int = 30) -> None:
    """Slow and fast waves: easy to tell apart."""
    draw = np.random.default_rng(0)
    y = np.arange(n) % 2
    time = np.arange(length)
    x = np.sin(time * np.where(y == 0, 0.2, 1.5)[:, None] + draw.uniform(0, 6, (n, 1)))
    np.savez(path, x=x[:, :, None].astype(np.float32), y=np.array(["slow", "fast"])[y])


def write_recordings(folder: Path, per_class: int = 10) -> None:
    draw = np.random.default_rng(1)
    for name, pitch in (("low", 200.0), ("high", 900.0)):
        (folder / name).mkdir(parents=True)
        for k in range(per_class):
            time = np.arange(2400 + 160 * k) / 8000
            sound = 0.5 * np.sin(2 * np.pi * pitch * time) + 0.05 * draw.standard_normal(len(time))
            soundfile.write(folder / name / f"{k}.wav", sound, 8000)


@pytest.mark.parametrize("time", [1, 3, 4, 29, 100, 784, 1000, 5400])
def test_the_papers_rule(time: int) -> None:
    sizes = starter.pyramid(time, 3)
    steps = time
    for length, g in sizes:
        assert length == g * g
        assert steps / length <= starter.MOST_PYRAMIDS
        assert g == 2 or steps / (g - 1) ** 2 > starter.MOST_PYRAMIDS  # no smaller g would do
        steps //= g
    assert len(sizes) == 3 or steps < 4


def test_arrays_from_init_to_predict(place: Path) -> None:
    write_arrays(place / "waves.npz")
    found = run("init", "waves.npz", "--json").json
    assert (found["recipe"], found["longest"], found["features"], found["outputs"]) == (
        "waves.yaml",
        30,
        1,
        2,
    )
    recipe = load("./waves.yaml")
    assert set(recipe.models) == {"lstm_s", "lstm_m", "tp_rnn_s", "tp_rnn_m", "dilated_lstm", "min_gru"}
    trained = run("train", "waves.yaml", *SHORT, "--json").json
    (place / "waves.npz").rename(place / "moved.npz")  # a prediction needs the run alone
    write_arrays(place / "new.npz", n=6)
    out = run("predict", trained["run"], "new.npz").out
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["name"] for row in rows] == [f"new.npz[{k}]" for k in range(6)]
    for row in rows:
        chances = {name: float(row[f"p({name})"]) for name in ("slow", "fast")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == max(chances, key=lambda name: chances[name])


def test_predictions_are_those_of_the_evaluation(place: Path) -> None:
    write_arrays(place / "waves.npz")
    run("init", "waves.npz")
    trained = run("train", "waves.yaml", *SHORT, "--json").json
    everything = run("predict", trained["run"], "waves.npz", "--json").json["predictions"]
    with (place / trained["run"] / "predictions-test.csv").open() as stream:
        test = list(csv.DictReader(stream))
    ours = {tuple(round(p, 4) for p in row["probabilities"].values()) for row in everything}
    assert len(test) == trained["data"]["splits"]["test"]
    for row in test:
        assert tuple(round(float(row[f"p({name})"]), 4) for name in ("fast", "slow")) in ours


def test_a_damaged_file_is_named_and_the_others_are_answered(place: Path) -> None:
    write_recordings(place / "tones")
    found = run("init", "tones", "--json")
    assert found.code == 0, found.err
    assert found.json["task"] == "audio_folder"
    trained = run("train", "tones.yaml", *SHORT, "task.workers=1", "--json")
    assert trained.code == 0, trained.err
    good, bad = place / "tones" / "low" / "3.wav", place / "bad.wav"
    bad.write_bytes(good.read_bytes()[:1000])
    found = run("predict", trained.json["run"], bad, good, place / "none.wav")
    assert found.code == 3
    assert [row["name"] for row in csv.DictReader(io.StringIO(found.out))] == [str(good)]
    assert found.err.count("error:") == 2
    assert "bad.wav" in found.err
    assert "none.wav" in found.err
    found = run("predict", trained.json["run"], place / "tones" / "low")
    assert found.code == 3
    assert "low: is a folder; name the files in it" in found.err


def test_text_from_init_to_sample(place: Path) -> None:
    (place / "verse.txt").write_text("the cat sat on the mat and the rat sat on the cat\n" * 120)
    found = run("init", "verse.txt", "--json")
    assert found.code == 0, found.err
    small = ("model.hidden_size=16", "train.max_steps=4", "train.eval_every=2", "--model", "lstm")
    trained = run("train", "verse.yaml", *small, "--json").json
    assert trained["metric"] == "bpc"
    one, again, other = (
        run("sample", trained["run"], "--steps", "40", "--seed", seed, "--prime", "the ", "--json").json[
            "samples"
        ]
        for seed in (1, 1, 2)
    )
    assert one == again != other
    assert set(one[0]["text"]) <= set("the cat sat on the mat and the rat sat on the cat\n")
    stopped = run(
        "sample", trained["run"], "--steps", "400", "--stop", "a", "--temperature", "2", "--json"
    ).json
    assert stopped["samples"][0]["ended"]
    refused = run("sample", trained["run"], "--prime", "Ж")
    assert refused.code == 2 or refused.code == 3
    assert "Ж" in refused.err


def test_sampling_a_classifier_is_explained(place: Path) -> None:
    write_arrays(place / "waves.npz")
    run("init", "waves.npz")
    trained = run("train", "waves.yaml", *SHORT, "--json").json
    found = run("sample", trained["run"])
    assert found.code == 2
    assert "cannot draw" in found.err


def test_predicting_for_a_task_without_files_is_explained(place: Path) -> None:
    (place / "r.yaml").write_text(
        "title: digits\ntask: {name: digits}\ntrain: {lr: 1e-2, batch_size: 200, max_steps: 2}\n"
        "models: {a: {name: lstm, hidden_size: 3}}\nmodel: a\n"
    )
    trained = run("train", "r.yaml", "--json").json
    found = run("predict", trained["run"], "r.yaml")
    assert found.code == 3
    assert "reads no files" in found.err


def test_what_init_cannot_decide(place: Path) -> None:
    for name, content in (("empty", None), ("wav48", None), ("flat", "x.wav"), ("odd", "a.pdf")):
        (place / name).mkdir()
        if content:
            (place / name / content).write_bytes(b"?")
    (place / "images").mkdir()
    (place / "images" / "train-images-idx3-ubyte.gz").write_bytes(b"?")
    (place / "two texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (place / "two texts" / name).write_text("?")
    (place / "vctk" / "wav48").mkdir(parents=True)
    (place / "newer" / "wav48_silence_trimmed").mkdir(parents=True)
    for folder, words in (
        ("nowhere", "nothing here"),
        ("empty", "found: nothing"),
        ("flat", "--label-pattern"),
        ("odd", "found: .pdf"),
        ("images", "seqpyramid train pmnist --source images\n"),
        ("two texts", "a folder of texts (a.txt, b.txt); give one of them"),
        (os.devnull, "neither a file nor a folder"),
        ("vctk", "seqpyramid train vctk_mfcc --source vctk\n"),
        ("newer", "--source newer task.version=0.92 task.microphone=mic1\n"),
    ):
        found = run("init", folder)
        assert found.code == 3, folder
        assert words in found.err, found.err
        assert found.err.count("error:") == 1
    task = load("vctk_mfcc", overrides=["task.version=0.92", "task.microphone=mic1"]).task.model_dump()
    assert (task["version"], task["microphone"]) == ("0.92", "mic1")


def test_a_recipe_is_not_overwritten(place: Path) -> None:
    write_arrays(place / "waves.npz")
    assert run("init", "waves.npz").code == 0
    (place / "waves.yaml").write_text("mine")
    found = run("init", "waves.npz")
    assert found.code == 2
    assert (place / "waves.yaml").read_text() == "mine"
    assert run("init", "waves.npz", "--force").code == 0


def test_other_data_is_not_continued_on(place: Path) -> None:
    """A run that began on other data is refused, and its folder stays as it is."""
    write_arrays(place / "waves.npz")
    run("init", "waves.npz")
    trained = run("train", "waves.yaml", *SHORT, "--json").json
    folder = place / trained["run"]
    (folder / "result.json").unlink()  # as if it had been stopped before its end
    write_arrays(place / "waves.npz", n=80)
    found = run("train", "waves.yaml", *SHORT)
    assert found.code == 3
    assert "not what this run began with" in found.err
    assert json.loads((folder / "provenance.json").read_text())["data"]["splits"] == trained["data"]["splits"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("a_TRAIN.ts", "a_TEST.ts"), {"name": "series", "dataset": "a"}),
        (("a_TRAIN.tsv", "a_TEST.tsv"), {"name": "series", "dataset": "a"}),
        (("up/1.csv", "down/1.csv"), {"name": "series", "format": "csv"}),
        (("up/1.wav", "down/1.flac"), {"name": "audio_folder"}),
        (("x.h5",), {"name": "series"}),
        (("x.txt", "notes.md"), {"name": "char_lm"}),
    ],
)
def test_what_a_folder_is_taken_for(tmp_path: Path, files: tuple[str, ...], expected: dict[str, str]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = starter.look(tmp_path).task
    assert expected.items() <= found.items()


def test_a_folder_of_sets_asks_for_one(tmp_path: Path) -> None:
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_TRAIN.ts").write_text("")
    with pytest.raises(DataError, match=r"folder of data sets \(A, B\)"):
        starter.look(tmp_path)
