"""Character language models: streams, windows, scheduled sampling, generation; generated text, and real where it is."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from seqpyramid.contracts import SPLITS, Batch, ModelOutput, TaskSpec
from seqpyramid.data.loading import IGNORED
from seqpyramid.data.streams import one_hot
from seqpyramid.errors import DataError, IntegrityError, UserError
from seqpyramid.models import MODELS
from seqpyramid.models.base import SequenceModel
from seqpyramid.tasks.base import DataPlace, Request
from seqpyramid.tasks.char_lm import CharLM, CharLMConfig
from seqpyramid.tasks.scheduled_sampling import Exponential, InverseSigmoid, Linear
from seqpyramid.tasks.text_writer import Alphabet, draw
from seqpyramid.train.evaluate import evaluate
from seqpyramid.train.loop import detached

LETTERS = "abcdefg \n"
CPU = torch.device("cpu")


@pytest.fixture
def place(tmp_path: Path) -> DataPlace:
    """A source with 1,000 random letters."""
    (tmp_path / "source").mkdir()
    letters = np.random.default_rng(1).choice(list(LETTERS), 1000)
    (tmp_path / "source" / "book.txt").write_bytes("".join(letters).encode())
    return DataPlace(tmp_path / "data", source=tmp_path / "source", offline=True)


def config(**fields: Any) -> CharLMConfig:
    return CharLMConfig.model_validate({"corpus": "file"} | fields)


def prepared(place: DataPlace, **fields: Any) -> CharLM:
    task = config(**fields).build()
    task.prepare(place)
    return task


def recalled(**fields: Any) -> CharLM:
    """A task that knows its letters and has no text."""
    task = config(**fields).build()
    task.recall({"symbols": sorted(map(ord, LETTERS))})
    return task


def build(spec: TaskSpec, name: str = "lstm", **fields: Any) -> SequenceModel:
    torch.manual_seed(0)
    return MODELS[name].model_validate({"name": name, "hidden_size": 12} | fields).build(spec).eval()


class Next:
    """Says the symbol after the one it reads, in a circle; its state is how many steps it has read.

    Args:
        shift: how far on.
        sharp: how sure it is.
    """

    def __init__(self, shift: int = 1, sharp: float = 1e4) -> None:
        self.training = False
        self.shift, self.sharp = shift, sharp
        self.read: list[list[int]] = []
        self.states: list[Any] = []

    def __call__(self, x: Tensor, lengths: Tensor | None = None, state: Any = None) -> ModelOutput:
        assert bool((x.sum(-1) == 1).all())
        self.read += x.argmax(-1).T.tolist()
        self.states.append(state)
        count = x.shape[1] + (0 if state is None else state)
        return ModelOutput(self.sharp * x.roll(self.shift, -1), x[:, -1], x, count, None, {})


# --- streams and windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fields"), [("lstm", {}), ("hm_lstm", None)])
def test_carried_windows_equal_the_whole(place: DataPlace, name: str, fields: dict[str, Any] | None) -> None:
    results = []
    for window in (4, 1000):
        task = prepared(place, window=window, evaluation_streams=3)
        fields = fields if fields is not None else {"hidden_sizes": (4, 4), "embedding_size": 5}
        inner = {"name": name} | ({"hidden_size": 12} if name == "lstm" else fields)
        torch.manual_seed(0)
        model = MODELS[name].model_validate(inner).build(task.spec)
        results.append(evaluate(model, task, task.dataset("test"), device=CPU, batch_size=7).metrics)
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    anew = prepared(place, window=4, carry_state=False)
    forgetful = MODELS[name].model_validate(inner).build(anew.spec)
    forgetful.load_state_dict(model.state_dict())
    found = evaluate(forgetful, anew, anew.dataset("test"), device=CPU, batch_size=7).metrics
    assert abs(found["loss"] - results[0]["loss"]) > 1e-7


def test_enough_context_equals_the_whole(place: DataPlace) -> None:
    whole = prepared(place, evaluation_streams=1)
    parts = prepared(place, window=4, context=1000, carry_state=False)
    model, same = build(whole.spec), build(parts.spec)
    found = [
        evaluate(m, task, task.dataset("test"), device=CPU, batch_size=5).metrics
        for m, task in ((model, whole), (same, parts))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


# --- data ------------------------------------------------------------------------------------------------------------


def test_splits_are_contiguous_and_in_proportion(place: DataPlace) -> None:
    task = config(proportions=[7, 1, 2]).build()
    found = task.prepare(place)
    assert found.splits == {"train": 699, "validation": 99, "test": 199}
    assert found.details["characters"] == {"train": 700, "validation": 100, "test": 200}
    assert place.source is not None
    letters = (place.source / "book.txt").read_text()
    symbols = sorted(set(letters))
    joined = "".join(symbols[code] for split in SPLITS for code in task.dataset(split)._codes)
    assert joined == letters
    other = config(proportions=[8, 1, 1]).build().prepare(place)
    assert not other.built
    assert other.split_hash != found.split_hash


def test_limits_cut_each_split_at_its_beginning(place: DataPlace) -> None:
    whole = prepared(place)
    few = config(train_limit=50, validation_limit=20, test_limit=10).build()
    assert few.prepare(place).splits == {"train": 49, "validation": 19, "test": 9}
    for split in SPLITS:
        codes = few.dataset(split)._codes
        assert torch.equal(codes, whole.dataset(split)._codes[: len(codes)])


def test_what_training_never_saw_is_counted(place: DataPlace) -> None:
    assert place.source is not None
    (place.source / "book.txt").write_text("ab" * 45 + "axbxa" + "ayzab")
    found = config().build().prepare(place)
    assert found.details["unseen_in_training"] == {
        "validation": {"symbols": 1, "times": 2},
        "test": {"symbols": 2, "times": 2},
    }
    assert found.details["symbols"] == 5


def test_other_content_is_another_cache_and_the_last_is_remembered(place: DataPlace) -> None:
    assert place.source is not None
    first = config().build().prepare(place)
    (place.source / "book.txt").write_text("abc" * 100)
    second = config().build().prepare(place)
    assert second.built
    assert second.fingerprint != first.fingerprint
    later = config().build().prepare(DataPlace(place.root))
    assert later.fingerprint == second.fingerprint


def test_a_text_named_by_its_path(place: DataPlace) -> None:
    assert place.source is not None
    (place.source / "other.txt").write_text("xyz" * 50)
    found = config(path="other.txt").build().prepare(place)
    assert found.details["symbols"] == 3
    assert config(path="other.txt").build().prepare(DataPlace(place.root)).fingerprint == found.fingerprint
    with pytest.raises(DataError, match=r"book.*other.*task\.path"):
        config().build().prepare(place)


def test_bytes_and_characters_are_two_caches(place: DataPlace) -> None:
    assert place.source is not None
    (place.source / "book.txt").write_text("aä" * 50, encoding="utf-8")
    assert config().build().prepare(place).details["symbols"] == 2
    assert config(units="bytes").build().prepare(place).details["symbols"] == 3


def test_no_text_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no text was named; give .* --source"):
        config().build().prepare(DataPlace(tmp_path))
    with pytest.raises(DataError, match=r"none\.txt: there is no such file; give"):
        config(path="none.txt").build().prepare(DataPlace(tmp_path))


@pytest.mark.parametrize("content", ["", "a", "abc" * 10])
def test_a_text_too_short_to_split(place: DataPlace, content: str) -> None:
    assert place.source is not None
    (place.source / "book.txt").write_text(content)
    with pytest.raises(DataError, match=f"{len(content)} characters leave . for .*longer text"):
        config().build().prepare(place)


def test_the_spec_is_known_where_the_text_is(place: DataPlace) -> None:
    assert not config().spec_known
    with pytest.raises(RuntimeError, match="prepare before spec"):
        _ = config().build().spec
    spec = prepared(place).spec
    assert spec == TaskSpec(input_size=9, outputs=9, needs="steps", causal=True, carry_state=True)
    anew = prepared(place, carry_state=False, window=30, context=20).spec
    assert (anew.carry_state, anew.max_length) == (False, 50)
    for corpus, fields, symbols in (
        ("ptb", {}, 50),
        ("ptb", {"eos": "none"}, 49),
        ("text8", {}, 27),
        ("enwik8", {}, 205),
    ):
        known = config(corpus=corpus, **fields)
        assert known.spec_known
        assert known.build().spec.outputs == symbols


def test_real_texts(shared: Path, tmp_path: Path) -> None:
    play = config().build().prepare(DataPlace(tmp_path, source=shared / "data" / "text"))
    assert sum(play.details["characters"].values()) == 1_115_394
    assert play.details["symbols"] == 65
    task = config(corpus="ptb").build()
    found = task.prepare(DataPlace(tmp_path, source=shared / "data" / "ptb"))
    assert found.splits == {"train": 5_059_549, "validation": 396_411, "test": 446_183}
    assert found.details["unseen_in_training"]["test"] == {"symbols": 0, "times": 0}
    again = config(corpus="ptb").build().prepare(DataPlace(tmp_path))
    assert not again.built
    assert task.spec.outputs == len(task.memory()["symbols"]) == 50
    assert 4.0 < task.trivial()["bpc"] < 4.5


# --- scores ----------------------------------------------------------------------------------------------------------


def test_trivial_is_the_best_constant_answer(place: DataPlace) -> None:
    task = prepared(place)
    dataset = task.dataset("test")
    batches = [dataset.batch(rows) for rows in dataset.plan(1, seed=0, epoch=0, shuffle=False)]
    asked = torch.cat([batch.y[batch.y != IGNORED] for batch in batches])
    shares = asked.bincount(minlength=9) / len(asked)
    metrics = task.metrics()
    for batch in batches:
        metrics.update(shares.log().expand(*batch.y.shape, -1), batch)
    assert metrics.compute() == pytest.approx(task.trivial(), rel=1e-5)


def test_bits_are_nats_over_ln_2_and_ignored_steps_do_not_count() -> None:
    task = recalled()
    outputs = torch.zeros(2, 3, 9)
    outputs[0, 0, 4] = 50.0
    y = torch.tensor([[4, 0, IGNORED], [IGNORED, IGNORED, 8]])
    batch = Batch(outputs, torch.tensor([3, 3]), y)
    metrics = task.metrics()
    metrics.update(outputs, batch)
    expected = {"loss": 2 * math.log(9) / 3, "bpc": 2 * math.log2(9) / 3, "accuracy": 2 / 3}
    assert metrics.compute() == pytest.approx(expected, rel=1e-6)
    total, count = task.loss(outputs, batch)
    assert total.item() == pytest.approx(2 * math.log(9), rel=1e-6)
    assert count.item() == 3


def test_a_network_learns_a_text_that_can_be_learnt(place: DataPlace) -> None:
    assert place.source is not None
    (place.source / "book.txt").write_text("abacab " * 300)
    task = prepared(place, window=10)
    model = build(task.spec).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    dataset, state = task.dataset("train"), None
    for rows in dataset.plan(4, seed=0, epoch=0):
        batch = dataset.batch(rows)
        output = task.run(model, batch, state)
        total, count = task.loss(output.outputs, batch)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        state = detached(output.state)
    found = evaluate(model, task, task.dataset("test"), device=CPU, batch_size=7).metrics
    assert found["bpc"] < 0.5 < task.trivial()["bpc"]


# --- scheduled sampling ----------------------------------------------------------------------------------------------


def scheduled(truth: float) -> CharLM:
    task = recalled(feeding="scheduled", schedule={"name": "linear", "k": truth, "c": 1e-9})
    task.set_progress(0, 0)
    return task


def windows(spec: TaskSpec, count: int, steps: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, spec.outputs, (3, count * steps + 1), generator=generator)
    return [
        Batch(
            one_hot(codes[:, k * steps : (k + 1) * steps], spec.outputs),
            torch.full((3,), steps),
            codes[:, k * steps + 1 : (k + 1) * steps + 1],
        )
        for k in range(count)
    ]


@pytest.mark.parametrize(
    ("name", "fields"),
    [("lstm", {"hidden_size": 8}), ("hm_lstm", {"hidden_sizes": (4, 4), "embedding_size": 5})],
)
@pytest.mark.parametrize("truth", [1.0, 1 - 1e-9])
def test_the_text_alone_is_teacher_forcing(name: str, fields: dict[str, Any], truth: float) -> None:
    """Above one window at once; just below it step by step, where no draw is ever taken."""
    teacher, task = recalled(), scheduled(truth)
    torch.manual_seed(0)
    model = MODELS[name].model_validate({"name": name} | fields).build(task.spec).train()
    state = states = None
    for batch in windows(task.spec, 2, 6):
        expected = teacher.run(model, batch, state)
        found = task.run(model, batch, states)
        state, states = expected.state, found.state
        torch.testing.assert_close(found.outputs, expected.outputs, rtol=0, atol=0 if truth == 1 else 1e-6)
        torch.testing.assert_close(found.summary, expected.summary, rtol=0, atol=1e-6)
    total, _ = task.loss(found.outputs, batch)
    total.backward()
    learnt = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in learnt)


def test_never_the_text_is_what_the_model_said(place: DataPlace) -> None:
    task, model = scheduled(0.0), Next(shift=2)
    model.training = True
    first, second = windows(task.spec, 2, 5)
    state = task.run(model, first, None).state
    task.run(model, second, state)
    start = first.x[:, 0].argmax(-1)
    expected = [((start + 2 * t) % 9).tolist() for t in range(10)]
    assert model.read == expected
    assert model.states == [None, *range(1, 10)]


def test_in_between_each_input_is_decided_by_itself() -> None:
    task, model = scheduled(0.7), Next(shift=0, sharp=0.0)
    model.training = True
    (batch,) = windows(task.spec, 1, 400)
    torch.manual_seed(0)
    task.run(model, batch, None)
    read = torch.tensor(model.read).T
    same = read == batch.x.argmax(-1)
    assert bool(same[:, 0].all())
    # a draw from nine equally likely symbols is the text's by chance, too
    assert same.float().mean().item() == pytest.approx(0.7 + 0.3 / 9, abs=0.04)
    assert not torch.equal(same[0], same[1])


def test_an_evaluation_is_fed_the_text(place: DataPlace) -> None:
    task = prepared(place, feeding="scheduled", schedule={"name": "exponential", "k": 0.5}, window=8)
    task.set_progress(0, 100)
    teacher = prepared(place, window=8)
    model = build(task.spec)
    found = [
        evaluate(model, t, t.dataset("validation"), device=CPU, batch_size=9).metrics for t in (task, teacher)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("schedule", "i", "expected"),
    [
        (Linear(c=0.01), 30, 0.7),
        (Linear(k=0.9, c=0.01, floor=0.25), 1000, 0.25),
        (Exponential(k=0.99), 100, 0.99**100),
        (Exponential(k=0.5), 10**7, 0.0),
        (InverseSigmoid(k=100.0), 0, 100 / 101),
        (InverseSigmoid(k=100.0), 700, 100 / (100 + math.exp(7))),
        (InverseSigmoid(k=1.0), 10**6, 0.0),
    ],
)
def test_schedules_are_the_papers(schedule: Any, i: int, expected: float) -> None:
    assert schedule.truth(i) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("per", "truth"), [("step", 0.8), ("epoch", 0.97)])
def test_a_schedule_counts_steps_or_epochs(per: str, truth: float) -> None:
    task = recalled(feeding="scheduled", schedule={"name": "linear", "c": 0.01, "per": per})
    task.set_progress(3, 20)
    assert task._feeding is not None
    assert task._feeding.truth == pytest.approx(truth)


# --- going on by itself ----------------------------------------------------------------------------------------------


def request(**fields: Any) -> Request:
    return Request(**{"steps": 6, "generator": torch.Generator().manual_seed(0)} | fields)


@pytest.mark.parametrize("carry_state", [True, False])
def test_each_step_reads_the_last_draw(carry_state: bool) -> None:
    task, model = recalled(carry_state=carry_state), Next()
    drawn = task.generate(model, request(prime="bc", count=2))
    circle = sorted(LETTERS)
    expected = "bc" + "".join(circle[(circle.index("c") + 1 + t) % 9] for t in range(6))
    assert [one.text for one in drawn] == [expected] * 2
    assert [(one.steps, one.ended) for one in drawn] == [(6, False)] * 2
    assert model.states[:3] == ([None, 2, 3] if carry_state else [None, None, None])


def test_a_carried_state_is_the_whole_text_read_anew(place: DataPlace) -> None:
    carried, anew = recalled(), recalled(carry_state=False, window=100)
    texts = [
        task.generate(build(task.spec), request(prime="abc", steps=40, count=3)) for task in (carried, anew)
    ]
    assert texts[0] == texts[1]
    assert len({one.text for one in texts[0]}) == 3


def test_without_state_no_more_than_a_window_and_its_context_is_read() -> None:
    task, model = recalled(carry_state=False, window=3, context=1), Next()
    lengths: list[int] = []
    task.generate(
        lambda x, *rest: lengths.append(x.shape[1]) or model(x),  # type: ignore[arg-type,func-returns-value]
        request(prime="ab"),
    )
    assert lengths == [2, 3, 4, 4, 4, 4]


def test_a_sequence_ends_at_the_stop_symbol() -> None:
    task = recalled()
    (drawn,) = task.generate(Next(), request(prime="b", stop="e"))
    assert (drawn.text, drawn.steps, drawn.ended) == ("bcd", 2, True)
    (by_line,) = task.generate(Next(shift=-1), request(prime="b", stop="eos"))
    assert (by_line.text, by_line.steps, by_line.ended) == ("ba ", 2, True)
    several = task.generate(Next(sharp=0.0), request(count=40, stop="e", steps=8))
    assert {one.ended for one in several} == {True, False}
    for one in several:
        assert "e" not in one.text
        assert one.steps == len(one.text) <= 8
        assert one.ended or one.steps == 8


def test_without_a_prime_it_starts_behind_an_end_of_line() -> None:
    (drawn,) = recalled().generate(Next(), request(steps=3))
    assert drawn.text == " ab"
    task = config().build()
    task.recall({"symbols": [ord(" "), ord("x"), ord("y")]})
    assert task.generate(Next(), request(steps=3))[0].text == "xy "


def test_temperature() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5]]).expand(4000, 3)
    generator = torch.Generator().manual_seed(0)
    assert draw(logits, temperature=0).unique().tolist() == [1]
    assert draw(logits, temperature=1e-40, generator=generator).unique().tolist() == [1]
    for temperature in (0.5, 1.0, 3.0):
        shares = draw(logits, temperature=temperature, generator=generator).bincount(minlength=3) / 4000
        expected = (logits[0] / temperature).softmax(0)
        torch.testing.assert_close(shares, expected, rtol=0, atol=0.03)


def test_the_generator_is_all_the_chance_there_is() -> None:
    task, model = recalled(), Next(sharp=0.0)
    texts = [task.generate(model, request(steps=30))[0].text for _ in range(2)]
    assert texts[0] == texts[1]
    other = request(steps=30, generator=torch.Generator().manual_seed(1))
    assert task.generate(model, other)[0].text != texts[0]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"prime": "abX"},
            "the prime has 'X', which is none of the 9 symbols .*; use characters like ' abcdefg'",
        ),
        ({"stop": "ab"}, "the stop symbol is 2 symbols long; give one, or eos"),
        ({"stop": "é"}, "the stop symbol has 'é'"),
        ({"stop": ""}, "the stop symbol is 0 symbols long"),
    ],
)
def test_what_the_text_never_had_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        recalled().generate(Next(), request(**fields))


def test_bytes_become_text() -> None:
    task = config(units="bytes").build()
    task.recall({"symbols": sorted(set("aä".encode()))})
    (drawn,) = task.generate(Next(shift=-1), request(prime="ä", steps=5))  # C3 A4 61 in a circle
    assert drawn.text == "äaäa" + "\N{REPLACEMENT CHARACTER}"
    assert drawn.steps == 5
    alphabet = Alphabet(tuple(sorted(set("aä".encode()))), "bytes")
    assert alphabet.decode(alphabet.encode("ä", "it")) == "ä"


def test_letters_are_remembered_without_the_text(place: DataPlace) -> None:
    task = prepared(place)
    again = config().build()
    again.recall(task.memory())
    assert again.spec == task.spec
    assert again.generate(Next(), request()) == task.generate(Next(), request())
    for damaged in ({}, {"symbols": []}, {"symbols": ["a"]}, {"symbols": 3}):
        with pytest.raises(IntegrityError, match=r"task\.json"):
            config().build().recall(damaged)


# --- the config ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"corpus": "ptb", "path": "a.txt"}, "path is read with corpus=file only"),
        ({"corpus": "text8", "units": "bytes"}, "units is read with corpus=file only"),
        ({"corpus": "enwik8", "proportions": [8, 1, 1]}, "proportions is read with corpus=file only"),
        ({"eos": "none"}, "eos is read with corpus=ptb only"),
        ({"context": 5}, "context is read with carry_state=false only"),
        ({"carry_state": False, "evaluation_streams": 4}, "evaluation_streams is read with carry_state=true"),
        ({"feeding": "scheduled"}, "needs a schedule: linear, exponential or inverse_sigmoid"),
        ({"schedule": {"name": "linear", "c": 0.1}}, "schedule is read with feeding=scheduled only"),
        (
            {"feeding": "scheduled", "carry_state": False, "schedule": {"name": "linear", "c": 0.1}},
            "needs carry_state=true",
        ),
        (
            {"feeding": "scheduled", "schedule": {"name": "linear", "c": 0.1, "k": 0.2, "floor": 0.5}},
            "lower it",
        ),
        ({"proportions": [1, 0, 1]}, "greater than 0"),
        ({"proportions": [1, 1]}, "Field required"),
        ({"window": 0}, "greater than 0"),
    ],
)
def test_what_is_not_read_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config(**fields)
