import io
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from seqpyramid.contracts import SPLITS, Batch
from seqpyramid.tasks.base import DataPlace
from seqpyramid.tasks.signals import Signals, SignalsConfig, distinct_counts, draw_layout, place, waveform

SMALL = {"label": "type", "train": 600, "validation": 30, "test": 200}


def prepared(folder: Path, **fields: object) -> Signals:
    task = SignalsConfig(**{**SMALL, **fields}).build()
    task.prepare(DataPlace(folder, offline=True))
    return task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests that read the defaults."""
    return tmp_path_factory.mktemp("signals")


def everything(task: Signals, split: str = "train") -> Batch:
    dataset = task.dataset(split)  # type: ignore[arg-type]
    return dataset.batch(torch.arange(len(dataset)))


def stored(folder: Path, split: str = "train", **fields: object) -> Iterator[tuple[np.ndarray, int, list]]:
    """Values, kind and (start, duration, amplitude) of every sequence, read from the cache's file itself."""
    path = SignalsConfig(**{**SMALL, **fields}).build().prepare(DataPlace(folder, offline=True)).path
    assert path is not None
    with h5py.File(path, "r") as file:
        group = file[split]
        arrays = [group[name][...] for name in ("values", "kinds", "starts", "durations", "amplitudes")]
    for values, kind, *columns in zip(*arrays, strict=True):
        rows = [(int(s), int(f), float(a)) for s, f, a in zip(*columns, strict=True) if f]
        yield values, int(kind), rows


def formula(kind: int, f: int, k: int) -> float:
    """One step of one signal of the defaults, of amplitude 1."""
    return (math.sin(math.pi * k / (f - 1)), 1.0, k / (f - 1))[kind]


def test_signals_are_what_the_formula_says_and_the_rest_is_noise(folder: Path) -> None:
    noise = []
    for values, kind, signals in stored(folder):
        free = np.ones(len(values), dtype=bool)
        for start, f, amplitude in signals:
            assert amplitude == 2.0
            expected = [2 * formula(kind, f, k) for k in range(f)]
            np.testing.assert_allclose(values[start : start + f], expected, atol=3e-7)
            free[start : start + f] = False
        noise.append(values[free])
        assert np.abs(values[free]).max() <= 1
    everywhere = np.concatenate(noise).astype(np.float64)
    assert everywhere.min() < -0.999
    assert everywhere.max() > 0.999
    assert everywhere.mean() == pytest.approx(0, abs=5 / math.sqrt(3 * len(everywhere)))
    assert everywhere.var() == pytest.approx(1 / 3, abs=0.002)
    assert len(np.unique(everywhere)) > 0.9 * len(everywhere)  # every sequence has its own


def test_half_a_sine_begins_and_ends_at_zero() -> None:
    for f in (20, 40, 60, 80):
        wave = waveform("sine", f, square="positive", saw_tooth="rising")
        assert wave.shape == (f,)
        assert wave[0] == wave[-1] == 0
        assert np.array_equal(wave, wave[::-1])
        assert wave.argmax() in (f // 2 - 1, f // 2)
        assert 0.99 < wave.max() <= 1
        assert (np.diff(wave[: f // 2]) > 0).all()
    # the paper's figure shows 53.5, 40.8 and 14.8 steps above 1.05 for 80, 60 and 20, a line of 1.8 included
    for f, seen in ((80, 53.5), (60, 40.8), (20, 14.8)):
        above = (2 * waveform("sine", f, square="positive", saw_tooth="rising") > 1.05).sum()
        assert above == pytest.approx(seen - 1.8, abs=1.1)


def test_the_other_shapes() -> None:
    def wave(kind: str, **fields: str) -> list[float]:
        options = {"square": "positive", "saw_tooth": "rising", **fields}
        return waveform(kind, 20, **options).tolist()  # type: ignore[arg-type]

    assert wave("square") == [1.0] * 20
    assert wave("square", square="whole_period") == [1.0] * 10 + [-1.0] * 10
    assert wave("saw-tooth") == pytest.approx([k / 19 for k in range(20)])
    assert wave("saw-tooth", saw_tooth="falling") == pytest.approx([1 - k / 19 for k in range(20)])
    assert wave("saw-tooth", saw_tooth="whole_period") == pytest.approx([2 * k / 19 - 1 for k in range(20)])


@pytest.mark.parametrize("gap", [0, 7, 150])
def test_signals_do_not_overlap(folder: Path, gap: int) -> None:
    closest = 1000
    for values, _, signals in stored(folder, gap=gap):
        assert signals[0][0] >= 0
        assert signals[-1][0] + signals[-1][1] <= len(values)
        spaces = [after[0] - before[0] - before[1] for before, after in itertools.pairwise(signals)]
        closest = min(closest, *spaces)
    assert gap <= closest <= gap + 2


def test_every_placement_is_equally_likely() -> None:
    durations = np.array([2, 1, 2], dtype=np.int32)
    possible = [
        starts
        for starts in itertools.product(range(9), repeat=3)
        if starts[0] + 2 + 1 <= starts[1] and starts[1] + 1 + 1 <= starts[2] and starts[2] + 2 <= 10
    ]
    generator = np.random.default_rng(0)
    draws = 20_000
    found = Counter(tuple(place(generator, durations, length=10, gap=1).tolist()) for _ in range(draws))
    assert sorted(found) == sorted(possible)
    expected = draws / len(possible)
    chi_square = sum((found[starts] - expected) ** 2 / expected for starts in possible)
    freedom = len(possible) - 1
    assert chi_square == pytest.approx(freedom, abs=5 * math.sqrt(2 * freedom))


def test_numbers_of_signals_and_durations_are_uniform() -> None:
    layout = draw_layout(np.random.default_rng(0), 20_000, length=1000, gap=0, amplitude="fixed")
    n = (layout.durations > 0).sum(axis=1)
    for values, choices in ((n, (3, 4, 5)), (layout.durations[layout.durations > 0], (20, 40, 60, 80))):
        counts = np.array([(values == choice).sum() for choice in choices])
        assert counts.sum() == len(values)
        share = 1 / len(choices)
        assert counts / len(values) == pytest.approx(
            share, abs=5 * math.sqrt(share * (1 - share) / len(values))
        )
    assert np.bincount(layout.kinds).tolist() == [6667, 6667, 6666]
    assert (np.diff(layout.kinds.astype(int)) != 0).mean() == pytest.approx(2 / 3, abs=0.02)


def test_amplitudes_may_differ(folder: Path) -> None:
    amplitudes = []
    for values, kind, signals in stored(folder, amplitude="uniform"):
        for start, f, amplitude in signals:
            expected = [amplitude * formula(kind, f, k) for k in range(f)]
            np.testing.assert_allclose(values[start : start + f], expected, atol=1e-6)
            amplitudes.append(amplitude)
    assert -7 <= min(amplitudes) < -6.8
    assert 6.8 < max(amplitudes) <= 7
    assert np.mean(amplitudes) == pytest.approx(0, abs=5 * 14 / math.sqrt(12 * len(amplitudes)))


@pytest.mark.parametrize("fields", [{"square": "whole_period"}, {"saw_tooth": "falling"}])
def test_shapes_reach_the_data(folder: Path, fields: dict[str, object]) -> None:
    plain, other = everything(prepared(folder)), everything(prepared(folder, **fields))
    assert torch.equal(plain.y, other.y)
    changed = (plain.x != other.x).flatten(1).any(dim=1)
    assert torch.equal(changed, plain.y == (1 if "square" in fields else 2))


def test_labels_are_kinds_or_different_durations(folder: Path) -> None:
    kinds, different = prepared(folder), prepared(folder, label="distinct_frequencies")
    assert (kinds.spec.outputs, different.spec.outputs) == (3, 4)
    assert kinds.class_names == ("sine", "square", "saw-tooth")
    assert different.class_names == ("1", "2", "3", "4")
    for split in SPLITS:
        facts = list(stored(folder, split))
        assert everything(kinds, split).y.tolist() == [kind for _, kind, _ in facts]
        counted = [len({f for _, f, _ in signals}) for _, _, signals in facts]
        assert [int(different.class_names[y]) for y in everything(different, split).y] == counted
        assert torch.equal(everything(kinds, split).x, everything(different, split).x)


def test_both_labels_share_one_cache(tmp_path: Path) -> None:
    where = DataPlace(tmp_path, offline=True)
    one = SignalsConfig(**SMALL).build().prepare(where)
    other = SignalsConfig(**{**SMALL, "label": "distinct_frequencies"}).build().prepare(where)
    assert one.built
    assert not other.built
    assert one.path == other.path
    assert one.details["class_counts"]["test"] == [67, 67, 66]
    assert sum(other.details["class_counts"]["test"]) == 200
    assert SignalsConfig(**SMALL, data_seed=1).build().prepare(where).built


def test_the_shares_of_the_classes_are_exact() -> None:
    exact = Counter()
    for n in (3, 4, 5):
        for choice in itertools.product((20, 40, 60, 80), repeat=n):
            exact[len(set(choice))] += 4 ** (5 - n)
    assert distinct_counts() == [exact[k] for k in (1, 2, 3, 4)]
    total = sum(distinct_counts())
    assert [round(count / total, 3) for count in distinct_counts()] == [0.027, 0.355, 0.508, 0.109]


def test_data_has_these_shares() -> None:
    layout = draw_layout(np.random.default_rng(1), 20_000, length=1000, gap=0, amplitude="fixed")
    found = Counter(len(set(row[row > 0].tolist())) for row in layout.durations)
    for k, count in enumerate(distinct_counts(), start=1):
        share = count / sum(distinct_counts())
        assert found[k] / 20_000 == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 20_000))


@pytest.mark.parametrize("label", ["type", "distinct_frequencies"])
def test_trivial_is_the_best_constant_answer(folder: Path, label: str) -> None:
    task = prepared(folder, label=label, train=3_000, length=500)
    batch = everything(task)
    weights = [1, 1, 1] if label == "type" else distinct_counts()
    answer = torch.tensor(weights, dtype=torch.float64).div(sum(weights)).log()
    metrics = task.metrics()
    metrics.update(answer.expand(3_000, -1), batch)
    found = metrics.compute()
    theory = task.trivial()
    assert found["loss"] == pytest.approx(theory["loss"], abs=0.05)
    assert found["accuracy"] == pytest.approx(theory["accuracy"], abs=5 * 0.5 / math.sqrt(3_000))
    assert theory["accuracy"] == pytest.approx(1 / 3 if label == "type" else 0.508, abs=5e-4)
    if label == "type":
        assert found["loss"] == pytest.approx(math.log(3), rel=1e-9)


def test_values_follow_from_seed_and_split(tmp_path: Path, folder: Path) -> None:
    ours = everything(prepared(folder), "validation").x
    assert torch.equal(ours, everything(prepared(tmp_path, train=50), "validation").x)
    assert not torch.equal(ours, everything(prepared(tmp_path, data_seed=1), "validation").x)
    alike = prepared(tmp_path, train=30, validation=30, test=30)
    for one, other in itertools.combinations([everything(alike, split).x for split in SPLITS], 2):
        assert (one == other).float().mean() < 0.1  # neither the signals nor the noise come again


def test_a_picture_shows_one_sequence_of_each_kind(folder: Path, tmp_path: Path) -> None:
    pictures = []
    for label in ("type", "distinct_frequencies"):
        content = prepared(folder, label=label).examples_picture()
        assert content.startswith(b"\x89PNG")
        pictures.append(imread(io.BytesIO(content)))
    assert all(picture.shape[0] > 500 and picture.shape[1] > 1_000 for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[1])  # the titles differ
    red, _, blue, _ = np.moveaxis(pictures[0], -1, 0)
    assert ((red - blue > 0.1).mean()) > 0.05  # the shade over the signals
    with pytest.raises(RuntimeError, match="prepare"):
        SignalsConfig(**SMALL).build().examples_picture()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"length": 399}, "need 400 steps, but length is 399"),
        ({"gap": 151}, "need 1004 steps, but length is 1000"),
        ({"gap": -1}, "greater than or equal to 0"),
        ({"label": "kind"}, "distinct_frequencies"),
        ({"train": 0}, "greater than 0"),
        ({"amplitude": "normal"}, "uniform"),
    ],
)
def test_bad_fields(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SignalsConfig(**{**SMALL, **fields})


def test_a_label_must_be_chosen_and_the_tightest_row_fits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label"):
        SignalsConfig()  # type: ignore[call-arg]
    task = prepared(tmp_path, length=400, train=300)
    assert everything(task).x.shape == (300, 400, 1)
