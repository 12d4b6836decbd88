import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from seqpyramid.data.download import fetch
from seqpyramid.errors import DataError, ResourceError

GOOD = bytes(range(256)) * 1000
MD5 = hashlib.md5(GOOD).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        kind = self.path.strip("/")
        if kind == "loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
            return
        if kind.isdigit():
            self.send_error(int(kind))
            return
        body = {"wrong": GOOD[:-1] + b"x", "html": b"<html>log in here</html>"}.get(kind, GOOD)
        self.send_response(200)
        if kind != "unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind.startswith("cut"):
            body = body[: int(kind.removeprefix("cut"))]
        elif kind == "stall":
            self.wfile.write(body[:1000])
            self.wfile.flush()
            self.server.leave.wait(10)  # type: ignore[attr-defined]
            return
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.leave = threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


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


@pytest.mark.parametrize("kind", ["good", "unsized"])
def test_a_good_file_arrives_whole(server: Server, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "deep" / "file.gz"
    fetch(server.url(kind), path, MD5)
    assert path.read_bytes() == GOOD
    assert files(tmp_path) == ["file.gz"]


def test_a_file_that_is_there_is_not_fetched(server: Server, tmp_path: Path) -> None:
    fetch(server.url("good"), tmp_path / "file.gz", MD5)
    fetch(server.url("good"), tmp_path / "file.gz", MD5)
    assert server.asked == ["/good"]


def test_two_that_want_it_fetch_it_once(server: Server, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=fetch, args=(server.url("good"), tmp_path / "file.gz", MD5)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == ["/good"]
    assert (tmp_path / "file.gz").read_bytes() == GOOD


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("wrong", "MD5"),
        ("html", "MD5"),
        ("404", "404"),
        ("403", "403"),
        ("503", "503"),
        ("cut0", "failed"),
        ("cut100000", "failed"),
        ("loop", "failed|302"),
    ],
)
def test_nothing_else_is_accepted(server: Server, tmp_path: Path, kind: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        fetch(server.url(kind), tmp_path / "file.gz", MD5)
    assert server.url(kind) in str(caught.value)
    assert "--source" in str(caught.value)
    assert caught.value.code == 3
    assert files(tmp_path) == []


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="failed"):
        fetch(server.url("stall"), tmp_path / "file.gz", MD5, timeout=0.2)
    assert files(tmp_path) == []


def test_no_network(server: Server, tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/file.gz"
    with pytest.raises(DataError, match="--source"):
        fetch(url, tmp_path / "file.gz", MD5, timeout=1)
    assert files(tmp_path) == []


def test_what_a_killed_download_left_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".file.gz.part").write_bytes(b"half")
    fetch(server.url("good"), tmp_path / "file.gz", MD5)
    assert files(tmp_path) == ["file.gz"]


def test_a_file_in_place_of_the_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "downloads").write_text("in the way")
    with pytest.raises(ResourceError):
        fetch(server.url("good"), tmp_path / "downloads" / "file.gz", MD5)
    assert server.asked == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_not_the_networks_fault(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".file.gz.part").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="No space left"):
        fetch(server.url("good"), tmp_path / "file.gz", MD5)
    assert files(tmp_path) == []
