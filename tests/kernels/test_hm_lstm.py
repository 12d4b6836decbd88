"""The HM-LSTM kernel against its plain twin, finite differences, and itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqpyramid import kernels
from seqpyramid.errors import RecipeError
from seqpyramid.kernels import hm_lstm
from seqpyramid.models.base import mask_steps
from seqpyramid.models.hm_lstm import HMLSTM, OutputModule
from tests.kernels import needs_kernels, running
from tests.kernels.hm_lstm_models import (
    Case,
    States,
    assert_twins,
    batch,
    build,
    cases,
    outputs,
    with_gradients,
)

pytestmark = needs_kernels

NATIVE = Path(hm_lstm.__file__).parent / "native"


@pytest.fixture(autouse=True)
def _fused() -> Iterator[None]:
    with running("fused"):
        yield


def assert_kernel(
    model: HMLSTM, x: Tensor, lengths: Tensor, states: States, tolerance: float = 1e-10
) -> None:
    assert_twins(model._unroll, model, x, lengths, states, tolerance)


@settings(max_examples=60)
@given(cases(units=35, layers=4, inputs=18, rows=9, time=7), st.integers(1, 3))
def test_equals_its_plain_twin(case: Case, threads: int) -> None:
    torch.set_num_threads(threads)
    assert_kernel(*case)


def test_every_level_of_the_architecture(level: str) -> None:
    model = build([19, 12, 5], 3, carry=True)
    x, states = batch(model, 9, 6)
    assert_kernel(model, x, torch.arange(9) % 6 + 1, states)


@pytest.mark.parametrize("rows", [7, 45])
def test_gates_in_16_bits_round_gradients_and_nothing_else(level: str, rows: int) -> None:
    found = []
    for short in (False, True):
        model = build([100, 41], 3, dtype=torch.float32, spread=0.1, carry=True, gates_in_16_bits=short)
        x, states = batch(model, rows, 20)
        h, z, _ = model._unroll(x, torch.arange(rows) * 7 % 20 + 1, states)
        gradients = torch.autograd.grad(h.sin().sum() + z.sum(), [x, *model.cells.parameters()])
        found.append(([h, z], gradients))
    (exact, gradients), (same, rounded) = found
    assert all(torch.equal(a, b) for a, b in zip(exact, same, strict=True))
    assert 0 < exact[1].mean() < 1  # some boundaries are open, some closed
    for a, b in zip(gradients, rounded, strict=True):
        assert 0 < (a - b).norm() < 1e-4 * a.norm()


@pytest.mark.parametrize("rows", [7, 150])
@pytest.mark.parametrize("fields", [{}, {"selection_gradient": "where"}, {"boundaries": "soft"}])
@pytest.mark.parametrize("read", [False, True])
def test_recomputation_changes_no_bit(level: str, rows: int, fields: dict[str, object], read: bool) -> None:
    for dtype in (torch.float64, torch.float32):
        found = []
        for recompute in (False, True):
            model = build([20, 33, 17], 3, dtype=dtype, carry=True, recompute=recompute, **fields)
            x, states = batch(model, rows, 23)
            leaves = [x, *(part for state in states for part in state), *model.parameters()]
            with running("fused", 2):
                steps, z, after = model._unroll(x, torch.arange(rows) * 5 % 23 + 1, states, read=read)
                loss = steps.sin().sum() + z.sum() + torch.cat([c for _, c, _ in after], 1).cos().sum()
                gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
            found.append([steps, z, *(g for g in gradients if g is not None)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gates_in_16_bits_need_the_kernel() -> None:
    for fields in ({"layer_norm": True}, {"boundaries": "sampling"}):
        with pytest.raises(RecipeError, match="gates_in_16_bits: needs the compiled layers"):
            build([4, 3], gates_in_16_bits=True, **fields)
        with pytest.raises(RecipeError, match="recompute: needs the compiled layers"):
            build([4, 3], recompute=True, **fields)
    model = build([4, 3], gates_in_16_bits=True)
    x = torch.randn(2, 5, 2, dtype=torch.float64)
    with running("plain"):
        with torch.no_grad():
            model(x, torch.tensor([5, 3]))
        with pytest.raises(RecipeError, match=r"model\.gates_in_16_bits needs the compiled kernels"):
            model(x, torch.tensor([5, 3]))


@pytest.mark.parametrize("selection", ["arithmetic", "where"])
def test_more_rows_than_a_slice_has(selection: str) -> None:
    model = build([20, 33, 17], carry=True, selection_gradient=selection)
    x, states = batch(model, 150, 4)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert_kernel(model, x, torch.arange(150) % 4 + 1, states)


@pytest.mark.parametrize("rows", [7, 45])  # where there are tiles, they make the products of 45
def test_equals_its_plain_twin_in_float32(level: str, rows: int) -> None:
    """Soft boundaries only: a step at 0 may fall either way in float32."""
    model = build([100, 41], 3, dtype=torch.float32, spread=0.1, boundaries="soft", carry=True)
    x, states = batch(model, rows, 20)
    assert_kernel(model, x, torch.tensor([20, 1, 19, 20, 7, 20, 3]).repeat(7)[:rows], states, 1e-5)


@pytest.mark.parametrize(
    ("boundaries", "selection"), [("soft", "arithmetic"), ("step", "arithmetic"), ("step", "where")]
)
@pytest.mark.parametrize("rows", [13, 40, 70, 150])
def test_many_rows_in_float32(level: str, rows: int, boundaries: str, selection: str) -> None:
    """Where there are tiles, they make these products. No z~ of these seeds is within a rounding error of its step."""
    model = build(
        [100, 41, 20],
        3,
        dtype=torch.float32,
        spread=0.1,
        boundaries=boundaries,
        selection_gradient=selection,
        carry=True,
    )
    x, states = batch(model, rows, 6)
    assert_kernel(model, x, torch.arange(rows) % 6 + 1, states, 1e-5)


def test_the_tests_see_all_three_operations() -> None:
    model = build([20, 33, 17], carry=True)
    shares = model(batch(model, 50, 10)[0]).diagnostics
    rare = {name for name, share in shares.items() if "boundary" not in name and share < 0.1}
    assert rare == {"copy_1", "flush_3"}


def test_gradients_of_soft_boundaries_are_derivatives() -> None:
    model = build([5, 3], 2, spread=0.4, boundaries="soft", boundary_gradient="logistic", carry=True)
    x, states = batch(model, 2, 3)
    flat = [part for state in states for part in state]
    weights = list(model.cells.parameters())
    lengths = torch.tensor([3, 2])

    def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        h, z, after = model._unroll(x, lengths, (tensors[:3], tensors[3:6]))
        return h, z, *(part for state in after for part in state)

    assert torch.autograd.gradcheck(run, (x, *flat, *weights), nondet_tol=0)


@settings(max_examples=60)
@given(
    cases(units=35, layers=5, inputs=3, rows=20, time=9), st.integers(1, 20), st.integers(1, 3), st.booleans()
)
def test_the_output_module_equals_its_plain_twin(case: Case, size: int, threads: int, shared: bool) -> None:
    model, x, lengths, states = case
    model.output = OutputModule(model.output.hidden_sizes, size, init="torch").double()
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(len(x), x.shape[1], size, generator=generator, dtype=torch.float64)
    if shared:  # by all steps, as where their mean is taken
        weights = weights[:, :1].expand_as(weights)
    leaves = [x, *(part for state in states for part in state), *model.parameters()]
    torch.set_num_threads(threads)
    found = []
    for mode in ("plain", "fused"):
        kernels.choose(mode)  # type: ignore[arg-type]
        e, z, _ = model._unroll(x, lengths, states, read=True)
        loss = (weights * e).sum() + mask_steps(z, lengths).sum()
        found.append([e, *torch.autograd.grad(loss, leaves, materialize_grads=True)])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-10 * max(1e-3, plain.abs().max().item()))


@pytest.mark.parametrize("rows", [1, 7, 45, 150])
def test_the_output_module_in_float32(level: str, rows: int) -> None:
    fields = {"boundaries": "soft", "spread": 0.1, "embedding_size": 37}
    model = build([100, 41], 3, dtype=torch.float32, carry=True, **fields)  # type: ignore[arg-type]
    x, states = batch(model, rows, 20)
    lengths = 20 - torch.arange(rows) * 7 % 20
    found = []
    for mode in ("plain", "fused"):
        kernels.choose(mode)  # type: ignore[arg-type]
        e, _, _ = model._unroll(x, lengths, states, read=True)
        found.append(
            [e, *torch.autograd.grad(e.sin().sum(), [x, *model.parameters()], materialize_grads=True)]
        )
    assert 0.1 < (found[0][0] > 0).float().mean() < 0.9  # ReLU's, and what stands past an end
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5 * plain.abs().max().item())


def test_inference_gives_the_same_numbers() -> None:
    model = build([20, 33, 17], carry=True)
    x, states = batch(model, 70, 9)
    lengths = torch.arange(70) % 9 + 1
    for read in (False, True):
        trained = model._unroll(x, lengths, states, read=read)
        with torch.no_grad():
            found = model._unroll(x, lengths, states, read=read)
        assert trained[0].requires_grad
        assert not found[0].requires_grad
        assert torch.equal(found[0], trained[0])
        assert torch.equal(found[1], trained[1])


def test_the_same_bytes_in_every_run() -> None:
    model = build([20, 33, 17])
    x, states = batch(model, 130, 5)
    torch.set_num_threads(2)
    lengths = torch.full((130,), 5)
    first, second = (
        with_gradients(model, outputs(model._unroll, model, x, lengths, states), x, states) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_sequence_that_has_ended_keeps_its_state() -> None:
    model = build([6, 5])
    x, states = batch(model, 2, 6)
    h, z, after = model._unroll(x, torch.tensor([6, 2]), states)
    assert torch.equal(h[1, 2:], h[1, 1].expand(4, -1))
    assert torch.equal(z[1, 2:], z[1, 1].expand(4, -1))
    assert torch.equal(torch.cat([state[0] for state in after], dim=1)[1], h[1, 1])
    _, _, early = model._unroll(x[:, :2], torch.tensor([2, 2]), states)
    assert torch.equal(early[1][1][1], after[1][1][1])


def test_layouts_of_the_inputs_do_not_matter() -> None:
    model = build([6, 5])
    x, states = batch(model, 3, 4)
    lengths = torch.full((3,), 4)
    expected, _, _ = model._unroll(x, lengths, states)
    for other in (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x.transpose(1, 2).contiguous().transpose(1, 2),
    ):
        assert torch.equal(model._unroll(other, lengths, states)[0], expected)


def test_the_model_calls_the_kernel_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[hm_lstm.Options] = []
    kernel = hm_lstm.unroll

    def counted(
        x: Tensor, lengths: Tensor, layers: object, states: object, options: hm_lstm.Options, output: object
    ) -> object:
        calls.append(options)
        return kernel(x, lengths, layers, states, options, output)  # type: ignore[arg-type]

    monkeypatch.setattr(hm_lstm, "unroll", counted)
    x = batch(build([6, 5]), 3, 4)[0]
    for fields in ({}, {"layer_norm": True}, {"boundaries": "sampling"}, {"boundaries": "soft"}):
        build([6, 5], slope=1.5, **fields)(x)
    where = {"boundary_gradient": "logistic", "selection_gradient": "where"}
    build([6, 5], slope=1.5, boundaries="sampling", **where).eval()(x)
    assert calls == [
        hm_lstm.Options(slope=1.5, soft=False, logistic=False, choice=True),
        hm_lstm.Options(slope=1.5, soft=True, logistic=False, choice=True),
        hm_lstm.Options(slope=1.5, soft=False, logistic=True, choice=False),
    ]
    kernels.choose("plain")
    build([6, 5])(x)
    assert len(calls) == 3
    kernels.choose("auto")


def test_the_whole_model_gives_the_plain_results() -> None:
    model, lengths = build([6, 5], carry=True), torch.tensor([4, 2, 3])
    x = batch(model, 3, 4)[0]
    found = []
    for mode in ("plain", "fused"):
        kernels.choose(mode)  # type: ignore[arg-type]
        model.zero_grad()
        output = model(x, lengths)
        output.outputs.square().sum().backward()
        found.append([output.outputs, *(parameter.grad.clone() for parameter in model.parameters())])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-12)


def test_a_second_derivative_is_refused() -> None:
    model = build([6, 5])
    x, states = batch(model, 2, 3)
    for read in (False, True):
        loss = model._unroll(x, torch.tensor([3, 3]), states, read=read)[0].sum()
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss, list(model.parameters()), create_graph=True, allow_unused=True)
