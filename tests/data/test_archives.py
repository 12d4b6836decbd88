import bz2
import gzip
import io
import lzma
import random
import stat
import struct
import tarfile
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from seqpyramid.data import archives
from seqpyramid.data.archives import extract
from seqpyramid.errors import DataError, ResourceError

FILES = {
    "corpus/a.txt": b"one\n",
    "corpus/deep/er/b.bin": bytes(range(256)) * 40,
    "corpus/empty": b"",
    "ü 日.txt": b"2",
}
LIMITS = {"max_bytes": 100_000, "max_files": 50}


def tar_bytes(*members: tarfile.TarInfo, content: bytes = b"x", **options: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(content[: member.size]))
    return stream.getvalue()


def info(
    name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, link: str = "", mode: int = 0o644
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname, member.mode = kind, size, link, mode
    return member


def good_tar(**options: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        tar.addfile(info("./corpus/", tarfile.DIRTYPE, mode=0o2755))
        for name, content in FILES.items():
            tar.addfile(info(name, size=len(content), mode=0o400), io.BytesIO(content))
    return stream.getvalue()


def zip_bytes(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def zip_info(name: str, mode: int, system: int = 3) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr, member.create_system = mode << 16, system
    return member


def good_zip(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    return zip_bytes(("corpus/", b""), *FILES.items(), method=method)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder but locks; content of files, None for folders, the target of links."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".lock":
            continue
        name = str(path.relative_to(folder))
        found[name] = (
            str(path.readlink()).encode()
            if path.is_symlink()
            else None
            if path.is_dir()
            else path.read_bytes()
        )
    return found


def room(tmp_path: Path, content: bytes) -> tuple[Path, Path]:
    """An archive, and a target among neighbours that must stay as they are."""
    archive, target = tmp_path / "archive", tmp_path / "home" / "corpora" / "target"
    archive.write_bytes(content)
    target.parent.mkdir(parents=True)
    (tmp_path / "home" / "precious").write_text("stays")
    return archive, target


def refused(tmp_path: Path, content: bytes, says: str, **options: object) -> str:
    archive, target = room(tmp_path, content)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=says) as caught:
        extract(archive, target, **{**LIMITS, **options})
    assert tree(tmp_path) == before
    message = str(caught.value)
    assert message.startswith(f"{archive}: ")
    assert "\n" not in message
    assert "fetch" in message
    return message


KINDS: dict[str, Callable[[], bytes]] = {
    "tar": good_tar,
    "tar of gnu": lambda: good_tar(format=tarfile.GNU_FORMAT),
    "tar of pax": lambda: good_tar(format=tarfile.PAX_FORMAT),
    "gz": lambda: gzip.compress(good_tar()),
    "bz2": lambda: bz2.compress(good_tar()),
    "xz": lambda: lzma.compress(good_tar()),
    "zip": good_zip,
    "zip stored": lambda: good_zip(zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_it_comes_out(tmp_path: Path, kind: str) -> None:
    archive, target = room(tmp_path, KINDS[kind]())
    said: list[tuple[str, int, int]] = []
    assert extract(archive, target, **LIMITS, progress=lambda *words: said.append(words)) == target
    found = tree(target)
    assert {name: content for name, content in found.items() if content is not None} == FILES
    assert found["corpus/deep"] is None
    assert [path.name for path in target.parent.iterdir() if path.suffix != ".lock"] == ["target"]
    assert said[-1] == ("unpack archive", archive.stat().st_size, archive.stat().st_size)
    mode = stat.S_IMODE((target / "corpus" / "a.txt").stat().st_mode)
    (tmp_path / "plain").touch()
    assert mode == stat.S_IMODE((tmp_path / "plain").stat().st_mode)  # the archive's 0400 is not taken
    assert not (target / "corpus").stat().st_mode & stat.S_ISGID


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    archive, target = room(tmp_path, good_zip())
    target.mkdir()
    assert extract(archive, target, **LIMITS) == target
    assert list(target.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    archive, target = room(tmp_path, good_zip())
    part = target.with_name(".target.part")
    part.mkdir()
    (part / "half").write_text("half")
    assert "half" not in tree(extract(archive, target, **LIMITS))
    assert not part.exists()


def test_a_link_in_place_of_the_part_is_not_followed(tmp_path: Path) -> None:
    archive, target = room(tmp_path, good_zip())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "keep").write_text("stays")
    target.with_name(".target.part").symlink_to(tmp_path / "elsewhere")
    extract(archive, target, **LIMITS)
    assert tree(tmp_path / "elsewhere") == {"keep": b"stays"}


def test_four_at_once(tmp_path: Path) -> None:
    archive, target = room(tmp_path, good_zip())
    threads = [threading.Thread(target=extract, args=(archive, target), kwargs=LIMITS) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: content for name, content in tree(target).items() if content is not None} == FILES


NAMES = {
    "../evil": "leads out",
    "corpus/../../evil": "leads out",
    "/tmp/evil": "absolute",
    "//host/share": "absolute",
    "C:/evil": "absolute",
    "c:evil": "absolute",
    "a\\..\\..\\evil": "backslash",
    "\\\\host\\share": "backslash",
    "a\nb": "control character",
    "a\x7fb": "control character",
    "n" * 256: "too long",
    "ü" * 128: "too long",
    "/".join("d" * 33): "too long",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda n: ascii(n[:20]))
@pytest.mark.parametrize("kind", ["tar", "zip", "tar folder", "zip folder"])
def test_names_that_lead_elsewhere(tmp_path: Path, name: str, kind: str) -> None:
    if kind.startswith("tar"):
        content = tar_bytes(
            info("fine"), info(name, tarfile.DIRTYPE if "folder" in kind else tarfile.REGTYPE)
        )
    else:
        content = zip_bytes(("fine", b"x"), (name + "/" * ("folder" in kind), b""))
    message = refused(tmp_path, content, NAMES[name])
    assert ascii(name[:100]).strip("'") in message


def test_a_zero_byte_in_a_name(tmp_path: Path) -> None:
    content = zip_bytes(("aXb", b"x")).replace(b"aXb", b"a\0b")
    refused(tmp_path, content, "control character")


@pytest.mark.parametrize("raw", [b"caf\xe9.txt", b"\xff\xfe"])
def test_names_that_are_not_utf_8(tmp_path: Path, raw: bytes) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    tarred = tar_bytes(info(name), encoding="utf-8", errors="surrogateescape", format=tarfile.GNU_FORMAT)
    (tmp_path / "tar").mkdir()
    refused(tmp_path / "tar", tarred, "not UTF-8")
    zipped = zip_bytes(("N" * len(raw), b"x")).replace(b"N" * len(raw), raw)
    refused(tmp_path, zipped, "not UTF-8")


def test_a_zip_that_keeps_quiet_about_utf_8(tmp_path: Path) -> None:
    raw = "ü日".encode()
    archive, target = room(tmp_path, zip_bytes(("N" * len(raw), b"x")).replace(b"N" * len(raw), raw))
    assert tree(extract(archive, target, **LIMITS)) == {"ü日": b"x"}


def test_a_zip_that_claims_utf_8_wrongly(tmp_path: Path) -> None:
    raw = "ü日".encode()
    refused(tmp_path, zip_bytes(("ü日", b"x")).replace(raw, b"\xff" * len(raw)), "damaged")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([info("s", tarfile.SYMTYPE, link="../../precious")], "'s' is a link to '../../precious'"),
        ([info("s", tarfile.SYMTYPE, link="/etc/passwd")], "link to '/etc/passwd'"),
        ([info("s", tarfile.SYMTYPE, link="fine")], "link to 'fine'"),
        ([info("s", tarfile.SYMTYPE, link=".."), info("s/through", size=1)], "'s' is a link"),
        ([info("h", tarfile.LNKTYPE, link="../../precious")], "link to"),
        ([info("h", tarfile.LNKTYPE, link="fine")], "link to"),
        ([info("d", tarfile.CHRTYPE)], "'d' is a device"),
        ([info("d", tarfile.BLKTYPE)], "is a device"),
        ([info("f", tarfile.FIFOTYPE)], "is a FIFO"),
        ([info("o", b"Z")], "neither a plain file"),
        ([info("r", size=1, mode=0o4755)], "another user's rights"),
        ([info("r", size=1, mode=0o2755)], "another user's rights"),
        ([info("a", size=1), info("a", size=1)], "same name as 'a'"),
        ([info("a", size=1), info("./a", size=1)], "same name as 'a'"),
        ([info("a/B", size=1), info("a/b", size=1)], "same name as 'a/B'"),
        ([info("A/x", size=1), info("a/y", size=1)], "same name as 'A'"),
        ([info("a", size=1), info("a/b", size=1)], "same name as 'a'"),
        ([info("a/b", size=1), info("a", size=1)], "same name as 'a'"),
        ([info("\u00e9", size=1), info("e\u0301", size=1)], "same name as"),
        ([info("straße", size=1), info("STRASSE", size=1)], "same name as"),
        ([info(".", size=1)], "has no name"),
    ],
)
def test_members_of_a_tar_that_no_corpus_has(
    tmp_path: Path, members: list[tarfile.TarInfo], says: str
) -> None:
    content = tar_bytes(info("fine", size=1), *members)
    refused(tmp_path, content, says)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([(zip_info("s", stat.S_IFLNK | 0o777), b"../../precious")], "'s' is a link"),
        ([(zip_info("s", stat.S_IFLNK | 0o777, system=0), b"/etc")], "'s' is a link"),
        ([(zip_info("d", stat.S_IFCHR | 0o666), b"")], "a device or a FIFO"),
        ([(zip_info("f", stat.S_IFIFO | 0o666), b"")], "a device or a FIFO"),
        ([(zip_info("r", stat.S_IFREG | 0o4755), b"x")], "another user's rights"),
        ([(zip_info("x", stat.S_IFDIR | 0o755), b"x")], "a file by its name"),
        ([("a", b"1"), ("a", b"2")], "same name as 'a'"),
        ([("a/B", b"1"), ("a/b", b"2")], "same name as 'a/B'"),
        ([("A/x", b"1"), ("a/y", b"2")], "same name as 'A'"),
        ([("a", b"1"), ("a/b", b"2")], "same name as 'a'"),
        ([("./", b""), (".", b"2")], "has no name"),
    ],
)
def test_members_of_a_zip_that_no_corpus_has(
    tmp_path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]], says: str
) -> None:
    refused(tmp_path, zip_bytes(("fine", b"x"), *members), says)


def test_a_sparse_file(tmp_path: Path) -> None:
    header = bytearray(info("holes", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 2**32  # the real size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    refused(tmp_path, bytes(header) + bytes(1024), "neither a plain file", max_bytes=2**40)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_whose_memory_has_no_bound(tmp_path: Path, method: int) -> None:
    refused(tmp_path, zip_bytes(("a", b"x"), method=method), "another method than deflate")


def test_more_bytes_than_the_corpus_has(tmp_path: Path) -> None:
    for number, content in enumerate(
        [
            zip_bytes(("a", b"x" * 60), ("b", b"x" * 41)),
            gzip.compress(tar_bytes(info("a", size=60), info("b", size=41), content=b"x" * 60)),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        refused(tmp_path / str(number), content, "'b' brings it above the 100 bytes", max_bytes=100)
        archive = tmp_path / str(number) / "archive"
        assert extract(archive, tmp_path / str(number) / "all", max_bytes=101, max_files=2).is_dir()


@pytest.mark.parametrize("announced", [0, 101])
def test_neither_a_header_nor_the_bytes_alone_are_believed(tmp_path: Path, announced: int) -> None:
    content = io.BytesIO(bytes(1_000_000))
    out = archives._Folder(tmp_path / "archive", tmp_path, max_bytes=100, max_files=1)
    with pytest.raises(DataError, match="'a' brings it above the 100 bytes"):
        out.file("a", content, announced)
    assert content.tell() == (archives._CHUNK_BYTES if announced == 0 else 0)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


BOMB = bytes(20_000_000)


@pytest.mark.parametrize("lie", [False, True])
@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_bombs_cost_neither_disk_nor_memory(tmp_path: Path, kind: str, lie: bool) -> None:
    if kind == "zip":
        content = zip_bytes(("bomb", BOMB))
        if lie:  # a small size in both headers
            content = content.replace(struct.pack("<L", len(BOMB)), struct.pack("<L", 10))
    else:
        member = info("bomb", size=len(BOMB))
        pack = {"tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}[kind]
        whole = tar_bytes(member, content=BOMB)
        if lie:  # a name of 20 MB in front of the real one
            member = info("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=len(BOMB))
            whole = member.tobuf(tarfile.GNU_FORMAT) + BOMB + bytes(480)
        content = pack(whole)
    assert len(content) < len(BOMB) / 500
    tracemalloc.start()
    try:
        refused(tmp_path, content, "damaged" if lie else "'bomb' brings it above")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_an_xz_that_demands_a_large_memory(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**28}]
    small = lzma.compress(good_tar(), filters=[{**filters[0], "dict_size": 2**20}])
    place = (
        small.index(bytes([0x21, 0x01])) + 2
    )  # the filter's properties: one byte for the dictionary's size
    assert small[place] == 16
    header_end = 12 + (small[12] + 1) * 4
    large = bytearray(small)
    large[place] = 32  # 2**28
    large[header_end - 4 : header_end] = struct.pack("<L", zlib.crc32(large[12 : header_end - 4]))
    refused(tmp_path, bytes(large), "[Mm]emory")


def test_a_million_tiny_files(tmp_path: Path) -> None:
    """All that counts is that the cap stops it: as many as fit into a test of a second."""
    for number, content in enumerate(
        [
            gzip.compress(tar_bytes(*(info(f"{n}") for n in range(3000)))),
            zip_bytes(*((f"{n}", b"") for n in range(3000))),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        refused(tmp_path / str(number), content, "more than 50 members")
    (tmp_path / "folders").mkdir()
    refused(
        tmp_path / "folders", tar_bytes(*(info(f"{n}", tarfile.DIRTYPE) for n in range(51))), "more than 50"
    )


def test_the_directory_of_a_zip_is_counted_before_it_is_read(tmp_path: Path) -> None:
    entry = b"PK\1\2" + bytes(24) + struct.pack("<3H", 1, 0, 0) + bytes(12) + b"n"
    directory = entry * 300_000
    lie = struct.pack("<4s4H2LH", b"PK", 0, 0, 1, 1, len(directory), 4, 0)
    archive, target = room(tmp_path, b"PK" + directory + lie)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 50 members"):
            extract(archive, target, **LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_zip_with_large_offsets_is_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # what zipfile writes for more than 2 GiB
    archive, target = room(tmp_path, good_zip())
    assert b"PK\6\6" in archive.read_bytes()
    with pytest.raises(DataError, match="more than 4 members"):
        extract(archive, target, max_bytes=100_000, max_files=4)
    extract(archive, target, max_bytes=100_000, max_files=5)
    assert tree(target)["corpus/a.txt"] == b"one\n"


ENCRYPTED = bytes.fromhex(
    "504b03040a0009000000000021509fa817f8100000000400000005000000612e747874fc8957db0ea081ec9697d2ad737a49"
    "4a504b07089fa817f81000000004000000504b01021e030a0009000000000021509fa817f810000000040000000500000000"
    "00000001000000a48100000000612e747874504b0506000000000100010033000000430000000000"
)
"""a.txt, "one" and a newline, encrypted by Info-ZIP with the password "someone"."""


def test_an_encrypted_zip(tmp_path: Path) -> None:
    archive, target = room(tmp_path, ENCRYPTED)
    with pytest.raises(DataError, match=r"'a\.txt' is encrypted"):
        extract(archive, target, **LIMITS)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["tar", "gz", "bz2", "xz", "zip"])
def test_cut_anywhere(tmp_path: Path, kind: str) -> None:
    good = KINDS[kind]()
    ends = sorted({len(good) * n // 12 for n in range(12)} | {len(good) - 1})
    if kind == "tar":  # what follows the two blocks of zeros is padding
        ends = [end // 512 * 512 for end in ends if end < len(good.rstrip(b"\0")) // 512 * 512 + 512]
    for end in ends:
        place = tmp_path / str(end)
        place.mkdir(exist_ok=True)
        if not (place / "archive").exists():
            refused(place, good[:end], "archive")


@pytest.mark.parametrize("kind", ["tar", "gz", "bz2", "xz", "zip"])
def test_flipped_bytes_are_refused_or_harmless(tmp_path: Path, kind: str) -> None:
    """No fault of the readers escapes as a traceback, and nothing is written anywhere else."""
    good, draw = KINDS[kind](), random.Random(0)
    target = tmp_path / "home" / "target"
    archive = tmp_path / "archive"
    refusals = 0
    for _ in range(100):
        bad = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        archive.write_bytes(bad)
        try:
            extract(archive, target, **LIMITS)
        except DataError as error:
            refusals += 1
            assert "\n" not in str(error)  # noqa: PT017
            assert not target.exists()
        else:
            target.rename(tmp_path / "home" / f"{draw.random()}")
    assert refusals >= (10 if kind == "tar" else 65)  # a plain tar guards its headers alone
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "home"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"<html>log in</html>",
        b"\x1f\x8b",
        b"PK\3\4",
        b"PK\5\6" + bytes(18),
        gzip.compress(b"text", mtime=0),
        bytes(10_240),
    ],
)
def test_what_is_no_archive_or_empty(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, content, "archive|holds no file")


def test_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such archive"):
        extract(tmp_path / "none", tmp_path / "target", **LIMITS)
    with pytest.raises(DataError, match="cannot be read"):
        extract(tmp_path, tmp_path / "target", **LIMITS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, target = room(tmp_path, good_zip())
    before = tree(tmp_path)
    real = Path.open

    def full(path: Path, mode: str = "r", *rest: object, **options: object) -> object:
        return real(Path("/dev/full"), "wb") if mode == "xb" else real(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ResourceError, match="No space left"):
        extract(archive, target, **LIMITS)
    monkeypatch.undo()
    assert tree(tmp_path) == before


def test_a_file_in_place_of_the_target(tmp_path: Path) -> None:
    archive, target = room(tmp_path, good_zip())
    target.write_text("in the way")
    with pytest.raises(ResourceError, match="target"):
        extract(archive, target, **LIMITS)
    assert target.read_text() == "in the way"


def test_stopping_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, target = room(tmp_path, good_zip())
    before = tree(tmp_path)
    monkeypatch.setattr(archives, "_PROGRESS_BYTES", 1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(archive, target, **LIMITS, progress=stop)
    assert tree(tmp_path) == before
