r"""Clockwork RNN: modules of units that tick at their own periods, fed by themselves and by slower ones.

Source: Koutník, Greff, Gomez, Schmidhuber, "A Clockwork RNN", ICML 2014 (arXiv:1402.3511), equation (1) and the
update rule below it. The h units are cut into g modules of k units with periods :math:`T_1 < \dots < T_g`. At step t
module m does

.. math::
    h_t^m &= \tanh\Big(W^m x_t + \sum_{n \ge m} U^{mn} h_{t-1}^n + b^m\Big) & t \bmod T_m = 0 \\
    h_t^m &= h_{t-1}^m & \text{else}

so that the recurrent matrix is block upper triangular: a module reads itself and the slower ones. Only its
g (g + 1) / 2 blocks are stored: :math:`h F + k^2 g (g + 1) / 2 + h` parameters.

What is not established, and what is done here. The equations are from memory and from other people's prose about the
paper. Whether t counts from 0 or from 1: **from 0**, as in the implementations found, so that the first step of a
sequence updates every module and none has to wait at zero for T_m - 1 steps. The start of the weights: a normal of
deviation 0.1 (``init: paper``, reported from the paper by a reimplementation); biases are not spoken of there and
start at 0. The bias itself belongs to the parameter count above.

Computation: a step multiplies the rows from the fastest module that is due to the slowest, and the columns from the
former on. Where each period divides the next and the first is 1, as in the paper, those rows are exactly the modules
due; otherwise idle modules in between are computed and dropped. The blocks left of the diagonal inside those rows
are zeros, put there once a batch.

Carried state is h and the clock: how many steps each sequence has seen. The clock is an integer tensor on the CPU.
Sequences of unequal length leave with different phases; then the next batch computes what is due for any of them,
and each keeps what was not due for itself: exact, but it costs more than sequences in step.

Speed: one clear step loop; input projections are hoisted out of it.

Deviations: none known beyond the choices above.

Shapes: B batch, T time steps, F input features, H hidden units (the paper's h), g modules, k = H / g.
"""

from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full, last_steps, mask_steps
from seqpyramid.models.cells import start_cell
from seqpyramid.models.heads import HeadInit

ClockworkInit = Literal["paper", "torch"]

WEIGHT_DEVIATION = 0.1
"""Of the paper's first weights."""


class ClockworkRNNConfig(ModelConfig):
    """Clockwork RNN; the number of periods is the number of modules."""

    summary_line: ClassVar[str] = "Clockwork RNN (Koutník et al., ICML 2014): modules with their own periods"
    name: Literal["clockwork_rnn"] = "clockwork_rnn"
    hidden_size: int = Field(default=128, gt=0, description="H, units of all modules together")
    periods: tuple[int, ...] = Field(
        default=(1, 2, 4, 8, 16, 32, 64, 128),
        min_length=1,
        description="T_1 < ... < T_g, steps between two updates of each module",
    )
    init: ClockworkInit = Field(
        default="paper",
        description="start of the weights: normal of deviation 0.1, or torch's uniform in ±1/sqrt(H)",
    )
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def carries_state(self) -> bool:
        """The units' state and each sequence's clock."""
        return True

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse periods out of order, units that cannot be shared out, modules that never tick again."""
        found = super().problems(spec)
        if self.periods[0] < 1:
            found["periods"] = f"starts with {self.periods[0]}; a period is at least 1 step"
        elif any(after <= before for before, after in pairwise(self.periods)):
            found["periods"] = (
                f"must increase from the fastest module to the slowest, not {list(self.periods)}"
            )
        elif spec.max_length is not None and self.periods[-1] >= spec.max_length and not spec.carry_state:
            found["periods"] = (
                f"has a module of period {self.periods[-1]}, which the task's sequences (T = {spec.max_length}) "
                f"never update after the first step; choose periods below {spec.max_length}"
            )
        if self.hidden_size % len(self.periods):
            found["hidden_size"] = (
                f"is {self.hidden_size}, which {len(self.periods)} modules cannot share equally; "
                f"choose a multiple of {len(self.periods)}"
            )
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return ClockworkRNN(spec, **self.model_dump(exclude={"name"}))


class Tick(NamedTuple):
    """What one step computes."""

    first: int
    """The fastest module that is due, from 0."""
    stop: int
    """One past the slowest module that is due."""
    exact: bool
    """Whether every module in between is due for every sequence."""


class ClockworkRNN(SequenceModel):
    """One layer of g modules; arguments as in :class:`ClockworkRNNConfig`."""

    step_loop = True

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        periods: tuple[int, ...],
        init: ClockworkInit = "paper",
        head_init: HeadInit = "torch",
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.hidden_size, self.periods = hidden_size, periods
        self.module_size = k = hidden_size // len(periods)
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, spec.input_size))
        # U^m: one block row a module, its columns the units of module m and of the slower ones
        self.weight_hh = nn.ParameterList(
            nn.Parameter(torch.empty(k, hidden_size - m * k)) for m in range(len(periods))
        )
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        if init == "torch":
            start_cell(
                [self.weight_ih, *self.weight_hh, self.bias], spec.input_size, hidden_size, init="torch"
            )
        else:
            for weight in (self.weight_ih, *self.weight_hh):
                nn.init.normal_(weight, std=WEIGHT_DEVIATION)

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run all sequences abreast; the state is (h (B, H), clock (B,))."""
        batch, time = len(x), x.shape[1]
        h: Tensor
        clock: Tensor
        if state is None:
            h, clock = x.new_zeros(batch, self.hidden_size), torch.zeros(batch, dtype=torch.int64)
        else:
            h, clock = state
        in_step = bool((clock == clock[0]).all())
        due = self._due(clock[:1] if in_step else clock, time)
        ticks = _ticks(due)
        drops = any(tick is not None and not tick.exact for tick in ticks)
        due_here = due.to(x.device) if drops else due

        k, U = self.module_size, self._recurrent_matrix()
        rows = {tick[:2]: U[tick.first * k : tick.stop * k, tick.first * k :].T for tick in ticks if tick}
        states: list[Tensor] = []
        projected = nnf.linear(x, self.weight_ih, self.bias)
        for t, (drive, tick) in enumerate(zip(projected.unbind(1), ticks, strict=True)):
            if tick is not None:
                start, stop = tick.first * k, tick.stop * k
                new = torch.tanh(torch.addmm(drive[:, start:stop], h[:, start:], rows[tick[:2]]))
                if not tick.exact:
                    mine = due_here[:, t, tick.first : tick.stop].repeat_interleave(k, dim=1)
                    new = torch.where(mine, new, h[:, start:stop])
                h = torch.cat([h[:, :start], new, h[:, stop:]], dim=1)
            states.append(h)

        steps = None
        if self.spec.needs == "steps" or not all_full(lengths, time):
            steps = torch.stack(states, dim=1)
            h = last_steps(steps, lengths)
        return Encoding(
            h,
            steps=mask_steps(steps, lengths) if steps is not None and self.spec.needs == "steps" else None,
            state=(h, clock + lengths) if self.spec.carry_state else None,
        )

    def _due(self, clock: Tensor, time: int) -> Tensor:
        """Whether each module of each sequence updates at each step: (B, T, g), on the CPU."""
        t = clock[:, None] + torch.arange(time)
        return t[:, :, None] % torch.tensor(self.periods) == 0

    def _recurrent_matrix(self) -> Tensor:
        """U as one matrix (H, H), zeros left of its diagonal blocks."""
        return torch.cat(
            [nnf.pad(row, (self.hidden_size - row.shape[1], 0)) for row in self.weight_hh], dim=0
        )

    def encoder_flops(self, time: int) -> int:
        """The projection of every step, and the rows that each step computes."""
        total = 2 * time * self.spec.input_size * self.hidden_size
        for tick in _ticks(self._due(torch.zeros(1, dtype=torch.int64), time)):
            if tick is not None:
                columns = self.hidden_size - tick.first * self.module_size
                total += 2 * (tick.stop - tick.first) * self.module_size * columns
        return total


def _ticks(due: Tensor) -> list[Tick | None]:
    """Say for each step of (B, T, g) which modules it computes; None where no module is due.

    >>> due = torch.arange(4)[None, :, None] % torch.tensor([2, 3, 6]) == 0
    >>> [tuple(tick) if tick else None for tick in _ticks(due)]
    [(0, 3, True), None, (0, 1, True), (1, 2, True)]
    """
    ticks: list[Tick | None] = []
    for for_any, for_all in zip(due.any(0).tolist(), due.all(0).tolist(), strict=True):
        if not any(for_any):
            ticks.append(None)
            continue
        first = for_any.index(True)
        stop = len(for_any) - for_any[::-1].index(True)
        ticks.append(Tick(first, stop, all(for_all[first:stop])))
    return ticks
