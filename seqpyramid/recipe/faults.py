"""The collection of faults found in one recipe, reported together."""

from __future__ import annotations

from seqpyramid import yaml12
from seqpyramid.errors import RecipeError
from seqpyramid.recipe.places import OVERRIDE, KeyPath, covers, shown_key


class Faults:
    """Every fault of one recipe, each with its place."""

    def __init__(self, document: yaml12.Document) -> None:
        self._document = document
        self._found: dict[tuple[float, str], None] = {}
        self.overridden: list[str] = []
        """Key paths that overrides set: a fault there, or in what they had to create, is the override's."""

    def add(self, path: KeyPath, sentence: str) -> None:
        dotted = ".".join(map(str, path))
        above = path not in self._document.lines and any(covers(dotted, key) for key in self.overridden)
        if above or any(covers(key, dotted) for key in self.overridden):
            self.add_override(f"{shown_key(path)}: {sentence}")
            return
        line = self._document.line(path)
        where = f"{shown_key(path)}: " if path else ""
        self._found[line, f"{self._document.filename}:{line}: {where}{sentence}"] = None

    def add_override(self, sentence: str) -> None:
        self._found[float("inf"), f"{OVERRIDE}: {sentence}"] = None

    def raise_all(self) -> None:
        if self._found:
            raise RecipeError([text for _, text in sorted(self._found, key=lambda found: found[0])])
