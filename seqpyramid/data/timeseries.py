"""Time series in the text formats of the UEA and UCR archives: ``.ts`` and ``.tsv``.

``.ts`` (timeseriesclassification.com): lines of a header, each ``@key value``, then ``@data`` and a line a sequence;
channels are separated by colons, the values of a channel by commas, and the class label comes last. Keys and the words
true and false may be in any case; lines that are empty or begin with ``#`` are passed over; ``?`` and NaN are missing
values. What the header says must be so: a reader that trusts the data over its header, or the header over the data,
would hide a damaged file. Ours: all channels of a sequence have one length, because a sequence is (T, F). Time stamps
(``@timeStamps true``, or values in brackets) and regression targets (``@targetLabel true``) are refused.

``.tsv`` (UCR archive, 2018): a line a sequence, the label first, then one channel's values, separated by tabs. All
lines are equally long; NaN at the end fills up a shorter sequence, NaN elsewhere is a missing value. A label that is a
whole number is written without a fraction ("1.0000000e+00" is "1").

Shapes: N sequences, T time steps (of each sequence its own), F channels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqpyramid.contracts import Split
from seqpyramid.errors import DataError
from seqpyramid.registry import near_miss

_BLOCK_CHARACTERS = 2**20  # the fields of a block are Python strings, ten times as large as their characters
_LARGEST = float(np.finfo(np.float32).max)

_KEYS = (
    "problemname",
    "timestamps",
    "missing",
    "univariate",
    "dimension",
    "dimensions",
    "equallength",
    "serieslength",
    "classlabel",
    "targetlabel",
    "data",
)
_FLAGS = ("timestamps", "missing", "univariate", "equallength")
_COUNTS = ("dimension", "dimensions", "serieslength")


@dataclass(frozen=True)
class Series:
    """Labelled or unlabelled sequences, as a file has them."""

    values: list[NDArray[np.float32]]
    """N arrays (T, F); missing values are NaN, and all others finite."""
    labels: list[str] | None
    """N class names; None where the file has none."""
    splits: list[Split | None] | None = None
    groups: list[str] | None = None


@dataclass
class _Header:
    """What a .ts file says of itself; None: nothing."""

    flags: dict[str, bool] = field(default_factory=dict)
    channels: int | None = None
    length: int | None = None
    classes: tuple[str, ...] | None = None
    """Empty where there are no labels."""
    lines: dict[str, int] = field(default_factory=dict)
    """Where each key stands."""


def read_ts(path: Path) -> Series:
    """Read a ``.ts`` file; see the module's docstring.

    Raises:
        DataError: it is missing, no such file, or not as its header says; the sentence names the line.
    """
    lines = text_lines(path)
    header = _read_header(path, lines)
    values: list[NDArray[np.float32]] = []
    labels: list[str] = []
    for number, line in lines:
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        if line.startswith("@"):
            raise DataError(f"{where}: a key of the header below @data; move it above, or remove it")
        channels = line.split(":")
        if header.classes:
            label = channels.pop().strip()
            if label not in header.classes:
                raise DataError(
                    f"{where}: the class {_short(label)} is none of those that @classLabel names on line "
                    f"{header.lines['classlabel']}{near_miss(label[:40], header.classes)}; "
                    "name it there, or mend the line (it may be cut short)"
                )
            labels.append(label)
        values.append(_sequence(where, channels, header))
        _check_shape(where, values, header)
    if not values:
        raise DataError(f"{path}: there is no sequence below @data; fetch the file again")
    return Series(values, labels if header.classes else None)


def read_tsv(path: Path) -> Series:
    """Read a UCR ``.tsv`` file; see the module's docstring.

    Raises:
        DataError: it is missing or no such table; the sentence names the line.
    """
    values: list[NDArray[np.float32]] = []
    labels: list[str] = []
    width = 0
    for number, line in text_lines(path):
        if not line:
            continue
        where = f"{path}, line {number}"
        label, _, rest = line.partition("\t")
        if not rest:
            raise DataError(
                f"{where}: no tab behind a label; a UCR file has a label, then values, separated by tabs"
            )
        row = numbers(where, rest, "\t")
        width = width or len(row)
        if len(row) != width:
            raise DataError(
                f"{where}: {len(row)} values, but the lines above have {width}; "
                "fill up shorter sequences with NaN, or fetch the file again (it may be cut short)"
            )
        there = np.flatnonzero(~np.isnan(row))
        if not there.size:
            raise DataError(f"{where}: all values are missing; remove the line")
        values.append(single(where, row[: there[-1] + 1, None]))
        labels.append(plain_label(label.strip()))
        if not labels[-1]:
            raise DataError(f"{where}: the label is empty; write the class before the first tab")
    if not values:
        raise DataError(f"{path}: is empty; fetch the file again")
    return Series(values, labels)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 text file, stripped of blanks and ends of line, and their numbers from 1.

    Tabs are kept at the end, where a table has an empty field.

    Raises:
        DataError: the file is missing, cannot be read, or is no text.
    """
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if "\0" in line:
                    raise DataError(f"{path}, line {number}: holds a zero byte, so this is no text file")
                yield number, line.strip(" \r\n")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check its name") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from None


def numbers(
    where: str, text: str, separator: str, *, missing: tuple[str, ...] = ("?",)
) -> NDArray[np.float64]:
    """Parse numbers between separators; NaN and the words of ``missing`` are missing values.

    >>> numbers("here", "1.5, ?,NaN,-2e3", ",").tolist()
    [1.5, nan, nan, -2000.0]

    Raises:
        DataError: something else stands there, or an infinite value; ``where`` begins the sentence.
    """
    parts, start = [], 0
    while start <= len(text):
        end = len(text)
        if end - start > _BLOCK_CHARACTERS:
            found = text.find(separator, start + _BLOCK_CHARACTERS)
            end = end if found < 0 else found
        parts.append(_parse(where, text[start:end], separator, missing))
        start = end + len(separator)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def single(where: str, values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Turn into single precision, refusing what does not fit.

    Raises:
        DataError: a value is beyond single precision.
    """
    if np.nanmax(np.abs(values), initial=0.0) > _LARGEST:
        raise DataError(f"{where}: a value beyond single precision ({_LARGEST:.2g}); rescale the data")
    return values.astype(np.float32)


def plain_label(text: str) -> str:
    """Write a label that is a whole number without a fraction, so that one class has one name.

    >>> plain_label("1.0000000e+00"), plain_label("-1"), plain_label("0.5"), plain_label("one")
    ('1', '-1', '0.5', 'one')
    """
    try:
        value = float(text)
    except ValueError:
        return text
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 2**53 else text


def _parse(where: str, text: str, separator: str, missing: tuple[str, ...]) -> NDArray[np.float64]:
    fields = text.split(separator)
    # float() takes 1_000 and digits of other scripts, which nobody means in a file of numbers
    plain = text.isascii() and "_" not in text
    try:
        if plain:
            values = np.array(fields, dtype=np.float64)
            if not np.isinf(values).any():
                return values
    except ValueError:
        pass  # the slow way below says which field it is, or finds missing values
    values = np.empty(len(fields))
    for i, word in enumerate(fields):
        name = word.strip()
        try:
            values[i] = math.nan if name in missing else float(name)
        except ValueError:
            values[i] = math.inf
        if math.isinf(values[i]) or not name.isascii() or "_" in name:
            raise DataError(
                f"{where}: {_short(name)} is no finite number; write a number, or ? where it is missing"
            )
    return values


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _read_header(path: Path, lines: Iterator[tuple[int, str]]) -> _Header:
    header = _Header()
    for number, line in lines:
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        if not line.startswith("@"):
            raise DataError(
                f"{where}: {_short(line)} is no line of a .ts header (@key value), and @data has not come yet; "
                "begin the data with @data"
            )
        key, *words = line[1:].split()
        key = key.lower()
        _read_key(where, header, key, words)
        header.lines[key] = number
        if key == "data":
            _check_header(path, header)
            return header
    raise DataError(f"{path}: there is no @data; this is no .ts file, or it is cut short")


def _read_key(where: str, header: _Header, key: str, words: list[str]) -> None:
    if key not in _KEYS:
        raise DataError(f"{where}: unknown key @{key}{near_miss(key, _KEYS)}; mend or remove the line")
    if key in header.lines or (key.startswith("dimension") and header.channels is not None):
        raise DataError(f"{where}: @{key} is said before; remove one of the lines")
    if key in _FLAGS:
        header.flags[key] = _flag(where, key, words, alone=True)
    elif key in _COUNTS:
        if len(words) != 1 or not words[0].isdecimal() or len(words[0]) > 9:
            raise DataError(f"{where}: @{key} needs one whole number; write it, or remove the line")
        if key == "serieslength":
            header.length = int(words[0])
        else:
            header.channels = int(words[0])
    elif key == "classlabel":
        named = tuple(words[1:]) if _flag(where, key, words, alone=False) else ()
        if words[0].lower() == "true" and not named:
            raise DataError(f"{where}: @classLabel true names no class; list the classes behind it")
        if len(set(named)) < len(named):
            raise DataError(f"{where}: @classLabel names a class twice; remove one")
        header.classes = named
    elif key == "targetlabel" and _flag(where, key, words, alone=False):
        raise DataError(
            f"{where}: @targetLabel true is a regression set, and only classification is supported; "
            "choose a set with @classLabel"
        )
    if key == "timestamps" and header.flags[key]:
        raise DataError(f"{where}: time stamps are not supported; resample to even steps and remove them")


def _flag(where: str, key: str, words: list[str], *, alone: bool) -> bool:
    if not words or words[0].lower() not in ("true", "false") or (alone and len(words) > 1):
        raise DataError(f"{where}: @{key} needs true or false; write one of them")
    return words[0].lower() == "true"


def _check_header(path: Path, header: _Header) -> None:
    if header.classes is None and "targetlabel" not in header.lines:
        raise DataError(f"{path}: the header has no @classLabel; add `@classLabel true` and the classes")
    if header.flags.get("univariate") and header.channels not in (None, 1):
        line = header.lines.get("dimension", header.lines.get("dimensions"))
        raise DataError(
            f"{path}, line {line}: {header.channels} dimensions, but @univariate is true; mend one of them"
        )


def _sequence(where: str, channels: list[str], header: _Header) -> NDArray[np.float32]:
    """(T, F) of one line without its label."""
    if not channels:
        raise DataError(f"{where}: no colon, so a label without values; mend the line (it may be cut short)")
    if header.flags.get("univariate") and len(channels) > 1:
        raise DataError(
            f"{where}: {len(channels)} channels (colons part them), but @univariate is true; mend the header"
        )
    if header.channels is not None and len(channels) != header.channels:
        raise DataError(
            f"{where}: {len(channels)} channels, but the header says {header.channels}; "
            "mend one of them (the line may be cut short)"
        )
    parsed = []
    for i, text in enumerate(channels):
        if "(" in text:
            raise DataError(
                f"{where}: values in brackets are time stamps, which are not supported; "
                "resample to even steps and remove them"
            )
        if not text.strip():
            raise DataError(f"{where}: channel {i + 1} is empty; mend the line")
        parsed.append(numbers(where, text, ","))
        if len(parsed[i]) != len(parsed[0]):
            raise DataError(
                f"{where}: channel {i + 1} has {len(parsed[i])} values and channel 1 {len(parsed[0])}; "
                "make all channels of a sequence equally long"
            )
    return single(where, np.stack(parsed, axis=1))


def _check_shape(where: str, values: list[NDArray[np.float32]], header: _Header) -> None:
    """Hold the newest sequence against the header and the first one."""
    first, newest = values[0], values[-1]
    if newest.shape[1] != first.shape[1]:
        raise DataError(
            f"{where}: {newest.shape[1]} channels, but the first sequence has {first.shape[1]}; mend the line"
        )
    equal = header.flags.get("equallength")
    if equal and len(newest) != len(first):
        raise DataError(
            f"{where}: {len(newest)} steps, but the first sequence has {len(first)} and @equalLength is true; "
            "mend the line, or write @equalLength false"
        )
    if equal is not False and header.length is not None and len(newest) != header.length:
        raise DataError(
            f"{where}: {len(newest)} steps, but @seriesLength is {header.length}; "
            "mend the line, or write @equalLength false"
        )
    if header.flags.get("missing") is False and np.isnan(newest).any():
        raise DataError(f"{where}: a value is missing, but @missing is false; write @missing true")
