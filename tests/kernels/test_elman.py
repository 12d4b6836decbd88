"""The fused Elman layer against the loop over plain steps, and the model that calls it."""

import json
import subprocess
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqpyramid.contracts import TaskSpec
from seqpyramid.kernels import Mode, library
from seqpyramid.kernels.elman import elman_layer
from seqpyramid.models.base import SequenceModel
from seqpyramid.models.cells import ElmanCell
from seqpyramid.models.rnn import RNNConfig
from tests.kernels import LEVELS, assert_same, needs_kernels, running
from tests.kernels.test_sanitizers import COMPILER

pytestmark = needs_kernels

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
    slack: float = 1.0,
) -> None:
    torch.manual_seed(0)
    cell = ElmanCell(F, H).to(dtype)
    x = torch.randn(B, T, F, dtype=dtype, requires_grad=True)
    state = torch.randn(B, H, dtype=dtype, requires_grad=True) if carried else None
    lengths = torch.randint(1, T + 1, (B,)) if ragged else torch.full((B,), T)
    read = [torch.randn(B, T, H, dtype=dtype), torch.randn(B, H, dtype=dtype)]
    found = []
    with running("auto", threads):
        for layer in (plain, fused):
            outputs = layer(x, cell, lengths, state, nonlinearity)
            loss = torch.stack([(o * r).sum() for o, r in zip(outputs, read, strict=True)]).sum()
            inputs = [x, *cell.parameters(), *(() if state is None else (state,))]
            found.append([*outputs, *torch.autograd.grad(loss, inputs)])
    assert_same(*found, slack=slack)


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
    # A float32 gradient of one or two numbers may cancel to a thousandth of its terms, but not its rounding.
    dtypes = {torch.float64: 1.0} if nonlinearity == "relu" else {torch.float64: 1.0, torch.float32: 10.0}
    for dtype, slack in dtypes.items():
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
            slack=slack,
        )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_every_level_equals_the_loop(
    level: str, nonlinearity: Nonlinearity, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = library.open_library(library.library_file(level))
    monkeypatch.setattr(library, "load", lambda: compiled)
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


def test_many_rows_and_units() -> None:
    """More rows than go through time together, and more units than one tile of columns."""
    compare(
        B=150,
        T=3,
        F=2,
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
    cell, x, lengths = ElmanCell(1, 5), torch.randn(50, 6, 1), torch.randint(1, 7, (50,))
    found = []
    for threads in (1, 2, 4, 4):
        with running("auto", threads):
            _, h = fused(x, cell, lengths, None, "tanh")
            found.append(torch.autograd.grad((h * h).sum(), list(cell.parameters())))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


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


# --- the model -----------------------------------------------------------------------------------------------------

STACKS = [
    {},
    {"nonlinearity": "relu", "layers": 2},
    {"layers": 3, "bias": "double", "output_aggregation": "sum", "output_maps": True},
]


def build(fields: dict[str, object], spec: TaskSpec) -> SequenceModel:
    torch.manual_seed(0)
    return RNNConfig.model_validate_json(json.dumps({"hidden_size": 5, **fields})).build(spec).double()


@pytest.mark.parametrize("fields", STACKS)
@pytest.mark.parametrize("needs", ["summary", "steps"])
@pytest.mark.parametrize("carry_state", [False, True])
def test_models_give_the_same(fields: dict[str, object], needs: str, carry_state: bool) -> None:
    spec = TaskSpec(input_size=2, outputs=3, needs=needs, carry_state=carry_state)  # type: ignore[arg-type]
    model = build(fields, spec)
    x = torch.randn(4, 7, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([7, 3, 1, 6])
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    modes: list[Mode] = ["plain", "fused", "auto"]
    for mode in modes:
        with running(mode):
            first = model(x, lengths)
            second = model(x.flip(1), lengths, first.state)
            outputs = [first.outputs, first.summary, second.outputs]
            loss = torch.stack([(o * o).sum() for o in outputs]).sum()
            found.append([*outputs, *torch.autograd.grad(loss, [x, *parameters])])
    plain_run, fused_run, auto_run = found
    assert_same(plain_run, fused_run)
    assert all(torch.equal(a, b) for a, b in zip(fused_run, auto_run, strict=True))
    if "nonlinearity" not in fields:  # sums of so few numbers may agree to the last bit
        assert not all(torch.equal(a, b) for a, b in zip(plain_run, fused_run, strict=True))


# --- sanitizers ----------------------------------------------------------------------------------------------------

DRIVER = r"""
#include <cmath>
#include <vector>
#include "elman.cpp"
#include "gru.cpp"

// Memory of exactly the size that a kernel may touch, filled with small numbers.
struct Memory {
  std::vector<std::vector<float>> blocks;
  float* operator()(size_t size, float scale = 0) {
    std::vector<float> block(size);
    for (size_t k = 0; k < size; ++k) block[k] = scale * std::sin(1.7f * float(k));
    blocks.push_back(std::move(block));
    return blocks.back().data();
  }
};

constexpr long B = 37, T = 49, F = 3, H = 101, THREADS = 4;  // H: no whole vectors
constexpr long P = padded<float>(H), PF = padded<float>(F);

using Kernel = int (*)(const StateLayerArguments*);

int run(Kernel forward, Kernel backward, long gates, long biases, long planes, const int64_t* lengths) {
  Memory m;
  StateLayerArguments a{};
  a.size = sizeof a, a.batch = B, a.time = T, a.inputs = F, a.hidden = H, a.threads = THREADS;
  a.lengths = lengths, a.x = m(B * T * F, 1), a.x_batch = T * F, a.x_time = F;
  a.weight_ih = m(gates * H * F, .1f), a.weight_hh = m(gates * H * H, .1f), a.bias = m(biases * H, .1f);
  a.h_first = m(B * P), a.h_last = m(B * P);
  int code = forward(&a);  // nothing kept
  a.steps = m(T * B * P);
  code |= forward(&a);
  if (planes) a.planes = m(T * B * planes * P);
  code |= forward(&a);
  a.d_steps = m(B * T * H, .1f), a.d_steps_batch = T * H, a.d_steps_time = H;
  a.d_h_last = m(B * P), a.d_x = m(T * B * PF), a.d_h_first = m(B * P);
  a.d_weight_ih = m(gates * H * F), a.d_weight_hh = m(gates * H * H), a.d_bias = m(biases * H);
  return code | backward(&a);
}

int main() {
  std::vector<int64_t> full(B, T), ragged(B);
  for (long row = 0; row < B; ++row) ragged[size_t(row)] = T - row;
  int code = 0;
  for (const int64_t* lengths : {full.data(), ragged.data()}) {
    code |= run(seqpyramid_elman_tanh_forward_float32, seqpyramid_elman_tanh_backward_float32, 1, 1, 0, lengths);
    code |= run(seqpyramid_elman_relu_forward_float32, seqpyramid_elman_relu_backward_float32, 1, 1, 0, lengths);
    code |= run(seqpyramid_gru_forward_float32, seqpyramid_gru_backward_float32, 3, 4, 4, lengths);
    code |= run(seqpyramid_reset_before_gru_forward_float32, seqpyramid_reset_before_gru_backward_float32, 3, 3, 3,
                lengths);
  }
  return code;
}
"""


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_race_and_no_stray_access(sanitizer: str, tmp_path: Path) -> None:
    """Of Elman's layer and both GRUs."""
    assert COMPILER is not None
    source, program = tmp_path / "driver.cpp", tmp_path / "driver"
    source.write_text(DRIVER, encoding="utf-8")
    flags = f"-std=c++17 -O1 -g -pthread -fsanitize={sanitizer} -fno-sanitize-recover=all -Wno-psabi".split()
    command = [COMPILER, *flags, "-Wno-ignored-attributes", "-I", str(library.FOLDER), str(source)]
    subprocess.run([*command, "-o", str(program)], check=True, capture_output=True)
    finished = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stderr == ""
