r"""Character language models: say the next character at every step of a long text.

Sources: Chung, Ahn, Bengio, "Hierarchical Multiscale Recurrent Neural Networks", ICLR 2017, section 4.1 (Penn Treebank,
text8, enwik8; windows of 100 steps, the state carried from one to the next); Chang et al., "Dilated Recurrent Neural
Networks", NIPS 2017, section 4.3; Bengio, Vinyals, Jaitly, Shazeer, "Scheduled Sampling for Sequence Prediction with
Recurrent Neural Networks", NIPS 2015, section 2.4. The texts and their versions are in :mod:`seqpyramid.data.text`.

The loss is the mean of -ln p(x_{t+1} | x_1 .. x_t), in nats; ``bpc`` is the same in bits, for bytes a byte.

*Streams.* The N - 1 predictions of a split are cut into B contiguous streams whose lengths differ by one at most. Batch
k holds window k of each stream, always in the same order, so that the state of one batch fits the next; the last
windows take what is left. Streams begin with the zero state. In training B is the batch size, and every epoch has the
same order. An evaluation has ``evaluation_streams`` whatever the batch size, so the score depends on it by the few
steps after each start (1: the whole split in one stream, as slow as the text is long).

*Without carried state* (``carry_state: false``, for models that cannot) windows are examples by themselves, shuffled in
training, and each begins with the zero state. ``context`` lets a model read so many symbols in front of a window,
whose predictions are not scored.

*Scheduled sampling* (``feeding: scheduled``), in training alone: each input is, with probability e, the text's, and
otherwise a draw from what the model answered one step before (across windows, too). Every input is decided by itself.
With i the optimiser step or the epoch (``schedule.per``), counted from 0:

.. math:: e_i = \max(\epsilon, k - c\, i) \;\text{(linear)}, \qquad e_i = k^i \;\text{(exponential)}, \qquad
    e_i = k / (k + e^{i / k}) \;\text{(inverse sigmoid)}

Not established, and what was chosen: the symbols are those of all three splits, and how often one is met that training
never saw is recorded (``details``), not refused; e counts optimiser steps unless ``per`` says otherwise; text that a
model goes on with by itself starts, without a prime, behind an end of line, else behind a space.

Shapes: N symbols, V different symbols, B streams or windows, T steps of a window.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
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
from seqpyramid.data.loading import Dataset, Example, shuffled
from seqpyramid.data.text import EndOfLine, Units
from seqpyramid.errors import DataError, IntegrityError, UserError
from seqpyramid.tasks.base import (
    DataPlace,
    Drawn,
    Generative,
    Metrics,
    Prepared,
    Progress,
    Request,
    TaskConfig,
)
from seqpyramid.tasks.metrics import IGNORED, SymbolMetrics, majority, symbol_cross_entropy

CorpusName = Literal["ptb", "text8", "enwik8", "file"]
Feeding = Literal["teacher", "scheduled"]
Per = Literal["step", "epoch"]
Share = Annotated[int, Field(gt=0, le=10**6, strict=True)]

PROPORTIONS = (90, 5, 5)
"""Of text8 and enwik8."""
END_OF_LINE = "\n"
_LAYOUT = 1
"""Raised when what :meth:`CharLM.prepare` stores changes."""
_COUNT_BLOCK = 2**22


class _Schedule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    per: Per = Field(default="step", description="what i counts: optimiser steps or epochs")


class Linear(_Schedule):
    """e falls by c each time, from k to a floor."""

    name: Literal["linear"] = "linear"
    k: float = Field(default=1.0, ge=0, le=1, description="k, probability of the text's symbol at the start")
    c: float = Field(gt=0, le=1, description="c, by how much it falls each time")
    floor: float = Field(default=0.0, ge=0, le=1, description="epsilon, where the fall ends")

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.floor > self.k:
            raise ValueError(f"floor {self.floor:g} lies above the start, k {self.k:g}; lower it")
        return self

    def truth(self, i: int) -> float:
        """Return e_i."""
        return max(self.floor, self.k - self.c * i)


class Exponential(_Schedule):
    """e is k to the power of i."""

    name: Literal["exponential"] = "exponential"
    k: float = Field(gt=0, lt=1, description="k, what e is multiplied by each time")

    def truth(self, i: int) -> float:
        """Return e_i."""
        return math.exp(i * math.log(self.k))  # underflows to 0, where a power of floats may raise


class InverseSigmoid(_Schedule):
    """e stays near 1, then falls about i = k ln k, then nears 0."""

    name: Literal["inverse_sigmoid"] = "inverse_sigmoid"
    k: float = Field(ge=1, description="k, how long the fall takes")

    def truth(self, i: int) -> float:
        """Return e_i."""
        return 1 / (1 + math.exp(min(i / self.k - math.log(self.k), 700.0)))  # e^700 is finite, e^710 is not


Schedule = Annotated[Linear | Exponential | InverseSigmoid, Field(discriminator="name")]


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
        schedule: Linear | Exponential | InverseSigmoid | None,
        limits: dict[Split, int | None],
    ) -> None:
        self._corpus, self._path, self._eos, self._units = corpus, path, eos, units
        self._proportions, self._limits = tuple(proportions), limits
        self._window, self._carry_state, self._context = window, carry_state, context
        self._evaluation_streams = evaluation_streams
        self._schedule, self._truth = schedule, 1.0
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

    def dataset(self, split: Split) -> "TextDataset":
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
        padded = torch.nn.utils.rnn.pad_sequence
        return Batch(
            x=padded([example.x for example in examples], batch_first=True),
            lengths=torch.tensor([len(example.x) for example in examples]),
            y=padded([example.y for example in examples], batch_first=True, padding_value=IGNORED),
        )

    # --- training ------------------------------------------------------------------------------------------------

    def set_progress(self, epoch: int, step: int) -> None:
        """Set e of scheduled sampling."""
        if self._schedule is not None:
            self._truth = self._schedule.truth(step if self._schedule.per == "step" else epoch)

    def run(self, model: Model, batch: Batch, state: Any) -> ModelOutput:
        """Show the batch to the model; while it trains under a schedule, with its own draws among the inputs.

        The state is then the model's and, beside it, a draw (B,) from its last answer, the next window's first input.
        """
        if self._schedule is None or not model.training:
            return model(batch.x, batch.lengths, state)
        inner, own = (None, None) if state is None else state
        if self._truth >= 1:
            output = model(batch.x, batch.lengths, inner)
            rows = torch.arange(len(batch.x), device=batch.x.device)
            last = output.outputs[rows, (batch.lengths - 1).to(batch.x.device)]
            return output._replace(state=(output.state, draw(last)))
        return self._run_with_own_draws(model, batch.x, inner, own)

    def _run_with_own_draws(self, model: Model, x: Tensor, state: Any, own: Tensor | None) -> ModelOutput:
        """Step by step over x (B, T, V).

        All rows take T steps: windows differ in length only at an epoch's end, where the state is dropped.
        """
        one = torch.ones(len(x), dtype=torch.int64)
        found: list[ModelOutput] = []
        for x_t in x.unbind(1):
            if own is not None:
                true = torch.rand(len(x), device=x.device) < self._truth
                x_t = torch.where(true[:, None], x_t, one_hot(own, x.shape[2]))
            output = model(x_t[:, None], one, state)
            found.append(output)
            state, own = output.state, draw(output.outputs[:, 0])
        losses = [output.aux_loss for output in found if output.aux_loss is not None]
        steps = [output.steps for output in found if output.steps is not None]
        return ModelOutput(
            outputs=torch.cat([output.outputs for output in found], dim=1),
            summary=found[-1].summary,
            steps=torch.cat(steps, dim=1) if steps else None,
            state=(state, own),
            aux_loss=torch.stack(losses).mean() if losses else None,
            diagnostics={
                name: torch.stack([output.diagnostics[name] for output in found]).mean()
                for name in found[-1].diagnostics
            },
        )

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
        """Let the model go on behind ``prime``, each step from its own last draw; the text begins with the prime.

        A model that carries no state reads the last ``window + context`` symbols anew at each step. ``stop`` is one
        symbol, or ``eos`` for an end of line; it is left out of the text.

        Raises:
            UserError: the prime or the stop has a character that the text never had.
        """
        symbols, device = self._known(), request.generator.device
        prime = self._encode(request.prime, "the prime")
        stop = None if request.stop is None else self._stop(request.stop)
        codes = torch.tensor(prime or [self._start()], device=device).expand(request.count, -1)
        going = torch.ones(request.count, dtype=torch.bool, device=device)
        lengths = torch.full((request.count,), request.steps)
        drawn = torch.empty((request.count, 0), dtype=torch.int64, device=device)
        state = None
        with torch.inference_mode():
            for step in range(request.steps):
                read = codes if self._carry_state else codes[:, -(self._window + self._context) :]
                output = model(one_hot(read, len(symbols)), None, state)
                new = draw(
                    output.outputs[:, -1], temperature=request.temperature, generator=request.generator
                )
                drawn = torch.cat([drawn, new[:, None]], dim=1)
                if stop is not None:
                    lengths[((new == stop) & going).cpu()] = step
                    going &= new != stop
                    if not going.any():
                        break
                state = output.state if self._carry_state else None
                codes = new[:, None] if self._carry_state else torch.cat([codes, new[:, None]], dim=1)
        return [
            Drawn(request.prime + self._decode(row[:length]), length, not on)
            for row, length, on in zip(drawn.tolist(), lengths.tolist(), going.tolist(), strict=True)
        ]

    def _known(self) -> tuple[int, ...]:
        if self._symbols is None:
            raise RuntimeError("call prepare or recall first")
        return self._symbols

    def _values(self, written: str) -> list[int]:
        return list(written.encode()) if self._units == "bytes" else [ord(letter) for letter in written]

    def _encode(self, written: str, what: str) -> list[int]:
        codes = {symbol: code for code, symbol in enumerate(self._known())}
        values = self._values(written)
        for value in values:
            if value not in codes:
                shown = f"byte {value}" if self._units == "bytes" else repr(chr(value))
                raise UserError(
                    f"{what} has {shown}, which is none of the {len(codes)} symbols of this model's text; "
                    f"use {self._alphabet()}"
                )
        return [codes[value] for value in values]

    def _alphabet(self) -> str:
        """Some of the symbols, for a message."""
        shown = "".join(chr(s) for s in self._known() if s < 0x7F and chr(s).isprintable())
        return f"characters like {shown[:100]!r}" if shown else "others"

    def _stop(self, written: str) -> int:
        codes = self._encode(END_OF_LINE if written in ("eos", "\\n") else written, "the stop symbol")
        if len(codes) != 1:
            raise UserError(
                f"the stop symbol is {len(codes)} symbols long; give one, or eos for an end of line"
            )
        return codes[0]

    def _start(self) -> int:
        """What an unprimed text goes on behind."""
        symbols = self._known()
        return next((symbols.index(ord(c)) for c in (END_OF_LINE, " ") if ord(c) in symbols), 0)

    def _decode(self, codes: Sequence[int]) -> str:
        values = [self._known()[code] for code in codes]
        if self._units == "bytes":
            return bytes(values).decode(errors="replace")
        return "".join(map(chr, values))


class TextDataset(Dataset):
    """The predictions of one split: number i reads symbol i and says symbol i + 1.

    A row of a plan is (start, length), one window; a plain index is the window of one step there.

    Args:
        codes: (N,) the split's symbols, any integer type.
        symbols: V.
        window: T.
        streams: contiguous streams of an evaluation; None: windows are independent, and shuffled in training.
        context: steps in front of an independent window that are read and not scored.
    """

    def __init__(
        self, codes: Tensor, symbols: int, *, window: int, streams: int | None, context: int
    ) -> None:
        self._codes, self._symbols = codes, symbols
        self._window, self._streams, self._context = window, streams, context

    def __len__(self) -> int:
        return len(self._codes) - 1

    def __getitem__(self, index: int) -> Example:
        batch = self.batch(torch.tensor([index]))
        return Example(batch.x[0], batch.y[0])

    def batch(self, indices: Tensor) -> Batch:
        """Gather in one stroke: indices (B, 2) of a plan or (B,); x (B, T, V), y (B, T), one-hot only here."""
        if indices.ndim == 2:
            starts, scored = indices.unbind(1)
            first = (starts - self._context).clamp(min=0)
        else:
            starts = first = indices
            scored = torch.ones_like(indices)
        before = starts - first
        lengths = before + scored
        t = torch.arange(int(lengths.max()))
        valid = t < lengths[:, None]
        at = (first[:, None] + t).clamp(max=len(self) - 1)
        asked = (valid & (t >= before[:, None])).to(self._codes.device)
        at = at.to(self._codes.device)
        x = one_hot(self._codes[at].long(), self._symbols) * valid.to(self._codes.device)[..., None]
        y = self._codes[at + 1].long().masked_fill(~asked, IGNORED)
        return Batch(x, lengths, y)

    def plan(self, batch_size: int, *, seed: int, epoch: int, shuffle: bool = True) -> list[Tensor]:
        """Return one epoch's batches, (B, 2) rows of start and length each.

        With streams, training has ``batch_size`` of them in one order for all epochs, and an evaluation (not
        shuffled) has its own number.
        """
        if self._streams is not None:
            return contiguous(len(self), batch_size if shuffle else self._streams, self._window)
        starts = torch.arange(0, len(self), self._window)
        rows = torch.stack([starts, (len(self) - starts).clamp(max=self._window)], dim=1)
        if shuffle:
            rows = rows[shuffled(len(rows), seed=seed, epoch=epoch)]
        return list(torch.split(rows, batch_size))

    @property
    def nbytes(self) -> int:
        """Size of the codes."""
        return self._codes.nbytes

    def to(self, device: torch.device) -> "TextDataset":
        """Hold the codes on ``device``."""
        return TextDataset(
            self._codes.to(device),
            self._symbols,
            window=self._window,
            streams=self._streams,
            context=self._context,
        )


def contiguous(predictions: int, streams: int, window: int) -> list[Tensor]:
    """Cut so many predictions into contiguous streams and these into windows: batches of (start, length) rows.

    The longer streams, by one, come first; their last window is longer by one. Fewer predictions than streams make
    as many streams of one.

    >>> [rows.tolist() for rows in contiguous(9, 2, 2)]
    [[[0, 2], [5, 2]], [[2, 3], [7, 2]]]
    """
    streams = min(streams, predictions)
    shortest, longer = divmod(predictions, streams)
    b = torch.arange(streams)
    starts = b * shortest + b.clamp(max=longer)
    batches = []
    for done in range(0, shortest, window):
        lengths = torch.full((streams,), min(window, shortest - done))
        if done + window >= shortest:
            lengths += b < longer
        batches.append(torch.stack([starts + done, lengths], dim=1))
    return batches


def one_hot(codes: Tensor, symbols: int) -> Tensor:
    """(...) int64 -> (..., V) float32.

    >>> one_hot(torch.tensor([2, 0]), 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    zeros = torch.zeros(*codes.shape, symbols, device=codes.device)
    return zeros.scatter_(-1, codes.unsqueeze(-1), 1.0)


def draw(logits: Tensor, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Draw a symbol for each row of logits (B, V); temperature 0 takes the likeliest.

    Returns:
        (B,) int64, without a gradient.
    """
    logits = logits.detach()
    if temperature == 0:
        return logits.argmax(dim=1)
    logits = logits.double()
    # the likeliest at 0, so that a small temperature drives the others to minus infinity and nothing to plus
    probabilities = ((logits - logits.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


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
