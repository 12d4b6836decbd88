from pathlib import Path

import pytest

from seqpyramid.data.manifest import Entry, find_set, folder_entries, read_manifest, stray_files
from seqpyramid.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"1,2\n3,{len(name)}\n", encoding="utf-8")


def manifest(root: Path, text: str) -> Path:
    path = root / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_in_any_order(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "deep/b c.csv")
    text = '\ufeffSplit,label,group,path\r\nVal,one,s1,a.csv\r\n\r\n ,two,s2,"deep/b c.csv"\r\n'
    assert read_manifest(manifest(tmp_path, text)) == [
        Entry(tmp_path / "a.csv", "one", "validation", "s1"),
        Entry(tmp_path / "deep/b c.csv", "two", None, "s2"),
    ]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_separators(tmp_path: Path, mark: str) -> None:
    touch(tmp_path, "a.csv")
    (entry,) = read_manifest(manifest(tmp_path, f"path{mark}label\na.csv{mark}x\n"))
    assert (entry.label, entry.split, entry.group) == ("x", None, None)


def test_paths_may_lead_out_of_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.csv", "elsewhere/b.csv")
    (tmp_path / "lists").mkdir()
    path = manifest(
        tmp_path / "lists", f"path,label\n../elsewhere/a.csv,x\n{tmp_path / 'elsewhere/b.csv'},y\n"
    )
    assert [entry.path.resolve().name for entry in read_manifest(path)] == ["a.csv", "b.csv"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("path,label\n", "names no file"),
        ("path,lable\na.csv,x\n", r"line 1: unknown column 'lable'; did you mean 'label'"),
        ("path\na.csv\n", r"line 1: no column 'label'"),
        ("path,label,label\na.csv,x,y\n", "line 1: column 'label' is there twice"),
        ("path,label\na.csv,x\n\nb.csv\n", "line 4: 1 fields"),
        ("path,label\na.csv,\n", "line 2: the label is empty"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ("path,label,split\na.csv,x,tset\n", "line 2: unknown split 'tset'; did you mean 'test'"),
        ("path,label,group\na.csv,x,\n", "line 2: the group is empty"),
        ("path,label\na.csv,x\n./a.csv,y\n", r"line 3: .* is named on line 2 already"),
        ("path,label\na.csv,x\nlink.csv,y\n", r"line 3: .* is named on line 2 already"),
        ("path,label\nnot-there.csv,x\n", "line 2: no file"),
        ('path,label\n"a.csv,x\n', "no line of a CSV table"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path: Path, text: str, sentence: str) -> None:
    touch(tmp_path, "a.csv", "b.csv")
    (tmp_path / "link.csv").symlink_to("a.csv")
    path = manifest(tmp_path, text)
    with pytest.raises(DataError, match=sentence) as fault:
        read_manifest(path)
    assert str(path) in str(fault.value)


def test_no_manifest_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such manifest"):
        read_manifest(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_bytes(b"path,label\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_manifest(tmp_path / "y.csv")


def test_one_folder_a_class(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b/2.csv",
        "b/in/1.CSV",
        "a/3.csv",
        "a/.hidden.csv",
        "a/notes.txt",
        "loose.csv",
        ".git/x.csv",
    )
    found = folder_entries(tmp_path, {".csv"})
    assert [(entry.path.relative_to(tmp_path).as_posix(), entry.label) for entry in found] == [
        ("a/3.csv", "a"),
        ("b/2.csv", "b"),
        ("b/in/1.CSV", "b"),
    ]
    assert {entry.split for entry in found} == {entry.group for entry in found} == {None}
    assert [path.name for path in stray_files(tmp_path, {".csv"})] == ["loose.csv", "notes.txt"]


def test_folders_of_splits(tmp_path: Path) -> None:
    touch(tmp_path, "Train/a/1.csv", "Train/b/2.csv", "valid/a/3.csv", "test/b/4.csv", "test/README")
    found = folder_entries(tmp_path, {".csv"})
    assert [(entry.split, entry.label, entry.path.stem) for entry in found] == [
        ("train", "a", "1"),
        ("train", "b", "2"),
        ("test", "b", "4"),
        ("validation", "a", "3"),
    ]
    assert [path.name for path in stray_files(tmp_path, {".csv"})] == ["README"]


def test_train_may_be_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "bus/1.csv", "train/2.csv")
    assert [(entry.label, entry.split) for entry in folder_entries(tmp_path, {".csv"})] == [
        ("bus", None),
        ("train", None),
    ]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["loose.csv"], r"no .csv file in a folder of its class \(0 folders and 1 other"),
        (["a/x.txt"], "no .csv file"),
        (["train/a/1.csv", "test/a/2.csv", "bus/3.csv"], "bus: lies beside folders of splits"),
        (["train/a/1.csv", "test/2.csv"], r"2\.csv: lies in no folder of a class"),
    ],
)
def test_folders_that_are_no_layout(tmp_path: Path, names: list[str], sentence: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=sentence):
        folder_entries(tmp_path, {".csv"})


def test_a_set_is_found_wherever_it_lies(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "Gun/Gun_TRAIN.ts",
        "Gun/Gun_TEST.ts",
        "Flat_train.tsv",
        "Flat_test.tsv",
        "one.npz",
        "t/manifest.csv",
    )
    touch(tmp_path, "k/a/1.csv", "k/b/2.csv")
    (tmp_path / "t/manifest.csv").write_text("path,label\n../k/a/1.csv,x\n", encoding="utf-8")
    gun = find_set(tmp_path, "Gun")
    assert gun == find_set(tmp_path / "Gun") == find_set(tmp_path / "Gun", "Gun")
    assert gun.format == "ts"
    assert sorted((split, path.name) for path, split in gun.files) == [
        ("test", "Gun_TEST.ts"),
        ("train", "Gun_TRAIN.ts"),
    ]
    assert {split for _, split in find_set(tmp_path, "flat").files} == {"train", "test"}
    assert (
        find_set(tmp_path, "one").files
        == find_set(tmp_path / "one.npz").files
        == ((tmp_path / "one.npz", None),)
    )
    assert [entry.label for entry in find_set(tmp_path, "t").entries] == ["x"]
    assert [entry.label for entry in find_set(tmp_path / "k").entries] == ["a", "b"]
    assert find_set(tmp_path / "Gun/Gun_TRAIN.ts").files == ((tmp_path / "Gun/Gun_TRAIN.ts", None),)


@pytest.mark.parametrize(
    ("names", "wanted", "sentence"),
    [
        (["A/A_TRAIN.ts", "A/A_TEST.ts"], None, "it has the sets A: choose one by name"),
        (["A/A_TRAIN.ts", "A/A_TEST.ts"], "AA", "no data set 'AA' in it; did you mean 'A'"),
        (["A_TRAIN.ts", "A_TEST.ts", "b.npz"], None, r"holds 2 data sets \(A, b\)"),
        (["A_TRAIN.ts"], None, "no A_TEST file"),
        (["A_TEST.ts"], None, "no A_TRAIN file"),
        (["A_TRAIN.ts", "A_TEST.ts", "A_TRAIN.tsv", "A_TEST.tsv"], None, "several formats"),
        (["A_TRAIN.ts", "A_TEST.ts", "A.ts"], None, "which of .* is meant is not clear"),
        (["x.md"], None, "holds no sequences"),
    ],
)
def test_what_is_no_set_or_not_clear(
    tmp_path: Path, names: list[str], wanted: str | None, sentence: str
) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=sentence):
        find_set(tmp_path, wanted)


def test_single_files_that_do_not_fit(tmp_path: Path) -> None:
    touch(tmp_path, "a.ts", "b.xyz")
    with pytest.raises(DataError, match="leave out the set's name"):
        find_set(tmp_path / "a.ts", "a")
    with pytest.raises(DataError, match=r"ending is none of \.npz"):
        find_set(tmp_path / "a.ts", None, "npz")
    with pytest.raises(DataError, match="ending is none of"):
        find_set(tmp_path / "b.xyz")
    with pytest.raises(DataError, match="no such file or folder"):
        find_set(tmp_path / "c")
