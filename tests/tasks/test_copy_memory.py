import math
from pathlib import Path

import numpy as np
import pytest
import torch

from seqpyramid.contracts import SPLITS, Batch
from seqpyramid.tasks import copy_memory
from seqpyramid.tasks.base import DataPlace
from seqpyramid.tasks.copy_memory import CopyMemory, CopyMemoryConfig

SMALL = {"length": 6, "train": 400, "validation": 50, "test": 60}


def prepared(folder: Path, **fields: object) -> CopyMemory:
    task = CopyMemoryConfig(**{**SMALL, **fields}).build()
    task.prepare(DataPlace(folder, offline=True))
    return task


def everything(task: CopyMemory, split: str = "test") -> Batch:
    dataset = task.dataset(split)  # type: ignore[arg-type]
    return dataset.batch(torch.arange(len(dataset)))


@pytest.mark.parametrize("length", [1, 6, 500])
def test_a_sequence_is_symbols_blanks_marks(tmp_path: Path, length: int) -> None:
    task = prepared(tmp_path, length=length, test=5)
    batch = everything(task)
    assert batch.x.shape == (5, length + 20, 10)
    assert task.spec.max_length == length + 20
    assert batch.lengths.tolist() == [length + 20] * 5
    for x, y in zip(batch.x, batch.y.tolist(), strict=True):
        assert len(y) == 10
        assert set(y) <= set(range(8))
        sequence = y + [8] * (length - 1) + [9] * 11
        assert x.tolist() == [[float(place == symbol) for place in range(10)] for symbol in sequence]


def test_the_go_mark_comes_one_step_before_the_first_answer(tmp_path: Path) -> None:
    symbols = everything(prepared(tmp_path)).x[0].argmax(-1).tolist()
    go = symbols.index(9)
    assert len(symbols) - go == 11
    assert go == 10 + 6 - 1


def test_numbers_say_the_same_as_one_of_ten(tmp_path: Path) -> None:
    one, other = everything(prepared(tmp_path)), everything(prepared(tmp_path, encoding="scalar"))
    assert other.x.shape == (60, 26, 1)
    assert torch.equal(one.x.argmax(-1).float(), other.x.squeeze(-1))
    assert torch.equal(one.y, other.y)


def test_symbols_are_uniform_at_every_place(tmp_path: Path) -> None:
    y = everything(prepared(tmp_path, train=20_000), "train").y
    counts = torch.stack([column.bincount(minlength=8) for column in y.T]).double()
    expected = len(y) / 8
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square == pytest.approx(70, abs=5 * math.sqrt(2 * 70))  # 10 places of 7 degrees each
    pairs = (y[:, 0] * 8 + y[:, 1]).bincount(minlength=64).double()
    assert ((pairs - len(y) / 64) ** 2 / (len(y) / 64)).sum().item() == pytest.approx(63, abs=60)


def test_no_sequence_comes_twice() -> None:
    class Stutters:
        def integers(self, low: int, high: int, *, size: int, dtype: type) -> np.ndarray:
            self.asked = [*getattr(self, "asked", []), size]
            return np.arange(size, dtype=dtype) // 2 + sum(self.asked[:-1])

    generator = Stutters()
    taken = np.array([1, 3])
    found = copy_memory._distinct(generator, 6, taken)  # type: ignore[arg-type]
    assert len(set(found.tolist())) == 6
    assert not set(found.tolist()) & set(taken.tolist())
    assert len(generator.asked) > 1


def test_all_lengths_and_options_share_the_symbols(tmp_path: Path) -> None:
    place = DataPlace(tmp_path, offline=True)
    first = CopyMemoryConfig(**SMALL).build().prepare(place)
    for fields in ({"length": 70}, {"encoding": "scalar"}, {"classes": 10, "loss_over": "all"}):
        found = CopyMemoryConfig(**{**SMALL, **fields}).build().prepare(place)
        assert found.path == first.path
        assert not found.built
    other = CopyMemoryConfig(**{**SMALL, "data_seed": 1}).build()
    assert other.prepare(place).built
    assert not torch.equal(everything(other).y, everything(prepared(tmp_path)).y)


@pytest.mark.parametrize("classes", [8, 10])
def test_trivial_is_the_best_constant_answer(tmp_path: Path, classes: int) -> None:
    task = prepared(tmp_path, classes=classes)
    assert task.trivial() == {"loss": pytest.approx(2.0794, abs=5e-5), "accuracy": 0.125}
    batch = everything(task)
    answer = torch.full((classes,), -math.inf, dtype=torch.float64)
    answer[:8] = -math.log(8)
    metrics = task.metrics()
    metrics.update(answer.expand(60, 26, classes), batch)
    found = metrics.compute()
    assert found["loss"] == pytest.approx(task.trivial()["loss"], rel=1e-12)
    assert found["accuracy"] == pytest.approx(0.125, abs=5 * math.sqrt(0.125 * 0.875 / 600))
    worse = answer.clone()
    worse[:8] += torch.linspace(-0.5, 0.5, 8)  # logits, so this is a distribution too
    total, count = task.loss(worse.expand(60, 26, classes), batch)
    assert total.item() / count.item() > found["loss"] + 0.02


def test_over_all_steps_the_trivial_loss_is_the_other_papers(tmp_path: Path) -> None:
    task = prepared(tmp_path, length=1000, test=20, loss_over="all", classes=10)
    assert task.trivial()["loss"] == pytest.approx(10 * math.log(8) / 1020, rel=1e-12)
    assert task.trivial()["loss"] == pytest.approx(0.0204, abs=5e-5)
    batch = everything(task)
    answers = torch.full((20, 1020, 10), -math.inf, dtype=torch.float64)
    answers[:, :1010, 8] = 0
    answers[:, 1010:, :8] = 0
    total, count = task.loss(answers, batch)
    assert count.item() == 20 * 1020
    assert total.item() / count.item() == pytest.approx(task.trivial()["loss"], rel=1e-12)
    metrics = task.metrics()
    metrics.update(answers, batch)
    assert metrics.compute()["loss"] == pytest.approx(task.trivial()["loss"], rel=1e-12)


@pytest.mark.parametrize(("loss_over", "steps"), [("last_ten", 10), ("all", 26)])
def test_only_the_steps_that_count_have_a_gradient(tmp_path: Path, loss_over: str, steps: int) -> None:
    task = prepared(tmp_path, loss_over=loss_over, classes=10)
    outputs = torch.randn(60, 26, 10, requires_grad=True)
    total, count = task.loss(outputs, everything(task))
    assert count.item() == 60 * steps
    (gradient,) = torch.autograd.grad(total, outputs)
    assert (gradient.abs().sum((0, 2)) > 0).tolist() == [False] * (26 - steps) + [True] * steps


@pytest.mark.parametrize("loss_over", ["last_ten", "all"])
def test_metrics_weigh_the_steps_as_the_loss_does(tmp_path: Path, loss_over: str) -> None:
    task = prepared(tmp_path, loss_over=loss_over, classes=10)
    batch, outputs = everything(task), torch.randn(60, 26, 10) + torch.arange(10)
    metrics = task.metrics()
    metrics.update(outputs, batch)
    total, count = task.loss(outputs, batch)
    assert metrics.compute()["loss"] == pytest.approx(total.item() / count.item(), rel=1e-5)


@pytest.mark.parametrize("loss_over", ["last_ten", "all"])
def test_remembering_is_rewarded_in_order(tmp_path: Path, loss_over: str) -> None:
    task = prepared(tmp_path, loss_over=loss_over, classes=10)
    batch = everything(task)
    right = torch.zeros(60, 26, 10)
    right[:, :-10, 8] = 50
    right[:, -10:].scatter_(2, batch.y.unsqueeze(-1), 50.0)
    scores = []
    for answers in (right, torch.cat([right[:, :-5], right[:, -5:].roll(1, dims=2)], dim=1)):
        metrics = task.metrics()
        metrics.update(answers, batch)
        scores.append(metrics.compute())
    assert scores[0] == {"loss": pytest.approx(0, abs=1e-12), "accuracy": 1.0}
    assert scores[1]["accuracy"] == 0.5
    assert scores[1]["loss"] == pytest.approx(25.0 if loss_over == "last_ten" else 50 * 5 / 26, rel=1e-6)


def test_the_spec_follows_the_options() -> None:
    found = CopyMemoryConfig(**SMALL, encoding="scalar", classes=10).build().spec
    assert (found.input_size, found.outputs, found.needs) == (1, 10, "steps")
    assert CopyMemoryConfig(**SMALL).build().spec.input_size == 10
    assert not CopyMemory.writes_predictions


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"loss_over": "all"}, "set classes to 10"),
        ({"classes": 9}, "8 or 10"),
        ({"length": 0}, "greater than or equal to 1"),
        ({"train": 0}, "greater than 0"),
        ({"test": 10**9}, "10000000"),
        ({"encoding": "embedding"}, "one_hot"),
        ({"loss_over": "first"}, "last_ten"),
    ],
)
def test_bad_fields(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CopyMemoryConfig(**{**SMALL, **fields})


def test_the_hash_tells_the_sizes_apart(tmp_path: Path) -> None:
    place = DataPlace(tmp_path, offline=True)
    found = CopyMemoryConfig(**SMALL).build().prepare(place)
    assert found.splits == {split: SMALL[split] for split in SPLITS}
    assert found.split_hash != CopyMemoryConfig(**{**SMALL, "test": 61}).build().prepare(place).split_hash
