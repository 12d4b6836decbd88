"""Recipes: one YAML file a paper setup, checked once, whole, before data and devices.

A recipe names a task, how to train, and every row (model) of one printed table. :func:`load` reads it, applies
overrides, checks everything and reports all faults together. :meth:`Recipe.plan` picks one row and seed: that
is what runs, what is fingerprinted, and what is written into the run folder as a recipe of its own.

The tables of models and tasks are imported when a recipe is loaded, so that importing this file imports no torch.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator
from pydantic_core import to_jsonable_python

from seqpyramid import yaml12
from seqpyramid.errors import RecipeError, UserError
from seqpyramid.registry import near_miss
from seqpyramid.train_config import TrainConfig as TrainConfig  # part of a recipe, so found here too
from seqpyramid.train_config import conflicts
from seqpyramid.yaml12 import name_value, one_line

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from seqpyramid.models.base import ModelConfig
    from seqpyramid.tasks.base import TaskConfig

ROW_NAME = r"^[a-z][a-z0-9_]*$"
OVERRIDE = "override"
"""Place of a problem that an override caused, and source of a value that an override set."""
ASSUMED = "assumed"
"""Source of a value for which the recipe names none."""
EVERY_ROW = "all"

_SECTIONS = ("task", "train", "models")
_PACKAGE = Path(__file__).parent

KeyPath = tuple[str | int, ...]
S = TypeVar("S", bound=BaseModel)


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
        sections = {name: _canonical(getattr(self, name)) for name in ("task", "train", "model")}
        return {"all": _digest(sections)} | {name: _digest(section) for name, section in sections.items()}

    def to_yaml(self) -> str:
        """Write the plan as a recipe file of one row with every default written out; :func:`load` reads it."""
        content = {
            "title": self.title,
            "name": self.recipe,
            "paper": None if self.paper is None else _plain(self.paper),
            "task": _plain(self.task),
            "train": _plain(self.train),
            "models": {self.row: _plain(self.model)},
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
            raise RecipeError(f"{_shown(self.path)}: {_no_row(model, self.models)}")
        return [model]

    def plan(self, row: str, seed: int | None = None) -> RunPlan:
        """Pick one row, and a seed other than the recipe's if one is given.

        Raises:
            RecipeError: there is no such row, or the seed is negative.
        """
        if row not in self.models:
            raise RecipeError(f"{_shown(self.path)}: {_no_row(row, self.models)}")
        if seed is not None and not 0 <= seed <= yaml12.MAX_INTEGER:
            raise RecipeError(f"seed {seed} is not from 0 to 2^63 - 1; choose another --seed")
        train = self.train if seed is None else self.train.model_copy(update={"seed": seed})
        only = {"task": _plain(self.task), "train": _plain(train), "models": {row: _plain(self.models[row])}}
        sources = {key: text for key, text in self.sources.items() if _source_fault(key, only) is None}
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
        if any(_covers(key, path) for key in self.overridden):
            return OVERRIDE
        keys = [key for key in self.sources if _covers(key, path)]
        nearest = max(keys, key=lambda key: (key.count("."), "*" not in key.split(".")), default=None)
        return ASSUMED if nearest is None else self.sources[nearest]


def recipe_files() -> dict[str, Path]:
    """Return the bundled recipes: name -> path, in alphabetical order."""
    inside, beside = _PACKAGE / "recipes", _PACKAGE.parent / "recipes"  # a wheel, a checkout
    folder = inside if inside.is_dir() else beside
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(source: str, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        source: path of a recipe file, or the name of a bundled one.
        overrides: ``key.path=value`` each, the value read as YAML. ``model.x`` is ``x`` of every row that has it;
            ``model`` is the default row. Setting a ``name`` clears the section that it names, because the other
            keys belonged to the other variant.

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
    return _load(path, overrides)


def plan_from_yaml(path: Path) -> RunPlan:
    """Read back what :meth:`RunPlan.to_yaml` wrote.

    Raises:
        RecipeError: it is no recipe file, or no longer fits this version.
    """
    recipe = _load(Path(path), ())
    return recipe.plan(recipe.model)


def described(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """List every setting as (key path, plain value, source), in the order of the schema."""
    sections = {"task": recipe.task, "train": recipe.train}
    sections |= {f"models.{row}": config for row, config in recipe.models.items()}
    return [
        (path, value, recipe.source_of(path))
        for name, section in sections.items()
        for path, value in _leaves(name, section)
    ]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file, with every task and model of the tables."""
    about = {
        name: Field(description=RecipeFile.model_fields[name].description) for name in ("task", "models")
    }
    row_name, task, row = Annotated[str, Field(pattern=ROW_NAME)], _any_of(_tasks()), _any_of(_models())
    fields: dict[str, Any] = {
        "task": (Annotated[task, about["task"]], ...),
        "models": (Annotated[dict[row_name, row], about["models"]], ...),  # type: ignore[valid-type]
    }
    whole: type[BaseModel] = create_model("RecipeFile", __base__=RecipeFile, **fields)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | whole.model_json_schema()


def _models() -> Mapping[str, type[ModelConfig]]:
    from seqpyramid.models import MODELS

    return MODELS


def _tasks() -> Mapping[str, type[TaskConfig]]:
    from seqpyramid.tasks import TASKS

    return TASKS


def _any_of(table: Mapping[str, type[BaseModel]]) -> Any:
    union: Any = reduce(or_, table.values())
    return Annotated[union, Field(discriminator="name")] if len(table) > 1 else union


# --- From a file to a Recipe ---------------------------------------------------------------------------------


class _Faults:
    """Every fault of one recipe, each with its place."""

    def __init__(self, document: yaml12.Document) -> None:
        self._document = document
        self._found: dict[tuple[float, str], None] = {}
        self.overridden: list[str] = []
        """Key paths that overrides set: a fault there, or in what they had to create, is the override's."""

    def add(self, path: KeyPath, sentence: str) -> None:
        dotted = ".".join(map(str, path))
        above = path not in self._document.lines and any(_covers(dotted, key) for key in self.overridden)
        if above or any(_covers(key, dotted) for key in self.overridden):
            self.add_override(f"{_key(path)}: {sentence}")
            return
        line = self._document.line(path)
        where = f"{_key(path)}: " if path else ""
        self._found[line, f"{self._document.filename}:{line}: {where}{sentence}"] = None

    def add_override(self, sentence: str) -> None:
        self._found[float("inf"), f"{OVERRIDE}: {sentence}"] = None

    def raise_all(self) -> None:
        if self._found:
            raise RecipeError([text for _, text in sorted(self._found, key=lambda found: found[0])])


def _load(path: Path, overrides: Sequence[str]) -> Recipe:
    shown = _shown(path)
    document = yaml12.load(_read(path, shown), shown)
    faults = _Faults(document)
    raw = copy.deepcopy(document.data)
    changes = _apply(overrides, raw, faults)
    file = _check_section(RecipeFile, raw, (), faults)
    if isinstance(raw.get("train"), dict):
        for field, sentence in conflicts(raw["train"]).items():
            faults.add(("train", *field.split(".")), sentence)
    task = _check_task(raw, faults)
    models = _check_rows(raw, task, faults)
    _check_default_row(raw, faults)
    _check_sources(raw, faults)
    faults.raise_all()
    assert file is not None
    assert task is not None
    kept = tuple(change for change in changes if not _only_the_seed(change))
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
        overridden=tuple(_claim(change) for change in (*file.modified, *changes)),
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


def _check_task(raw: dict[str, Any], faults: _Faults) -> TaskConfig | None:
    section = raw.get("task")
    if not isinstance(section, dict):
        return None
    cls = _entry("task", _tasks(), section, ("task",), faults)
    return None if cls is None else _check_section(cls, section, ("task",), faults)


def _check_rows(raw: dict[str, Any], task: TaskConfig | None, faults: _Faults) -> dict[str, ModelConfig]:
    spec = None
    if task is not None:
        try:
            built = task.build()
            # A task over the user's own data learns its spec from the data.
            spec = built.spec if getattr(task, "spec_known", True) else None
        except UserError as error:
            faults.add(("task",), str(error))
    rows: dict[str, ModelConfig] = {}
    for row, section in _raw_rows(raw).items():
        path = ("models", row)
        if not re.fullmatch(ROW_NAME, row) or row == EVERY_ROW:
            faults.add(path, "a row is named in lower-case letters, digits and _, and not 'all'; rename it")
        cls = _entry("model", _models(), section, path, faults)
        config = None if cls is None else _check_section(cls, section, path, faults)
        if config is None:
            continue
        rows[row] = config
        for field, sentence in (config.problems(spec) if spec is not None else {}).items():
            faults.add((*path, *filter(None, field.split("."))), sentence)
    return rows


def _check_default_row(raw: dict[str, Any], faults: _Faults) -> None:
    row, rows = raw.get("model"), raw.get("models")
    if isinstance(row, str) and isinstance(rows, dict) and rows and row not in rows:
        faults.add(("model",), _no_row(row, rows))


def _check_sources(raw: dict[str, Any], faults: _Faults) -> None:
    sources = raw.get("sources")
    for key, text in sources.items() if isinstance(sources, dict) else ():
        fault = _source_fault(key, raw)
        if fault is not None:
            faults.add(("sources", key), fault)
        if isinstance(text, str) and not text.strip():
            faults.add(("sources", key), "is empty; say where the value comes from, or remove the line")


def _source_fault(key: str, raw: dict[str, Any]) -> str | None:
    """Say why ``key`` names nothing in the recipe; None where it does, or where that cannot be known."""
    head, *rest = key.split(".")
    if head not in _SECTIONS:
        return f"names no value of task, train or models{near_miss(head, _SECTIONS)}"
    if head != "models" or not rest:
        section = raw.get(head)
        return _unknown_key(_class_of(head, section), section, rest) if rest else None
    rows = _raw_rows(raw)
    row, *rest = rest
    if row != "*" and row not in rows:
        return _no_row(row, rows)
    chosen = list(rows.values()) if row == "*" else [rows[row]]
    faults = [_unknown_key(_class_of("models", section), section, rest) for section in chosen]
    return None if None in faults or not faults else f"{faults[0]}{' in any row' if row == '*' else ''}"


def _entry(
    kind: str, table: Mapping[str, Any], section: dict[str, Any], path: KeyPath, faults: _Faults
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


# --- Overrides -----------------------------------------------------------------------------------------------


def _apply(overrides: Sequence[str], raw: dict[str, Any], faults: _Faults) -> list[str]:
    """Write overrides into ``raw``; return those that changed something, as typed and in the order typed."""
    parsed: dict[tuple[str, ...], tuple[str, Any]] = {}
    for typed in overrides:
        try:
            path, value = _parse(typed, raw)
        except RecipeError as error:
            for problem in error.problems:
                faults.add_override(problem.removeprefix(f"{OVERRIDE}: "))
            continue
        if path in parsed:
            faults.add_override(f"{_key(path)}: given twice; keep one of the two")
        parsed[path] = (typed, value)
    # Sections before what is in them, a name before what it makes room for, all rows before one row.
    order = sorted(
        parsed, key=lambda path: (len(_first_target(path)), path[-1] != "name", path[0] != "model")
    )
    changed = [parsed[path][0] for path in order if _set_everywhere(path, parsed[path][1], raw, faults)]
    faults.overridden += [".".join(_first_target(path)) for path in parsed]
    faults.overridden += [_claim(typed) for typed in changed]
    return [typed for typed in overrides if typed in changed]


def _parse(typed: str, raw: dict[str, Any]) -> tuple[tuple[str, ...], Any]:
    """Split ``key.path=value``.

    Raises:
        RecipeError: it is nothing of the kind; the message begins with the place.
    """
    key, equals, text = typed.partition("=")
    shown = one_line(typed)
    if not equals:
        hint = f"; to run that row write --model {shown}" if typed in _raw_rows(raw) else ""
        raise RecipeError(f"{OVERRIDE}: '{shown}' has no '='; write key=value, as train.lr=2e-3{hint}")
    path = tuple(key.split("."))
    sound = all(part and part.isprintable() and part == part.strip() for part in path)
    if not sound or len(path) > yaml12.MAX_DEPTH:
        raise RecipeError(f"{OVERRIDE}: '{shown}' has no sound key; write key.path=value, as train.lr=2e-3")
    if path[0] in ("sources", "name", "modified"):
        raise RecipeError(
            f"{OVERRIDE}: {path[0]} describes the file and cannot be overridden; edit a copy of it"
        )
    return path, yaml12.value(text, f"{OVERRIDE}: {one_line(key)}")


def _first_target(path: tuple[str, ...]) -> tuple[str, ...]:
    """Turn ``model.x`` into ``models.*.x``."""
    return ("models", "*", *path[1:]) if path[0] == "model" and len(path) > 1 else path


def _claim(typed: str) -> str:
    """Return the key path whose value an override set: for a ``name``, the section that it cleared."""
    target = _first_target(tuple(typed.partition("=")[0].split(".")))
    named = len(target) > 1 and target[-1] == "name"
    return ".".join(target[:-1] if named else target)


def _only_the_seed(typed: str) -> bool:
    return typed.partition("=")[0] == "train.seed"


def _set_everywhere(path: tuple[str, ...], value: Any, raw: dict[str, Any], faults: _Faults) -> bool:
    target = _first_target(path)
    rest = target[2:]
    if target[:2] != ("models", "*") or not rest:
        return _set(target, value, raw, faults)
    rows = _raw_rows(raw)
    classes = {row: _class_of("models", section) for row, section in rows.items()}
    fitting = [row for row, cls in classes.items() if cls and _unknown_key(cls, rows[row], rest) is None]
    if not fitting:
        fields = [field for cls in classes.values() if cls for field in cls.model_fields]
        faults.add_override(f"{_key(path)}: no row has such a key{near_miss(rest[0], fields)}")
    changed = [_set(("models", row, *rest), value, raw, faults) for row in fitting]
    return any(changed)


def _set(path: tuple[str, ...], value: Any, raw: dict[str, Any], faults: _Faults) -> bool:
    """Write one value; return whether it is another than before (a default counts as written)."""
    if path[0] == "models" and len(path) > 2 and path[1] not in _raw_rows(raw):
        faults.add_override(f"{_key(path)}: {_no_row(path[1], _raw_rows(raw))}")
        return False
    before = _effective(path, raw)
    place = raw
    for depth, key in enumerate(path[:-1], start=1):
        below = _effective(path[:depth], raw)
        if below is not None and not isinstance(below, dict):
            above = f"{_key(path[:depth])} is {name_value(below)}"
            faults.add_override(f"{_key(path)}: unknown key; {above} and has no keys of its own")
            return False
        if place.get(key) is None:
            place[key] = below or {}
        place = place[key]
    if path[-1] == "name" and path[0] in _SECTIONS and before != value:
        place.clear()
    place[path[-1]] = copy.deepcopy(value)
    return bool(before != value)


def _effective(path: tuple[str, ...], raw: dict[str, Any]) -> Any:
    """Return the plain value at ``path``, or the default that stands in for it, or None."""
    here: Any = raw
    for depth, key in enumerate(path):
        if not isinstance(here, dict):
            return None
        here = here[key] if key in here else _default(_class_at(path[:depth], raw), key)
    return here


# --- Walking the schema along raw data -----------------------------------------------------------------------


def _raw_rows(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    rows = raw.get("models")
    return {k: v for k, v in rows.items() if isinstance(v, dict)} if isinstance(rows, dict) else {}


def _class_of(head: str, section: Any) -> type[BaseModel] | None:
    """Return the config class of a section; None where its ``name`` does not tell."""
    if head == "train":
        return TrainConfig
    name = section.get("name") if isinstance(section, dict) else None
    table: Mapping[str, type[BaseModel]] = _tasks() if head == "task" else _models()
    return table.get(name) if isinstance(name, str) else None


def _class_at(path: tuple[str, ...], raw: dict[str, Any]) -> type[BaseModel] | None:
    """Return the class whose keys stand at ``path`` of the whole file."""
    if not path or path[0] not in _SECTIONS:
        return _descend(RecipeFile, raw, path)
    if path[0] == "models":
        if len(path) == 1:
            return None
        section = _raw_rows(raw).get(path[1])
        return _descend(_class_of("models", section), section, path[2:])
    return _descend(_class_of(path[0], raw.get(path[0])), raw.get(path[0]), path[1:])


def _descend(cls: type[BaseModel] | None, section: Any, parts: Sequence[str | int]) -> type[BaseModel] | None:
    """Return the class whose keys stand ``parts`` below ``cls``, choosing variants by the names in ``section``."""
    candidates = [] if cls is None else [cls]
    for part in parts:
        if isinstance(part, int):
            section = section[part] if isinstance(section, list) and part < len(section) else None
            continue
        owner = _choose(candidates, section)
        if owner is None or part not in owner.model_fields:
            return None
        written = isinstance(section, dict) and part in section
        section = section[part] if written else _default(owner, part)
        candidates = list(_classes_in(owner.model_fields[part].annotation))
    return _choose(candidates, section)


def _choose(candidates: list[type[BaseModel]], section: Any) -> type[BaseModel] | None:
    if len(candidates) == 1:
        return candidates[0]
    name = section.get("name") if isinstance(section, dict) else None
    named = [c for c in candidates if "name" in c.model_fields and c.model_fields["name"].default == name]
    return named[0] if len(named) == 1 else None


def _classes_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes_in(inner)


def _default(cls: type[BaseModel] | None, key: str) -> Any:
    field = cls.model_fields.get(key) if cls is not None else None
    if field is None or field.is_required():
        return None
    return to_jsonable_python(field.get_default(call_default_factory=True))


def _unknown_key(cls: type[BaseModel] | None, section: Any, parts: Sequence[str]) -> str | None:
    """Say which of ``parts`` is no key; None where all are, or where an unknown ``name`` hides them."""
    for depth, part in enumerate(parts):
        owner = _descend(cls, section, parts[:depth])
        if owner is None:
            above = _descend(cls, section, parts[: depth - 1]) if depth else None
            if above is None or any(_classes_in(above.model_fields[parts[depth - 1]].annotation)):
                return None
            return f"{name_value(parts[depth - 1])} has no keys of its own"
        if part not in owner.model_fields:
            return f"unknown key {name_value(part)}{_nearest_key(part, owner)}"
    return None


def _nearest_key(wrong: str, cls: type[BaseModel] | None) -> str:
    known = [] if cls is None else list(cls.model_fields)
    return near_miss(wrong, known) or (f" (known: {', '.join(known)})" if known else "")


# --- Faults in plain words -----------------------------------------------------------------------------------

_DUE = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "none_required": "null",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "text of the form {pattern}",
}
"""What pydantic missed, by the type of its error; fills ``must be ..., not ...``."""


def _check_section(cls: type[S], raw: dict[str, Any], path: KeyPath, faults: _Faults) -> S | None:
    """Build one section; None, and its faults noted, where it is wrong."""
    try:
        # By way of JSON, because strict validation of Python values would refuse a list for a tuple.
        return cls.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        due: dict[KeyPath, list[str]] = {}
        got: dict[KeyPath, str] = {}
        for detail in error.errors(include_url=False):
            where = _where(detail, raw)
            if detail["type"] in _DUE:
                due.setdefault(where, []).append(_DUE[detail["type"]].format(**detail.get("ctx", {})))
                got[where] = _got(detail, due[where], _variants(cls, raw, (*where, "name")))
            elif (
                detail["type"] != "conflict"
            ):  # conflicts are found beside wrong types, not only without them
                faults.add((*path, *where), _sentence(detail, where, cls, raw))
        for where, expected in due.items():  # a union complains once a branch: one sentence for all of them
            faults.add((*path, *where), f"must be {' or '.join(dict.fromkeys(expected))}, not {got[where]}")
        return None


def _got(detail: ErrorDetails, expected: list[str], variants: list[str]) -> str:
    value = detail["input"]
    if isinstance(value, str) and value in variants:
        return f"{name_value(value)}; write {{name: {one_line(value)}}}"
    if detail["type"] == "string_type" and isinstance(value, bool | int | float):
        return f"{name_value(value)}; put it in quotes"
    hint = near_miss(value, re.findall(r"'([^']*)'", expected[-1])) if isinstance(value, str) else ""
    return f"{name_value(value)}{hint}"


def _sentence(detail: ErrorDetails, where: KeyPath, cls: type[BaseModel], raw: Any) -> str:
    context = detail.get("ctx", {})
    variants = _variants(cls, raw, where) if detail["type"].startswith("union_tag") else []
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key{_nearest_key(str(where[-1]), _descend(cls, raw, where[:-1]))}"
        case "missing":
            return (
                "missing entry; the list is too short"
                if isinstance(where[-1], int)
                else "missing key; add it"
            )
        case "finite_number":
            return f"{name_value(detail['input'])} is not a finite number"
        case "too_short":
            return f"needs at least {context['min_length']} entry, has {context['actual_length']}"
        case "too_long":
            return f"takes at most {context['max_length']} entries, has more"
        case "string_too_short":
            return "must not be empty"
        case "union_tag_not_found":
            return f"missing key (known: {', '.join(variants)})"
        case "union_tag_invalid":
            tag = context["tag"]
            return f"nothing is called {name_value(tag)}{near_miss(tag, variants)} (known: {', '.join(variants)})"
        case "value_error" | "assertion_error":
            return one_line(str(context["error"]), 300)
        case _:
            return one_line(detail["msg"].replace("Input should be", "must be"), 300)


def _where(detail: ErrorDetails, raw: Any) -> KeyPath:
    """Turn pydantic's location into a key path: drop the labels with which it tells the branches of a union."""
    path: list[str | int] = []
    labelled = True  # the section's own class was chosen by its name already
    last = len(detail["loc"]) - 1
    for index, part in enumerate(detail["loc"]):
        if isinstance(raw, dict):
            if index < last and not labelled and part == raw.get("name"):
                labelled = True
                continue
            if part in raw:
                raw, labelled = raw[part], False
                path.append(part)
            elif index == last and detail["type"] == "missing":
                path.append(part)
        elif isinstance(raw, list) and isinstance(part, int):
            raw, labelled = (raw[part] if part < len(raw) else None), False
            path.append(part)
    if detail["type"].startswith("union_tag"):
        path.append("name")
    return tuple(path)


def _variants(cls: type[BaseModel], raw: Any, where: KeyPath) -> list[str]:
    """Return the names to choose from at ``where``, which ends in ``name``."""
    field = where[:-1]
    while field and isinstance(field[-1], int):
        field = field[:-1]
    owner = _descend(cls, raw, field[:-1])
    known = _classes_in(owner.model_fields[str(field[-1])].annotation) if owner and field else ()
    return [variant.model_fields["name"].default for variant in known if "name" in variant.model_fields]


def _no_row(row: str, rows: Mapping[str, Any]) -> str:
    known = ", ".join(map(one_line, rows))
    return f"no row is called {name_value(row)}{near_miss(row, rows)} (rows: {known})"


def _key(path: Sequence[str | int]) -> str:
    return ".".join(one_line(str(part)) for part in path)


def _shown(path: Path) -> str:
    shown = path
    with contextlib.suppress(ValueError, OSError):  # elsewhere, or the working folder is gone
        shown = path.relative_to(Path.cwd())
    return one_line(str(shown), 200)


def _covers(key: str, path: str) -> bool:
    """Whether a key path names ``path`` or something above it; ``*`` in the key stands for any row."""
    parts, below = key.split("."), path.split(".")
    return len(parts) <= len(below) and all(a in (b, "*") for a, b in zip(parts, below, strict=False))


# --- From a section to plain values --------------------------------------------------------------------------


def _plain(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json", round_trip=True)


def _canonical(section: BaseModel) -> dict[str, Any]:
    return {"version": getattr(type(section), "version", 1), "config": _counted(section)}


def _counted(section: BaseModel) -> dict[str, Any]:
    """Return the plain section without the fields that move no number."""
    plain = _plain(section)
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        value = getattr(section, name)
        if isinstance(extra, dict) and extra.get("fingerprint") is False:
            del plain[name]
        elif isinstance(value, BaseModel):
            plain[name] = _counted(value)
        elif isinstance(value, tuple | list):
            pairs = zip(value, plain[name], strict=True)
            plain[name] = [_counted(item) if isinstance(item, BaseModel) else as_is for item, as_is in pairs]
    return plain


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _leaves(prefix: str, section: BaseModel) -> Iterator[tuple[str, Any]]:
    plain = _plain(section)
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(f"{prefix}.{name}", value)
        else:
            yield f"{prefix}.{name}", plain[name]
