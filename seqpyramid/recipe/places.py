"""Places in a recipe: how messages name a file, a row and a key path, and which key path holds which."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqpyramid.registry import near_miss
from seqpyramid.yaml12 import name_value, one_line

KeyPath = tuple[str | int, ...]
OVERRIDE = "override"
"""Place of a problem that an override caused, and source of a value that an override set."""


def shown_file(path: Path) -> str:
    """Name a file in a message: from the working folder if it lies inside, on one line."""
    shown = path
    with contextlib.suppress(ValueError, OSError):  # elsewhere, or the working folder is gone
        shown = path.relative_to(Path.cwd())
    return one_line(str(shown), 200)


def shown_key(path: Sequence[str | int]) -> str:
    """Name a key path in a message.

    >>> shown_key(("models", "lstm", "skips", 0))
    'models.lstm.skips.0'
    """
    return ".".join(one_line(str(part)) for part in path)


def no_row(row: str, rows: Mapping[str, Any]) -> str:
    """Say that there is no such row, which is nearest, and which there are."""
    known = ", ".join(map(one_line, rows))
    return f"no row is called {name_value(row)}{near_miss(row, rows)} (rows: {known})"


def covers(key: str, path: str) -> bool:
    """Whether a key path names ``path`` or something above it; ``*`` in the key stands for any row.

    >>> covers("models.*.size", "models.lstm.size"), covers("train", "train.lr"), covers("train.lr", "train")
    (True, True, False)
    """
    parts, below = key.split("."), path.split(".")
    return len(parts) <= len(below) and all(a in (b, "*") for a, b in zip(parts, below, strict=False))
