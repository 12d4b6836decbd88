"""Unpack an archive of a corpus, taking nothing from it but names and bytes.

Every member is written by this module: a new file with the permissions of any new file, under a checked name. Links,
devices, owners and permissions never reach the disk, which is stricter than ``filter="data"`` of tarfile (that lets
links inside pass, comes with Python 3.11.4 only, and zipfile has nothing of the kind). What a corpus has no use for is
refused, and an archive with one such member is refused whole:

* names that are absolute, lead up (``..``), hold a drive letter, a backslash or a control character, are not UTF-8,
  are longer than file systems take, or fall together on a file system that ignores case or Unicode composition;
* links, devices, FIFOs, sparse files, and files that run with another user's rights (setuid, setgid);
* more files or bytes than the caller expects. Bytes are counted as they come out, whatever the headers say.

The files are written into ``.TARGET.part`` beside the target, which is renamed once it is complete.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import IO, Protocol

from seqpyramid.data.locks import only_builder
from seqpyramid.data.progress import Progress
from seqpyramid.errors import DataError
from seqpyramid.rundir import resource_error

_CHUNK_BYTES = 2**18
_PROGRESS_BYTES = 2**24
_HEADER_BYTES = 2**20
"""The longest name or comment of a tar member that is read at once."""
_XZ_MEMORY = 2**27
"""xz decoders need as much memory as the archive demands; its strongest preset demands 65 MiB."""
_NAME_BYTES = 255
_DEPTH = 32
_ODD = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:|^/")
_RIGHTS = stat.S_ISUID | stat.S_ISGID
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RecursionError,
)
"""What tarfile, zipfile and the decoders raise over bytes that make no sense."""


def extract(
    archive: Path,
    target: Path,
    *,
    max_bytes: int,
    max_files: int,
    progress: Progress | None = None,
) -> Path:
    """Unpack a tar (plain, gz, bz2 or xz) or zip archive into a new folder, unless that is there already.

    Args:
        archive: told by its first bytes, whatever it is called.
        target: the folder to make; it appears only when everything is in it.
        max_bytes: the most that the files may hold together.
        max_files: the most members, folders among them, that the archive may have.
        progress: hears how many bytes of the archive are done.

    Returns:
        ``target``.

    Raises:
        DataError: the archive is missing, damaged, or holds something that is refused; nothing is left behind.
        ResourceError: the disk is full or the folder cannot be written.
    """
    with only_builder(target):
        if target.is_dir():
            return target
        part = target.with_name(
            f".{target.name}.part"
        )  # one name is enough: only the lock's holder writes it
        try:
            _clear(part)
            part.mkdir()
            out = _Folder(archive, part, max_bytes=max_bytes, max_files=max_files)
            _unpack(archive, out, progress)
            part.replace(target)
        except OSError as error:
            raise resource_error(error, target) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Folder:
    """The folder that is being filled; everything that the archive asks for is checked here."""

    def __init__(self, archive: Path, root: Path, *, max_bytes: int, max_files: int) -> None:
        self.archive, self.root = archive, root
        self.max_bytes, self.max_files = max_bytes, max_files
        self.bytes, self.files, self._members = 0, 0, 0
        self._folders: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def refuse(self, name: str, fault: str) -> DataError:
        """Say what is wrong with a member."""
        shown = ascii(name if len(name) <= 200 else f"{name[:200]}...")
        return DataError(
            f"{self.archive}: its member {shown} {fault}, so nothing of it is unpacked; fetch the archive again from "
            "where its corpus is published"
        )

    def too_many(self) -> DataError:
        """Say that there are more members than the corpus has."""
        return DataError(
            f"{self.archive}: it has more than {self.max_files:,} members, so it is not the corpus and nothing of it "
            "is unpacked; fetch the archive again from where its corpus is published"
        )

    def folder(self, name: str) -> None:
        """Make a folder, and those above it."""
        self._count()
        self._make(name, self._parts(name))

    def file(self, name: str, content: _Readable, announced: int) -> None:
        """Write a file; ``announced`` is the size in its header, which is believed only where it is too large."""
        self._count()
        parts = self._parts(name)
        if not parts:
            raise self.refuse(name, "has no name")
        self._make(name, parts[:-1])
        key = _key(parts)
        if key in self._names or key in self._folders:
            raise self.refuse(name, f"has the same name as {self._names.get(key) or self._folders[key]!r}")
        self._names[key] = "/".join(parts)
        if self.bytes + announced > self.max_bytes:
            raise self._too_much(name)
        self._write(name, self.root.joinpath(*parts), content)
        self.files += 1

    def _count(self) -> None:
        self._members += 1
        if self._members > self.max_files:
            raise self.too_many()

    def _too_much(self, name: str) -> DataError:
        return self.refuse(name, f"brings it above the {self.max_bytes:,} bytes that the corpus may have")

    def _parts(self, name: str) -> list[str]:
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in name):  # what Python makes of undecodable bytes
            raise self.refuse(name, "has a name that is not UTF-8")
        if _ODD.search(name):
            raise self.refuse(name, "has a name that is absolute or holds a backslash or a control character")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self.refuse(name, "leads out of the folder")
        if len(parts) > _DEPTH or any(len(part.encode()) > _NAME_BYTES for part in parts):
            raise self.refuse(name, "has a name that is too long")
        return parts

    def _make(self, name: str, parts: list[str]) -> None:
        for depth in range(1, len(parts) + 1):
            key, spelled = _key(parts[:depth]), "/".join(parts[:depth])
            if key in self._names or self._folders.get(key, spelled) != spelled:
                raise self.refuse(
                    name, f"has the same name as {self._names.get(key) or self._folders[key]!r}"
                )
            if key not in self._folders:
                self._folders[key] = spelled
                try:
                    self.root.joinpath(*parts[:depth]).mkdir()
                except OSError as error:
                    raise resource_error(error, self.root) from None

    def _write(self, name: str, path: Path, content: _Readable) -> None:
        try:
            stream = path.open("xb")
        except OSError as error:
            raise resource_error(error, path) from None
        try:
            while block := content.read(_CHUNK_BYTES):
                self.bytes += len(block)
                if self.bytes > self.max_bytes:
                    raise self._too_much(name)
                _put(stream, block, path)
        finally:
            _close(stream, path)


def _put(stream: IO[bytes], block: bytes, path: Path) -> None:
    try:
        stream.write(block)
    except OSError as error:
        raise resource_error(error, path) from None


def _close(stream: IO[bytes], path: Path) -> None:
    try:
        stream.close()
    except OSError as error:  # the last bytes may not fit on the disk
        raise resource_error(error, path) from None


def _key(parts: list[str]) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", "/".join(parts)).casefold()


def _unpack(archive: Path, out: _Folder, progress: Progress | None) -> None:
    try:
        with archive.open("rb") as raw:
            tick = _Tick(archive, raw, progress)
            head = raw.read(6)
            raw.seek(0)
            if head[:4] in (b"PK\3\4", b"PK\5\6"):
                _unpack_zip(raw, out, tick)
            else:
                with _unpacked(raw, head) as stream:
                    _unpack_tar(stream, out, tick)
            if not out.files:
                raise DataError(f"{archive}: holds no file; fetch the archive again")
            tick.finish()
    except FileNotFoundError:
        raise DataError(f"{archive}: no such archive; fetch it again") from None
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not a decoder's
            raise DataError(f"{archive}: cannot be read ({error.strerror}); mend that") from None
        raise DataError(
            f"{archive}: not a tar or zip archive, cut short or damaged ({error or type(error).__name__}); fetch it "
            "again"
        ) from None


class _Tick:
    """Tells how far the archive is read, now and then."""

    def __init__(self, archive: Path, raw: IO[bytes], progress: Progress | None) -> None:
        self._what, self._raw, self._progress = f"unpack {archive.name}", raw, progress
        self._total, self._said = os.fstat(raw.fileno()).st_size, 0

    def __call__(self) -> None:
        done = min(self._raw.tell(), self._total)
        if self._progress is not None and done - self._said >= _PROGRESS_BYTES:
            self._said = done
            self._progress(self._what, done, self._total)

    def finish(self) -> None:
        """Tell that all is done."""
        if self._progress is not None:
            self._progress(self._what, self._total, self._total)


def _unpacked(raw: IO[bytes], head: bytes) -> IO[bytes] | io.BufferedIOBase:
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if head.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if head == b"\xfd7zXZ\0":
        return io.BufferedReader(_Xz(raw), _CHUNK_BYTES)
    return raw


class _Xz(io.RawIOBase):
    """Unpacked xz; the standard library's own file class sets no bound to the decoder's memory."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._decoder.eof:
            block = self._raw.read(_CHUNK_BYTES) if self._decoder.needs_input else b""
            if self._decoder.needs_input and not block:
                raise EOFError("the xz stream is cut short")
            if content := self._decoder.decompress(block, len(buffer)):
                buffer[: len(content)] = content
                return len(content)
        return 0


class _Forward(io.RawIOBase):
    """What tarfile reads from: forward only, and never much at once.

    tarfile reads extended headers whole, as long as they say they are; they cost no more than _HEADER_BYTES here.
    All in all no more comes out than files and headers of an honest archive could take.
    """

    def __init__(self, stream: IO[bytes] | io.BufferedIOBase, out: _Folder) -> None:
        self._stream, self._at = stream, 0
        self._end = out.max_bytes + out.max_files * 4 * tarfile.BLOCKSIZE + _HEADER_BYTES

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        content = self._stream.read(size)
        self._at += len(content)
        if self._at > self._end:
            raise tarfile.ReadError("more headers than files")
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or offset < self._at:
            raise tarfile.ReadError("a header points back")
        while self._at < offset and self.read(min(_CHUNK_BYTES, offset - self._at)):
            pass
        return self._at


def _unpack_tar(stream: IO[bytes] | io.BufferedIOBase, out: _Folder, tick: _Tick) -> None:
    forward = _Forward(stream, out)
    with tarfile.open(fileobj=forward, mode="r:", encoding="utf-8") as tar:
        while (member := tar.next()) is not None:
            if member.isdir():
                out.folder(member.name)
                continue
            if not member.isreg() or member.issparse():
                raise out.refuse(member.name, f"is {_kind(member)}")
            if member.mode & _RIGHTS:
                raise out.refuse(member.name, "would run with another user's rights")
            content = tar.extractfile(member)
            if content is None:
                raise out.refuse(member.name, "holds nothing that can be read")
            with content:
                out.file(member.name, content, member.size)
            tick()
    # tarfile takes the end of the file for the end of the archive, and leaves the decoder's check sum unread
    if forward.tell() - tar.offset < tarfile.BLOCKSIZE:
        raise EOFError("its end is missing")
    while forward.read(_CHUNK_BYTES):
        tick()


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname[:200]!a}"
    if member.isfifo():
        return "a FIFO"
    if member.isdev():
        return "a device"
    return "neither a plain file nor a folder"


def _unpack_zip(raw: IO[bytes], out: _Folder, tick: _Tick) -> None:
    if _zip_members(raw, out.max_files) > out.max_files:
        raise out.too_many()
    with zipfile.ZipFile(raw) as archive:
        for member in archive.infolist():
            name = _zip_name(member, out)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise out.refuse(name, "is a link" if stat.S_ISLNK(mode) else "is a device or a FIFO")
            if name.endswith("/"):
                out.folder(name)
                continue
            if stat.S_ISDIR(mode):
                raise out.refuse(name, "is a folder by its rights and a file by its name")
            if mode & _RIGHTS:
                raise out.refuse(name, "would run with another user's rights")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # zipfile bounds the output of deflate alone: of the others one read can fill the memory
                raise out.refuse(name, "is compressed by another method than deflate")
            if member.flag_bits & 0x1:
                raise out.refuse(name, "is encrypted")
            with archive.open(member) as content:
                out.file(name, content, member.file_size)
            tick()


def _zip_name(member: zipfile.ZipInfo, out: _Folder) -> str:
    """Return the name as UTF-8, which some programs write without saying so."""
    name = member.orig_filename
    if member.flag_bits & 0x800 or name.isascii():
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeDecodeError:
        raise out.refuse(name, "has a name that is not UTF-8") from None


def _zip_members(raw: IO[bytes], most: int) -> int:
    """Count the entries of the central directory, as far as ``most`` + 1; zipfile would read all of them first.

    The directory stands before the end record, which is looked for as zipfile does.
    """
    end = raw.seek(0, os.SEEK_END)
    tail_start = max(0, end - 22 - 2**16)
    raw.seek(tail_start)
    tail = raw.read()
    place = len(tail) - 22
    if place < 0 or tail[place : place + 4] != b"PK\5\6" or tail[-2:] != b"\0\0":
        place = tail.rfind(b"PK\5\6")
    if place < 0 or place + 22 > len(tail):
        raise zipfile.BadZipFile("no end record")
    (size,) = struct.unpack_from("<L", tail, place + 12)
    directory_end = tail_start + place
    if (
        place >= 76
        and tail[place - 20 : place - 16] == b"PK\6\7"
        and tail[place - 76 : place - 72] == b"PK\6\6"
    ):
        (size,) = struct.unpack_from("<Q", tail, place - 36)
        directory_end -= 76
    raw.seek(max(0, directory_end - size))
    count = 0
    while raw.tell() < directory_end and count <= most:
        head = raw.read(46)
        if len(head) < 46 or head[:4] != b"PK\1\2":
            raise zipfile.BadZipFile("its directory is damaged")
        raw.seek(sum(struct.unpack_from("<3H", head, 28)), os.SEEK_CUR)
        count += 1
    raw.seek(0)
    return count


def _clear(part: Path) -> None:
    """Remove what a process left that died while it unpacked."""
    if part.is_symlink() or part.is_file():
        part.unlink()
    elif part.is_dir():
        shutil.rmtree(part)
