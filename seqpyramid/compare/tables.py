"""Group results into blocks that may be compared.

A block holds one protocol: one recipe, one task fingerprint, one training fingerprint. A row holds the seeds of
one model in it. Numbers are never mixed over blocks, and never over rows. :func:`build_tables` computes, the room
``layout`` words the cells once, and each ``to_...`` of ``render`` and ``data`` only writes them in its own notation.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, NamedTuple

from seqpyramid.compare.collect import PaperRef, Result, Results
from seqpyramid.compare.notation import DAGGER, Number
from seqpyramid.compare.statistics import Summary, TTest, paired, summarize, welch
from seqpyramid.papers import PAPERS, Printed, lookup, missing, printed

_HIGHER_IS_BETTER = ("accuracy", "log_likelihood")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The seeds of one model in one protocol."""

    name: str
    """The recipe's row name; followed by the model's fingerprint where two rows of a block share the name."""
    results: tuple[Result, ...]
    score: Summary | None
    """Test metric over seeds; None if the test split was never read."""
    validation: Summary | None
    seconds: Summary | None
    printed: Printed | None
    difference: float | None
    """Mean minus printed value; None for a modified row, which is no reproduction, and where nothing is printed."""

    @property
    def first(self) -> Result:
        """Any of the results: all that they share can be read here."""
        return self.results[0]

    @property
    def modified(self) -> tuple[str, ...]:
        """Overrides of the recipe."""
        return self.first.modified

    @property
    def label(self) -> str:
        """The row's name as printed, or our own."""
        return self.printed.label if self.printed else self.first.row


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows of one block."""

    first: str
    second: str
    difference: float
    """Mean of the first minus mean of the second."""
    welch: TTest | None
    paired: TTest | None
    """Over the seeds that both have."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows that share a recipe, a task and a training protocol."""

    title: str
    recipe: str
    task: str
    task_fingerprint: str
    train_fingerprint: str
    metric: str
    mode: Literal["max", "min"]
    papers: tuple[PaperRef, ...]
    rows: tuple[Row, ...]
    literature: tuple[Printed, ...]
    """Printed rows that were not run."""
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> float | None:
        """The best mean of the block."""
        means = [row.score.mean for row in self.rows if row.score]
        return (max if self.mode == "max" else min)(means) if means else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All blocks, and what the reader must know of how they came about."""

    blocks: tuple[Block, ...]
    warnings: tuple[str, ...] = ()
    """What was left out while grouping."""
    beside: tuple[str, ...] = ()
    """What :func:`collect` found beside the results: damaged files, unfinished runs."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """All that a reader of a written table must be told."""
        return self.beside + self.warnings


class _Protocol(NamedTuple):
    recipe: str
    task_fingerprint: str
    train_fingerprint: str
    metric: str
    mode: Literal["max", "min"]


def build_tables(results: Sequence[Result], *, literature: bool = False) -> Comparison:
    """Group results into blocks and rows.

    Of two results with one row, one set of fingerprints and one seed the first is kept, and a warning names both.

    Args:
        results: from :func:`seqpyramid.compare.collect.collect`; what it
            found beside them goes into the written tables.
        literature: also list the rows of the paper's table that were not run.
    """
    warnings: list[str] = []
    blocks: dict[_Protocol, list[Result]] = {}
    for result in _without_duplicates(results, warnings):
        metric, mode = _compared_metric(result)
        key = _Protocol(result.recipe, result.fingerprint.task, result.fingerprint.train, metric, mode)
        blocks.setdefault(key, []).append(result)
    # the recipe as it is comes before its overridden versions
    ordered = sorted(blocks, key=lambda key: (key.recipe, min(len(r.modified) for r in blocks[key]), key))
    return Comparison(
        blocks=tuple(_block(key, blocks[key], ordered, literature) for key in ordered),
        warnings=tuple(warnings),
        beside=tuple(_beside(results)) if isinstance(results, Results) else (),
    )


def _beside(results: Results) -> Iterable[str]:
    yield from results.problems
    if results.unfinished:
        names = ", ".join(map(str, results.unfinished))
        yield f"{len(results.unfinished)} unfinished: {names}; run `seqpyramid train` again to continue"


def _without_duplicates(results: Iterable[Result], warnings: list[str]) -> list[Result]:
    kept: dict[tuple[object, ...], Result] = {}
    for result in results:
        key = (result.recipe, result.row, result.fingerprint, result.seed)
        if key in kept:
            warnings.append(
                f"{result.path}: same row, fingerprints and seed as {kept[key].path}; only that one is used"
            )
        else:
            kept[key] = result
    return list(kept.values())


def _compared_metric(result: Result) -> tuple[str, Literal["max", "min"]]:
    """Choose the metric that the paper prints, if the run measured it; else the one that selected the checkpoint."""
    for cell in printed(*result.paper) if result.paper else []:
        if cell.metric in result.test and cell.metric != result.metric:
            return cell.metric, "max" if cell.metric in _HIGHER_IS_BETTER else "min"
    return result.metric, result.mode


def _block(key: _Protocol, results: list[Result], all_keys: list[_Protocol], literature: bool) -> Block:
    groups: dict[tuple[str, str, tuple[str, ...]], list[Result]] = {}
    for result in results:
        groups.setdefault((result.row, result.fingerprint.model, result.modified), []).append(result)
    names = Counter(row for row, _, _ in groups)
    as_printed = Counter(row for row, _, modified in groups if not modified)
    rows = [
        # the recipe's own row keeps its plain name beside its overridden versions
        _row(
            row if names[row] == 1 or (not modified and as_printed[row] == 1) else f"{row} [{model[:8]}]",
            key.metric,
            group,
        )
        for (row, model, modified), group in groups.items()
    ]
    rows = _distinct(sorted(rows, key=_printed_order))
    references = tuple(dict.fromkeys(row.first.paper for row in rows if row.first.paper))
    ran = {row.printed for row in rows}
    return Block(
        title=_title(key, results, references, [other for other in all_keys if other.recipe == key.recipe]),
        recipe=key.recipe,
        task=results[0].task,
        task_fingerprint=key.task_fingerprint,
        train_fingerprint=key.train_fingerprint,
        metric=key.metric,
        mode=key.mode,
        papers=references,
        rows=tuple(rows),
        literature=tuple(cell for ref in references for cell in printed(*ref) if cell not in ran)
        if literature
        else (),
        pairs=tuple(_pairs(rows, key.metric)),
        notes=tuple(_notes(rows, key.metric, references)),
    )


def _row(name: str, metric: str, group: list[Result]) -> Row:
    group = sorted(group, key=lambda result: result.seed)
    reference = group[0].paper
    cell = lookup(*reference, group[0].row) if reference else None
    score = _summary(result.test.get(metric) for result in group)
    comparable = score and cell and cell.value is not None and cell.metric == metric and not group[0].modified
    return Row(
        name=name,
        results=tuple(group),
        score=score,
        validation=_summary(result.validation.get(metric) for result in group),
        seconds=_summary(result.seconds for result in group),
        printed=cell,
        difference=score.mean - cell.value
        if comparable and score and cell and cell.value is not None
        else None,
    )


def _summary(values: Iterable[float | None]) -> Summary | None:
    known = [value for value in values if value is not None]
    return summarize(known) if known else None


def _printed_order(row: Row) -> tuple[int, int, str]:
    reference = row.first.paper
    column = printed(*reference) if reference else []
    place = column.index(row.printed) if row.printed in column else len(column)
    return place, len(row.modified), row.name


def _distinct(rows: list[Row]) -> list[Row]:
    """Number the rows that even the model's fingerprint does not tell apart (overrides worded differently)."""
    seen: Counter[str] = Counter()
    named = []
    for row in rows:
        seen[row.name] += 1
        named.append(row if seen[row.name] == 1 else replace(row, name=f"{row.name} #{seen[row.name]}"))
    return named


def _title(
    key: _Protocol, results: list[Result], references: Sequence[PaperRef], siblings: list[_Protocol]
) -> str:
    title = key.recipe
    if references:
        title += ": " + "; ".join(
            f"{PAPERS[ref.paper].short if ref.paper in PAPERS else ref.paper}, {ref.table}, {ref.column}"
            for ref in references
        )
    parts = []
    if len({sibling.task_fingerprint for sibling in siblings}) > 1:
        parts.append(f"task {key.task_fingerprint[:8]}")
    if len({sibling.train_fingerprint for sibling in siblings}) > 1:
        parts.append(f"training {key.train_fingerprint[:8]}")
    if len({(sibling.metric, sibling.mode) for sibling in siblings}) > 1:
        parts.append(f"by {key.metric}")
    if parts:
        # overrides of the model make rows, not blocks
        overrides = dict.fromkeys(
            override for result in results for override in result.modified if not override.startswith("model")
        )
        parts.append("overridden: " + ", ".join(overrides) if overrides else "no overrides")
    return f"{title} ({', '.join(parts)})" if parts else title


def _pairs(rows: Sequence[Row], metric: str) -> Iterable[Pair]:
    for a, b in combinations(rows, 2):
        if a.score and b.score and a.score.n > 1 and b.score.n > 1:
            yield Pair(
                first=a.name,
                second=b.name,
                difference=a.score.mean - b.score.mean,
                welch=welch(a.score.values, b.score.values),
                paired=paired(_by_seed(a, metric), _by_seed(b, metric)),
            )


def _by_seed(row: Row, metric: str) -> dict[int, float]:
    return {result.seed: result.test[metric] for result in row.results if metric in result.test}


def _notes(rows: Sequence[Row], metric: str, references: Sequence[PaperRef]) -> Iterable[str]:
    results = [result for row in rows for result in row.results]
    yield from filter(None, (missing(*reference) for reference in references))
    trivial = {result.trivial[metric] for result in results if metric in result.trivial}
    if len(trivial) == 1:
        yield f"the best constant answer scores {Number(metric, 2).text(trivial.pop())}{Number(metric, 2).unit}"
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        alike.setdefault(row.modified, []).append(row.name)
    for modified, names in alike.items():
        if modified:
            whose = "all rows" if 1 < len(names) == len(rows) else ", ".join(names)
            yield f"{DAGGER} {whose}: {', '.join(modified)}; modified, not a reproduction"
    for row in rows:
        if len({result.parameters for result in row.results}) > 1:
            yield f"{row.name}: the runs differ in their number of parameters, so their data differ"
        untested = [result for result in row.results if metric not in result.test]
        if untested:
            yield f"{row.name}: {len(untested)} of {len(row.results)} runs without a test {metric}"
    if len({result.data for result in results}) > 1:
        versions = ", ".join(sorted({result.data[0][:8] or "unknown" for result in results}))
        yield f"these runs read different data or splits (data {versions}), so their numbers do not compare"
    if any(result.test_accesses != 1 for result in results):
        yield "test accesses: how often each run read the test split; a clean number comes from one reading"
    devices = sorted({result.device for result in results if result.device})
    if len(devices) > 1:
        yield f"training times come from different devices ({', '.join(devices)})"
