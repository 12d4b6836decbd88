import gzip
import hashlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from seqpyramid.data import catalogue, idx
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
    values, sha256, md5 = idx.read_idx(path)
    np.testing.assert_array_equal(values, IMAGES)
    assert values.dtype == np.uint8
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert md5 == hashlib.md5(content).hexdigest()


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
            array = idx.read_idx(path).values
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


FOLDERS = [
    *(("mnist", under) for under in ("", "MNIST/raw", "mnist", "raw")),
    *(("fashion_mnist", under) for under in ("", "FashionMNIST/raw", "fashion_mnist", "data/fashion", "raw")),
]


@pytest.mark.parametrize(("images", "under"), FOLDERS)
@pytest.mark.parametrize("spelling", ["{}", "{}.gz", "dotted", "dotted.gz"])
def test_where_the_files_may_lie(tmp_path: Path, images: idx.Images, under: str, spelling: str) -> None:
    write_all(tmp_path / under, spelling="{}" + spelling.removeprefix("{}").removeprefix("dotted"))
    if spelling.startswith("dotted"):
        for path in list((tmp_path / under).iterdir()):
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    found = idx.find_images(images, tmp_path, tmp_path / "downloads", offline=True)
    assert tuple(found) == NAMES
    assert {path.parent for path in found.values()} == {tmp_path / under}


def test_one_folder_may_hold_both(tmp_path: Path) -> None:
    for under in ("MNIST/raw", "FashionMNIST/raw"):
        write_all(tmp_path / under)
    for images, under in (("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw")):
        found = idx.find_images(images, tmp_path, tmp_path / "downloads", offline=True)
        assert {path.parent for path in found.values()} == {tmp_path / under}


@pytest.mark.parametrize("images", ["mnist", "fashion_mnist"])
def test_the_source_comes_before_the_downloads(tmp_path: Path, images: idx.Images) -> None:
    write_all(tmp_path / "downloads" / images)
    write_all(tmp_path / "own" / "raw")
    for source, where in ((tmp_path / "own", "own/raw"), (None, f"downloads/{images}")):
        found = idx.find_images(images, source, tmp_path / "downloads", offline=True)
        assert {path.parent for path in found.values()} == {tmp_path / where}


@pytest.mark.parametrize("offline", [True, False])
def test_a_source_without_them_is_not_made_up_for(tmp_path: Path, offline: bool) -> None:
    with pytest.raises(
        DataError, match=r"MNIST/raw.*downloads/mnist;.*--source.*without --offline and --source"
    ):
        idx.find_images("mnist", tmp_path, tmp_path / "downloads", offline=offline)


def test_offline_and_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Fashion-MNIST .*train-images.*not in .*fashion_mnist;.*--source"):
        idx.find_images("fashion_mnist", None, tmp_path, offline=True)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        idx.find_images("mnist", tmp_path / "typo", tmp_path / "downloads", offline=False)


def test_a_source_with_some_of_it(tmp_path: Path) -> None:
    write_all(tmp_path, names=NAMES[:2])
    with pytest.raises(DataError, match=f"not {NAMES[2]}, {NAMES[3]}"):
        idx.find_images("mnist", tmp_path, tmp_path / "downloads", offline=False)


@pytest.mark.parametrize("images", ["mnist", "fashion_mnist"])
def test_missing_files_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: idx.Images
) -> None:
    write_all(tmp_path / images, names=NAMES[:1])
    asked = []
    monkeypatch.setattr(
        catalogue, "fetch", lambda urls, path, **rest: asked.append((urls, path, rest["expected"]))
    )
    found = idx.find_images(images, None, tmp_path, offline=False)
    resources = [catalogue.RESOURCES[f"{images}/{name}"] for name in NAMES[1:]]
    assert asked == [
        (resource.urls, tmp_path / images / f"{name}.gz", resource.hash)
        for name, resource in zip(NAMES[1:], resources, strict=True)
    ]
    assert tuple(found) == NAMES


@pytest.mark.parametrize(("images", "title"), [("mnist", "MNIST"), ("fashion_mnist", "Fashion-MNIST")])
def test_other_pixels_are_refused(tmp_path: Path, images: idx.Images, title: str) -> None:
    write_all(tmp_path, spelling="{}.gz")
    with pytest.raises(DataError, match=rf"train-images-idx3-ubyte\.gz: the hash .* does not match {title} "):
        idx.read_images(images, idx.find_images(images, tmp_path, tmp_path, offline=True))


@pytest.mark.parametrize("spelling", ["{}", "{}.gz"])
def test_one_given_for_the_other_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    contents = {name: encode(IMAGES + n) for n, name in enumerate(NAMES)}
    monkeypatch.setattr(
        idx, "FASHION_MD5", {name: hashlib.md5(c).hexdigest() for name, c in contents.items()}
    )
    for name, content in contents.items():
        file = tmp_path / spelling.format(name)
        file.write_bytes(gzip.compress(content, 1) if file.suffix == ".gz" else content)
    files = idx.find_images("mnist", tmp_path, tmp_path, offline=True)
    assert set(idx.read_images("fashion_mnist", files)) == set(NAMES)
    with pytest.raises(DataError, match=r"is Fashion-MNIST, not MNIST;.*task\.images=fashion_mnist"):
        idx.read_images("mnist", files)
    swapped = {**files, NAMES[0]: files[NAMES[2]]}
    with pytest.raises(DataError, match=f"this is Fashion-MNIST's {NAMES[2]} where {NAMES[0]} belongs"):
        idx.read_images("fashion_mnist", swapped)


@needs_mnist
def test_the_real_files(tmp_path: Path) -> None:
    files = idx.find_images("mnist", SHARED, tmp_path, offline=True)
    arrays = idx.read_images("mnist", files)
    assert arrays["train-images-idx3-ubyte"].shape == (60_000, 28, 28)
    assert arrays["t10k-labels-idx1-ubyte"].shape == (10_000,)
    assert arrays["train-labels-idx1-ubyte"][:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
