# Triton's language is no Python to a type checker: arguments are pointers, decorators make programs.
# mypy: allow-untyped-defs, allow-untyped-decorators, no-check-untyped-defs
"""A few vectors times a matrix that stays the same from step to step: its first rows on registers, the others streamed.

The matrix goes by in chunks of rows. A program's threads share a chunk out and each multiplies its part by the chunk's
few numbers of a vector, adding up in place; the sum over threads comes once, at the end.

Shapes: V vectors, K rows of the matrix, N columns; matrices are row-major.
"""

import triton
import triton.language as tl


@triton.jit
def _chunk(
    matrix,
    first,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    LAST: tl.constexpr,
):
    """Rows ``first`` on, as (1, CHUNK, N rounded up); LAST: there may be fewer than CHUNK."""
    k = first + tl.arange(0, CHUNK)[None, :, None]
    n = tl.arange(0, BLOCK_N)[None, None, :]
    inside = n < N
    if LAST:
        inside = inside & (k < K)
    return tl.load(matrix + (k * N + n), mask=inside, other=0)


@triton.jit
def _numbers(vectors, first, K: tl.constexpr, CHUNK: tl.constexpr, LAST: tl.constexpr):
    """A chunk's numbers of every vector, (V, CHUNK, 1)."""
    k = first + tl.arange(0, CHUNK)[None, :, None]
    numbers = vectors[:, None, None] + k
    return tl.load(numbers, mask=k < K, other=0) if LAST else tl.load(numbers)


@triton.jit
def hold(
    matrix, K: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr, HELD: tl.constexpr
):
    """The first HELD rows, a tuple of chunks."""
    held = ()
    for piece in tl.static_range(HELD // CHUNK):
        held += (_chunk(matrix, piece * CHUNK, K, N, BLOCK_N, CHUNK, (piece + 1) * CHUNK > K),)
    return held


@triton.jit
def product(
    vectors,
    matrix,
    held,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    HELD: tl.constexpr,
):
    """(V, N rounded up); ``vectors`` (V,) are pointers, ``held`` is what :func:`hold` made of the matrix."""
    dtype = matrix.dtype.element_ty
    WHOLE: tl.constexpr = K // CHUNK * CHUNK
    shares = tl.zeros([BLOCK_V, CHUNK, BLOCK_N], dtype)
    for piece in tl.static_range(HELD // CHUNK):
        numbers = _numbers(vectors, piece * CHUNK, K, CHUNK, (piece + 1) * CHUNK > K)
        shares += numbers * held[piece]
    for first in range(HELD, WHOLE, CHUNK):
        right = _chunk(matrix, first, K, N, BLOCK_N, CHUNK, False)
        shares += _numbers(vectors, first, K, CHUNK, False) * right
    if (WHOLE < K) and (HELD < K):
        right = _chunk(matrix, WHOLE, K, N, BLOCK_N, CHUNK, True)
        shares += _numbers(vectors, WHOLE, K, CHUNK, True) * right
    return tl.sum(shares, axis=1)
