"""The rate of matrix products, and the shares of it."""

import pytest
import torch

from benchmarks import limit
from benchmarks.candidates import Candidate
from benchmarks.limit import Rate, best_rate, best_rates, rate_line, share_table, sustained
from benchmarks.rounds import Measured
from seqpyramid.errors import RecipeError

CPU = torch.device("cpu")


class Products:
    """Stands in for torch.mm: a product takes a known time."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, seconds: dict[tuple[int, int, int], list[float]]
    ) -> None:
        self.now, self.seconds, self.threads = 0.0, seconds, set[int]()
        monkeypatch.setattr(limit, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch, "mm", self.multiply)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)

    def multiply(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        shape = (a.shape[0], a.shape[1], b.shape[1])
        assert a.dtype == b.dtype == torch.float32
        if out is None:  # the first, unmeasured: another figure begins
            self.threads.add(torch.get_num_threads())
            self.each = self.seconds[shape].pop(0)
            return torch.empty(a.shape[0], b.shape[1])
        self.now += self.each
        return out


def test_the_best_figure_of_all_shapes_and_repeats_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (2, 3, 4), (20, 30, 40)
    products = Products(monkeypatch, {small: [0.02, 0.01, 0.08], large: [100.0, 10.0, 10.0]})
    before = torch.get_num_threads()
    best = best_rate(threads=2, device=CPU, shapes=[small, large], repeats=3, seconds=1.0)
    assert best.shape == large
    assert best.flops_per_second == pytest.approx(2 * 20 * 30 * 40 / 10.0)
    assert products.threads == {2}
    assert torch.get_num_threads() == before


def test_a_figure_lasts_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    products = Products(monkeypatch, {(2, 3, 4): [0.01]})
    rate = sustained((2, 3, 4), CPU, 1.0)
    assert products.now >= 1.0
    assert rate.flops_per_second == pytest.approx(2 * 2 * 3 * 4 / 0.01)


def test_one_thread_and_all_are_measured_and_the_better_of_two_times_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {1: 10.0, 2: 15.0, None: 0.0}
    shape = (1, 1, 1)
    monkeypatch.setattr(limit, "best_rate", lambda threads, device: Rate(given[threads], shape))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    known = {"1 thread": Rate(12.0, shape), "2 threads": Rate(11.0, shape)}
    found = best_rates(CPU, known)
    assert found == {"1 thread": Rate(12.0, shape), "2 threads": Rate(15.0, shape)}
    assert rate_line({"1 thread": Rate(2.5e11, (2, 3, 4))}).endswith(
        "250 GFLOP/s on 1 thread (2 x 3 x 4 by torch.mm)."
    )


def test_what_multiplies_best_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"torch.mm": 2.0, "oneDNN": 3.0}
    monkeypatch.setattr(limit, "sustained", lambda shape, device, seconds, by: Rate(taken[by], shape, by))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert best_rate(device=CPU, shapes=[(2, 3, 4)]) == Rate(3.0, (2, 3, 4), "oneDNN")
    assert list(limit.products(torch.device("cuda"))) == ["torch.mm"]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_onednn_multiplies_in_float32() -> None:
    left, right = torch.randn(70, 300), torch.randn(300, 50)
    product = limit.products(CPU)["oneDNN"](left, right)()
    assert isinstance(product, torch.Tensor)
    exact = left.double() @ right.double()
    assert ((product.to_dense() - exact).abs().max() / exact.abs().max()).item() < 1e-6


def test_another_precision_is_refused() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(RecipeError, match="precision 'high' here; set torch's back to 'highest'"):
            best_rate(device=CPU)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_share_is_three_forward_passes_over_time_and_limit() -> None:
    def one(name: str, flops: int | None) -> Candidate:
        return Candidate(
            name=name, parameters=0, training=lambda: None, inference=lambda: None, forward_flops=flops
        )

    measured = Measured({"a": [2.0, 1.0, 9.0], "b": [1.0] * 3}, {})
    text = share_table(
        [one("a", 10**9), one("b", None)], measured, batch_size=4, limit=Rate(2.4e10, (1, 1, 1))
    )
    assert text.splitlines()[2:] == ["| a | 12 | 6 | 0.25 |"]
