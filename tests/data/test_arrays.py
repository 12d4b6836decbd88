import io
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from seqpyramid.data.arrays import read_hdf5, read_npz
from seqpyramid.data.timeseries import Series
from seqpyramid.errors import DataError

Arrays = dict[str, Any]


def write_npz(path: Path, arrays: Arrays) -> Series:
    np.savez_compressed(path, **arrays)
    return read_npz(path)


def write_hdf5(path: Path, arrays: Arrays) -> Series:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            text = np.asarray(values).dtype.kind == "U"
            file[name] = np.asarray(values).tolist() if text else values
    return read_hdf5(path)


Writer = Callable[[Path, Arrays], Series]
both = pytest.mark.parametrize("write", [write_npz, write_hdf5])


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


@both
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "f2", "i2", "u1"])
def test_round_trip(tmp_path: Path, write: Writer, dtype: str) -> None:
    x = (drawn(5, 4, 3) * 20 + 100).astype(dtype)
    found = write(tmp_path / "a", {"X": x, "y": np.arange(5)}) if write is write_hdf5 else None
    if found is None:
        found = write_npz(tmp_path / "a.npz", {"X": np.asfortranarray(x), "y": np.arange(5)})
    assert np.array_equal(np.stack(found.values), x.astype(np.float32))
    assert found.values[0].dtype == np.float32
    assert found.labels == ["0", "1", "2", "3", "4"]
    assert (found.splits, found.groups) == (None, None)


@both
def test_lengths_splits_groups_and_one_feature(tmp_path: Path, write: Writer) -> None:
    x = drawn(3, 4)
    x[0, 2:] = np.inf  # behind the end, so never read
    arrays = {
        "x": x,
        "y": np.array(["a", "é", "a"]),
        "lengths": np.array([2, 4, 1], dtype=np.uint8),
        "split": np.array(["Train", "val", "test"]),
        "group": np.array([7, 8, 9]),
    }
    found = write(tmp_path / "a.npz", arrays)
    assert [value.shape for value in found.values] == [(2, 1), (4, 1), (1, 1)]
    assert np.array_equal(found.values[1][:, 0], x[1].astype(np.float32))
    assert found.labels == ["a", "é", "a"]
    assert found.splits == ["train", "validation", "test"]
    assert found.groups == ["7", "8", "9"]


@both
def test_arrays_of_each_split(tmp_path: Path, write: Writer) -> None:
    arrays = {
        "x_test": drawn(2, 5, 2),
        "y_test": np.array([1.0, 0.0]),
        "x_train": drawn(3, 4, 2),
        "y_train": np.array([0.0, 1.0, 1.0]),
        "lengths_train": np.array([4, 1, 2]),
    }
    found = write(tmp_path / "a.npz", arrays)
    assert found.splits == ["train"] * 3 + ["test"] * 2
    assert found.labels == ["0", "1", "1", "1", "0"]
    assert [len(value) for value in found.values] == [4, 1, 2, 5, 5]


@both
def test_missing_values_and_no_labels(tmp_path: Path, write: Writer) -> None:
    found = write(tmp_path / "a.npz", {"x": np.array([[1, np.nan], [3, 4]])})
    assert found.labels is None
    assert np.isnan(found.values[0]).sum() == 1


X = drawn(2, 3, 1)


@both
@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"y": np.arange(2)}, "no array called x"),
        ({"x": X, "lenghts": np.arange(2)}, "unknown array 'lenghts'; did you mean 'lengths'"),
        ({"x": X, "x_trian": X}, "unknown array 'x_trian'; did you mean 'x_train'"),
        ({"x": X, "y": np.arange(3)}, r"y has shape \(3,\), but x has 2 sequences"),
        ({"x": X, "y": np.eye(2)}, r"y has shape \(2, 2\)"),
        ({"x": X, "lengths": np.array([3, 4])}, r"lengths\[1\] is 4, but x has 3 steps"),
        ({"x": X, "lengths": np.array([0, 3])}, r"lengths\[0\] is 0"),
        ({"x": X, "lengths": np.array([1.0, 2.0])}, "lengths holds values of type float64"),
        (
            {"x": X, "split": np.array(["train", "tset"])},
            r"split\[1\]: unknown split 'tset'; did you mean 'test'",
        ),
        ({"x": X, "split": np.array([0, 1])}, "split holds numbers"),
        ({"x": X, "y": np.array([0.5, 1.0])}, "y holds fractions"),
        ({"x": X, "y": np.array(["a", " "])}, r"y\[1\] is empty"),
        ({"x": np.array(["a", "b"])}, "x holds text"),
        ({"x": np.zeros(4)}, r"x has shape \(4,\)"),
        ({"x": np.zeros((3, 0, 2))}, r"x has shape \(3, 0, 2\)"),
        ({"x": np.full((1, 2), np.inf)}, r"x\[0\] is infinite at step 0"),
        ({"x": np.full((1, 2), 1e300)}, r"x\[0\]: a value beyond single precision"),
        ({"x": X, "x_train": X}, "has x beside arrays of single splits"),
        ({"x_train": X, "x_val": X, "y_train": np.arange(2)}, "y_validation is missing"),
        ({"x_train": X, "x_test": drawn(2, 3, 2)}, r"x has \[1, 2\] features in different splits"),
        ({"x_val": X, "x_valid": X}, "two arrays mean x_validation"),
        ({"x": X.astype(complex)}, "x.* holds values of type complex128"),
    ],
)
def test_faults(tmp_path: Path, write: Writer, arrays: Arrays, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as fault:
        write(tmp_path / "a.npz", arrays)
    assert "a.npz" in str(fault.value)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    objects = np.empty(2, dtype=object)
    objects[:] = [Payload(harm), 1]
    np.savez(tmp_path / "a.npz", x=X, y=objects)
    with pytest.raises(DataError, match="holds Python objects"):
        read_npz(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Payload(harm)))
    with pytest.raises(DataError, match=r"no \.npz file"):
        read_npz(tmp_path / "b.npz")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Payload(harm)))
    with pytest.raises(DataError, match=r"no \.npz file"):
        read_npz(tmp_path / "c.npz")
    assert not harm.exists()


def npy(shape: tuple[int, ...], content: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


@pytest.mark.parametrize("shape", [(2**31, 2**31), (2**62, 2**62, 4), (3,), (-1, -2)])
def test_a_lying_npz_header_costs_nothing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", npy(shape, b"12345678" * 4))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"announces -?\d+ bytes in shape"):
            read_npz(tmp_path / "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_an_npz_bomb_is_not_unpacked(tmp_path: Path) -> None:
    rows = 2**25
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as stream,
    ):
        stream.write(npy((rows, 8), b""))
        zeros = bytes(2**20)
        for _ in range(130):  # more than 128 MiB
            stream.write(zeros)
    with pytest.raises(DataError, match="would unpack"):
        read_npz(tmp_path / "a.npz")


def test_a_hdf5_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (2**31, 2**20), "f8", chunks=(1, 2**10), compression="gzip")
    with pytest.raises(DataError, match="would unpack 0 bytes to"):
        read_hdf5(tmp_path / "a.h5")


def test_hdf5_links_and_foreign_data(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = X
    layout = h5py.VirtualLayout(X.shape, "f8")
    layout[...] = h5py.VirtualSource(tmp_path / "other.h5", "x", X.shape)
    makers: dict[str, Callable[[h5py.File], object]] = {
        "is a link": lambda f: f.__setitem__("x", h5py.ExternalLink("other.h5", "/x")),
        "is a link, which": lambda f: f.__setitem__("x", h5py.SoftLink("/y")),
        "in another file": lambda f: f.create_virtual_dataset("x", layout),
        "keeps its data": lambda f: f.create_dataset("x", (4,), "u1", external=[("/etc/passwd", 0, 4)]),
        "is no array": lambda f: f.create_group("x"),
        "holds Python objects": lambda f: f.create_dataset("x", (2,), h5py.vlen_dtype(np.float32)),
        "is empty": lambda f: f.create_dataset("x", data=h5py.Empty("f8")),
    }
    for i, (sentence, make) in enumerate(makers.items()):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            make(file)
        with pytest.raises(DataError, match=sentence):
            read_hdf5(tmp_path / f"{i}.h5")


@pytest.mark.parametrize(("read", "ending"), [(read_npz, "npz"), (read_hdf5, "h5")])
def test_damaged_files(tmp_path: Path, read: Callable[[Path], Series], ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    with pytest.raises(DataError, match="no such file"):
        read(path)
    (write_npz if ending == "npz" else write_hdf5)(path, {"x": drawn(50, 20), "y": np.arange(50)})
    content = path.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"a\."):
            read(path)
    if ending == "npz":
        changed = bytearray(content)
        changed[len(content) // 3] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DataError, match="damaged"):
            read(path)


def test_other_members_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("../evil.txt", b"x")
    with pytest.raises(DataError, match="is no array"):
        read_npz(tmp_path / "a.npz")
