import functools
import gzip
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from seqpyramid.contracts import SPLITS, Batch
from seqpyramid.data import idx
from seqpyramid.data.loading import Dataset
from seqpyramid.errors import DataError
from seqpyramid.tasks.base import DataPlace
from seqpyramid.tasks.pixel_mnist import PixelMnist, PixelMnistConfig, order_hash, pixel_order

from .tiny import write_mnist_twin

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "mnist"

LARGE = {"train": 55_000, "validation": 5_000, "test": 10_000}
FINGERPRINT = PixelMnistConfig().build()._fingerprint  # before a twin's hashes take the place of MNIST's
SMALL = {"train": 60, "validation": 5_000, "test": 40}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            "real",
            marks=pytest.mark.skipif(not SHARED.is_dir(), reason="the shared MNIST files are not here"),
        ),
        "twin",
    ],
)
def mnist(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataPlace]:
    """Cached once; the tests below read images and labels straight from the IDX bytes."""
    folder = tmp_path_factory.mktemp("mnist")
    with pytest.MonkeyPatch.context() as patch:
        source = SHARED
        if request.param == "twin":
            source = folder / "source"
            source.mkdir()
            write_mnist_twin(source, patch)
        yield DataPlace(folder, source=source, offline=True)


def prepared(place: DataPlace, **fields: object) -> PixelMnist:
    task = PixelMnistConfig(**fields).build()
    task.prepare(place)
    return task


@functools.cache
def bytes_of(place: DataPlace, name: str) -> np.ndarray:
    """The content behind the header, read without the package's reader."""
    assert place.source is not None
    header = 16 if "images" in name else 8
    content = gzip.decompress((place.source / f"{name}.gz").read_bytes())[header:]
    array = np.frombuffer(content, dtype=np.uint8)
    return array.reshape(-1, 784) if "images" in name else array


def everything(dataset: Dataset) -> Batch:
    return dataset.batch(torch.arange(len(dataset)))


def test_every_pixel_and_label_is_the_files(mnist: DataPlace) -> None:
    task = prepared(mnist)
    for split, file, rows in (
        ("validation", "train", slice(0, 5_000)),
        ("train", "train", slice(5_000, None)),
        ("test", "t10k", slice(None)),
    ):
        images = bytes_of(mnist, f"{file}-images-idx3-ubyte")[rows]
        labels = bytes_of(mnist, f"{file}-labels-idx1-ubyte")[rows]
        dataset = task.dataset(split)
        assert len(dataset) == len(labels)
        step = 10_000
        for start in range(0, len(labels), step):
            batch = dataset.batch(torch.arange(start, min(start + step, len(labels))))
            assert np.array_equal(batch.x[..., 0].numpy(), images[start : start + step] / np.float32(255))
            assert np.array_equal(batch.y.numpy(), labels[start : start + step])


def test_scale_is_255(mnist: DataPlace) -> None:
    x = prepared(mnist).dataset("test")[7].x
    raw = bytes_of(mnist, "t10k-images-idx3-ubyte")[7]
    np.testing.assert_allclose(x.squeeze(-1).numpy(), raw / 255, rtol=1e-6)
    assert x.shape == (784, 1)
    assert x.max() > 0.9


@pytest.mark.parametrize("permutation", ["tp_rnn_released", "dilated_released", "bit_reversal", "seeded"])
def test_permuted_reads_the_pixels_in_that_order(mnist: DataPlace, permutation: str) -> None:
    task = prepared(mnist, order="permuted", permutation=permutation, test_limit=20, train_limit=20)
    order = pixel_order(permutation)
    stored = everything(task.dataset("test")).x.squeeze(-1).mul(255).round().numpy()
    assert np.array_equal(stored, bytes_of(mnist, "t10k-images-idx3-ubyte")[:20][:, order])


def test_the_permutations_are_the_released_ones() -> None:
    # heads, and hashes over little-endian int64; both published hashes are met
    expected = {
        "tp_rnn_released": ([237, 489, 68, 737, 457, 676, 529, 190], "7d13351b6bf3e330"),
        "dilated_released": ([319, 576, 323, 107, 355, 716, 197, 20], "96240fe27409981c"),
        "bit_reversal": ([0, 512, 256, 768, 128, 640, 384, 64], "30d91dc29f161321"),
    }
    for name, (head, digest) in expected.items():
        order = pixel_order(name)
        assert order[:8].tolist() == head
        assert order_hash(order) == digest
        assert sorted(order.tolist()) == list(range(784))
    assert sorted(pixel_order("seeded", seed=3).tolist()) == list(range(784))
    assert not np.array_equal(pixel_order("seeded", seed=3), pixel_order("seeded", seed=4))


def test_details_name_the_variant(mnist: DataPlace) -> None:
    plain = PixelMnistConfig().build().prepare(mnist)
    assert plain.details["permutation"] == "raster"
    assert plain.details["permutation_sha256"] is None
    assert plain.details["noise"] is None
    variant = (
        PixelMnistConfig(order="permuted", permutation="dilated_released", noise_to=1000)
        .build()
        .prepare(mnist)
    )
    assert variant.details["permutation_sha256"] == "96240fe27409981c"
    assert variant.details["noise"] == {"to": 1000, "seed": 0}
    assert variant.details["images"] == "mnist"
    assert variant.details["files_sha256"] == idx.MNIST_SHA256
    assert variant.path == plain.path
    assert not variant.built
    assert plain.splits in (LARGE, SMALL)


def test_noise_follows_the_pixels(mnist: DataPlace) -> None:
    clean = everything(prepared(mnist, test_limit=30).dataset("test"))
    task = prepared(mnist, test_limit=30, noise_to=1000)
    noisy = everything(task.dataset("test"))
    assert noisy.x.shape == (30, 1000, 1)
    assert task.spec.max_length == 1000
    assert torch.equal(noisy.x[:, :784], clean.x)
    assert torch.equal(noisy.y, clean.y)
    noise = noisy.x[:, 784:].flatten()
    assert 0 <= noise.min() < 0.01
    assert 0.99 < noise.max() <= 1
    assert abs(noise.mean() - 0.5) < 5 / math.sqrt(12 * len(noise))
    assert abs(noise.var() - 1 / 12) < 0.005
    assert len(noise.unique()) > 0.9 * len(noise)  # each example has its own


def test_noise_is_fixed_by_seed_and_split_and_not_by_limits(mnist: DataPlace) -> None:
    def tails(**fields: object) -> torch.Tensor:
        task = prepared(mnist, noise_to=800, **fields)
        return everything(task.dataset("test")).x[:10, 784:]

    one = tails(test_limit=30)
    assert torch.equal(one, tails(test_limit=10))
    assert not torch.equal(one, tails(test_limit=10, noise_seed=1))
    other_split = prepared(mnist, noise_to=800, validation_limit=10).dataset("validation")
    assert not torch.equal(one, everything(other_split).x[:, 784:])


def test_limits_take_the_first(mnist: DataPlace) -> None:
    whole, cut = prepared(mnist), prepared(mnist, train_limit=7, validation_limit=8, test_limit=9)
    for split, limit in zip(SPLITS, (7, 8, 9), strict=True):
        assert len(cut.dataset(split)) == limit
        assert torch.equal(
            everything(cut.dataset(split)).x, whole.dataset(split).batch(torch.arange(limit)).x
        )
    hashes = {PixelMnistConfig(test_limit=n).build().prepare(mnist).split_hash for n in (None, 9, 10)}
    assert len(hashes) == 3


def test_trivial_is_the_best_constant_answer(mnist: DataPlace) -> None:
    task = prepared(mnist)
    labels = torch.from_numpy(bytes_of(mnist, "t10k-labels-idx1-ubyte").astype(np.int64))
    shares = labels.bincount(minlength=10).double() / len(labels)
    metrics = task.metrics()
    metrics.update(shares.log().expand(len(labels), 10), Batch(torch.empty(0), torch.empty(0), labels))
    assert metrics.compute() == pytest.approx(task.trivial(), rel=1e-9)
    if len(labels) == 10_000:
        assert task.trivial() == {"accuracy": 0.1135, "loss": pytest.approx(2.30085, abs=5e-6)}
    with pytest.raises(RuntimeError, match="prepare"):
        PixelMnistConfig().build().trivial()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"permutation": "bit_reversal"}, "order=raster"),
        ({"order": "permuted"}, "needs a permutation"),
        (
            {"order": "permuted", "permutation": "bit_reversal", "permutation_seed": 1},
            "permutation=seeded only",
        ),
        ({"noise_seed": 1}, "noise_to only"),
        ({"noise_to": 784}, "784"),
        ({"test_limit": 10_001}, "10000"),
        ({"train_limit": 0}, "greater than 0"),
        ({"order": "random"}, "raster"),
        ({"order": "permuted", "permutation": "random"}, "bit_reversal"),
        ({"split": "none"}, "head_5000"),
        ({"images": "kmnist"}, "fashion_mnist"),
    ],
)
def test_bad_fields(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PixelMnistConfig(**fields)


def test_a_missing_source_says_where_to_put_it(tmp_path: Path) -> None:
    place = DataPlace(tmp_path, offline=True)
    with pytest.raises(DataError, match="--source"):
        prepared(place)
    assert [p.name for p in place.caches.iterdir() if p.suffix != ".lock"] == []


def test_a_damaged_source_leaves_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_mnist_twin(source, monkeypatch)
    archive = source / "t10k-labels-idx1-ubyte.gz"
    good = archive.read_bytes()
    archive.write_bytes(good[:-3])
    place = DataPlace(tmp_path, source=source, offline=True)
    with pytest.raises(DataError, match="cut short"):
        prepared(place)
    archive.write_bytes(good)
    assert PixelMnistConfig().build().prepare(place).built


def test_the_cache_of_mnist_keeps_its_name() -> None:
    """A user's cache of an earlier version is found again."""
    assert FINGERPRINT == "c23239cc6d78c764"


def test_every_published_length_and_order_can_be_asked_for() -> None:
    for steps in (None, 1000, 2000, 3000):
        for fields in (
            {},
            {"order": "permuted", "permutation": "tp_rnn_released"},
            {"order": "permuted", "permutation": "dilated_released"},
            {"order": "permuted", "permutation": "bit_reversal"},
            {"order": "permuted", "permutation": "seeded", "permutation_seed": 5},
        ):
            assert PixelMnistConfig(noise_to=steps, **fields).build().spec.max_length == (steps or 784)


def test_fashion_mnist_beside_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One data folder holds both caches, and a source of the one is refused for the other."""
    sources = {}
    for images in ("mnist", "fashion_mnist"):
        sources[images] = tmp_path / f"source of {images}"
        sources[images].mkdir()
        write_mnist_twin(sources[images], monkeypatch, images)

    def task(images: str, source: str) -> PixelMnist:
        return prepared(
            DataPlace(tmp_path, source=sources[source], offline=True), images=images, test_limit=9
        )

    with pytest.raises(DataError, match=r"this is MNIST, not Fashion-MNIST;.*task\.images=mnist"):
        task("fashion_mnist", "mnist")
    with pytest.raises(DataError, match=r"this is Fashion-MNIST, not MNIST;.*task\.images=fashion_mnist"):
        task("mnist", "fashion_mnist")
    for images in ("mnist", "fashion_mnist"):
        place = DataPlace(tmp_path, source=sources[images], offline=True)
        ready = task(images, images)
        batch = everything(ready.dataset("test"))
        assert np.array_equal(
            batch.x[..., 0].mul(255).round().numpy(), bytes_of(place, "t10k-images-idx3-ubyte")[:9]
        )
        assert np.array_equal(batch.y.numpy(), bytes_of(place, "t10k-labels-idx1-ubyte")[:9])
        again = PixelMnistConfig(images=images).build().prepare(DataPlace(tmp_path, offline=True))
        assert not again.built
        assert again.details["images"] == images
    assert len(list((tmp_path / "caches").glob("pixel_mnist-*.h5"))) == 2
    assert again.details["files_md5"] == idx.FASHION_MD5
    names = PixelMnistConfig(images="fashion_mnist").build().class_names
    assert names[0] == "T-shirt/top"
    assert names[9] == "Ankle boot"
    assert len(set(names)) == 10
    assert PixelMnistConfig().build().class_names == tuple("0123456789")
