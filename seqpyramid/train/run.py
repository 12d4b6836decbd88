"""One run from its plan to its result: folder, data, model, training, and the one reading of the test split."""

from dataclasses import dataclass
from typing import Any

import torch

from seqpyramid.contracts import Split
from seqpyramid.errors import DataError, IntegrityError, RecipeError, UserError
from seqpyramid.models.base import SequenceModel, use_threads
from seqpyramid.recipe import RunPlan, plan_from_yaml
from seqpyramid.rundir import RESULT_FORMAT, RunDir, now, read_json, write_atomically, write_json
from seqpyramid.tasks.base import DataPlace, Prepared, Progress, Task
from seqpyramid.train import checkpoint
from seqpyramid.train.evaluate import evaluate
from seqpyramid.train.launch import StopRequests, environment
from seqpyramid.train.loop import Training, eval_batch_size, held
from seqpyramid.train.observe import Observer
from seqpyramid.train.predictions import write_predictions


@dataclass(frozen=True)
class Means:
    """What a command brings to a run that moves no number."""

    place: DataPlace
    device: torch.device
    observer: Observer
    command: str
    """As typed, recorded in provenance.json."""
    threads: int | None = None
    """CPU threads; None: as suits the model."""
    progress: Progress | None = None
    """Told while a cache is built."""


def train_run(plan: RunPlan, run: RunDir, means: Means, *, force: bool = False) -> dict[str, Any]:
    """Train a plan in its folder, or continue it, or return at once the result of a finished one.

    Raises:
        RecipeError: the folder holds a run of something else.
        StoppedError: a signal came; the state is saved.
    """
    with run.lock():
        if force:
            run.clear()
        if run.exists():
            refuse_other(plan, run)
            if run.result.exists():
                return run.read_result()
        task = plan.task.build()
        prepared = task.prepare(means.place, progress=means.progress)
        refuse_other_data(prepared, run)
        with StopRequests() as stop:  # not before: whoever stops the building of a cache loses nothing
            torch.manual_seed(plan.seed)  # weights, dropout: models draw from nothing else
            model = plan.model.build(task.spec)
            use_threads(model, means.threads)
            here = environment(means.device)
            write_atomically(run.recipe, plan.to_yaml().encode())
            write_json(run.provenance, provenance(plan, prepared, here, means.command))
            write_json(run.memory, task.memory())
            training = Training(
                plan, run, model, task, device=means.device, observer=means.observer, environment=here
            )
            training.fit(stop)
            test, digest = judge(plan, run, model, task, "test", means)
            result = described(plan, run, model, task, prepared, training, test, here)
            result["checkpoint"] = digest
            write_json(run.result, result)
            return result


def evaluate_run(run: RunDir, means: Means, split: Split, *, again: bool = False) -> dict[str, Any]:
    """Return the metrics of a run's best checkpoint on a split, and leave its predictions in the folder.

    The test split was read once, when training ended; its predictions are used again unless ``again`` is set,
    which counts as another reading.
    """
    if not run.exists():
        raise UserError(f"{run.path}: no run here; give the folder that `seqpyramid train` printed")
    with run.lock():
        plan = plan_from_yaml(run.recipe)
        digest = checkpoint.load(run.best, torch.device("cpu"))["digest"]
        result = run.read_result() if run.result.exists() else None
        if result is None and split == "test":
            raise UserError(
                f"{run.path}: this run has not ended, and the test split is read once, at its end; "
                "train to the end first, or give --split validation"
            )
        if result is not None and result["checkpoint"] != digest:
            raise IntegrityError(
                f"{run.best}: not the checkpoint that this run's result came from; train again"
            )
        task = plan.task.build()
        written = run.predictions(split).exists() or not task.writes_predictions
        fresh = again or result is None or split not in result or not written
        if fresh or result is None:
            task.prepare(means.place, progress=means.progress)
            model = plan.model.build(task.spec)
            found, _ = judge(plan, run, model, task, split, means)
            if result is not None:
                result[split] = found
                result["test_accesses"] = run.count_test_passes()
                write_json(run.result, result)
        else:
            task.recall(read_json(run.memory) if run.memory.exists() else {})
            found = result[split]
        return {
            "run": str(run.path),
            "split": split,
            "fresh": fresh,
            "row": plan.row,
            "classes": task.class_names if task.writes_predictions else None,
            "parameters": result["parameters"] if result else None,
            **found,
            split: found,
            "test_accesses": run.count_test_passes(),
            "predictions": str(run.predictions(split)) if task.writes_predictions else None,
        }


def judge(
    plan: RunPlan, run: RunDir, model: SequenceModel, task: Task, split: Split, means: Means
) -> tuple[dict[str, float], str]:
    """One pass of the best checkpoint over a split; writes its predictions, counts it if it is the test split."""
    content = checkpoint.load(run.best, means.device)
    use_threads(model, means.threads)
    model.to(means.device).load_state_dict(content["model"])
    if split == "test":
        run.note_test_pass(means.command, content["digest"])
    found = evaluate(
        model,
        task,
        held(task.dataset(split), means.device),
        device=means.device,
        batch_size=eval_batch_size(plan.train.batch_size),
        precision=plan.train.precision,
        collect=task.writes_predictions,
    )
    if task.writes_predictions:
        write_predictions(run.predictions(split), found, task.class_names)
    return found.metrics, content["digest"]


def refuse_other(plan: RunPlan, run: RunDir) -> None:
    """Refuse to continue in a folder that belongs to another recipe, row or seed.

    Raises:
        RecipeError: it does.
    """
    there = plan_from_yaml(run.recipe)
    differs = [
        f"{part} ({getattr(there, part)} there, {getattr(plan, part)} now)"
        for part in ("recipe", "row", "seed")
        if getattr(there, part) != getattr(plan, part)
    ]
    differs += [
        f"the {part} section"
        for part in ("task", "train", "model")
        if there.fingerprint[part] != plan.fingerprint[part]
    ]
    if differs:
        raise RecipeError(
            f"{run.path}: this folder holds another run, which differs in {', '.join(differs)}; "
            "choose another --out, or replace it with --force"
        )


def refuse_other_data(prepared: Prepared, run: RunDir) -> None:
    """Refuse to continue a run on other data than it began with.

    Raises:
        DataError: the data changed.
    """
    if not run.last.exists() or not run.provenance.exists():
        return
    before, now_ = read_json(run.provenance)["data"], data_facts(prepared)
    if (before["fingerprint"], before["split_hash"]) != (now_["fingerprint"], now_["split_hash"]):
        raise DataError(
            f"{run.path}: the data is not what this run began with (fingerprint {before['fingerprint']} then, "
            f"{now_['fingerprint']} now); bring the old data back, choose another --out, or start anew with --force"
        )


def provenance(plan: RunPlan, prepared: Prepared, here: dict[str, Any], command: str) -> dict[str, Any]:
    """Where a run came from."""
    return {
        "command": command,
        "started": now(),
        "fingerprint": plan.fingerprint,
        "modified": list(plan.modified),
        "data": data_facts(prepared),
        "environment": here,
    }


def data_facts(prepared: Prepared) -> dict[str, Any]:
    """What a result says of its data."""
    return {
        "splits": prepared.splits,
        "split_hash": prepared.split_hash,
        "fingerprint": prepared.fingerprint,
        "details": prepared.details,
    }


def described(
    plan: RunPlan,
    run: RunDir,
    model: SequenceModel,
    task: Task,
    prepared: Prepared,
    training: Training,
    test: dict[str, float],
    here: dict[str, Any],
) -> dict[str, Any]:
    """Everything that result.json says; its keys are described beside ``rundir.RESULT_FORMAT``."""
    standing = training.standing
    return {
        "format": RESULT_FORMAT,
        "status": "finished",
        "recipe": plan.recipe,
        "row": plan.row,
        "model": plan.model.name,
        "task": plan.task.name,
        "seed": plan.seed,
        "fingerprint": plan.fingerprint,
        "modified": list(plan.modified),
        "paper": plan.paper.model_dump() if plan.paper is not None else None,
        "parameters": model.parameter_count,
        "metric": task.selection.metric,
        "mode": task.selection.mode,
        "validation": standing.best_validation,
        "test": test,
        **test,
        "trivial": task.trivial(),
        "best": {"step": standing.best_step, "epoch": standing.best_epoch},
        "steps": standing.step,
        "epochs": round(standing.step / training.steps_per_epoch, 4),
        "stopped_by": standing.stopped_by,
        "seconds": round(standing.seconds, 3),
        "sequences_per_second": round(standing.sequences / max(1e-9, standing.seconds), 2),
        "test_accesses": run.count_test_passes(),
        "data": data_facts(prepared),
        "environment": here,
        "run": str(run.path),
    }
