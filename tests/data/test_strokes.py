import io
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from seqpyramid.data import strokes
from seqpyramid.errors import DataError

HEAD = """<?xml version="1.0" encoding="ISO-8859-1"?>
<WhiteboardCaptureSession>
  <WhiteboardDescription>
    <SensorLocation corner="top_left"/>
    <DiagonallyOppositeCoords x="6512" y="1376"/><Point x="1" y="1"/>
  </WhiteboardDescription>
"""
LINE = (
    HEAD
    + """  <StrokeSet>
    <Stroke colour="black" start_time="769.05" end_time="769.64">
      <Point x="1073" y="1058" time="769.05"/>
      <Point x="1072.5" y="1085" time="769.07"/>
    </Stroke>
    <Stroke colour="black" start_time="769.7" end_time="769.7"></Stroke>
    <Stroke colour="black" start_time="770.08" end_time="770.08">
      <Point x="1150" y="-3" time="770.08"/>
    </Stroke>
  </StrokeSet>
</WhiteboardCaptureSession>
"""
)


def write(folder: Path, content: str | bytes, name: str = "a01-000u-01.xml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("iso-8859-1") if isinstance(content, str) else content)
    return path


def test_points_and_the_ends_of_strokes(tmp_path: Path) -> None:
    """Points of the board are none of a stroke, and an empty stroke leaves no trace."""
    found = strokes.read_line(write(tmp_path, LINE))
    assert found.tolist() == [[1073, 1058, 0], [1072.5, 1085, 1], [1150, -3, 1]]


def test_the_encoding_is_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, LINE.replace("black", "grün"))
    assert b"gr\xfcn" in path.read_bytes()
    assert len(strokes.read_line(path)) == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "line 1: is not XML"),
        (LINE[:300], "line 8: is not XML"),
        (LINE.replace("</Stroke>", "", 1), "line 1.: is not XML"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "line 1: is not XML"),
        (LINE.replace("ISO-8859-1", "no-such-code"), "line 1: is not XML"),
        (LINE.replace("StrokeSet", "Strokes"), "no StrokeSet"),
        (HEAD + "<StrokeSet/></WhiteboardCaptureSession>", "its StrokeSet has no point"),
        (HEAD + "<StrokeSet><Stroke/></StrokeSet></WhiteboardCaptureSession>", "its StrokeSet has no point"),
        (LINE.replace('x="1073" ', ""), "line 9: has a Point without x"),
        (LINE.replace(' y="1085"', ""), "line 10: has a Point without y"),
        (LINE.replace('"1085"', '"high"'), "line 10: has a Point whose y is 'high', not a number"),
        (LINE.replace('"1085"', '"nan"'), "not a number"),
        (LINE.replace('"1085"', '"1_085"'), "not a number"),
        (LINE.replace('"1085"', '"1e400"'), "not a number"),
        (LINE.replace('"1085"', f'"{"9" * 10_000}"'), "not a number"),
        (LINE.replace('"1085"', '"10000001"'), "far beyond any board"),
    ],
)
def test_a_damaged_line_is_told_in_one_sentence(tmp_path: Path, content: str | bytes, says: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=says) as caught:
        strokes.read_line(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 150


def bomb() -> str:
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "x" * 1000}">' for i in range(12))
    return LINE.replace("\n", f"\n<!DOCTYPE w [{entities}]>\n", 1).replace("<StrokeSet>", "<StrokeSet>&e11;")


def outside(folder: Path) -> str:
    secret = write(folder, "secret", "secret.txt")
    kind = f'\n<!DOCTYPE w [<!ENTITY e SYSTEM "{secret.as_uri()}">]>\n'
    return LINE.replace("\n", kind, 1).replace("<StrokeSet>", "<StrokeSet>&e;")


@pytest.mark.parametrize("kind", ["bomb", "outside", "parameter", "plain"])
def test_a_document_type_is_refused_before_anything_is_expanded(tmp_path: Path, kind: str) -> None:
    content = {
        "bomb": bomb(),
        "outside": outside(tmp_path),
        "parameter": LINE.replace("\n", '\n<!DOCTYPE w [<!ENTITY % p SYSTEM "x.dtd"> %p;]>\n', 1),
        "plain": LINE.replace("\n", '\n<!DOCTYPE w SYSTEM "w.dtd">\n', 1),
    }[kind]
    started = time.perf_counter()
    with pytest.raises(DataError, match="line 2: declares a document type"):
        strokes.read_line(write(tmp_path, content))
    assert time.perf_counter() - started < 2


def test_an_entity_without_a_document_type_is_no_xml(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not XML"):
        strokes.read_line(write(tmp_path, LINE.replace("<StrokeSet>", "<StrokeSet>&e;")))


def test_a_giant_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, LINE)
    monkeypatch.setattr(strokes, "MAX_FILE_BYTES", len(LINE))
    assert len(strokes.read_line(path)) == 3
    monkeypatch.setattr(strokes, "MAX_FILE_BYTES", len(LINE) - 1)
    with pytest.raises(DataError, match="larger than"):
        strokes.read_line(path)


def test_missing_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.xml", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            strokes.read_line(path)


def corpus_in(folder: Path) -> None:
    for name in ("b02/b02-010/b02-010-02.xml", "a01/a01-000/a01-000u-02.xml", "a01/a01-000/a01-000u-01.xml"):
        write(folder / "lineStrokes", LINE, name)


@pytest.mark.parametrize("inside", [False, True])
def test_lines_are_found_in_the_order_of_their_names(tmp_path: Path, inside: bool) -> None:
    corpus_in(tmp_path)
    write(tmp_path, "not of the lines", "original/a01/strokesz.xml")
    found = strokes.find_corpus(tmp_path / "lineStrokes" if inside else tmp_path)
    assert list(found.lines) == ["a01-000u-01", "a01-000u-02", "b02-010-02"]
    assert found.lines["b02-010-02"].read_text(encoding="iso-8859-1") == LINE
    assert [strokes.form_of(name) for name in found.lines] == ["a01-000u", "a01-000u", "b02-010"]
    assert not found.lists


def test_a_folder_that_is_none_of_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no line of IAM-OnDB.*--source"):
        strokes.find_corpus(tmp_path)
    with pytest.raises(DataError, match=r"not a folder.*--source"):
        strokes.find_corpus(write(tmp_path, LINE))
    with pytest.raises(DataError, match=r"strokesz\.xml: not named like a line"):
        strokes.find_corpus(write(tmp_path / "other", LINE, "strokesz.xml").parent)


def test_the_same_line_twice(tmp_path: Path) -> None:
    corpus_in(tmp_path)
    write(tmp_path / "lineStrokes", LINE, "copy/a01-000u-01.xml")
    with pytest.raises(DataError, match=r"the same line as .*a01-000u-01\.xml; remove one"):
        strokes.find_corpus(tmp_path)


def test_digests_follow_names_and_contents(tmp_path: Path) -> None:
    def digests() -> list[str]:
        return list(strokes.find_corpus(tmp_path).digests())

    corpus_in(tmp_path)
    before = digests()
    assert before == digests()
    assert len(before) == 3
    write(tmp_path, "a01-000u\n", "task1/trainset.txt")
    with_list = digests()
    assert with_list[:3] == before
    assert len(with_list) == 4
    write(tmp_path / "lineStrokes", LINE.replace("1085", "1086"), "a01/a01-000/a01-000u-02.xml")
    assert [old == new for old, new in zip(with_list, digests(), strict=True)] == [True, False, True, True]


@pytest.mark.parametrize("folder", ["", "task1/"])
def test_lists_name_forms(tmp_path: Path, folder: str) -> None:
    corpus_in(tmp_path)
    write(tmp_path, "a01-000u\r\n\n  b02-010 \n", f"{folder}trainset.txt")
    write(tmp_path, "c03-003z", f"{folder}testset_f.txt")
    corpus = strokes.find_corpus(tmp_path)
    assert set(corpus.lists) == {"trainset.txt", "testset_f.txt"}
    assert strokes.read_lists(corpus) == {"a01-000u": 0, "b02-010": 0, "c03-003z": 3}


def test_damaged_lists(tmp_path: Path) -> None:
    corpus_in(tmp_path)
    path = write(tmp_path, "a01-000u\n<html>\xff\n", "trainset.txt")
    with pytest.raises(DataError, match=r"trainset\.txt, line 2: '<html>.*' names no form"):
        strokes.read_list(path)
    write(tmp_path, "a01-000u\n", "trainset.txt")
    write(tmp_path, "b02-010\na01-000u\n", "testset_v.txt")
    with pytest.raises(DataError, match=r"testset_v\.txt: a01-000u is in trainset\.txt too"):
        strokes.read_lists(strokes.find_corpus(tmp_path))


def pixels(lines: list[np.ndarray], ended: list[bool]) -> np.ndarray:
    """Darkness (height, width) from 0 to 1."""
    content = strokes.draw_lines(lines, ended)
    assert content.startswith(b"\x89PNG")
    return 1 - matplotlib.image.imread(io.BytesIO(content), format="png")[..., :3].mean(axis=-1)


def test_the_picture_shows_strokes_with_y_downwards() -> None:
    """A bar on the left from top to bottom, and a dot on the lower right."""
    line = np.array([[0, 0, 0], [0, 100, 1], [1000, 95, 1]], dtype=np.float64)
    dark = pixels([line], [True])
    height, width = dark.shape
    rows, columns = np.nonzero(dark > 0.5)
    assert columns[rows < height / 2].max() < width / 10
    right = rows[columns > width / 2]
    assert len(right) > 3
    assert right.min() > height / 2
    middle = dark[:, int(width * 0.1) : int(width * 0.9)]
    assert middle.max() == 0  # the pen was lifted between the two


def test_lines_stand_below_each_other_in_one_scale() -> None:
    short = np.array([[0, 0, 0], [500, 0, 0], [500, 50, 1]], dtype=np.float64)
    dark = pixels([short * 2, short], [True, True])
    written = (dark > 0.5).any(axis=1)
    gaps = np.flatnonzero(np.diff(written.astype(int)) == 1)
    assert len(gaps) == 2
    cut = int(gaps[1])
    spans = [np.ptp(np.nonzero((part > 0.5).any(axis=0))[0]) for part in (dark[:cut], dark[cut:])]
    assert spans[0] == pytest.approx(2 * spans[1], abs=6)


def test_a_line_that_was_cut_is_marked_in_grey() -> None:
    line = np.array([[0, 0, 0], [900, 0, 0], [900, 50, 0]], dtype=np.float64)
    whole, cut = pixels([line], [True]), pixels([line], [False])
    assert not ((whole > 0.39) & (whole < 0.41)).sum() > 50
    assert ((cut > 0.39) & (cut < 0.41)).sum() > 50


@pytest.mark.parametrize(
    "line", [np.zeros((1, 3)), np.array([[0, 0, 1], [1e12, -1e12, 0], [0, 1e12, 1]]), np.zeros((5, 3))]
)
def test_what_an_untrained_model_draws_has_a_picture_too(line: np.ndarray) -> None:
    dark = pixels([line, np.array([[0.0, 0, 0], [10, 10, 1]])], [True, False])
    assert max(dark.shape) < 3000
