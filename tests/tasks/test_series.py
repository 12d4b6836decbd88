from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from seqpyramid.contracts import SPLITS, Batch
from seqpyramid.errors import DataError, IntegrityError
from seqpyramid.recipe import load
from seqpyramid.tasks.base import DataPlace, Task
from seqpyramid.tasks.series import SeriesConfig, sorted_classes

DRAW = np.random.default_rng(0)
VALUES = [DRAW.normal(5, 2, (int(DRAW.integers(3, 8)), 2)).astype(np.float32) for _ in range(30)]
LABELS = [("10", "9")[i % 2] for i in range(30)]


def padded(values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(value) for value in values])
    x = np.full((len(values), lengths.max(), 2), np.nan, np.float32)
    for row, value in enumerate(values):
        x[row, : len(value)] = value
    return x, lengths


def write_ts(folder: Path) -> Path:
    folder.mkdir()
    head = "@univariate false\n@dimensions 2\n@equalLength false\n@classLabel true 9 10\n@data\n"
    for split, rows in (("TRAIN", slice(0, 20)), ("TEST", slice(20, 30))):
        lines = [
            ":".join(",".join(map(str, channel)) for channel in value.T) + f":{label}"
            for value, label in zip(VALUES[rows], LABELS[rows], strict=True)
        ]
        (folder / f"Own_{split}.ts").write_text(head + "\n".join(lines), encoding="utf-8")
    return folder


def write_npz(folder: Path) -> Path:
    folder.mkdir()
    x, lengths = padded(VALUES)
    split = np.array(["train"] * 20 + ["test"] * 10)
    np.savez(folder / "own.npz", x=x, y=np.array(LABELS).astype(int), lengths=lengths, split=split)
    return folder / "own.npz"


def write_hdf5(folder: Path) -> Path:
    folder.mkdir()
    x, lengths = padded(VALUES)
    with h5py.File(folder / "own.h5", "w") as file:
        for split, rows in (("train", slice(0, 20)), ("test", slice(20, 30))):
            file[f"x_{split}"], file[f"lengths_{split}"] = x[rows], lengths[rows]
            file[f"y_{split}"] = LABELS[rows]
    return folder


def write_tables(folder: Path) -> Path:
    folder.mkdir()
    lines = ["path,label,split"]
    for row, (value, label) in enumerate(zip(VALUES, LABELS, strict=True)):
        np.savetxt(folder / f"{row}.csv", value, fmt="%s", delimiter=";", header="a;b", comments="")
        lines.append(f"{row}.csv,{label},{'train' if row < 20 else 'test'}")
    (folder / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def prepared(tmp_path: Path, source: Path, **options: object) -> Task:
    task = SeriesConfig(**options).build()
    task.prepare(DataPlace(tmp_path / "data", source=source, offline=True))
    return task


def everything(task: Task, split: str) -> Batch:
    dataset = task.dataset(split)
    return dataset.batch(torch.arange(len(dataset)))


@pytest.mark.parametrize("write", [write_ts, write_npz, write_hdf5, write_tables])
def test_every_format_gives_the_same(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    task = SeriesConfig().build()
    found = task.prepare(DataPlace(tmp_path, source=write(tmp_path / "own"), offline=True))
    assert found.splits == {"train": 16, "validation": 4, "test": 10}
    assert task.class_names == ("9", "10")
    assert found.details["class_counts"]["validation"] == {"9": 2, "10": 2}
    assert found.details["lengths"]["max"] == task.spec.max_length == max(map(len, VALUES))
    assert (task.spec.input_size, task.spec.outputs) == (2, 2)
    batch = everything(task, "test")
    for row in range(10):
        expected = VALUES[20 + row]
        assert batch.lengths[row] == len(expected)
        assert np.array_equal(batch.x[row, : len(expected)].numpy(), expected)
        assert not batch.x[row, len(expected) :].any()
    assert batch.y.tolist() == [("9", "10").index(label) for label in LABELS[20:]]
    assert task.trivial()["accuracy"] == 0.5


def test_real_vowels(tmp_path: Path, shared: Path) -> None:
    task = SeriesConfig(dataset="JapaneseVowels", standardise="train").build()
    found = task.prepare(DataPlace(tmp_path, source=shared / "data" / "ucr", offline=True))
    assert found.splits == {"train": 216, "validation": 54, "test": 370}
    assert task.class_names == tuple("123456789")
    assert set(found.details["class_counts"]["validation"].values()) == {6}
    batch = everything(task, "train")
    steps = torch.cat([x[:length] for x, length in zip(batch.x, batch.lengths, strict=True)]).double()
    torch.testing.assert_close(steps.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        steps.std(0, correction=0), torch.ones(12, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_recipes_of_the_five_sets(tmp_path: Path, shared: Path) -> None:
    for name in ("japanese_vowels", "basic_motions", "gun_point", "italy_power_demand", "arrow_head"):
        recipe = load(name)
        task = recipe.task.build()
        task.prepare(DataPlace(tmp_path, source=shared / "data" / "ucr", offline=True))
        assert all(config.problems(task.spec) == {} for config in recipe.models.values())


def test_train_statistics_come_from_train_alone(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "own")
    plain, scaled = (prepared(tmp_path, source, standardise=how) for how in ("none", "train"))
    raw = everything(plain, "train")
    steps = torch.cat([x[:length] for x, length in zip(raw.x, raw.lengths, strict=True)]).double()
    mean, deviation = steps.mean(0), steps.std(0, correction=0)
    for split in SPLITS:
        before, after = everything(plain, split), everything(scaled, split)
        for row, length in enumerate(before.lengths.tolist()):
            expected = (before.x[row, :length].double() - mean) / deviation
            torch.testing.assert_close(after.x[row, :length].double(), expected, atol=1e-5, rtol=0)
            assert not after.x[row, length:].any()


def test_each_sequence_by_itself(tmp_path: Path) -> None:
    x = np.stack([np.arange(4.0), np.full(4, 0.1), np.array([1, 1, 1, np.nan])] * 4)[..., None]
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(12) // 3 % 2, split=["train", "test", "val"] * 4)
    task = prepared(tmp_path, tmp_path / "a.npz", standardise="each", missing="zero")
    first = everything(task, "train").x[0, :, 0]
    torch.testing.assert_close(first, torch.tensor([-1.3416408, -0.4472136, 0.4472136, 1.3416408]))
    assert not everything(task, "test").x.any()  # never changes
    assert not everything(task, "validation").x.any()


def missing_source(tmp_path: Path) -> Path:
    x = np.zeros((12, 5, 2))
    x[:, :, 0] = [np.nan, 1, np.nan, 3, np.nan]
    x += np.arange(12)[:, None, None]
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(12) % 2)
    return tmp_path / "a.npz"


def test_missing_values_are_refused_filled_or_zero(tmp_path: Path) -> None:
    source = missing_source(tmp_path)
    with pytest.raises(
        DataError, match=r"a\.npz\[0\]: a value is missing at step 0, channel 0 .*task\.missing"
    ):
        prepared(tmp_path, source)
    filled = everything(prepared(tmp_path, source, missing="interpolate"), "train").x
    assert (filled[:, :, 0] - filled[:, :1, 1]).tolist() == [[1, 1, 2, 3, 3]] * len(filled)
    zero = everything(prepared(tmp_path, source, missing="zero"), "train").x
    assert zero[:, 0::2, 0].tolist() == [[0, 0, 0]] * len(zero)
    assert (zero[:, 1, 0] - zero[:, 1, 1]).tolist() == [1] * len(zero)
    np.savez(source, x=np.full((12, 5), np.nan), y=np.arange(12) % 2)
    with pytest.raises(DataError, match=r"channel 0 .* has no value to interpolate from"):
        prepared(tmp_path, source, missing="interpolate")


def test_zero_is_the_mean_after_standardising(tmp_path: Path) -> None:
    task = prepared(tmp_path, missing_source(tmp_path), missing="zero", standardise="train")
    x = everything(task, "train").x
    assert not x[:, 0::2, 0].any()
    there = x[:, 1::2, 0].double()
    assert abs(there.mean()) < 1e-6
    assert abs(there.std(correction=0) - 1) < 1e-6


def test_cutting(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "own")
    task = SeriesConfig(max_length=4).build()
    found = task.prepare(DataPlace(tmp_path / "data", source=source))
    assert found.details["cut_to_max_length"] == sum(len(value) > 4 for value in VALUES) > 0
    assert task.spec.max_length == 4
    batch = everything(task, "test")
    assert np.array_equal(batch.x[0, : batch.lengths[0]].numpy(), VALUES[20][:4])


def test_groups_are_never_cut(tmp_path: Path) -> None:
    x, groups = DRAW.standard_normal((60, 5)), np.arange(60) // 5
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(60) % 2, group=groups)
    task = prepared(tmp_path, tmp_path / "a.npz")
    of = {row.astype(np.float32).tobytes(): int(group) for row, group in zip(x, groups, strict=True)}
    inside = [{of[one.numpy().tobytes()] for one in everything(task, split).x} for split in SPLITS]
    assert [len(part) for part in inside] == [8, 2, 2]
    assert len(set.union(*inside)) == 12


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one, other = write_ts(tmp_path / "one"), write_ts(tmp_path / "other")
    place = DataPlace(tmp_path / "data", source=one)
    first = SeriesConfig().build().prepare(place)
    moved = SeriesConfig(path=str(other)).build().prepare(DataPlace(tmp_path / "data"))
    assert first.built
    assert not moved.built
    assert moved.fingerprint == first.fingerprint
    for option in (
        {"missing": "zero"},
        {"standardise": "each"},
        {"split_seed": 1},
        {"max_length": 4},
        {"proportions": (3, 1, 1)},
    ):
        assert SeriesConfig(**option).build().prepare(place).fingerprint != first.fingerprint
    text = (other / "Own_TEST.ts").read_text()
    (other / "Own_TEST.ts").write_text(text.replace(":9", ":10", 1))
    assert (
        SeriesConfig().build().prepare(DataPlace(tmp_path / "data", source=other)).fingerprint
        != first.fingerprint
    )


@pytest.mark.parametrize("damaged", [{}, {"scale": None}, {"class_names": 3, "channels": 1, "scale": {}}])
def test_a_damaged_memory_is_refused(damaged: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match=r"task\.json"):
        SeriesConfig().build().recall(damaged)


def test_new_files_are_read_without_the_old(tmp_path: Path) -> None:
    task = prepared(tmp_path, write_ts(tmp_path / "ts"), standardise="train")
    later = SeriesConfig(standardise="train").build()
    later.recall(task.memory())
    assert (later.spec, later.class_names) == (task.spec, task.class_names)
    expected = task.dataset("test")
    tables = write_tables(tmp_path / "csv")
    files = {
        "ts": [tmp_path / "ts/Own_TEST.ts"],
        "tables": [tables / f"{row}.csv" for row in range(20, 30)],
    }
    for paths in files.values():
        found = list(later.read(paths))
        assert len(found) == 10
        for row, new in enumerate(found):
            assert torch.equal(new.x, expected[row].x)
    assert next(later.read(files["ts"])).name == f"{files['ts'][0]}[0]"
    assert next(later.read(files["tables"])).name == str(files["tables"][0])
    whole = list(later.read([write_npz(tmp_path / "npz")]))
    assert torch.equal(whole[20].x, expected[0].x)
    (tmp_path / "wide.csv").write_text("1,2,3\n", encoding="utf-8")
    (tmp_path / "gap.csv").write_text("1,?\n", encoding="utf-8")
    for name, sentence in (
        ("wide.csv", "3 channels, but the model was trained on 2"),
        ("gap.csv", "a value is missing"),
        ("x.wav", "its ending is none of"),
        ("x.ts", "no such file"),
    ):
        with pytest.raises(DataError, match=sentence):
            list(later.read([tmp_path / name]))


def test_what_cannot_be_learnt_is_said(tmp_path: Path) -> None:
    x = DRAW.standard_normal((6, 4))
    for arrays, sentence in (
        ({"x": x}, "has no labels"),
        ({"x": x, "y": np.zeros(6, int)}, "all 6 sequences are of the class '0'"),
        ({"x": x, "y": np.array(["1", "1.0", "2"] * 2)}, "'1' and '1.0' are the same number"),
        ({"x": x, "y": np.arange(6)}, "no example is left for validation"),
        (
            {"x": x, "y": np.arange(6) // 3, "split": ["train"] * 5 + ["test"], "group": np.arange(6) // 2},
            "group '2'",
        ),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=rf"a\.npz: .*{sentence}"):
            prepared(tmp_path, tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"nothing is cached for this task; name .* --source"):
        SeriesConfig().build().prepare(DataPlace(tmp_path / "data"))


def test_force_needs_the_files(tmp_path: Path) -> None:
    place = DataPlace(tmp_path / "data", source=write_ts(tmp_path / "own"))
    SeriesConfig().build().prepare(place)
    with pytest.raises(DataError, match="--force reads the files again"):
        SeriesConfig().build().prepare(DataPlace(place.root), force=True)


def test_channels_of_the_files_agree(tmp_path: Path) -> None:
    folder = write_ts(tmp_path / "own")
    (folder / "Own_TEST.ts").write_text("@classLabel true 9 10\n@data\n1,2:9\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"Own_T.*channels, but Own_T.* has"):
        prepared(tmp_path, folder)


def test_repeated_sequences_are_counted(tmp_path: Path) -> None:
    x = DRAW.standard_normal((12, 4))
    x[11] = x[0]
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(12) % 2, split=(["train"] * 4 + ["val"] * 4 + ["test"] * 4))
    found = SeriesConfig().build().prepare(DataPlace(tmp_path / "data", source=tmp_path / "a.npz"))
    assert found.details["repeated_across_splits"] == 1


def test_classes_in_order() -> None:
    assert sorted_classes(["2", "-1", "10"]) == ("-1", "2", "10")
    assert sorted_classes(["b", "a", "nan"]) == ("a", "b", "nan")
    assert sorted_classes(["nan", "1"]) == ("1", "nan")
    with pytest.raises(RuntimeError, match="call prepare or recall"):
        _ = SeriesConfig().build().spec


@pytest.mark.parametrize(
    "fields", [{"proportions": (0, 1, 1)}, {"dataset": "../x"}, {"max_length": 0}, {"missing": "x"}]
)
def test_config_bounds(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        SeriesConfig(**fields)
