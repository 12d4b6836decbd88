import io
import math
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from seqpyramid.contracts import SPLITS, Batch, ModelOutput
from seqpyramid.data.pen_lines import END
from seqpyramid.data.strokes import form_of
from seqpyramid.errors import DataError, DivergedError, IntegrityError, UserError
from seqpyramid.models import MODELS
from seqpyramid.tasks.base import DataPlace, Drawn, Request
from seqpyramid.tasks.handwriting import Handwriting, HandwritingConfig
from seqpyramid.tasks.line_density import log_negative_binomial
from seqpyramid.tasks.mixture_density import width

from .tiny import iam_line, loops, write_iam_twin

ENDINGS = ("none", "end_symbol", "halt", "length")
M = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> DataPlace:
    folder = tmp_path_factory.mktemp("iam")
    (folder / "source").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        write_iam_twin(folder / "source", patch)
    return DataPlace(folder / "data", source=folder / "source", offline=True)


def built(**fields: object) -> Handwriting:
    return HandwritingConfig(**{"components": M, "min_length": 8, "split": "iam_ondb_t1", **fields}).build()


def prepared(place: DataPlace, **fields: object) -> Handwriting:
    task = built(**fields)
    task.prepare(place)
    return task


def points_of(place: DataPlace, *lists: str, least: int = 8, most: int = 10**6) -> list[np.ndarray]:
    """(P, 3) of the lines that some lists name, read with another parser."""
    assert place.source is not None
    forms = {form for name in lists for form in (place.source / name).read_text().split()}
    found = []
    for path in sorted(place.source.rglob("*.xml"), key=lambda path: path.stem):
        if form_of(path.stem) in forms:
            rows = []
            for stroke in ElementTree.parse(path).getroot().iter("Stroke"):
                ends = [0.0] * (len(stroke) - 1) + [1.0]
                rows += [(float(p.get("x")), float(p.get("y")), e) for p, e in zip(stroke, ends, strict=True)]
            if least <= len(rows) <= most:
                found.append(np.array(rows))
    return found


def rows_of(points: np.ndarray, coordinates: str) -> np.ndarray:
    rows = points.copy()
    if coordinates == "offsets":
        rows[:, :2] = np.diff(points[:, :2], axis=0, prepend=points[:1, :2])
    else:
        rows[:, :2] -= points[0, :2]
    return rows


def everything(task: Handwriting, split: str = "test") -> Batch:
    dataset = task.dataset(split)
    return dataset.batch(torch.arange(len(dataset)))


@pytest.mark.parametrize("coordinates", ["offsets", "positions"])
def test_rows_are_the_files_and_standardised_by_the_training_split(
    place: DataPlace, coordinates: str
) -> None:
    task = prepared(place, coordinates=coordinates)
    train = [rows_of(points, coordinates) for points in points_of(place, "trainset.txt")]
    after_first = np.concatenate([rows[1:, :2] for rows in train])
    mean, deviation = after_first.mean(axis=0), after_first.std(axis=0)
    np.testing.assert_allclose(task.memory()["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(task.memory()["deviation"], deviation, rtol=1e-6)
    assert task.memory()["mean_steps"] == np.mean([len(rows) - 1 for rows in train])
    for split, name in (
        ("train", "trainset.txt"),
        ("validation", "testset_v.txt"),
        ("test", "testset_f.txt"),
    ):
        dataset = task.dataset(split)
        expected = points_of(place, name)
        assert len(dataset) == len(expected) > 0
        for i, points in enumerate(expected):
            rows = rows_of(points, coordinates)
            rows[:, :2] = (rows[:, :2] - mean) / deviation
            np.testing.assert_allclose(dataset[i].x.numpy(), rows[:-1], atol=2e-6)
            np.testing.assert_allclose(dataset[i].y.numpy(), rows[1:], atol=2e-6)


@pytest.mark.parametrize("ending", ["end_symbol", "halt"])
def test_an_ending_in_a_step_appends_it(place: DataPlace, ending: str) -> None:
    plain, ended = prepared(place).dataset("test"), prepared(place, ending=ending).dataset("test")
    for i in range(len(plain)):
        assert torch.equal(ended[i].x[:-1], plain[i].x)
        assert torch.equal(ended[i].x[-1], plain[i].y[-1])
        assert torch.equal(ended[i].y[:-1], plain[i].y)
        assert ended[i].y[-1].tolist() == [0, 0, END]


def test_after_its_first_step_a_model_reads_how_many_moves_remain(place: DataPlace) -> None:
    plain, told = prepared(place), prepared(place, ending="length")
    for i in range(len(plain.dataset("test"))):
        x, y = told.dataset("test")[i]
        assert torch.equal(x[:, :3], plain.dataset("test")[i].x)
        assert torch.equal(y, plain.dataset("test")[i].y)
        remaining = np.arange(len(x), 0, -1) / told.memory()["mean_steps"]
        remaining[0] = 0
        np.testing.assert_allclose(x[:, 3].numpy(), remaining, rtol=1e-6)


def outputs_for(task: Handwriting, batch: Batch, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch.y.shape[:2], task.spec.outputs)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def likelihood_of(outputs: np.ndarray, y: np.ndarray, ending: str, mean_steps: float) -> float:
    """One line's log-likelihood by scipy's distributions, step by step."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    total = 0.0
    if ending == "length":
        mean, r = mean_steps * math.exp(outputs[0, -2]), math.exp(outputs[0, -1])
        total += float(stats.nbinom.logpmf(len(y), r, r / (r + mean)))
    for out, (dx, dy, pen) in zip(outputs, y, strict=True):
        weights, m1, m2, s1, s2, rho = out[1 : width(M)].reshape(6, M)
        weights, s1, s2, rho = np.exp(weights) / np.exp(weights).sum(), np.exp(s1), np.exp(s2), np.tanh(rho)
        density = sum(
            weights[j]
            * stats.multivariate_normal.pdf(
                [dx, dy],
                [m1[j], m2[j]],
                [[s1[j] ** 2, rho[j] * s1[j] * s2[j]], [rho[j] * s1[j] * s2[j], s2[j] ** 2]],
            )
            for j in range(M)
        )
        e = sigmoid(out[0])
        if ending == "end_symbol":
            outcomes = np.exp([0, out[0], out[-1]])
            chance = outcomes[int(pen)] / outcomes.sum()
        elif ending == "halt":
            chance = sigmoid(out[-1]) if pen == END else (1 - sigmoid(out[-1])) * (e if pen else 1 - e)
        else:
            chance = e if pen else 1 - e
        total += math.log(chance if pen == END else chance * density)
    return total


@pytest.mark.parametrize("ending", ENDINGS)
def test_likelihood_is_the_equations(place: DataPlace, ending: str) -> None:
    task = prepared(place, ending=ending)
    batch = everything(task)
    assert len(set(batch.lengths.tolist())) > 3
    outputs = outputs_for(task, batch) / 2
    batch = batch._replace(y=batch.y.double())
    found = task.log_likelihood(outputs, batch)
    expected = [
        likelihood_of(o[:n].numpy(), y[:n].numpy(), ending, task.memory()["mean_steps"])
        for o, n, y in zip(outputs, batch.lengths.tolist(), batch.y, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("ending", ENDINGS)
def test_padding_changes_no_likelihood(place: DataPlace, ending: str) -> None:
    task = prepared(place, ending=ending)
    batch = everything(task)
    outputs = outputs_for(task, batch)
    before = task.log_likelihood(outputs, batch)
    past = torch.arange(batch.y.shape[1]) >= batch.lengths[:, None]
    assert past.any()
    other = batch._replace(y=torch.where(past[..., None], 7.0, batch.y))
    if ending == "end_symbol":  # no outcome 7
        other = batch._replace(y=torch.where(past[..., None], 1.0, batch.y))
    torch.testing.assert_close(
        task.log_likelihood(outputs.masked_fill(past[..., None], 9.0), other), before, rtol=0, atol=0
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_gradient_of_the_loss(place: DataPlace, ending: str) -> None:
    task = prepared(place, ending=ending)
    batch = task.dataset("test").batch(torch.arange(2))
    batch = Batch(batch.x[:, :3], torch.tensor([2, 3]), batch.y[:, :3].double())
    outputs = outputs_for(task, batch).requires_grad_()
    assert torch.autograd.gradcheck(lambda o: task.loss(o, batch)[0], (outputs,))


def test_metrics_by_sequence_and_by_step(place: DataPlace) -> None:
    by_step, by_sequence = prepared(place), prepared(place, loss_per="sequence")
    batch = everything(by_step)
    outputs = outputs_for(by_step, batch)
    likelihoods = by_step.log_likelihood(outputs, batch)
    found = []
    for task in (by_step, by_sequence):
        metrics = task.metrics()
        metrics.update(outputs, batch)
        found.append(metrics.compute())
    mean = likelihoods.mean().item()
    assert found[0]["log_likelihood"] == found[1]["log_likelihood"] == pytest.approx(mean, rel=1e-12)
    assert found[1]["loss"] == pytest.approx(-mean, rel=1e-12)
    assert found[0]["loss"] == pytest.approx(
        -likelihoods.sum().item() / batch.lengths.sum().item(), rel=1e-12
    )
    assert by_step.loss(outputs, batch)[1] == batch.lengths.sum()
    assert by_sequence.loss(outputs, batch)[1] == len(batch.lengths)


@pytest.mark.parametrize("ending", ENDINGS)
def test_trivial_is_the_entropy_of_the_best_constant(place: DataPlace, ending: str) -> None:
    task = prepared(place, ending=ending)
    batch = everything(task)
    valid = torch.arange(batch.y.shape[1]) < batch.lengths[:, None]
    y = batch.y[valid].double().numpy()
    moves = y[y[:, 2] != END]
    total = len(moves) * (
        1 + math.log(2 * math.pi) + np.linalg.slogdet(np.cov(moves[:, :2].T, ddof=0))[1] / 2
    )
    if ending == "end_symbol":
        total += len(y) * stats.entropy(np.bincount(y[:, 2].astype(int)))
    else:
        total += len(moves) * stats.entropy(np.bincount(moves[:, 2].astype(int)))
    if ending == "halt":
        total += len(y) * stats.entropy([len(moves), len(batch.lengths)])
    if ending == "length":
        n = batch.lengths.numpy()
        tried = [
            -stats.nbinom.logpmf(n, r, r / (r + n.mean())).sum() for r in np.exp(np.linspace(-5, 10, 3001))
        ]
        total += min(tried)
    found = task.trivial()
    assert found["log_likelihood"] == pytest.approx(-total / len(batch.lengths), rel=1e-5)
    assert found["loss"] == pytest.approx(total / len(y), rel=1e-5)


def test_trivial_is_best(place: DataPlace) -> None:
    """Moving any number of the constant answer makes it worse."""
    task = prepared(place, ending="length", components=1)
    batch = everything(task)
    trivial = task.trivial()["log_likelihood"]
    targets = batch.y[torch.arange(batch.y.shape[1]) < batch.lengths[:, None]].double()
    mean_moves = task.memory()["mean_steps"]
    constants = (
        task._density.constant(targets, 0),
        task._density.constant_length(batch.lengths.double(), mean_moves),
    )
    best = torch.cat(constants)

    def score(answer: torch.Tensor) -> float:
        outputs = answer.expand(*batch.y.shape[:2], -1)
        return float(task.log_likelihood(outputs, batch).mean())

    assert score(best) == pytest.approx(trivial, rel=1e-9)
    weights = 1  # of a single component: moving it changes nothing
    for k in set(range(len(best))) - {weights}:
        for move in (-0.1, 0.1):
            other = best.clone()
            other[k] += move
            assert score(other) < trivial, k


def test_lengths_are_drawn_from_a_distribution() -> None:
    n = torch.arange(20_000, dtype=torch.float64)
    chances = log_negative_binomial(n, torch.tensor(6.0).double(), torch.tensor(1.5).double()).exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-9)
    assert (chances * n).sum().item() == pytest.approx(math.exp(6), rel=1e-9)


def test_lengths_out_of_bounds_are_dropped_and_counted(place: DataPlace) -> None:
    lists = ("trainset.txt", "testset_v.txt", "testset_f.txt")
    every = points_of(place, *lists, "testset_t.txt", least=0)
    task = built(min_length=10, max_length=25, ending="halt")
    found = task.prepare(place)
    kept = [len(points) for points in points_of(place, *lists, least=10, most=25)]
    assert sum(found.splits.values()) == len(kept) > 0
    assert found.details["lines"] == len(every)
    assert found.details["shorter"] == sum(len(p) < 10 for p in every) > 0
    assert found.details["longer"] == sum(len(p) > 25 for p in every) > 0
    assert found.details["in_no_split"] == len(points_of(place, "testset_t.txt", least=10, most=25))
    lengths = torch.cat([everything(task, split).lengths for split in SPLITS])
    assert sorted(lengths.tolist()) == sorted(kept)
    assert task.spec.max_length == 25
    assert built(max_length=25).spec.max_length == 24


@pytest.mark.parametrize("use", ["train", "validation"])
def test_the_second_validation_list(place: DataPlace, use: str) -> None:
    without = built().prepare(place).splits
    used = built(second_validation=use).prepare(place).splits
    more = len(points_of(place, "testset_t.txt"))
    assert more > 0
    assert {name: used[name] - without[name] for name in SPLITS} == {
        name: more * (name == use) for name in SPLITS
    }


def test_forms_are_kept_together_and_lines_are_not(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    for form in range(40):
        for line in range(1, 4):
            path = tmp_path / "source" / f"b{form:02}-{form:03}z-{line:02}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(iam_line(loops(10, draw), draw), encoding="iso-8859-1")
    place = DataPlace(tmp_path, source=tmp_path / "source", offline=True)
    forms = built(split="forms").prepare(place)
    assert forms.splits == {"train": 108, "validation": 6, "test": 6}
    assert forms.details["forms"] == {"train": 36, "validation": 2, "test": 2}
    lines = built(split="lines").prepare(place)
    assert lines.splits == {"train": 108, "validation": 6, "test": 6}
    assert sum(lines.details["forms"].values()) > 40
    assert forms.path == lines.path
    hashes = {built(split="forms", split_seed=seed).prepare(place).split_hash for seed in (0, 0, 1)}
    assert len(hashes) == 2


def test_splits_that_would_be_empty(place: DataPlace, tmp_path: Path) -> None:
    assert place.source is not None
    shutil.copytree(place.source / "lineStrokes", tmp_path / "lineStrokes")
    bare = DataPlace(tmp_path / "data", source=tmp_path, offline=True)
    with pytest.raises(
        DataError, match=r"nothing for train and validation and test; put the lists.*trainset"
    ):
        built().prepare(bare)
    with pytest.raises(DataError, match=r"none of 51 lines has from 300 to.*task\.min_length"):
        built(split="forms", min_length=300).prepare(bare)
    with pytest.raises(DataError, match=r"split=forms leaves nothing for.*task\.min_length"):
        built(split="forms", min_length=29).prepare(bare)


def test_one_cache_serves_all_variants_and_is_found_again(place: DataPlace) -> None:
    first = built().prepare(place)
    other = built(coordinates="positions", ending="length", min_length=9).prepare(replace(place, source=None))
    assert other.path == first.path
    assert not other.built


def test_changed_lines_are_other_data(place: DataPlace, tmp_path: Path) -> None:
    assert place.source is not None
    shutil.copytree(place.source, tmp_path / "source")
    copied = DataPlace(tmp_path / "data", source=tmp_path / "source", offline=True)
    before = built().prepare(copied)
    assert before.fingerprint == built().prepare(place).fingerprint
    path = sorted((tmp_path / "source").rglob("*.xml"))[0]
    path.write_text(path.read_text().replace('"1', '"2', 3))
    assert built().prepare(copied).fingerprint != before.fingerprint


def test_the_corpus_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"IAM-OnDB.*register.*--source"):
        built().prepare(DataPlace(tmp_path, offline=True))


def test_the_corpus_may_lie_with_the_downloads(place: DataPlace, tmp_path: Path) -> None:
    assert place.source is not None
    here = DataPlace(tmp_path, offline=True)
    shutil.copytree(place.source, here.downloads / "iam_ondb")
    assert built().prepare(here).fingerprint == built().prepare(place).fingerprint


def test_a_damaged_line_is_refused_or_left_out(place: DataPlace, tmp_path: Path) -> None:
    assert place.source is not None
    shutil.copytree(place.source, tmp_path / "source")
    here = DataPlace(tmp_path / "data", source=tmp_path / "source", offline=True)
    path = sorted((tmp_path / "source").rglob("*.xml"))[3]
    path.write_text("<StrokeSet/>")
    with pytest.raises(DataError, match=rf"{path.name}: .*task\.damaged=skip"):
        built().prepare(here)
    task = built(damaged="skip")
    found = task.prepare(here)
    assert found.details["damaged"] == [path.stem]
    assert found.details["lines"] == 51
    again = built(damaged="skip").prepare(replace(here, source=None))
    assert again.details == found.details
    for path in (tmp_path / "source").rglob("*.xml"):
        path.write_text("")
    with pytest.raises(DataError, match="all others are damaged"):
        built(damaged="skip").prepare(here)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_writing_without_height_or_width(tmp_path: Path, axis: str) -> None:
    draw = np.random.default_rng(0)
    keep = 0 if axis == "y" else 1
    for form in range(40):
        path = tmp_path / "source" / f"b{form:02}-{form:03}z-01.xml"
        path.parent.mkdir(exist_ok=True)
        flat = [stroke * np.eye(2)[keep] for stroke in loops(10, draw)]
        path.write_text(iam_line(flat, draw), encoding="iso-8859-1")
    with pytest.raises(DataError, match="the same in one axis"):
        built(split="forms").prepare(DataPlace(tmp_path, source=tmp_path / "source"))


@pytest.mark.parametrize(
    "fields",
    [
        {"max_length": 7},
        {"split_seed": 1},
        {"split": "forms", "second_validation": "train"},
        {"components": 0},
        {"ending": "eos"},
        {"smallest_deviation": 0.0},
    ],
)
def test_fields_that_contradict_each_other(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        built(**fields)


class Script:
    """A model that answers at step t, whatever it reads, what it was told for t; it has no state."""

    training = False

    def __init__(self, answers: torch.Tensor) -> None:
        self.answers = answers  # (T, K)
        self.read: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor, lengths: object = None, state: object = None) -> ModelOutput:
        self.read.append(x)
        outputs = self.answers[: x.shape[1]].expand(len(x), -1, -1)
        return ModelOutput(outputs, outputs[:, -1], None, None, None, {})


def request(steps: int, *, count: int = 1, seed: int = 0, temperature: float = 1.0) -> Request:
    generator = torch.Generator().manual_seed(seed)
    return Request(count=count, steps=steps, temperature=temperature, generator=generator)


def scripted(task: Handwriting, moves: list[tuple[float, float]], pens: list[float]) -> torch.Tensor:
    """Answers whose every component stands on one move (in units of the board); pens are logits."""
    mean, deviation = np.array(task.memory()["mean"]), np.array(task.memory()["deviation"])
    answers = torch.zeros(len(moves), task.spec.outputs)
    answers[:, 0] = torch.tensor(pens)
    for t, move in enumerate(moves):
        x, y = (np.array(move) - mean) / deviation
        answers[t, 1 + M : 1 + 2 * M], answers[t, 1 + 2 * M : 1 + 3 * M] = float(x), float(y)
    return answers


MOVES = [(3.0, -4.0), (10.0, 0.5), (-2.0, 7.0), (1.0, 1.0)]
PENS = [-99.0, 99.0, -99.0, 99.0]


@pytest.mark.parametrize("coordinates", ["offsets", "positions"])
def test_a_drawn_line_is_in_units_of_the_board(place: DataPlace, coordinates: str) -> None:
    task = prepared(place, coordinates=coordinates)
    model = Script(scripted(task, MOVES, PENS))
    (line,) = task.generate(model, request(5, temperature=0.0))
    points = np.cumsum(MOVES, axis=0) if coordinates == "offsets" else np.array(MOVES)
    expected = [(0.0, 0.0, 0), *((x, y, pen > 0) for (x, y), pen in zip(points, PENS, strict=True))]
    assert line.text.splitlines() == [f"{x:.1f} {y:.1f} {int(pen)}" for x, y, pen in expected]
    assert (line.steps, line.ended) == (5, False)


def test_each_drawn_row_is_read_next(place: DataPlace) -> None:
    """After the row that training lines begin with, the pen on the board."""
    task = prepared(place)
    model = Script(scripted(task, MOVES, PENS))
    task.generate(model, request(5, temperature=0.0))
    assert [x.shape for x in model.read] == [(1, t, 3) for t in range(1, 5)]
    read = model.read[-1][0]
    mean, deviation = np.array(task.memory()["mean"]), np.array(task.memory()["deviation"])
    expected = (np.array([(0, 0), *MOVES[:3]]) - mean) / deviation
    np.testing.assert_allclose(read[:, :2].numpy(), expected, atol=1e-5)
    assert read[:, 2].tolist() == [0, 0, 1, 0]
    first = task.dataset("test")[0].x[0]
    np.testing.assert_allclose(read[0, :2].numpy(), first[:2].numpy(), atol=1e-6)


@pytest.mark.parametrize("ending", ["end_symbol", "halt"])
def test_a_line_ends_where_the_model_says_so(place: DataPlace, ending: str) -> None:
    task = prepared(place, ending=ending)
    answers = scripted(task, MOVES, [-9.0] * 4)
    answers[:, -1] = torch.tensor([-99.0, -99.0, 99.0, -99.0])
    lines = task.generate(Script(answers), request(5, count=3))
    assert [(line.steps, line.ended) for line in lines] == [(3, True)] * 3
    assert [len(line.text.splitlines()) for line in lines] == [3] * 3
    answers[:, -1] = -99.0
    assert [(line.steps, line.ended) for line in task.generate(Script(answers), request(5))] == [(5, False)]


@pytest.mark.parametrize("ending", ["end_symbol", "halt"])
def test_lines_end_and_lift_the_pen_as_often_as_the_model_says(place: DataPlace, ending: str) -> None:
    """Lengths are geometric: down, up and end have 0.5, 0.3 and 0.2."""
    task = prepared(place, ending=ending)
    answers = scripted(task, [(0.0, 0.0)] * 60, [math.log(3 / 5)] * 60)
    answers[:, -1] = math.log(2 / 5) if ending == "end_symbol" else math.log(2 / 8)
    lines = task.generate(Script(answers), request(60, count=4000))
    assert all(line.ended for line in lines)
    moves = np.array([line.steps - 1 for line in lines])
    assert moves.mean() == pytest.approx(4, abs=0.25)
    assert (moves == 0).mean() == pytest.approx(0.2, abs=0.02)
    pens = np.concatenate([[row[-1] == "1" for row in line.text.splitlines()[1:]] for line in lines])
    assert pens.mean() == pytest.approx(3 / 8, abs=0.015)


def test_a_length_is_drawn_first_and_counted_down(place: DataPlace) -> None:
    task = prepared(place, ending="length")
    answers = scripted(task, [(0.0, 0.0)] * 400, [-9.0] * 400)
    answers[1:, -2:] = 99.0  # read at the first step only
    answers[0, -2:] = torch.tensor([math.log(12 / task.memory()["mean_steps"]), math.log(3.0)])
    model = Script(answers)
    lines = task.generate(model, request(400, count=2000))
    assert all(line.ended for line in lines)
    moves = np.array([line.steps - 1 for line in lines])
    assert moves.mean() == pytest.approx(12, abs=0.6)
    assert moves.var() == pytest.approx(12 + 12**2 / 3, rel=0.1)
    remaining = model.read[-1][:, :, 3] * task.memory()["mean_steps"]
    for line, counted in zip(moves, remaining.numpy(), strict=True):
        expected = np.maximum(line - np.arange(len(counted)), 0)
        expected[0] = 0
        np.testing.assert_allclose(counted, expected, atol=1e-4)


def test_a_length_beyond_the_steps_asked_for_is_cut(place: DataPlace) -> None:
    task = prepared(place, ending="length")
    answers = scripted(task, [(0.0, 0.0)] * 9, [-9.0] * 9)
    for log_dispersion in (10.0, -5.0):
        answers[0, -2:] = torch.tensor([60.0, log_dispersion])
        lines = task.generate(Script(answers), request(10, count=50))
        assert (10, False) in {(line.steps, line.ended) for line in lines}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_model_with_state_writes_what_it_writes_without(place: DataPlace, ending: str) -> None:
    task = prepared(place, ending=ending)
    config = MODELS["lstm"](hidden_size=7)
    drawn = []
    for carry in (True, False):
        torch.manual_seed(0)
        model = config.build(replace(task.spec, carry_state=carry)).eval()
        drawn.append(task.generate(model, request(12, count=3, seed=5)))
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 3
    assert len({line.text for line in drawn[0]}) > 1


def test_writing_needs_the_scale_and_no_data(place: DataPlace) -> None:
    task = prepared(place)
    model = Script(scripted(task, MOVES, PENS))
    with pytest.raises(RuntimeError, match="prepare or recall"):
        built().generate(model, request(3))
    recalled = built()
    recalled.recall(task.memory())
    assert recalled.generate(model, request(5)) == task.generate(model, request(5))
    for damaged in ({}, {"mean": [1], "deviation": [1, 1], "mean_steps": 3}, {"mean": None}):
        with pytest.raises(IntegrityError, match=r"task\.json"):
            built().recall(damaged)


def test_what_cannot_be_asked_for(place: DataPlace) -> None:
    task = prepared(place)
    for fields in ({"prime": "Hello"}, {"stop": "."}):
        with pytest.raises(UserError, match="--prime"):
            task.generate(Script(torch.zeros(9, task.spec.outputs)), replace(request(3), **fields))


def test_a_model_that_answers_no_numbers(place: DataPlace) -> None:
    task = prepared(place)
    answers = torch.zeros(9, task.spec.outputs)
    answers[2, 5] = math.nan
    with pytest.raises(DivergedError, match="at step 3"):
        task.generate(Script(answers), request(9))


def test_a_picture_of_what_was_drawn(place: DataPlace) -> None:
    task = prepared(place)
    lines = task.generate(Script(torch.zeros(60, task.spec.outputs)), request(40, count=2))
    image = matplotlib.image.imread(io.BytesIO(task.picture(lines)), format="png")
    assert image.ndim == 3
    assert image.shape[1] > image.shape[0] > 50
    assert image[..., :3].min() == 0
    assert task.picture([Drawn("0.0 0.0 0", 1, False)]).startswith(b"\x89PNG")
