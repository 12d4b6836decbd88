"""Recipes: one YAML file a paper setup, checked once, whole, before data and devices.

A recipe names a task, how to train, and every row (model) of one printed table. :func:`load` reads it, applies
overrides, checks everything and reports all faults together. :meth:`Recipe.plan` picks one row and seed: that
is what runs, what is fingerprinted, and what is written into the run folder as a recipe of its own.

The tables of models and tasks are imported when a recipe is loaded, so that importing this package imports no
torch. Its rooms: ``train`` and ``schema`` (what a file may say), ``places`` (how places in it are named), ``tables``,
``walk`` (the schema along raw data), ``faults`` and ``wording``, ``overrides``, ``fingerprint``, ``plan``,
``bundled``, ``loading`` (all of it in order), ``describe``.
"""

from seqpyramid.recipe.bundled import recipe_files
from seqpyramid.recipe.describe import described, json_schema
from seqpyramid.recipe.loading import load, plan_from_yaml
from seqpyramid.recipe.plan import Recipe, RunPlan
from seqpyramid.recipe.schema import PaperRef, RecipeFile
from seqpyramid.recipe.train import TrainConfig

__all__ = [
    "PaperRef",
    "Recipe",
    "RecipeFile",
    "RunPlan",
    "TrainConfig",
    "described",
    "json_schema",
    "load",
    "plan_from_yaml",
    "recipe_files",
]
