"""The speed benchmark runs, and lays out what it measured."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from seqpyramid import kernels
from seqpyramid.analysis.speed import Ratio, ReferenceLSTM, Timing
from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding

SPEC = TaskSpec(input_size=2, outputs=3)


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return importlib.import_module("benchmarks.speed")


def test_every_model_is_compared_with_the_reference(benchmark_module: ModuleType) -> None:
    rows = benchmark_module.compare(
        {"twin": ReferenceLSTM(SPEC)}, SPEC, batch_size=2, time=3, rounds=4, device=torch.device("cpu")
    )
    stack = "torch.nn.LSTM(2,100), three layers"
    assert [row.name for row in rows] == ["torch.nn.LSTM(2,100)", stack, "twin"]
    assert rows[0].train.median == rows[0].inference.median == 1.0
    one = 4 * 100 * (2 + 100 + 2) + 303
    assert [row.parameters for row in rows] == [one, one + 2 * 4 * 100 * (100 + 100 + 2), one]
    assert {ratio.seconds.n for row in rows for ratio in (row.train, row.inference)} == {4}


def test_a_twin_is_measured_without_kernels(benchmark_module: ModuleType) -> None:
    seen = []

    class Watched(ReferenceLSTM):
        def encode(self, x: torch.Tensor, lengths: torch.Tensor, state: object = None) -> Encoding:
            seen.append(kernels.chosen())
            return super().encode(x, lengths, state)

    rows = benchmark_module.compare(
        {"a": Watched(SPEC)}, SPEC, batch_size=2, time=3, rounds=1, device=torch.device("cpu"), twins=True
    )
    assert [row.name for row in rows][2:] == ["a", "a, plain"]
    assert rows[2].parameters == rows[3].parameters
    assert seen.count("auto") == seen.count("plain") > 0
    assert kernels.chosen() == "auto"


def test_the_table_gives_sequences_a_second(benchmark_module: ModuleType) -> None:
    train = Ratio(median=0.5, min=0.4, max=0.6, seconds=Timing(0.1, 0.1, 0.2, 5))
    inference = Ratio(median=2.0, min=1.0, max=3.0, seconds=Timing(0.02, 0.01, 0.2, 5))
    text = benchmark_module.table([benchmark_module.Row("tp", 12345, train, inference)], batch_size=128)
    assert text.splitlines()[2] == "| tp | 12,345 | 1,280 | 0.50 (0.40-0.60) | 6,400 | 2.00 (1.00-3.00) |"


def test_the_header_tells_whether_denormals_are_flushed(benchmark_module: ModuleType) -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormal numbers")
    assert "denormals kept" in benchmark_module.header(torch.device("cpu"))
    try:
        torch.set_flush_denormal(True)
        assert "denormals flushed to zero" in benchmark_module.header(torch.device("cpu"))
    finally:
        torch.set_flush_denormal(False)


def test_cpu_time_is_divided_between_this_process_and_others(benchmark_module: ModuleType) -> None:
    before = benchmark_module.cpu_seconds()
    if before is None:
        pytest.skip("this system has no /proc/stat")
    sum(range(3_000_000))
    after = benchmark_module.cpu_seconds()
    assert 0 <= before.others < before.available < after.available


def test_a_wrong_option_ends_with_one_sentence(
    benchmark_module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        benchmark_module, "tune_process", lambda *_: None
    )  # it would change this process for good
    assert benchmark_module.main(["--device", "abacus"]) == 2
    assert "--device abacus" in capsys.readouterr().err
