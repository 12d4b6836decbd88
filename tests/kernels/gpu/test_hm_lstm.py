"""The HM-LSTM kernel for GPUs against its plain twin: on a GPU, or else in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.importorskip("triton", reason="Triton cannot be imported; it comes with torch's CUDA builds")

from seqpyramid.contracts import TaskSpec
from seqpyramid.kernels import gpu
from seqpyramid.kernels.gpu import hm_lstm, hm_weights
from seqpyramid.kernels.hm_lstm import Layer
from seqpyramid.models.hm_lstm import HMLSTM, HMLSTMConfig, LayerState

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Results = dict[str, Tensor]

PAPER: dict[str, object] = {}
CODE = {
    "selection_gradient": "where",
    "boundary_gradient": "logistic",
    "top_boundary": True,
    "cell_bias": False,
}
SOFT = {"boundaries": "soft"}
STACKS = [4, 4], [3, 9], [5, 2, 3]
LENGTHS = torch.tensor([4, 1, 3, 4, 2])


@pytest.fixture(autouse=True)
def _triton_runs_here() -> None:
    if DEVICE == "cpu":
        from triton.runtime.interpreter import InterpretedFunction

        assert isinstance(hm_lstm.forward, InterpretedFunction), (
            "Triton was imported before TRITON_INTERPRET=1 was set; set it in the first conftest"
        )


def build(
    sizes: list[int],
    inputs: int = 2,
    *,
    carry: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    spread: float = 0.7,
    **fields: object,
) -> HMLSTM:
    """A model with weights wide enough for all three operations."""
    spec = TaskSpec(input_size=inputs, outputs=3, needs="steps", carry_state=carry)
    fields = {"hidden_sizes": sizes, "embedding_size": 4, "slope": 1.1} | fields
    model = HMLSTMConfig.model_validate_json(json.dumps(fields)).build(spec).to(dtype)
    assert isinstance(model, HMLSTM)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, spread, generator=generator)
    return model.to(DEVICE)


def batch(model: HMLSTM, rows: int, time: int, seed: int = 1) -> tuple[Tensor, tuple[LayerState, ...]]:
    """Inputs, and a first state with boundaries of 0 and 1, all asking for gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(model.slope)

    states = []
    for cell in model.cells:
        z = (draw(rows, 1) * cell.boundary > 0).to(model.slope)
        states.append((draw(rows, cell.hidden_size), draw(rows, cell.hidden_size), z))
    leaves = [draw(rows, time, model.spec.input_size), *(part for state in states for part in state)]
    x, *parts = (leaf.requires_grad_() for leaf in leaves)
    return x, tuple((parts[n], parts[n + 1], parts[n + 2]) for n in range(0, len(parts), 3))


def layers(model: HMLSTM) -> list[Layer]:
    return [cell.kernel_layer() for cell in model.cells]


def outputs(
    model: HMLSTM, x: Tensor, lengths: Tensor, states: tuple[LayerState, ...], *, plain: bool
) -> Results:
    """Valid steps of h and z and, where they are carried, the last states."""
    if plain:
        h, z, after = model._loop(x, lengths, states)
    else:
        h, z, after = hm_lstm.unroll(x, lengths, layers(model), states, model._kernel_options())
    valid = (torch.arange(x.shape[1]) < lengths[:, None])[:, :, None].to(x.device)
    found = {"h": h * valid, "z": z * valid}
    if model.spec.carry_state:
        for n, state in enumerate(after):
            found |= {f"{name}_{n}": part for name, part in zip("hcz", state, strict=True)}
    return found


def with_gradients(
    model: HMLSTM,
    found: Results,
    x: Tensor,
    states: tuple[LayerState, ...],
    read: str = "h z h_0 c_0 z_0 h_1 c_1 z_1 h_2 c_2 z_2",
) -> Results:
    """Outputs, and the gradients of a weighted sum of those that are read."""
    generator = torch.Generator().manual_seed(2)
    terms = [
        (part * torch.randn(part.shape, generator=generator).to(part)).sum()
        for name, part in found.items()
        if name in read.split()
    ]
    leaves = {"x": x, **dict(model.cells.named_parameters())}
    leaves |= {f"first {name}_{n}": p for n, s in enumerate(states) for name, p in zip("hcz", s, strict=True)}
    gradients = torch.autograd.grad(torch.stack(terms).sum(), list(leaves.values()), materialize_grads=True)
    return found | {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}


def assert_twins(
    model: HMLSTM,
    x: Tensor,
    lengths: Tensor,
    states: tuple[LayerState, ...],
    tolerance: float = 1e-10,
    **reading: str,
) -> None:
    expected, found = (
        with_gradients(model, outputs(model, x, lengths, states, plain=plain), x, states, **reading)
        for plain in (True, False)
    )
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        atol = tolerance * max(1e-3, value.abs().max().item())
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("fields", [PAPER, CODE, SOFT], ids=["paper", "code", "soft"])
@pytest.mark.parametrize("sizes", STACKS, ids=str)
def test_equals_its_plain_twin(sizes: list[int], fields: dict[str, object]) -> None:
    model = build(sizes, **fields)
    x, states = batch(model, 5, 4)
    assert_twins(model, x, LENGTHS, states)


@pytest.mark.parametrize(("selection", "gradient"), [("arithmetic", "logistic"), ("where", "hard_sigmoid")])
def test_equals_its_plain_twin_where_nothing_is_carried(selection: str, gradient: str) -> None:
    model = build([3, 5], carry=False, selection_gradient=selection, boundary_gradient=gradient)
    x, states = batch(model, 5, 5)
    assert_twins(model, x, torch.tensor([5, 3, 1, 5, 2]), states)


@pytest.mark.parametrize("read", ["h", "z", "c_0"])
def test_gradients_of_a_single_output(read: str) -> None:
    model = build([3, 4], top_boundary=True)
    x, states = batch(model, 3, 4)
    assert_twins(model, x, torch.tensor([4, 1, 3]), states, read=read)


@settings(max_examples=10)
@given(st.data())
def test_equals_its_plain_twin_at_any_size(data: st.DataObject) -> None:
    draw = data.draw
    soft = draw(st.booleans(), "soft")
    model = build(
        draw(st.lists(st.integers(1, 9), min_size=2, max_size=3), "sizes"),
        draw(st.integers(1, 4), "inputs"),
        carry=draw(st.booleans(), "carry"),
        boundaries="soft" if soft else "step",
        selection_gradient="arithmetic"
        if soft
        else draw(st.sampled_from(["arithmetic", "where"]), "selection"),
        boundary_gradient=draw(st.sampled_from(["hard_sigmoid", "logistic"]), "boundary gradient"),
        top_boundary=draw(st.booleans(), "top"),
        cell_bias=draw(st.booleans(), "bias"),
        seed=draw(st.integers(0, 99), "seed"),
    )
    rows, time = draw(st.integers(1, 5), "rows"), draw(st.integers(1, 4), "time")
    lengths = torch.tensor(draw(st.lists(st.integers(1, time), min_size=rows, max_size=rows), "lengths"))
    x, states = batch(model, rows, time)
    assert_twins(model, x, lengths, states)


def test_blocks_of_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of more units than a program holds at a time."""
    monkeypatch.setattr(hm_lstm, "BLOCK_U", 4)
    model = build([9, 7])
    x, states = batch(model, 2, 4)
    assert_twins(model, x, torch.tensor([4, 3]), states)


def test_equals_its_plain_twin_in_float32() -> None:
    """Soft boundaries only: a step at 0 may fall either way in float32."""
    model = build([8, 5], dtype=torch.float32, spread=0.3, boundaries="soft")
    x, states = batch(model, 3, 7)
    assert_twins(model, x, torch.tensor([7, 5, 7]), states, 1e-5)


@pytest.mark.parametrize("selection", ["arithmetic", "where"])
def test_tiles_that_only_copy(selection: str) -> None:
    """A boundary that never opens: the layers above keep their state, and no weights are fetched for them."""
    model = build([3, 4, 2], selection_gradient=selection)
    with torch.no_grad():
        for cell in model.cells:
            if cell.boundary:
                cell.bias[-1] = -30  # type: ignore[index]
    x, states = batch(model, 4, 5)
    states = tuple((h, c, torch.zeros_like(z).requires_grad_()) for h, c, z in states)
    lengths = torch.full((4,), 5)
    found = outputs(model, x, lengths, states, plain=False)
    assert torch.equal(found["h_1"], states[1][0])
    assert torch.equal(found["c_2"], states[2][1])
    assert not found["z"].any()
    assert_twins(model, x, lengths, states)


@pytest.mark.parametrize("fields", [PAPER, CODE], ids=["paper", "code"])
@pytest.mark.parametrize("sizes", STACKS, ids=str)
def test_the_tests_see_all_three_operations(sizes: list[int], fields: dict[str, object]) -> None:
    model = build(sizes, **fields)
    x, states = batch(model, 5, 4)
    _, z, _ = model._loop(x, LENGTHS, states)
    shares = model._diagnostics(z, [z for _, _, z in states], LENGTHS)
    for operation in ("copy", "update", "flush"):
        assert sum(share for name, share in shares.items() if name.startswith(operation)) > 0.2


@pytest.mark.parametrize("selection", ["arithmetic", "where"])
def test_inference_gives_the_same_numbers(selection: str) -> None:
    model = build([4, 3], selection_gradient=selection)
    x, states = batch(model, 5, 5)
    lengths = torch.tensor([5, 2, 5, 1, 4])
    trained = outputs(model, x, lengths, states, plain=False)
    with torch.no_grad():
        found = outputs(model, x, lengths, states, plain=False)
    assert trained["h"].requires_grad
    for name, part in found.items():
        assert not part.requires_grad
        assert torch.equal(part, trained[name])


def test_the_same_bytes_in_every_run() -> None:
    model = build([4, 3])
    x, states = batch(model, 5, 4)
    first, second = (
        with_gradients(model, outputs(model, x, torch.full((5,), 4), states, plain=False), x, states)
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_sequence_that_has_ended_keeps_its_state() -> None:
    model = build([3, 4])
    x, states = batch(model, 2, 5)
    with torch.no_grad():
        x[1, 2:] = float("nan")  # never read
        h, z, after = hm_lstm.unroll(x, torch.tensor([5, 2]), layers(model), states, model._kernel_options())
    assert torch.equal(h[1, 2:], h[1, 1].expand(3, -1))
    assert torch.equal(z[1, 2:], z[1, 1].expand(3, -1))
    assert torch.equal(torch.cat([state[0] for state in after], dim=1)[1], h[1, 1])


def test_layouts_of_the_inputs_do_not_matter() -> None:
    model = build([3, 4])
    x, states = batch(model, 3, 4)
    lengths = torch.full((3,), 4)
    with torch.no_grad():
        expected = outputs(model, x, lengths, states, plain=False)["h"]
        other = x.transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(outputs(model, other, lengths, states, plain=False)["h"], expected)


def test_a_second_derivative_is_refused() -> None:
    model = build([3, 4])
    x, states = batch(model, 2, 2)
    found = outputs(model, x, torch.tensor([2, 2]), states, plain=False)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(found["h"].sum(), x, create_graph=True)


def test_what_the_kernel_takes() -> None:
    assert gpu.available()
    assert hm_lstm.admits(layers(build([100, 100, 100])), torch.float32)
    assert hm_lstm.admits(layers(build([100, 100, 100])), torch.float64)
    assert not hm_lstm.admits(layers(build([100, 100, 100])), torch.float16)
    assert not hm_lstm.admits(layers(build([8, 1024, 1024])), torch.float32)


def test_the_way_back_has_the_same_weights() -> None:
    model = build([3, 5, 4])
    sizes = [(layer.hidden, layer.above, layer.below) for layer in layers(model)]
    weights, biases = [cell.weight.detach() for cell in model.cells], [cell.bias for cell in model.cells]
    packed = hm_weights.pack(sizes, weights, biases, spare=16)
    size = hm_weights.common_size(sizes)
    assert packed.matrix.shape == (3 * 3 * size + 16, 4 * size)
    assert not packed.matrix[-16:].any()
    back = packed.transposed()
    unit, gate = 2, 3
    assert back[1, gate * size + unit, 2, 1] == weights[1][gate * 5 + unit, 5 + 4 + 1]
    assert back[1, gate * size + unit, 0, 3] == weights[1][gate * 5 + unit, 5 + 3]
    assert packed.matrix[(3 + 1) * size + 4, unit * 4 + gate] == weights[1][gate * 5 + unit, 4]


COMPILE = """
import json
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seqpyramid.kernels.gpu import hm_lstm
from seqpyramid.kernels.hm_lstm import Options

NUMBERS = {"boundaries", "steps", "batch"}
found = {}


def build(kernel, size, number, **constants):
    options = Options(slope=1.0, soft=False, logistic=size == 512, choice=size == 100)
    constants |= hm_lstm._constants([(size, size, 1), (size, size, size), (size, 0, size)], options)
    launch = {"num_warps": constants.pop("num_warps")}
    names = [name for name in kernel.arg_names if name not in constants]
    kinds = {n: "i32" if n in NUMBERS else "*i64" if n == "lengths" else number for n in names}
    signature = {n: kinds.get(n, "constexpr") for n in kernel.arg_names}
    aligned = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(kernel.arg_names)
               if name in kinds and name not in NUMBERS}
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options=launch)
    assert "cubin" in compiled.asm
    found[f"{kernel.__name__} {size} {number}"] = compiled.metadata.shared


build(hm_lstm.forward, 100, "*fp32", KEEP=True, SOFT=False, BLOCK_H=128)
build(hm_lstm.forward, 512, "*fp32", KEEP=False, SOFT=False, BLOCK_H=512)
build(hm_lstm.forward, 100, "*fp64", KEEP=True, SOFT=False, BLOCK_H=128)
build(hm_lstm.backward, 100, "*fp32", D_H=True, D_Z=False)
print(json.dumps(found))
"""


def test_kernels_fit_a_hopper_multiprocessor(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    run = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    shared = json.loads(run.stdout)
    assert len(shared) == 4
    assert {name: size for name, size in shared.items() if not 0 < size <= 227 * 1024} == {}
