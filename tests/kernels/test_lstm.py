"""The fused LSTM layer against the loop over the plain cell, and the models that call it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqpyramid.kernels.lstm import Segment, lstm_layer
from seqpyramid.models.cells import LSTMCell
from tests.kernels import (
    WITH_TILES,
    asked_segments,
    assert_recomputation_changes_no_bit,
    assert_same,
    needs_kernels,
    running,
)

pytestmark = needs_kernels


def plain(
    x: Tensor, cell: LSTMCell, lengths: Tensor, state: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The cell's own step, each sequence frozen at its end: steps, h, c."""
    h, c = cell.initial(len(x)) if state is None else state
    steps = []
    for t, projected in enumerate(cell.project(x).unbind(1)):
        goes_on = (t < lengths)[:, None]
        new_h, new_c = cell.step(projected, (h, c))
        h, c = torch.where(goes_on, new_h, h), torch.where(goes_on, new_c, c)
        steps.append(torch.where(goes_on, h, torch.zeros_like(h)))
    return torch.stack(steps, 1), h, c


def fused(
    x: Tensor, cell: LSTMCell, lengths: Tensor, state: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    steps, (h, c) = lstm_layer(
        x, cell.weight_ih, cell.weight_hh, cell.bias_ih, lengths, state, keep_steps=True
    )
    assert steps is not None
    return steps, h, c


def compare(
    *,
    B: int,
    T: int,
    F: int,
    H: int,
    carried: bool,
    ragged: bool,
    dtype: torch.dtype,
    threads: int,
    seed: int = 0,
) -> None:
    torch.manual_seed(seed)
    cell = LSTMCell(F, H).to(dtype)
    x = torch.randn(B, T, F, dtype=dtype, requires_grad=True)
    state = None
    if carried:
        state = (
            torch.randn(B, H, dtype=dtype, requires_grad=True),
            torch.randn(B, H, dtype=dtype, requires_grad=True),
        )
    lengths = torch.randint(1, T + 1, (B,)) if ragged else torch.full((B,), T)
    read = [torch.randn(B, T, H, dtype=dtype), torch.randn(B, H, dtype=dtype), torch.randn(B, H, dtype=dtype)]
    found = []
    with running("auto", threads):
        for layer in (plain, fused):
            outputs = layer(x, cell, lengths, state)
            loss = torch.stack([(o * r).sum() for o, r in zip(outputs, read, strict=True)]).sum()
            gradients = torch.autograd.grad(loss, [x, *cell.parameters(), *(state or ())])
            found.append([*outputs, *gradients])
    assert_same(*found)


@settings(max_examples=40)
@given(
    B=st.integers(1, 40),
    T=st.integers(1, 40),
    F=st.integers(1, 3),
    H=st.integers(1, 19),
    carried=st.booleans(),
    ragged=st.booleans(),
    keep_steps=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    threads=st.integers(1, 3),
    segment=st.sampled_from(["auto", 1, 2, 5, 41]),
)
def test_recomputation_changes_no_bit(
    B: int,
    T: int,
    F: int,
    H: int,
    carried: bool,
    ragged: bool,
    keep_steps: bool,
    dtype: torch.dtype,
    threads: int,
    segment: Segment,
) -> None:
    torch.manual_seed(4)
    sizes = [(B, T, F), (4 * H, F), (4 * H, H), (4 * H,), *[(B, H)] * (2 * carried)]
    parts = [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]
    x, U, W, b, *state = parts
    lengths = torch.randint(1, T + 1, (B,)) if ragged else torch.full((B,), T)
    first = (state[0], state[1]) if carried else None

    def run(segment: Segment) -> list[Tensor | None]:
        steps, last = lstm_layer(x, U, W, b, lengths, first, keep_steps=keep_steps, segment=segment)
        return [steps, *last]

    with running("auto", threads):
        assert_recomputation_changes_no_bit(run, parts, [segment])


def rounded(gates: list[Tensor]) -> list[Tensor]:
    """What is left of i, f, g, o in 16 bits each."""
    return [(x * n).round() / n for x, n in zip(gates, (65535, 65535, 32767, 65535), strict=True)]


def gradients_by_rounded_gates(
    parts: list[Tensor], d_steps: Tensor, d_c: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The backward pass written out, over gates as they are kept: steps and c; gradients of x, U, W, b, h and c."""
    x, U, W, b, h, c = (part.detach() for part in parts)
    kept, steps = [], []
    before = h
    for step in x.unbind(1):
        i, f, g, o = (step @ U.T + h @ W.T + b).chunk(4, 1)
        gates = [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]
        new_c = gates[1] * c + gates[0] * gates[2]
        kept.append((step, before, c, new_c, rounded(gates)))
        h, c, before = gates[3] * new_c.tanh(), new_c, kept[-1][4][3] * new_c.tanh()
        steps.append(h)
    dU, dW, db, dh = torch.zeros_like(U), torch.zeros_like(W), torch.zeros_like(b), torch.zeros_like(h)
    dx = torch.zeros_like(x)
    for t, (step, before, old_c, new_c, (i, f, g, o)) in reversed(list(enumerate(kept))):
        dh, s = dh + d_steps[:, t], new_c.tanh()
        d_c = d_c + dh * o * (1 - s * s)
        da = torch.cat(
            [d_c * g * i * (1 - i), d_c * old_c * f * (1 - f), d_c * i * (1 - g * g), dh * s * o * (1 - o)], 1
        )
        dU, dW, db = dU + da.T @ step, dW + da.T @ before, db + da.sum(0)
        dx[:, t], dh, d_c = da @ U, da @ W, d_c * f
    return [torch.stack(steps, 1), c], [dx, dU, dW, db, dh, d_c]


@pytest.mark.parametrize("B", [5, 40])  # where there are tiles, they make the products of 40 rows
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_gates_in_16_bits(level: str, B: int, dtype: torch.dtype, tolerance: float) -> None:
    """Outputs stay, bit for bit; gradients are those of the rounded gates."""
    torch.manual_seed(5)
    T, F, H = 9, 3, 21
    sizes = [(B, T, F), (4 * H, F), (4 * H, H), (4 * H,), (B, H), (B, H)]
    parts = [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]
    x, U, W, b, h, c = parts
    found = []
    with running("auto", 2):
        for short in (False, True):
            steps, last = lstm_layer(x, U, W, b, torch.full((B,), T), (h, c), keep_steps=True, rounded=short)
            assert steps is not None
            loss = steps.sin().sum() + last[1].cos().sum()
            found.append(([steps, last[1]], torch.autograd.grad(loss, parts)))
    (exact, gradients), (same, short_gradients) = found
    assert all(torch.equal(a, b) for a, b in zip(exact, same, strict=True))
    outputs, expected = gradients_by_rounded_gates(parts, exact[0].detach().cos(), -exact[1].detach().sin())
    for wanted, got in zip([*outputs, *expected], [*exact, *short_gradients], strict=True):
        assert (got - wanted).abs().max() < tolerance * wanted.abs().max()
    change = [((a - b).norm() / a.norm()).item() for a, b in zip(gradients, short_gradients, strict=True)]
    assert all(1e-7 < one < 1e-3 for one in change)


def test_segments_are_as_long_as_needs_the_least_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = asked_segments(monkeypatch)
    B, T, H = 8, 900, 3  # one slice
    weights = [torch.randn(size, requires_grad=True) for size in ((4 * H, 1), (4 * H, H), (4 * H,))]
    U, W, b = weights
    lstm_layer(torch.randn(B, T, 1), U, W, b, torch.full((B,), T), keep_steps=False, segment="auto")

    def states(segment: int) -> int:
        """Of a sequence: h and c of each start but the first, c and four gates of each step."""
        return ((T - 1) // segment) * 2 + 5 * segment

    assert seen[-1] == min(range(1, T + 1), key=states) == 18


@settings(max_examples=40)
@given(
    B=st.integers(1, 9)
    | st.integers(12, 80),  # those of the second range go through tiles, where there are any
    T=st.integers(1, 7),
    F=st.integers(1, 18),
    H=st.integers(1, 37),
    carried=st.booleans(),
    ragged=st.booleans(),
    threads=st.integers(1, 3),
)
def test_equals_the_loop(B: int, T: int, F: int, H: int, carried: bool, ragged: bool, threads: int) -> None:
    for dtype in (torch.float64, torch.float32):
        compare(B=B, T=T, F=F, H=H, carried=carried, ragged=ragged, dtype=dtype, threads=threads)


def test_every_level_equals_the_loop(level: str) -> None:
    for dtype in (torch.float64, torch.float32):
        for B in (13, 45):
            compare(B=B, T=5, F=3, H=21, carried=True, ragged=True, dtype=dtype, threads=2)


def test_gates_that_outgrow_the_caches(level: str) -> None:
    compare(B=70, T=41, F=1, H=100, carried=True, ragged=True, dtype=torch.float64, threads=2)


def test_many_rows_and_units() -> None:
    """More rows than go through time together, and more units than one tile of columns."""
    compare(B=150, T=3, F=2, H=100, carried=False, ragged=True, dtype=torch.float32, threads=2)


def test_gradient_is_the_derivative() -> None:
    torch.manual_seed(0)
    cell = LSTMCell(2, 3).double()
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([2, 4, 1])

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        x, *weights = inputs
        steps, (_, c) = lstm_layer(x, *weights, lengths, keep_steps=True)
        assert steps is not None
        return steps, c

    assert torch.autograd.gradcheck(run, (x, *cell.parameters()))


def layer() -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    cell = LSTMCell(3, 5).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
    return x, [p.detach().requires_grad_() for p in cell.parameters()]


def test_without_gradients_and_without_steps_the_numbers_are_the_same() -> None:
    x, weights = layer()
    lengths = torch.tensor([6, 2, 1, 6])
    steps, state = lstm_layer(x, *weights, lengths, keep_steps=True)
    last_only = lstm_layer(x, *weights, lengths, keep_steps=False)
    assert steps is not None
    assert last_only[0] is None
    with torch.no_grad():
        quiet = lstm_layer(x, *weights, lengths, keep_steps=True)
    assert quiet[0] is not None
    assert not quiet[0].requires_grad
    for a, b, c in zip((*state, steps), (*last_only[1], steps), (*quiet[1], quiet[0]), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    one, other = (torch.autograd.grad(h.sum(), [x, *weights]) for h in (state[0], last_only[1][0]))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_padding_neither_gives_nor_gets() -> None:
    x, weights = layer()
    lengths = torch.tensor([6, 2, 1, 5])
    steps, state = lstm_layer(x, *weights, lengths, keep_steps=True)
    padded = x.detach().clone()
    for row, n in enumerate(lengths):
        padded[row, n:] = float("nan")
    again = lstm_layer(padded, *weights, lengths, keep_steps=True)
    assert steps is not None
    assert again[0] is not None
    assert torch.equal(steps, again[0])
    assert torch.equal(state[1], again[1][1])
    (gradient,) = torch.autograd.grad(steps.sum() + state[1].sum(), x)
    for row, n in enumerate(lengths):
        assert (steps[row, n:] == 0).all()
        assert (gradient[row, n:] == 0).all()
        assert (gradient[row, :n] != 0).all()


def test_strides_do_not_matter() -> None:
    x, weights = layer()
    lengths = torch.full((4,), 6)
    expected = lstm_layer(x, *weights, lengths, keep_steps=False)[1][0]
    time_major = x.detach().transpose(0, 1).contiguous().transpose(0, 1)
    feature_major = x.detach().transpose(1, 2).contiguous().transpose(1, 2)
    for other in (time_major, feature_major):
        assert torch.equal(lstm_layer(other, *weights, lengths, keep_steps=False)[1][0], expected)


@pytest.mark.parametrize(("rows", "threads"), [(50, (1, 2, 2)), (64, (1, 2, 4, 4))])
def test_a_few_threads_give_the_same_bits(rows: int, threads: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    cell, x, lengths = LSTMCell(1, 5), torch.randn(rows, 6, 1), torch.randint(1, 7, (rows,))
    found = []
    for count in threads:
        with running("auto", count):
            _, h, c = fused(x, cell, lengths, None)
            found.append(torch.autograd.grad((h * c).sum(), list(cell.parameters())))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_float32_is_as_exact_as_the_loop(level: str) -> None:
    """Against float64. Products on tiles lose no digit that float32 keeps; long sums on vectors lose some more."""
    torch.manual_seed(0)
    exact, x = LSTMCell(70, 100).double(), torch.randn(64, 40, 70, dtype=torch.float64)
    cell = LSTMCell(70, 100)
    cell.load_state_dict(exact.state_dict())
    exact.load_state_dict(cell.state_dict())
    x = x.float().double()
    found = []
    for layer, of, inputs in [(plain, exact, x), (plain, cell, x.float()), (fused, cell, x.float())]:
        leaf = inputs.clone().requires_grad_()
        with running("auto"):
            _, h, c = layer(leaf, of, torch.full((64,), 40), None)
            found.append([h, c, *torch.autograd.grad((h * c).sum(), [leaf, *of.parameters()])])
    for truth, loop, kernel in zip(*found, strict=True):
        errors = [(part.detach().double() - truth.detach()).pow(2).mean().sqrt() for part in (loop, kernel)]
        assert errors[1] < (2 if level == WITH_TILES else 5) * errors[0]


@pytest.mark.parametrize(("scale", "share"), [(1e-30, 0.001), (1e-34, 0.02), (1e-37, 1.001)])
def test_gradients_that_underflow(scale: float, share: float) -> None:
    """Denormal numbers, which nobody flushes here but tiles take for zero, spoil no other number."""
    torch.manual_seed(0)
    cell, x = LSTMCell(20, 50), torch.randn(40, 9, 20)
    found = []
    for layer in (plain, fused):
        leaf = x.clone().requires_grad_()
        with running("auto"):
            _, h, _ = layer(leaf, cell, torch.full((40,), 9), None)
            found.append(torch.autograd.grad((h * scale).sum(), [leaf, *cell.parameters()]))
    for expected, got in zip(*found, strict=True):
        assert (got - expected).abs().max() < share * expected.abs().max()


def test_nan_comes_through() -> None:
    x, weights = layer()
    spoilt = x.detach().clone()
    spoilt[1, 2] = float("nan")
    h = lstm_layer(spoilt, *weights, torch.full((4,), 6), keep_steps=False)[1][0]
    assert h[1].isnan().all()
    assert h[0].isfinite().all()


def test_a_second_derivative_is_refused() -> None:
    x, weights = layer()
    h = lstm_layer(x, *weights, torch.full((4,), 6), keep_steps=False)[1][0]
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(h.sum(), x, create_graph=True)


@pytest.mark.parametrize("flush", [True, False])
def test_workers_treat_denormal_numbers_as_the_caller_does(flush: bool) -> None:
    torch.set_flush_denormal(flush)
    weights = [torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4)]
    tiny = torch.full((4, 1), 1.5e-38)
    with running("auto", 4):
        _, (_, c) = lstm_layer(
            torch.zeros(4, 1, 1), *weights, torch.ones(4, dtype=torch.int64), (tiny, tiny), keep_steps=False
        )
    torch.set_flush_denormal(False)
    assert (c == 0).tolist() == [[flush]] * 4
