r"""Step loops for recurrences that have no fused form, and what the LSTM variants that run in one have in common.

:func:`unroll` carries a state over time, all sequences of a batch abreast; a sequence that has ended keeps its state,
so that the last state is each sequence's own, whatever its padding holds. :class:`UnrolledLSTM` is an LSTM (Gers et al.
2000; equations in :mod:`seqpyramid.models.cells`) whose step a variant rewrites; a variant's paper, equations and
deviations stand in its own file.

The start of the weights is one option for all variants. ``torch`` and ``tensorflow`` are those of
:class:`seqpyramid.models.cells.Cell`. ``orthogonal`` draws both matrices orthogonal (their columns orthonormal) with
biases 0. ``identity`` does so too, except that the recurrent rows of the candidate g are the identity; the other three
gates' rows are orthogonal together (what the released code of Cooijmans et al., arXiv:1603.09025, calls "id").
The initial state is zero or learned, one vector for h and one for c.

Shapes: B batch, T time, F input features, H hidden units, G features of a projected input.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, mask_steps
from seqpyramid.models.cells import CellInit, LSTMCell, State
from seqpyramid.models.heads import HeadInit

LSTMInit = Literal["torch", "tensorflow", "orthogonal", "identity"]
InitialState = Literal["zeros", "learned"]
Step = Callable[[int, Tensor, State], State]
"""(t, projected input (B, G) of step t, state) -> next state."""


def unroll(
    step: Step, projected: Tensor, state: State, lengths: Tensor, *, keep_steps: bool
) -> tuple[State, Tensor | None]:
    """Advance a state over projected inputs (B, T, G), each sequence up to its own length.

    Returns the state at each sequence's own end and, where ``keep_steps``, the first part of the state after every
    step, (B, T, H), zero past ``lengths``.

    >>> x = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    >>> (last,), steps = unroll(
    ...     lambda t, now, state: (state[0] + now,), x, (x.new_zeros(2, 1),), torch.tensor([3, 1]), keep_steps=True
    ... )
    >>> last.squeeze(-1).tolist(), steps.squeeze(-1).tolist()
    ([6.0, 4.0], [[1.0, 3.0, 6.0], [4.0, 0.0, 0.0]])
    """
    time, shortest, longest = projected.shape[1], int(lengths.min()), int(lengths.max())
    running = (torch.arange(longest)[:, None, None] < lengths[:, None]).to(projected.device)  # (T, B, 1)
    kept = []
    # unbind, not projected[:, t]: the backward of indexing fills a whole (B, T, G) with zeros at every step
    for t, now in enumerate(projected[:, :longest].unbind(1)):
        new = step(t, now, state)
        if t >= shortest:
            new = tuple(torch.where(running[t], n, o) for n, o in zip(new, state, strict=True))
        state = new
        if keep_steps:
            kept.append(state[0])
    if not keep_steps:
        return state, None
    kept.extend([torch.zeros_like(kept[0])] * (time - longest))
    return state, mask_steps(torch.stack(kept, dim=1), lengths)


class UnrolledLSTMConfig(ModelConfig):
    """Fields that the LSTM variants share."""

    hidden_size: int = Field(default=100, gt=0, description="H, units")
    forget_bias: float = Field(default=0.0, description="added to the first forget bias")
    init: LSTMInit = Field(default="torch", description="start of the LSTM's weights")
    initial_state: InitialState = Field(default="zeros", description="h and c before the first step")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def carries_state(self) -> bool:
        """The state is (h, c)."""
        return True


class UnrolledLSTM(SequenceModel):
    """One LSTM layer in a step loop; a variant says in :meth:`stepper` what one step does.

    Args:
        spec: the task's side of the contract.
        hidden_size: H.
        forget_bias: added to the first forget bias.
        init: start of the weights, see the module's docstring.
        initial_state: ``zeros``, or ``learned`` (2 H parameters that start at zero).
        head_init: start of the classifier's weights.
    """

    step_loop = True

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        forget_bias: float,
        init: LSTMInit,
        initial_state: InitialState,
        head_init: HeadInit,
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        drawn: CellInit = "tensorflow" if init == "tensorflow" else "torch"
        self.cell = LSTMCell(spec.input_size, hidden_size, init=drawn)
        if init in ("orthogonal", "identity"):
            start_orthogonal(self.cell, identity=init == "identity")
        with torch.no_grad():
            self.cell.bias_ih[hidden_size : 2 * hidden_size] += forget_bias
        self.first = nn.Parameter(torch.zeros(2, hidden_size)) if initial_state == "learned" else None

    @abstractmethod
    def stepper(self, lengths: Tensor) -> Step:
        """Return the step for one batch; what is drawn once a batch is drawn here."""

    def project(self, x: Tensor) -> Tensor:
        """Map the inputs of all steps, (B, T, F) -> (B, T, 4 H)."""
        return self.cell.project(x)

    def initial(self, batch: int) -> State:
        """Return (h, c) before the first step."""
        if self.first is None:
            return self.cell.initial(batch)
        h, c = self.first[:, None].expand(-1, batch, -1).unbind(0)
        return h, c

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the variant's step over the batch; the state is (h, c)."""
        state, steps = unroll(
            self.stepper(lengths),
            self.project(x),
            self.initial(len(x)) if state is None else state,
            lengths,
            keep_steps=self.spec.needs == "steps",
        )
        return Encoding(state[0], steps=steps, state=state if self.spec.carry_state else None)

    def encoder_flops(self, time: int) -> int:
        """The gates' products of every step."""
        return time * self.cell.flops()


def gates(total: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split and squash (B, 4 H) into i, f, g, o."""
    i, f, g, o = total.chunk(4, dim=1)
    return torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)


@torch.no_grad()
def start_orthogonal(cell: LSTMCell, *, identity: bool) -> None:
    """Start a cell's matrices orthogonal, the candidate's recurrent rows as the identity if asked, biases 0."""
    size = cell.hidden_size
    nn.init.orthogonal_(cell.weight_ih)
    nn.init.zeros_(cell.bias_ih)
    if not identity:
        nn.init.orthogonal_(cell.weight_hh)
        return
    i, f, o = nn.init.orthogonal_(torch.empty(3 * size, size)).chunk(3)
    cell.weight_hh.copy_(torch.cat([i, f, torch.eye(size), o]))
