"""The child that runs models as torch comes."""

import multiprocessing
import os
import signal

import pytest
import torch

from benchmarks.candidates import Setting
from benchmarks.rounds import measure
from benchmarks.untuned import Child, Order, as_torch_comes
from seqpyramid.contracts import TaskSpec

SPEC = TaskSpec(input_size=1, outputs=10)
SETTING = Setting(spec=SPEC, batch_size=8, time=200, device=torch.device("cpu"))
ORDER = Order(recipe="pmnist", models=("lstm_s",), setting=SETTING)


def test_its_steps_take_their_turns_and_it_ends_with_the_block() -> None:
    with as_torch_comes(ORDER) as child:
        assert [(one.name, one.parameters) for one in child.candidates] == [
            ("torch.nn.LSTM(1,100), as torch comes", 42_210),
            ("lstm_s, as torch comes", 41_810),
        ]
        assert child.candidates[1].forward_flops == 200 * 2 * 400 * 101 + 2 * 100 * 10
        assert child.freed_buffers in ("returned to the kernel", "not observable here")
        before = child.cpu_seconds()
        for _ in range(5):
            measured = measure(child.candidates, rounds=2, device=SETTING.device)
        assert {len(seconds) for kind in measured for seconds in kind.values()} == {2}
        assert child.cpu_seconds() - before > 0.03  # it works; answering alone takes a tenth of that

        (process,) = multiprocessing.active_children()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)  # what Ctrl-C sends to both
        child.candidates[0].inference()
        os.kill(process.pid, signal.SIGSTOP)  # as deaf as in the middle of a long step
    assert multiprocessing.active_children() == []


def test_a_process_that_ended_is_a_bug() -> None:
    here, there = multiprocessing.Pipe()
    there.close()
    with here, pytest.raises(RuntimeError, match="as torch comes has ended; see its output"):
        Child(here)
