"""The VCTK corpus in a folder: which recordings are there, and whose.

Source: Yamagishi, Veaux and MacDonald, "CSTR VCTK Corpus: English Multi-speaker Corpus for CSTR Voice Cloning Toolkit",
University of Edinburgh. Two releases are in use, and numbers on them are not comparable, for the second is trimmed:

* 0.80: ``wav48/p225/p225_001.wav``, one microphone;
* 0.92: ``wav48_silence_trimmed/p225/p225_001_mic1.flac``, two microphones, silence cut off.

The audio alone says what there is. Texts have holes of their own (p315 has none) and are read by nobody here; their
names, and those of the other microphone, only tell which recordings are missing (p280 has no second microphone).
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from seqpyramid.errors import DataError

Version = Literal["0.80", "0.92"]
Microphone = Literal["mic1", "mic2"]

AUDIO_FOLDERS: dict[Version, str] = {"0.80": "wav48", "0.92": "wav48_silence_trimmed"}
_EXAMPLES: dict[Version, str] = {"0.80": "p225/p225_001.wav", "0.92": "p225/p225_001_mic1.flac"}
_RECORDINGS: dict[Version, re.Pattern[str]] = {
    "0.80": re.compile(r"(?P<speaker>[a-z]\d+)_(?P<number>\d+)\.wav"),
    "0.92": re.compile(r"(?P<speaker>[a-z]\d+)_(?P<number>\d+)_(?P<microphone>mic[12])\.flac"),
}
_TEXT = re.compile(r"(?P<speaker>[a-z]\d+)_(?P<number>\d+)\.txt")
_SPEAKER = re.compile(r"[a-z]\d+")
_ARCHIVE = re.compile(r"vctk.*\.(zip|tar|tar\.gz|tgz|tar\.bz2|tar\.xz)", re.IGNORECASE)
_SHOWN = 5


@dataclass(frozen=True)
class Utterance:
    """One recording."""

    speaker: str
    number: int
    path: Path


@dataclass(frozen=True)
class Listing:
    """What a corpus holds for one microphone."""

    root: Path
    """The folder above the audio."""
    utterances: tuple[Utterance, ...]
    """By speaker, then number, both as numbers (s5 after p376)."""
    absent: tuple[str, ...]
    """Speakers known from the other microphone or from texts, of whom there is no recording."""
    missing: dict[str, int] = field(default_factory=dict)
    """Speaker -> recordings known in the same way that are not there."""
    strange: int = 0
    """Files among the recordings whose names are no recording's."""


def speaker_order(speaker: str) -> tuple[str, int]:
    """Sort key under which p9 precedes p10.

    >>> sorted(["s5", "p315", "p9", "p225"], key=speaker_order)
    ['p9', 'p225', 'p315', 's5']
    """
    return speaker[0], int(speaker[1:])


def find(folder: Path, version: Version) -> Path:
    """Return the root of the corpus: ``folder`` itself, what holds it where it is the audio's, or a folder in it.

    Raises:
        DataError: the folder is something else, holds the other release, or the archive only.
    """
    folder = folder if folder.name not in AUDIO_FOLDERS.values() else folder.parent
    try:
        candidates = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
        for root in candidates:
            if _has_speakers(root / AUDIO_FOLDERS[version]):
                return root
        for root in candidates:
            for other, name in AUDIO_FOLDERS.items():
                if other != version and _has_speakers(root / name):
                    microphone = " with task.microphone=mic1 or mic2" if other == "0.92" else ""
                    raise DataError(
                        f"{root}: this is VCTK {other}, but the recipe asks for {version}, and the two are not "
                        f"comparable; name the other release, or set task.version={other}{microphone}"
                    )
        found = _describe(folder, version)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot look here ({error.strerror}); name another folder or mend that"
        ) from None
    raise DataError(
        f"{folder}: expected VCTK {version} ({AUDIO_FOLDERS[version]}/{_EXAMPLES[version]} ...), but {found}"
    )


def list_utterances(root: Path, version: Version, microphone: Microphone | None = None) -> Listing:
    """List the recordings under ``root``, in an order that does not depend on the file system.

    Args:
        root: what :func:`find` returned.
        version: the release.
        microphone: which of the two, in 0.92 only.

    Raises:
        DataError: there is none, or a folder cannot be read.
    """
    pattern = _RECORDINGS[version]
    utterances: list[Utterance] = []
    known: set[tuple[str, int]] = set()
    strange = 0
    for path in _files(root / AUDIO_FOLDERS[version]):
        match = pattern.fullmatch(path.name)
        if match is None or match["speaker"] != path.parent.name:
            strange += 1
            continue
        number = int(match["number"])
        known.add((match["speaker"], number))
        if microphone is None or match["microphone"] == microphone:
            utterances.append(Utterance(match["speaker"], number, path))
    if not utterances:
        wanted = f" of microphone {microphone}" if microphone else ""
        raise DataError(
            f"{root / AUDIO_FOLDERS[version]}: no recording{wanted} is named like {_EXAMPLES[version]}; "
            "extract the corpus again"
        )
    for path in _files(root / "txt"):
        match = _TEXT.fullmatch(path.name)
        if match is not None:
            known.add((match["speaker"], int(match["number"])))
    utterances.sort(key=lambda one: (speaker_order(one.speaker), one.number, one.path.name))
    there = Counter(one.speaker for one in utterances)
    lost = Counter(speaker for speaker, _ in known - {(one.speaker, one.number) for one in utterances})
    speakers = sorted(lost, key=speaker_order)
    return Listing(
        root=root,
        utterances=tuple(utterances),
        absent=tuple(speaker for speaker in speakers if speaker not in there),
        missing={speaker: lost[speaker] for speaker in speakers if speaker in there},
        strange=strange,
    )


def _files(folder: Path) -> Iterator[Path]:
    """Yield what lies in the speakers' folders of ``folder``; nothing where there is no such folder."""
    if not folder.is_dir():
        return
    try:
        for speaker in sorted(folder.iterdir()):
            if speaker.is_dir():
                yield from (path for path in speaker.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: cannot look here ({error.strerror}); mend the permissions"
        ) from None


def _has_speakers(audio: Path) -> bool:
    return audio.is_dir() and any(
        _SPEAKER.fullmatch(child.name) and child.is_dir() for child in audio.iterdir()
    )


def _describe(folder: Path, version: Version) -> str:
    """Say what is there instead, and what to do; the end of a sentence."""
    names = sorted(child.name for child in folder.iterdir() if not child.name.startswith("."))
    otherwise = "name the folder of the extracted corpus with --source"
    archives = [name for name in names if _ARCHIVE.fullmatch(name)]
    if archives:
        return f"here lies the archive {archives[0]}, not extracted; extract it, and {otherwise}"
    if not names:
        return f"the folder is empty; {otherwise}"
    if AUDIO_FOLDERS[version] in names:
        return (
            f"{AUDIO_FOLDERS[version]} holds no speaker's folder; extract the corpus again, and {otherwise}"
        )
    if "txt" in names or all(_SPEAKER.fullmatch(name) for name in names):
        return (
            f"here are speakers or texts without {AUDIO_FOLDERS[version]}; extract all of it, and {otherwise}"
        )
    if "_background_noise_" in names or "testing_list.txt" in names:
        return f"this looks like Speech Commands; {otherwise}"
    if any("-ubyte" in name for name in names) or "MNIST" in names:
        return f"this looks like MNIST; {otherwise}"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"here is {', '.join(names[:_SHOWN])}{more}; {otherwise}"
