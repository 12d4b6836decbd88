"""The user's own recordings: three ways to say what they are, their splits, and what may be wrong with them."""

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from seqpyramid.contracts import SPLITS
from seqpyramid.data.audio import read_sound
from seqpyramid.data.features import MfccFeatures, RawFeatures
from seqpyramid.errors import DataError, IntegrityError
from seqpyramid.tasks import speech
from seqpyramid.tasks.audio_folder import AudioFolder, AudioFolderConfig
from seqpyramid.tasks.base import DataPlace, Prepared

FSDD = Path(__file__).parents[2].parent / "shared" / "data" / "fsdd"
SPEAKERS = ("george", "jackson", "theo")
PATTERN = "(?P<group>[0-9])_(?P<label>[a-z]+)_[0-9]+"
RAW = {"kind": "raw", "sample_rate": 1000}
MFCC = {"kind": "mfcc"}
RATE = 8000


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            "real", marks=pytest.mark.skipif(not FSDD.is_dir(), reason="the shared recordings are not here")
        ),
        "twin",
    ],
)
def digits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten digits, two of each by three speakers, named as in the Free Spoken Digit Dataset."""
    folder = tmp_path_factory.mktemp("digits")
    draw = np.random.default_rng(0)
    for digit in range(10):
        for speaker in SPEAKERS:
            for index in range(2):
                name = f"{digit}_{speaker}_{index}.wav"
                if request.param == "real":
                    shutil.copy(FSDD / name, folder)
                else:
                    soundfile.write(folder / name, draw.uniform(-0.5, 0.5, draw.integers(900, 3000)), RATE)
    return folder


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes of ten recordings, a folder each."""
    folder = tmp_path / "source"
    draw = np.random.default_rng(1)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(10):
            soundfile.write(folder / label / f"{number}.wav", draw.uniform(-0.5, 0.5, 800), RATE)
    return folder


def prepared(root: Path, source: Path | None, **fields: object) -> tuple[AudioFolder, Prepared]:
    task = AudioFolderConfig(**{"features": RAW, "workers": 1, **fields}).build()
    return task, task.prepare(DataPlace(root / "data", source=source, offline=True))


def split_of(found: Prepared) -> dict[str, str]:
    assert found.path is not None
    lines = found.path.with_name(f"{found.path.stem}-split-{found.split_hash}.csv").read_text().splitlines()
    return {path: split for path, _, split in (line.split(",") for line in lines[1:])}


@pytest.mark.parametrize(("features", "extractor"), [(RAW, RawFeatures()), (MFCC, MfccFeatures())])
def test_names_say_who_speaks(
    digits: Path, tmp_path: Path, features: dict[str, object], extractor: RawFeatures | MfccFeatures
) -> None:
    task, found = prepared(tmp_path, digits, label_pattern=PATTERN, features=features)
    assert task.class_names == SPEAKERS
    assert found.details["class_counts"] == {
        "train": [14] * 3,
        "validation": [2] * 3,
        "test": [4] * 3,
    }
    where = split_of(found)
    for split in SPLITS:
        dataset = task.dataset(split)
        names = sorted(path for path, own in where.items() if own == split)
        for i, name in enumerate(names):
            assert np.array_equal(dataset[i].x.numpy(), extractor.extract(read_sound(digits / name)))
            assert SPEAKERS[int(dataset[i].y)] == name.split("_")[1]


def test_groups_stay_together(digits: Path, tmp_path: Path) -> None:
    """Digits, with whole speakers left for validation and test."""
    swapped = "(?P<label>[0-9])_(?P<group>[a-z]+)_[0-9]+"
    task, found = prepared(
        tmp_path, digits, label_pattern=swapped, split_by_group=True, proportions=(1, 1, 1)
    )
    assert task.class_names == tuple("0123456789")
    splits_of_speaker: dict[str, set[str]] = {speaker: set() for speaker in SPEAKERS}
    for path, split in split_of(found).items():
        splits_of_speaker[path.split("_")[1]].add(split)
    assert sorted(map(len, splits_of_speaker.values())) == [1, 1, 1]
    assert found.splits == {"train": 20, "validation": 20, "test": 20}
    _, loose = prepared(tmp_path, digits, label_pattern=swapped)
    assert not loose.built
    assert loose.fingerprint == found.fingerprint


def test_all_names_must_match(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0_george_0\.wav: .*40 of 60 recordings do not"):
        prepared(tmp_path, digits, label_pattern=r"[0-9]_(?P<label>theo)_[0-9]")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.flac, \.ogg, \.wav file"):
        prepared(tmp_path, tmp_path / "empty", label_pattern=PATTERN)


def test_one_folder_a_class_and_what_else_lies_there(classes: Path, tmp_path: Path) -> None:
    (classes / "cat" / "notes.txt").touch()
    task, found = prepared(tmp_path, classes)
    assert task.class_names == ("cat", "dog")
    assert found.splits == {"train": 14, "validation": 2, "test": 4}
    assert found.details["other_files"] == 1
    assert found.details["labelled_by"] == "folders"
    assert str(tmp_path) not in json.dumps(found.details)


def test_a_manifests_splits_are_kept(classes: Path, tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for label in ("cat", "dog"):
        lines += [f"{label}/{n}.wav,{label},{'test' if n < 3 else 'train'}" for n in range(10)]
    (classes / "list.csv").write_text("\n".join(lines))
    _, found = prepared(tmp_path, classes, manifest="list.csv", proportions=(6, 1, 3))
    where = split_of(found)
    assert all(
        (where[f"{label}/{n}.wav"] == "test") == (n < 3) for label in ("cat", "dog") for n in range(10)
    )
    assert found.splits == {"train": 12, "validation": 2, "test": 6}


def test_a_label_that_train_never_saw(classes: Path, tmp_path: Path) -> None:
    lines = ["path,label,split", *(f"cat/{n}.wav,cat,train" for n in range(8)), "cat/8.wav,cat,val"]
    (classes / "list.csv").write_text("\n".join([*lines, "cat/9.wav,cat,test", "dog/1.wav,dog,test"]))
    with pytest.raises(DataError, match="source: test has the class 'dog', which train never sees"):
        prepared(tmp_path, classes, manifest="list.csv")


def test_a_recording_without_its_group(classes: Path, tmp_path: Path) -> None:
    (classes / "list.csv").write_text("path,label\ncat/1.wav,cat\ndog/1.wav,dog\n")
    with pytest.raises(DataError, match=r"cat/1\.wav: has no group"):
        prepared(tmp_path, classes, manifest="list.csv", split_by_group=True)


def test_one_class_is_nothing_to_learn(classes: Path, tmp_path: Path) -> None:
    shutil.rmtree(classes / "dog")
    with pytest.raises(DataError, match="source: all recordings have the label 'cat', and one class"):
        prepared(tmp_path, classes)
    assert not (tmp_path / "data").exists()  # nothing was read for that


def stereo(path: Path) -> None:
    soundfile.write(path, np.random.default_rng(2).uniform(-0.5, 0.5, (800, 2)), RATE)


def slow(path: Path) -> None:
    soundfile.write(path, np.zeros(800), 900)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: soundfile.write(path, np.zeros(0), RATE), "no sound"),
        (cut_short, "cut short"),
        (lambda path: path.write_bytes(b"RIFF" + bytes(900)), "damaged"),
        (stereo, "2 channels"),
        (slow, "900 samples a second"),
        (lambda path: soundfile.write(path, np.full(800, np.nan), RATE, subtype="FLOAT"), "not finite"),
    ],
    ids=["no-bytes", "no-sound", "cut-short", "no-audio", "stereo", "slow", "nan"],
)
def test_a_bad_recording_is_named_and_costs_no_other(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], says: str
) -> None:
    bad = classes / "dog" / "4.wav"
    good = bad.read_bytes()
    damage(bad)
    with pytest.raises(
        DataError, match=rf"(?s)1 of 20 files.*task\.damaged=skip.*{re.escape(str(bad))}.*{says}"
    ):
        prepared(tmp_path, classes)
    assert not list(tmp_path.rglob("*.h5"))
    opened: list[Path] = []

    def counted(path: Path, **how: object) -> np.ndarray:
        opened.append(path)
        return read_features(path, **how)

    read_features = speech.read_features
    monkeypatch.setattr(speech, "read_features", counted)
    _, found = prepared(tmp_path, classes, damaged="skip")
    assert opened == [bad]  # the others were kept
    assert found.details["recordings"] == 19
    assert found.details["damaged_left_out"] == 1
    assert "dog/4.wav" not in split_of(found)
    bad.write_bytes(good)
    _, whole = prepared(tmp_path, classes)
    assert whole.built
    assert whole.details["recordings"] == 20


def test_a_recording_that_vanishes_meanwhile(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = classes / "cat" / "9.wav"

    def vanishing(path: Path, **how: object) -> np.ndarray:
        lost.unlink(missing_ok=True)
        return read_features(path, **how)

    read_features = speech.read_features
    monkeypatch.setattr(speech, "read_features", vanishing)
    with pytest.raises(DataError, match=rf"(?s)1 of 20 files.*{re.escape(str(lost))}"):
        prepared(tmp_path, classes)
    monkeypatch.undo()
    assert prepared(tmp_path, classes)[1].details["recordings"] == 19


def test_a_folder_of_the_same_names_is_another(classes: Path, tmp_path: Path) -> None:
    """What an interrupted building read is not taken for another folder's."""
    other = tmp_path / "other"
    shutil.copytree(classes, other)
    for path in other.rglob("*.wav"):
        soundfile.write(path, np.full(800, 0.25), RATE)
    stereo(classes / "dog" / "4.wav")
    with pytest.raises(DataError, match="2 channels"):
        prepared(tmp_path, classes)
    task, _ = prepared(tmp_path, other)
    for split in SPLITS:
        assert (task.dataset(split)[0].x[20:-20] - 0.25).abs().max() < 0.01


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "FLOAT", "PCM_16"])
def test_every_depth_is_the_same_sound(classes: Path, tmp_path: Path, subtype: str) -> None:
    sound = 0.5 * np.sin(np.arange(4000) / 50)
    for label in ("cat", "dog"):
        for number in range(10):
            soundfile.write(classes / label / f"{number}.wav", sound, RATE, subtype=subtype)
    task, _ = prepared(tmp_path, classes)
    expected = 0.5 * np.sin(np.arange(500) * 8 / 50)
    found = task.dataset("test")[0].x[:, 0].numpy()
    np.testing.assert_allclose(found[50:-50], expected[50:-50], atol=0.01)


@pytest.mark.parametrize(("channel", "expected"), [("first", 0.5), ("second", -0.25), ("mean", 0.125)])
def test_a_channel_can_be_chosen(classes: Path, tmp_path: Path, channel: str, expected: float) -> None:
    for path in classes.rglob("*.wav"):
        soundfile.write(path, np.tile([0.5, -0.25], (800, 1)), RATE)
    task, found = prepared(tmp_path, classes, channel=channel, features={"kind": "raw", "sample_rate": RATE})
    np.testing.assert_allclose(task.dataset("train")[0].x.numpy(), expected, atol=1e-4)
    assert found.details["channel"] == channel


def test_a_path_of_the_recipe_or_a_source_or_neither(classes: Path, tmp_path: Path) -> None:
    _, by_path = prepared(tmp_path, None, path=str(classes))
    _, by_source = prepared(tmp_path, classes)
    _, remembered = prepared(tmp_path, None)
    assert by_path.built
    assert [found.fingerprint for found in (by_source, remembered)] == [by_path.fingerprint] * 2
    with pytest.raises(DataError, match=r"--source, or set task\.path"):
        prepared(tmp_path, None, features=MFCC)
    with pytest.raises(DataError, match="no such folder"):
        prepared(tmp_path, None, path=str(tmp_path / "none"))


def test_more_recordings_are_another_corpus(classes: Path, tmp_path: Path) -> None:
    _, before = prepared(tmp_path, classes)
    shutil.copy(classes / "cat" / "1.wav", classes / "cat" / "10.wav")
    _, after = prepared(tmp_path, classes)
    assert after.built
    assert after.fingerprint != before.fingerprint
    (classes / "cat" / "10.wav").rename(classes / "dog" / "10.wav")
    assert prepared(tmp_path, classes)[1].fingerprint not in (before.fingerprint, after.fingerprint)


def test_predict_reads_new_files_as_the_old_ones_were(classes: Path, tmp_path: Path) -> None:
    config = AudioFolderConfig(features=RAW, standardise="train", workers=1)
    task = config.build()
    found = task.prepare(DataPlace(tmp_path / "data", source=classes, offline=True))
    fresh = config.build()
    fresh.recall(json.loads(json.dumps(task.memory())))
    paths = [classes / "dog" / f"{n}.wav" for n in range(10)]
    read = {example.name: example.x for example in fresh.read(paths)}
    assert list(read) == [str(path) for path in paths]
    where = split_of(found)
    for split in SPLITS:
        dataset = task.dataset(split)
        for i, path in enumerate(path for path, own in where.items() if own == split):
            if str(classes / path) in read:
                assert torch.equal(dataset[i].x, read[str(classes / path)])
    with pytest.raises(DataError, match="no such file"):
        list(fresh.read([tmp_path / "none.wav"]))
    with pytest.raises(DataError, match="files only"):
        list(fresh.read([tmp_path / "data"]))


@pytest.mark.parametrize(
    "memory",
    [
        {},
        {"class_names": None, "scale": None},
        {"class_names": ["a", "b"], "scale": None},
        {"class_names": ["a", "b"], "scale": {"mean": [0.0], "deviation": ["x"]}},
        {"class_names": ["a", "b"], "scale": {"mean": [0.0, 1.0], "deviation": [1.0, 1.0]}},
    ],
)
def test_a_memory_of_something_else_is_refused(memory: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match=r"task\.json"):
        AudioFolderConfig(features=RAW, standardise="train").build().recall(memory)


def test_trivial_is_the_best_constant_answer(classes: Path, tmp_path: Path) -> None:
    task, _ = prepared(tmp_path, classes)
    assert task.trivial() == {"accuracy": 0.5, "loss": pytest.approx(np.log(2))}
    for ask in (task.__class__.trivial, functools.partial(AudioFolder.dataset, split="train")):
        with pytest.raises(RuntimeError, match="prepare"):
            ask(AudioFolderConfig(features=RAW).build())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"manifest": "a.csv", "label_pattern": PATTERN}, "remove one"),
        ({"label_pattern": "(?P<label>"}, "no regular expression"),
        ({"label_pattern": "(?P<speaker>.*)"}, "must have a group"),
        ({"label_pattern": "(?P<label>.)(?P<digit>.)"}, "must have a group"),
        ({"split_by_group": True}, "needs groups"),
        ({"label_pattern": "(?P<label>.*)", "split_by_group": True}, "needs groups"),
        ({"features": {"kind": "spectrogram"}}, "spectrogram"),
        ({"channel": "third"}, "second"),
    ],
)
def test_bad_fields(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AudioFolderConfig(**{"features": RAW, **fields})
