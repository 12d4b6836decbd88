"""The user's own recordings, sorted into classes.

What a recording is called is said in one of three ways, always under one folder (``path``, or ``--source``):

* one folder a class, also below ``train``, ``validation`` and ``test``;
* ``manifest``: a CSV file with the columns path and label, and if wanted split and group;
* ``label_pattern``: a regular expression over the file name without its ending, with a group ``label`` and if wanted
  ``group``. The Free Spoken Digit Dataset (``7_jackson_32.wav``) gives speakers by
  ``(?P<group>[0-9])_(?P<label>[a-z]+)_[0-9]+`` and digits with the two names swapped.

Splits that the data brings along are kept; those it lacks are cut, by class, or with ``split_by_group`` so that a group
(a speaker, a day) is in one split only.

No paper's table rests on this task. Shapes: T time steps of each recording's own number, F features.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from seqpyramid.contracts import NOT_IN_FINGERPRINT
from seqpyramid.data import splits
from seqpyramid.data.audio import AUDIO_SUFFIXES, Channel
from seqpyramid.data.labelled import pattern_entries
from seqpyramid.data.manifest import Entry, folder_entries, read_manifest, stray_files
from seqpyramid.errors import DataError
from seqpyramid.tasks.base import DataPlace, Progress
from seqpyramid.tasks.speech import Corpus, Reading, SpeechConfig, SpeechTask


class AudioFolderConfig(SpeechConfig):
    """The user's own recordings."""

    summary_line: ClassVar[str] = "your own recordings: a folder a class, a manifest, or labels in file names"

    name: Literal["audio_folder"] = "audio_folder"
    path: str | None = Field(
        default=None,
        min_length=1,
        description="folder of the recordings; null: the one named with --source",
        json_schema_extra=NOT_IN_FINGERPRINT,
    )
    manifest: str | None = Field(
        default=None, min_length=1, description="CSV file in that folder that names recordings and labels"
    )
    label_pattern: str | None = Field(
        default=None,
        min_length=1,
        description="regular expression over a file's name without ending, with a group (?P<label>...)",
    )
    split_by_group: bool = Field(default=False, description="keep each group in one split as a whole")
    channel: Channel = Field(default="only", description="which channel is read; only: refuse stereo files")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.manifest is not None and self.label_pattern is not None:
            raise ValueError("manifest and label_pattern both say what a recording is; remove one")
        names = set()
        if self.label_pattern is not None:
            try:
                names = set(re.compile(self.label_pattern).groupindex)
            except re.error as error:
                raise ValueError(f"label_pattern is no regular expression: {error}") from None
            if not {"label"} <= names <= {"label", "group"}:
                raise ValueError(
                    "label_pattern must have a group (?P<label>...), and may have (?P<group>...)"
                )
        if self.split_by_group and self.manifest is None and "group" not in names:
            raise ValueError(
                "split_by_group needs groups: a manifest's column, or (?P<group>...) in label_pattern"
            )
        return self

    @property
    def spec_known(self) -> bool:
        """The classes are those of the user's data."""
        return False

    def build(self) -> "AudioFolder":
        """Build the task; no data is touched."""
        return AudioFolder(
            self.reading(self.channel),
            path=self.path,
            manifest=self.manifest,
            label_pattern=self.label_pattern,
            split_by_group=self.split_by_group,
        )


class AudioFolder(SpeechTask):
    """See the module's docstring; the arguments are the config's fields."""

    name = "audio_folder"

    def __init__(
        self,
        reading: Reading,
        *,
        path: str | None,
        manifest: str | None,
        label_pattern: str | None,
        split_by_group: bool,
    ) -> None:
        super().__init__(reading, {"manifest": manifest, "label_pattern": label_pattern})
        self._path = None if path is None else Path(path).expanduser()
        self._manifest, self._pattern, self._by_group = manifest, label_pattern, split_by_group

    def named_folder(self, place: DataPlace) -> Path | None:
        """``--source`` goes before ``path``."""
        return place.source or self._path

    def survey(self, folder: Path) -> Corpus:
        """List the recordings in the way that the config says."""
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; name the one that holds your recordings with --source"
            )
        strays = 0
        if self._manifest is not None:
            labelled_by, entries = "manifest", read_manifest(folder / self._manifest)
        elif self._pattern is not None:
            labelled_by, entries = "pattern", pattern_entries(folder, self._pattern, AUDIO_SUFFIXES)
        else:
            labelled_by, entries = "folders", folder_entries(folder, AUDIO_SUFFIXES)
            strays = len(stray_files(folder, AUDIO_SUFFIXES))
        return Corpus(folder, entries, {"labelled_by": labelled_by, "other_files": strays})

    def locate(self, place: DataPlace, progress: Progress | None) -> Path:
        """There is nowhere to look: the data is the user's own."""
        raise DataError(
            "this task reads your own recordings; name their folder with --source, or set task.path"
        )

    def cut(self, entries: Sequence[Entry]) -> splits.Splits:
        """Keep the data's own splits, and cut what it lacks by class or by group."""
        groups = [entry.group for entry in entries if entry.group]
        if self._by_group and len(groups) < len(entries):
            without = next(entry.path for entry in entries if not entry.group)
            raise DataError(
                f"{without}: has no group, and task.split_by_group needs one of every recording; give it one"
            )
        return splits.completed(
            [entry.split for entry in entries],
            [entry.label for entry in entries],
            groups if self._by_group else None,
            self._reading.proportions,
            seed=self._reading.split_seed,
        )
