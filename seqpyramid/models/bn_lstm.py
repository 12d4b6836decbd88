r"""Batch-normalized LSTM: both projections and the cell, with statistics of each time step's own.

Source: Cooijmans, Ballas, Laurent, Gülçehre, Courville, "Recurrent batch normalization", ICLR 2017, arXiv:1603.09025,
equations (6)-(8):

.. math::
    [i, f, g, o] &= BN_t(W_h h_{t-1}; \gamma_h, 0) + BN_t(W_x x_t; \gamma_x, 0) + b \\
    c_t &= \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh(g), \qquad
    h_t = \sigma(o) \odot \tanh(BN_t(c_t; \gamma_c, \beta_c)) \\
    BN_t(z; \gamma, \beta) &= \beta + \gamma \odot (z - E_t z) / \sqrt{Var_t z + \epsilon}

In training E_t and Var_t (biased) are those of the sequences that still run at step t, and gradients pass through
them. Outside training they are population statistics, kept for each step up to T_max; the last ones serve all steps
after T_max. So outside training a sequence's result does not depend on its neighbours. With fewer than two sequences
running there is no variance: the step then uses the population's and leaves them as they are.

Parameters: the LSTM's, and 4 H + 4 H + 2 H; the 18 H T_max statistics are state, not parameters.

Start: gains 0.1, offsets 0 (paper); input matrix orthogonal, recurrent matrix "identity" (paper). What the released
code settles: "identity" means the candidate's rows only, the other gates' rows are orthogonal (``init: identity``;
``orthogonal`` is its other setting); the forget bias starts at 1; epsilon is 1e-5; the population statistics are a
running average, new = 0.99 old + 0.01 batch's.

Deviations, each by option where the other is at hand:

- The paper adds Gaussian noise to h_0, because pixels that are black in every image have no variance and blow up the
  gradient; its deviation is not established (the released scripts name none). Here ``initial_noise``, 0.1 by default,
  in training only, so that evaluation is a function of the sequence.
- h_0 and c_0 are zero unless ``initial_state`` says ``learned`` (paper and code learn them).
- The paper's text averages the statistics over the training set after training; here the released code's running
  average.
- Across several processes each keeps the statistics of its own share of the batch.

Speed: no fused layer normalizes inside, so this is a step loop; only the input projections are hoisted out of it.

Shapes: B batch, R sequences still running, T time, F input features, H hidden units, S steps with own statistics.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import SequenceModel
from seqpyramid.models.cells import State
from seqpyramid.models.unrolled import LSTMInit, Step, UnrolledLSTM, UnrolledLSTMConfig, gates

STEPS_IF_UNKNOWN = 784
"""T_max where neither recipe nor task gives one: pixel-by-pixel MNIST's, the paper's longest."""


class BatchNormLSTMConfig(UnrolledLSTMConfig):
    """Batch-normalized LSTM; the defaults are those of the module's docstring."""

    summary_line: ClassVar[str] = "BN-LSTM (Cooijmans et al., ICLR 2017): batch statistics of each step's own"
    name: Literal["bn_lstm"] = "bn_lstm"
    statistics_steps: int | None = Field(
        default=None,
        gt=0,
        description="T_max, steps with statistics of their own; null: the task's longest sequence, or 784",
    )
    statistics_rate: float = Field(
        default=0.01, gt=0, le=1, description="share of the newest batch in the population statistics"
    )
    initial_gamma: float = Field(default=0.1, gt=0, description="start of the gains")
    epsilon: float = Field(default=1e-5, gt=0, description="added to the variance")
    initial_noise: float = Field(
        default=0.1, ge=0, description="standard deviation of the noise on h_0 in training"
    )
    forget_bias: float = Field(default=1.0, description="added to the first forget bias")
    init: LSTMInit = Field(default="identity", description="start of the LSTM's weights")

    @property
    def carries_state(self) -> bool:
        """The statistics count from a sequence's first step, so a continued one would meet the wrong ones."""
        return False

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse statistics of steps that no sequence has."""
        found = super().problems(spec)
        if None not in (self.statistics_steps, spec.max_length) and self._steps(spec) > self._longest(spec):
            found["statistics_steps"] = (
                f"is {self.statistics_steps}, but the task's sequences have at most {spec.max_length} steps"
            )
        return found

    def _longest(self, spec: TaskSpec) -> int:
        return spec.max_length or STEPS_IF_UNKNOWN

    def _steps(self, spec: TaskSpec) -> int:
        return self.statistics_steps or self._longest(spec)

    def _build(self, spec: TaskSpec) -> SequenceModel:
        options = self.model_dump(exclude={"name", "statistics_steps"})
        return BatchNormLSTM(spec, statistics_steps=self._steps(spec), **options)


class BatchNormLSTM(UnrolledLSTM):
    """LSTM with batch normalization; see :class:`BatchNormLSTMConfig`.

    Args:
        spec: the task's side of the contract.
        statistics_steps: T_max.
        statistics_rate: share of the newest batch in the population statistics.
        initial_gamma: start of the gains.
        epsilon: added to the variance.
        initial_noise: standard deviation of the noise on h_0 in training.
        options: as in :class:`seqpyramid.models.unrolled.UnrolledLSTM`.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        statistics_steps: int,
        statistics_rate: float,
        initial_gamma: float,
        epsilon: float,
        initial_noise: float,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        self.initial_noise = initial_noise
        size = self.cell.hidden_size
        self.norm_h, self.norm_x, self.norm_c = (
            StepwiseBatchNorm(
                features,
                steps=statistics_steps,
                rate=statistics_rate,
                gamma=initial_gamma,
                epsilon=epsilon,
                offset=offset,
            )
            for features, offset in ((4 * size, False), (4 * size, False), (size, True))
        )

    def project(self, x: Tensor) -> Tensor:
        """W_x x of all steps; b is added after the normalization."""
        return nnf.linear(x, self.cell.weight_ih)

    def initial(self, batch: int) -> State:
        """Return (h, c) before the first step, with noise on h in training."""
        h, c = super().initial(batch)
        if self.training and self.initial_noise:
            h = h + self.initial_noise * torch.randn_like(h)
        return h, c

    def stepper(self, lengths: Tensor) -> Step:
        """One step that knows which sequences still run."""
        running = running_rows(lengths, self.cell.weight_hh.device)

        def step(t: int, projected: Tensor, state: State) -> State:
            h, c = state
            rows = running[t]
            recurrent = self.norm_h(self.cell.recur(h), t, rows)
            i, f, g, o = gates(recurrent + self.norm_x(projected, t, rows) + self.cell.bias_ih)
            c = f * c + i * g
            return o * torch.tanh(self.norm_c(c, t, rows)), c

        return step


class StepwiseBatchNorm(nn.Module):
    """BN_t of one site: gains shared by all steps, population statistics of each step's own.

    Args:
        features: of a vector.
        steps: S.
        rate: share of the newest batch in the population statistics.
        gamma: start of the gains.
        epsilon: added to the variance.
        offset: whether there is a beta; it starts at 0.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self, features: int, *, steps: int, rate: float, gamma: float, epsilon: float, offset: bool
    ) -> None:
        super().__init__()
        self.rate, self.epsilon = rate, epsilon
        self.gamma = nn.Parameter(torch.full((features,), gamma))
        self.beta = nn.Parameter(torch.zeros(features)) if offset else None
        self.register_buffer("mean", torch.zeros(steps, features))
        self.register_buffer("variance", torch.ones(steps, features))

    def forward(self, z: Tensor, t: int, rows: Tensor) -> Tensor:
        """Normalize (B, features) at step t, in training by the statistics of ``rows`` (R,).

        What comes out for the other rows, whose sequences have ended, has no meaning.
        """
        if not self.training or len(rows) < 2:
            return self._by_population(z, t)
        if len(rows) == len(z):
            return self._by_batch(z, t)
        return z.index_copy(0, rows, self._by_batch(z.index_select(0, rows), t))

    def _by_batch(self, z: Tensor, t: int) -> Tensor:
        if t < len(self.mean):
            with torch.no_grad():
                variance, mean = torch.var_mean(z.to(self.mean.dtype), dim=0, correction=0)
                self.mean[t].lerp_(mean, self.rate)
                self.variance[t].lerp_(variance, self.rate)
        return nnf.batch_norm(z, None, None, self.gamma, self.beta, training=True, eps=self.epsilon)

    def _by_population(self, z: Tensor, t: int) -> Tensor:
        t = min(t, len(self.mean) - 1)
        normal = self.gamma * (z - self.mean[t]) * torch.rsqrt(self.variance[t] + self.epsilon)
        return normal if self.beta is None else normal + self.beta


def running_rows(lengths: Tensor, device: torch.device) -> list[Tensor]:
    """Rows of a batch whose sequences reach beyond step t, for every t.

    >>> [rows.tolist() for rows in running_rows(torch.tensor([1, 3, 2]), torch.device("cpu"))]
    [[0, 1, 2], [1, 2], [1]]
    """
    ends = {0, *lengths.tolist()}
    found: list[Tensor] = []
    for t in range(int(lengths.max())):
        changed = t in ends
        found.append((lengths > t).nonzero().squeeze(1).to(device) if changed else found[-1])
    return found
