"""What the report says of the machine."""

import os

import pytest
import torch

from benchmarks.machine import CPUSeconds, cpu_seconds, header, share_of_others

CPU = torch.device("cpu")


def test_the_header_tells_whether_denormals_are_flushed() -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormal numbers")
    assert "denormals kept" in header(CPU)
    torch.set_flush_denormal(True)  # set back after every test
    assert "denormals flushed to zero" in header(CPU)


def test_cpu_time_is_divided_between_the_benchmark_and_others() -> None:
    before = cpu_seconds()
    if before is None:
        pytest.skip("this system has no /proc/stat")
    sum(range(3_000_000))
    after = cpu_seconds()
    assert after is not None
    assert 0 <= before.others < before.available < after.available
    told = cpu_seconds(also=1.0)
    assert told is not None
    assert told.others < after.others


def test_children_that_have_ended_are_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def others(*times: float) -> float:
        monkeypatch.setattr(os, "times", lambda: times)
        found = cpu_seconds()
        if found is None:
            pytest.skip("this system has no /proc/stat")
        return found.others

    assert others(1.0, 2.0, 400.0, 500.0, 1e9) == pytest.approx(others(0, 0, 0, 0, 0) - 903.0, abs=2)


def test_a_share_is_of_the_time_between_two_readings() -> None:
    text = share_of_others(CPUSeconds(100.0, 50.0), CPUSeconds(110.0, 51.0))
    assert text.startswith("Other processes used 10% of the CPU")
    assert share_of_others(None, None) == share_of_others(CPUSeconds(1, 1), CPUSeconds(1, 1)) == ""
