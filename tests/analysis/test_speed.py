"""What is timed, how often and in which order; never how long it takes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqpyramid.analysis import speed
from seqpyramid.analysis.speed import (
    ReferenceLSTM,
    Timing,
    inference_step,
    measure,
    ratios,
    synthetic_batch,
    time_steps,
    training_step,
)
from seqpyramid.contracts import Needs, TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.base import Encoding, SequenceModel

CPU = torch.device("cpu")
SPEC = TaskSpec(input_size=2, outputs=3)


class Mean(SequenceModel):
    """Averages its inputs, and notes how it was run."""

    def __init__(self, spec: TaskSpec, aux: float | None = None) -> None:
        super().__init__(spec, summary_size=4)
        self.map = nn.Linear(spec.input_size, 4)
        self.aux = None if aux is None else nn.Parameter(torch.tensor(aux))
        self.runs: list[tuple[bool, bool]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Mean":
        twin = Mean(self.spec)
        twin.load_state_dict(self.state_dict())
        twin.runs = self.runs  # shared, so that the test sees the copy's runs
        return twin

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        self.runs.append((self.training, torch.is_inference_mode_enabled()))
        steps = self.map(x)
        return Encoding(summary=steps.mean(1), steps=steps, aux_loss=self.aux)

    def encoder_flops(self, time: int) -> int:
        return time * 2 * self.spec.input_size * 4


class Clock:
    """Advances only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(speed, "perf_counter", lambda: self.now)

    def step(self, *seconds: float) -> Any:
        """Return a step that takes these times, call by call."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0)

        return run


def test_timing_summarises() -> None:
    timing = Timing.of([4.0, 1.0, 2.0, 3.0])
    assert timing == Timing(median=2.5, min=1.0, max=4.0, n=4)
    assert timing.spread == 3.0 / 2.5


def test_warmup_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Clock(monkeypatch).step(100.0, 50.0, 1.0, 2.0, 4.0)
    assert time_steps(step, device=CPU, repeats=3, warmup=2) == Timing(median=2.0, min=1.0, max=4.0, n=3)


def test_an_accelerator_is_idle_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    def clock() -> float:
        happened.append("clock")
        return float(len(happened))

    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: happened.append(str(device)))
    monkeypatch.setattr(speed, "perf_counter", clock)
    time_steps(lambda: happened.append("step"), device=torch.device("cuda:1"), repeats=1, warmup=0)
    assert happened == ["cuda:1", "clock", "step", "cuda:1", "clock"]


def test_ratios_are_taken_within_a_round_and_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    order: list[str] = []

    def noted(name: str, *seconds: float) -> Any:
        step = clock.step(*seconds)

        def run() -> None:
            order.append(name)
            step()

        return run

    # the machine becomes ten times slower in the last round: the ratio does not
    candidates = {"a": noted("a", 9, 2, 2, 20), "b": noted("b", 9, 1, 4, 10)}
    found = ratios(candidates, "a", 3, warmup=1)
    assert order == ["a", "b"] * 4
    assert (found["b"].median, found["b"].min, found["b"].max) == (2.0, 0.5, 2.0)
    assert found["b"].seconds == Timing(median=4, min=1, max=10, n=3)
    assert (found["a"].median, found["a"].min, found["a"].max) == (1.0, 1.0, 1.0)


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(RecipeError, match="reference 'x' is not among the candidates \\(a\\)"):
        ratios({"a": lambda: None}, "x", 1)
    with pytest.raises(RecipeError, match="rounds must be at least 1, not 0"):
        ratios({"a": lambda: None}, "a", 0)
    with pytest.raises(RecipeError, match="repeats must be at least 1, not 0"):
        time_steps(lambda: None, device=CPU, repeats=0, warmup=0)
    with pytest.raises(RecipeError, match="warm-up steps must be at least 0, not -1"):
        time_steps(lambda: None, device=CPU, repeats=1, warmup=-1)
    with pytest.raises(RecipeError, match="batch size must be at least 1, not 0"):
        synthetic_batch(SPEC, batch_size=0, time=3)


@pytest.mark.parametrize(
    ("needs", "outputs", "shape", "dtype"),
    [
        ("summary", 3, (4,), torch.int64),
        ("steps", 3, (4, 5), torch.int64),
        ("summary", 1, (4, 1), torch.float32),
        ("steps", 1, (4, 5, 1), torch.float32),
    ],
)
def test_synthetic_batch_fits_the_task(
    needs: Needs, outputs: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    spec = TaskSpec(input_size=2, outputs=outputs, needs=needs)
    batch = synthetic_batch(spec, batch_size=4, time=5)
    assert batch.x.shape == (4, 5, 2)
    assert batch.lengths.tolist() == [5, 5, 5, 5]
    assert (batch.y.shape, batch.y.dtype) == (shape, dtype)
    assert torch.equal(batch.x, synthetic_batch(spec, batch_size=4, time=5).x)
    assert not torch.equal(batch.x, synthetic_batch(spec, batch_size=4, time=5, seed=1).x)
    model = Mean(spec)
    step = training_step(model, batch)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    step()
    assert all(not torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_labels_use_every_class() -> None:
    y = synthetic_batch(SPEC, batch_size=200, time=1).y
    assert set(y.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("outputs", [1, 3])
def test_training_lowers_the_loss(outputs: int) -> None:
    spec = TaskSpec(input_size=2, outputs=outputs)
    torch.manual_seed(0)
    model = ReferenceLSTM(spec)
    batch = synthetic_batch(spec, batch_size=4, time=3)

    @torch.no_grad()
    def loss() -> float:
        out = model(batch.x).outputs
        if outputs == 1:
            return float((out - batch.y).pow(2).mean())
        return float(-out.log_softmax(1)[torch.arange(4), batch.y].mean())

    before = loss()
    step = training_step(model, batch)
    for _ in range(20):
        step()
    assert loss() < 0.95 * before


def test_a_models_own_loss_is_trained() -> None:
    model = Mean(SPEC, aux=1.0)
    training_step(model, synthetic_batch(SPEC, batch_size=2, time=2))()
    assert model.aux is not None
    assert model.aux.item() == pytest.approx(1 - 1e-3)  # Adam's first step is its rate, whatever the gradient
    assert model.aux.grad is not None
    assert model.aux.grad.item() == 1.0


def test_gradients_do_not_pile_up() -> None:
    model = Mean(SPEC, aux=1.0)
    step = training_step(model, synthetic_batch(SPEC, batch_size=2, time=2))
    step()
    step()
    assert model.aux is not None
    assert model.aux.grad is not None
    assert model.aux.grad.item() == 1.0


def test_inference_is_in_evaluation_mode_without_gradients() -> None:
    model = Mean(SPEC)
    batch = synthetic_batch(SPEC, batch_size=2, time=2)
    train, infer = training_step(model, batch), inference_step(model, batch)
    train()
    infer()
    train()
    assert model.runs == [(True, False), (False, True), (True, False)]


def test_measure_runs_both_and_leaves_the_model_alone() -> None:
    model = Mean(SPEC).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = measure(model, SPEC, batch_size=4, time=3, device=CPU, repeats=5)
    each = speed.WARMUP + 5
    assert model.runs == [(True, False)] * each + [(False, True)] * each
    assert not model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert report.repeats == 5
    assert report.train_sequences_per_second == 4 / report.train_seconds
    assert report.inference_sequences_per_second == 4 / report.inference_seconds
    assert report.train_spread >= 0
    assert report.inference_spread >= 0


def test_the_reference_reads_each_sequences_own_end() -> None:
    torch.manual_seed(0)
    model = ReferenceLSTM(SPEC)
    x = torch.randn(2, 5, 2)
    short = model(x, torch.tensor([3, 5])).outputs[0]
    torch.testing.assert_close(short, model(x[:1, :3]).outputs[0])
