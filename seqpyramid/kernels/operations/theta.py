r"""The aggregation of TP-RNN, equations (7)-(10), for all sequences and units of a few states at once.

The states of a group lie side by side, E = (n, H B), and so :math:`p = \max(0, W_1 E)`, :math:`s = \sigma(W_2 p)` are
two products with a long free axis; :math:`y = \tanh(\sum_m s'_m \odot e_m)`, where s' is s, or s scrambled. Backward
is the derivation in :mod:`seqpyramid.kernels.tp_rnn`, with p and s formed again.

Scrambled, the weights of one sequence, unit by unit (H, n), are read state by state (n, H). With the batch as the last
axis this moves whole rows of it: s' read as (H, n, B) is s with its first two axes exchanged.

Shapes: B sequences, H hidden units, M = g states at most, n states now.
"""

from math import gcd, prod
from typing import NamedTuple

import torch
from torch import Tensor

from seqpyramid.kernels.tp_rnn import Theta

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_threshold_backward = torch.ops.aten.threshold_backward.grad_input

EXPANSION = 3
"""Rows of W1 over its columns."""


BLOCKS = 16
"""Most pieces of the columns that gradients of weights are summed over: a few rows by many columns is a product that a
library runs on one thread, and several such products on several."""


class Room(NamedTuple):
    """Buffers for one aggregation of n states."""

    blocks: int
    """Pieces of equal size that H B columns are cut into."""
    p: Tensor
    """(3 n, H B)."""
    r: Tensor
    """(3 n, H B), the gradient of W1 E."""
    q: Tensor
    """(n, H, B): W2 p and its gradient."""
    s: Tensor
    """(n, H, B): s'."""
    product: Tensor
    """(n, H, B)."""
    a: Tensor
    """(H, B), the gradient of the weighted sum."""


class Rooms:
    """Buffers for aggregations of up to ``states`` states of H units of B sequences, taken in turn.

    Args:
        like: a tensor of the right dtype and device.
        states: n at most.
        hidden: H.
        batch: B at most.
    """

    def __init__(self, like: Tensor, *, states: int, hidden: int, batch: int) -> None:
        self._hidden = hidden
        sizes = (EXPANSION * states, EXPANSION * states, states, states, states, 1)
        self._memory = [like.new_empty(size * hidden * batch) for size in sizes]
        self._rooms: dict[tuple[int, int], Room] = {}

    def of(self, n: int, batch: int) -> Room:
        """The buffers for n states of some sequences."""
        if (n, batch) not in self._rooms:
            wide, narrow = (EXPANSION * n, self._hidden * batch), (n, self._hidden, batch)
            shapes = (wide, wide, narrow, narrow, narrow, narrow[1:])
            self._rooms[n, batch] = Room(
                gcd(wide[1], BLOCKS),
                *(
                    memory[: prod(shape)].view(shape)
                    for memory, shape in zip(self._memory, shapes, strict=True)
                ),
            )
        return self._rooms[n, batch]


class ThetaOperations:
    """Theta with its weights, and the sums of their gradients.

    Args:
        weights: W1 and W2.
        scrambled: whether s' is s scrambled.
        rooms: buffers to work in.
    """

    def __init__(self, weights: Theta, *, scrambled: bool, rooms: Rooms) -> None:
        self._weights = weights
        self._scrambled = scrambled
        self._rooms = rooms
        self._slices: dict[int, tuple[Tensor, Tensor]] = {}
        # sums of the weights' gradients, block by block, both as (M, 3 M)
        self._d_first, self._d_second = (
            torch.zeros_like(weights.second.expand(BLOCKS, -1, -1), memory_format=torch.contiguous_format)
            for _ in weights
        )

    @property
    def d_weights(self) -> Theta:
        """The gradients of W1 and W2 over all that went back so far."""
        return Theta(self._d_first.sum(0).t(), self._d_second.sum(0))

    def aggregate(self, e: Tensor, y: Tensor) -> None:
        """Write theta of the states e (n, H, B) into y (H, B)."""
        room = self._weigh(e)
        torch.mul(room.s, e, out=room.product)
        torch.sum(room.product, 0, out=y)
        torch.tanh_(y)

    def backward(self, e: Tensor, y: Tensor, dy: Tensor, de: Tensor) -> None:
        """Write the gradient of the states into de (n, H, B) and add those of the weights to their sums."""
        n, hidden, batch = e.shape
        room = self._weigh(e)
        _tanh_backward(dy, y, grad_input=room.a)
        torch.mul(room.a, e, out=room.product)
        if self._scrambled:
            turned = (hidden, n, batch)
            q = room.q.transpose(0, 1)
            _sigmoid_backward(room.product.view(turned), room.s.view(turned), grad_input=q)
        else:
            _sigmoid_backward(room.product, room.s, grad_input=room.q)
        torch.mul(room.a, room.s, out=de)

        first, second = self._sliced(n)
        dq = room.q.flatten(1)
        torch.mm(second.t(), dq, out=room.r)
        _threshold_backward(room.r, room.p, 0, grad_input=room.r)
        de.flatten(1).addmm_(first.t(), room.r)
        rows = EXPANSION * n
        self._d_second[:, :n, :rows][: room.blocks].baddbmm_(
            _blocked(dq, room.blocks), _blocked(room.p, room.blocks).transpose(1, 2)
        )
        self._d_first[:, :n, :rows][: room.blocks].baddbmm_(
            _blocked(e.flatten(1), room.blocks), _blocked(room.r, room.blocks).transpose(1, 2)
        )

    def _weigh(self, e: Tensor) -> Room:
        """Form p and s'."""
        n, hidden, batch = e.shape
        room = self._rooms.of(n, batch)
        first, second = self._sliced(n)
        torch.mm(first, e.flatten(1), out=room.p)
        torch.relu_(room.p)
        torch.mm(second, room.p, out=room.q.flatten(1))
        if self._scrambled:
            torch.sigmoid(room.q.transpose(0, 1), out=room.s.view(hidden, n, batch))
        else:
            torch.sigmoid(room.q, out=room.s)
        return room

    def _sliced(self, n: int) -> tuple[Tensor, Tensor]:
        """The weights for n states."""
        if n not in self._slices:
            rows = EXPANSION * n
            first, second = self._weights.first[:rows, :n], self._weights.second[:n, :rows]
            self._slices[n] = first.contiguous(), second.contiguous()
        return self._slices[n]


def _blocked(rows: Tensor, blocks: int) -> Tensor:
    """Cut the columns: (blocks, rows, columns of a block)."""
    return rows.view(len(rows), blocks, -1).transpose(0, 1)
