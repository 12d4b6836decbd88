r"""Recursive network over a balanced binary tree whose leaves are the time steps.

Sources: recursive networks of a sequence in ceil(log2 T) levels, as Goodfellow, Bengio and Courville draw them in
"Deep Learning" (2016, section 10.6); Tai, Socher, Manning, "Improved semantic representations from tree-structured
long short-term memory networks", ACL 2015, arXiv:1503.00075, the binary (N = 2) N-ary Tree-LSTM.

``composition: tanh``, for a leaf over step t and a parent over a (left) and b (right):

.. math:: h_t = \tanh(U x_t + b_0), \qquad h = \tanh(W_l h_a + W_r h_b + b_1)

with H F + 2 H^2 + 2 H parameters. ``composition: tree_lstm``, with the paper's convention that a leaf has no children
and a parent no input, so that a leaf has no forget gate:

.. math::
    i &= \sigma(W^i x + U_l^i h_a + U_r^i h_b + b^i) \\
    f_l &= \sigma(U_{ll}^f h_a + U_{lr}^f h_b + b^f), \qquad f_r = \sigma(U_{rl}^f h_a + U_{rr}^f h_b + b^f) \\
    o &= \sigma(W^o x + U_l^o h_a + U_r^o h_b + b^o) \\
    u &= \tanh(W^u x + U_l^u h_a + U_r^u h_b + b^u) \\
    c &= i \odot u + f_l \odot c_a + f_r \odot c_b, \qquad h = o \odot \tanh(c)

with 3 H F + 10 H^2 + 4 H parameters: the biases are the same ones at leaves and parents, and both forget gates share
one, as printed. The summary is h of the root.

The tree, for any T (the paper's trees come from a parser): neighbours are paired from left to right, level by level;
an odd last node moves up unchanged. Each sequence of a batch has the tree of its own steps. All parents of a level
are one matrix product, so T steps cost ceil(log2 T) operations in a row.

Not established: the start of the weights. Chosen here: ``torch`` draws all from ±1/sqrt(H), as torch's recurrent
layers do; ``tensorflow`` is Glorot uniform with biases 0. ``forget_bias`` is added to b^f.

Deviations: none from the equations.

Shapes: B batch, T time, F input features, H hidden units, N nodes of a level.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import Needs, TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full
from seqpyramid.models.cells import CellInit
from seqpyramid.models.heads import HeadInit

CompositionName = Literal["tanh", "tree_lstm"]
Nodes = tuple[Tensor, ...]
"""(h,) or (h, c) of the nodes of one level, each (B, N, H)."""


class TreeConfig(ModelConfig):
    """Recursive network over a balanced binary tree."""

    summary_line: ClassVar[str] = "Recursive balanced binary tree, tanh or Tree-LSTM (Tai et al. 2015) nodes"
    name: Literal["tree"] = "tree"
    hidden_size: int = Field(default=100, gt=0, description="H, units per node")
    composition: CompositionName = Field(default="tanh", description="how two children make a parent")
    forget_bias: float = Field(default=0.0, description="added to the Tree-LSTM's first forget bias")
    init: CellInit = Field(default="torch", description="start of the weights, see the module's text")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def emits(self) -> frozenset[Needs]:
        """A tree has one root a sequence."""
        return frozenset({"summary"})

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse an option that could have no effect."""
        found = super().problems(spec)
        if self.forget_bias and self.composition == "tanh":
            found["forget_bias"] = (
                "has no effect on tanh nodes; set composition to 'tree_lstm' or leave it out"
            )
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return Tree(spec, **self.model_dump(exclude={"name"}))


class Tree(SequenceModel):
    """Leaves, level upon level of parents, one root.

    Args:
        spec: the task's side of the contract.
        hidden_size: H.
        composition: how two children make a parent.
        forget_bias: added to the Tree-LSTM's first forget bias.
        init: start of the weights.
        head_init: start of the classifier's weights.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        composition: CompositionName = "tanh",
        forget_bias: float = 0.0,
        init: CellInit = "torch",
        head_init: HeadInit = "torch",
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.composition = COMPOSITIONS[composition](spec.input_size, hidden_size, init=init)
        if composition == "tree_lstm":
            with torch.no_grad():
                self.composition.bias[3 * hidden_size :] += forget_bias

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Climb from the leaves to the roots."""
        nodes = self.composition.leaves(x)
        for _ in range(depth(x.shape[1])):
            nodes = self._ascend(nodes, lengths)
            lengths = (lengths + 1) // 2
        return Encoding(nodes[0][:, 0])

    def _ascend(self, nodes: Nodes, counts: Tensor) -> Nodes:
        """Make the next level from one of which each sequence has ``counts`` nodes."""
        count = nodes[0].shape[1]
        pairs = count // 2
        children = tuple(v[:, : 2 * pairs].reshape(len(v), pairs, 2, -1) for v in nodes)
        parents = self.composition.parents(children)
        up = tuple(torch.cat([p, v[:, 2 * pairs :]], dim=1) for p, v in zip(parents, nodes, strict=True))
        if all_full(counts, count):
            return up
        # Where a sequence has a left child only, that one moves up; past its nodes nothing is ever read.
        has_right = 2 * torch.arange(count - pairs) + 1 < counts[:, None]
        chosen = has_right.to(nodes[0].device)[:, :, None]
        return tuple(torch.where(chosen, u, v[:, ::2]) for u, v in zip(up, nodes, strict=True))

    def encoder_flops(self, time: int) -> int:
        """T leaves and T - 1 parents."""
        return time * self.composition.leaf_flops + (time - 1) * self.composition.parent_flops


class Composition(nn.Module, ABC):
    """The weights of leaves and parents.

    Args:
        input_size: F.
        hidden_size: H.
        init: start of the weights.
    """

    leaf_gates: ClassVar[int]
    parent_gates: ClassVar[int]
    biases: ClassVar[int]

    def __init__(self, input_size: int, hidden_size: int, *, init: CellInit = "torch") -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.leaf_weight = nn.Parameter(torch.empty(self.leaf_gates * hidden_size, input_size))
        self.parent_weight = nn.Parameter(torch.empty(self.parent_gates * hidden_size, 2 * hidden_size))
        self.bias = nn.Parameter(torch.empty(self.biases * hidden_size))
        for parameter in self.parameters():
            if init == "torch":
                nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)
            elif parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.xavier_uniform_(parameter)

    @abstractmethod
    def leaves(self, x: Tensor) -> Nodes:
        """Map steps (B, T, F) to leaves."""

    @abstractmethod
    def parents(self, children: Nodes) -> Nodes:
        """Map children (B, N, 2, H), left and right, to parents (B, N, H)."""

    @property
    def leaf_flops(self) -> int:
        """FLOPs of one leaf."""
        return 2 * self.leaf_weight.numel()

    @property
    def parent_flops(self) -> int:
        """FLOPs of one parent."""
        return 2 * self.parent_weight.numel()


class TanhComposition(Composition):
    """h = tanh(W_l a + W_r b + b_1); the parents' weight is [W_l, W_r], the bias [b_0; b_1]."""

    leaf_gates = 1
    parent_gates = 1
    biases = 2

    def leaves(self, x: Tensor) -> Nodes:
        return (torch.tanh(nnf.linear(x, self.leaf_weight, self.bias[: self.hidden_size])),)

    def parents(self, children: Nodes) -> Nodes:
        bias = self.bias[self.hidden_size :]
        return (torch.tanh(nnf.linear(children[0].flatten(2), self.parent_weight, bias)),)


class TreeLSTMComposition(Composition):
    """Tree-LSTM; the leaves' weight and the bias begin with i, o, u; f or f_l, f_r come last."""

    leaf_gates = 3
    parent_gates = 5
    biases = 4

    def leaves(self, x: Tensor) -> Nodes:
        i, o, u = nnf.linear(x, self.leaf_weight, self.bias[: 3 * self.hidden_size]).chunk(3, dim=-1)
        c = torch.sigmoid(i) * torch.tanh(u)
        return torch.sigmoid(o) * torch.tanh(c), c

    def parents(self, children: Nodes) -> Nodes:
        h, c = children
        bias = torch.cat([self.bias, self.bias[3 * self.hidden_size :]])
        i, o, u, f_l, f_r = nnf.linear(h.flatten(2), self.parent_weight, bias).chunk(5, dim=-1)
        kept = torch.sigmoid(f_l) * c[:, :, 0] + torch.sigmoid(f_r) * c[:, :, 1]
        c = torch.sigmoid(i) * torch.tanh(u) + kept
        return torch.sigmoid(o) * torch.tanh(c), c


COMPOSITIONS: dict[CompositionName, type[Composition]] = {
    "tanh": TanhComposition,
    "tree_lstm": TreeLSTMComposition,
}


def depth(time: int) -> int:
    """Levels of parents above ``time`` leaves: ceil(log2 T), by integers.

    >>> [depth(n) for n in (1, 2, 3, 4, 5, 784)]
    [0, 1, 2, 2, 3, 10]
    """
    return (time - 1).bit_length()
