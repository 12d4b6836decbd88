"""The fused Elman layer against the loop over plain steps, and the model that calls it."""

import math
from functools import partial
from itertools import product
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqpyramid.kernels.elman import elman_layer
from seqpyramid.models.cells import ElmanCell
from tests.kernels import (
    asked_segments,
    assert_recomputation_changes_no_bit,
    assert_same,
    needs_kernels,
    running,
)

pytestmark = needs_kernels

DTYPES = (torch.float32, torch.float64)
Nonlinearity = Literal["tanh", "relu"]
FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu}


def plain(
    x: Tensor, cell: ElmanCell, lengths: Tensor, h: Tensor | None, nonlinearity: Nonlinearity
) -> tuple[Tensor, Tensor]:
    """Steps and the last h, each sequence frozen at its end."""
    h = cell.initial(len(x))[0] if h is None else h
    steps = []
    for t, projected in enumerate(cell.project(x).unbind(1)):
        goes_on = (t < lengths)[:, None]
        h = torch.where(goes_on, FUNCTIONS[nonlinearity](projected + cell.recur(h)), h)
        steps.append(torch.where(goes_on, h, torch.zeros_like(h)))
    return torch.stack(steps, 1), h


def fused(
    x: Tensor, cell: ElmanCell, lengths: Tensor, h: Tensor | None, nonlinearity: Nonlinearity
) -> tuple[Tensor, Tensor]:
    steps, last = elman_layer(
        x,
        cell.weight_ih,
        cell.weight_hh,
        cell.bias_ih,
        lengths,
        h,
        nonlinearity=nonlinearity,
        keep_steps=True,
    )
    assert steps is not None
    return steps, last


def compare(
    *,
    B: int,
    T: int,
    F: int,
    H: int,
    nonlinearity: Nonlinearity,
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
    torch.manual_seed(0)
    cell = ElmanCell(F, H).to(dtype)
    x = torch.randn(B, T, F, dtype=dtype)
    x = (x * math.sqrt(H / F) if one_scale else x).requires_grad_()
    state = torch.randn(B, H, dtype=dtype, requires_grad=True) if carried else None
    lengths = torch.randint(1, T + 1, (B,)) if ragged else torch.full((B,), T)
    read = [torch.randn(B, T, H, dtype=dtype), torch.randn(B, H, dtype=dtype)]
    found = []
    with running("auto", threads):
        for layer in (plain, fused):
            outputs = layer(x, cell, lengths, state, nonlinearity)
            loss = torch.stack([(o * r).sum() for o, r in zip(outputs, read, strict=True)]).sum()
            inputs = [x, *cell.parameters(), *(() if state is None else (state,))]
            gradients = torch.autograd.grad(loss, inputs)
            if one_scale:
                gradients = (torch.cat([gradient.flatten() for gradient in gradients]),)
            found.append([*outputs, *gradients])
    assert_same(*found)


@settings(max_examples=40)
@given(
    B=st.integers(1, 9),
    T=st.integers(1, 7),
    F=st.integers(1, 18),
    H=st.integers(1, 37),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
    carried=st.booleans(),
    ragged=st.booleans(),
    threads=st.integers(1, 3),
)
def test_equals_the_loop(
    B: int, T: int, F: int, H: int, nonlinearity: Nonlinearity, carried: bool, ragged: bool, threads: int
) -> None:
    # In float32 a sum within rounding of 0 may fall on the other side of ReLU's corner.
    for dtype in (torch.float64,) if nonlinearity == "relu" else (torch.float64, torch.float32):
        compare(
            B=B,
            T=T,
            F=F,
            H=H,
            nonlinearity=nonlinearity,
            carried=carried,
            ragged=ragged,
            dtype=dtype,
            threads=threads,
            one_scale=dtype is torch.float32,
        )


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_every_level_equals_the_loop(level: str, nonlinearity: Nonlinearity) -> None:
    for dtype in (torch.float64, torch.float32):
        compare(
            B=13,
            T=5,
            F=3,
            H=21,
            nonlinearity=nonlinearity,
            carried=True,
            ragged=True,
            dtype=dtype,
            threads=2,
        )


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize(("B", "H"), [(8, 21), (70, 40)])
def test_recomputation_changes_no_bit(level: str, nonlinearity: Nonlinearity, B: int, H: int) -> None:
    T, F = 7, 3
    torch.manual_seed(0)
    for dtype, carried, ragged, keep_steps in product(DTYPES, *[(False, True)] * 3):
        cell = ElmanCell(F, H).to(dtype)
        weights = cell.weight_ih, cell.weight_hh, cell.bias_ih
        x = torch.randn(B, T, F, dtype=dtype, requires_grad=True)
        state = torch.randn(B, H, dtype=dtype, requires_grad=True) if carried else None
        lengths = torch.randint(1, T + 1, (B,)) if ragged else torch.full((B,), T)
        leaves = [x, *weights, *(() if state is None else (state,))]
        run = partial(
            elman_layer, x, *weights, lengths, state, nonlinearity=nonlinearity, keep_steps=keep_steps
        )
        with running("auto", 2):
            assert_recomputation_changes_no_bit(lambda s, run=run: run(segment=s), leaves, [1, 3, T, "auto"])


def test_segments_are_as_long_as_needs_the_least_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = asked_segments(monkeypatch)
    B, T = 8, 900  # one slice
    cell = ElmanCell(1, 3)
    weights = cell.weight_ih, cell.weight_hh, cell.bias_ih
    with running("auto"):
        elman_layer(torch.randn(B, T, 1), *weights, torch.full((B,), T), keep_steps=False, segment="auto")
    # of a sequence: h of each start but the first, and of each step
    assert seen[-1] == min(range(1, T + 1), key=lambda segment: (T - 1) // segment + segment) == 30


def test_many_rows_and_units() -> None:
    """More rows than go through time together, more inputs and more units than one tile of columns."""
    compare(
        B=150,
        T=3,
        F=70,
        H=100,
        nonlinearity="tanh",
        carried=False,
        ragged=True,
        dtype=torch.float32,
        threads=2,
    )


def layer() -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(0)
    cell = ElmanCell(3, 5).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
    return x, (cell.weight_ih, cell.weight_hh, cell.bias_ih)


def test_gradient_is_the_derivative() -> None:
    x, weights = layer()
    lengths = torch.tensor([2, 6, 1, 4])

    def run(x: Tensor, u: Tensor, w: Tensor, b: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        steps, h = elman_layer(x, u, w, b, lengths, first, keep_steps=True)
        assert steps is not None
        return steps, h

    first = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *weights, first))


def test_without_gradients_and_without_steps_the_numbers_are_the_same() -> None:
    x, weights = layer()
    lengths = torch.tensor([6, 2, 1, 6])
    steps, h = elman_layer(x, *weights, lengths, keep_steps=True)
    last_only = elman_layer(x, *weights, lengths, keep_steps=False)
    with torch.no_grad():
        watched_off = elman_layer(x, *weights, lengths, keep_steps=True)
        last_off = elman_layer(x, *weights, lengths, keep_steps=False)
    assert steps is not None
    assert watched_off[0] is not None
    assert last_only[0] is None
    assert last_off[0] is None
    assert torch.equal(steps, watched_off[0])
    for other in (last_only, watched_off, last_off):
        assert torch.equal(h, other[1])
    assert not watched_off[1].requires_grad
    expected, found = (torch.autograd.grad((o * o).sum(), weights) for o in (h, last_only[1]))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_padding_is_not_read_and_gets_nothing() -> None:
    x, weights = layer()
    lengths = torch.tensor([6, 2, 1, 6])
    steps, h = elman_layer(x, *weights, lengths, keep_steps=True)
    spoilt = x.detach().clone()
    for row, n in enumerate(lengths):
        spoilt[row, n:] = float("nan")
    again = elman_layer(spoilt, *weights, lengths, keep_steps=True)
    assert steps is not None
    assert again[0] is not None
    assert torch.equal(steps, again[0])
    assert torch.equal(h, again[1])
    (gradient,) = torch.autograd.grad(steps.sum(), x)
    for row, n in enumerate(lengths):
        assert (steps[row, n:] == 0).all()
        assert (gradient[row, n:] == 0).all()
        assert (gradient[row, :n] != 0).all()


def test_strides_do_not_matter() -> None:
    x, weights = layer()
    lengths = torch.tensor(6).expand(4)
    expected = elman_layer(x, *weights, torch.full((4,), 6), keep_steps=False)[1]
    time_major = x.detach().transpose(0, 1).contiguous().transpose(0, 1)
    feature_major = x.detach().transpose(1, 2).contiguous().transpose(1, 2)
    for other in (time_major, feature_major):
        assert torch.equal(elman_layer(other, *weights, lengths, keep_steps=False)[1], expected)


def test_up_to_four_threads_give_the_same_bits() -> None:
    torch.manual_seed(0)
    cell, x, lengths = ElmanCell(1, 5), torch.randn(64, 6, 1), torch.randint(1, 7, (64,))
    found = []
    for threads in (1, 2, 4, 4):
        with running("auto", threads):
            _, h = fused(x, cell, lengths, None, "tanh")
            found.append(torch.autograd.grad((h * h).sum(), list(cell.parameters())))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_units_saturate() -> None:
    torch.manual_seed(0)
    cell, x, lengths = ElmanCell(3, 21), 40 * torch.randn(13, 6, 3), torch.full((13,), 6)
    with torch.no_grad():
        expected, found = (layer(x, cell, lengths, None, "tanh") for layer in (plain, fused))
    assert found[1].abs().max() > 0.99
    assert_same(expected, found)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nan_comes_through(nonlinearity: Nonlinearity) -> None:
    x, weights = layer()
    spoilt = x.detach().clone()
    spoilt[1, 2] = float("nan")
    lengths = torch.full((4,), 6)
    h = elman_layer(spoilt, *weights, lengths, nonlinearity=nonlinearity, keep_steps=False)[1]
    assert h[1].isnan().all()
    assert h[0].isfinite().all()


def test_a_second_derivative_is_refused() -> None:
    x, weights = layer()
    h = elman_layer(x, *weights, torch.full((4,), 6), keep_steps=False)[1]
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(h.sum(), x, create_graph=True)
