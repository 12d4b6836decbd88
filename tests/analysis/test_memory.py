"""Peak memory of steps that allocate a known amount."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from seqpyramid.analysis import memory
from seqpyramid.analysis.memory import Build, SyntheticBuild, peak_memory, resident_peak, restart_peak
from seqpyramid.analysis.speed import synthetic_batch
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError, ResourceError
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel

CPU = torch.device("cpu")
SPEC = TaskSpec(input_size=1, outputs=2)
MEGABYTE = 2**20


class Hungry(SequenceModel):
    """Holds one float32 of work for each (sequence, feature); keeps two of them for the backward pass."""

    def __init__(self, spec: TaskSpec, width: int) -> None:
        super().__init__(spec, summary_size=1)
        self.width = width

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        wide = x[:, -1] * self.head.linear.weight[:1].expand(1, self.width)
        return Encoding(summary=wide.exp().sum(1, keepdim=True))

    def encoder_flops(self, time: int) -> int:
        return 0


class HungryConfig(ModelConfig):
    name: Literal["hungry"] = "hungry"
    width: int

    def _build(self, spec: TaskSpec) -> SequenceModel:
        # the build's own peak is far above the step's and must not hide it
        torch.ones(256 * MEGABYTE // 4).sum()
        return Hungry(spec, self.width)


class Killed:
    """What the system's out-of-memory killer does."""

    def __call__(self) -> tuple[SequenceModel, Tensor, Tensor, Tensor]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


class Refused:
    """A recipe whose model does not suit its task."""

    def __call__(self) -> tuple[SequenceModel, Tensor, Tensor, Tensor]:
        raise RecipeError("this model cannot")


class Faulty:
    """A bug."""

    def __call__(self) -> tuple[SequenceModel, Tensor, Tensor, Tensor]:
        os.close(2)  # its traceback is no business of the test's reader
        raise AssertionError("a bug")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can set the peak back")
def test_growth_is_what_the_step_allocates() -> None:
    unit = 32 * MEGABYTE
    build = SyntheticBuild(config=HungryConfig(width=unit // 4 // 4), spec=SPEC, batch_size=4, time=2)
    found = peak_memory(build, CPU)
    slack = 24 * MEGABYTE
    # forward: the product and its exponential, both alive at once
    assert 2 * unit <= found.inference_bytes < 2 * unit + slack
    # backward adds the gradient of the exponential's input to what forward kept
    assert 2 * unit <= found.train_bytes < 4 * unit + slack
    assert found.train_bytes > found.inference_bytes


def test_what_goes_wrong_in_the_other_process_is_told() -> None:
    def failure(build: Build) -> BaseException | None:
        with ThreadPoolExecutor(1) as alone:
            return alone.submit(peak_memory, build, CPU).exception()

    with ThreadPoolExecutor(3) as together:
        killed, refused, faulty = together.map(failure, [Killed(), Refused(), Faulty()])
    assert isinstance(killed, ResourceError)
    assert "one train step needs more memory than cpu has" in str(killed)
    assert isinstance(refused, RecipeError)
    assert str(refused) == "this model cannot"
    assert isinstance(faulty, RuntimeError)
    assert "one train step ended with 1" in str(faulty)


def test_a_refused_allocation_is_a_matter_of_memory() -> None:
    def build() -> tuple[SequenceModel, Tensor, Tensor, Tensor]:
        return Hungry(SPEC, 2**48), *synthetic_batch(SPEC, batch_size=1, time=1)

    # in this process, where it is quicker: nothing is measured before it fails
    with pytest.raises(ResourceError, match="one inference step needs more memory than cpu has"):
        memory._growth_on_cpu(build, "inference")


def test_other_faults_are_not_called_memory() -> None:
    def build() -> tuple[SequenceModel, Tensor, Tensor, Tensor]:
        batch = synthetic_batch(SPEC, batch_size=1, time=1)
        return Hungry(SPEC, 3), batch.x, batch.lengths, batch.y + 7

    with pytest.raises(IndexError, match=r"Target [78]"):
        memory._growth_on_cpu(build, "train")


def test_the_peak_can_be_set_back() -> None:
    block = torch.ones(64 * MEGABYTE // 4)
    high = resident_peak()
    assert high > 64 * MEGABYTE
    del block
    restart_peak()
    assert resident_peak() <= high
