"""A first recipe for data that is not ours: look at it, choose the task that reads it, and sizes that fit it.

L and g are the smallest that keep to what the supplement of Ma et al. 2020 says: N = T / L of at most 20 sub-pyramids,
here of two levels of aggregation each, so L = g²; the layer above reads one state of every g, so it has T / g steps.
The paper's own sizes (supplement, Table 1) are mostly of this form, but larger for some T (L = 100 for 1000 steps) and
smaller for the longest. Everything else is a starting point, and the recipe says so at every value.

Shapes: T steps of the longest sequence, F features, K classes.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqpyramid import yaml12
from seqpyramid.data.audio import AUDIO_SUFFIXES
from seqpyramid.data.manifest import FORMATS, read_manifest
from seqpyramid.data.vctk import AUDIO_FOLDERS
from seqpyramid.errors import DataError
from seqpyramid.recipe import tables

if TYPE_CHECKING:
    from seqpyramid.tasks.base import DataPlace, Progress

MOST_PYRAMIDS = 20
"""N, as the supplement bounds it."""
LAYERS = 3
STEPS = 3_000
"""Optimiser steps that a first run takes at most."""
HIDDEN = {"recurrent": 100, "dilated": 59}
"""Units of the paper's LSTM and TP-RNN, and of its Dilated LSTM."""
MOST_DILATED_LAYERS = 9

_ARRAYS = (*FORMATS["npz"], *FORMATS["hdf5"])
_SERIES = (*FORMATS["ts"], *FORMATS["tsv"])
_RULE = "rule of Ma et al. 2020, supplement: T / L at most 20; the smallest g with L = g * g"


@dataclass(frozen=True)
class Look:
    """What a first look at the data says."""

    task: dict[str, Any]
    """The ``task`` section."""
    what: str
    """In words, for the title."""


@dataclass(frozen=True)
class Facts:
    """What preparing the data told."""

    longest: int
    """T."""
    features: int
    outputs: int
    train: int
    """Training sequences."""
    splits: dict[str, int]
    needs: str


def pyramid(time: int, layers: int) -> list[tuple[int, int]]:
    """Return (L, g) of each layer that ``time`` steps can carry, at most ``layers`` of them.

    >>> pyramid(784, 3), pyramid(1000, 1), pyramid(29, 3), pyramid(3, 3)
    ([(49, 7), (9, 3), (4, 2)], [(64, 8)], [(4, 2), (4, 2), (4, 2)], [(4, 2)])
    """
    found: list[tuple[int, int]] = []
    while len(found) < layers and (time >= 4 or not found):
        g = 2
        while g * g * MOST_PYRAMIDS < time:
            g += 1
        found.append((g * g, g))
        time //= g
    return found


def dilated_layers(time: int) -> int:
    """Return how many layers of dilation 1, 2, 4, ... fit into ``time`` steps, at most nine.

    >>> dilated_layers(784), dilated_layers(200), dilated_layers(2)
    (9, 8, 1)
    """
    return max(1, min(MOST_DILATED_LAYERS, (time - 1).bit_length() if time > 1 else 1))


def look(path: Path, label_pattern: str | None = None) -> Look:
    """Choose the task that reads what lies at ``path``.

    Raises:
        DataError: nothing there is known, or a choice is left to the user.
    """
    if not path.exists():
        raise DataError(f"{path}: there is nothing here; give a file or a folder of sequences")
    if path.is_file():
        return _look_at_file(path)
    if not path.is_dir():
        raise DataError(f"{path}: is neither a file nor a folder; give a file or a folder of sequences")
    try:
        return _look_at_folder(path, label_pattern)
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: cannot look here ({error.strerror}); mend the permissions, or give a folder "
            "that holds your sequences alone"
        ) from None


def _look_at_folder(path: Path, label_pattern: str | None) -> Look:
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    for version, folder in AUDIO_FOLDERS.items():
        if folder in names:
            options = " task.version=0.92 task.microphone=mic1" if version == "0.92" else ""
            raise DataError(
                f"{path}: this is VCTK, which has a recipe: seqpyramid train vctk_mfcc "
                f"--source {shlex.quote(str(path))}{options}"
            )
    if any(name.startswith("train-images") and "-ubyte" in name for name in names):
        raise DataError(
            f"{path}: this looks like MNIST, which has recipes: seqpyramid train pmnist "
            f"--source {shlex.quote(str(path))}"
        )
    sets = sorted({match[1] for name in names if (match := re.fullmatch(r"(.+)_TRAIN\.(?:ts|tsv)", name))})
    if len(sets) == 1:
        return Look(
            {"name": "series", "standardise": "train", "path": str(path), "dataset": sets[0]}, sets[0]
        )
    below = sorted(
        entry.name for entry in path.iterdir() if entry.is_dir() and any(entry.glob("*_TRAIN.ts*"))
    )
    if len(sets) > 1 or below:
        several = ", ".join((sets or below)[:5])
        raise DataError(
            f"{path}: a folder of data sets ({several}); give one of them, as {path / (sets or below)[0]}"
        )
    suffixes = _suffixes(path)
    if AUDIO_SUFFIXES & suffixes:
        return _look_at_audio(path, label_pattern)
    single = [name for name in names if name.lower().endswith((*_ARRAYS, *_SERIES))]
    if len(single) == 1:
        return _look_at_file(path / single[0])
    if ".csv" in suffixes:
        return Look({"name": "series", "standardise": "train", "path": str(path), "format": "csv"}, path.name)
    texts = [name for name in names if name.lower().endswith(".txt")]
    if len(texts) == 1:
        return _look_at_file(path / texts[0])
    if texts:
        raise DataError(
            f"{path}: a folder of texts ({', '.join(texts[:5])}); give one of them, as {path / texts[0]}"
        )
    found = ", ".join(sorted(suffixes)[:6]) or "nothing"
    raise DataError(
        f"{path}: no sequences that seqpyramid reads (found: {found}); it reads folders of .wav, .flac, .ogg or .csv "
        "files, one folder a class, and .ts, .tsv, .npz, .h5 and .txt files"
    )


def _look_at_file(path: Path) -> Look:
    suffix = path.suffix.lower()
    if suffix in (*_ARRAYS, *_SERIES):
        stem = re.sub(r"_(TRAIN|TEST)$", "", path.stem)
        if suffix in _SERIES and stem != path.stem:
            return Look(
                {"name": "series", "standardise": "train", "path": str(path.parent), "dataset": stem}, stem
            )
        return Look({"name": "series", "standardise": "train", "path": str(path)}, stem)
    if suffix == ".txt":
        return Look({"name": "char_lm", "corpus": "file", "path": str(path)}, path.stem)
    if suffix == ".csv":
        return _look_at_manifest(path)
    raise DataError(
        f"{path}: seqpyramid does not read {suffix or 'such'} files; see `seqpyramid init --help`"
    )


def _look_at_manifest(path: Path) -> Look:
    suffixes = {entry.path.suffix.lower() for entry in read_manifest(path)}
    if suffixes <= AUDIO_SUFFIXES:
        section = {
            "name": "audio_folder",
            "standardise": "train",
            "path": str(path.parent),
            "manifest": path.name,
        }
        return Look(section | {"features": {"kind": "mfcc"}}, path.stem)
    return Look({"name": "series", "standardise": "train", "path": str(path), "format": "csv"}, path.stem)


def _look_at_audio(path: Path, label_pattern: str | None) -> Look:
    section: dict[str, Any] = {
        "name": "audio_folder",
        "standardise": "train",
        "path": str(path),
        "features": {"kind": "mfcc"},
    }
    flat = any(entry.suffix.lower() in AUDIO_SUFFIXES for entry in path.iterdir())
    if label_pattern is not None:
        return Look(section | {"label_pattern": label_pattern}, path.name)
    manifests = sorted(path.glob("*.csv"))
    if len(manifests) == 1:
        return _look_at_manifest(manifests[0])
    if flat:
        example = next(
            entry.stem for entry in sorted(path.iterdir()) if entry.suffix.lower() in AUDIO_SUFFIXES
        )
        raise DataError(
            f"{path}: recordings that lie in no class folders; say where their names (as {example}) hold the class, "
            "with --label-pattern '(?P<label>[a-z]+)_.*' for one, or write a manifest with the columns path and label"
        )
    return Look(section, path.name)


def _suffixes(path: Path) -> set[str]:
    found: set[str] = set()
    for number, entry in enumerate(path.rglob("*")):
        if entry.is_file():
            found.add(entry.suffix.lower())
        if number > 100_000:  # enough for a first look
            break
    return found


def survey(task: dict[str, Any], place: DataPlace, progress: Progress | None = None) -> Facts:
    """Prepare the data once, and read off what sizes depend on.

    Raises:
        DataError: it is missing or damaged.
    """
    built = tables.tasks()[task["name"]].model_validate_json(json.dumps(task)).build()
    prepared = built.prepare(place, progress=progress)
    dataset = built.dataset("train")
    longest = built.spec.max_length
    if longest is None and built.spec.needs == "steps":  # windows of one long text
        longest = dataset.batch(dataset.plan(1, seed=0, epoch=0, shuffle=False)[0]).x.shape[1]
    elif longest is None:
        longest = max(len(dataset[i].x) for i in range(len(dataset)))
    return Facts(
        longest=longest,
        features=built.spec.input_size,
        outputs=built.spec.outputs,
        train=prepared.splits["train"],
        splits=prepared.splits,
        needs=built.spec.needs,
    )


def recipe_text(look: Look, facts: Facts, name: str) -> str:
    """Write the recipe of a first look as YAML, with the source of every value."""
    content = {
        "title": f"{look.what}: a starting point, {facts.outputs} "
        + ("classes" if facts.needs == "summary" else "symbols"),
        "name": name,
        "task": look.task,
        "train": _training(facts),
        "models": _rows(facts) if facts.needs == "summary" else _language_rows(),
        "model": "tp_rnn_m" if facts.needs == "summary" else "lstm",
        "sources": _sources(facts),
    }
    counts = ", ".join(f"{number:,} {split}" for split, number in facts.splits.items())
    head = (
        f"# Written by `seqpyramid init`: {counts}; at most {facts.longest:,} steps of {facts.features} features.\n"
        f"#   seqpyramid train {shlex.quote(f'{name}.yaml')} --model all && "
        f"seqpyramid compare {shlex.quote(f'runs/{name}')}\n"
    )
    return head + yaml12.dump(content)


def _training(facts: Facts) -> dict[str, Any]:
    if facts.needs != "summary":
        return {"lr": 2e-3, "batch_size": 32, "max_steps": STEPS, "eval_every": STEPS // 10, "clip_norm": 1.0}
    batch_size = max(8, min(50, facts.train // 10))
    epochs = max(1, STEPS * batch_size // max(1, facts.train))
    return {
        "lr": 1e-3,
        "batch_size": batch_size,
        "epochs": epochs,
        "patience": max(5, epochs // 5),
        "clip_norm": 3.0,
    }


def _rows(facts: Facts) -> dict[str, Any]:
    sizes = pyramid(facts.longest, LAYERS)
    lstm = {"name": "lstm", "hidden_size": HIDDEN["recurrent"]}
    pyramids = {"name": "tp_rnn", "hidden_size": HIDDEN["recurrent"]}
    return {
        "lstm_s": lstm,
        "lstm_m": lstm | {"layers": LAYERS},
        "tp_rnn_s": pyramids | {"pyramid_length": [sizes[0][0]], "granularity": [sizes[0][1]]},
        "tp_rnn_m": pyramids
        | {"pyramid_length": [length for length, _ in sizes], "granularity": [g for _, g in sizes]},
        "dilated_lstm": {
            "name": "dilated_rnn",
            "cell": "lstm",
            "hidden_size": HIDDEN["dilated"],
            "layers": dilated_layers(facts.longest),
        },
        "min_gru": {"name": "min_gru", "hidden_size": 64, "layers": 2},
    }


def _language_rows() -> dict[str, Any]:
    return {
        "lstm": {"name": "lstm", "hidden_size": 256},
        "gru": {"name": "gru", "hidden_size": 256},
        "hm_lstm": {"name": "hm_lstm", "hidden_sizes": [128, 128, 128], "embedding_size": 128},
    }


def _sources(facts: Facts) -> dict[str, str]:
    common = {"task": "seqpyramid init: what the data looks like", "train": "assumed: a starting point"}
    if facts.needs != "summary":
        return common | {"models": "assumed: small sizes for a first look"}
    return common | {
        "models": "sizes of Ma et al. 2020 for 784 pixels; layers that fit this data",
        "models.tp_rnn_s": _RULE,
        "models.tp_rnn_m": _RULE,
    }
