"""Adapters to public implementations, so that they take their turns in the same rounds; none of their code is here.

The reader clones a repository and names its folder, ``--public NAME=FOLDER``, or installs the package and names the
adapter alone, ``--public NAME``. An adapter imports the implementation's own class, and gives it the same batch, the
same head and the same step as everything else: zero the gradients, forward, cross entropy, backward, Adam; where it
brings its own head or step, the adapter says so. A new adapter is one module and one line of :data:`ADAPTERS`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.candidates import Candidate, Setting
from seqpyramid.errors import RecipeError

from . import chang, flashrnn, haste, hm_rnn, hmlstm, ma, zalando

Adapter = Callable[[Path | None, Setting], list[Candidate]]
"""Gets the folder of the checkout (None: as installed) and returns what to run.

Raises :class:`~seqpyramid.errors.RecipeError` where the implementation is not there, or cannot run here.
"""

ADAPTERS: Mapping[str, Adapter] = {
    zalando.NAME: zalando.candidates,
    haste.NAME: haste.candidates,
    flashrnn.NAME: flashrnn.candidates,
    hmlstm.NAME: hmlstm.candidates,
    hm_rnn.NAME: hm_rnn.candidates,
    **{chang.name(cell): partial(chang.candidates, cell) for cell in chang.CELLS},
    **{ma.name(size): partial(ma.candidates, size) for size in ma.PYRAMIDS},
}


def add_public(parser: argparse.ArgumentParser) -> None:
    """Add ``--public``."""
    parser.add_argument(
        "--public",
        nargs="+",
        default=[],
        metavar="NAME[=FOLDER]",
        help=f"public implementations, from the folder of a checkout or as installed: {', '.join(ADAPTERS)}",
    )


def public_candidates(
    texts: Sequence[str], setting: Setting, adapters: Mapping[str, Adapter] = ADAPTERS
) -> list[Candidate]:
    """Read ``NAME`` or ``NAME=FOLDER`` of the command line and make those implementations ready.

    Raises:
        RecipeError: there is no such adapter, or its implementation is not there or cannot run here.
    """
    found = []
    for text in texts:
        name, given, folder = text.partition("=")
        if name not in adapters:
            raise RecipeError(f"--public {text}: no adapter has this name; there are {', '.join(adapters)}")
        if given and not (folder and Path(folder).is_dir()):
            raise RecipeError(
                f"--public {text}: {folder or 'nothing'!r} is no folder; clone the repository and name it"
            )
        found += adapters[name](Path(folder) if given else None, setting)
    return found
