"""What every entry of the TASKS table keeps."""

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from seqpyramid.contracts import SPLITS, Batch, Split
from seqpyramid.data.loading import collate
from seqpyramid.errors import IntegrityError
from seqpyramid.tasks import TASKS
from seqpyramid.tasks.base import DataPlace, Prepared, Task

from .tiny import TINY


class Case(NamedTuple):
    name: str
    task: Task
    prepared: Prepared
    place: DataPlace


def test_every_task_has_a_tiny_config() -> None:
    assert TINY
    assert set(TINY) == set(TASKS)
    assert all(type(tiny.config) is TASKS[name] for name, tiny in TINY.items())


@pytest.fixture(scope="module", params=sorted(TINY))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    tiny = TINY[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        if tiny.write_source is not None:
            (folder / "source").mkdir()
            tiny.write_source(folder / "source", patch)
        source = None if tiny.write_source is None else folder / "source"
        place = DataPlace(folder / "data", source=source, offline=True)
        task = tiny.config.build()
        yield Case(request.param, task, task.prepare(place), place)


def outputs_for(task: Task, batch: Batch) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (len(batch.y), task.spec.outputs)
    if task.spec.needs == "steps":
        shape = (*batch.x.shape[:2], task.spec.outputs)
    return torch.randn(shape, generator=generator)


def parts(batch: Batch, sizes: list[int]) -> list[Batch]:
    return [Batch(*fields) for fields in zip(*(tensor.split(sizes) for tensor in batch), strict=True)]


def test_config_survives_being_written_down(case: Case) -> None:
    config = TINY[case.name].config
    assert TASKS[case.name].model_validate(json.loads(config.model_dump_json())) == config
    assert config.summary_line
    assert config.needs == case.task.spec.needs
    default = TASKS[case.name].model_fields["name"].default
    assert default == case.name


def test_prepared_tells_the_splits(case: Case) -> None:
    prepared = case.prepared
    assert prepared.built == (prepared.path is not None)
    assert tuple(prepared.splits) == SPLITS
    assert prepared.splits == {split: len(case.task.dataset(split)) for split in SPLITS}
    assert min(prepared.splits.values()) > 0
    assert len(prepared.fingerprint) == len(prepared.split_hash) == 16
    json.dumps(prepared.details, allow_nan=False)


def test_the_cache_lies_where_caches_lie(case: Case) -> None:
    if case.prepared.path is not None:
        expected = case.place.caches / f"{case.name}-{case.prepared.fingerprint}.h5"
        assert case.prepared.path == expected
        assert expected.exists()


def test_preparing_again_finds_the_same_and_builds_nothing(case: Case) -> None:
    again = TINY[case.name].config.build()
    found = again.prepare(DataPlace(case.place.root, source=None, offline=True))
    assert not found.built
    assert found == Prepared(**{**vars(case.prepared), "built": False})
    for split in SPLITS:
        everything = torch.arange(len(case.task.dataset(split)))
        for ours, theirs in zip(
            case.task.dataset(split).batch(everything), again.dataset(split).batch(everything), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_force_builds_the_same_anew(case: Case) -> None:
    before = case.task.dataset("test").batch(torch.arange(5))
    again = TINY[case.name].config.build()
    said: list[tuple[str, int, int]] = []
    forced = again.prepare(case.place, force=True, progress=lambda *words: said.append(words))
    assert forced == case.prepared
    assert bool(said) == forced.built
    assert all(0 <= done <= total for _, done, total in said)
    assert torch.equal(again.dataset("test").batch(torch.arange(5)).x, before.x)


def test_a_flipped_byte_in_the_cache_is_seen(case: Case, tmp_path: Path) -> None:
    if case.prepared.path is None:
        pytest.skip("this task has no cache")
    content = bytearray(case.prepared.path.read_bytes())
    content[len(content) // 2] ^= 1
    place = DataPlace(tmp_path, offline=True)
    place.caches.mkdir()
    (place.caches / case.prepared.path.name).write_bytes(content)
    for pointer in case.place.caches.glob("*.latest"):  # which cache the source led to
        (place.caches / pointer.name).write_bytes(pointer.read_bytes())
    with pytest.raises(IntegrityError, match="prepare-data RECIPE --force"):
        TINY[case.name].config.build().prepare(place)


def test_data_before_preparing_is_a_bug_of_the_caller(case: Case) -> None:
    with pytest.raises(RuntimeError, match="prepare"):
        TINY[case.name].config.build().dataset("train")


@pytest.mark.parametrize("split", SPLITS)
def test_batches_are_what_the_spec_says(case: Case, split) -> None:
    dataset, spec = case.task.dataset(split), case.task.spec
    batch = dataset.batch(torch.arange(min(6, len(dataset))))
    assert batch.x.ndim == 3
    assert batch.x.shape[2] == spec.input_size
    assert batch.x.dtype == torch.float32
    assert batch.x.isfinite().all()
    assert batch.lengths.shape == (len(batch.x),)
    assert batch.lengths.device.type == "cpu"
    assert not batch.lengths.is_floating_point()
    assert int(batch.lengths.min()) >= 1
    assert int(batch.lengths.max()) == batch.x.shape[1]
    if spec.max_length is not None:
        assert batch.x.shape[1] <= spec.max_length
    if case.task.class_names is not None:
        assert len(case.task.class_names) == spec.outputs
        assert batch.y.dtype == torch.int64
        assert 0 <= int(batch.y.min()) <= int(batch.y.max()) < spec.outputs


@pytest.mark.parametrize("split", SPLITS)
def test_a_batch_is_its_examples_put_together(case: Case, split) -> None:
    dataset = case.task.dataset(split)
    indices = torch.tensor([3, 0, len(dataset) - 1, 3])
    batch = dataset.batch(indices)
    for other in (collate, case.task.collate) if batch.y.ndim == 1 else (case.task.collate,):
        for ours, theirs in zip(batch, other([dataset[int(i)] for i in indices]), strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def test_a_dataset_moves_whole_and_its_lengths_stay(case: Case) -> None:
    """The meta device stands in for an accelerator: mixing it with the CPU raises."""
    moved = case.task.dataset("test").to(torch.device("meta"))
    batch = moved.batch(torch.arange(4))
    assert (batch.x.device.type, batch.lengths.device.type, batch.y.device.type) == ("meta", "cpu", "meta")
    assert batch.lengths.tolist() == case.task.dataset("test").batch(torch.arange(4)).lengths.tolist()
    assert len(moved) == case.prepared.splits["test"]
    assert case.task.dataset("test").nbytes > 0  # or the loop would never move it


def sequences(case: Case, split: Split) -> set[bytes]:
    """All inputs; of a text, one example of which is one character, the windows of an evaluation."""
    dataset = case.task.dataset(split)
    if not case.task.spec.carry_state:
        return {dataset[i].x.numpy().tobytes() for i in range(len(dataset))}
    batches = map(dataset.batch, dataset.plan(7, seed=0, epoch=0, shuffle=False))
    return {x[:n].numpy().tobytes() for batch in batches for x, n in zip(batch.x, batch.lengths, strict=True)}


def test_no_example_is_in_two_splits(case: Case) -> None:
    contents = {split: sequences(case, split) for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not contents[one] & contents[other]


def test_an_epoch_is_a_function_of_seed_and_epoch(case: Case) -> None:
    dataset = case.task.dataset("train")
    plans = [
        torch.cat(dataset.plan(7, seed=seed, epoch=epoch)) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert torch.equal(plans[0], plans[1])
    if case.task.spec.carry_state:  # a text is read in its own order, window after window
        assert all(torch.equal(plans[0], plan) for plan in plans)
        covered = [start + i for start, length in plans[0].tolist() for i in range(length)]
        assert sorted(covered) == list(range(len(dataset)))
        return
    assert not torch.equal(plans[0], plans[2])
    assert not torch.equal(plans[0], plans[3])
    for plan in plans:
        assert plan.sort().values.tolist() == list(range(len(dataset)))


def test_loss_is_a_sum_and_a_count(case: Case) -> None:
    batch = case.task.dataset("test").batch(torch.arange(12))
    outputs = outputs_for(case.task, batch).double().requires_grad_()
    total, count = case.task.loss(outputs, batch)
    assert total.shape == count.shape == ()
    assert count.item() > 0
    sizes = [1, 4, 7]
    pieces = [case.task.loss(o, b) for o, b in zip(outputs.split(sizes), parts(batch, sizes), strict=True)]
    torch.testing.assert_close(sum(p[0] for p in pieces), total, rtol=1e-12, atol=0)
    assert sum(p[1].item() for p in pieces) == count.item()
    (gradient,) = torch.autograd.grad(total, outputs)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_half_precision_outputs_are_summed_in_single(case: Case) -> None:
    batch = case.task.dataset("test").batch(torch.arange(12))
    outputs = outputs_for(case.task, batch).bfloat16()
    total, _ = case.task.loss(outputs, batch)
    expected, _ = case.task.loss(outputs.double(), batch)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_metrics_do_not_depend_on_batching(case: Case) -> None:
    dataset = case.task.dataset("test")
    batch = dataset.batch(torch.arange(len(dataset)))
    outputs = outputs_for(case.task, batch)
    results = []
    for size in (len(dataset), 7, 1):
        metrics = case.task.metrics()
        sizes = list(map(len, torch.arange(len(dataset)).split(size)))
        for o, b in zip(outputs.split(sizes), parts(batch, sizes), strict=True):
            metrics.update(o, b)
        results.append(metrics.compute())
    assert case.task.selection.metric in results[0]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-6)
    total, count = case.task.loss(outputs, batch)
    assert results[0]["loss"] == pytest.approx(total.item() / count.item(), rel=1e-5)


def test_metrics_of_nothing_are_no_numbers(case: Case) -> None:
    with pytest.raises(ValueError, match="no batch"):
        case.task.metrics().compute()


def test_trivial_names_the_loss_and_the_selection_metric(case: Case) -> None:
    assert {"loss", case.task.selection.metric} <= set(case.task.trivial())
