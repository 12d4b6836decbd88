"""From a file to a recipe: read, override, check every section and how they fit together, report all at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqpyramid import yaml12
from seqpyramid.errors import RecipeError, UserError
from seqpyramid.recipe import tables
from seqpyramid.recipe.bundled import recipe_files
from seqpyramid.recipe.faults import Faults
from seqpyramid.recipe.overrides import apply_overrides, claim, moves_no_number
from seqpyramid.recipe.places import KeyPath, no_row, shown_file
from seqpyramid.recipe.plan import Recipe, RunPlan
from seqpyramid.recipe.schema import EVERY_ROW, ROW_NAME, RecipeFile
from seqpyramid.recipe.train import conflicts
from seqpyramid.recipe.walk import raw_rows, source_fault
from seqpyramid.recipe.wording import check_section
from seqpyramid.registry import near_miss
from seqpyramid.yaml12 import name_value

if TYPE_CHECKING:
    from seqpyramid.models.base import ModelConfig
    from seqpyramid.tasks.base import TaskConfig


def load(source: str, *, overrides: Sequence[str] = (), wanted: str | None = EVERY_ROW) -> Recipe:
    """Read and check a recipe.

    Args:
        source: path of a recipe file, or the name of a bundled one.
        overrides: ``key.path=value`` each, the value read as YAML. ``model.x`` is ``x`` of every row that has it;
            ``model`` is the default row. Setting a ``name`` clears the section that it names, because the other
            keys belonged to the other variant.
        wanted: the row that must be able to serve the task, None the default one, ``all`` every one. An override may
            leave a row behind (a shorter T than its dilations), which must not keep another from running.

    Raises:
        RecipeError: with every fault found, one line each.
    """
    bundled = recipe_files()
    path = bundled.get(source, Path(source))
    if source not in bundled and path.suffix not in (".yaml", ".yml") and path.name == source:
        known = ", ".join(bundled) or "none"
        raise RecipeError(
            f"no recipe is called {name_value(source)}{near_miss(source, bundled)} "
            f"(bundled: {known}; a path ends in .yaml or has a slash)"
        )
    return _read_recipe(path, overrides, wanted)


def plan_from_yaml(path: Path) -> RunPlan:
    """Read back what :meth:`RunPlan.to_yaml` wrote.

    Raises:
        RecipeError: it is no recipe file, or no longer fits this version.
    """
    recipe = _read_recipe(Path(path), ())
    return recipe.plan(recipe.model)


def _read_recipe(path: Path, overrides: Sequence[str], wanted: str | None = EVERY_ROW) -> Recipe:
    shown = shown_file(path)
    document = yaml12.load(_read(path, shown), shown)
    faults = Faults(document)
    raw = copy.deepcopy(document.data)
    changes = apply_overrides(overrides, raw, faults)
    file = check_section(RecipeFile, raw, (), faults)
    if isinstance(raw.get("train"), dict):
        for field, sentence in conflicts(raw["train"]).items():
            faults.add(("train", *field.split(".")), sentence)
    task = _check_task(raw, faults)
    models = _check_rows(raw, task, faults, raw.get("model") if wanted is None else wanted)
    _check_default_row(raw, faults)
    _check_sources(raw, faults)
    faults.raise_all()
    assert file is not None
    assert task is not None
    kept = tuple(change for change in changes if not moves_no_number(change, raw))
    return Recipe(
        name=file.name or path.stem.encode(errors="replace").decode(),
        path=path,
        title=file.title,
        paper=file.paper,
        task=task,
        train=file.train,
        models=models,
        model=file.model,
        sources=dict(file.sources),
        modified=(*file.modified, *kept),
        overridden=tuple(claim(change) for change in (*file.modified, *changes)),
    )


def _read(path: Path, shown: str) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(yaml12.MAX_BYTES + 1)  # never more, whatever the path leads to
    except FileNotFoundError:
        hint = near_miss(path.name, [other.name for other in path.parent.glob("*.yaml")])
        if path.stem in recipe_files():
            hint = f"; the bundled recipe goes by its name alone: {path.stem}"
        raise RecipeError(f"{shown}: there is no such file{hint}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"{shown}: cannot be read ({reason}); give a readable file") from None


def _check_task(raw: dict[str, Any], faults: Faults) -> TaskConfig | None:
    section = raw.get("task")
    if not isinstance(section, dict):
        return None
    cls = _entry("task", tables.tasks(), section, ("task",), faults)
    return None if cls is None else check_section(cls, section, ("task",), faults)


def _check_rows(
    raw: dict[str, Any], task: TaskConfig | None, faults: Faults, wanted: object
) -> dict[str, ModelConfig]:
    spec = None
    if task is not None:
        try:
            built = task.build()
            # A task over the user's own data learns its spec from the data.
            spec = built.spec if task.spec_known else None
        except UserError as error:
            faults.add(("task",), str(error))
    rows: dict[str, ModelConfig] = {}
    for row, section in raw_rows(raw).items():
        path = ("models", row)
        if not re.fullmatch(ROW_NAME, row) or row == EVERY_ROW:
            faults.add(path, "a row is named in lower-case letters, digits and _, and not 'all'; rename it")
        cls = _entry("model", tables.models(), section, path, faults)
        config = None if cls is None else check_section(cls, section, path, faults)
        if config is None:
            continue
        rows[row] = config
        if task is None or wanted not in (row, EVERY_ROW):
            continue
        found = config.cannot_serve(task.needs) if spec is None else config.problems(spec)
        for field, sentence in found.items():
            faults.add((*path, *filter(None, field.split("."))), sentence)
    return rows


def _check_default_row(raw: dict[str, Any], faults: Faults) -> None:
    row, rows = raw.get("model"), raw.get("models")
    if isinstance(row, str) and isinstance(rows, dict) and rows and row not in rows:
        faults.add(("model",), no_row(row, rows))


def _check_sources(raw: dict[str, Any], faults: Faults) -> None:
    sources = raw.get("sources")
    for key, text in sources.items() if isinstance(sources, dict) else ():
        fault = source_fault(key, raw)
        if fault is not None:
            faults.add(("sources", key), fault)
        if isinstance(text, str) and not text.strip():
            faults.add(("sources", key), "is empty; say where the value comes from, or remove the line")


def _entry(
    kind: str, table: Mapping[str, Any], section: dict[str, Any], path: KeyPath, faults: Faults
) -> type[Any] | None:
    """Choose the config class by ``name``."""
    known = ", ".join(sorted(table))
    name = section.get("name")
    if "name" not in section:
        faults.add((*path, "name"), f"missing key; choose a {kind} (known: {known})")
    elif not isinstance(name, str):
        faults.add((*path, "name"), f"must be text, not {name_value(name)} (known: {known})")
    elif name not in table:
        hint = near_miss(name, table)
        faults.add((*path, "name"), f"no {kind} is called {name_value(name)}{hint} (known: {known})")
    else:
        chosen: type[Any] = table[name]
        return chosen
    return None
