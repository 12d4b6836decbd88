"""The TP-RNN layer for GPUs against the plain step loop of the model: on a GPU, or else in Triton's interpreter."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton cannot be imported; it comes with torch's CUDA builds")

from seqpyramid.kernels.gpu import tp_launch, tp_rnn
from seqpyramid.kernels.gpu.tp_forward import forward
from seqpyramid.kernels.gpu.tp_pyramid import Sizes
from seqpyramid.models.tp_rnn import TPRNNLayer, levels
from tests.kernels import assert_same
from tests.kernels.tp_rnn_layers import by_loop

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
READ = ("output", "emitted")


@pytest.fixture(autouse=True)
def _triton_runs_here() -> None:
    if DEVICE.type == "cpu":
        from triton.runtime.interpreter import InterpretedFunction

        assert isinstance(forward, InterpretedFunction), (
            "Triton was imported before TRITON_INTERPRET=1 was set; set it in the first conftest"
        )


@pytest.fixture(autouse=True)
def _fresh_memory_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read before it is written spoils everything, and what is never written shows."""
    new_empty = Tensor.new_empty

    def spoiled(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        fresh = new_empty(x, *arguments, **options)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(Tensor, "new_empty", spoiled)


def fused(layer: TPRNNLayer, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel, with a layer's weights and shape."""
    result = layer._fused(tp_rnn.tp_rnn_layer, x, lengths)
    return result.output, result.emitted


def read(results: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """A number that depends on some of a layer's results."""
    generator = torch.Generator().manual_seed(2)
    total = torch.zeros((), dtype=results[0].dtype, device=results[0].device)
    for name, values in zip(READ, results, strict=True):
        factors = torch.randn(values.shape, generator=generator, dtype=values.dtype).to(values.device)
        total = total + (values * factors).sum() * (name in names)
    return total


def compare(
    layer: TPRNNLayer,
    *,
    B: int,
    T: int,
    lengths: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
    names: Sequence[str] = READ,
) -> None:
    """Outputs and gradients of both twins, which weights have none, and the outputs without gradients."""
    torch.manual_seed(1)
    layer = layer.to(DEVICE, dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    # one more step than the longest sequence has
    x = torch.randn(B, T + 1, layer.cell.input_size, dtype=dtype).to(DEVICE).requires_grad_()
    ends = torch.tensor(lengths or [T] * B)
    inputs = [x, *layer.parameters()]
    found: list[list[Tensor | None]] = []
    for twin in (by_loop, fused):
        results = twin(layer, x, ends)
        chosen = [result for name, result in zip(READ, results, strict=True) if name in names]
        loss = read(
            [r if name in names else r.detach() for name, r in zip(READ, results, strict=True)], names
        )
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        found.append([*chosen, *gradients])
    with torch.no_grad():
        quiet = fused(layer, x, ends)
    assert all(torch.equal(a, b) for a, b in zip(results, quiet, strict=True))
    assert [tensor is None for tensor in found[0]] == [tensor is None for tensor in found[1]]
    # A relu at a rounding error from its corner, or a sum that cancels, costs float32 more than a digit.
    slack = 3 if dtype == torch.float32 else 1
    there = ([tensor for tensor in tensors if tensor is not None] for tensors in found)
    assert_same(*there, slack=slack)


def build(L: int, g: int, *, F: int = 1, H: int = 3, **options: Any) -> TPRNNLayer:
    return TPRNNLayer(F, H, length=L, granularity=g, **options)


@pytest.mark.parametrize(
    ("attention", "order"), [("scrambled", "released"), ("aligned", "paper"), ("scrambled", "paper")]
)
def test_equals_the_loop(attention: str, order: str) -> None:
    """Three sub-pyramids of two levels, more rows than a program has, every kind of end."""
    layer = build(4, 2, F=2, H=5, attention=attention, shortcut_order=order, bias="double")
    compare(layer, B=5, T=9, lengths=[9, 4, 1, 6, 7])


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"aggregate_cell": False, "shortcut": False}, [7, 2, 4]),
        ({"top_down": False, "attention": "scrambled"}, [7, 5, 3]),
        ({"emitted_level": 2, "attention": "scrambled"}, [7, 2, 5]),
        ({"emitted_level": 2, "aggregate_cell": False}, []),
    ],
)
def test_every_option(options: dict[str, Any], lengths: list[int]) -> None:
    compare(build(4, 2, **options), B=3, T=7, lengths=lengths)


@pytest.mark.parametrize(("L", "g", "T"), [(1, 2, 3), (2, 5, 5), (5, 2, 9), (9, 2, 7), (4, 2, 1)], ids=str)
def test_every_shape(L: int, g: int, T: int) -> None:
    """A step a sub-pyramid; fewer steps than states; short groups; a sub-pyramid that never closes; one step."""
    compare(build(L, g, attention="scrambled"), B=2, T=T)


@pytest.mark.parametrize("name", READ)
def test_a_result_that_nobody_reads(name: str) -> None:
    compare(build(4, 2), B=2, T=5, lengths=[5, 4], names=[name])


def test_float32() -> None:
    layer = build(4, 2, F=2, H=7, attention="scrambled")
    compare(layer, B=3, T=9, lengths=[9, 7, 3], dtype=torch.float32)


@pytest.mark.parametrize("registers", [0, 12, 1000], ids=["streamed", "held in part", "held"])
def test_where_weights_lie(registers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row a program, and chunks of few rows of W, the last one short."""
    for module, name, value in (
        (tp_launch, "MOST_ROWS", 1),
        (tp_launch, "WARPS", 1),
        (tp_launch, "CHUNK_NUMBERS", 2),
        (tp_rnn, "FORWARD_REGISTERS", registers),
        (tp_rnn, "BACKWARD_REGISTERS", registers),
    ):
        monkeypatch.setattr(module, name, value)
    compare(build(3, 2, H=5), B=2, T=5, lengths=[5, 2])


def test_how_theta_gradients_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles a program, and W1 in more than one block."""
    for name, value in (("GRADIENT_ROWS", 16), ("GRADIENT_COLUMNS", 4), ("GRADIENT_PROGRAMS", 2)):
        monkeypatch.setattr(tp_launch, name, value)
    compare(build(7, 7, H=5, attention="scrambled"), B=2, T=10, lengths=[10, 6])


@settings(max_examples=8)
@given(data=st.data())
def test_equals_the_loop_for_any_shape(data: st.DataObject) -> None:
    L, g = data.draw(st.integers(1, 9), "L"), data.draw(st.integers(2, 5), "g")
    B, T = data.draw(st.integers(1, 3), "B"), data.draw(st.integers(1, 8), "T")
    layer = build(
        L,
        g,
        F=data.draw(st.integers(1, 3), "F"),
        H=data.draw(st.integers(1, 9), "H"),
        emitted_level=data.draw(st.integers(1, levels(L, g)), "j"),
        attention=data.draw(st.sampled_from(["aligned", "scrambled"])),
        shortcut_order=data.draw(st.sampled_from(["paper", "released"])),
        aggregate_cell=data.draw(st.booleans(), "aggregate_cell"),
        shortcut=data.draw(st.booleans(), "shortcut"),
        top_down=data.draw(st.booleans(), "top_down"),
    )
    ends = data.draw(st.lists(st.integers(1, T), min_size=B, max_size=B), "lengths")
    compare(layer, B=B, T=T, lengths=ends)


def test_inference_keeps_no_state_of_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = build(3, 2).to(DEVICE), torch.randn(2, 4, 1, device=DEVICE)

    def refuse(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(Sizes, "kept_places", refuse)
    with torch.no_grad():
        fused(layer, x, torch.tensor([4, 4]))
    with pytest.raises(AssertionError):
        fused(layer, x, torch.tensor([4, 4]))


def test_results_repeat_bit_for_bit() -> None:
    layer, x = build(3, 2, H=4).to(DEVICE), torch.randn(5, 4, 1, device=DEVICE)
    found = []
    for _ in range(2):
        results = fused(layer, x, torch.full((5,), 4))
        found.append([*results, *torch.autograd.grad(read(results, READ), list(layer.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_there_are_no_second_derivatives() -> None:
    layer, x = build(3, 2).to(DEVICE), torch.randn(1, 2, 1, device=DEVICE)
    output, _ = fused(layer, x, torch.tensor([2]))
    with pytest.raises(RuntimeError, match="--kernels plain"):
        torch.autograd.grad(output.sum(), list(layer.parameters()), create_graph=True, allow_unused=True)


COMPILE = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from seqpyramid.kernels.gpu import tp_launch, tp_rnn
from seqpyramid.kernels.tp_rnn import Pyramids, Theta

L, g, H = map(int, sys.argv[1:4])
dtype = getattr(torch, sys.argv[4])
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32"}


class Compiled:
    # stands in for a kernel: what is launched is compiled instead, from the arguments that it is launched with
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *arguments, **constants):
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        names = self.kernel.arg_names
        constants |= {name: None for name, given in zip(names, arguments) if given is None}
        signature = dict.fromkeys(constants, "constexpr")
        for name, given in zip(names, arguments):
            if given is not None:
                signature[name] = TYPES[given.dtype] if isinstance(given, torch.Tensor) else "i32"
        assert set(signature) == set(names), set(signature) ^ set(names)
        source = ASTSource(self.kernel, {name: signature[name] for name in names}, constants)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        print(self.kernel.__name__, made.metadata.shared, len(made.asm["cubin"]))


tp_rnn.forward, tp_rnn.backward = Compiled(tp_rnn.forward), Compiled(tp_rnn.backward)
tp_launch.theta_gradients = Compiled(tp_launch.theta_gradients)
torch.manual_seed(0)
weight = lambda *shape: torch.randn(*shape, dtype=dtype, requires_grad=True)
theta = lambda states: Theta(weight(3 * states, states), weight(states, 3 * states))
time = 2 * L
shape = Pyramids(L, g, 1, 2 * -(-L // g), scrambled=True, top_down=True, top_first=True)
cell = (weight(4 * H, 1), weight(4 * H, H), weight(4 * H))
x = torch.randn(1, time, 1, dtype=dtype)
with torch.no_grad():
    tp_rnn.tp_rnn_layer(x, cell, theta(g), theta(g), theta(2), torch.tensor([time]), shape)
results = tp_rnn.tp_rnn_layer(x, cell, theta(g), theta(g), theta(2), torch.tensor([time]), shape)
sum(result.sum() for result in results).backward()
"""


@pytest.mark.parametrize(
    ("L", "g", "H", "dtype"),
    [
        (2, 2, 20, "float32"),
        pytest.param(4, 2, 5, "float64", marks=pytest.mark.slow),
        pytest.param(16, 4, 100, "float32", marks=pytest.mark.slow),
        pytest.param(49, 7, 100, "float32", marks=pytest.mark.slow),
    ],
)
def test_kernels_compile_for_a_gpu(L: int, g: int, H: int, dtype: str, tmp_path: Path) -> None:
    """For compute capability 9.0, from the arguments of real calls; their shared memory fits a multiprocessor's."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_DEFAULT_FP_FUSION": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(L), str(g), str(H), dtype],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = [line.split() for line in done.stdout.splitlines()]
    names = ["forward", "forward", "backward", "theta_gradients", "theta_gradients"]
    assert [name for name, _, _ in made] == names
    assert all(int(shared) <= 227 * 1024 and int(size) for _, shared, size in made)
