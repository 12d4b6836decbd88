"""How fast this machine multiplies matrices, and what share of that a training step reaches.

The limit is the best sustained rate of a product in float32 over three shapes: 2048 x 2048 x 2048, the product that
makes the weight gradient of an LSTM of 100 units (400 x 100352 x 100, all steps of a batch of 128 x 784 at once) and
one of its steps (128 x 100 x 400). The product is ``torch.mm`` and, on a CPU, also oneDNN's, where torch has it: on
AMD's processors with AVX-512 the library behind ``torch.mm`` leaves that unused, and reaches half of what oneDNN does.
One figure is a loop of products without a pause over at least half a second; each is taken several times, and the best
counts, since a busy machine can only lower it. The large shape is not always the fastest: a library may have a better
kernel for a small one, whose operands stay in the caches.

A model's training step is counted as three forward passes over its closed form: matrix products only, no
element-wise work and no padding of the kernels, so the arithmetic units are busier than the share says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from seqpyramid.errors import RecipeError

from .candidates import Candidate
from .rounds import Measured


@dataclass(frozen=True, order=True)
class Rate:
    """Sustained rate of one product."""

    flops_per_second: float
    shape: tuple[int, int, int]
    """(m, k, n): m x k times k x n."""
    by: str = "torch.mm"


Prepared = Callable[[Tensor, Tensor], Callable[[], object]]
"""Makes two matrices ready, multiplies them once, and returns what multiplies them again."""


def _by_mm(left: Tensor, right: Tensor) -> Callable[[], object]:
    product = torch.mm(left, right)
    return lambda: torch.mm(left, right, out=product)


def _by_onednn(left: Tensor, right: Tensor) -> Callable[[], object]:
    a, b = left.to_mkldnn(), right.T.contiguous().to_mkldnn()
    torch.ops.aten.mkldnn_linear(a, b, None)
    return lambda: torch.ops.aten.mkldnn_linear(a, b, None)


def products(device: torch.device) -> dict[str, Prepared]:
    """What multiplies matrices on a device, by name."""
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        return {"torch.mm": _by_mm, "oneDNN": _by_onednn}
    return {"torch.mm": _by_mm}


SHAPES = ((2048, 2048, 2048), (400, 100_352, 100), (128, 100, 400))


def best_rate(
    *,
    threads: int | None = None,
    device: torch.device,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    repeats: int = 3,
    seconds: float = 0.5,
) -> Rate:
    """Measure the best sustained rate over shapes and repeats.

    Args:
        threads: of torch's operations on the CPU; None leaves them as they are.
        device: where to multiply.
        shapes: (m, k, n) of each product.
        repeats: figures taken of each shape.
        seconds: least duration of one figure.

    Raises:
        RecipeError: torch may use less than float32's precision, so that the rate would be another kind of number.
    """
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        raise RecipeError(
            f"--limit: float32 products have precision {precision!r} here; set torch's back to 'highest'"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return max(
            sustained(shape, device, seconds, by)
            for _ in range(repeats)
            for shape in shapes
            for by in products(device)
        )
    finally:
        torch.set_num_threads(before)


def sustained(
    shape: tuple[int, int, int], device: torch.device, seconds: float, by: str = "torch.mm"
) -> Rate:
    """Multiply without a pause for some seconds, by one of :func:`products`."""
    m, k, n = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(m, k, generator=generator).to(device)
    right = torch.randn(k, n, generator=generator).to(device)
    multiply = products(device)[by](left, right)  # not measured: the first call prepares
    done, count = 0, 1
    _wait(device)
    start = perf_counter()
    while True:
        for _ in range(count):
            multiply()
        done += count
        _wait(device)
        elapsed = perf_counter() - start
        if elapsed >= seconds:
            return Rate(2 * m * k * n * done / elapsed, shape, by)
        count = done  # few looks at the clock, and on a device few waits


def best_rates(device: torch.device, known: Mapping[str, Rate]) -> dict[str, Rate]:
    """Measure on one CPU thread and on all, or on the device; of these and those already known the better ones.

    Raises:
        RecipeError: as :func:`best_rate`.
    """
    where: dict[str, int | None] = {str(device): None}
    if device.type == "cpu":
        where = {f"{n} thread{'s'[: n > 1]}": n for n in sorted({1, torch.get_num_threads()})}
    found = {name: best_rate(threads=threads, device=device) for name, threads in where.items()}
    return {name: max(rate, known.get(name, rate)) for name, rate in found.items()}


def rate_line(rates: Mapping[str, Rate]) -> str:
    """Say what the limit is, and with which product it was reached."""
    each = "; ".join(
        f"{rate.flops_per_second / 1e9:,.0f} GFLOP/s on {where} ({' x '.join(map(str, rate.shape))} by {rate.by})"
        for where, rate in rates.items()
    )
    return f"Arithmetic limit, best sustained float32 product over three shapes, before and after the rounds: {each}."


def share_table(candidates: Sequence[Candidate], measured: Measured, *, batch_size: int, limit: Rate) -> str:
    """Lay out in Markdown what share of the limit the median training step of each candidate reaches."""
    lines = ["| model | GFLOP a training step | GFLOP/s | share of the limit |", "|---|---|---|---|"]
    for one in candidates:
        if one.training_flops is not None:
            flops = one.training_flops * batch_size
            rate = flops / median(measured.training[one.name])
            lines.append(
                f"| {one.name} | {flops / 1e9:.3g} | {rate / 1e9:.3g} | {rate / limit.flops_per_second:.2f} |"
            )
    return "\n".join(lines)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
