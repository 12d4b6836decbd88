"""The only file that knows the names inside a run folder, and the shape of its result.

    <run>/recipe.yaml        the merged recipe that ran (one row, overrides applied)
    <run>/provenance.json    versions, machine, command, fingerprints, data
    <run>/task.json          what the task learnt from its data and needs again for new files (class names, scales)
    <run>/metrics.jsonl      one JSON object a line: training and validation records, in step order
    <run>/checkpoints/       last.pt and best.pt, each ending in its own SHA-256
    <run>/test-passes.jsonl  one line for each time the test split was read
    <run>/result.json        what the run found; written when it ends, renamed into place
    <run>/predictions-<split>.csv, report-<split>.txt, confusion-<split>.png   written by ``eval``

Nothing here imports torch, so that ``compare`` stays light.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from seqpyramid.errors import IntegrityError, ResourceError, UserError

RESULT_FORMAT = 1
"""Raised when a key of result.json changes its meaning.

Keys of result.json: format, status ("finished"), recipe (name), row (name in the recipe's ``models``), model and
task (registry names), seed, fingerprint {all, task, train, model}, modified (list of the overrides; empty for a
recipe as printed), paper {paper, table, column} or null, parameters, metric and mode (the selection metric),
validation and test (each {loss, count, and the task's metrics, as fractions}), accuracy and loss (of the test
split, where there are any), trivial, best {step, epoch}, steps, epochs, stopped_by, seconds (training only),
sequences_per_second, test_accesses, checkpoint (SHA-256 of best.pt), data {splits, split_hash,
fingerprint, details}, environment {torch, python, device, threads, ...}, run (folder).
"""


class RunDir:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def recipe(self) -> Path:
        """The merged recipe."""
        return self.path / "recipe.yaml"

    @property
    def provenance(self) -> Path:
        """Where the run came from."""
        return self.path / "provenance.json"

    @property
    def memory(self) -> Path:
        """What the task needs again for new files."""
        return self.path / "task.json"

    @property
    def metrics(self) -> Path:
        """Records, one a line."""
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """What the run found."""
        return self.path / "result.json"

    @property
    def last(self) -> Path:
        """Checkpoint to continue from."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        """Checkpoint of the best validation score."""
        return self.path / "checkpoints" / "best.pt"

    @property
    def tensorboard(self) -> Path:
        """Event files, where asked for."""
        return self.path / "tensorboard"

    def predictions(self, split: str) -> Path:
        """Predictions of one split, a line an example."""
        return self.path / f"predictions-{split}.csv"

    def report(self, split: str) -> Path:
        """Per-class report of one split."""
        return self.path / f"report-{split}.txt"

    def confusion(self, split: str) -> Path:
        """Picture of the confusion matrix of one split."""
        return self.path / f"confusion-{split}.png"

    @property
    def test_passes(self) -> Path:
        """One line for each time the test split was read; appended before the reading."""
        return self.path / "test-passes.jsonl"

    def note_test_pass(self, command: str, checkpoint: str) -> None:
        """Count a reading of the test split, before it happens."""
        line = json.dumps({"when": now(), "command": command, "checkpoint": checkpoint}) + "\n"
        try:
            with self.test_passes.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            raise resource_error(error, self.test_passes) from None

    def count_test_passes(self) -> int:
        """How often the test split was read."""
        if not self.test_passes.exists():
            return 0
        return len(self.test_passes.read_text(encoding="utf-8").splitlines())

    def clear(self) -> None:
        """Delete what a run writes here, and nothing else."""
        files = [
            self.recipe,
            self.provenance,
            self.memory,
            self.metrics,
            self.result,
            self.last,
            self.best,
            self.test_passes,
        ]
        for split in ("train", "validation", "test"):
            files += [self.predictions(split), self.report(split), self.confusion(split)]
        for file in files:
            file.unlink(missing_ok=True)

    def exists(self) -> bool:
        """Whether something ran here."""
        return self.recipe.exists()

    def read_result(self) -> dict[str, Any]:
        """Read result.json.

        Raises:
            IntegrityError: it is no JSON object of the known format.
        """
        return read_result(self.result)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process out of this folder; released by the system when the process dies."""
        make_folder(self.path)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ResourceError(
                f"{self.path}: another process is using this run folder; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise resource_error(error, self.path) from None
        try:
            yield
        finally:
            lock.release()


def read_result(path: Path) -> dict[str, Any]:
    """Read one result file, refusing what this version cannot read.

    Raises:
        IntegrityError: it is no JSON object of the known format.
    """
    content = read_json(path)
    if content.get("format") != RESULT_FORMAT:
        raise IntegrityError(f"{path}: written in a format that this version does not read; train it again")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object of a run folder.

    Raises:
        UserError: there is no such file.
        IntegrityError: it is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no result here yet; run `seqpyramid train` to the end first") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise IntegrityError(
            f"{path}: not a result file ({error}); train the run again with --force"
        ) from None
    if not isinstance(content, dict):
        raise IntegrityError(f"{path}: holds no JSON object; continue or repeat the run again with --force")
    return content


def now() -> str:
    """The time, to the second, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it into place."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises:
        ResourceError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    make_folder(path.parent)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise resource_error(error, path) from None
    except BaseException:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        ResourceError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise resource_error(error, path) from None


def resource_error(error: OSError, path: Path) -> ResourceError:
    """Say in one sentence what the machine refused, and where."""
    reason = error.strerror or str(error)
    return ResourceError(f"{path}: cannot write here ({reason}); free some space or choose another folder")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
