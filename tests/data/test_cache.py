import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from seqpyramid.data import cache
from seqpyramid.errors import DataError, IntegrityError, ResourceError

PRINT = "0123456789abcdef"
REPOSITORY = Path(__file__).parents[2]
VALUES = np.arange(60_000, dtype=np.float32).reshape(-1, 3)
SEQUENCES = [np.full((n, 2), n, dtype=np.int16) for n in (3, 1, 0, 5)]


def fill(file: h5py.File) -> None:
    cache.store(file, "x/values", VALUES)
    cache.store_stream(file, "streamed", iter(np.array_split(VALUES, 7)))
    cache.store_unequal(file, "unequal", SEQUENCES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = cache.cache_path(tmp_path / "caches", "task", PRINT)
    assert cache.build(path, PRINT, fill)
    return path


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if not p.name.endswith((".h5", ".lock"))]


def reseal(path: Path, change) -> None:
    """Change the inside of a cache and make its hash right again."""
    with h5py.File(path, "r+", locking=False) as file:
        change(file)
    cache._seal(path)


def test_what_is_stored_comes_back(path: Path) -> None:
    with cache.open_checked(path, PRINT) as file:
        np.testing.assert_array_equal(file["x/values"][...], VALUES)
        np.testing.assert_array_equal(file["streamed"][...], VALUES)
        assert file["streamed"].dtype == np.float32
        back = cache.read_unequal(file, "unequal")
        assert [len(s) for s in back] == [3, 1, 0, 5]
        for ours, theirs in zip(SEQUENCES, back, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert theirs.dtype == np.int16


def test_every_dataset_has_checksums_and_the_file_its_attributes(path: Path) -> None:
    names = []
    with cache.open_checked(path, PRINT) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert all(file[name].fletcher32 for name in names)
        assert sorted(file.attrs) == ["code_version", "created_by", "fingerprint", "format"]
        assert file.attrs["fingerprint"] == PRINT.encode()
    assert sorted(names) == ["streamed", "unequal/offsets", "unequal/values", "x/values"]


def test_a_second_build_is_no_build_unless_forced(path: Path) -> None:
    before = path.read_bytes()

    def never(file: h5py.File) -> None:
        raise AssertionError("built again")

    assert not cache.build(path, PRINT, never)
    assert cache.build(path, PRINT, fill, force=True)
    assert path.read_bytes() == before
    assert leftovers(path.parent) == []


def test_a_reader_of_the_old_file_keeps_it_when_another_is_forced(path: Path) -> None:
    with cache.open_checked(path, PRINT) as old:
        cache.build(path, PRINT, lambda f: cache.store(f, "streamed", -VALUES), force=True)
        np.testing.assert_array_equal(old["streamed"][...], VALUES)
    with cache.open_checked(path, PRINT) as new:
        np.testing.assert_array_equal(new["streamed"][...], -VALUES)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prepare-data RECIPE"):
        cache.open_checked(tmp_path / "none.h5", PRINT)


def test_another_fingerprint_names_both_and_the_fix(path: Path) -> None:
    other = "f" * 16
    with pytest.raises(IntegrityError, match=f"{PRINT}.*{other}.*prepare-data RECIPE --force") as caught:
        cache.open_checked(path, other)
    assert caught.value.code == 5


def test_every_flipped_bit_is_seen(path: Path) -> None:
    good = path.read_bytes()
    draw = random.Random(0)
    # the beginning and the end hold headers, where fletcher32 does not look
    places = [*range(24), *range(512, 612), *(draw.randrange(len(good)) for _ in range(80)), len(good) - 1]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(IntegrityError, match="--force"):
            cache.open_checked(path, PRINT)
    path.write_bytes(good)
    cache.open_checked(path, PRINT).close()


@pytest.mark.parametrize("kept", [0, 1, 100, 511, 512, 513, 5000, -1])
def test_every_truncation_is_seen(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(IntegrityError, match="--force"):
        cache.open_checked(path, PRINT)


def test_zeroed_block_and_added_bytes_are_seen(path: Path) -> None:
    good = path.read_bytes()
    for bad in (good[:8192] + bytes(4096) + good[12288:], good + b"\0"):
        path.write_bytes(bad)
        with pytest.raises(IntegrityError, match="damaged"):
            cache.open_checked(path, PRINT)


def test_fletcher32_is_the_second_guard(path: Path) -> None:
    """A flipped value under a hash made right again still fails when it is read."""
    content = bytearray(path.read_bytes())
    place = content.find(VALUES[1000:1010].tobytes())
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)
    cache._seal(path)
    with cache.open_checked(path, PRINT) as file, pytest.raises(OSError, match="filter returned failure"):
        file["x/values"][...]
    with pytest.raises(IntegrityError):
        cache._check(path, PRINT, read_through=True)


def test_a_foreign_hdf5_file_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["x"] = VALUES
    with pytest.raises(IntegrityError, match="not a cache"):
        cache.open_checked(path, PRINT)


def test_a_newer_format_says_so(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(cache._user_block(cache.FORMAT + 1, "0" * 64) + content[512:])
    with pytest.raises(IntegrityError, match="upgrade"):
        cache.open_checked(path, PRINT)


def test_an_attribute_that_contradicts_or_lacks_is_refused(path: Path) -> None:
    reseal(path, lambda f: f.attrs.__setitem__("format", cache.FORMAT + 1))
    with pytest.raises(IntegrityError, match="format"):
        cache.open_checked(path, PRINT)
    reseal(path, lambda f: f.attrs.__delitem__("fingerprint"))
    with pytest.raises(IntegrityError):
        cache.open_checked(path, PRINT)


def external_storage(file: h5py.File) -> None:
    file.create_dataset("outside", (4,), "u1", external=[("/etc/hostname", 0, 4)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (4,))
    file.create_virtual_dataset("outside", layout)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.__setitem__("outside", h5py.ExternalLink("elsewhere.h5", "/x")), "links elsewhere"),
        (lambda f: f.__setitem__("x/outside", h5py.SoftLink("/streamed")), "links elsewhere"),
        (lambda f: f["x"].__setitem__("loop", f["x"]), "deeper than"),
        (external_storage, "another file"),
        (virtual, "another file"),
        (lambda f: f.create_dataset("unguarded", data=VALUES), "no checksums"),
        (lambda f: f.create_dataset("text", data=["a", "b"]), "not numbers"),
        (lambda f: f.__setitem__("type", np.dtype("f8")), "neither a group nor a dataset"),
        (lambda f: f.create_dataset("huge", (2**40,), "u1", chunks=(2**16,), fletcher32=True), "claims more"),
    ],
    ids=["external-link", "soft-link", "loop", "external", "virtual", "unguarded", "text", "type", "huge"],
)
def test_hostile_contents_are_refused(path: Path, change, says: str) -> None:
    reseal(path, change)
    with pytest.raises(IntegrityError, match=f"{says}.*--force"):
        cache.open_checked(path, PRINT)


@pytest.mark.parametrize("bad", [np.array([object()]), np.array(["a"]), np.float64(1.0)])
def test_only_arrays_of_numbers_are_stored(tmp_path: Path, bad) -> None:
    with pytest.raises(ValueError, match="arrays of numbers"):
        cache.build(tmp_path / "a.h5", PRINT, lambda f: cache.store(f, "bad", np.asarray(bad)))
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "a.h5").exists()


def test_a_stream_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to store"):
        cache.build(tmp_path / "a.h5", PRINT, lambda f: cache.store_stream(f, "none", iter([])))


def test_a_failing_build_leaves_the_old_cache(path: Path) -> None:
    before = path.read_bytes()

    def fail(file: h5py.File) -> None:
        cache.store(file, "x", VALUES)
        raise DataError("source damaged")

    with pytest.raises(DataError, match="source damaged"):
        cache.build(path, PRINT, fail, force=True)
    assert path.read_bytes() == before
    assert leftovers(path.parent) == []


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "caches").write_text("in the way")
    with pytest.raises(ResourceError, match="caches"):
        cache.build(tmp_path / "caches" / "a.h5", PRINT, fill)


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.h5").mkdir()
    with pytest.raises(ResourceError):
        cache.open_checked(tmp_path / "a.h5", PRINT)
    with pytest.raises(ResourceError):
        cache.build(tmp_path / "a.h5", PRINT, fill, force=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ResourceError):
        cache.build(tmp_path / "a.h5", PRINT, fill)


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from seqpyramid.data import cache
    from seqpyramid.errors import ResourceError

    folder = Path(sys.argv[1])
    values = np.random.default_rng(0).random(300_000)
    for limit in (0, 200, 600, 3_000, 100_000, 2_000_000, 2_400_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            cache.build(folder / "a.h5", "0" * 16, lambda f: cache.store(f, "x", values))
        except ResourceError as error:
            sys.stderr.write(f"{limit} {error}")
        else:
            sys.exit(f"no error at {limit}")
        if [p for p in folder.iterdir() if not p.name.endswith(".lock")]:
            sys.exit(f"leftovers at {limit}")
    sys.exit(6)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk_is_told_and_does_not_crash_the_process(tmp_path: Path) -> None:
    """HDF5 by itself would segfault when the process ends."""
    program = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)]
    done = subprocess.run(program, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 6, done.stderr
    assert done.stderr.count("cannot write here (File too large)") == 7


INTERRUPTED = """
    import signal, sys
    from pathlib import Path
    import numpy as np
    from seqpyramid.data import cache

    folder, method, nth = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    original, calls = getattr(cache._Sink, method), []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == nth:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    def write(file):
        cache.store_stream(file, "x", (np.ones((2**18, 1), np.float32) for _ in range(4)))

    setattr(cache._Sink, method, interrupted)
    try:
        cache.build(folder / "a.h5", "0" * 16, write)
    except KeyboardInterrupt:
        sys.exit(f"leftovers {[p.name for p in folder.iterdir() if not p.name.endswith('.lock')]}")
"""


@pytest.mark.parametrize(("method", "nth"), [("write", 1), ("write", 3), ("seek", 4), ("seek", 8)])
def test_a_signal_while_hdf5_writes_does_not_crash_the_process(tmp_path: Path, method: str, nth: int) -> None:
    """HDF5 would lose the exception, take the write for failed, and segfault when the process ends."""
    program = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(tmp_path), method, str(nth)]
    done = subprocess.run(program, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "leftovers []\n")


def test_a_signal_between_two_writes_is_not_kept_waiting(tmp_path: Path) -> None:
    blocks: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        for number in range(3):
            blocks.append(number)
            if number == 1:
                signal.raise_signal(signal.SIGINT)
            yield VALUES

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        cache.build(tmp_path / "a.h5", PRINT, lambda file: cache.store_stream(file, "x", stream()))
    assert blocks == [0, 1]
    assert signal.getsignal(signal.SIGINT) is before
    assert leftovers(tmp_path) == []


def build_slowly(path: str, log: str) -> None:
    def slow(file: h5py.File) -> None:
        with Path(log).open("a") as stream:
            stream.write("built\n")
        time.sleep(0.3)
        fill(file)

    cache.build(Path(path), PRINT, slow)
    cache.open_checked(Path(path), PRINT).close()


def test_of_builders_at_once_one_builds_and_the_others_use_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    path, log = tmp_path / "a.h5", tmp_path / "log"
    builders = [context.Process(target=build_slowly, args=(str(path), str(log))) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(30)
    assert [builder.exitcode for builder in builders] == [0] * 4
    assert log.read_text() == "built\n"
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


KILLED = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from seqpyramid.data import cache

    def stall(file):
        cache.store(file, "x", np.zeros(200_000))
        file.flush()
        print("writing", flush=True)
        time.sleep(60)

    cache.build(Path(sys.argv[1]), sys.argv[2], stall)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_builder_leaves_a_temporary_file_that_the_next_removes(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    program = [sys.executable, "-c", textwrap.dedent(KILLED), str(path), PRINT]
    with subprocess.Popen(program, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "writing\n"
        builder.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert leftovers(tmp_path) == [".a.h5.part"]
    assert cache.build(path, PRINT, fill)
    assert leftovers(tmp_path) == []
    cache.open_checked(path, PRINT).close()


def test_fingerprints_differ_with_every_value_and_not_with_the_order() -> None:
    one = cache.fingerprint({"a": 1, "b": {"c": [1, 2]}})
    assert one == cache.fingerprint({"b": {"c": [1, 2]}, "a": 1})
    others = [
        {"a": 2, "b": {"c": [1, 2]}},
        {"a": 1, "b": {"c": [2, 1]}},
        {"a": 1},
        {"a": "1", "b": {"c": [1, 2]}},
    ]
    assert len({one, *map(cache.fingerprint, others)}) == 5
    assert len(one) == 16
