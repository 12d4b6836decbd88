import gzip
import hashlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from seqpyramid.data import idx
from seqpyramid.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "mnist"
needs_mnist = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared MNIST files are not here")

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
NAMES = tuple(idx.MNIST_SHA256)


def encode(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_all(folder: Path, *, spelling: str = "{}", names: tuple[str, ...] = NAMES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        content = encode(IMAGES if "images" in name else IMAGES[:, 0, 0])
        file = folder / spelling.format(name)
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["a.gz", "a", "zipped-without-suffix"])
def test_plain_and_zipped(tmp_path: Path, name: str) -> None:
    content = encode(IMAGES)
    path = tmp_path / name
    path.write_bytes(content if name == "a" else gzip.compress(content))
    array, digest = idx.read_idx(path)
    np.testing.assert_array_equal(array, IMAGES)
    assert array.dtype == np.uint8
    assert digest == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kept", [0, 2, 3, 4, 8, 15, 16, 40, -1])
def test_a_plain_file_cut_short(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut"
    path.write_bytes(encode(IMAGES)[:kept])
    with pytest.raises(DataError, match=r"cut: .*fetch"):
        idx.read_idx(path)


@pytest.mark.parametrize("kept", [2, 9, 20, 40, -9, -5, -1])
def test_an_archive_cut_short(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(encode(IMAGES))[:kept])
    with pytest.raises(DataError, match=r"cut\.gz: .*cut short; fetch"):
        idx.read_idx(path)


def test_a_damaged_archive(tmp_path: Path) -> None:
    good = gzip.compress(encode(IMAGES))
    path = tmp_path / "bad.gz"
    refused = 0
    for place in range(10, len(good)):
        bad = bytearray(good)
        bad[place] ^= 0x10
        path.write_bytes(bad)
        try:
            array, _ = idx.read_idx(path)
        except DataError as error:
            assert "fetch" in str(error)  # noqa: PT017
            refused += 1
        else:  # deflate pads its last byte with bits that mean nothing
            np.testing.assert_array_equal(array, IMAGES)
    assert refused >= len(good) - 11


@pytest.mark.parametrize(
    "magic", [b"\0\0\x0d\x03", b"\0\0\x08\x00", b"\0\0\x08\xff", b"\x89PNG", b"<htm"], ids=lambda m: m.hex()
)
def test_wrong_magic(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "odd"
    path.write_bytes(magic + encode(IMAGES)[4:])
    with pytest.raises(DataError, match=f"not an IDX file.*{magic.hex()}"):
        idx.read_idx(path)


def test_too_much(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(encode(IMAGES) + b"\0")
    with pytest.raises(DataError, match="announces 60 bytes but holds more"):
        idx.read_idx(path)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((2**32 - 1, 28, 28), "no MNIST file has"),
        ((2**31, 2**31, 4), "no MNIST file has"),
        ((0, 28, 28), "no MNIST file has"),
        ((2**28 - 1,), "holds 1000"),  # not absurd, but not there either
    ],
)
def test_a_lying_header_costs_no_memory(tmp_path: Path, shape: tuple[int, ...], says: str) -> None:
    path = tmp_path / "liar.gz"
    path.write_bytes(
        gzip.compress(struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(1000))
    )
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"announces.*{says}"):
            idx.read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_missing_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            idx.read_idx(path)


@pytest.mark.parametrize("under", ["", "MNIST/raw", "mnist", "raw"])
@pytest.mark.parametrize("spelling", ["{}", "{}.gz", "dotted", "dotted.gz"])
def test_where_mnist_may_lie(tmp_path: Path, under: str, spelling: str) -> None:
    write_all(tmp_path / under, spelling="{}" + spelling.removeprefix("{}").removeprefix("dotted"))
    if spelling.startswith("dotted"):
        for path in list((tmp_path / under).iterdir()):
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    found = idx.find_mnist(tmp_path, tmp_path / "downloads", offline=True)
    assert tuple(found) == NAMES
    assert {path.parent for path in found.values()} == {tmp_path / under}


def test_the_source_comes_before_the_downloads(tmp_path: Path) -> None:
    write_all(tmp_path / "downloads" / "mnist")
    write_all(tmp_path / "own" / "raw")
    for source, where in ((tmp_path / "own", "own/raw"), (None, "downloads/mnist")):
        found = idx.find_mnist(source, tmp_path / "downloads", offline=True)
        assert {path.parent for path in found.values()} == {tmp_path / where}


def test_offline_and_nowhere_names_every_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"MNIST/raw.*downloads/mnist.*--source"):
        idx.find_mnist(tmp_path, tmp_path / "downloads", offline=True)


def test_a_source_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        idx.find_mnist(tmp_path / "typo", tmp_path / "downloads", offline=False)


def test_a_source_with_some_of_it(tmp_path: Path) -> None:
    write_all(tmp_path, names=NAMES[:2])
    with pytest.raises(DataError, match=f"not {NAMES[2]}, {NAMES[3]}"):
        idx.find_mnist(tmp_path, tmp_path / "downloads", offline=False)


def test_missing_files_are_fetched_from_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path / "mnist", names=NAMES[:1])
    asked = []
    monkeypatch.setattr(idx, "fetch", lambda url, path, md5: asked.append((url, path, md5)))
    said = []
    found = idx.find_mnist(None, tmp_path, offline=False, progress=lambda *words: said.append(words))
    assert asked == [
        (f"{idx.MIRROR}{name}.gz", tmp_path / "mnist" / f"{name}.gz", idx.MNIST_GZ_MD5[name])
        for name in NAMES[1:]
    ]
    assert said[0] == (f"download {NAMES[1]}.gz", 1, 4)
    assert set(found) == set(NAMES)


def test_other_pixels_are_not_mnist(tmp_path: Path) -> None:
    write_all(tmp_path, spelling="{}.gz")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: the hash .* does not match MNIST"):
        idx.read_mnist(idx.find_mnist(tmp_path, tmp_path, offline=True))


def test_fashion_mnist_is_told_by_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path, spelling="{}.gz")
    archive = (tmp_path / "train-images-idx3-ubyte.gz").read_bytes()
    monkeypatch.setattr(idx, "FASHION_GZ_MD5", ("00000000", hashlib.md5(archive).hexdigest()[:8]))
    with pytest.raises(DataError, match="Fashion-MNIST"):
        idx.read_mnist(idx.find_mnist(tmp_path, tmp_path, offline=True))


@needs_mnist
def test_the_real_files(tmp_path: Path) -> None:
    arrays = idx.read_mnist(idx.find_mnist(SHARED, tmp_path, offline=True))
    assert arrays["train-images-idx3-ubyte"].shape == (60_000, 28, 28)
    assert arrays["t10k-labels-idx1-ubyte"].shape == (10_000,)
    assert arrays["train-labels-idx1-ubyte"][:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
