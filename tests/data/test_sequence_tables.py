from pathlib import Path

import numpy as np
import pytest

from seqpyramid.data.manifest import Entry, folder_entries
from seqpyramid.data.sequence_tables import read_table, read_tables
from seqpyramid.errors import DataError


def table(root: Path, text: str, name: str = "a.csv") -> Path:
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("head", [None, ("x", "y z", "ω")])
def test_round_trip(tmp_path: Path, mark: str, head: tuple[str, ...] | None) -> None:
    values = np.random.default_rng(0).standard_normal((7, 3))
    lines = [mark.join(map(repr, row)) for row in values.tolist()]
    found = read_table(
        table(tmp_path, "\n".join([*([mark.join(head)] if head else []), "", *lines]) + "\n\n")
    )
    assert np.array_equal(found.values, values.astype(np.float32))
    assert found.columns == head


def test_one_column(tmp_path: Path) -> None:
    found = read_table(table(tmp_path, "speed\n1\n2\n"))
    assert (found.columns, found.values.tolist()) == (("speed",), [[1], [2]])


def test_missing_fields(tmp_path: Path) -> None:
    found = read_table(table(tmp_path, "1,,NaN\n?,2,3\n")).values
    np.testing.assert_array_equal(found, np.array([[1, np.nan, np.nan], [np.nan, 2, 3]], np.float32))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no line of numbers"),
        ("x,y\n", "no line of numbers"),
        ("1,2\n3\n", "line 2: 1 fields, but the first line has 2"),
        ("x,y\n1,2,3\n", "line 2: 3 fields, but the first line has 2"),
        ("1,2\n3,o\n", "line 2: 'o' is no finite number"),
        ("1,o\n3,4\n", "line 1: 'o' is no number, yet others are"),
        ("x,x\n3,4\n", "line 1: two columns are called 'x'"),
        ("x,\n3,4\n", "line 1: column 2 has no name"),
        ("1,2\n3,inf\n", "line 2: 'inf' is no finite number"),
        ("1,2\n3,1e300\n", "beyond single precision"),
    ],
)
def test_faults(tmp_path: Path, text: str, sentence: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(DataError, match=sentence) as fault:
        read_table(path)
    assert str(path) in str(fault.value)


def test_folders_of_tables(tmp_path: Path) -> None:
    table(tmp_path, "x,y\n1,2\n", "up/1.csv")
    table(tmp_path, "x,y\n3,4\n5,6\n", "down/2.csv")
    found = read_tables(folder_entries(tmp_path, {".csv"}))
    assert found.labels == ["down", "up"]
    assert [value.tolist() for value in found.values] == [[[3, 4], [5, 6]], [[1, 2]]]
    assert (found.splits, found.groups) == ([None, None], None)


def test_tables_that_differ(tmp_path: Path) -> None:
    first = Entry(table(tmp_path, "x,y\n1,2\n", "1.csv"), "a", "train", "g")
    swapped = Entry(table(tmp_path, "y,x\n1,2\n", "2.csv"), "a", "test", "h")
    wide = Entry(table(tmp_path, "1,2,3\n", "3.csv"), "a", None, None)
    with pytest.raises(DataError, match=r"2\.csv: column 1 is called 'y', but 'x' in .*1\.csv"):
        read_tables([first, swapped])
    with pytest.raises(DataError, match=r"3\.csv: 3 columns, but .*1\.csv has 2"):
        read_tables([first, wide])
    assert read_tables([first]).groups == ["g"]
