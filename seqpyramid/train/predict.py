"""A trained model on new data: classes of the user's files, and sequences that the model draws by itself."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from seqpyramid.data.loading import Example, collate
from seqpyramid.errors import DataError, UserError
from seqpyramid.models.base import SequenceModel, use_threads
from seqpyramid.recipe import plan_from_yaml
from seqpyramid.rundir import RunDir, read_json
from seqpyramid.tasks.base import Drawn, Generative, NewExample, Request, Task
from seqpyramid.train import checkpoint
from seqpyramid.train.evaluate import autocast


@dataclass(frozen=True)
class FilePrediction:
    """What a model says of one new sequence."""

    name: str
    predicted: str
    probabilities: tuple[float, ...]
    """One a class; empty where the task is no classification."""


@dataclass(frozen=True)
class FilePredictions:
    """What became of a list of files."""

    class_names: tuple[str, ...] | None
    rows: tuple[FilePrediction, ...]
    problems: tuple[DataError, ...]
    """Files that could not be read; the others are in ``rows``."""


@dataclass(frozen=True)
class Trained:
    """A run's best model and its task, ready for new data."""

    task: Task
    model: SequenceModel
    precision: str


def open_run(run: RunDir, device: torch.device, threads: int | None, *, continuing: bool = False) -> Trained:
    """Load a run's best checkpoint; the data it was trained on is not needed.

    Args:
        run: its folder.
        device: where the model shall answer.
        threads: CPU threads; None: as suits the model.
        continuing: let the model carry its state where it can, so that it can go on from what it has read.

    Raises:
        UserError: there is no run, or it is of a version that did not keep what is needed.
        IntegrityError: the checkpoint is damaged.
    """
    if not run.exists():
        raise UserError(f"{run.path}: no run here; give the folder that `seqpyramid train` printed")
    if not run.memory.exists():
        raise UserError(f"{run.path}: this run has not begun, or an older version wrote it; train it again")
    plan = plan_from_yaml(run.recipe)
    task = plan.task.build()
    task.recall(read_json(run.memory))
    content = checkpoint.load(run.best, device)
    carry = task.spec.carry_state or (continuing and plan.model.carries_state)
    model = plan.model.build(replace(task.spec, carry_state=carry))
    use_threads(model, threads)
    model.to(device).load_state_dict(content["model"])
    model.eval()
    return Trained(task, model, plan.train.precision)


def predict(
    trained: Trained, paths: Sequence[Path], *, device: torch.device, batch_size: int = 50
) -> FilePredictions:
    """Predict every sequence of some files; a file that cannot be read is left out and named."""
    problems: list[DataError] = []
    rows: list[FilePrediction] = []
    for group in _groups(_read(trained.task, paths, problems), batch_size):
        rows += _predict(trained, group, device)
    return FilePredictions(trained.task.class_names, tuple(rows), tuple(problems))


def _read(task: Task, paths: Sequence[Path], problems: list[DataError]) -> Iterator[NewExample]:
    for path in paths:
        try:
            if path.is_dir():
                raise DataError(f"{path}: is a folder; name the files in it, as {path / '*'}")
            yield from task.read([path])
        except DataError as error:
            problems.append(error)


def _groups(examples: Iterator[NewExample], size: int) -> Iterator[list[NewExample]]:
    group: list[NewExample] = []
    for example in examples:
        group.append(example)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _predict(trained: Trained, group: list[NewExample], device: torch.device) -> list[FilePrediction]:
    batch = collate([Example(example.x, torch.zeros(())) for example in group])
    with torch.inference_mode(), autocast(device, trained.precision):
        outputs = trained.model(batch.x.to(device), batch.lengths).outputs.float().cpu()
    names = trained.task.class_names
    if names is None:
        return [
            FilePrediction(example.name, f"{value:.8g}", ())
            for example, value in zip(group, outputs.flatten().tolist(), strict=True)
        ]
    probabilities: Tensor = outputs.softmax(-1)
    return [
        FilePrediction(example.name, names[int(row.argmax())], tuple(row.tolist()))
        for example, row in zip(group, probabilities, strict=True)
    ]


def to_csv(found: FilePredictions) -> str:
    """Return a line a sequence: its name, the prediction, and one probability a class."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["name", "predicted", *(f"p({name})" for name in found.class_names or ())])
    for row in found.rows:
        lines.writerow([row.name, row.predicted, *(f"{p:.6g}" for p in row.probabilities)])
    return text.getvalue()


def sample(run: RunDir, trained: Trained, request: Request) -> list[Drawn]:
    """Let a run's best model draw sequences.

    Raises:
        UserError: its task is one that models answer and do not continue.
    """
    if not isinstance(trained.task, Generative):
        raise UserError(
            f"{run.path}: this run's model classifies and cannot draw sequences; "
            "sample is for runs of character language models and handwriting"
        )
    with torch.inference_mode():
        return trained.task.generate(trained.model, request)
