"""The sections of a recipe file, and its fixed words; the entries of two sections are left to the two tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from seqpyramid.recipe.train import TrainConfig

ROW_NAME = r"^[a-z][a-z0-9_]*$"
EVERY_ROW = "all"
"""What ``--model`` says for every row; no row may be called so."""
SECTIONS = ("task", "train", "models")
"""What a run is made of; the other keys describe the file."""


class PaperRef(BaseModel):
    """Where the setup is printed: which paper, table and column."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    paper: str = Field(min_length=1, description="key of the paper, as `ma2020`")
    table: str = Field(min_length=1, description="table of the paper, as `Table 1`")
    column: str = Field(min_length=1, description="column of the table, as `pMNIST`")


class RecipeFile(BaseModel):
    """The sections of a recipe file; the entries of `task` and `models` are checked against the two tables."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    title: str = Field(min_length=1, description="one line that says what the recipe reproduces")
    name: str | None = Field(default=None, description="name of the recipe; null: the name of the file")
    paper: PaperRef | None = Field(default=None, description="where the setup is printed; null: nowhere")
    task: dict[str, Any] = Field(description="a task, chosen by `name`, and its settings")
    train: TrainConfig = Field(description="how every row is trained")
    models: dict[str, dict[str, Any]] = Field(
        min_length=1, description="row name -> a model, chosen by `name`, and its settings"
    )
    model: str = Field(description="the row that runs unless another is asked for")
    sources: dict[str, str] = Field(
        default={}, description="key path (`train.lr`, `models.*.hidden_size`) -> where the value comes from"
    )
    modified: tuple[str, ...] = Field(
        default=(), description="overrides that made this recipe from the one called `name`"
    )

    @field_validator("title")
    @classmethod
    def _is_one_line(cls, title: str) -> str:
        if not title.isprintable() or not title.strip():
            raise ValueError("must be one line of text")
        return title

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str | None) -> str | None:
        # Runs are kept in a folder of this name, so it must not lead anywhere else.
        if name is not None and (name in ("", ".", "..") or "\0" in name or Path(name).name != name):
            raise ValueError("must be a plain name without slashes")
        return name
