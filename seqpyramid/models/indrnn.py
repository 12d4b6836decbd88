r"""IndRNN: every unit remembers by itself, layers mix.

Source: Li, Li, Cook, Zhu, Gao, "Independently recurrent neural network (IndRNN): building a longer and deeper RNN",
CVPR 2018, arXiv:1803.04831:

.. math::
    h_t = \max(0, W x_t + u \odot h_{t-1} + b), \qquad |u_n| \le \gamma^{1/T}

in L layers, layer l reading the states of layer l - 1; T is the length of the sequences. After T steps a state has
then grown by a factor gamma at most.

Parameters: H (F + 2) in the first layer, H (H + 2) in the others; 84,874 with the classifier at F = 1, H = 128, L = 6,
K = 10 (later tables print 83K, which is the layers alone: 83,584), and 2 H more a layer with batch normalization.

What the released code and its notes settle:

- the bound is kept by clipping u after each step of the optimizer. Here it is kept at the start of each forward pass:
  in training u itself is clipped, outside of it a copy. The difference to a clamp inside the graph matters, whose zero
  gradient would hold a weight beyond the bound for ever.
- gamma is a choice: the notes name 2 and 10, the pixel MNIST script 5; ``growth`` is 2 by default. The notes also allow
  a bound of 1, the limit for long sequences, and none for short ones (``bound``). Where a task does not know its T, the
  bound is that limit.
- u starts uniform in (0, bound); in the last layer of a network that only reads the last step, near 1: uniform in
  gamma^(±1/T), or 1 where there is no such interval (``last_start``).
- W starts uniform in ±0.002 with batch normalization (``small_uniform``), else normal with variance 2 / (T F)
  (``he_over_length``), biases 0; ``torch`` is uniform in ±1/sqrt(H) like torch's layers. The paper does not say.
- pixel MNIST's published 99.0 and 96.0 % have batch normalization after the activation, over sequences and steps
  together, and dropout 0.1 after each layer, one mask a sequence (``batch_norm``, ``dropout``). With carried state the
  notes advise batch normalization before the activation.

Deviations: none. Padding takes no part in the batch's statistics.

Speed: a ReLU in the recurrence has no parallel form, so this is a step loop, without a matrix product in it: each
layer's inputs are projected at once.

Shapes: B batch, T time, F input features, H hidden units, L layers, K classes.
"""

import math
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full, last_steps
from seqpyramid.models.cells import State
from seqpyramid.models.heads import HeadInit
from seqpyramid.models.unrolled import Step, unroll

Bound = Literal["length", "one", "none"]
InputInit = Literal["torch", "small_uniform", "he_over_length"]
LastStart = Literal["near_one", "uniform"]
BatchNorm = Literal["none", "before", "after"]

SMALL = 0.002
"""Bound of the input weights' first values beside batch normalization, in the released code."""


class IndRNNConfig(ModelConfig):
    """IndRNN layers, each feeding the next."""

    summary_line: ClassVar[str] = "IndRNN (Li et al., CVPR 2018): units that recur each by itself, in layers"
    name: Literal["indrnn"] = "indrnn"
    hidden_size: int = Field(default=128, gt=0, description="H, units per layer")
    layers: int = Field(default=6, gt=0, description="L, number of layers")
    nonlinearity: Literal["relu", "tanh"] = Field(default="relu", description="activation of the state")
    bound: Bound = Field(
        default="length", description="largest |u|: growth^(1/T) of the task's T, 1, or none"
    )
    growth: float = Field(
        default=2.0, gt=1, description="gamma, by how much a state may grow over a sequence"
    )
    last_start: LastStart = Field(
        default="near_one", description="start of the last layer's u: near 1, or as in the other layers"
    )
    input_init: InputInit = Field(default="torch", description="start of the input weights and biases")
    batch_norm: BatchNorm = Field(
        default="none", description="batch normalization of what enters the recurrence, or of its states"
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout after each layer, one mask a sequence"
    )
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def carries_state(self) -> bool:
        """The state is h of each layer."""
        return True

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse options that could have no effect, or that need a length no one knows."""
        found = super().problems(spec)
        if "growth" in self.model_fields_set and (self.bound != "length" or spec.max_length is None):
            found["growth"] = (
                f"has no effect with bound {self.bound!r}; it belongs to bound 'length'"
                if self.bound != "length"
                else "needs the task's longest sequence, which this task does not know; leave it out"
            )
        if self.input_init == "he_over_length" and spec.max_length is None:
            found["input_init"] = (
                "'he_over_length' needs the task's longest sequence, which this task does not know; choose another"
            )
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        options = self.model_dump(exclude={"name", "bound", "growth"})
        largest = {"length": self.growth ** (1 / (spec.max_length or math.inf)), "one": 1.0, "none": None}
        return IndRNN(spec, largest=largest[self.bound], **options)


class IndRNN(SequenceModel):
    """L layers in a step loop each.

    Args:
        spec: the task's side of the contract.
        hidden_size: H.
        layers: L.
        nonlinearity: activation of the state.
        largest: bound of |u|; None: no bound.
        last_start: start of the last layer's u.
        input_init: start of the input weights.
        batch_norm: of the projected inputs, of the states, or none.
        dropout: after each layer.
        head_init: start of the classifier's weights.
    """

    step_loop = True

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        layers: int,
        nonlinearity: Literal["relu", "tanh"],
        largest: float | None,
        last_start: LastStart,
        input_init: InputInit,
        batch_norm: BatchNorm,
        dropout: float,
        head_init: HeadInit,
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.sizes = [spec.input_size] + [hidden_size] * layers
        self.batch_norm, self.dropout = batch_norm, dropout
        stack = [
            IndRNNLayer(below, above, largest=largest, nonlinearity=nonlinearity)
            for below, above in pairwise(self.sizes)
        ]
        for layer in stack:
            start_inputs(layer, input_init, spec.max_length)
        if last_start == "near_one":
            top = largest or 1.0
            nn.init.uniform_(stack[-1].u, 1 / top, top)
        self.layers = nn.ModuleList(stack)
        self.norms = nn.ModuleList(
            StepsBatchNorm(hidden_size) for _ in range(layers if batch_norm != "none" else 0)
        )

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the layers one after the other; the state is one (h,) a layer."""
        reads_steps = self.spec.needs == "steps"
        states, summary, steps = [], x, None
        for k, layer in enumerate(cast("list[IndRNNLayer]", self.layers)):
            top = k + 1 == len(self.layers)
            projected = layer.project(x)
            if self.batch_norm == "before":
                projected = self.norms[k](projected, lengths)
            # the statistics of "after" are over all steps, so even the top layer then needs every step
            every = not top or reads_steps or self.batch_norm == "after"
            after, steps = unroll(
                layer.stepper(),
                projected,
                layer.initial(len(x)) if state is None else state[k],
                lengths,
                keep_steps=every,
            )
            states.append(after)
            summary = after[0]
            if steps is not None and self.batch_norm == "after":
                steps = self.norms[k](steps, lengths)
                summary = last_steps(steps, lengths)
            if self.dropout and self.training:
                mask = nnf.dropout(torch.ones_like(summary), self.dropout)
                summary = summary * mask
                steps = None if steps is None else steps * mask[:, None]
            if steps is not None:
                x = steps
        carried = states if self.spec.carry_state else None
        return Encoding(summary, steps=steps if reads_steps else None, state=carried)

    def encoder_flops(self, time: int) -> int:
        """The projections of every layer and step; the recurrences are element-wise."""
        return sum(2 * time * below * above for below, above in pairwise(self.sizes))


class IndRNNLayer(nn.Module):
    """One layer.

    Args:
        input_size: F.
        hidden_size: H.
        largest: bound of |u|; None: no bound.
        nonlinearity: activation of the state.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        largest: float | None,
        nonlinearity: Literal["relu", "tanh"],
    ) -> None:
        super().__init__()
        self.largest = largest
        self.squash = torch.relu if nonlinearity == "relu" else torch.tanh
        self.weight = nn.Parameter(torch.empty(hidden_size, input_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))
        self.u = nn.Parameter(torch.empty(hidden_size).uniform_(0, largest or 1.0))

    def project(self, x: Tensor) -> Tensor:
        """W x + b of all steps."""
        return nnf.linear(x, self.weight, self.bias)

    def initial(self, batch: int) -> State:
        """Return the zero state."""
        return (self.u.new_zeros(batch, len(self.u)),)

    def stepper(self) -> Step:
        """Return one step, with u inside its bound."""
        u = self.bounded()

        def step(t: int, projected: Tensor, state: State) -> State:
            return (self.squash(projected + u * state[0]),)

        return step

    def bounded(self) -> Tensor:
        """Return u inside its bound; in training it is the parameter that is clipped."""
        if self.largest is None:
            return self.u
        if not self.training:
            return self.u.clamp(-self.largest, self.largest)
        with torch.no_grad():
            self.u.clamp_(-self.largest, self.largest)
        return self.u


class StepsBatchNorm(nn.BatchNorm1d):
    """Batch normalization of (B, T, H) over sequences and steps together, padding left out and kept at zero."""

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """Normalize the valid steps."""
        batch, time, size = steps.shape
        flat = steps.reshape(batch * time, size)
        if all_full(lengths, time):
            return super().forward(flat).reshape(steps.shape)
        valid = (torch.arange(time) < lengths[:, None]).flatten().nonzero().squeeze(1).to(steps.device)
        normal = super().forward(flat.index_select(0, valid))
        return torch.zeros_like(flat).index_copy(0, valid, normal).reshape(steps.shape)


@torch.no_grad()
def start_inputs(layer: IndRNNLayer, init: InputInit, time: int | None) -> None:
    """Give a layer's input weights and biases their first values; see the module's docstring."""
    hidden_size, input_size = layer.weight.shape
    if init == "torch":
        nn.init.uniform_(layer.weight, -(hidden_size**-0.5), hidden_size**-0.5)
        nn.init.uniform_(layer.bias, -(hidden_size**-0.5), hidden_size**-0.5)
        return
    nn.init.zeros_(layer.bias)
    if init == "small_uniform":
        nn.init.uniform_(layer.weight, -SMALL, SMALL)
    else:
        assert time is not None  # the config has refused it
        nn.init.normal_(layer.weight, std=math.sqrt(2 / (time * input_size)))
