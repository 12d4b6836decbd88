"""Find result files and read them into checked values.

The files' keys are documented at :data:`seqpyramid.rundir.RESULT_FORMAT`.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from seqpyramid.errors import IntegrityError, UserError
from seqpyramid.rundir import RunDir, read_result


class Fingerprint(NamedTuple):
    """Hashes of what moves a number: everything, the task, the training, the model."""

    all: str
    task: str
    train: str
    model: str


class PaperRef(NamedTuple):
    """The printed column that a recipe aims at."""

    paper: str
    table: str
    column: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished run."""

    path: Path
    recipe: str
    row: str
    model: str
    task: str
    seed: int
    fingerprint: Fingerprint
    modified: tuple[str, ...]
    """Overrides of the recipe; an empty tuple for the recipe as it is."""
    paper: PaperRef | None
    parameters: int
    metric: str
    mode: Literal["max", "min"]
    validation: Mapping[str, float]
    test: Mapping[str, float]
    """Metrics of the test split, fractions where they are shares; empty if it was never read."""
    trivial: Mapping[str, float]
    seconds: float | None
    """Training only."""
    test_accesses: int
    device: str
    data: tuple[str, str]
    """Fingerprint of the prepared data, and hash of its splits; "" where unknown."""


class Results(list[Result]):
    """Results in the order found, and what was found beside them."""

    def __init__(
        self, results: Iterable[Result] = (), problems: Iterable[str] = (), unfinished: Iterable[Path] = ()
    ) -> None:
        super().__init__(results)
        self.problems = list(problems)
        """One sentence a file that could not be read."""
        self.unfinished = list(unfinished)
        """Run folders without a result."""


def collect(paths: Iterable[Path | str]) -> Results:
    """Read the results under some paths: run folders, result files, or any folder, searched recursively.

    A file reached by two of the paths is read once. A damaged file is named in ``problems`` and a run without
    a result in ``unfinished``.

    Raises:
        UserError: a path does not exist, or nothing has finished there.
        IntegrityError: there are result files, but none can be read.
    """
    searched = [Path(path) for path in paths]
    found = Results()
    seen: set[Path] = set()
    for path in searched:
        if not path.exists():
            raise UserError(
                f"{path}: no such file or folder; name run folders, result files or a folder of runs"
            )
        for file, finished in _search(path, found.problems):
            real = file.resolve()
            if real in seen:
                continue
            seen.add(real)
            if not finished:
                found.unfinished.append(file)
                continue
            try:
                content = read_result(file)
                if content.get("status", "finished") == "finished":
                    found.append(_Reader(file, content).result())
                else:
                    found.unfinished.append(file.parent)
            except UserError as error:
                found.problems.append(str(error))
            except (OSError, RecursionError) as error:
                found.problems.append(
                    f"{file}: cannot be read ({error}); look at its permissions or train it again"
                )
    if found:
        return found
    if found.problems:
        raise IntegrityError("no result could be read: " + "; ".join(found.problems))
    places = ", ".join(str(path) for path in searched)
    if found.unfinished:
        raise UserError(
            f"{places}: no run has finished yet; run `seqpyramid train` again to continue "
            + ", ".join(map(str, found.unfinished))
        )
    raise UserError(
        f"{places}: no results here; train with `seqpyramid train RECIPE` and name its run folder"
    )


def _search(path: Path, problems: list[str]) -> Iterator[tuple[Path, bool]]:
    """Yield (result file, True) and (folder of an unfinished run, False), in the order of their names."""
    if path.is_file():
        yield path, True
        return

    def report(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be searched ({error.strerror}); look at its permissions")

    visited: set[Path] = set()
    # runs often lie on another disk behind a link, so links are followed, and each folder is entered once
    for folder, subfolders, files in os.walk(path, onerror=report, followlinks=True):
        subfolders.sort()
        real = Path(folder).resolve()
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        run = RunDir(Path(folder))
        if run.result.name in files:
            yield run.result, True
        elif run.recipe.name in files:
            yield run.path, False


class _Reader:
    """Takes the keys of one result file, naming file and key where one is not what it should be."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.content = content

    def result(self) -> Result:
        mode = self.text("mode")
        if mode != "max" and mode != "min":
            raise self.wrong("mode", "max or min")
        test_accesses = self.number("test_accesses", whole=True)
        return Result(
            path=self.path,
            recipe=self.text("recipe"),
            row=self.text("row"),
            model=self.text("model"),
            task=self.text("task"),
            seed=int(self.number("seed", whole=True)),
            fingerprint=Fingerprint(*(self.text("fingerprint", part) for part in Fingerprint._fields)),
            modified=tuple(sorted(self.texts("modified"))),  # typed in another order, they are the same
            paper=PaperRef(*(self.text("paper", part) for part in PaperRef._fields))
            if self.content.get("paper") is not None
            else None,
            parameters=int(self.number("parameters", whole=True)),
            metric=self.text("metric"),
            mode="max" if mode == "max" else "min",
            validation=self.numbers("validation"),
            test=self.numbers("test"),
            trivial=self.numbers("trivial"),
            seconds=None if self.content.get("seconds") is None else float(self.number("seconds")),
            test_accesses=int(test_accesses),
            device=self.optional_text("environment", "device"),
            data=(self.optional_text("data", "fingerprint"), self.optional_text("data", "split_hash")),
        )

    def wrong(self, key: str, wanted: str) -> IntegrityError:
        return IntegrityError(
            f"{self.path}: {key} is missing or not {wanted}; train the run again with --force"
        )

    def value(self, *keys: str) -> Any:
        value: Any = self.content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def text(self, *keys: str) -> str:
        value = self.value(*keys)
        if not isinstance(value, str):
            raise self.wrong(".".join(keys), "a text")
        return value

    def optional_text(self, *keys: str) -> str:
        return "" if self.value(*keys) is None else str(self.value(*keys))

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.content.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of overrides")
        return tuple(value)

    def number(self, *keys: str, whole: bool = False) -> float:
        value = self.value(*keys)
        good = isinstance(value, int) if whole else isinstance(value, int | float) and -1e300 < value < 1e300
        if not good or isinstance(value, bool):
            raise self.wrong(".".join(keys), "a whole number" if whole else "a finite number")
        return float(value) if not whole else value

    def numbers(self, key: str) -> dict[str, float]:
        """Take the numbers of a section, which may be absent; its other entries are none of ours."""
        section = self.content.get(key)
        if section is None:
            return {}
        if not isinstance(section, dict):
            raise self.wrong(key, "a section")
        return {
            name: self.number(key, name)
            for name, value in section.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
