"""The parallel scan against the loop that it replaces."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqpyramid.models.scan import at_least_float32, linear_scan

B, H = 3, 2
KINDS = [torch.float64, torch.complex128]


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def loop(a: Tensor, b: Tensor, initial: Tensor | None = None) -> Tensor:
    h = torch.zeros_like(b[:, 0]) if initial is None else initial
    found = []
    for a_t, b_t in zip(a.expand_as(b).unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        found.append(h)
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("time", [1, 2, 3, 4, 7, 8, 33, 100])
@pytest.mark.parametrize("with_initial", [False, True])
def test_equals_the_loop(dtype: torch.dtype, time: int, with_initial: bool) -> None:
    a, b = random(B, time, H, dtype=dtype), random(B, time, H, dtype=dtype, seed=1)
    a = a / a.abs().clamp(min=1)
    initial = random(B, H, dtype=dtype, seed=2) if with_initial else None
    torch.testing.assert_close(linear_scan(a, b, initial), loop(a, b, initial), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", [(B, 9, H), (1, 9, H), (B, 1, H), (1, 1, H)])
def test_gradients_equal_the_loops(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = [
        0.5 * random(*shape, dtype=dtype),
        random(B, 9, H, dtype=dtype, seed=1),
        random(B, H, dtype=dtype),
    ]
    weights = random(B, 9, H, dtype=dtype, seed=3)
    gradients = []
    for function in (linear_scan, loop):
        leaves = [value.clone().requires_grad_() for value in values]
        h = function(*leaves)
        gradients.append(
            torch.autograd.grad((h * weights).real.sum() if h.is_complex() else (h * weights).sum(), leaves)
        )
    for found, expected, value in zip(*gradients, values, strict=True):
        assert found.shape == value.shape
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("time", [1, 2, 5])
def test_gradcheck(dtype: torch.dtype, time: int) -> None:
    a, b, h = (
        random(2, time, H, dtype=dtype),
        random(2, time, H, dtype=dtype, seed=1),
        random(2, H, dtype=dtype),
    )
    leaves = [value.requires_grad_() for value in (a, b, h)]
    assert torch.autograd.gradcheck(linear_scan, leaves)
    assert torch.autograd.gradgradcheck(linear_scan, leaves)


def test_the_gradient_of_the_factors_alone_and_of_the_inputs_alone() -> None:
    a, b = random(B, 6, H), random(B, 6, H, seed=1)
    assert torch.autograd.gradcheck(lambda a: linear_scan(a, b), [a.clone().requires_grad_()])
    assert torch.autograd.gradcheck(lambda b: linear_scan(a, b), [b.clone().requires_grad_()])


@pytest.mark.parametrize("time", [1, 5, 8, 13])
def test_later_steps_do_not_move_the_last_bit(time: int) -> None:
    a, b = random(B, 21, H), random(B, 21, H, seed=1)
    assert torch.equal(linear_scan(a[:, :time], b[:, :time]), linear_scan(a, b)[:, :time])


def test_inputs_stay_as_they_are() -> None:
    for time in (1, 6):
        a, b = random(B, time, H), random(B, time, H, seed=1)
        kept = a.clone(), b.clone()
        linear_scan(a, b).add_(1)
        assert torch.equal(a, kept[0])
        assert torch.equal(b, kept[1])


class Count(TorchDispatchMode):
    """Operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        return func(*args, **(kwargs or {}))


def calls(time: int) -> int:
    a, b = random(1, time, 1).requires_grad_(), random(1, time, 1)
    with Count() as count:
        linear_scan(a, b).sum().backward()
    return count.calls


def test_operations_grow_with_the_logarithm_of_time() -> None:
    doubling = [calls(2 * time) - calls(time) for time in (16, 64, 256)]
    assert len(set(doubling)) == 1
    assert doubling[0] < 60


def test_memory_kept_for_the_gradient_is_linear_in_time() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        linear_scan(random(B, 64, H).requires_grad_(), random(B, 64, H))
    assert kept == [B * 64 * H] * 2


def test_runs_without_values() -> None:
    meta = torch.device("meta")
    assert linear_scan(torch.empty(1, 1, 3, device=meta), torch.empty(2, 7, 3, device=meta)).shape == (
        2,
        7,
        3,
    )


def test_mixed_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="one dtype"):
        linear_scan(torch.ones(1, 2, 1), torch.ones(1, 2, 1, dtype=torch.complex64))


def test_only_half_precision_is_widened() -> None:
    found = {
        dtype: at_least_float32(torch.ones(1, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)
    }
    assert found == {torch.bfloat16: torch.float32, torch.float64: torch.float64}
