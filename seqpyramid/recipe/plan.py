"""A checked recipe, and the plan of one run: what is fingerprinted and what is written into the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seqpyramid import yaml12
from seqpyramid.errors import RecipeError
from seqpyramid.recipe.fingerprint import as_plain, canonical, digest
from seqpyramid.recipe.places import OVERRIDE, covers, no_row, shown_file
from seqpyramid.recipe.schema import EVERY_ROW, PaperRef
from seqpyramid.recipe.train import TrainConfig
from seqpyramid.recipe.walk import source_fault

if TYPE_CHECKING:
    from seqpyramid.models.base import ModelConfig
    from seqpyramid.tasks.base import TaskConfig

ASSUMED = "assumed"
"""Source of a value for which the recipe names none."""


@dataclass(frozen=True)
class RunPlan:
    """One row of a recipe with one seed: all that a run needs to know."""

    recipe: str
    title: str
    row: str
    seed: int
    model: ModelConfig
    task: TaskConfig
    train: TrainConfig
    paper: PaperRef | None
    sources: dict[str, str]
    modified: tuple[str, ...]

    @property
    def fingerprint(self) -> dict[str, str]:
        """Return the first 16 hex digits of SHA-256 over what moves a number.

        Keys: ``all``, ``task``, ``train``, ``model``. Hashed is the canonical JSON of the section (sorted keys,
        every default written out, floats by ``repr``) and its ``version``. Left out are the seed, the paper, the
        sources, the title, the names of recipe and row, and fields marked as moving no number.
        """
        sections = {name: canonical(getattr(self, name)) for name in ("task", "train", "model")}
        return {"all": digest(sections)} | {name: digest(section) for name, section in sections.items()}

    def to_yaml(self) -> str:
        """Write the plan as a recipe file of one row with every default written out; :func:`load` reads it."""
        content = {
            "title": self.title,
            "name": self.recipe,
            "paper": None if self.paper is None else as_plain(self.paper),
            "task": as_plain(self.task),
            "train": as_plain(self.train),
            "models": {self.row: as_plain(self.model)},
            "model": self.row,
            "sources": self.sources,
            "modified": list(self.modified),
        }
        return yaml12.dump(content)


@dataclass(frozen=True)
class Recipe:
    """One recipe file, checked, with its overrides applied."""

    name: str
    path: Path
    title: str
    paper: PaperRef | None
    task: TaskConfig
    train: TrainConfig
    models: dict[str, ModelConfig]
    model: str
    sources: dict[str, str]
    modified: tuple[str, ...]
    """Overrides as typed, without those that change nothing and without the seed."""
    overridden: tuple[str, ...] = ()
    """Key paths whose values overrides set, the seed included."""

    def rows(self, model: str | None) -> list[str]:
        """Return the rows that ``--model`` asks for: None is the default row, ``all`` is every row.

        Raises:
            RecipeError: there is no such row.
        """
        if model is None:
            return [self.model]
        if model == EVERY_ROW:
            return list(self.models)
        if model not in self.models:
            raise RecipeError(f"{shown_file(self.path)}: {no_row(model, self.models)}")
        return [model]

    def plan(self, row: str, seed: int | None = None) -> RunPlan:
        """Pick one row, and a seed other than the recipe's if one is given.

        Raises:
            RecipeError: there is no such row, or the seed is negative.
        """
        if row not in self.models:
            raise RecipeError(f"{shown_file(self.path)}: {no_row(row, self.models)}")
        if seed is not None and not 0 <= seed <= yaml12.MAX_INTEGER:
            raise RecipeError(f"seed {seed} is not from 0 to 2^63 - 1; choose another --seed")
        train = self.train if seed is None else self.train.model_copy(update={"seed": seed})
        only = {
            "task": as_plain(self.task),
            "train": as_plain(train),
            "models": {row: as_plain(self.models[row])},
        }
        sources = {key: text for key, text in self.sources.items() if source_fault(key, only) is None}
        return RunPlan(
            recipe=self.name,
            title=self.title,
            row=row,
            seed=train.seed,
            model=self.models[row],
            task=self.task,
            train=train,
            paper=self.paper,
            sources=sources,
            modified=self.modified,
        )

    def source_of(self, path: str) -> str:
        """Say where a value comes from: the source nearest to ``path``, ``override``, or ``assumed``.

        The longest key path wins (``train.schedule.factor`` before ``train.schedule`` before ``train``); of two as
        long, the one without the wildcard.
        """
        if any(covers(key, path) for key in self.overridden):
            return OVERRIDE
        keys = [key for key in self.sources if covers(key, path)]
        nearest = max(keys, key=lambda key: (key.count("."), "*" not in key.split(".")), default=None)
        return ASSUMED if nearest is None else self.sources[nearest]
