"""What takes part in the rounds: a model's training and inference step, its twins, and the references.

Shapes: B batch, T time steps, F input features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from pydantic import ValidationError

from seqpyramid import kernels
from seqpyramid.analysis.speed import ReferenceLSTM, Step, inference_step, synthetic_batch, training_step
from seqpyramid.contracts import Batch, Needs, TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.kernels import library
from seqpyramid.models.base import ModelConfig, SequenceModel, use_threads
from seqpyramid.models.dilated import DilatedRNN
from seqpyramid.recipe import Recipe
from seqpyramid.yaml12 import read_scalar

from .naive_dilated import NaiveDilatedRNN

PLAIN = ", plain"
NAIVE = ", naive form"
EVERY_STEP = ", every step read"
THREE_LAYERS = ", three layers"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One line of the table, ready to run."""

    name: str
    parameters: int
    training: Step
    inference: Step
    forward_flops: int | None
    """Of the matrix products in one forward pass over one sequence; None where nobody has counted them."""
    model: SequenceModel | None = None
    """What runs in this process; None where another one does the work."""

    @property
    def training_flops(self) -> int | None:
        """The usual estimate, three forward passes: the backward pass forms two products for each one."""
        return None if self.forward_flops is None else 3 * self.forward_flops


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all candidates of one table share: the task's shape, B, T and the device."""

    spec: TaskSpec
    batch_size: int
    time: int
    device: torch.device

    def batch(self, needs: Needs) -> Batch:
        """Draw the synthetic batch: the same inputs, and labels for what is read."""
        spec = replace(self.spec, needs=needs)
        return synthetic_batch(spec, batch_size=self.batch_size, time=self.time, device=self.device)

    @property
    def reference(self) -> str:
        """Name of the candidate that all others are compared with."""
        return f"torch.nn.LSTM({self.spec.input_size},{ReferenceLSTM.hidden_size})"


def candidate(name: str, model: SequenceModel, setting: Setting) -> Candidate:
    """Make a model ready to run; it is moved to the setting's device."""
    model.to(setting.device)
    batch = setting.batch(model.spec.needs)
    return Candidate(
        name=name,
        parameters=model.parameter_count,
        training=training_step(model, batch),
        inference=inference_step(model, batch),
        forward_flops=model.flops(setting.time),
        model=model,
    )


def references(setting: Setting) -> list[Candidate]:
    """``torch.nn.LSTM`` of 100 units with one layer, which is the reference, and with three."""
    names = {setting.reference: 1, setting.reference + THREE_LAYERS: 3}
    return [
        candidate(name, ReferenceLSTM(setting.spec, layers=layers), setting) for name, layers in names.items()
    ]


def rows(recipe: Recipe, names: Sequence[str], setting: Setting) -> list[Candidate]:
    """Rows of a recipe, each as it is or with other options: ``tp_rnn_m:recompute=true``.

    Every row starts from the same seed, whatever else is measured: an HM-LSTM's speed depends on its boundaries.

    Raises:
        RecipeError: there is no such row or option, or its model cannot serve the task.
    """
    found = []
    for name in names:
        torch.manual_seed(0)
        found.append(candidate(name, configured(recipe, name).build(setting.spec), setting))
    return found


def configured(recipe: Recipe, name: str) -> ModelConfig:
    """The model of ``ROW`` or ``ROW:OPTION=VALUE:...``.

    Raises:
        RecipeError: there is no such row or option, or the value does not fit.
    """
    row, *options = name.split(":")
    config = recipe.plan(row).model
    found = {key: read_scalar(value) for key, _, value in (option.partition("=") for option in options)}
    try:
        return config.model_validate(config.model_dump() | found)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"{name}: {reasons}") from None


def plain(fast: Candidate) -> Candidate:
    """The same model on its plain twin, whatever kernels there are."""
    return replace(
        fast,
        name=fast.name + PLAIN,
        training=_without_kernels(fast.training),
        inference=_without_kernels(fast.inference),
    )


def on_threads(one: Candidate, threads: int | None = None) -> Candidate:
    """The same candidate on so many CPU threads; None: on as many as ``seqpyramid train`` gives its model."""
    model = one.model
    assert model is not None  # only what runs in this process has threads to choose

    def choosing(step: Step) -> Step:
        def run() -> None:
            with _threads_restored():
                use_threads(model, threads)
                step()

        return run

    return replace(one, training=choosing(one.training), inference=choosing(one.inference))


@contextmanager
def _threads_restored() -> Iterator[None]:
    """Give torch's operations, and the kernels with them, their threads back after the block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        library.use_threads(None)


def naive_forms(name: str, config: ModelConfig, setting: Setting) -> list[Candidate]:
    """The naive form of a Dilated RNN, and both forms where every step is read; empty for any other model.

    Where every step is read no dependency cone saves work, so that pair compares the folding alone.
    """
    model = config.build(setting.spec)
    if not isinstance(model, DilatedRNN):
        return []
    by_step = config.build(replace(setting.spec, needs="steps"))
    assert isinstance(by_step, DilatedRNN)  # what a config builds does not depend on the task's needs
    return [
        candidate(name + NAIVE, NaiveDilatedRNN(model), setting),
        candidate(name + EVERY_STEP, by_step, setting),
        candidate(name + EVERY_STEP + NAIVE, NaiveDilatedRNN(by_step), setting),
    ]


def all_naive_forms(recipe: Recipe, names: Sequence[str], setting: Setting) -> list[Candidate]:
    """:func:`naive_forms` of those rows that have them.

    Raises:
        RecipeError: none has.
    """
    found = [form for name in names for form in naive_forms(name, configured(recipe, name), setting)]
    if not found:
        raise RecipeError(
            f"--naive: none of {', '.join(names)} is a Dilated RNN; name one of the recipe's with --models"
        )
    return found


def _without_kernels(step: Step) -> Step:
    def run() -> None:
        before = kernels.chosen()
        kernels.choose("plain")
        try:
            step()
        finally:
            kernels.choose(before)

    return run
