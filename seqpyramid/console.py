"""What the commands print: progress on stderr, tables on stdout. Imports no torch.

On a terminal a bar moves; elsewhere (a log file of a cluster job) one line comes every half minute.
"""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from seqpyramid.train.observe import Observer, what_differs

LINE_SECONDS = 30.0


class Output(Console):
    """A console whose reader may leave early (``| head``) without that being an error."""

    def on_broken_pipe(self) -> None:
        """Leave quietly."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        raise SystemExit(0)


out = Output()
err = Console(stderr=True)


def note(text: str) -> None:
    """Say something beside the result."""
    err.print(text, style="dim", highlight=False, soft_wrap=True)


class TrainingProgress(Observer):
    """Shows where a run is; ``close`` it when the run ends, however it ends."""

    def __init__(self, label: str, metric: str) -> None:
        self._label, self._metric = label, metric
        self._bar: Bar | None = None
        self._loss: float | None = None
        self._validation = ""
        self._said = self._started = time.monotonic()
        self._first = self._total = self._per_epoch = 0

    def started(self, *, step: int, total_steps: int, steps_per_epoch: int) -> None:
        self._first, self._total, self._per_epoch = step, total_steps, steps_per_epoch
        self._said = self._started = time.monotonic()
        if err.is_terminal:
            self._bar = moving_bar()
            self._bar.start()
            self._bar.add_task(self._label, total=total_steps, completed=step, now="")

    def resumed(self, *, step: int, before: dict[str, Any], now: dict[str, Any]) -> None:
        note(f"{self._label}: continuing at step {step}")
        differs = what_differs(before, now)
        if differs:
            note(f"{self._label}: not the same bytes as without the stop, since {', '.join(differs)}")

    def stepped(self, *, step: int, epoch: int, loss: float) -> None:
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=step, now=f"loss {self._loss:.3f} {self._validation}"
            )
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            pace = (self._said - self._started) / max(1, step - self._first)
            left = duration(pace * (self._total - step))
            at = f"step {step}/{self._total} (epoch {step / self._per_epoch:.2f})"
            note(f"{self._label}: {at}, loss {self._loss:.4f} {self._validation}, about {left} left")

    def recorded(self, record: dict[str, Any]) -> None:
        if record["kind"] == "validation":
            self._validation = f"validation {self._metric} {record[self._metric]:.4f}"

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class BuildProgress:
    """Shows how far a cache is, and about how long it takes; called as ``progress(what, done, total)``."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._what = ""
        self._said = self._started = time.monotonic()
        self._first = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Move the bar on a terminal, say a line every half minute elsewhere."""
        if what != self._what:
            self.close()
            self._what, self._first = what, done
            self._said = self._started = time.monotonic()
            if err.is_terminal:
                self._bar = moving_bar()
                self._bar.start()
                self._bar.add_task(what, total=total, completed=done, now="")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            pace = (self._said - self._started) / max(1, done - self._first)
            note(f"{what}: {done}/{total}, about {duration(pace * (total - done))} left")
        if done >= total:
            self.close()

    def close(self) -> None:
        """Give the terminal back; also when a build ends early."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def moving_bar() -> Bar:
    """A progress bar on stderr that leaves nothing behind."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


def duration(seconds: float) -> str:
    """Say a time in the unit that fits.

    >>> duration(42.3), duration(130), duration(7300)
    ('42 s', '2 min 10 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def score(metrics: dict[str, float], metric: str) -> str:
    """Print a metric as people read it: accuracies in percent.

    >>> score({"accuracy": 0.9642}, "accuracy"), score({"mse": 0.16667}, "mse")
    ('96.42 %', '0.16667')
    """
    if metric not in metrics:
        return "–"
    return f"{100 * metrics[metric]:.2f} %" if metric == "accuracy" else f"{metrics[metric]:.5g}"


def print_results(results: Sequence[dict[str, Any]]) -> None:
    """The table that ends ``train``, and what to type next."""
    metric = results[0]["metric"]
    table = Table(title=f"{results[0]['recipe']}: {metric}", title_justify="left")
    table.add_column("row", no_wrap=True)
    for column in ("seed", "validation", "test", "params", "epoch", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result["row"] + (" †" if result["modified"] else ""),
            str(result["seed"]),
            score(result["validation"], metric),
            score(result["test"], metric),
            f"{result['parameters']:,}",
            f"{result['best']['epoch']} of {result['epochs']:g}",
            duration(result["seconds"]),
        )
    out.print(table)
    if any(result["modified"] for result in results):
        out.print(f"† modified: {', '.join(results[0]['modified'])} (not a reproduction)", highlight=False)
    for result in results:
        out.print(f"run: {result['run']}", highlight=False, soft_wrap=True)
    out.print(
        f"next: seqpyramid eval {shlex.quote(results[0]['run'])}\n"
        f"      seqpyramid compare {shlex.join(result['run'] for result in results)}",
        highlight=False,
        soft_wrap=True,
    )


def print_profiles(recipe: str, profiles: Sequence[dict[str, Any]]) -> None:
    """The tables of ``profile``: sizes, speed, memory."""
    first = profiles[0]
    where = first["device"]
    sizes = Table(title=f"{recipe}: size at T = {first['length']}", title_justify="left")
    speeds = Table(title=f"{recipe}: speed at B = {first['batch_size']} ({where})", title_justify="left")
    memories = Table(
        title=f"{recipe}: memory at B = {first['batch_size']}, T = {first['length']}", title_justify="left"
    )
    for table, columns in (
        (sizes, ("parameters", "printed", "FLOPs a sequence, forward", "counted", "training")),
        (speeds, ("training", "inference", "spread", "threads")),
        (memories, ("training", "inference", "kept a step and row", "training with / without recompute")),
    ):
        table.add_column("row")
        for column in columns:
            table.add_column(column, justify="right")
    for one in profiles:
        cost, speed, memory, again = one["flops"], one["speed"], one["memory"], one["recompute"]
        counted = (
            "cannot be counted" if cost["counted"] is None else "agrees" if cost["agrees"] else "DIFFERS"
        )
        sizes.add_row(
            one["row"],
            f"{one['parameters']:,}",
            one["parameters_printed"] or "–",
            f"{cost['forward'] / 1e6:,.1f} M",
            counted,
            f"≈ {cost['training'] / 1e6:,.1f} M",
        )
        speeds.add_row(
            one["row"],
            f"{speed['train_sequences_per_second']:,.1f} seq/s",
            f"{speed['inference_sequences_per_second']:,.1f} seq/s",
            f"{100 * speed['train_spread']:.0f} % / {100 * speed['inference_spread']:.0f} %",
            str(one["threads"])
            if one["threads"] == one["kernel_threads"]
            else f"{one['threads']}, kernels {one['kernel_threads']}",
        )
        memories.add_row(
            one["row"],
            f"{memory['train_bytes'] / 2**20:,.0f} MiB",
            f"{memory['inference_bytes'] / 2**20:,.0f} MiB",
            f"{memory['kept_bytes_per_step']:,.0f} B",
            "–"
            if again is None
            else " / ".join(f"{again[how]['train_bytes'] / 2**20:,.0f}" for how in ("with", "without"))
            + " MiB",
        )
    for table in (sizes, speeds, memories):
        out.print(table)


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A plain table."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    out.print(table)
