import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from seqpyramid.data import cache, corpus, spool
from seqpyramid.data.corpus import Item, build_corpus, listing_fingerprint, read_corpus
from seqpyramid.data.features import RawFeatures, read_features
from seqpyramid.errors import DataError, IntegrityError, ResourceError

PRINT = "0123456789abcdef"
REPOSITORY = Path(__file__).parents[2]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")


def extract(path: Path, log: Path, *, pause: float = 0.0) -> NDArray[np.float32]:
    """The bytes of a file, two a step; a line in the log for each file read."""
    content = path.read_bytes()
    with log.open("a") as stream:
        stream.write(f"{path.name}\n")
    time.sleep(pause)
    if content.startswith(b"BAD"):
        raise DataError(f"{path}: bad to the bone")
    if content.startswith(b"DIE"):
        os.kill(os.getpid(), signal.SIGKILL)
    return np.frombuffer(content, dtype=np.uint8).astype(np.float32).reshape(-1, 2)


class Place:
    """Some files, a cache to build from them, and what was read on the way."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.source, self.log = folder / "source", folder / "log"
        self.source.mkdir()
        draw = np.random.default_rng(0)
        self.items = []
        for n in range(count):
            path = self.source / f"{n:03}.bin"
            path.write_bytes(draw.integers(0, 60, 2 * int(draw.integers(1, 50)), dtype=np.uint8).tobytes())
            self.items.append(Item(path.name, path))
        self.path = folder / "caches" / "a.h5"
        self.spool = self.path.with_name(".a.h5.spool")

    def build(self, **options) -> bool:
        work = functools.partial(extract, log=self.log)
        return build_corpus(self.path, PRINT, self.items, options.pop("extract", work), **options)

    def read(self) -> list[str]:
        """Names of the files read since the last call."""
        names = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return names

    def stop_at(self, n: int) -> None:
        """Build until the n-th file, then stop as Ctrl-C does."""

        def stop(path: Path) -> NDArray[np.float32]:
            if path == self.items[n].path:
                raise KeyboardInterrupt
            return extract(path, self.log)

        with pytest.raises(KeyboardInterrupt):
            self.build(extract=stop, workers=1)
        self.read()

    def names(self) -> list[str]:
        return [item.path.name for item in self.items]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, 40)


@pytest.fixture
def undisturbed(place: Place) -> Iterator[bytes]:
    """The cache as it must become; then everything is as before."""
    assert place.build(workers=1)
    content = place.path.read_bytes()
    place.path.unlink()
    place.read()
    return content


def test_what_is_extracted_comes_back_in_order(place: Place) -> None:
    place.items.reverse()
    assert place.build(workers=1)
    sequences, kept = read_corpus(place.path, PRINT)
    assert kept.dtype == np.int64
    assert kept.tolist() == list(range(40))
    for item, sequence in zip(place.items, sequences, strict=True):
        assert sequence.dtype == np.float32
        np.testing.assert_array_equal(sequence, extract(item.path, place.log))
    assert [p.name for p in place.path.parent.iterdir() if not p.name.endswith(".lock")] == ["a.h5"]


def test_a_second_build_reads_nothing_unless_forced(place: Place, undisturbed: bytes) -> None:
    assert place.build()
    assert not place.build()
    assert place.read() == place.names()
    assert place.build(force=True)
    assert place.read() == place.names()
    assert place.path.read_bytes() == undisturbed


def test_bytes_do_not_depend_on_the_workers(place: Place, undisturbed: bytes) -> None:
    environment = dict(os.environ)
    assert place.build(workers=2)
    assert place.path.read_bytes() == undisturbed
    assert sorted(place.read()) == place.names()
    assert dict(os.environ) == environment


def test_small_corpora_are_read_in_this_process() -> None:
    def todo(size: int) -> list[corpus._Todo]:
        return [corpus._Todo(n, Path("x"), size) for n in range(100)]

    assert corpus._processes(None, todo(1000)) == 1
    assert corpus._processes(None, todo(10**6)) == min(corpus._usable_cpus(), 61)
    assert corpus._processes(3, todo(1)) == 3
    assert corpus._processes(3, todo(1)[:2]) == 2
    assert corpus._processes(1000, todo(1)) == 61
    assert corpus._processes(None, []) == 1


def test_a_stopped_build_continues(place: Place, undisturbed: bytes, monkeypatch) -> None:
    monkeypatch.setattr(spool, "_BLOCK_BYTES", 1000)  # so that the cache is copied in many blocks
    place.stop_at(25)
    assert place.build()
    assert place.read() == place.names()[25:]
    assert place.path.read_bytes() == undisturbed
    assert not place.spool.exists()


def test_force_believes_no_spool(place: Place, undisturbed: bytes) -> None:
    place.stop_at(25)
    assert place.build(force=True)
    assert place.read() == place.names()
    assert place.path.read_bytes() == undisturbed


def test_a_spool_of_something_else_is_not_used(place: Place, undisturbed: bytes) -> None:
    place.stop_at(25)
    header, rest = (place.spool / "journal.jsonl").read_bytes().split(b"\n", 1)
    (place.spool / "journal.jsonl").write_bytes(header.replace(PRINT.encode(), b"f" * 16) + b"\n" + rest)
    assert place.build()
    assert place.read() == place.names()
    assert place.path.read_bytes() == undisturbed


@pytest.mark.parametrize("cut", [1, 20, 100, -1])
def test_a_journal_cut_short(place: Place, undisturbed: bytes, cut: int) -> None:
    place.stop_at(25)
    journal = place.spool / "journal.jsonl"
    content = journal.read_bytes()
    left = content[:-cut] if cut > 0 else b""
    lost = 25 - max(0, left.count(b"\n") - 1)
    assert lost >= 1
    journal.write_bytes(left)
    assert place.build()
    assert place.read() == place.names()[25 - lost :]
    assert place.path.read_bytes() == undisturbed


@pytest.mark.parametrize(
    "line",
    [
        b"\0\0\0\0",
        b"[1, 2]\n",
        b'{"key": "039.bin"}\n',
        b'{"key": 3, "size": 1, "rows": 1, "width": 2, "offset": 0, "crc32": 0}\n',
        b'{"key": "039.bin", "size": 2, "rows": -1, "width": 2, "offset": 0, "crc32": 0}\n',
        b'{"key": "039.bin", "size": 2, "rows": 1e9, "width": 2, "offset": 0, "crc32": 0}\n',
        b'{"key": "039.bin", "size": 2, "rows": 99999999999999, "width": 2, "offset": 0, "crc32": 0}\n',
    ],
)
def test_nonsense_at_the_end_of_a_journal(place: Place, undisturbed: bytes, line: bytes) -> None:
    place.stop_at(25)
    with (place.spool / "journal.jsonl").open("ab") as stream:
        stream.write(line)
    place.build()
    assert place.read() == place.names()[25:]
    assert place.path.read_bytes() == undisturbed


def test_values_that_their_crc_does_not_confirm_are_read_again(place: Place, undisturbed: bytes) -> None:
    """As after a power cut that lost values, but not their lines."""
    place.stop_at(25)
    values = place.spool / "values.bin"
    content = bytearray(values.read_bytes())
    lines = (place.spool / "journal.jsonl").read_text().splitlines()[1:]
    content[json.loads(lines[7])["offset"] + 2] ^= 1
    values.write_bytes(content[:-1])
    place.stop_at(24)  # reads 7 again, and would go on with 24
    assert place.build()
    assert place.read() == place.names()[24:]
    assert place.path.read_bytes() == undisturbed


def test_a_spool_that_changes_while_it_is_copied(place: Place, monkeypatch) -> None:
    place.stop_at(25)
    sync = spool.Spool.sync

    def spoil(self: spool.Spool) -> None:
        sync(self)
        (place.spool / "values.bin").write_bytes(b"spoilt")

    with monkeypatch.context() as patched:
        patched.setattr(spool.Spool, "sync", spoil)
        with pytest.raises(IntegrityError, match=r"values.bin: changed on the disk; run again"):
            place.build()
    assert not place.path.exists()
    place.read()
    assert place.build()
    assert place.read() == place.names()


def test_a_file_of_another_size_is_read_again(place: Place) -> None:
    place.stop_at(25)
    place.items[3].path.write_bytes(b"other!")
    assert place.build()
    assert place.read() == [place.names()[3], *place.names()[25:]]
    np.testing.assert_array_equal(read_corpus(place.path, PRINT)[0][3].ravel(), list(b"other!"))


def test_damaged_files_are_all_named_and_the_others_kept(place: Place, undisturbed: bytes) -> None:
    good = {n: place.items[n].path.read_bytes() for n in (4, 11)}
    for n in good:
        place.items[n].path.write_bytes(b"BAD" + bytes(n))
    place.items[20].path.rename(place.folder / "away")
    place.items[30].path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        place.build(workers=1)
    first, *reasons = str(caught.value).splitlines()
    assert first == "4 of 40 files cannot be used; mend or remove them, or set task.damaged=skip:"
    assert reasons == [
        f"  {place.items[4].path}: bad to the bone",
        f"  {place.items[11].path}: bad to the bone",
        f"  {place.items[20].path}: cannot be read (No such file or directory)",
        f"  {place.items[30].path}: gives no step at all",
    ]
    assert not place.path.exists()
    assert len(place.read()) == 39
    place.items[30].path.write_bytes(b"GOOD")
    seen: list[int] = []

    def extra(file: h5py.File, kept: NDArray[np.int64]) -> None:
        seen.extend(kept.tolist())
        cache.store(file, "labels", kept % 3)

    assert place.build(damaged="skip", extra=extra)
    assert place.read() == [place.names()[n] for n in (4, 11, 30)]
    sequences, kept = read_corpus(place.path, PRINT)
    assert kept.tolist() == seen == [n for n in range(40) if n not in (4, 11, 20)]
    assert len(sequences) == 37
    np.testing.assert_array_equal(sequences[27].ravel(), list(b"GOOD"))
    with cache.open_checked(place.path, PRINT) as file:
        assert file["labels"].shape == (37,)


def test_many_damaged_files_are_counted(place: Place) -> None:
    for item in place.items[:13]:
        item.path.write_bytes(b"BAD ")
    with pytest.raises(DataError) as caught:
        place.build()
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  and 3 more"


def test_if_nothing_can_be_read_it_does_not_go_on_for_hours(place: Place, monkeypatch) -> None:
    for item in place.items:
        item.path.write_bytes(b"BAD ")
    for damaged in ("skip", "refuse"):
        with pytest.raises(
            DataError, match=r"none of the files can be used; mend this first:\n.*bad to the bone"
        ):
            place.build(damaged=damaged)
        assert len(place.read()) == 40
    monkeypatch.setattr(corpus, "_HOPELESS", 7)
    with pytest.raises(DataError, match="none of the files"):
        place.build(damaged="skip")
    assert len(place.read()) == 7


def test_a_mended_file_of_another_listing_costs_only_itself(place: Place) -> None:
    """With ``extraction``, the spool outlives the fingerprint, which holds the size of the mended file."""
    place.items[4].path.write_bytes(b"BAD!")
    work = functools.partial(extract, log=place.log)
    with pytest.raises(DataError, match="1 of 40"):
        build_corpus(place.path, PRINT, place.items, work, extraction="raw")
    place.read()
    place.items[4].path.write_bytes(b"mended")
    other = place.path.with_name("b.h5")
    some = place.items[:10][::-1]
    assert build_corpus(other, "f" * 16, some, work, extraction="raw")
    assert place.read() == [place.names()[4]]
    sequences, _ = read_corpus(other, "f" * 16)
    for item, sequence in zip(some, sequences, strict=True):
        np.testing.assert_array_equal(sequence.ravel(), list(item.path.read_bytes()))
    assert [p.name for p in other.parent.iterdir() if not p.name.endswith(".lock")] == ["b.h5"]


@POSIX
def test_what_crashes_a_worker_is_told(place: Place) -> None:
    good = place.items[35].path.read_bytes()
    place.items[35].path.write_bytes(b"DIE!")
    with pytest.raises(ResourceError, match="a process that read this file or one soon after it died"):
        place.build(workers=2)
    place.items[35].path.write_bytes(good)
    before = len(place.read())
    assert place.build(workers=1)
    assert 5 <= len(place.read()) < 40 <= before + 6


def test_of_builders_at_once_one_builds(place: Place) -> None:
    built: list[bool] = []
    work = functools.partial(extract, log=place.log, pause=0.01)
    threads = [threading.Thread(target=lambda: built.append(place.build(extract=work))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(built) == [False, False, True]
    assert place.read() == place.names()


def test_progress(place: Place) -> None:
    place.stop_at(10)
    calls: list[tuple[str, int, int]] = []
    work = functools.partial(extract, log=place.log, pause=0.02)
    place.build(extract=work, progress=lambda *call: calls.append(call))
    assert calls[0] == ("read files", 0, 40)
    assert ("read files", 40, 40) in calls
    assert calls[-1] == ("write the cache", 40, 40)
    assert 6 <= len(calls) <= 14  # 0.6 seconds
    done = [done for what, done, _ in calls if what == "read files"]
    assert done == sorted(done)
    assert done[1] > 10


def test_a_long_wait_is_shown() -> None:
    shown: list[None] = []
    future: Future[list[NDArray[np.float32]]] = Future()
    threading.Timer(0.5, future.set_result, ([np.ones((1, 1), dtype=np.float32)],)).start()
    task = corpus._Todo(0, Path("a"), 1)
    assert [one for one, _ in corpus._landed([task], future, lambda: shown.append(None))] == [task]
    assert 2 <= len(shown) <= 5


def test_wrong_arguments(place: Place) -> None:
    for options in ({"workers": 0}, {"extract": lambda path: np.zeros(3, dtype=np.float32)}):
        with pytest.raises(ValueError):
            place.build(**options)
    with pytest.raises(ValueError, match="float64"):
        place.build(extract=lambda path: np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"001.bin: 2 features a step, where 000.bin has 1"):
        place.build(extract=lambda path: np.zeros((3, 1 + (path.name > "000.bin")), dtype=np.float32))
    with pytest.raises(ValueError, match="key of its own"):
        build_corpus(place.path, PRINT, place.items + place.items[:1], np.load)
    with pytest.raises(ValueError, match="items"):
        build_corpus(place.path, PRINT, [], np.load)


def test_a_file_in_place_of_the_folder(place: Place) -> None:
    place.path.parent.write_text("in the way")
    with pytest.raises(ResourceError, match="caches"):
        place.build()
    place.path.parent.unlink()
    place.path.parent.mkdir()
    place.spool.write_text("in the way")
    with pytest.raises(ResourceError, match="spool"):
        place.build()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(place: Place) -> None:
    place.path.parent.mkdir()
    place.path.parent.chmod(0o500)
    with pytest.raises(ResourceError):
        place.build()


def test_listing_fingerprint(place: Place, tmp_path: Path) -> None:
    one = listing_fingerprint(place.items)
    assert one == listing_fingerprint(place.items[::-1])
    assert one != listing_fingerprint(place.items[1:])
    assert one != listing_fingerprint([Item("other", place.items[0].path), *place.items[1:]])
    with place.items[5].path.open("ab") as stream:
        stream.write(b"x")
    assert one != listing_fingerprint(place.items)
    place.items[5].path.unlink()
    with pytest.raises(DataError, match=r"005.bin: cannot look at this file"):
        listing_fingerprint(place.items)


PROGRAM = """
    import resource, sys, time
    from functools import partial
    from pathlib import Path
    import numpy as np
    from seqpyramid.data.corpus import Item, build_corpus
    from seqpyramid.errors import UserError

    def extract(path, log, pause):
        with log.open("a") as stream:
            stream.write(f"{path.name}\\n")
        time.sleep(pause)
        return np.frombuffer(path.read_bytes(), dtype=np.uint8).astype(np.float32).reshape(-1, 2)

    if __name__ == "__main__":
        path, source, log = (Path(word) for word in sys.argv[1:4])
        fingerprint, workers, pause, limits = sys.argv[4], int(sys.argv[5]), float(sys.argv[6]), sys.argv[7:]
        items = [Item(file.name, file) for file in sorted(source.iterdir())]
        work = partial(extract, log=log, pause=pause)
        for limit in map(int, limits):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                build_corpus(path, fingerprint, items, work, workers=workers)
            except UserError as error:
                print(error.code, error, file=sys.stderr)
"""


def program(
    place: Place, *, workers: int, pause: float, limits: tuple[int, ...] = (-1,)
) -> subprocess.Popen[str]:
    """Build in a process of its own, once under each limit of the size of a file (-1: none)."""
    file = place.folder / "program.py"
    file.write_text(textwrap.dedent(PROGRAM))
    words = (file, place.path, place.source, place.log, PRINT, workers, pause, *limits)
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def alive_in(group: int) -> bool:
    """Whether a process of this group still runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@POSIX
@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGTERM, 2), (signal.SIGINT, 2)]
)
def test_a_killed_build_continues_and_its_workers_end(
    place: Place, undisturbed: bytes, number: signal.Signals, workers: int
) -> None:
    journal = place.spool / "journal.jsonl"
    with program(place, workers=workers, pause=0.05) as builder:
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
            assert builder.poll() is None, builder.stderr and builder.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if number == signal.SIGINT:
            os.killpg(builder.pid, number)  # as a terminal does
        else:
            builder.send_signal(number)
        builder.wait(30)
        while alive_in(builder.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert builder.stderr is not None
        assert "_process_worker" not in builder.stderr.read()  # workers leave without a word
    assert builder.returncode == -number
    assert not place.path.exists()
    first = place.read()
    assert place.build(workers=1)
    second = place.read()
    assert set(first) | set(second) == set(place.names())
    assert len(second) <= 31
    assert place.path.read_bytes() == undisturbed


@POSIX
def test_a_full_disk_is_told_and_what_was_read_is_kept(place: Place, undisturbed: bytes) -> None:
    with program(place, workers=1, pause=0.0, limits=(10, 50, 2_000, 5_000)) as builder:
        messages = builder.communicate(timeout=60)[1].splitlines()
    assert len(messages) == 4, messages
    for message in messages:
        assert message.startswith(f"6 {place.spool}: cannot write here (File too large)")
    assert not place.path.exists()
    place.read()
    assert place.build()
    assert 0 < len(place.read()) < 40
    assert place.path.read_bytes() == undisturbed


MEMORY = """
    import sys
    from pathlib import Path
    import numpy as np
    from seqpyramid.data.corpus import Item, build_corpus

    def peak():
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

    def rows(path):
        return np.full((2_500, 2), 1.5, dtype=np.float32)

    folder, source = Path(sys.argv[1]), Path(sys.argv[2])
    for count in (200, 2_000):
        items = [Item(str(n), source) for n in range(count)]
        build_corpus(folder / f"{count}.h5", "0" * 16, items, rows, workers=1)
        print(peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process' peak")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """36 MB more are built; the bookkeeping of 1,800 more items is about one."""
    source = tmp_path / "source"
    source.write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path), str(source)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    small, large = (int(line) for line in done.stdout.split())
    assert (large - small) / 1024 < 8


def test_real_speech(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "data" / "fsdd").glob("7_*.wav"))[:60]
    items = [Item(file.name, file) for file in files]
    work = functools.partial(read_features, features=RawFeatures(), channel="only")
    path = tmp_path / "a.h5"
    assert build_corpus(path, listing_fingerprint(items), items, work)
    sequences, _ = read_corpus(path, listing_fingerprint(items))
    for file, sequence in zip(files, sequences, strict=True):
        np.testing.assert_array_equal(sequence, work(file))
