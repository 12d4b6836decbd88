r"""On-line handwriting: predict the next pen position of a line of IAM-OnDB, and write new lines.

Sources: Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, Sec. 4 (the task, and the
mixture density in :mod:`seqpyramid.tasks.mixture_density`); Chung, Ahn, Bengio, "Hierarchical Multiscale Recurrent
Neural Networks", ICLR 2017, arXiv:1609.01704v7, Sec. 4.2 and Table 3 (lines below 300 points dropped, coordinates
standardised by the training split).

A line of P points is P rows (x, y, pen): the move from the last point, and 1 where a stroke ends. The first row is no
move: (0, 0, pen). The model reads a row and answers with the density of the next; the first row is given, so nothing
is predicted of it. x and y are standardised by mean and deviation of the training rows but the first ones; pen is not.

How a line ends (``ending``) is told in :mod:`seqpyramid.tasks.line_density`, and the writing of new lines is done in
:mod:`seqpyramid.tasks.pen_writer`.

Log-likelihoods are of standardised rows, in nats, with the terms of the ending.

Not established, and what was chosen, by named option where it moves a number:

- ``coordinates``: whether HM-LSTM standardised moves (Graves' input, the default) or positions; positions are
  counted here from the line's first point.
- ``components``: M of HM-LSTM; Graves has 20.
- ``split``: HM-LSTM's. Its sizes, 10,465 / 581 / 582, are what cutting 11,628 lines 18:1:1 gives (``lines``, where
  rounding puts the odd one into validation), and then one writer is in several splits. ``forms``, the default, cuts
  by form; a writer filled several, so even this leaks writers. ``iam_ondb_t1`` are the corpus's own lists, by writer.
- ``second_validation``: use of the second validation list of iam_ondb_t1.
- ``loss_per``: HM-LSTM's equation (10) is the sum over a sequence, averaged over sequences; together with clipping
  it trains otherwise than the mean over steps.
- ``smallest_deviation`` of the mixture. The boards' coordinates are whole numbers, so it decides what a repeated
  point can gain.

A damaged file stops the preparation unless ``damaged`` says to leave it out.

Shapes: B batch, T steps, F = 3 features (4 with ``length``), K = 6M + 1 outputs (one more with ``end_symbol`` and
``halt``, two with ``length``).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from seqpyramid.contracts import SPLITS, Batch, Model, Needs, Selection, Split, TaskSpec
from seqpyramid.data import cache, catalogue, splits, strokes
from seqpyramid.data.loading import Dataset, Example, collate_steps
from seqpyramid.data.pen_lines import END, Lines
from seqpyramid.errors import DataError, IntegrityError, UserError
from seqpyramid.tasks.base import (
    Damaged,
    DataPlace,
    Drawn,
    Generative,
    Metrics,
    Prepared,
    Progress,
    Request,
    TaskConfig,
)
from seqpyramid.tasks.line_density import Ending, LikelihoodMetrics, LineDensity, LossPer
from seqpyramid.tasks.pen_writer import Coordinates, PenWriter, Scale, parsed

NamedSplit = Literal["forms", "lines", "iam_ondb_t1"]
SecondValidation = Literal["left_out", "train", "validation"]

PROPORTIONS = (18, 1, 1)

_LAYOUT = 1
"""Raised when what :meth:`Handwriting.prepare` stores changes."""
_PROGRESS_EVERY = 100
_TRIVIAL_BATCH = 64


class HandwritingConfig(TaskConfig):
    """On-line handwriting."""

    summary_line: ClassVar[str] = (
        "predict and write pen strokes of IAM-OnDB lines with a mixture density (needs the registered corpus)"
    )

    name: Literal["handwriting"] = "handwriting"
    components: int = Field(default=20, ge=1, le=1000, description="M, Gaussians of the mixture")
    ending: Ending = Field(default="none", description="how the model says that a line is over")
    coordinates: Coordinates = Field(
        default="offsets", description="moves from point to point, or positions counted from the first point"
    )
    min_length: int = Field(default=300, ge=2, description="points; lines with fewer are dropped")
    max_length: int | None = Field(default=None, ge=2, description="points; lines with more are dropped")
    split: NamedSplit = Field(
        default="forms", description="forms or lines shuffled and cut 18:1:1, or the corpus's own lists"
    )
    split_seed: int = Field(default=0, ge=0, description="seed of split=forms and split=lines")
    second_validation: SecondValidation = Field(
        default="left_out", description="what testset_t.txt is used for; with split=iam_ondb_t1 only"
    )
    loss_per: LossPer = Field(default="step", description="what the loss is a mean over")
    smallest_deviation: float = Field(
        default=1e-3, gt=0, lt=1, description="floor of the mixture's deviations, in standardised units"
    )
    damaged: Damaged = Field(default="refuse", description="what happens to a line that cannot be read")

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        if self.max_length is not None and self.max_length < self.min_length:
            raise ValueError(f"max_length={self.max_length} is below min_length={self.min_length}")
        if self.split == "iam_ondb_t1" and self.split_seed:
            raise ValueError("split_seed is read with split=forms and split=lines only")
        if self.split != "iam_ondb_t1" and self.second_validation != "left_out":
            raise ValueError("second_validation is read with split=iam_ondb_t1 only")
        return self

    @property
    def needs(self) -> Needs:
        """An answer at every step."""
        return "steps"

    def build(self) -> "Handwriting":
        """Build the task; no data is touched."""
        return Handwriting(**self.model_dump(exclude={"name"}))


class Handwriting(Generative):
    """See the module's docstring; the arguments are the config's fields."""

    selection = Selection("log_likelihood", "max")
    writes_predictions = False

    def __init__(
        self,
        *,
        components: int,
        ending: Ending,
        coordinates: Coordinates,
        min_length: int,
        max_length: int | None,
        split: NamedSplit,
        split_seed: int,
        second_validation: SecondValidation,
        loss_per: LossPer,
        smallest_deviation: float,
        damaged: Damaged,
    ) -> None:
        self._density = LineDensity(components, ending, smallest_deviation=smallest_deviation)
        self._ending, self._coordinates = ending, coordinates
        self._min_length, self._max_length = min_length, max_length
        self._split, self._split_seed, self._second_validation = split, split_seed, second_validation
        self._loss_per, self._damaged = loss_per, damaged
        self._scale: Scale | None = None
        self._lines: list[NDArray[np.float32]] = []
        self._indices: splits.Splits = {}

    @property
    def spec(self) -> TaskSpec:
        """A row a step, a mixture density and the ending's numbers out."""
        return TaskSpec(
            input_size=4 if self._ending == "length" else 3,
            outputs=self._density.outputs,
            needs="steps",
            causal=True,
            max_length=None
            if self._max_length is None
            else self._max_length - (not self._density.ends_in_a_step),
        )

    def prepare(self, place: DataPlace, *, force: bool = False, progress: Progress | None = None) -> Prepared:
        """Cache the points of all lines; length, split, coordinates and scale are applied to what is cached.

        So all variants share one cache. Without a source the cache that the last source led to is used, else
        ``iam_ondb`` in the folder of the downloads.
        """
        path, fingerprint, built = self._cached(place, force=force, progress=progress)
        with cache.open_checked(path, fingerprint) as file:
            points = cache.read_unequal(file, "points")
            names = [row.tobytes().decode() for row in cache.read_unequal(file, "names")]
            parts = file["parts"][...]
        lengths = np.array([len(rows) for rows in points])
        longest = self._max_length or int(lengths.max())
        kept = np.flatnonzero((lengths >= self._min_length) & (lengths <= longest))
        if not len(kept):
            raise DataError(
                f"{path}: none of {len(points)} lines has from {self._min_length} to {longest} points; "
                "set task.min_length lower, or task.max_length higher"
            )
        self._indices = self._cut(kept, names, parts)
        self._lines = [strokes.moves(rows) for rows in points] if self._coordinates == "offsets" else points
        self._scale = self._measured()
        return Prepared(
            path=path,
            fingerprint=fingerprint,
            built=built,
            splits={name: len(self._indices[name]) for name in SPLITS},
            split_hash=splits.split_hash(self._indices),
            details={
                "lines": len(points),
                "shorter": int(((lengths < self._min_length) & (lengths > 0)).sum()),
                "longer": int((lengths > longest).sum()),
                "damaged": [name for name, length in zip(names, lengths, strict=True) if length == 0],
                "in_no_split": len(kept) - sum(map(len, self._indices.values())),
                "mean_length": float(lengths[kept].mean()),
                "forms": {
                    name: len({strokes.form_of(names[i]) for i in self._indices[name]}) for name in SPLITS
                },
                **self.memory(),
            },
        )

    def _cached(self, place: DataPlace, *, force: bool, progress: Progress | None) -> tuple[Path, str, bool]:
        """Return the cache, its fingerprint, and whether this call built it."""
        key = cache.fingerprint({"task": "handwriting", "layout": _LAYOUT, "damaged": self._damaged})
        fingerprint = None if force or place.source else cache.pointed(place.caches, "handwriting", key)
        if fingerprint is not None:
            path = cache.cache_path(place.caches, "handwriting", fingerprint)
            if path.exists():
                return path, fingerprint, False
        corpus = strokes.find_corpus(place.source or _placed(place.downloads))
        digests = []
        for done, digest in enumerate(corpus.digests()):
            if progress is not None and done % _PROGRESS_EVERY == 0:
                progress("hash lines", min(done, len(corpus.lines)), len(corpus.lines))
            digests.append(digest)
        fingerprint = cache.fingerprint(
            {"task": "handwriting", "layout": _LAYOUT, "damaged": self._damaged, "content": digests}
        )

        def write(file: h5py.File) -> None:
            of_form = strokes.read_lists(corpus)
            cache.store_unequal(file, "points", self._read(corpus, progress))
            names = [np.frombuffer(name.encode(), dtype=np.uint8) for name in corpus.lines]
            cache.store_unequal(file, "names", names)
            parts = [of_form.get(strokes.form_of(name), -1) for name in corpus.lines]
            cache.store(file, "parts", np.array(parts, dtype=np.int8))

        path = cache.cache_path(place.caches, "handwriting", fingerprint)
        built = cache.build(path, fingerprint, write, force=force)
        cache.point(place.caches, "handwriting", key, fingerprint)
        return path, fingerprint, built

    def _read(self, corpus: strokes.Corpus, progress: Progress | None) -> Iterator[NDArray[np.float32]]:
        """Each line's (P, 3), counted from its first point; (0, 3) where it is damaged and left out."""
        readable = 0
        for done, path in enumerate(corpus.lines.values()):
            if progress is not None and done % _PROGRESS_EVERY == 0:
                progress("read lines", done, len(corpus.lines))
            try:
                rows = strokes.read_line(path)
            except DataError as error:
                if self._damaged == "refuse":
                    raise DataError(f"{error}, or set task.damaged=skip") from None
                yield np.empty((0, 3), dtype=np.float32)
            else:
                readable += 1
                rows[:, :2] -= rows[0, :2]
                yield rows.astype(np.float32)
        if not readable:
            raise DataError(f"{next(iter(corpus.lines.values()))}: this line and all others are damaged")
        if progress is not None:
            progress("read lines", len(corpus.lines), len(corpus.lines))

    def _cut(self, kept: splits.Indices, names: Sequence[str], parts: NDArray[np.int8]) -> splits.Splits:
        if self._split == "lines":
            cut = splits.random(len(kept), PROPORTIONS, seed=self._split_seed)
            found = {name: kept[cut[name]] for name in SPLITS}
        elif self._split == "forms":
            forms, of_line = np.unique([strokes.form_of(names[i]) for i in kept], return_inverse=True)
            cut = splits.random(len(forms), PROPORTIONS, seed=self._split_seed)
            found = {name: kept[np.isin(of_line, cut[name])] for name in SPLITS}
        else:
            use: dict[Split, list[int]] = {"train": [0], "validation": [1], "test": [3]}
            if self._second_validation != "left_out":
                use[self._second_validation].append(2)
            found = {name: kept[np.isin(parts[kept], use[name])] for name in SPLITS}
        empty = [name for name in SPLITS if not len(found[name])]
        if empty:
            lists = ", ".join(strokes.LISTS)
            raise DataError(
                f"split={self._split} leaves nothing for {' and '.join(empty)}; "
                + (
                    f"put the lists of IAM-OnDB-t1 ({lists}) into the source folder"
                    if self._split == "iam_ondb_t1"
                    else f"of {len(kept)} lines that are long enough; add some, or set task.min_length lower"
                )
            )
        return found

    def _measured(self) -> Scale:
        """Mean and deviation of the training rows but the first of each line, which is (0, 0) by definition."""
        train = [self._lines[i] for i in self._indices["train"]]
        rows = np.concatenate([line[1:, :2] for line in train]).astype(np.float64)
        mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        if not deviation.min() > 0:
            raise DataError(
                f"all {self._coordinates} of the training split are the same in one axis; this is no handwriting"
            )
        return Scale(
            mean=(float(mean[0]), float(mean[1])),
            deviation=(float(deviation[0]), float(deviation[1])),
            steps=float(np.mean([len(line) - 1 for line in train])),
        )

    def memory(self) -> dict[str, Any]:
        """Mean and deviation of x and y in units of the board, and the mean number of moves."""
        scale = self._known()
        return {"mean": list(scale.mean), "deviation": list(scale.deviation), "mean_steps": scale.steps}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take the scale from :meth:`memory`.

        Raises:
            IntegrityError: it is not there.
        """
        try:
            (x, y), (dx, dy) = memory["mean"], memory["deviation"]
            self._scale = Scale((float(x), float(y)), (float(dx), float(dy)), float(memory["mean_steps"]))
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"task.json: the scale of the handwriting is not in it ({error!r}); train the run again"
            ) from None

    def _known(self) -> Scale:
        if self._scale is None:
            raise RuntimeError("call prepare or recall first")
        return self._scale

    def dataset(self, split: Split) -> Dataset:
        """Return one split; x is (T, F), y (T, 3): the next row, or (0, 0, 2) where the line is over."""
        if not self._lines:
            raise RuntimeError("call prepare before dataset")
        scale = self._known()
        chosen = [self._lines[i] for i in self._indices[split]]
        rows = np.concatenate(chosen)  # a copy
        rows[:, :2] = (rows[:, :2] - np.array(scale.mean)) / np.array(scale.deviation)
        return Lines(
            torch.from_numpy(rows),
            torch.tensor([len(line) for line in chosen]),
            last_point=self._density.ends_in_a_step,
            remaining_unit=scale.steps if self._ending == "length" else None,
        )

    def collate(self, examples: list[Example]) -> Batch:
        """Pad x and y with zeros on the right to the longest example."""
        return collate_steps(examples)

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood in nats, and the number of steps or of sequences (``loss_per``)."""
        count = int(batch.lengths.sum()) if self._loss_per == "step" else len(batch.lengths)
        total = -self.log_likelihood(outputs, batch).sum()
        return total, torch.full((), count, dtype=torch.int64, device=outputs.device)

    def metrics(self) -> Metrics:
        """``loss`` and, by sequence, ``log_likelihood``."""
        return LikelihoodMetrics(self.log_likelihood, self._loss_per)

    def log_likelihood(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the log-likelihood (B,) of each line, in nats."""
        return self._density.log_likelihood(outputs, batch, mean_moves=self._known().steps)

    def trivial(self) -> dict[str, float]:
        """Score of the best constant answer of a family, on the test split; only after :meth:`prepare`.

        The family: one Gaussian with a full covariance for the moves, one probability for each event of pen and
        ending, and one negative binomial for the length. Moments and frequencies of the test split are its best
        members (the dispersion is searched for); the floors of the mixture hold here too.
        """
        dataset = self.dataset("test")
        batches = [dataset.batch(part) for part in torch.split(torch.arange(len(dataset)), _TRIVIAL_BATCH)]
        targets = torch.cat(
            [batch.y[torch.arange(batch.y.shape[1]) < batch.lengths[:, None]] for batch in batches]
        ).double()
        moved = targets[:, 2] != END
        answer = self._density.constant(targets[moved], int((~moved).sum()))
        if self._ending == "length":
            steps = torch.cat([batch.lengths for batch in batches]).double()
            answer = torch.cat([answer, self._density.constant_length(steps, self._known().steps)])
        metrics = self.metrics()
        for batch in batches:
            metrics.update(answer.expand(*batch.y.shape[:2], -1), batch)
        return metrics.compute()

    def generate(self, model: Model, request: Request) -> list[Drawn]:
        """Let the model write lines from nothing but a first point.

        A model that returns a state is fed one row at a time; any other reads all rows so far again at each step,
        which gives the same and takes time that grows with the square of the length. The temperature is Graves' bias
        (see :func:`seqpyramid.tasks.mixture_density.draw`); pen and ending are drawn as the model says, since always
        taking the likelier would never lift the pen. Everything happens on the device of ``request.generator``.

        Returns:
            for each line a text of rows "x y pen": position in units of the board, counted from the first point
            with y downwards, and 1 where a stroke ends.

        Raises:
            UserError: a prime or a stop symbol is asked for.
            DivergedError: the model answers with something that is no number.
        """
        if request.prime or request.stop is not None:
            raise UserError(
                "handwriting begins with a pen on a board, not with text; leave --prime and --stop out"
            )
        with torch.no_grad():
            return PenWriter(self._density, self._known(), self._coordinates, request).write(model)

    def picture(self, drawn: Sequence[Drawn]) -> bytes:
        """Draw the lines below each other, all in one scale; a line that was cut ends in a grey bar."""
        return strokes.draw_lines([parsed(line.text) for line in drawn], [line.ended for line in drawn])


def _placed(downloads: Path) -> Path:
    """Where a user puts the corpus who names no source."""
    folder = downloads / "iam_ondb"
    if not folder.is_dir():
        raise catalogue.missing("iam_ondb", [folder])
    return folder
