"""Rounds of all candidates in turn, and the tables of what they gave."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from seqpyramid.analysis.speed import Ratio, take_rounds
from seqpyramid.errors import RecipeError

from .candidates import Candidate


class Measured(NamedTuple):
    """Seconds of every candidate, round by round."""

    training: dict[str, list[float]]
    inference: dict[str, list[float]]


class Pair(NamedTuple):
    """Two candidates whose speeds are compared."""

    what: str
    against: str


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    parameters: int
    train: Ratio
    inference: Ratio


def measure(candidates: Sequence[Candidate], *, rounds: int, device: torch.device) -> Measured:
    """Run everyone in turn: training steps first, then inference.

    Raises:
        RecipeError: two candidates have one name, or ``rounds`` is below 1.
    """
    names = [one.name for one in candidates]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"{twice!r} is named twice; name each row once")
    return Measured(
        take_rounds({one.name: one.training for one in candidates}, rounds, device=device),
        take_rounds({one.name: one.inference for one in candidates}, rounds, device=device),
    )


def compare(candidates: Sequence[Candidate], measured: Measured, reference: str) -> list[Row]:
    """Speed of every candidate relative to the reference."""
    return [
        Row(
            one.name,
            one.parameters,
            Ratio.of(measured.training[one.name], measured.training[reference]),
            Ratio.of(measured.inference[one.name], measured.inference[reference]),
        )
        for one in candidates
    ]


def table(rows: Sequence[Row], *, batch_size: int) -> str:
    """Lay the rows out in Markdown; a ratio is followed by its range over the rounds."""
    lines = [
        "| model | parameters | training, seq/s | x reference | inference, seq/s | x reference |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.name, f"{row.parameters:,}"]
        for ratio in (row.train, row.inference):
            cells.append(f"{batch_size / ratio.seconds.median:,.0f}")
            cells.append(shown(ratio))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pair_table(pairs: Sequence[Pair], measured: Measured) -> str:
    """Lay ratios between candidates out in Markdown, each pair once and within a round; 2 is twice as fast."""
    lines = ["| what | against | training | inference |", "|---|---|---|---|"]
    for what, against in dict.fromkeys(pairs):
        ratios = (Ratio.of(seconds[what], seconds[against]) for seconds in measured)
        lines.append(f"| {what} | {against} | {' | '.join(map(shown, ratios))} |")
    return "\n".join(lines)


def shown(ratio: Ratio) -> str:
    """A ratio and its range over the rounds."""
    return f"{ratio.median:.2f} ({ratio.min:.2f}-{ratio.max:.2f})"


def parse_pairs(texts: Sequence[str], names: Sequence[str]) -> list[Pair]:
    """Read ``WHAT=AGAINST`` of the command line.

    Raises:
        RecipeError: one of the two is no candidate.
    """
    pairs = []
    for text in texts:
        cuts = [k for k, letter in enumerate(text) if letter == "="]  # a name may have one of its own
        halves = [Pair(text[:k], text[k + 1 :]) for k in cuts] or [Pair(text, "")]
        pair = next((one for one in halves if set(one) <= set(names)), halves[0])
        missing = next((name for name in pair if name not in names), None)
        if missing is not None:
            raise RecipeError(
                f"--against {text}: {missing!r} is not measured here; write WHAT=AGAINST with two of: "
                f"{'; '.join(names)}"
            )
        pairs.append(pair)
    return pairs
