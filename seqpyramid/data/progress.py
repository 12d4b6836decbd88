"""How long work tells how far it is."""

import time
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``, in files, bytes or whatever is counted."""

PROGRESS_SECONDS = 0.1
"""Between two calls of :class:`Report`."""


class Report:
    """Calls ``progress`` at the beginning, at the end, and not too often between."""

    def __init__(self, progress: Progress | None, what: str, total: int) -> None:
        self._progress, self._what, self._total = progress, what, total
        self._done, self._next = 0, 0.0
        self(0)

    def __call__(self, done: int) -> None:
        self._done = done
        self.again()

    def again(self) -> None:
        """Show that the process is alive, though nothing is new."""
        now = time.monotonic()
        if self._progress is not None and (now >= self._next or self._done == self._total):
            self._progress(self._what, self._done, self._total)
            self._next = now + PROGRESS_SECONDS
