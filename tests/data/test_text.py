"""Texts as symbols: counts, hashes, splits, and what is refused. Real files where they are, generated twins always."""

import codecs
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqpyramid.data import text
from seqpyramid.errors import DataError

WORDS = {
    "train": b" no it was <unk> \n yes N $ \n",
    "validation": b" it was not \n",
    "test": b" no \n it 's \n",
}


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def spelled(words: bytes, ending: bytes) -> bytes:
    """A file of characters as papers describe it: a space behind every symbol, _ for a space."""
    lines = (line.strip().replace(b" ", b"_") + ending for line in words.splitlines())
    return b"".join(b" ".join(bytes([symbol]) for symbol in line) + b" \n" for line in lines)


@pytest.fixture
def treebank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Word files of a few words, taken for the Penn Treebank."""
    for split, part in (("train", "train"), ("validation", "valid"), ("test", "test")):
        (tmp_path / f"ptb.{part}.txt").write_bytes(WORDS[split])
    monkeypatch.setattr(text, "PTB_MD5", {split: md5(words) for split, words in WORDS.items()})
    return tmp_path


def read_ptb(folder: Path, eos: text.EndOfLine = "per_line") -> list[str]:
    corpus = text.read_ptb(text.find_ptb(folder, folder / "none"), eos)
    assert corpus.ends is not None
    letters = "".join(chr(corpus.symbols[code]) for code in corpus.codes)
    starts = (0, *corpus.ends[:2])
    return [letters[start:end] for start, end in zip(starts, corpus.ends, strict=True)]


# --- the Penn Treebank -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eos", "counts", "symbols"),
    [("per_line", [5_059_550, 396_412, 446_184], 50), ("none", [5_017_482, 393_042, 442_423], 49)],
)
def test_the_real_treebank_has_the_published_counts(
    shared: Path, tmp_path: Path, eos: text.EndOfLine, counts: list[int], symbols: int
) -> None:
    corpus = text.read_ptb(text.find_ptb(shared / "data" / "ptb", tmp_path), eos)
    assert np.diff([0, *corpus.ends]).tolist() == counts
    assert len(corpus.symbols) == symbols == text.PTB_SYMBOLS[eos]
    assert np.unique(corpus.codes[: counts[0]]).tolist() == list(range(symbols))


def test_a_line_is_its_words_each_with_a_space_behind(treebank: Path) -> None:
    assert read_ptb(treebank) == ["no it was <unk> \nyes N $ \n", "it was not \n", "no \nit 's \n"]
    assert read_ptb(treebank, "none") == ["no it was <unk> yes N $ ", "it was not ", "no it 's "]


@pytest.mark.parametrize("ending", [b"", b"_"])
def test_files_of_characters_are_the_same_text(treebank: Path, ending: bytes) -> None:
    from_words = read_ptb(treebank)
    for path in list(treebank.iterdir()):
        (treebank / path.name.replace("ptb.", "ptb.char.")).write_bytes(spelled(path.read_bytes(), ending))
        path.unlink()
    assert read_ptb(treebank) == from_words


def test_it_lies_where_the_archive_puts_it(treebank: Path) -> None:
    expected = read_ptb(treebank)
    inner = treebank / "simple-examples" / "data"
    inner.mkdir(parents=True)
    for path in treebank.glob("ptb.*"):
        path.rename(inner / path.name)
    assert read_ptb(treebank) == expected
    (treebank / "downloads").mkdir()
    (treebank / "simple-examples").rename(treebank / "downloads" / "ptb")
    assert set(text.find_ptb(None, treebank / "downloads")) == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda words: words[:-1], "in 1 lines"),
        (lambda words: words.replace(b"\n", b"\r\n"), r"in 2 lines \(its lines end as on Windows\)"),
        (lambda words: words.replace(b"was", b"Was"), "in 2 lines"),
    ],
)
def test_any_other_file_is_refused(treebank: Path, change, says: str) -> None:
    path = treebank / "ptb.train.txt"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(
        DataError, match=f"ptb.train.txt: not Mikolov's .*instead of .*{says}.*simple-examples.tgz"
    ):
        read_ptb(treebank)


def test_what_is_missing_is_named(treebank: Path) -> None:
    (treebank / "ptb.valid.txt").unlink()
    with pytest.raises(DataError, match=r"holds ptb.train.txt but not ptb.valid.txt"):
        read_ptb(treebank)
    (treebank / "empty").mkdir()
    with pytest.raises(DataError, match=r"simple-examples.tgz is in none of .*--source"):
        read_ptb(treebank / "empty")


# --- text8 and enwik8 ------------------------------------------------------------------------------------------------


PAGE = b"abc def  ghi " * 10


@pytest.fixture
def wikipedia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """130 bytes taken for text8."""
    known = text.KnownFile(len(PAGE), md5(PAGE), 10, (100, 115, 130))
    monkeypatch.setattr(text, "WIKIPEDIA", {"text8": known})
    return tmp_path


def read_text8(folder: Path) -> text.Corpus:
    return text.read_wikipedia(
        text.find_wikipedia("text8", folder, folder / "downloads", offline=True), "text8"
    )


def zipped(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


@pytest.mark.parametrize("place", ["text8", "text8.zip", "text8/text8", "downloads/text8/text8.zip"])
def test_plain_or_zipped_it_is_the_same(wikipedia: Path, place: str) -> None:
    path = wikipedia / place
    path.parent.mkdir(parents=True, exist_ok=True)
    zipped(path, "text8", PAGE) if path.suffix else path.write_bytes(PAGE)
    corpus = read_text8(wikipedia)
    assert bytes(corpus.symbols[corpus.codes].tolist()) == PAGE
    assert corpus.symbols.tolist() == sorted(set(PAGE))
    assert corpus.ends == (100, 115, 130)


def test_without_a_source_it_is_asked_of_the_catalogue(wikipedia: Path) -> None:
    with pytest.raises(DataError, match=r"text8\.zip"):
        text.find_wikipedia("text8", None, wikipedia, offline=True)
    with pytest.raises(DataError, match=f"in none of {wikipedia}, .*text8.zip"):
        read_text8(wikipedia)


@pytest.mark.parametrize("content", [PAGE[:-1], PAGE + b"a", PAGE.replace(b"a", b"b", 1), b""])
def test_any_other_page_is_refused(wikipedia: Path, content: bytes) -> None:
    for path in (wikipedia / "text8", wikipedia / "text8.zip"):
        path.write_bytes(content) if not path.suffix else zipped(path, "text8", content)
        with pytest.raises(DataError, match=f"{path}: not text8: .* instead of 130 of"):
            read_text8(wikipedia)
        path.unlink()


def test_damaged_archives_are_refused(wikipedia: Path) -> None:
    path = wikipedia / "text8.zip"
    zipped(path, "else", PAGE)
    with pytest.raises(DataError, match="holds no file called text8"):
        read_text8(wikipedia)
    zipped(path, "text8", PAGE)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:45] + b"\xff" * 8 + whole[53:], b"PK"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="zip archive is damaged"):
            read_text8(wikipedia)


def test_a_bomb_is_read_no_further_than_the_known_size(
    wikipedia: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(wikipedia / "text8.zip", "text8", bytes(10**6))
    hashed: list[int] = []
    honest = text._md5
    monkeypatch.setattr(text, "_md5", lambda content: hashed.append(len(content)) or honest(content))
    with pytest.raises(DataError, match="not text8"):
        read_text8(wikipedia)
    assert hashed == [len(PAGE) + 1]


# --- any file --------------------------------------------------------------------------------------------------------


def written(folder: Path, content: bytes) -> Path:
    path = folder / "book.txt"
    path.write_bytes(content)
    return path


@given(st.text(), st.integers(1, 7))
def test_what_is_encoded_can_be_read_back(letters: str, cut: int) -> None:
    pieces = [letters[i : i + cut] for i in range(0, len(letters), cut)]
    codes, symbols = text.encode_characters(iter(pieces), "a file")
    assert "".join(chr(symbols[code]) for code in codes) == letters
    assert symbols.tolist() == sorted({ord(letter) for letter in letters})


@pytest.mark.parametrize("block", [1, 2, 5, 2**20])
def test_characters_may_lie_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(text, "_READ_BYTES", block)
    content = "zwölf Boxkämpfer \N{BLACK HEART SUIT} \N{GRINNING FACE}\r\n"
    path = written(tmp_path, content.encode())
    corpus, digest = text.read_file(path, "characters")
    assert "".join(chr(corpus.symbols[code]) for code in corpus.codes) == content
    assert digest == text.hash_file(path) == hashlib.sha256(content.encode()).hexdigest()
    assert corpus.ends is None


def test_bytes_are_bytes(tmp_path: Path) -> None:
    content = bytes(range(255, -1, -3))
    corpus, _ = text.read_file(written(tmp_path, content), "bytes")
    assert bytes(corpus.symbols[corpus.codes].tolist()) == content
    assert corpus.codes.dtype == np.uint8


def test_a_byte_order_mark_is_no_character(tmp_path: Path) -> None:
    corpus, _ = text.read_file(written(tmp_path, codecs.BOM_UTF8 + b"ab"), "characters")
    assert corpus.symbols.tolist() == [97, 98]


@pytest.mark.parametrize("before", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("block", [3, 4, 2**20])
def test_what_is_no_utf_8_is_named_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, before: bytes
) -> None:
    monkeypatch.setattr(text, "_READ_BYTES", block)
    for bad in (b"\xff", b"\xc3"):
        content = before + "abä".encode() + bad + b"c"
        place = content.rindex(bad)
        with pytest.raises(DataError, match=f"book.txt: byte {place} is no UTF-8; .*task.units=bytes"):
            text.read_file(written(tmp_path, content), "characters")


def test_a_character_cut_off_at_the_end_is_seen(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="byte 2 is no UTF-8"):
        text.read_file(written(tmp_path, b"ab\xc3"), "characters")


def test_too_many_characters_and_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = "".join(map(chr, range(0x4E00, 0x4E00 + text.MAX_SYMBOLS)))
    corpus, _ = text.read_file(written(tmp_path, most.encode()), "characters")
    assert corpus.codes.tolist() == list(range(text.MAX_SYMBOLS))
    with pytest.raises(DataError, match=r"more than 4,096 different characters.*units=bytes"):
        text.read_file(written(tmp_path, (most + "a").encode()), "characters")
    monkeypatch.setattr(text, "MAX_BYTES", 99)
    with pytest.raises(DataError, match="larger than 99 bytes"):
        text.read_file(written(tmp_path, b"a" * 100), "bytes")


def test_the_users_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, b"ab")
    monkeypatch.chdir(tmp_path)
    assert text.find_file(None, tmp_path) == path
    assert text.find_file("book.txt", tmp_path) == path
    assert text.find_file(str(path), tmp_path / "elsewhere") == path
    assert text.find_file("book.txt", None) == Path("book.txt")
    assert text.find_file("other.txt", None) is None
    assert text.find_file(None, None) is None
    with pytest.raises(DataError, match=r"other.txt: there is no such file"):
        text.find_file("other.txt", tmp_path)
    (tmp_path / "more.txt").touch()
    with pytest.raises(DataError, match=r"holds 2 .txt files \(book.txt, more.txt\).*task.path"):
        text.find_file(None, tmp_path)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match=r"holds 0 \.txt files;"):
        text.find_file(None, tmp_path / "folder.txt")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        text.hash_file(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        text.read_whole(tmp_path / "none", 10)


@given(st.integers(0, 10**9), st.tuples(*[st.integers(1, 10**6)] * 3))
def test_parts_are_in_proportion(length: int, proportions: tuple[int, int, int]) -> None:
    ends = text.proportional_ends(length, proportions)
    assert 0 <= ends[0] <= ends[1] <= ends[2] == length
    assert abs(ends[0] * sum(proportions) - length * proportions[0]) < sum(proportions)
