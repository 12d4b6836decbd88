"""IDX files, the format of MNIST, and MNIST itself: where it may lie, and whether it is the real one.

An IDX file is, big-endian: two zero bytes, a type code (8 is uint8), the number of dimensions, each dimension as
uint32, and the values. Files are read plain or gzipped, whatever they are called.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from seqpyramid.data.download import fetch
from seqpyramid.errors import DataError

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""Of the uncompressed content: archives of the same content differ in their gzip headers."""

MNIST_GZ_MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
"""Of the archives on the mirror."""

FASHION_GZ_MD5 = ("8d4fb7e6", "25c81989", "bef4ecab", "bb300cfd")
"""First eight digits of Fashion-MNIST's archives, which carry the same names."""

Progress = Callable[[str, int, int], None]

_UINT8 = 8
_MAX_BYTES = 2**28
"""Five times the largest file of MNIST; a header that announces more is damaged or hostile."""
_READ_BYTES = 2**20
_GZIP = b"\x1f\x8b"


def read_idx(path: Path) -> tuple[NDArray[np.uint8], str]:
    """Read an IDX file of uint8 values, plain or gzipped.

    Returns:
        The array in the file's shape, and the SHA-256 (64 hex digits) of the uncompressed content.

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


def _parse(path: Path, stream: IO[bytes] | gzip.GzipFile) -> tuple[NDArray[np.uint8], str]:
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
    digest = hashlib.sha256(magic + sizes)
    digest.update(content)
    return np.frombuffer(bytes(content), dtype=np.uint8).reshape(shape), digest.hexdigest()


def find_mnist(
    source: Path | None, downloads: Path, *, offline: bool, progress: Progress | None = None
) -> dict[str, Path]:
    """Find the four files of MNIST, or fetch them; their content is not looked at yet.

    Looked through are ``source``, its ``MNIST/raw``, ``mnist`` and ``raw``, then ``downloads/mnist``, for the names
    of :data:`MNIST_SHA256`, also spelled with a dot (``train-images.idx3-ubyte``), plain or ``.gz``.

    Raises:
        DataError: they are nowhere and may not or cannot be fetched, or a folder holds only some of them.
        ResourceError: the folder for downloads cannot be written.
    """
    if source is not None and not source.is_dir():
        raise DataError(f"{source}: no such folder; name one that holds MNIST with --source")
    folders = [] if source is None else [source / part for part in ("", "MNIST/raw", "mnist", "raw")]
    for folder in folders:
        found = _look(folder)
        if len(found) == len(MNIST_SHA256):
            return found
        if found:
            missing = ", ".join(name for name in MNIST_SHA256 if name not in found)
            raise DataError(
                f"{folder}: holds some of MNIST but not {missing}; put the missing files there too"
            )
    own = downloads / "mnist"
    found = _look(own)
    if (offline or source is not None) and len(found) < len(MNIST_SHA256):
        places = ", ".join(str(folder) for folder in (*folders, own))
        wish = (
            "--offline forbids to fetch it; name" if offline else "nothing is fetched beside --source; name"
        )
        raise DataError(
            f"MNIST ({', '.join(MNIST_SHA256)}) is in none of {places}, and {wish} the folder that holds the "
            "four files with --source"
        )
    for done, name in enumerate(MNIST_SHA256):
        if name not in found:
            if progress is not None:
                progress(f"download {name}.gz", done, len(MNIST_SHA256))
            found[name] = own / f"{name}.gz"
            fetch(f"{MIRROR}{name}.gz", found[name], MNIST_GZ_MD5[name])
    return found


def read_mnist(files: dict[str, Path]) -> dict[str, NDArray[np.uint8]]:
    """Read the files that :func:`find_mnist` found, refusing whatever is not MNIST to the byte.

    Returns:
        Under the names of :data:`MNIST_SHA256`: images (N, 28, 28) and labels (N,), uint8.

    Raises:
        DataError: a file is damaged, or is Fashion-MNIST or something else under MNIST's name.
    """
    arrays = {}
    for name, expected in MNIST_SHA256.items():
        path = files[name]
        arrays[name], found = read_idx(path)
        if found == expected:
            continue
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if md5.startswith(FASHION_GZ_MD5):
            raise DataError(
                f"{path}: this is Fashion-MNIST under MNIST's name; name a folder with MNIST by --source"
            )
        raise DataError(
            f"{path}: the hash of the content does not match MNIST (SHA-256 {found[:16]}..., not {expected[:16]}...); "
            "delete the file and run again, or name another folder with --source"
        )
    return arrays


def _look(folder: Path) -> dict[str, Path]:
    found = {}
    for name in MNIST_SHA256:
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
