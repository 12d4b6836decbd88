"""The public corpora: where each archive is, how it is told from others, and what to do where it cannot be fetched.

Sizes and hashes are the publishers' or those that widely used loaders check against; what nobody has published stays
None. An archive is downloaded only where a hash can prove it, whatever the address (so a mirror over plain http does
no harm). Without a hash nothing is fetched: the user puts the archive in place by hand, and it is taken as it is, for
the task that reads it to judge.

VCTK 0.80 is a trap: the MD5 in circulation belongs to ``VCTK-Corpus.tar.gz``, not to the zip that its publisher
offers today under the same title, for which no hash is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from seqpyramid.data.download import Hash, fetch, verify
from seqpyramid.data.progress import Progress
from seqpyramid.errors import DataError


@dataclass(frozen=True)
class Resource:
    """One archive of a corpus."""

    name: str
    """``corpus``, or ``corpus/part`` where it comes in several files."""
    title: str
    urls: tuple[str, ...]
    """Mirrors of the same bytes, in the order in which they are tried; none where one has to register."""
    file_name: str
    size: int | None
    """In bytes."""
    sha256: str | None
    md5: str | None
    licence: str
    manual: str
    """How to get it by hand: where, which file, and which folder to name with ``--source``."""

    @property
    def hash(self) -> Hash | None:
        """The strongest one known."""
        if self.sha256 is not None:
            return Hash("sha256", self.sha256)
        return None if self.md5 is None else Hash("md5", self.md5)

    @property
    def fetchable(self) -> bool:
        """Whether it has an address and a hash."""
        return bool(self.urls) and self.hash is not None

    def folder(self, downloads: Path) -> Path:
        """Where it is fetched to and looked for; the parts of one corpus share it."""
        return downloads / self.name.split("/")[0]


def obtain(name: str, downloads: Path, *, offline: bool, progress: Progress | None = None) -> Path:
    """Return a corpus's archive under ``downloads/CORPUS/``, fetched if need be; its hash is right where one is known.

    Args:
        name: a key of :data:`RESOURCES`.
        downloads: folder of all downloads.
        offline: fetch nothing.
        progress: hears how many bytes have come or been checked.

    Raises:
        DataError: it is not there and may not or cannot be fetched, or what is there is something else.
        ResourceError: the disk is full, or the folder cannot be written or read.
    """
    resource = RESOURCES[name]
    path = resource.folder(downloads) / resource.file_name
    if path.exists():
        if resource.hash is not None:
            verify(path, resource.hash, progress=progress)
        return path
    if offline or not resource.urls or resource.hash is None:
        raise missing(name, [path.parent])
    fetch(resource.urls, path, expected=resource.hash, size=resource.size, progress=progress)
    return path


def missing(name: str, looked_in: Sequence[Path]) -> DataError:
    """Say in one sentence which archive is missing, where it was looked for, and how to get it.

    Args:
        name: a key of :data:`RESOURCES`.
        looked_in: the folders.
    """
    resource = RESOURCES[name]
    places = ", ".join(str(place) for place in looked_in)
    where = f"not in {places}" if len(looked_in) == 1 else f"in none of {places}"
    fetching = (
        ", or run again without --offline and --source to have it fetched" if resource.fetchable else ""
    )
    return DataError(
        f"{resource.title} (licence: {resource.licence}): {resource.file_name} is {where}; {resource.manual}{fetching}"
    )


def _images(
    corpus: str, title: str, bases: Sequence[str], licence: str, files: Mapping[str, tuple[int, str]]
) -> list[Resource]:
    """The four gzipped IDX files of a corpus; ``files`` tells the size and the MD5 of each."""
    manual = f"name the folder that holds the four files of {title}, gzipped or not, with --source"
    return [
        Resource(
            name=f"{corpus}/{file}",
            title=title,
            urls=tuple(f"{base}{file}.gz" for base in bases),
            file_name=f"{file}.gz",
            size=size,
            sha256=None,
            md5=md5,
            licence=licence,
            manual=manual,
        )
        for file, (size, md5) in files.items()
    ]


_ALL = [
    *_images(
        "mnist",
        "MNIST",
        ["https://ossci-datasets.s3.amazonaws.com/mnist/"],
        "CC BY-SA 3.0",
        {
            "train-images-idx3-ubyte": (9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            "train-labels-idx1-ubyte": (28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
            "t10k-images-idx3-ubyte": (1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
            "t10k-labels-idx1-ubyte": (4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
        },
    ),
    *_images(
        "fashion_mnist",
        "Fashion-MNIST",
        [
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ],
        "MIT",
        {
            "train-images-idx3-ubyte": (26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            "train-labels-idx1-ubyte": (29_515, "25c81989df183df01b3e8a0aad5dffbe"),
            "t10k-images-idx3-ubyte": (4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
            "t10k-labels-idx1-ubyte": (5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
        },
    ),
    Resource(
        name="vctk_080",
        title="VCTK 0.80",
        urls=(
            "http://www.udialogue.org/download/VCTK-Corpus.tar.gz",
            "http://homepages.inf.ed.ac.uk/jyamagis/release/VCTK-Corpus.tar.gz",
        ),
        file_name="VCTK-Corpus.tar.gz",
        size=None,
        sha256=None,
        md5="45e8dede780278ef5541fde0b82ac292",
        licence="see COPYING in the archive",
        manual=(
            "fetch VCTK-Corpus.zip (about 10 GB) from https://datashare.ed.ac.uk/handle/10283/2651, unpack it "
            "and name the folder VCTK-Corpus with --source"
        ),
    ),
    Resource(
        name="vctk_092",
        title="VCTK 0.92",
        urls=("https://datashare.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip",),
        file_name="VCTK-Corpus-0.92.zip",
        size=11_747_302_977,
        sha256="f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c",
        md5="8a6ba2946b36fcbef0212cad601f4bfa",
        licence="CC BY 4.0",
        manual=(
            "fetch VCTK-Corpus-0.92.zip (11.7 GB) from https://datashare.ed.ac.uk/handle/10283/3443, unpack it into "
            "a folder and name that with --source"
        ),
    ),
    Resource(
        name="ptb",
        title="Penn Treebank in Mikolov's preparation",
        urls=(),
        file_name="simple-examples.tgz",
        size=None,
        sha256=None,
        md5=None,
        licence="LDC; never pass it on",
        manual=(
            "fetch simple-examples.tgz from http://www.fit.vutbr.cz/~imikolov/rnnlm/ if your licence of the treebank "
            "allows it, unpack it and name its folder data with --source"
        ),
    ),
    Resource(
        name="text8",
        title="text8",
        urls=("http://mattmahoney.net/dc/text8.zip",),
        file_name="text8.zip",
        size=31_344_016,
        sha256="a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        md5="f26f94c5209bc6159618bad4a559ff81",
        licence="the text is Wikipedia's",
        manual=(
            "fetch text8.zip from http://mattmahoney.net/dc/textdata.html, unpack it and name the folder that holds "
            "text8 with --source"
        ),
    ),
    Resource(
        name="enwik8",
        title="enwik8",
        urls=("http://mattmahoney.net/dc/enwik8.zip",),
        file_name="enwik8.zip",
        size=36_445_475,
        sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        md5=None,
        licence="the text is Wikipedia's",
        manual=(
            "fetch enwik8.zip from http://mattmahoney.net/dc/textdata.html, unpack it and name the folder that holds "
            "enwik8 with --source"
        ),
    ),
    Resource(
        name="iam_ondb",
        title="IAM-OnDB",
        urls=(),
        file_name="lineStrokes-all.tar.gz",
        size=None,
        sha256=None,
        md5=None,
        licence="registration, non-commercial research only",
        manual=(
            "register at https://fki.tic.heia-fr.ch/databases/download-the-iam-on-line-handwriting-database, fetch "
            "lineStrokes-all.tar.gz, unpack it and name the folder that holds lineStrokes with --source"
        ),
    ),
]

RESOURCES: Mapping[str, Resource] = MappingProxyType({resource.name: resource for resource in _ALL})
"""By name; a corpus of several files has one entry for each."""
