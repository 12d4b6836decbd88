"""The tables of models and tasks, imported on the first call, so that importing recipes imports no torch.

Callers write ``tables.models()`` and ``tables.tasks()``: this is the one place where a test puts others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqpyramid.models.base import ModelConfig
    from seqpyramid.tasks.base import TaskConfig


def models() -> Mapping[str, type[ModelConfig]]:
    """Return the table of models: name -> config class."""
    from seqpyramid.models import MODELS

    return MODELS


def tasks() -> Mapping[str, type[TaskConfig]]:
    """Return the table of tasks: name -> config class."""
    from seqpyramid.tasks import TASKS

    return TASKS
