"""The TP-RNN layer in torch's operations against the plain step loop of the model."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqpyramid.kernels.operations.states import Course, Weights, tape
from seqpyramid.kernels.operations.tp_rnn import tp_rnn_layer
from seqpyramid.kernels.tp_rnn import Pyramids, Theta
from seqpyramid.models.tp_rnn import TPRNNLayer
from tests.kernels import assert_same
from tests.kernels.tp_rnn_layers import by_loop, draw_layer


class Found(NamedTuple):
    output: Tensor
    emitted: Tensor
    """(B, T', H), zero past what a sequence has."""


def by_operations(layer: TPRNNLayer, x: Tensor, lengths: Tensor) -> Found:
    return Found(*layer._fused(tp_rnn_layer, x, lengths)[:2])


def gradients(layer: TPRNNLayer, x: Tensor, outputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    generator = torch.Generator().manual_seed(2)
    weighted = [(o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outputs]
    return torch.autograd.grad(
        torch.stack(weighted).sum(), [x, *layer.parameters()], allow_unused=True, retain_graph=True
    )


def prepared(layer: TPRNNLayer, dtype: torch.dtype) -> TPRNNLayer:
    layer = layer.to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer


def compare(
    layer: TPRNNLayer, *, B: int, T: int, F: int, ragged: bool = True, dtype: torch.dtype = torch.float64
) -> None:
    """Outputs and gradients of both twins, from either result or both, and the outputs without gradients."""
    torch.manual_seed(1)
    layer = prepared(layer, dtype)
    x = torch.randn(B, T, F, dtype=dtype, requires_grad=True)
    lengths = torch.randint(1, T + 1, (B,)) if ragged else torch.full((B,), T)
    loop, found = Found(*by_loop(layer, x, lengths)), by_operations(layer, x, lengths)
    # A relu at a rounding error from its corner, or a sum that cancels, costs float32 more than a digit.
    slack = 3 if dtype == torch.float32 else 1
    assert_same(loop, found, slack=slack)
    for which in ([0, 1], [0], [1]):
        expected, got = (gradients(layer, x, [result[k] for k in which]) for result in (loop, found))
        # A weight that met no state has no gradient; one that only the unread result has met has zeros in the loop.
        for e, g in zip(expected, got, strict=True):
            assert (e is None) == (g is None) or (g is None and e is not None and not e.any())
        both = [(e, g) for e, g in zip(expected, got, strict=True) if e is not None and g is not None]
        assert_same([e for e, _ in both], [g for _, g in both], slack=slack)
    with torch.no_grad():
        quiet = by_operations(layer, x, lengths)
    assert torch.equal(quiet.output, found.output)
    assert torch.equal(quiet.emitted, found.emitted)


@settings(max_examples=60)
@given(data=st.data())
def test_equals_the_loop(data: st.DataObject) -> None:
    layer = draw_layer(data)
    B, T = data.draw(st.integers(1, 7), "B"), data.draw(st.integers(1, 30), "T")
    compare(layer, B=B, T=T, F=layer.cell.input_size, ragged=data.draw(st.booleans(), "ragged"))


@pytest.mark.parametrize(("L", "g"), [(9, 3), (7, 7), (12, 2)])
def test_float32(L: int, g: int) -> None:
    compare(TPRNNLayer(2, 33, length=L, granularity=g), B=6, T=23, F=2, dtype=torch.float32)


def test_sums_of_gradients_over_many_columns() -> None:
    compare(TPRNNLayer(1, 24, length=6, granularity=3, attention="scrambled"), B=16, T=20, F=1, ragged=False)


@pytest.fixture
def layer() -> TPRNNLayer:
    torch.manual_seed(0)
    return prepared(TPRNNLayer(2, 5, length=6, granularity=3), torch.float64)


LENGTHS = torch.tensor([4, 13, 6, 11])


@pytest.fixture
def x() -> Tensor:
    return torch.randn(
        4, 15, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    ).requires_grad_()


def test_is_one_operation_of_the_graph(layer: TPRNNLayer, x: Tensor) -> None:
    result = by_operations(layer, x, torch.full((4,), 15))
    assert result.output.grad_fn is result.emitted.grad_fn
    assert "TpRnnOperations" in type(result.output.grad_fn).__name__


def test_padding_of_any_content_changes_nothing(layer: TPRNNLayer, x: Tensor) -> None:
    past = (torch.arange(15) >= LENGTHS[:, None])[..., None]
    filled = x.detach().masked_fill(past, torch.nan).requires_grad_()
    clean, padded = by_operations(layer, x, LENGTHS), by_operations(layer, filled, LENGTHS)
    assert torch.equal(clean.output, padded.output)
    assert torch.equal(clean.emitted, padded.emitted)
    for a, b in zip(gradients(layer, x, [*clean]), gradients(layer, filled, [*padded]), strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_a_second_backward_pass_finds_the_same(layer: TPRNNLayer, x: Tensor) -> None:
    outputs = [*by_operations(layer, x, LENGTHS)]
    once, twice = gradients(layer, x, outputs), gradients(layer, x, outputs)
    assert all(
        a is not None and b is not None and torch.equal(a, b) for a, b in zip(once, twice, strict=True)
    )


def test_inputs_without_gradients(layer: TPRNNLayer, x: Tensor) -> None:
    fixed = x.detach()
    both = [by_operations(layer, inputs, LENGTHS).output.square().sum() for inputs in (x, fixed)]
    a, b = (torch.autograd.grad(loss, list(layer.parameters())) for loss in both)
    assert_same(a, b)


def test_second_derivatives_are_refused(layer: TPRNNLayer, x: Tensor) -> None:
    loss = by_operations(layer, x, LENGTHS).output.square().sum()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss, [x], create_graph=True)


def test_inference_memory_does_not_grow_with_time() -> None:
    def numbers(time: int, *, keep: bool) -> int:
        shape = Pyramids(12, 3, 1, -(-time // 3), scrambled=False, top_down=True, top_first=False)
        theta = Theta(torch.zeros(9, 3), torch.zeros(3, 9))
        weights = Weights(torch.zeros(4 * 5, 5 + 2 + 1), theta, theta, None)
        course = Course(shape, [time] * 4)
        kept = tape(torch.zeros(4, time, 2), course, weights, keep=keep)
        return sum(tensor.numel() for tensor in kept)

    assert numbers(2400, keep=False) == numbers(24, keep=False)
    assert numbers(2400, keep=True) > 90 * numbers(24, keep=True)
