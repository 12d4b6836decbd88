"""HM-LSTM's weights as the GPU kernel reads them, and their gradients from what it leaves behind.

Every layer is made as large as the largest by weights of 0: the units that this adds keep h = 0 and c = 0, and nothing
comes back from them. The sources of a layer stand in one order, X = [h above; h of its own; h below], because the first
layer then needs no more than the start and the top layer no more than the end of X.

Shapes: B batch, T time, F input features, L layers; H hidden units of the largest layer, up to a multiple of 4; S is
4 H + 4: the four gates, z~, and zeros, which keep rows on 16 bytes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

Sizes = tuple[int, int, int]
"""H of a layer, of the one above (0: none), and of the one below, or F."""


class Weights(NamedTuple):
    """All layers' weights; columns of a matrix go unit by unit, and i, f, g, o of each."""

    matrix: Tensor
    """(3 L H + spare, 4 H): W, without the first layer's part below; the spare rows are 0."""
    boundary: Tensor
    """(L, 3, H): w, without the first layer's part below."""
    bias: Tensor
    """(L, S)"""
    first: Tensor
    """(S, F): W and w of the first layer's part below."""

    def transposed(self) -> Tensor:
        """The matrices for the way back (L, 4 H, 3, H): rows i, f, g, o, and the units of each."""
        layers, _, size = self.boundary.shape
        shaped = self.matrix[: layers * 3 * size].view(layers, 3, size, size, 4)
        return shaped.permute(0, 4, 3, 1, 2).reshape(layers, 4 * size, 3, size)


def common_size(sizes: Sequence[Sizes]) -> int:
    """Return H, the size that all layers are brought to.

    >>> common_size([(3, 6, 1), (6, 0, 3)]), common_size([(100, 100, 1), (100, 0, 100)])
    (8, 100)
    """
    return -(-max(hidden for hidden, _, _ in sizes) // 4) * 4


def pack(
    sizes: Sequence[Sizes], weights: Sequence[Tensor], biases: Sequence[Tensor | None], spare: int = 0
) -> Weights:
    """Arrange (4 H + boundary, columns) matrices, and biases where there are any; spare rows end the matrix."""
    size, inputs = common_size(sizes), sizes[0][2]
    matrix = weights[0].new_zeros(3 * len(sizes) * size + spare, 4 * size)
    shaped = matrix[: 3 * len(sizes) * size].view(len(sizes), 3, size, size, 4)
    boundary = weights[0].new_zeros(len(sizes), 3, size)
    bias = weights[0].new_zeros(len(sizes), 4 * size + 4)
    first = weights[0].new_zeros(4 * size + 4, inputs)
    for n, ((hidden, above, below), weight, b) in enumerate(zip(sizes, weights, biases, strict=True)):
        gates, z_row = weight[: 4 * hidden].view(4, hidden, -1), weight[4 * hidden :]
        for part, columns in _parts(hidden, above, below, weight.shape[1], is_first=n == 0):
            width = columns.stop - columns.start
            shaped[n, part, :width, :hidden] = gates[:, :, columns].permute(2, 1, 0)
            if len(z_row):
                boundary[n, part, :width] = z_row[0, columns]
        if b is not None:
            bias[n, : 4 * hidden].view(hidden, 4).copy_(b[: 4 * hidden].view(4, hidden).T)
            bias[n, 4 * size : 4 * size + len(z_row)] = b[4 * hidden :]
        if n == 0:
            first[: 4 * hidden].view(hidden, 4, inputs).copy_(gates[:, :, -inputs:].transpose(0, 1))
            first[4 * size : 4 * size + len(z_row)] = z_row[:, -inputs:]
    return Weights(matrix, boundary, bias, first)


def pack_states(parts: Sequence[Tensor], size: int) -> Tensor:
    """Stack h or c of the layers, each (..., H of the layer), to (..., L, H)."""
    return torch.stack([pad(part, (0, size - part.shape[-1])) for part in parts], dim=-2)


def unpack_steps(steps: Tensor, sizes: Sequence[Sizes]) -> Tensor:
    """Bring (T, B, L, H) to the layers' own sizes, side by side."""
    if all(hidden == steps.shape[-1] for hidden, _, _ in sizes):
        return steps.flatten(2)
    return torch.cat([steps[:, :, n, :hidden] for n, (hidden, _, _) in enumerate(sizes)], dim=-1)


def pack_steps(steps: Tensor, sizes: Sequence[Sizes], size: int) -> Tensor:
    """Undo :func:`unpack_steps`, with zeros for the units that were added."""
    if all(hidden == size for hidden, _, _ in sizes):
        return steps.contiguous().view(*steps.shape[:2], len(sizes), size)
    return pack_states(torch.split(steps, [hidden for hidden, _, _ in sizes], dim=2), size)


def weight_gradient(
    d_sums: Tensor, h: Tensor, z: Tensor, x: Tensor, layer: int, sizes: Sequence[Sizes], columns: int
) -> Tensor:
    """Multiply one layer's D and gradient of z~ (T B, rows) with its X of all steps.

    Args:
        d_sums: as :func:`sums_gradient` gives it.
        h: (T + 1, B, L, H).
        z: (T + 1, B, L).
        x: (T, B, F).
        layer: which.
        sizes: of all layers.
        columns: of the layer's matrix; those that meet nothing stay 0.
    """
    hidden, above, below = sizes[layer]
    rows = d_sums.T
    found = rows.new_zeros(len(rows), columns)
    found[:, :hidden] = rows @ h[:-1, :, layer, :hidden].flatten(0, 1)
    if above:
        heard = z[:-1, :, layer, None] * h[:-1, :, layer + 1, :above]
        found[:, hidden : hidden + above] = rows @ heard.flatten(0, 1)
    heard = x if layer == 0 else z[1:, :, layer - 1, None] * h[1:, :, layer - 1, :below]
    found[:, columns - below :] = rows @ heard.flatten(0, 1)
    return found


def sums_gradient(d_sums: Tensor, layer: int, hidden: int, rows: int) -> Tensor:
    """Take one layer out of (T, B, L, S), in the order of its matrix's rows: (T B, 4 H of the layer + boundary)."""
    found = d_sums[:, :, layer].flatten(0, 1)
    size = (found.shape[1] - 4) // 4
    if hidden == size:
        return found[:, :rows]
    gates = found[:, : 4 * size].reshape(-1, 4, size)[:, :, :hidden].flatten(1)
    return torch.cat([gates, found[:, 4 * size : 4 * size + rows - 4 * hidden]], dim=1)


def _parts(hidden: int, above: int, below: int, columns: int, *, is_first: bool) -> list[tuple[int, slice]]:
    """Where a layer's sources stand in X and among the columns of its matrix."""
    found = [(1, slice(0, hidden))]
    if above:
        found.append((0, slice(hidden, hidden + above)))
    if not is_first:
        found.append((2, slice(columns - below, columns)))
    return found
