r"""Skipped RNN: every state reads its neighbour and, through a second matrix, the state s steps back.

Source: Zhang et al., "Architectural Complexity Measures of Recurrent Neural Networks", NIPS 2016, arXiv:1602.08210;
here as the baseline of Chang et al., "Dilated Recurrent Neural Networks", NIPS 2017, arXiv:1710.02224, equation (2)
with a vanilla cell, the same s in all layers:

.. math:: h_t^{(l)} = \tanh(W x_t^{(l)} + U h_{t-1}^{(l)} + V h_{t-s}^{(l)} + b), \qquad x_t^{(l+1)} = h_t^{(l)}

where a state before the first step is zero.

Not established: whether "stanh", the name of the earlier paper's model, means another activation than tanh (tanh is
used); its skip on permuted MNIST; the count of 16k printed for one layer of 95 units (the equation has 19,200); any
start of the weights. ``init`` offers torch's uniform start and TensorFlow's Glorot uniform over the joint matrix
(F + 2 H) x H with bias 0; the default is the latter, as in the released Dilated RNN, and so is the head's.

Deviations: none known beyond these choices.

Speed: the step to the neighbour leaves nothing to fold, so this is a loop over time. The products with x are hoisted
out of it, those with h_{t-s} out of each block of s steps, whose older states are all known when it begins.

Shapes: B batch, T time steps, F input features, H hidden units, L layers.
"""

from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, last_steps, mask_steps
from seqpyramid.models.cells import CellInit, start_cell
from seqpyramid.models.heads import HeadInit


class SkipRNNConfig(ModelConfig):
    """Skipped RNN; the defaults are the nine-layer row of the Dilated RNN paper's Table 1."""

    summary_line: ClassVar[str] = (
        "Skipped RNN (Zhang et al., NIPS 2016): vanilla cells with one more skip of s steps"
    )
    name: Literal["skip_rnn"] = "skip_rnn"
    hidden_size: int = Field(default=20, gt=0, description="H, units per layer")
    layers: int = Field(default=9, gt=0, description="L, number of stacked layers")
    skip: int = Field(
        default=256, ge=2, description="s of every layer, in steps; 1 would be the neighbour twice"
    )
    init: CellInit = Field(default="tensorflow", description="start of the recurrent weights")
    head_init: HeadInit = Field(default="standard_normal", description="start of the classifier's weights")

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse a skip that no sequence is long enough for."""
        found = super().problems(spec)
        if spec.max_length is not None and self.skip >= spec.max_length:
            found["skip"] = (
                f"is {self.skip}, but the task's sequences have {spec.max_length} steps, so it would never act; "
                "choose one below that"
            )
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return SkipRNN(spec, **self.model_dump(exclude={"name"}))


class SkipRNN(SequenceModel):
    """L layers of equation (2); arguments as in :class:`SkipRNNConfig`."""

    step_loop = True

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        layers: int,
        skip: int,
        init: CellInit,
        head_init: HeadInit,
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.skip = skip
        self.sizes = [spec.input_size] + [hidden_size] * layers
        self.layers = nn.ModuleList(
            SkipLayer(below, above, skip=skip, init=init) for below, above in pairwise(self.sizes)
        )

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the layers one after the other."""
        x = x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        steps = x.transpose(0, 1)
        if self.spec.needs == "summary":
            return Encoding(last_steps(steps, lengths))
        return Encoding(last_steps(steps, lengths), steps=mask_steps(steps, lengths))

    def encoder_flops(self, time: int) -> int:
        """Three products a step; the one with V only where a state s steps back exists."""
        reached = max(0, time - self.skip)
        return sum(
            2 * above * (time * below + (time - 1) * above + reached * above)
            for below, above in pairwise(self.sizes)
        )


class SkipLayer(nn.Module):
    """One layer of equation (2).

    Args:
        input_size: F.
        hidden_size: H.
        skip: s.
        init: start of the weights, see the module's docstring.
    """

    def __init__(self, input_size: int, hidden_size: int, *, skip: int, init: CellInit) -> None:
        super().__init__()
        self.skip = skip
        self.W = nn.Parameter(torch.empty(hidden_size, input_size))
        self.U = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.V = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.b = nn.Parameter(torch.empty(hidden_size))
        # the joint matrix has F + 2 H columns, of which start_cell adds one H itself
        start_cell(list(self.parameters()), input_size + hidden_size, hidden_size, init=init)

    def forward(self, x: Tensor) -> Tensor:
        """Map (T, B, F) to all states (T, B, H)."""
        h: Tensor | None = None
        blocks: list[Tensor] = []
        for projected in torch.split(nnf.linear(x, self.W, self.b), self.skip):
            if blocks:
                projected = projected + nnf.linear(blocks[-1][: len(projected)], self.V)
            states = []
            for p in projected.unbind(0):
                h = torch.tanh(p if h is None else p + nnf.linear(h, self.U))
                states.append(h)
            blocks.append(torch.stack(states))
        return torch.cat(blocks)
