"""What a user can be told: one exception family and one exit-code table.

Every :class:`UserError` carries one sentence that says what is wrong, where, and what to do next. The command
line prints that sentence and leaves with the code of the class; anything else that escapes is a bug (code 1).
"""

from typing import ClassVar

EXIT_CODES: dict[int, str] = {
    0: "ok",
    1: "bug in seqpyramid",
    2: "usage or recipe",
    3: "data missing or damaged",
    4: "training diverged",
    5: "checkpoint or cache damaged or incompatible",
    6: "resource (disk, memory, permission)",
    130: "stopped by Ctrl-C, resumable",
    143: "stopped by SIGTERM, resumable",
}


class UserError(Exception):
    """The user can mend this; the message is the one sentence they need."""

    exit_code: ClassVar[int] = 2

    @property
    def code(self) -> int:
        """Exit code of the process."""
        return self.exit_code


class RecipeError(UserError):
    """A recipe, an override or a command-line value is wrong. ``problems`` lists every fault found."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(UserError):
    """Data is missing, damaged, or not what its name says."""

    exit_code = 3


class DivergedError(UserError):
    """Training produced a non-finite loss or gradient."""

    exit_code = 4


class IntegrityError(UserError):
    """A checkpoint, cache or run folder is damaged or belongs to something else."""

    exit_code = 5


class ResourceError(UserError):
    """The machine refused: disk full, folder read-only, not enough memory."""

    exit_code = 6


class StoppedError(UserError):
    """A signal ended the command after its state was saved; running the command again continues."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.signal_number = signal_number
        super().__init__(message)

    @property
    def code(self) -> int:
        """Exit code of a process ended by this signal."""
        return 128 + self.signal_number
