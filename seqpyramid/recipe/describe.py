"""What a reader may ask of recipes: every setting of one with its source, and the JSON Schema of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import BaseModel, Field, create_model

from seqpyramid.recipe import tables
from seqpyramid.recipe.fingerprint import as_plain
from seqpyramid.recipe.plan import Recipe
from seqpyramid.recipe.schema import ROW_NAME, RecipeFile


def described(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """List every setting as (key path, plain value, source), in the order of the schema."""
    sections = {"task": recipe.task, "train": recipe.train}
    sections |= {f"models.{row}": config for row, config in recipe.models.items()}
    return [
        (path, value, recipe.source_of(path))
        for name, section in sections.items()
        for path, value in _leaves(name, section)
    ]


def _leaves(prefix: str, section: BaseModel) -> Iterator[tuple[str, Any]]:
    plain = as_plain(section)
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(f"{prefix}.{name}", value)
        else:
            yield f"{prefix}.{name}", plain[name]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file, with every task and model of the tables."""
    about = {
        name: Field(description=RecipeFile.model_fields[name].description) for name in ("task", "models")
    }
    row_name = Annotated[str, Field(pattern=ROW_NAME)]
    task, row = _any_of(tables.tasks()), _any_of(tables.models())
    fields: dict[str, Any] = {
        "task": (Annotated[task, about["task"]], ...),
        "models": (Annotated[dict[row_name, row], about["models"]], ...),  # type: ignore[valid-type]
    }
    whole: type[BaseModel] = create_model("RecipeFile", __base__=RecipeFile, **fields)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | whole.model_json_schema()


def _any_of(table: Mapping[str, type[BaseModel]]) -> Any:
    union: Any = reduce(or_, table.values())
    return Annotated[union, Field(discriminator="name")] if len(table) > 1 else union
