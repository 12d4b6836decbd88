import time
from pathlib import Path

import numpy as np
import pytest

from seqpyramid.data.timeseries import numbers, read_ts, read_tsv
from seqpyramid.errors import DataError

HEADER = "# a note\n\n@problemName Twin\n@TIMESTAMPS False\n@missing true\n@univariate false\n@dimensions 2\n"
HEADER += "@equalLength false\n@classLabel TRUE no yes\n"

# examples, channels, shortest, longest, classes: as the headers and the archive's pages say
REAL = {
    "JapaneseVowels": ((270, 370), 12, 7, 29, 9),
    "BasicMotions": ((40, 40), 6, 100, 100, 4),
    "GunPoint": ((50, 150), 1, 150, 150, 2),
    "ItalyPowerDemand": ((67, 1029), 1, 24, 24, 2),
    "ArrowHead": ((36, 175), 1, 251, 251, 3),
}


def ts(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "twin.ts"
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_sets(shared: Path, name: str) -> None:
    counts, channels, shortest, longest, classes = REAL[name]
    lengths, labels = set(), set()
    for split, count in zip(("TRAIN", "TEST"), counts, strict=True):
        path = shared / "data" / "ucr" / name / f"{name}_{split}.ts"
        found = read_ts(path)
        assert len(found.values) == len(found.labels) == count
        assert {value.shape[1] for value in found.values} == {channels}
        lengths |= {len(value) for value in found.values}
        labels |= set(found.labels)
        # the last line, parsed in the plainest way
        *parts, label = path.read_text().strip().splitlines()[-1].split(":")
        expected = np.array([[float(word) for word in part.split(",")] for part in parts], dtype=np.float32).T
        assert np.array_equal(found.values[-1], expected)
        assert found.labels[-1] == label
    assert (min(lengths), max(lengths), len(labels)) == (shortest, longest, classes)


def test_a_twin_comes_back_as_written(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    values = [draw.standard_normal((draw.integers(1, 9), 2)) for _ in range(20)]
    lines = [
        ":".join(",".join(map(repr, c.tolist())) for c in v.T) + f":{'yes' if i % 3 else 'no'}"
        for i, v in enumerate(values)
    ]
    for end in ("\n", "\r\n"):
        text = (HEADER + "@data\n# more\n\n" + "\n".join(lines)).replace("\n", end)
        found = read_ts(ts(tmp_path, "\ufeff" + text))
        assert all(np.array_equal(a, b.astype(np.float32)) for a, b in zip(found.values, values, strict=True))
        assert found.labels == ["yes" if i % 3 else "no" for i in range(20)]
        assert found.values[0].dtype == np.float32


def test_missing_values(tmp_path: Path) -> None:
    found = read_ts(ts(tmp_path, HEADER + "@data\n1,?,NaN: 4, 5,nan :yes\n"))
    np.testing.assert_array_equal(
        found.values[0], np.array([[1, 4], [np.nan, 5], [np.nan, np.nan]], np.float32)
    )


def test_no_labels(tmp_path: Path) -> None:
    for line in ("@classLabel false", "@targetLabel false"):
        found = read_ts(ts(tmp_path, f"{line}\n@data\n1,2:3,4\n"))
        assert found.labels is None
        assert found.values[0].shape == (2, 2)


ROW = "1,2:3,4:yes\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEADER, "there is no @data"),
        (HEADER + "@data\n", "no sequence below @data"),
        (ROW, "line 1: .* is no line of a .ts header"),
        (HEADER + "@data\n" + ROW + "1,2:yes\n", "line 12: 1 channels, but the header says 2"),
        (
            HEADER.replace("@dimensions 2\n", "") + "@data\n" + ROW + "1,2:yes\n",
            "line 11: 1 channels, but the first",
        ),
        (
            HEADER.replace("@univariate false", "@univariate true") + "@data\n" + ROW,
            "line 7: 2 dimensions, but @univariate",
        ),
        (
            "@univariate true\n@classLabel true yes\n@data\n" + ROW,
            "line 4: 2 channels .* @univariate is true",
        ),
        (
            HEADER.replace("@equalLength false", "@equalLength true") + "@data\n" + ROW + "1:2:no\n",
            "line 12: 1 steps.*@equalLength",
        ),
        (
            HEADER.replace("@equalLength false", "@seriesLength 3") + "@data\n" + ROW,
            "line 11: 2 steps, but @seriesLength is 3",
        ),
        (HEADER + "@data\n1,2:3:yes\n", "line 11: channel 2 has 1 values and channel 1 2"),
        (HEADER + "@data\n1,2:3,4:yse\n", "line 11: the class 'yse' is none .* line 9; did you mean 'yes'"),
        (HEADER + "@data\n1,2:3,4\n", "line 11: the class '3,4' is none"),
        (HEADER + "@data\nyes\n", "line 11: no colon"),
        (HEADER + "@data\n1,2::yes\n", "line 11: channel 2 is empty"),
        (HEADER + "@data\n1,,2:3,4,5:yes\n", "line 11: '' is no finite number"),
        (HEADER + "@data\n1,x:3,4:yes\n", "line 11: 'x' is no finite number"),
        (HEADER + "@data\n1,inf:3,4:yes\n", "line 11: 'inf' is no finite number"),
        (HEADER + "@data\n1,1_0:3,4:yes\n", "line 11: '1_0' is no finite number"),
        (HEADER + "@data\n1,1e99:3,4:yes\n", "line 11: a value beyond single precision"),
        (HEADER + "@data\n(0,1),(1,2):(0,3),(1,4):yes\n", "line 11: values in brackets are time stamps"),
        (HEADER + "@data\n" + ROW + "@data\n", "line 12: a key of the header below @data"),
        (
            HEADER.replace("@missing true", "@missing false") + "@data\n1,?:3,4:yes\n",
            "line 11: a value is missing, but @missing",
        ),
        (HEADER.replace("False", "true") + "@data\n" + ROW, "line 4: time stamps are not supported"),
        (HEADER.replace("@classLabel TRUE no yes", "@targetLabel true") + "@data\n", "line 9: .* regression"),
        (HEADER.replace("@classLabel TRUE no yes\n", "") + "@data\n", "no @classLabel"),
        (HEADER.replace(" no yes", "") + "@data\n", "line 9: .* names no class"),
        (HEADER.replace("no yes", "no no") + "@data\n", "line 9: .* twice"),
        (HEADER.replace("false", "maybe") + "@data\n", "line 6: @univariate needs true or false"),
        (
            HEADER.replace("@dimensions 2", "@dimensions two") + "@data\n",
            "line 7: @dimensions needs one whole number",
        ),
        (
            HEADER.replace("@dimensions 2", "@dimensions 99999999999999") + "@data\n",
            "line 7: @dimensions needs",
        ),
        (
            HEADER.replace("@dimensions 2", "@dimensions 999999999") + "@data\n" + ROW,
            "line 11: 2 channels, but the header says 9",
        ),
        (HEADER + "@dimension 2\n@data\n", "line 10: @dimension is said before"),
        (
            HEADER.replace("@equalLength", "@equalLenght") + "@data\n",
            "line 8: unknown key @equallenght; did you mean 'equallength'",
        ),
        (HEADER + "@data\n1,\0:3,4:yes\n", "line 11: holds a zero byte"),
    ],
)
def test_every_lie_has_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = ts(tmp_path, text)
    with pytest.raises(DataError, match=sentence) as fault:
        read_ts(path)
    assert str(path) in str(fault.value)
    assert "\n" not in str(fault.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_ts(tmp_path / "x.ts")
    (tmp_path / "y.ts").write_bytes(b"@data\n\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_ts(tmp_path / "y.ts")
    with pytest.raises(DataError, match="cannot be read"):
        read_ts(tmp_path)


def test_tsv(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("1.0000000e+00\t1\tNaN\t3\tNaN\tNaN\n-1\t1\t2\t3\t4\t5\n", encoding="utf-8")
    found = read_tsv(path)
    assert found.labels == ["1", "-1"]
    np.testing.assert_array_equal(found.values[0], np.array([[1], [np.nan], [3]], np.float32))
    np.testing.assert_array_equal(found.values[1][:, 0], [1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("1,2,3\n", "line 1: no tab"),
        ("1\t2\t3\n1\t2\n", "line 2: 1 values, but the lines above have 2"),
        ("1\tNaN\tNaN\n", "line 1: all values are missing"),
        ("\t2\t3\n", "line 1: the label is empty"),
        ("1\t2\tx\n", "line 1: 'x' is no finite number"),
        ("1\t2\t\n", "line 1: '' is no finite number"),
    ],
)
def test_tsv_faults(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "x.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        read_tsv(path)


def test_long_lines_are_parsed_in_blocks() -> None:
    values = np.random.default_rng(0).integers(-(10**6), 10**6, 400_000).astype(np.float64)
    text = ",".join(map(str, values.tolist()))
    assert len(text) > 3 * 2**20
    began = time.perf_counter()
    assert np.array_equal(numbers("here", text, ","), values)
    assert time.perf_counter() - began < 2  # ten times what it takes
    found = numbers("here", text + ",?," + text, ",")
    assert np.isnan(found[400_000])
    assert len(found) == 800_001
