import contextlib
import hashlib
import json
import re
import resource
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from seqpyramid.data import download
from seqpyramid.data.download import Hash, fetch, verify
from seqpyramid.errors import DataError, ResourceError

GOOD = hashlib.shake_256(b"seed").digest(300_000)
SHA256 = Hash("sha256", hashlib.sha256(GOOD).hexdigest())
MD5 = Hash("md5", hashlib.md5(GOOD).hexdigest())
OLD = GOOD[:1000][::-1] + GOOD[1000:]
"""Another version of the file."""


class Handler(BaseHTTPRequestHandler):
    """``/good``, ``/404``, and faults by name; what follows a comma switches features: ``/good,range,etag``."""

    def do_GET(self) -> None:
        kind, *features = self.path.strip("/").split(",")
        wanted = self.headers["Range"]
        self.server.asked.append((self.path, wanted, self.headers["If-Range"]))
        if kind == "loop":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
            return
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
            return
        if kind.isdigit():
            self.send_error(int(kind))
            return
        body = {"wrong": GOOD[:-1] + b"x", "html": b"<html>log in</html>", "long": GOOD + b"more"}.get(
            kind, GOOD
        )
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        start, status = 0, 200
        if wanted and "range" in features and self.headers["If-Range"] in (None, tag):
            start, status = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]), 206
            if start >= len(body):
                self.send_error(416)
                return
            if kind == "shifted":
                start -= 7
        self.send_response(status)
        if kind == "html":
            self.send_header("Content-Type", "text/html; charset=utf-8")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if "etag" in features:
            self.send_header("ETag", tag)
        if "unsized" not in features:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        if kind.startswith("cut") and (status == 200 or "always" in features):
            rest = rest[: int(kind.removeprefix("cut"))]
        elif kind == "stall":
            self.wfile.write(rest[:1000])
            self.wfile.flush()
            self.server.leave.wait(10)
            return
        with contextlib.suppress(ConnectionError):  # the client may have had enough
            self.wfile.write(rest)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.leave = threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.leave.set()
    server.shutdown()
    thread.join()
    server.server_close()


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


PART = [".file.part", ".file.part.json"]


@pytest.mark.parametrize("kind", ["good", "good,unsized", "moved", "good,range,etag"])
@pytest.mark.parametrize("expected", [SHA256, MD5], ids=["sha256", "md5"])
@pytest.mark.parametrize("size", [None, len(GOOD)])
def test_a_good_file_arrives_whole(
    server: Server, tmp_path: Path, kind: str, expected: Hash, size: int | None
) -> None:
    path = tmp_path / "deep" / "file"
    fetch([server.url(kind)], path, expected=expected, size=size)
    assert path.read_bytes() == GOOD
    assert files(tmp_path) == ["file"]


def test_a_file_that_is_there_is_not_fetched(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        fetch([server.url("good")], tmp_path / "file", expected=MD5)
    assert server.paths() == ["/good"]


def test_two_that_want_it_fetch_it_once(server: Server, tmp_path: Path) -> None:
    def one() -> None:
        fetch([server.url("good")], tmp_path / "file", expected=MD5)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.paths() == ["/good"]
    assert (tmp_path / "file").read_bytes() == GOOD


@pytest.mark.parametrize("size", [None, len(GOOD)])
@pytest.mark.parametrize(
    ("kind", "says", "kept"),
    [
        ("wrong", "SHA-256 .* instead of", False),
        ("html", "web page", False),
        ("404", "answered 404", False),
        ("403", "answered 403", False),
        ("503", "answered 503", False),
        ("loop", "answered 302", False),
        ("cut0", "cut off after 0 of 300000", None),
        ("cut100000", "cut off after 100000 of 300000", True),
        ("cut299999", "cut off after 299999", True),
        ("long", "SHA-256|announces 300004 bytes where the file has 300000", False),
    ],
)
def test_nothing_else_is_accepted(
    server: Server, tmp_path: Path, kind: str, says: str, kept: bool | None, size: int | None
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        fetch([server.url(kind)], tmp_path / "file", expected=SHA256, size=size)
    assert server.url(kind) in str(caught.value)
    assert "--source" in str(caught.value)
    assert caught.value.code == 3
    if kept is not None:
        assert files(tmp_path) == (PART if kept else [])


def test_more_than_announced_is_cut_off(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than the 300000 bytes"):
        fetch([server.url("long,unsized")], tmp_path / "file", expected=SHA256, size=len(GOOD))
    assert files(tmp_path) == []


def test_what_has_no_end_is_cut_off(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_MAX_BYTES", 1000)
    with pytest.raises(DataError, match="more than the 1000 bytes"):
        fetch([server.url("good,unsized")], tmp_path / "file", expected=SHA256)
    assert files(tmp_path) == []


def test_an_unannounced_end_too_early_is_a_wrong_hash_or_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="instead of"):
        fetch([server.url("cut5000,unsized")], tmp_path / "file", expected=SHA256)
    assert files(tmp_path) == []
    with pytest.raises(DataError, match="cut off after 5000 of 300000"):
        fetch([server.url("cut5000,unsized")], tmp_path / "file", expected=SHA256, size=len(GOOD))
    assert files(tmp_path) == PART


OFFSETS = sorted({1, 7, 1023, 65_536, 262_143, 262_144, 262_145, 299_999, *range(20_000, 300_000, 20_000)})


def test_offsets_are_many() -> None:
    assert len(OFFSETS) >= 20


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("features", ["range", "range,etag"])
def test_a_download_cut_there_goes_on_there(
    server: Server, tmp_path: Path, offset: int, features: str
) -> None:
    url = server.url(f"cut{offset},{features}")
    fetch([url], tmp_path / "file", expected=SHA256)
    assert (tmp_path / "file").read_bytes() == GOOD
    assert files(tmp_path) == ["file"]
    (_, first, _), (_, second, condition) = server.asked
    assert (first, second) == (None, f"bytes={offset}-")
    assert (condition is not None) == ("etag" in features)


def test_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cut off"):
        fetch([server.url("cut1000")], tmp_path / "file", expected=SHA256, size=len(GOOD))
    assert (tmp_path / ".file.part").stat().st_size == 1000
    server.asked.clear()
    fetch([server.url("good,range,etag")], tmp_path / "file", expected=SHA256, size=len(GOOD))
    assert server.asked == [("/good,range,etag", "bytes=1000-", None)]
    assert (tmp_path / "file").read_bytes() == GOOD


def test_every_connection_that_brings_much_is_followed_by_another(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_GAIN_BYTES", 30_000)
    fetch([server.url("cut30000,range,always")], tmp_path / "file", expected=SHA256)
    assert [wanted for _, wanted, _ in server.asked] == [None] + [
        f"bytes={30_000 * n}-" for n in range(1, 10)
    ]
    assert (tmp_path / "file").read_bytes() == GOOD


def leave_part(folder: Path, content: bytes, url: str, version: str | None) -> None:
    (folder / ".file.part").write_bytes(content)
    (folder / ".file.part.json").write_text(json.dumps({"url": url, "version": version}))


def test_two_versions_are_not_sewn_together(server: Server, tmp_path: Path) -> None:
    url = server.url("good,range,etag")
    leave_part(tmp_path, OLD[:5000], url, '"old"')
    fetch([url], tmp_path / "file", expected=SHA256)
    assert server.asked == [("/good,range,etag", "bytes=5000-", '"old"')]
    assert (tmp_path / "file").read_bytes() == GOOD


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"url": 1}', "\xff"])
@pytest.mark.parametrize("begun", [b"", b"half", OLD[:5000], GOOD[:5000], GOOD, GOOD + b"x"])
@pytest.mark.parametrize("kind", ["good,range,etag", "good"])
@pytest.mark.parametrize("size", [None, len(GOOD)])
def test_whatever_a_killed_download_left(
    server: Server, tmp_path: Path, note: str, begun: bytes, kind: str, size: int | None
) -> None:
    (tmp_path / ".file.part").write_bytes(begun)
    (tmp_path / ".file.part.json").write_text(note, encoding="latin-1")
    fetch([server.url(kind)], tmp_path / "file", expected=SHA256, size=size)
    assert (tmp_path / "file").read_bytes() == GOOD
    assert files(tmp_path) == ["file"]


def test_a_restart_leaves_nothing_of_the_old(server: Server, tmp_path: Path) -> None:
    leave_part(tmp_path, OLD[:5000], server.url("cut1000"), None)
    with pytest.raises(DataError, match="cut off after 1000"):
        fetch([server.url("cut1000")], tmp_path / "file", expected=SHA256)
    assert (tmp_path / ".file.part").read_bytes() == GOOD[:1000]


def test_a_complete_part_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_bytes(GOOD)
    fetch([server.url("good")], tmp_path / "file", expected=SHA256, size=len(GOOD))
    assert server.asked == []


@pytest.mark.parametrize("kind", ["html", "404", "503", "loop"])
def test_a_refusal_costs_nothing_of_what_has_come(server: Server, tmp_path: Path, kind: str) -> None:
    leave_part(tmp_path, GOOD[:5000], server.url(kind), None)
    with pytest.raises(DataError):
        fetch([server.url(kind)], tmp_path / "file", expected=SHA256)
    assert (tmp_path / ".file.part").read_bytes() == GOOD[:5000]


def test_another_part_than_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    leave_part(tmp_path, GOOD[:5000], server.url("shifted,range"), None)
    with pytest.raises(DataError, match="another part"):
        fetch([server.url("shifted,range")], tmp_path / "file", expected=SHA256)
    assert (tmp_path / ".file.part").read_bytes() == GOOD[:5000]


@pytest.mark.parametrize("bad", ["404", "wrong", "html", "cut1000,range,always", "loop"])
def test_the_next_mirror_steps_in(server: Server, tmp_path: Path, bad: str) -> None:
    fetch([server.url(bad), server.url("good,range")], tmp_path / "file", expected=SHA256)
    assert (tmp_path / "file").read_bytes() == GOOD
    assert server.paths()[0] == f"/{bad}"
    assert server.paths()[-1] == "/good,range"


def test_all_mirrors_are_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"file: no mirror gave it \(http.*/404: .*404, http.*/403: .*403\)"):
        fetch([server.url("404"), server.url("403")], tmp_path / "file", expected=SHA256)


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"silent for 0\.1 s"):
        fetch([server.url("stall")], tmp_path / "file", expected=SHA256, timeout=0.1)
    assert (tmp_path / ".file.part").read_bytes() == GOOD[:1000]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/file", "http://127.0.0.1:x/file"])
def test_no_network(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DataError, match=r"failed.*--source"):
        fetch([url], tmp_path / "file", expected=SHA256, timeout=1)
    assert files(tmp_path) == []


def test_a_file_in_place_of_the_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "downloads").write_text("in the way")
    with pytest.raises(ResourceError):
        fetch([server.url("good")], tmp_path / "downloads" / "file", expected=SHA256)
    assert server.asked == []


@contextlib.contextmanager
def full_after(size: int) -> Iterator[None]:
    """Let no file of this process grow above ``size`` bytes; the system says so itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_what_has_come(server: Server, tmp_path: Path) -> None:
    url = server.url("good,range,etag")
    with full_after(150_000), pytest.raises(ResourceError, match=r"\.file\.part: cannot write"):
        fetch([url], tmp_path / "file", expected=SHA256)
    assert (tmp_path / ".file.part").read_bytes() == GOOD[:150_000]
    fetch([url], tmp_path / "file", expected=SHA256)
    assert server.asked[-1][1] == "bytes=150000-"
    assert (tmp_path / "file").read_bytes() == GOOD


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_not_the_networks_fault(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".file.part").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="No space left"):
        fetch([server.url("good")], tmp_path / "file", expected=SHA256)
    assert not (tmp_path / "file").exists()


def test_progress_goes_up_to_the_whole(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_PROGRESS_BYTES", 50_000)
    monkeypatch.setattr(download, "_CHUNK_BYTES", 10_000)
    said: list[tuple[str, int, int]] = []
    fetch(
        [server.url("good")], tmp_path / "file", expected=SHA256, progress=lambda *words: said.append(words)
    )
    loaded = [(done, total) for what, done, total in said if what == "download file"]
    assert loaded[-1] == (300_000, 300_000)
    assert len(loaded) > 3
    assert loaded == sorted(loaded)
    assert any(what == "check file" for what, _, _ in said)
    assert all(0 <= done <= total for _, done, total in said)


def test_verify(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    verify(path, SHA256)
    verify(path, MD5)
    path.write_bytes(GOOD[:-1])
    with pytest.raises(DataError, match=r"file: has MD5 .* instead of .*delete it"):
        verify(path, MD5)
    with pytest.raises(ResourceError, match="cannot be read"):
        verify(tmp_path, MD5)
