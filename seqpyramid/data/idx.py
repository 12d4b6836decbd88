"""IDX files, the format of MNIST and Fashion-MNIST, and both: where they may lie, and which of them a file is.

An IDX file is, big-endian: two zero bytes, a type code (8 is uint8), the number of dimensions, each dimension as
uint32, and the values. Files are read plain or gzipped, whatever they are called.

Both corpora consist of four files of the same names and shapes, so they are told apart by hashes of the uncompressed
content (archives of the same content differ in their gzip headers): MNIST by SHA-256, Fashion-MNIST by MD5, of which
alone published values exist. MD5 keeps out mistakes, not forgeries.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqpyramid.data import catalogue
from seqpyramid.data.progress import Progress
from seqpyramid.errors import DataError

Images = Literal["mnist", "fashion_mnist"]

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FASHION_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}

TITLES: dict[Images, str] = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
_FOLDERS: dict[Images, tuple[str, ...]] = {
    "mnist": ("", "MNIST/raw", "mnist", "raw"),
    "fashion_mnist": ("", "FashionMNIST/raw", "fashion_mnist", "fashion-mnist", "data/fashion", "raw"),
}
"""Under the user's source, as torchvision, Keras and the publisher's repository lay them out."""

_UINT8 = 8
_MAX_BYTES = 2**28
"""Five times the largest file of MNIST; a header that announces more is damaged or hostile."""
_READ_BYTES = 2**20
_GZIP = b"\x1f\x8b"


class IdxFile(NamedTuple):
    """What an IDX file holds."""

    values: NDArray[np.uint8]
    """In the file's shape."""
    sha256: str
    """Of the uncompressed content, as is ``md5``."""
    md5: str


def read_idx(path: Path) -> IdxFile:
    """Read an IDX file of uint8 values, plain or gzipped.

    Raises:
        DataError: the file is missing, cut short, too long, of another type, or announces an absurd size.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP
            raw.seek(0)
            if zipped:
                with gzip.open(raw) as stream:
                    return _parse(path, stream)
            return _parse(path, raw)
    except EOFError:
        raise DataError(f"{path}: the gzip archive is cut short; fetch the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip archive is damaged ({error}); fetch the file again") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the file or fetch it again"
        ) from None


def _parse(path: Path, stream: IO[bytes] | gzip.GzipFile) -> IdxFile:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UINT8 or not 1 <= magic[3] <= 4:
        raise DataError(
            f"{path}: not an IDX file of uint8 values (it begins with {magic.hex()!r}); fetch it again"
        )
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path}: the IDX header is cut short; fetch the file again")
    shape = tuple(int(n) for n in np.frombuffer(sizes, dtype=">u4"))
    announced = math.prod(shape)
    if not 0 < announced <= _MAX_BYTES:
        raise DataError(
            f"{path}: announces {announced} bytes in shape {shape}, which no MNIST file has; fetch it again"
        )
    content = bytearray()  # grows with what is there, so that a lying header costs no memory
    while len(content) <= announced and (
        block := stream.read(min(_READ_BYTES, announced + 1 - len(content)))
    ):
        content += block
    if len(content) != announced:
        fault = "more" if len(content) > announced else f"{len(content)}"
        raise DataError(f"{path}: announces {announced} bytes but holds {fault}; fetch the file again")
    sha256, md5 = hashlib.sha256(magic + sizes), hashlib.md5(magic + sizes, usedforsecurity=False)
    sha256.update(content)
    md5.update(content)
    values = np.frombuffer(bytes(content), dtype=np.uint8).reshape(shape)
    return IdxFile(values, sha256.hexdigest(), md5.hexdigest())


def published(images: Images) -> Mapping[str, str]:
    """Return the hashes of the uncompressed files by name: SHA-256 for MNIST, MD5 for Fashion-MNIST."""
    return MNIST_SHA256 if images == "mnist" else FASHION_MD5


def find_images(
    images: Images,
    source: Path | None,
    downloads: Path,
    *,
    offline: bool,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Find the four files of a corpus, or fetch them; their content is not looked at yet.

    Looked through are ``source`` and the folders in it that other programs use (``MNIST/raw``, ``mnist``, ``raw``;
    ``FashionMNIST/raw``, ``data/fashion``, ...), then ``downloads/mnist`` or ``downloads/fashion_mnist``, for the
    files' published names, also spelled with a dot (``train-images.idx3-ubyte``), plain or ``.gz``.

    Raises:
        DataError: they are nowhere and may not or cannot be fetched, or a folder holds only some of them.
        ResourceError: the folder for downloads cannot be written.
    """
    title, names = TITLES[images], published(images)
    if source is not None and not source.is_dir():
        raise DataError(f"{source}: no such folder; name one that holds {title} with --source")
    folders = [] if source is None else [source / part for part in _FOLDERS[images]]
    for folder in folders:
        found = _look(folder, names)
        if len(found) == len(names):
            return found
        if found:
            missing = ", ".join(name for name in names if name not in found)
            raise DataError(
                f"{folder}: holds some of {title} but not {missing}; put the missing files there too"
            )
    own = downloads / images
    found = _look(own, names)
    for name in names:
        if name not in found:
            resource = f"{images}/{name}"
            if source is not None:  # the user meant their own copy
                raise catalogue.missing(resource, [*folders, own])
            found[name] = catalogue.obtain(resource, downloads, offline=offline, progress=progress)
    return found


def read_images(images: Images, files: Mapping[str, Path]) -> dict[str, NDArray[np.uint8]]:
    """Read the files that :func:`find_images` found, refusing whatever is not that corpus to the byte.

    Returns:
        Under the published names: images (N, 28, 28) and labels (N,), uint8.

    Raises:
        DataError: a file is damaged, or is the other corpus, another file of it, or something else.
    """
    arrays = {}
    for name, expected in published(images).items():
        content = read_idx(files[name])
        if expected not in (content.sha256, content.md5):
            raise _not_this(files[name], content, images, name)
        arrays[name] = content.values
    return arrays


def _not_this(path: Path, content: IdxFile, images: Images, name: str) -> DataError:
    title = TITLES[images]
    for other in TITLES:
        for file, expected in published(other).items():
            if expected not in (content.sha256, content.md5):
                continue
            if other == images:
                return DataError(
                    f"{path}: this is {title}'s {file} where {name} belongs; give the files their own names"
                )
            return DataError(
                f"{path}: this is {TITLES[other]}, not {title}; name a folder with {title} by --source, or set "
                f"task.images={other}"
            )
    return DataError(
        f"{path}: the hash of the content does not match {title} (SHA-256 {content.sha256[:16]}..., MD5 "
        f"{content.md5[:8]}..., where {published(images)[name][:16]}... is published); delete the file and run "
        "again, or name another folder with --source"
    )


def _look(folder: Path, names: Mapping[str, str]) -> dict[str, Path]:
    found = {}
    for name in names:
        for spelling in (name, name.replace("-idx", ".idx")):
            for path in (folder / spelling, folder / f"{spelling}.gz"):
                try:
                    if name not in found and path.is_file():
                        found[name] = path
                except OSError as error:
                    raise DataError(
                        f"{path}: cannot look here ({error.strerror}); mend the permissions"
                    ) from None
    return found
