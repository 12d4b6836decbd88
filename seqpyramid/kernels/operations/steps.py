r"""LSTM steps of one segment, a few steps between two aggregations, forward and backward.

The step and its gradients stand in :mod:`seqpyramid.kernels.lstm`. Here the batch is the last axis, so that every gate
of a step is one piece of memory, and what a step reads is one column block: the state before it, its input and 1. One
product with [W, U, b] makes all four gates; their order is o, i, f, g, three of them in one call of sigmoid.

Backward, all that does not depend on later steps is formed for the whole segment at once:

.. math::
    D^o &= \tanh(c)\, o (1 - o), \quad D^i = g\, i (1 - i), \quad D^f = c_{t-1} f (1 - f), \quad D^g = i (1 - g^2) \\
    K &= o (1 - \tanh^2 c)

which leaves for a step: :math:`\delta c \mathrel{+}= \delta h \odot K`,
:math:`\delta a = [D^o \delta h, (D^i, D^f, D^g)\, \delta c]`, and a product with :math:`[W, U]^\top`.

Shapes: B sequences, F inputs, H hidden units, R = H + F + 1 rows of what a step reads, n steps of a segment.
"""

import torch
from torch import Tensor

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input

GATES = 4
OUTPUT, INPUT, FORGET, CANDIDATE = range(GATES)
"""Order of the gates here; the weights that a layer gets have them as i, f, g, o."""


def joined(weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> Tensor:
    """[W, U, b], rows o, i, f, g: (4 H, R)."""
    return torch.cat([weight_hh, weight_ih, bias[:, None]], 1).roll(weight_hh.shape[1], 0)


def parted(d_joined: Tensor, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of U, W and b from that of [W, U, b]."""
    turned = d_joined.roll(-hidden, 0)
    return turned[:, hidden:-1].contiguous(), turned[:, :hidden].contiguous(), turned[:, -1].contiguous()


class ForwardSteps:
    """Views of a segment's memory, one a step, to be run once or many times.

    Args:
        read: (n + 1, R, B): what each step reads; h of a step goes to the place of the next.
        gates: (n, 4, H, B).
        cells: (n, H, B).
    """

    def __init__(self, read: Tensor, gates: Tensor, cells: Tensor) -> None:
        hidden = cells.shape[1]
        self._read = read.unbind(0)
        self._h = read[1:, :hidden].unbind(0)
        self._all = gates.flatten(1, 2).unbind(0)
        self._sigmoid = gates[:, :CANDIDATE].unbind(0)
        self._gate = [gate.unbind(0) for gate in gates.unbind(1)]
        self._cells = cells.unbind(0)

    def run(self, weight: Tensor, c_before: Tensor, squashed: Tensor, count: int) -> None:
        """Do ``count`` steps.

        Args:
            weight: [W, U, b] (4 H, R).
            c_before: (H, B), c before the first step.
            squashed: (H, B), a buffer.
            count: how many.
        """
        o, i, f, g = self._gate
        c = c_before
        for k in range(count):
            torch.mm(weight, self._read[k], out=self._all[k])
            torch.sigmoid_(self._sigmoid[k])
            torch.tanh_(g[k])
            c = torch.mul(f[k], c, out=self._cells[k])
            c.addcmul_(i[k], g[k])
            torch.tanh(c, out=squashed)
            torch.mul(o[k], squashed, out=self._h[k])


class BackwardSteps:
    """Buffers for the backward pass of segments of up to ``steps`` steps.

    Args:
        weight: [W, U, b] (4 H, R).
        hidden: H.
        steps: n at most.
        batch: B.
        input_gradient: whether the gradient of the inputs is wanted.
    """

    def __init__(self, weight: Tensor, *, hidden: int, steps: int, batch: int, input_gradient: bool) -> None:
        self._weight = weight[:, : weight.shape[1] - 1 if input_gradient else hidden].t().contiguous()
        self._d_weight = torch.zeros_like(weight)
        rows = len(self._weight)
        self.d_read = weight.new_zeros(steps + 1, rows, batch)
        """Gradient of what each step reads, without the 1; so that of h of step k stands at k + 1."""
        self.d_cells = weight.new_zeros(steps, hidden, batch)
        """Gradient of c of each step."""
        self.d_c_before = weight.new_zeros(hidden, batch)
        self.h = weight.new_empty(steps, hidden, batch)
        """h of each step."""
        self._squashed = torch.empty_like(self.h)
        self._slope = torch.empty_like(self.h)
        self._da = weight.new_empty(steps, GATES, hidden, batch)
        self._d_reads = self.d_read.unbind(0)
        self._d_h = self.d_read[1:, :hidden].unbind(0)
        self._d_c = self.d_cells.unbind(0)
        self._slopes = self._slope.unbind(0)
        self._da_all = self._da.flatten(1, 2).unbind(0)
        self._da_output = self._da[:, OUTPUT].unbind(0)
        self._da_others = self._da[:, INPUT:].unbind(0)

    @property
    def d_weight(self) -> Tensor:
        """The gradient of [W, U, b], over all segments so far."""
        return self._d_weight

    def prepare(self, gates: Tensor, cells: Tensor, c_before: Tensor) -> None:
        """Form h again, and all that depends on no later step.

        Args:
            gates: (n, 4, H, B).
            cells: (n, H, B).
            c_before: (H, B), c before the first step.
        """
        n = len(cells)
        o, i, f, g = gates.unbind(1)
        squashed, da = self._squashed[:n], self._da[:n]
        torch.tanh(cells, out=squashed)
        torch.mul(o, squashed, out=self.h[:n])
        _tanh_backward(o, squashed, grad_input=self._slope[:n])
        _sigmoid_backward(squashed, o, grad_input=da[:, OUTPUT])
        _sigmoid_backward(g, i, grad_input=da[:, INPUT])
        _sigmoid_backward(c_before, f[0], grad_input=da[0, FORGET])
        _sigmoid_backward(cells[:-1], f[1:], grad_input=da[1:, FORGET])
        _tanh_backward(i, g, grad_input=da[:, CANDIDATE])

    def run(self, read: Tensor, gates: Tensor) -> None:
        """Go back through a prepared segment, from the gradients of its h and c to those of what it reads.

        Args:
            read: (n, R, B).
            gates: (n, 4, H, B).
        """
        n = len(gates)
        forget = gates[:, FORGET].unbind(0)
        for k in range(n - 1, -1, -1):
            dh, dc = self._d_h[k], self._d_c[k]
            dc.addcmul_(dh, self._slopes[k])
            self._da_output[k].mul_(dh)
            self._da_others[k].mul_(dc)
            self._d_reads[k].addmm_(self._weight, self._da_all[k])
            if k:
                self._d_c[k - 1].addcmul_(dc, forget[k])
            else:
                torch.mul(dc, forget[0], out=self.d_c_before)
        self._d_weight.addbmm_(self._da[:n].flatten(1, 2), read.transpose(1, 2))
