"""Seconds a step, and speed relative to a reference.

Machines are noisy, so a claim about speed is never one time in seconds: :func:`ratios` runs the candidates in
turn (A B C A B C ...) in one process and compares within each round, where all met the same machine.

Shapes: B batch, T time steps, F input features, H hidden units, K outputs.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqpyramid.contracts import Batch, TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.base import Encoding, SequenceModel, last_steps

Step = Callable[[], None]

CPU = torch.device("cpu")

WARMUP = 2
"""Unmeasured steps before the first measured one: they fill allocators, optimizer state and kernel caches."""


@dataclass(frozen=True)
class Timing:
    """Seconds of some repeats of one step."""

    median: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """Summarise measured seconds.

        >>> Timing.of([0.3, 0.1, 0.2])
        Timing(median=0.2, min=0.1, max=0.3, n=3)
        """
        return cls(median(seconds), min(seconds), max(seconds), len(seconds))

    @property
    def spread(self) -> float:
        """Range over median: 0.1 means that the repeats lie within a tenth of the median."""
        return (self.max - self.min) / self.median


@dataclass(frozen=True, kw_only=True)
class SpeedReport:
    """Speed of one model on one synthetic batch."""

    train_seconds: float
    """Median seconds of a training step."""
    inference_seconds: float
    """Median seconds of a forward pass in evaluation mode, without gradients."""
    train_sequences_per_second: float
    inference_sequences_per_second: float
    train_spread: float
    """Range of the repeats over their median."""
    inference_spread: float
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Speed relative to the reference: its seconds / the candidate's seconds, so that 2 is twice as fast."""

    median: float
    """Median over the rounds of the ratio within each round."""
    min: float
    max: float
    seconds: Timing
    """Of the candidate itself."""

    @classmethod
    def of(cls, own: list[float], base: list[float]) -> "Ratio":
        """Compare seconds of the same rounds, the candidate's with the reference's.

        >>> Ratio.of([1.0, 2.0, 4.0], base=[2.0, 2.0, 2.0])
        Ratio(median=1.0, min=0.5, max=2.0, seconds=Timing(median=2.0, min=1.0, max=4.0, n=3))
        """
        by_round = [theirs / mine for mine, theirs in zip(own, base, strict=True)]
        return cls(median=median(by_round), min=min(by_round), max=max(by_round), seconds=Timing.of(own))


class ReferenceLSTM(SequenceModel):
    """``torch.nn.LSTM(F, 100)`` and a linear head: the candidate that every speed is compared with.

    Args:
        spec: the task's side of the contract.
        layers: L; three for what is compared with three-layer models.
    """

    hidden_size = 100

    def __init__(self, spec: TaskSpec, *, layers: int = 1) -> None:
        super().__init__(spec, summary_size=self.hidden_size)
        self.lstm = nn.LSTM(spec.input_size, self.hidden_size, layers, batch_first=True)

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the LSTM over x (B, T, F)."""
        steps, state = self.lstm(x, state)
        return Encoding(summary=last_steps(steps, lengths), steps=steps, state=state)

    def encoder_flops(self, time: int) -> int:
        """Four gates a layer, each reading F inputs, or H states from below, and H states."""
        above = 2 * self.hidden_size * (self.lstm.num_layers - 1)
        return time * 2 * 4 * self.hidden_size * (self.spec.input_size + self.hidden_size + above)


def synthetic_batch(
    spec: TaskSpec, *, batch_size: int, time: int, device: torch.device = CPU, seed: int = 0
) -> Batch:
    """Draw a batch of full-length sequences: normal inputs, uniform labels (normal targets where K is 1).

    Returns:
        x (B, T, F) and y on ``device``, lengths on the CPU; y is labels (B,) or (B, T), or targets (B, 1) or
        (B, T, 1).

    Raises:
        RecipeError: ``batch_size`` or ``time`` is below 1.
    """
    _at_least(1, {"batch size": batch_size, "time (steps)": time})
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch_size, time, spec.input_size, generator=generator)
    read = (batch_size,) if spec.needs == "summary" else (batch_size, time)
    if spec.outputs == 1:
        y = torch.randn(*read, 1, generator=generator)
    else:
        y = torch.randint(spec.outputs, read, generator=generator)
    return Batch(x.to(device), torch.full((batch_size,), time), y.to(device))


def training_step(model: SequenceModel, batch: Batch) -> Step:
    """Return a function that does one step on ``batch``: zero the gradients, forward, loss, backward, Adam.

    The loss is the squared error where K is 1, the cross entropy elsewhere, plus what the model adds to it.
    """
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        output = model(batch.x, batch.lengths)
        if model.spec.outputs == 1:
            loss = functional.mse_loss(output.outputs, batch.y)
        else:
            loss = functional.cross_entropy(output.outputs.flatten(0, -2), batch.y.flatten())
        if output.aux_loss is not None:
            loss = loss + output.aux_loss
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def inference_step(model: SequenceModel, batch: Batch) -> Step:
    """Return a function that runs ``batch`` once in evaluation mode, without gradients."""

    @torch.inference_mode()
    def step() -> None:
        model.eval()
        model(batch.x, batch.lengths)

    return step


def time_steps(step: Step, *, device: torch.device, repeats: int, warmup: int) -> Timing:
    """Time ``repeats`` calls of ``step`` in seconds, after ``warmup`` unmeasured ones.

    The device is idle when each measurement starts and again when it ends.

    Raises:
        RecipeError: ``repeats`` is below 1 or ``warmup`` below 0.
    """
    _at_least(1, {"repeats": repeats})
    _at_least(0, {"warm-up steps": warmup})
    for _ in range(warmup):
        step()
    return Timing.of([_seconds(step, device) for _ in range(repeats)])


def measure(
    model: SequenceModel, spec: TaskSpec, *, batch_size: int, time: int, device: torch.device, repeats: int
) -> SpeedReport:
    """Measure training and inference on a synthetic batch; the model itself is left as it was.

    Raises:
        RecipeError: ``batch_size``, ``time`` or ``repeats`` is below 1.
    """
    batch = synthetic_batch(spec, batch_size=batch_size, time=time, device=device)
    model = copy.deepcopy(model).to(device)
    train = time_steps(training_step(model, batch), device=device, repeats=repeats, warmup=WARMUP)
    inference = time_steps(inference_step(model, batch), device=device, repeats=repeats, warmup=WARMUP)
    return SpeedReport(
        train_seconds=train.median,
        inference_seconds=inference.median,
        train_sequences_per_second=batch_size / train.median,
        inference_sequences_per_second=batch_size / inference.median,
        train_spread=train.spread,
        inference_spread=inference.spread,
        repeats=repeats,
    )


def ratios(
    candidates: Mapping[str, Step],
    reference: str,
    rounds: int,
    *,
    device: torch.device = CPU,
    warmup: int = WARMUP,
) -> dict[str, Ratio]:
    """Compare candidates with one of them, each round running every one of them once, in the order given.

    Raises:
        RecipeError: ``reference`` is no candidate, ``rounds`` is below 1 or ``warmup`` below 0.
    """
    if reference not in candidates:
        raise RecipeError(
            f"the reference {reference!r} is not among the candidates ({', '.join(candidates)})"
        )
    seconds = take_rounds(candidates, rounds, device=device, warmup=warmup)
    return {name: Ratio.of(own, seconds[reference]) for name, own in seconds.items()}


def take_rounds(
    candidates: Mapping[str, Step], rounds: int, *, device: torch.device = CPU, warmup: int = WARMUP
) -> dict[str, list[float]]:
    """Seconds of every candidate in each round, each round running every one of them once, in the order given.

    Raises:
        RecipeError: ``rounds`` is below 1 or ``warmup`` below 0.
    """
    _at_least(1, {"rounds": rounds})
    _at_least(0, {"warm-up rounds": warmup})
    for _ in range(warmup):
        for step in candidates.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, step in candidates.items():
            seconds[name].append(_seconds(step, device))
    return seconds


def _seconds(step: Step, device: torch.device) -> float:
    _synchronise(device)
    start = perf_counter()
    step()
    _synchronise(device)
    return perf_counter() - start


def _synchronise(device: torch.device) -> None:
    # Accelerators queue work and return at once: without this a timer measures the queueing.
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _at_least(least: int, values: Mapping[str, int]) -> None:
    for name, value in values.items():
        if value < least:
            raise RecipeError(f"{name} must be at least {least}, not {value}; give a larger number")
