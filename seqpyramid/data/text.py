"""Text as a sequence of symbols: the Penn Treebank's characters, text8, enwik8, or any text file.

*Penn Treebank.* Mikolov's word files ``ptb.{train,valid,test}.txt`` (42,068 / 3,370 / 3,761 lines), known by their
published MD5s. A line is ``" word word ... word \\n"``; as characters, every word is followed by one space, and the
space in front of the line is left out. Papers count in two ways, and both are had to the last character:

============  =======================================  =======================  ==
``eos``       after the last word of a line            characters               V
============  =======================================  =======================  ==
``per_line``  an end of line ``"\\n"``                  5,059,550/396,412/446,184  50
``none``      nothing more                             5,017,482/393,042/442,423  49
============  =======================================  =======================  ==

``<unk>`` is spelled with its five characters, as in Mikolov's ``ptb.char.*.txt``. Those files (symbols separated by
spaces, ``_`` for a space) are taken too; the words are put together again and must have the same MD5s.

*text8, enwik8* (Mahoney): 100,000,000 bytes, plain or zipped, known by their MD5s; 90, 5 and 5 million bytes train,
validate and test. text8 has 27 symbols, enwik8 205.

*Any file*: UTF-8 characters, or bytes; a byte order mark in front is no character.

A symbol is a code point, or a byte; its code is its place among all symbols of all splits, in ascending order.

Shapes: N symbols, V different symbols.
"""

import codecs
import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqpyramid.contracts import SPLITS, Split
from seqpyramid.data.catalogue import missing, obtain
from seqpyramid.data.progress import Progress
from seqpyramid.errors import DataError

EndOfLine = Literal["per_line", "none"]
Units = Literal["characters", "bytes"]
Wikipedia = Literal["text8", "enwik8"]


@dataclass(frozen=True)
class KnownFile:
    """A file of which everything is known."""

    size: int
    """Bytes."""
    md5: str
    symbols: int
    """V."""
    ends: tuple[int, int, int]
    """Where train, validation and test end."""


WIKIPEDIA: dict[Wikipedia, KnownFile] = {
    "text8": KnownFile(
        100_000_000, "3bea1919949baf155f99411df5fada7e", 27, (90_000_000, 95_000_000, 100_000_000)
    ),
    "enwik8": KnownFile(
        100_000_000, "a1fa5ffddb56f4953e226637dabbb36a", 205, (90_000_000, 95_000_000, 100_000_000)
    ),
}

PTB_MD5: dict[Split, str] = {
    "train": "f26c4b92c5fdc7b3f8c7cdcb991d8420",
    "validation": "aa0affc06ff7c36e977d7cd49e3839bf",
    "test": "8b80168b89c18661a38ef683c0dc3721",
}
"""Of the word files."""
PTB_SYMBOLS: dict[EndOfLine, int] = {"per_line": 50, "none": 49}

MAX_SYMBOLS = 4096
"""One-hot inputs grow with V; text in more characters than this is better read as bytes."""
MAX_BYTES = 2**31
"""Of a file of the user's; twenty times enwik8, and it must fit into memory."""

_PTB_PARTS: dict[Split, str] = {"train": "train", "validation": "valid", "test": "test"}
_PTB_MAX_BYTES = 2**24
"""Three times the largest word file: twice its size with a space behind each character, and the lines' ends."""
_READ_BYTES = 2**20
_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Corpus:
    """A text and its symbols."""

    codes: NDArray[Any]
    """(N,) places in ``symbols``: uint8, or int16 where V is above 256."""
    symbols: NDArray[np.int64]
    """(V,) code points or bytes, ascending."""
    ends: tuple[int, int, int] | None
    """Where train, validation and test end; None where the text has no split of its own."""


def find_ptb(source: Path | None, downloads: Path) -> dict[Split, Path]:
    """Find three word files, or else three character files.

    Looked through are ``source``, its ``simple-examples/data``, ``data`` and ``ptb``, then the same in
    ``downloads/ptb``. Nothing is fetched: the text is licensed.

    Raises:
        DataError: they are nowhere, or a folder holds some of the three.
    """
    roots = [downloads / "ptb"] if source is None else [source, downloads / "ptb"]
    folders = [root / part for root in roots for part in ("", "simple-examples/data", "data", "ptb")]
    for folder in folders:
        for kind in ("ptb", "ptb.char"):
            files = {split: folder / f"{kind}.{part}.txt" for split, part in _PTB_PARTS.items()}
            there = [split for split, path in files.items() if path.is_file()]
            if len(there) == len(files):
                return files
            if there:
                absent = ", ".join(path.name for split, path in files.items() if split not in there)
                raise DataError(f"{folder}: holds {files[there[0]].name} but not {absent}; put it there too")
    raise missing("ptb", roots)


def read_ptb(files: dict[Split, Path], eos: EndOfLine, progress: Progress | None = None) -> Corpus:
    """Read the files that :func:`find_ptb` found, refusing whatever is not the Penn Treebank to the byte.

    Raises:
        DataError: a file cannot be read, or is something else.
    """
    parts = []
    for done, split in enumerate(SPLITS):
        if progress is not None:
            progress("read the Penn Treebank", done, len(SPLITS))
        parts.append(characters(_ptb_words(files[split], PTB_MD5[split]), eos))
    if progress is not None:
        progress("read the Penn Treebank", len(SPLITS), len(SPLITS))
    codes, symbols = encode_bytes(b"".join(parts))
    first, second, last = np.cumsum([len(part) for part in parts]).tolist()
    return Corpus(codes, symbols, (first, second, last))


def characters(words: bytes, eos: EndOfLine) -> bytes:
    r"""Turn the lines of a word file into characters, see the module's docstring.

    >>> characters(b" no it was \n yes \n", "per_line"), characters(b" no it was \n yes \n", "none")
    (b'no it was \nyes \n', b'no it was yes ')
    """
    text = words.removeprefix(b" ").replace(b"\n ", b"\n")
    return text if eos == "per_line" else text.replace(b"\n", b"")


def _ptb_words(path: Path, md5: str) -> bytes:
    """Read a word file, or put the words of a character file together again."""
    found = read_whole(path, _PTB_MAX_BYTES)
    if path.name.startswith("ptb.char."):
        lines = (b"".join(line.split()).replace(b"_", b" ").strip() for line in found.splitlines())
        found = b"".join(b" " + line + b" \n" for line in lines)
    here = _md5(found)
    if here != md5:
        hint = " (its lines end as on Windows)" if b"\r" in found else ""
        raise DataError(
            f"{path}: not Mikolov's Penn Treebank: the words have MD5 {here} instead of {md5}, in "
            f"{found.count(10):,} lines{hint}; take ptb.train.txt, ptb.valid.txt and ptb.test.txt from "
            "simple-examples.tgz as they are, or read other text with task.corpus=file"
        )
    return found


def find_wikipedia(
    name: Wikipedia,
    source: Path | None,
    downloads: Path,
    *,
    offline: bool,
    progress: Progress | None = None,
) -> Path:
    """Find text8 or enwik8, plain or zipped, in ``source``, a folder of that name in it, or ``downloads/NAME``.

    Without a ``source`` it is fetched if it is nowhere.

    Raises:
        DataError: it is nowhere, and may not or cannot be fetched.
        ResourceError: the folder for downloads cannot be written.
    """
    folders = [*([] if source is None else [source, source / name]), downloads / name]
    for folder in folders:
        for path in (folder / name, folder / f"{name}.zip"):
            if path.is_file():
                return path
    if source is not None:
        raise missing(name, folders)
    return obtain(name, downloads, offline=offline, progress=progress)


def read_wikipedia(path: Path, name: Wikipedia, progress: Progress | None = None) -> Corpus:
    """Read text8 or enwik8, refusing whatever is not it to the byte.

    Raises:
        DataError: the file or the archive cannot be read, or is something else.
    """
    known = WIKIPEDIA[name]
    if progress is not None:
        progress(f"read {name}", 0, known.size)
    content = _unzipped(path, name, known.size) if path.suffix == ".zip" else read_whole(path, known.size)
    here = _md5(content)
    if here != known.md5:
        raise DataError(
            f"{path}: not {name}: {len(content):,} bytes of MD5 {here} instead of {known.size:,} of {known.md5}; "
            "fetch it again, or name another folder with --source"
        )
    codes, symbols = encode_bytes(content)
    if progress is not None:
        progress(f"read {name}", known.size, known.size)
    return Corpus(codes, symbols, known.ends)


def _unzipped(path: Path, name: str, size: int) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            return stream.read(size + 1)  # never more, whatever the header says
    except KeyError:
        raise DataError(f"{path}: the archive holds no file called {name}; fetch it again") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: the zip archive is damaged ({error}); fetch it again") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def find_file(path: str | None, source: Path | None) -> Path | None:
    """Find the user's text; None where it is not there and no ``source`` is given.

    ``path`` is looked for in ``source``, then from where the command runs; without it, ``source`` must hold exactly
    one ``.txt`` file.

    Raises:
        DataError: ``source`` does not hold the file, or several.
    """
    if path is not None:
        places = [Path(path).expanduser()] if source is None else [source / path, Path(path).expanduser()]
        there = [place for place in places if place.is_file()]
        if not there and source is not None:
            raise DataError(f"{places[0]}: there is no such file; mend task.path, or name another --source")
        return there[0] if there else None
    if source is None:
        return None
    found = sorted(entry for entry in source.glob("*.txt") if entry.is_file())
    if len(found) != 1:
        these = f" ({', '.join(entry.name for entry in found[:5])})" if found else ""
        raise DataError(
            f"{source}: holds {len(found)} .txt files{these}; choose one with task.path, as task.path=book.txt"
        )
    return found[0]


def read_file(path: Path, units: Units, progress: Progress | None = None) -> tuple[Corpus, str]:
    """Read any text.

    Returns:
        The corpus, without a split, and the SHA-256 of the file, 64 hex digits.

    Raises:
        DataError: the file cannot be read, is too large, is no UTF-8, or has more than 4,096 different characters.
    """
    digest = hashlib.sha256()
    blocks = _file_blocks(path, digest, progress)
    if units == "bytes":
        codes, symbols = encode_bytes(b"".join(blocks))
    else:
        codes, symbols = encode_characters(_decoded(path, blocks), str(path))
    return Corpus(codes, symbols, None), digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits, as :func:`read_file` does.

    Raises:
        DataError: the file cannot be read or is too large.
    """
    digest = hashlib.sha256()
    for _ in _file_blocks(path, digest, None):
        pass
    return digest.hexdigest()


def _file_blocks(path: Path, digest: Any, progress: Progress | None) -> Iterator[bytes]:
    """Blocks of the file; whatever its size is said to be, no more than MAX_BYTES are read."""
    done = 0
    try:
        total = path.stat().st_size
        with path.open("rb") as stream:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
                yield block
                done += len(block)
                if done > MAX_BYTES:
                    raise DataError(
                        f"{path}: larger than {MAX_BYTES:,} bytes, the most that is held in memory; "
                        "cut a part of it out"
                    )
                if progress is not None:
                    progress(f"read {path.name}", done, max(done, total))
    except OSError as error:
        raise _unreadable(path, error) from None


def _decoded(path: Path, blocks: Iterator[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    before = 0  # bytes of the file that the decoder has seen
    try:
        for block in blocks:
            text = block if before else block.removeprefix(codecs.BOM_UTF8)
            before += len(block) - len(text)
            yield decoder.decode(text)
            before += len(text)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        place = before - len(decoder.getstate()[0]) + error.start
        raise DataError(
            f"{path}: byte {place:,} is no UTF-8; convert the file, or read it with task.units=bytes"
        ) from None


def encode_bytes(content: bytes) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the codes (N,) and the symbols (V,) of some bytes.

    >>> [part.tolist() for part in encode_bytes(b"bad")]
    [[1, 0, 2], [97, 98, 100]]
    """
    values = np.frombuffer(content, dtype=np.uint8)
    symbols = np.flatnonzero(np.bincount(values, minlength=256)).astype(np.int64)
    places = np.zeros(256, dtype=np.uint8)
    places[symbols] = np.arange(len(symbols))
    return places[values], symbols


def encode_characters(pieces: Iterator[str], where: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the codes (N,) and the symbols (V,) of some text, read piece by piece.

    Raises:
        DataError: there are more than 4,096 different characters; ``where`` is the file to name.

    >>> [part.tolist() for part in encode_characters(iter(["b\u00e4", "d"]), "a file")]
    [[0, 2, 1], [98, 100, 228]]
    """
    places = np.full(_CODE_POINTS, -1, dtype=np.int16)  # by order of appearance, until all are known
    symbols: list[int] = []
    parts = []
    for piece in pieces:
        values = np.frombuffer(piece.encode("utf-32-le"), dtype="<u4")
        new = np.unique(values[places[values] < 0])
        if len(symbols) + len(new) > MAX_SYMBOLS:
            raise DataError(
                f"{where}: more than {MAX_SYMBOLS:,} different characters; read it with task.units=bytes"
            )
        places[new] = np.arange(len(symbols), len(symbols) + len(new))
        symbols.extend(new.tolist())
        parts.append(places[values])
    ascending = np.argsort(np.array(symbols, dtype=np.int64))
    final = np.empty(len(symbols), dtype=np.uint8 if len(symbols) <= 256 else np.int16)
    final[ascending] = np.arange(len(symbols))
    codes = np.concatenate([final[part] for part in parts]) if parts else final
    return codes, np.array(symbols, dtype=np.int64)[ascending]


def proportional_ends(length: int, proportions: Sequence[int]) -> tuple[int, int, int]:
    """Cut ``length`` symbols in proportion into three contiguous parts; return where they end.

    >>> proportional_ends(99, (90, 5, 5))
    (89, 94, 99)
    """
    total = sum(proportions)
    first, second, last = (length * int(share) // total for share in np.cumsum(proportions))
    return first, second, last


def read_whole(path: Path, at_most: int) -> bytes:
    """Read a file, and one byte more than ``at_most`` if it is longer, so that its hash cannot be right.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(at_most + 1)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}); check the file or fetch it again")


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
