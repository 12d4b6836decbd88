"""What all tests share: one CPU thread, and where the real data lies in a working copy that has it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"

settings.register_profile("seqpyramid", deadline=None)  # a busy machine is no failure
settings.load_profile("seqpyramid")
# a shell starts background jobs with Ctrl-C ignored, and their children would be deaf to it too
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # two test processes side by side would otherwise fight over the cores


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden vectors beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared folder with real data and golden vectors beside this checkout")
    return SHARED


@pytest.fixture(autouse=True)
def _denormals_are_numbers() -> Iterator[None]:
    """Undo what a command run inside the test process did to its floating point."""
    yield
    torch.set_flush_denormal(False)
