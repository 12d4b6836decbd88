"""The two fused GRU layers against loops over plain steps, and the model that calls one."""

import math
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqpyramid.kernels.gru import gru_layer, reset_before_gru_layer
from seqpyramid.kernels.lstm import Segment
from seqpyramid.models.cells import GRUCell
from seqpyramid.models.dilated import ResetBeforeGRU
from tests.kernels import (
    asked_segments,
    assert_recomputation_changes_no_bit,
    assert_same,
    needs_kernels,
    running,
)

pytestmark = needs_kernels

DTYPES = (torch.float32, torch.float64)


def plain(x: Tensor, module: nn.Module, lengths: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    """Steps and the last h of either form, each sequence frozen at its end."""
    if isinstance(module, GRUCell):
        projected = module.project(x)
    else:
        assert isinstance(module, ResetBeforeGRU)
        projected = nn.functional.linear(x, module.weight_ih, module.bias_ih)
        if module.bias_hh is not None:
            projected = projected + module.bias_hh
    hidden = projected.shape[-1] // 3
    h = x.new_zeros(len(x), hidden) if h is None else h
    steps = []
    for t, step in enumerate(projected.unbind(1)):
        if isinstance(module, GRUCell):
            (new,) = module.step(step, (h,))
        else:
            gates, candidate = step[:, : 2 * hidden], step[:, 2 * hidden :]
            new = module.step(gates, candidate, h)
        goes_on = (t < lengths)[:, None]
        h = torch.where(goes_on, new, h)
        steps.append(torch.where(goes_on, h, torch.zeros_like(h)))
    return torch.stack(steps, 1), h


def fused(
    x: Tensor,
    module: nn.Module,
    lengths: Tensor,
    h: Tensor | None,
    *,
    keep_steps: bool = True,
    segment: Segment = None,
) -> tuple[Any, Tensor]:
    if isinstance(module, GRUCell):
        weights = module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh
        return gru_layer(x, *weights, lengths, h, keep_steps=keep_steps, segment=segment)
    assert isinstance(module, ResetBeforeGRU)
    bias = module.bias_ih if module.bias_hh is None else module.bias_ih + module.bias_hh
    return reset_before_gru_layer(
        x,
        module.weight_ih,
        module.weight_gates,
        module.weight_candidate,
        bias,
        lengths,
        h,
        keep_steps=keep_steps,
        segment=segment,
    )


def make(reset: str, F: int, H: int, *, double: bool = True) -> nn.Module:
    torch.manual_seed(0)
    bias = "double" if double else "single"
    if reset == "after":
        return GRUCell(F, H, bias=bias)  # type: ignore[arg-type]
    return ResetBeforeGRU(F, H, bias=bias, init="torch")  # type: ignore[arg-type]


def compare(
    *,
    reset: str,
    B: int,
    T: int,
    F: int,
    H: int,
    double: bool,
    carried: bool,
    ragged: bool,
    dtype: torch.dtype,
    threads: int,
    one_scale: bool = False,
) -> None:
    """Compare outputs and gradients of the twins.

    Every gradient is a sum of the same terms, times x, h, a weight or 1. A sum of a few rounded terms may cancel to a
    thousandth of them; with ``one_scale`` the largest gradient of all therefore is the measure of each, and inputs
    are such that no unit saturates, for what is left of 1 - h^2 then has lost its digits in either twin.
    """
    module = make(reset, F, H, double=double).to(dtype)
    x = torch.randn(B, T, F, dtype=dtype)
    x = (x * math.sqrt(H / F) if one_scale else x).requires_grad_()
    state = torch.randn(B, H, dtype=dtype, requires_grad=True) if carried else None
    lengths = torch.randint(1, T + 1, (B,)) if ragged else torch.full((B,), T)
    read = [torch.randn(B, T, H, dtype=dtype), torch.randn(B, H, dtype=dtype)]
    found = []
    with running("auto", threads):
        for layer in (plain, fused):
            outputs = layer(x, module, lengths, state)
            loss = torch.stack([(o * r).sum() for o, r in zip(outputs, read, strict=True)]).sum()
            inputs = [x, *module.parameters(), *(() if state is None else (state,))]
            # without a state, one step of a reset-before GRU does not read the gates' recurrent weights
            gradients = torch.autograd.grad(loss, inputs, materialize_grads=True)
            if one_scale:
                gradients = (torch.cat([gradient.flatten() for gradient in gradients]),)
            found.append([*outputs, *gradients])
    assert_same(*found)


@settings(max_examples=50)
@given(
    reset=st.sampled_from(["after", "before"]),
    B=st.integers(1, 70),
    T=st.integers(1, 7),
    F=st.integers(1, 18),
    H=st.integers(1, 37),
    double=st.booleans(),
    carried=st.booleans(),
    ragged=st.booleans(),
    threads=st.integers(1, 3),
)
def test_equals_the_loop(
    reset: str, B: int, T: int, F: int, H: int, double: bool, carried: bool, ragged: bool, threads: int
) -> None:
    for dtype in (torch.float64, torch.float32):
        compare(
            reset=reset,
            B=B,
            T=T,
            F=F,
            H=H,
            double=double,
            carried=carried,
            ragged=ragged,
            dtype=dtype,
            threads=threads,
            one_scale=dtype is torch.float32,
        )


@pytest.mark.parametrize("reset", ["after", "before"])
@pytest.mark.parametrize(("B", "H"), [(8, 21), (13, 36), (45, 40), (70, 48)])
def test_every_level_equals_the_loop(level: str, reset: str, B: int, H: int) -> None:
    """Groups of many rows, of a few and of one; blocks of units of every width, alone and in pairs."""
    for dtype in (torch.float64, torch.float32):
        compare(
            reset=reset,
            B=B,
            T=5,
            F=3,
            H=H,
            double=True,
            carried=True,
            ragged=True,
            dtype=dtype,
            threads=2,
            one_scale=dtype is torch.float32,
        )


@pytest.mark.parametrize("reset", ["after", "before"])
@pytest.mark.parametrize(("B", "H"), [(8, 21), (13, 36), (70, 48)])
def test_recomputation_changes_no_bit(level: str, reset: str, B: int, H: int) -> None:
    T, F = 7, 3
    for dtype, carried, ragged, keep_steps in product(DTYPES, *[(False, True)] * 3):
        module = make(reset, F, H).to(dtype)
        x = torch.randn(B, T, F, dtype=dtype, requires_grad=True)
        state = torch.randn(B, H, dtype=dtype, requires_grad=True) if carried else None
        lengths = torch.randint(1, T + 1, (B,)) if ragged else torch.full((B,), T)
        leaves = [x, *module.parameters(), *(() if state is None else (state,))]
        run = partial(fused, x, module, lengths, state, keep_steps=keep_steps)
        with running("auto", 2):
            assert_recomputation_changes_no_bit(lambda s, run=run: run(segment=s), leaves, [1, 3, T, "auto"])


@pytest.mark.parametrize(("reset", "kept", "segment"), [("after", 5, 12), ("before", 4, 15)])
def test_segments_are_as_long_as_needs_the_least_memory(
    monkeypatch: pytest.MonkeyPatch, reset: str, kept: int, segment: int
) -> None:
    seen = asked_segments(monkeypatch)
    B, T, F = 8, 900, 1  # one slice
    with running("auto"):
        fused(torch.randn(B, T, F), make(reset, F, 3), torch.full((B,), T), None, segment="auto")

    def states(segment: int) -> int:
        """Of a sequence: h of each start but the first, h and planes of each step."""
        return ((T - 1) // segment) + kept * segment

    assert seen[-1] == min(range(1, T + 1), key=states) == segment


@pytest.mark.parametrize("reset", ["after", "before"])
def test_many_rows_and_units(reset: str) -> None:
    """More rows than go through time together, more inputs and more units than one tile of columns."""
    compare(
        reset=reset,
        B=150,
        T=3,
        F=70,
        H=100,
        double=False,
        carried=False,
        ragged=True,
        dtype=torch.float32,
        threads=2,
    )


def test_is_torchs_gru() -> None:
    torch.manual_seed(0)
    layer = nn.GRU(3, 5, batch_first=True).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    weight_ih, weight_hh, bias_ih, bias_hh = layer.parameters()
    lengths = torch.full((4,), 6)
    steps, h = gru_layer(x, weight_ih, weight_hh, bias_ih, bias_hh, lengths, keep_steps=True)
    expected = layer(x)
    assert steps is not None
    assert_same([expected[0], expected[1][0]], [steps, h])


RESETS = pytest.mark.parametrize("reset", ["after", "before"])


@RESETS
def test_gradient_is_the_derivative(reset: str) -> None:
    module = make(reset, 2, 3).double()
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    first = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([2, 4, 1])

    def run(x: Tensor, first: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return fused(x, module, lengths, first)

    assert torch.autograd.gradcheck(run, (x, first, *module.parameters()))


MANY = [6, 2, 1, 6, *([4, 5, 3, 6, 2] * 8)]
"""Lengths of more rows than go through a step together; those still running get fewer until vectors are faster."""


@RESETS
@pytest.mark.parametrize(("dtype", "lasting"), [(torch.float64, [6, 2, 1, 6]), (torch.float32, MANY)])
def test_without_gradients_and_without_steps_the_numbers_are_the_same(
    reset: str, dtype: torch.dtype, lasting: list[int]
) -> None:
    module = make(reset, 3, 5).to(dtype)
    x, lengths = torch.randn(len(lasting), 6, 3, dtype=dtype), torch.tensor(lasting)
    steps, h = fused(x, module, lengths, None)
    none, last_only = fused(x, module, lengths, None, keep_steps=False)
    with torch.no_grad():
        steps_off, last_off = fused(x, module, lengths, None)
        none_off, last_alone_off = fused(x, module, lengths, None, keep_steps=False)
    assert none is None
    assert none_off is None
    assert torch.equal(steps, steps_off)
    for other in (last_only, last_off, last_alone_off):
        assert torch.equal(h, other)
    assert not last_off.requires_grad
    expected, found = (torch.autograd.grad((o * o).sum(), list(module.parameters())) for o in (h, last_only))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@RESETS
@pytest.mark.parametrize(("dtype", "lasting"), [(torch.float64, [6, 2, 1, 6]), (torch.float32, MANY)])
def test_padding_is_not_read_and_gets_nothing(reset: str, dtype: torch.dtype, lasting: list[int]) -> None:
    module = make(reset, 3, 5).to(dtype)
    x, lengths = torch.randn(len(lasting), 6, 3, dtype=dtype, requires_grad=True), torch.tensor(lasting)
    steps, h = fused(x, module, lengths, None)
    spoilt = x.detach().clone()
    for row, n in enumerate(lengths):
        spoilt[row, n:] = float("nan")
    again = fused(spoilt, module, lengths, None)
    assert torch.equal(steps, again[0])
    assert torch.equal(h, again[1])
    (gradient,) = torch.autograd.grad(steps.sum(), x)
    for row, n in enumerate(lengths):
        assert (steps[row, n:] == 0).all()
        assert (gradient[row, n:] == 0).all()
        assert (gradient[row, :n] != 0).all()


@RESETS
def test_up_to_four_threads_give_the_same_bits(reset: str) -> None:
    module, x, lengths = make(reset, 1, 5), torch.randn(70, 6, 1), torch.randint(1, 7, (70,))
    found = []
    for threads in (1, 2, 4, 4):
        with running("auto", threads):
            h = fused(x, module, lengths, None)[1]
            found.append(torch.autograd.grad((h * h).sum(), list(module.parameters())))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@RESETS
def test_units_saturate(reset: str) -> None:
    module, x = make(reset, 3, 21), 40 * torch.randn(13, 6, 3)
    lengths = torch.full((13,), 6)
    with torch.no_grad():
        expected, found = plain(x, module, lengths, None), fused(x, module, lengths, None)
    assert found[1].abs().max() > 0.99
    assert_same(expected, found)


@RESETS
@pytest.mark.parametrize(("rows", "H"), [(4, 5), (40, 5), (40, 80)])
def test_nan_comes_through_and_stays_in_its_row(reset: str, rows: int, H: int) -> None:
    module, x = make(reset, 3, H), torch.randn(rows, 6, 3)
    x[1, 2] = float("nan")
    h = fused(x.requires_grad_(), module, torch.full((rows,), 6), None)[1]
    others = torch.arange(rows) != 1
    (gradient,) = torch.autograd.grad(h[others].sum(), x)
    assert h[1].isnan().all()
    assert h[others].isfinite().all()
    assert gradient[others].isfinite().all()
