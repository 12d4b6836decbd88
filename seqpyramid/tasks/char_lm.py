"""Character language models: say the next character at every step of a long text.

Sources: Chung, Ahn, Bengio, "Hierarchical Multiscale Recurrent Neural Networks", ICLR 2017, section 4.1 (Penn Treebank,
text8, enwik8; windows of 100 steps, the state carried from one to the next); Chang et al., "Dilated Recurrent Neural
Networks", NIPS 2017, section 4.3. The texts and their versions are in :mod:`seqpyramid.data.text`.

The loss is the mean of -ln p(x_{t+1} | x_1 .. x_t), in nats; ``bpc`` is the same in bits, for bytes a byte.

*Streams* (:mod:`seqpyramid.data.streams`) begin with the zero state. In training there are as many as the batch size
says, in the same order in every epoch. An evaluation has ``evaluation_streams`` whatever the batch size, so the score
depends on it by the few steps after each start (1: the whole split in one stream, as slow as the text is long).

*Without carried state* (``carry_state: false``, for models that cannot) windows are examples by themselves, shuffled in
training, and each begins with the zero state. ``context`` lets a model read so many symbols in front of a window,
whose predictions are not scored.

*Scheduled sampling* (``feeding: scheduled``, :mod:`seqpyramid.tasks.scheduled_sampling`) is for training alone.

Not established, and what was chosen: the symbols are those of all three splits, and how often one is met that training
never saw is recorded (``details``), not refused; text that a model goes on with by itself
(:mod:`seqpyramid.tasks.text_writer`) starts, without a prime, behind an end of line, else behind a space.

Shapes: N symbols, V different symbols, B streams or windows, T steps of a window.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from seqpyramid.contracts import (
    NOT_IN_FINGERPRINT,
    SPLITS,
    Batch,
    Model,
    ModelOutput,
    Needs,
    Selection,
    Split,
    TaskSpec,
)
from seqpyramid.data import cache, text
from seqpyramid.data.loading import IGNORED, Example, collate_steps
from seqpyramid.data.streams import TextDataset
from seqpyramid.data.text import EndOfLine, Units
from seqpyramid.errors import DataError, IntegrityError
from seqpyramid.tasks.base import (
    DataPlace,
    Drawn,
    Generative,
    Metrics,
    Prepared,
    Progress,
    Request,
    Share,
    TaskConfig,
)
from seqpyramid.tasks.metrics import SymbolMetrics, majority, symbol_cross_entropy
from seqpyramid.tasks.scheduled_sampling import Schedule, ScheduledSampling
from seqpyramid.tasks.text_writer import Alphabet, go_on

CorpusName = Literal["ptb", "text8", "enwik8", "file"]
Feeding = Literal["teacher", "scheduled"]

PROPORTIONS = (90, 5, 5)
"""Of text8 and enwik8."""
_LAYOUT = 1
"""Raised when what :meth:`CharLM.prepare` stores changes."""
_COUNT_BLOCK = 2**22


class CharLMConfig(TaskConfig):
    """A character language model."""

    summary_line: ClassVar[str] = (
        "say the next character: Penn Treebank, text8, enwik8 or your own text (bits per character)"
    )

    name: Literal["char_lm"] = "char_lm"
    corpus: CorpusName = Field(description="which text; file: your own")
    path: str | None = Field(
        default=None,
        min_length=1,
        description="corpus=file: the text, from --source or from here; null: the only .txt file of --source",
        json_schema_extra=NOT_IN_FINGERPRINT,
    )
    eos: EndOfLine = Field(
        default="per_line",
        description="corpus=ptb: whether an end of line counts as a character (V 50 or 49)",
    )
    units: Units = Field(default="characters", description="corpus=file: what a symbol is")
    proportions: tuple[Share, Share, Share] = Field(
        default=PROPORTIONS,
        strict=False,  # a list, as JSON and YAML have it
        description="corpus=file: shares of train, validation and test, in this order",
    )
    window: int = Field(
        default=100,
        gt=0,
        le=2**20,
        description="T, steps that a gradient goes back (one more in an epoch's last)",
    )
    carry_state: bool = Field(
        default=True, description="windows continue the ones before them, or each is by itself"
    )
    context: int = Field(
        default=0,
        ge=0,
        le=2**20,
        description="carry_state=false: steps read before each window and not scored",
    )
    evaluation_streams: int = Field(
        default=16, gt=0, le=2**16, description="streams that a split is cut into when it is evaluated"
    )
    feeding: Feeding = Field(
        default="teacher",
        description="training inputs: the text's, or by a schedule also the model's own draws",
    )
    schedule: Schedule | None = Field(
        default=None, description="feeding=scheduled: how the probability of the text's symbol falls"
    )
    train_limit: int | None = Field(
        default=None, gt=1, description="use the first n characters only, for trials"
    )
    validation_limit: int | None = Field(default=None, gt=1, description="likewise")
    test_limit: int | None = Field(default=None, gt=1, description="likewise")

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        own = {"path": self.path is None, "units": self.units == "characters"}
        own["proportions"] = self.proportions == PROPORTIONS
        for field, untouched in own.items():
            if self.corpus != "file" and not untouched:
                raise ValueError(f"{field} is read with corpus=file only")
        if self.corpus != "ptb" and self.eos != "per_line":
            raise ValueError("eos is read with corpus=ptb only")
        if self.carry_state and self.context:
            raise ValueError(
                "context is read with carry_state=false only; a carried state has read all before"
            )
        if not self.carry_state and self.evaluation_streams != 16:
            raise ValueError("evaluation_streams is read with carry_state=true only")
        if not self.carry_state and self.feeding == "scheduled":
            raise ValueError("feeding=scheduled goes step by step and needs carry_state=true")
        if (self.feeding == "scheduled") != (self.schedule is not None):
            raise ValueError(
                "feeding=scheduled needs a schedule: linear, exponential or inverse_sigmoid"
                if self.schedule is None
                else "schedule is read with feeding=scheduled only"
            )
        return self

    @property
    def needs(self) -> Needs:
        """An answer a step."""
        return "steps"

    @property
    def spec_known(self) -> bool:
        """V of the user's own text is counted first."""
        return self.corpus != "file"

    def build(self) -> "CharLM":
        """Build the task; no data is touched."""
        return CharLM(
            corpus=self.corpus,
            path=self.path,
            eos=self.eos,
            units="bytes" if self.corpus == "enwik8" else self.units,
            proportions=self.proportions,
            window=self.window,
            carry_state=self.carry_state,
            context=self.context,
            evaluation_streams=self.evaluation_streams,
            schedule=self.schedule,
            limits={"train": self.train_limit, "validation": self.validation_limit, "test": self.test_limit},
        )


@dataclass(frozen=True)
class _Text:
    """What :meth:`CharLM.prepare` found in the cache."""

    path: Path
    fingerprint: str
    bounds: dict[Split, tuple[int, int]]
    """Where each split begins and ends among all symbols."""
    targets: list[int]
    """(V,) how often each symbol is to be predicted in the test split."""


class CharLM(Generative):
    """See the module's docstring; the arguments are the config's fields."""

    selection = Selection("bpc", "min")
    writes_predictions = False

    def __init__(
        self,
        *,
        corpus: CorpusName,
        path: str | None,
        eos: EndOfLine,
        units: Units,
        proportions: Sequence[int],
        window: int,
        carry_state: bool,
        context: int,
        evaluation_streams: int,
        schedule: Schedule | None,
        limits: dict[Split, int | None],
    ) -> None:
        self._corpus, self._path, self._eos, self._units = corpus, path, eos, units
        self._proportions, self._limits = tuple(proportions), limits
        self._window, self._carry_state, self._context = window, carry_state, context
        self._evaluation_streams = evaluation_streams
        self._feeding = None if schedule is None else ScheduledSampling(schedule)
        self._symbols: tuple[int, ...] | None = None
        self._text: _Text | None = None

    @property
    def spec(self) -> TaskSpec:
        """V one-hot inputs a step and V answers; of the user's own text only after :meth:`prepare` or recall."""
        if self._symbols is not None:
            symbols = len(self._symbols)
        elif self._corpus == "file":
            raise RuntimeError("call prepare before spec")
        elif self._corpus == "ptb":
            symbols = text.PTB_SYMBOLS[self._eos]
        else:
            symbols = text.WIKIPEDIA[self._corpus].symbols
        return TaskSpec(
            input_size=symbols,
            outputs=symbols,
            needs="steps",
            causal=True,
            carry_state=self._carry_state,
            max_length=None if self._carry_state else self._window + self._context,
        )

    # --- data ----------------------------------------------------------------------------------------------------

    def prepare(self, place: DataPlace, *, force: bool = False, progress: Progress | None = None) -> Prepared:
        """Cache the codes (N,) of the whole text and its symbols (V,); what is cut where is decided when it is read.

        So all variants share one cache, but for the end of line and the units.
        """
        path, fingerprint, built = self._cached(place, force, progress)
        with cache.open_checked(path, fingerprint) as file:
            symbols = tuple(file["symbols"][...].tolist())
            if "ends" in file:
                ends = file["ends"][...].tolist()
            else:
                ends = text.proportional_ends(len(file["codes"]), self._proportions)
            bounds = self._bounds(ends)
            counts = {split: _count(file["codes"], *bounds[split], len(symbols)) for split in SPLITS}
            first = int(file["codes"][bounds["test"][0]])
        unseen = {
            split: {
                "symbols": int(((counts["train"] == 0) & (counts[split] > 0)).sum()),
                "times": int(counts[split][counts["train"] == 0].sum()),
            }
            for split in SPLITS[1:]
        }
        targets = counts["test"]
        targets[first] -= 1  # the first symbol is read and never asked for
        self._symbols = symbols
        self._text = _Text(path, fingerprint, bounds, targets.tolist())
        return Prepared(
            path=path,
            fingerprint=fingerprint,
            built=built,
            splits={split: end - begin - 1 for split, (begin, end) in bounds.items()},
            split_hash=cache.fingerprint({split: list(bounds[split]) for split in SPLITS}),
            details={
                "corpus": self._corpus,
                "eos": self._eos if self._corpus == "ptb" else None,
                "units": self._units,
                "characters": {split: end - begin for split, (begin, end) in bounds.items()},
                "symbols": len(symbols),
                "unseen_in_training": unseen,
            },
        )

    def _cached(self, place: DataPlace, force: bool, progress: Progress | None) -> tuple[Path, str, bool]:
        """Return the cache, its fingerprint, and whether it was built now."""
        key: dict[str, Any] = {"task": "char_lm", "layout": _LAYOUT, "corpus": self._corpus}
        read: Callable[[], text.Corpus]
        if self._corpus == "ptb":
            key |= {"eos": self._eos, "files": text.PTB_MD5}

            def read() -> text.Corpus:
                return text.read_ptb(text.find_ptb(place.source, place.downloads), self._eos, progress)

        elif self._corpus != "file":
            name = self._corpus
            key["file"] = text.WIKIPEDIA[name].md5

            def read() -> text.Corpus:
                found = text.find_wikipedia(
                    name, place.source, place.downloads, offline=place.offline, progress=progress
                )
                return text.read_wikipedia(found, name, progress)

        else:
            return self._cached_file(key, place, force, progress)
        return _build(place, cache.fingerprint(key), read, force)

    def _cached_file(
        self, key: dict[str, Any], place: DataPlace, force: bool, progress: Progress | None
    ) -> tuple[Path, str, bool]:
        """The same for the user's own text, whose name is remembered and whose content is the fingerprint."""
        key["units"] = self._units
        named = cache.fingerprint(key | {"path": self._path})
        found = text.find_file(self._path, place.source)
        if found is None:
            known = None if force else cache.pointed(place.caches, "char_lm", named)
            if known is None:
                wanted = "no text was named" if self._path is None else f"{self._path}: there is no such file"
                raise DataError(
                    f"{wanted}; give the folder that holds your text with --source, and its name with task.path "
                    "if it is not the only .txt file there"
                )
            return cache.cache_path(place.caches, "char_lm", known), known, False
        path, digest = found, text.hash_file(found)

        def read() -> text.Corpus:
            corpus, here = text.read_file(path, self._units, progress)
            if here != digest:
                raise DataError(f"{path}: changed while it was read; run again once nothing writes to it")
            return corpus

        result = _build(place, cache.fingerprint(key | {"content": digest}), read, force)
        cache.point(place.caches, "char_lm", named, result[1])
        return result

    def _bounds(self, ends: Sequence[int]) -> dict[Split, tuple[int, int]]:
        bounds: dict[Split, tuple[int, int]] = {}
        begin = 0
        for split, end in zip(SPLITS, ends, strict=True):
            limit = self._limits[split]
            bounds[split] = (begin, end if limit is None else min(end, begin + limit))
            if end - begin < 2:
                raise DataError(
                    f"{self._path or 'the text'}: {ends[-1]} characters leave {end - begin} for {split}, and a "
                    "prediction needs two; give a longer text, or other task.proportions"
                )
            begin = end
        return bounds

    def dataset(self, split: Split) -> TextDataset:
        """Return one split; x is (T, V) one-hot, y (T,) the symbols that come next."""
        if self._text is None or self._symbols is None:
            raise RuntimeError("call prepare before dataset")
        begin, end = self._text.bounds[split]
        with cache.open_checked(self._text.path, self._text.fingerprint) as file:
            codes = torch.from_numpy(file["codes"][begin:end])
        return TextDataset(
            codes,
            len(self._symbols),
            window=self._window,
            streams=self._evaluation_streams if self._carry_state else None,
            context=self._context,
        )

    def collate(self, examples: list[Example]) -> Batch:
        """Pad some windows to one length; what is padded is not scored."""
        return collate_steps(examples, padding=IGNORED)

    # --- training ------------------------------------------------------------------------------------------------

    def set_progress(self, epoch: int, step: int) -> None:
        """Set e of scheduled sampling."""
        if self._feeding is not None:
            self._feeding.set_progress(epoch, step)

    def run(self, model: Model, batch: Batch, state: Any) -> ModelOutput:
        """Show the batch to the model; while it trains under a schedule, with its own draws among the inputs."""
        if self._feeding is None or not model.training:
            return model(batch.x, batch.lengths, state)
        return self._feeding.run(model, batch, state)

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy in nats of the scored steps."""
        return symbol_cross_entropy(outputs, batch.y)

    def metrics(self) -> Metrics:
        """Loss, bits per character, accuracy."""
        return SymbolMetrics()

    def trivial(self) -> dict[str, float]:
        """Score of the best constant answers on the test split, exact; only after :meth:`prepare`.

        The loss is the entropy of its symbols' frequencies.
        """
        if self._text is None:
            raise RuntimeError("call prepare before trivial")
        best = majority(self._text.targets)
        return best | {"bpc": best["loss"] / math.log(2)}

    # --- going on by itself --------------------------------------------------------------------------------------

    def memory(self) -> dict[str, Any]:
        """The symbols, as code points or bytes."""
        return {"symbols": list(self._known())}

    def recall(self, memory: dict[str, Any]) -> None:
        """Know the symbols without the text.

        Raises:
            IntegrityError: they are not there.
        """
        symbols = memory.get("symbols")
        if not isinstance(symbols, list) or not symbols or not all(type(s) is int for s in symbols):
            raise IntegrityError("this run's task.json does not hold its symbols; train the run again")
        self._symbols = tuple(symbols)

    def generate(self, model: Model, request: Request) -> list[Drawn]:
        """Let the model go on behind ``prime``: see :func:`seqpyramid.tasks.text_writer.go_on`.

        A model that carries no state reads as much at each step as it did in training, ``window + context`` symbols.
        """
        return go_on(
            model,
            Alphabet(self._known(), self._units),
            request,
            carry_state=self._carry_state,
            read_most=self._window + self._context,
        )

    def _known(self) -> tuple[int, ...]:
        if self._symbols is None:
            raise RuntimeError("call prepare or recall first")
        return self._symbols


def _build(
    place: DataPlace, fingerprint: str, read: Callable[[], text.Corpus], force: bool
) -> tuple[Path, str, bool]:
    def write(file: h5py.File) -> None:
        corpus = read()
        cache.store(file, "codes", corpus.codes)
        cache.store(file, "symbols", corpus.symbols)
        if corpus.ends is not None:
            cache.store(file, "ends", np.array(corpus.ends, dtype=np.int64))

    path = cache.cache_path(place.caches, "char_lm", fingerprint)
    return path, fingerprint, cache.build(path, fingerprint, write, force=force)


def _count(codes: h5py.Dataset, begin: int, end: int, symbols: int) -> NDArray[np.int64]:
    """How often each symbol occurs, a block at a time: counting makes eight bytes of each."""
    total = np.zeros(symbols, dtype=np.int64)
    for start in range(begin, end, _COUNT_BLOCK):
        total += np.bincount(codes[start : min(end, start + _COUNT_BLOCK)], minlength=symbols)
    return total
