"""Importing a public implementation from its checkout, or as it is installed."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from seqpyramid.errors import RecipeError


def imported(module: str, folder: Path | None, *, adapter: str) -> ModuleType:
    """Import a module of an implementation.

    A checkout's modules are forgotten by Python afterwards, though not by who holds them: two checkouts may use the
    same flat names.

    Args:
        module: its name, as the implementation's own code imports it.
        folder: what to put on Python's path for it; None: it is installed.
        adapter: whose error it would be.

    Raises:
        RecipeError: there is no such module, it needs another that is not installed, or this Python cannot read it.
    """
    known = set(sys.modules)
    if folder is not None:
        folder = folder.resolve()
        # One of the same name that somebody else has imported would be found first.
        hidden = {name: sys.modules.pop(name) for name in [module] if name in sys.modules}
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RecipeError(_missing(module, error.name, folder, adapter)) from None
    except SyntaxError as error:
        raise RecipeError(
            f"--public {adapter}: {error.filename}, line {error.lineno}, is no Python 3; convert the checkout"
        ) from None
    finally:
        if folder is not None:
            sys.path.remove(str(folder))
            for name in set(sys.modules) - known | {module}:
                file = getattr(sys.modules.get(name), "__file__", None)
                if file is not None and Path(file).is_relative_to(folder):
                    del sys.modules[name]
            sys.modules.update(hidden)
    return found


def member(module: ModuleType, name: str, *, adapter: str) -> Any:
    """Take a class or function out of an imported module.

    Raises:
        RecipeError: the module has none of this name.
    """
    try:
        return getattr(module, name)
    except AttributeError:
        raise RecipeError(
            f"--public {adapter}: {module.__file__} holds no {name}; is it the repository that the adapter's "
            "docstring names?"
        ) from None


def _missing(module: str, name: str | None, folder: Path | None, adapter: str) -> str:
    if name != module:
        return f"--public {adapter}: {module} needs the module {name!r}, which is not installed; install it"
    if folder is None:
        return f"--public {adapter}: the module {module!r} is not installed; install it, or see --help"
    return f"--public {adapter}={folder}: holds no module {module!r}; name the folder of its checkout"
