"""Speaker identification on the VCTK corpus.

Sources: Chang et al., "Dilated Recurrent Neural Networks", NIPS 2017, Sec. 4.4 (raw waveforms and 13 MFCC); Ma et al.,
"Temporal Pyramid Recurrent Neural Network", AAAI 2020, Table 3 (109 speakers, about 400 sentences each, cut 7:1:2 for
each speaker; MFCC of 25 ms every 10 ms; raw at 1000 and 1500 Hz).

What the papers leave open is an option here, and what was taken is recorded with every result:

* ``version`` and ``microphone``: the papers are older than release 0.92, whose recordings are trimmed, so 0.80 is the
  default; results on the two are not comparable;
* ``leave_out``: papers count 108 or 109 speakers without saying which; all that are there are taken but for these;
* ``split_seed``: who went where is not published; ours is written beside the cache;
* ``standardise`` and ``features.normalise``: not mentioned, so off; ``features.max_length``: likewise, so whole
  recordings are read.

Deviations: none known. The speakers read some texts in common, so a model may also hear words it was trained on.

Shapes: T time steps of each recording's own number, F features.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from seqpyramid.contracts import SPLITS
from seqpyramid.data import catalogue, splits, vctk
from seqpyramid.data.archives import extract
from seqpyramid.data.labelled import natural
from seqpyramid.data.manifest import Entry
from seqpyramid.data.vctk import Microphone, Version
from seqpyramid.errors import DataError
from seqpyramid.registry import near_miss
from seqpyramid.tasks.base import DataPlace, Progress
from seqpyramid.tasks.speech import Corpus, Reading, SpeechConfig, SpeechTask, number

_RESOURCES: dict[Version, str] = {"0.80": "vctk_080", "0.92": "vctk_092"}
_MAX_BYTES = 40 * 2**30
"""Of an extracted archive; 0.80 has about 15 GB."""
_MAX_FILES = 300_000
"""Likewise; 0.92 has about 132,000."""


def _written(version: Any) -> Any:
    """YAML and the command line read 0.92 as a number."""
    return f"{version:.2f}" if isinstance(version, float) else version


class VctkConfig(SpeechConfig):
    """Speaker identification on VCTK."""

    summary_line: ClassVar[str] = (
        "VCTK: tell 109 speakers apart by raw speech or MFCC (about 11 GB, --source)"
    )

    name: Literal["vctk"] = "vctk"
    version: Annotated[Version, BeforeValidator(_written)] = Field(
        default="0.80", description="release; numbers on 0.80 and 0.92 are not comparable"
    )
    microphone: Microphone | None = Field(default=None, description="mic1 or mic2; with version=0.92 only")
    speakers: int | None = Field(
        default=None, ge=2, description="K, speakers there must be; null: as many as there are"
    )
    leave_out: tuple[str, ...] = Field(
        default=(), strict=False, description="speakers that are left out, such as p315"
    )
    utterances_per_speaker: int | None = Field(
        default=None, gt=0, description="use the first n of each speaker only, for trials"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.version == "0.92" and self.microphone is None:
            raise ValueError("version=0.92 needs a microphone: mic1 or mic2")
        if self.version == "0.80" and self.microphone is not None:
            raise ValueError("microphone is read with version=0.92 only; 0.80 has one")
        twice = [speaker for speaker, times in Counter(self.leave_out).items() if times > 1]
        if twice:
            raise ValueError(f"leave_out names {twice[0]} twice")
        return self

    @property
    def spec_known(self) -> bool:
        """Only where the number of speakers is given."""
        return self.speakers is not None

    def build(self) -> "Vctk":
        """Build the task; no data is touched."""
        return Vctk(
            self.reading("only"),
            version=self.version,
            microphone=self.microphone,
            speakers=self.speakers,
            leave_out=self.leave_out,
            utterances_per_speaker=self.utterances_per_speaker,
        )


class Vctk(SpeechTask):
    """See the module's docstring; the arguments are the config's fields."""

    name = "vctk"

    def __init__(
        self,
        reading: Reading,
        *,
        version: Version,
        microphone: Microphone | None,
        speakers: int | None,
        leave_out: Sequence[str],
        utterances_per_speaker: int | None,
    ) -> None:
        super().__init__(
            reading,
            {
                "version": version,
                "microphone": microphone,
                "leave_out": sorted(leave_out),
                "utterances_per_speaker": utterances_per_speaker,
            },
        )
        self._version, self._microphone = version, microphone
        self._speakers, self._leave_out, self._limit = speakers, tuple(leave_out), utterances_per_speaker

    def _outputs(self) -> int:
        return self._speakers if self.class_names is None and self._speakers else super()._outputs()

    def survey(self, folder: Path) -> Corpus:
        """List the recordings of the speakers that are not left out."""
        root = vctk.find(folder, self._version)
        listing = vctk.list_utterances(root, self._version, self._microphone)
        there = {one.speaker for one in listing.utterances}
        for speaker in self._leave_out:
            if speaker not in there and speaker not in listing.absent:
                raise DataError(
                    f"{root}: task.leave_out names {speaker}, and no such speaker is here"
                    f"{near_miss(speaker, there)}; remove it from the list"
                )
        entries = [
            Entry(one.path, speaker, None, None)
            for speaker, said in groupby(listing.utterances, key=lambda one: one.speaker)
            if speaker not in self._leave_out
            for one in list(said)[: self._limit]
        ]
        if not entries:
            raise DataError(f"{root}: task.leave_out names every speaker; shorten the list")
        return Corpus(
            root,
            entries,
            {
                "version": self._version,
                "microphone": self._microphone,
                "left_out": sorted(self._leave_out, key=natural),
                "absent_speakers": list(listing.absent),
                "missing_recordings": listing.missing,
                "files_of_other_names": listing.strange,
                "utterances_per_speaker": self._limit,
            },
        )

    def locate(self, place: DataPlace, progress: Progress | None) -> Path:
        """Fetch and unpack the corpus, where its archive's hash is known and fetching is allowed."""
        name = _RESOURCES[self._version]
        unpacked = place.downloads / name / "unpacked"
        if not unpacked.is_dir():
            archive = catalogue.obtain(name, place.downloads, offline=place.offline, progress=progress)
            extract(archive, unpacked, max_bytes=_MAX_BYTES, max_files=_MAX_FILES, progress=progress)
        return unpacked

    def cut(self, entries: Sequence[Entry]) -> splits.Splits:
        """Cut every speaker in proportion; each must be in all three splits."""
        counts = Counter(entry.label for entry in entries)
        names, labels = number(entries)
        if self._speakers is not None and len(names) != self._speakers:
            raise DataError(
                f"the corpus has {len(names)} speakers ({names[0]} to {names[-1]}) after leave_out, but "
                f"task.speakers={self._speakers}; list in task.leave_out whom to leave out, or set task.speakers"
            )
        shares = self._reading.proportions
        found = splits.stratified(labels, shares, seed=self._reading.split_seed)
        for split in SPLITS:
            without = np.flatnonzero(np.bincount(labels[found[split]], minlength=len(names)) == 0)
            if without.size:
                speaker = names[int(without[0])]
                enough = -(-sum(shares) // min(shares))
                raise DataError(
                    f"speaker {speaker} has {counts[speaker]} recordings, too few for a part in train, validation and "
                    f"test at {':'.join(map(str, shares))} ({enough} always suffice); name the speaker in "
                    "task.leave_out, or change task.utterances_per_speaker or task.proportions"
                )
        return found
