r"""The density of a line of handwriting: a head's numbers as moves of the pen, its lifts, and how the line ends.

How a line ends, ``ending``:

* ``none``: nobody asks. P - 1 steps; a new line goes on until it is cut.
* ``end_symbol``: pen is one of three outcomes, and the third, "end", is appended to the line. P steps, one output more.
* ``halt``: at each step first a coin of its own is tossed, whether the line is over. P steps, one output more.
* ``length``: before the first move the model says how many are to come, n = P - 1, and from then on reads how many
  remain (divided by the training split's mean; 0 at the first step). Of n it answers a negative binomial, mean
  :math:`\bar{n} e^{o_1}` with the training split's mean :math:`\bar{n}`, and dispersion :math:`e^{o_2}` kept between
  e**-5 and e**10: a Poisson distribution, with one output less, could not be as wide as the lengths of real lines.

Source of the endings: Goodfellow, Bengio, Courville, "Deep Learning", Sec. 10.2.3; of the moves,
:mod:`seqpyramid.tasks.mixture_density`. Log-likelihoods are in nats, with the terms of the ending.

Shapes: B batch, T steps, M components, K = 6M + 1 outputs (one more with ``end_symbol`` and ``halt``, two with
``length``).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from seqpyramid.contracts import Batch
from seqpyramid.data.pen_lines import END
from seqpyramid.tasks import mixture_density
from seqpyramid.tasks.base import Metrics

Ending = Literal["none", "end_symbol", "halt", "length"]
LossPer = Literal["step", "sequence"]

_EXTRA_OUTPUTS: dict[Ending, int] = {"none": 0, "end_symbol": 1, "halt": 1, "length": 2}
_LOG_DISPERSION = (-5.0, 10.0)


class Answer(NamedTuple):
    """The head's numbers, named."""

    pen: Tensor
    mixture: mixture_density.Mixture
    rest: Tensor


class LineDensity:
    """See the module's docstring.

    Args:
        components: M, Gaussians of the mixture.
        ending: how a line ends.
        smallest_deviation: floor of the mixture's deviations.
    """

    def __init__(self, components: int, ending: Ending, *, smallest_deviation: float) -> None:
        self._components, self.ending = components, ending
        self._smallest_deviation = smallest_deviation

    @property
    def outputs(self) -> int:
        """K."""
        return mixture_density.width(self._components) + _EXTRA_OUTPUTS[self.ending]

    @property
    def ends_in_a_step(self) -> bool:
        """Whether the last point is read too, to answer that nothing follows it."""
        return self.ending in ("end_symbol", "halt")

    def read_out(self, outputs: Tensor) -> Answer:
        """Name the head's numbers (..., K)."""
        pen, mixture, rest = mixture_density.split(
            outputs, self._components, smallest_deviation=self._smallest_deviation
        )
        return Answer(pen, mixture, rest)

    def log_likelihood(self, outputs: Tensor, batch: Batch, *, mean_moves: float) -> Tensor:
        """Return the log-likelihood (B,) of each line, in nats; half precision is summed in single."""
        if outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()
        answer = self.read_out(outputs)
        pen = batch.y[..., 2]
        over = pen == END
        move = mixture_density.log_density(answer.mixture, batch.y[..., :2])
        if self.ending == "end_symbol":
            logs = torch.stack([torch.zeros_like(answer.pen), answer.pen, answer.rest[..., 0]], dim=-1)
            outcome = logs.log_softmax(-1).gather(-1, pen.long().unsqueeze(-1)).squeeze(-1)
            steps = torch.where(over, outcome, outcome + move)
        else:
            steps = move + nnf.logsigmoid(torch.where(pen > 0, answer.pen, -answer.pen))
            if self.ending == "halt":
                halt = answer.rest[..., 0]
                steps = torch.where(over, nnf.logsigmoid(halt), nnf.logsigmoid(-halt) + steps)
        valid = torch.arange(steps.shape[1]) < batch.lengths[:, None]
        total = torch.where(valid.to(steps.device), steps, 0.0).sum(1)
        if self.ending == "length":
            mean, dispersion = self.length(answer.rest[:, 0], mean_moves)
            counted = log_negative_binomial(batch.lengths.to(steps.device).double(), mean, dispersion)
            total = total + counted.to(total.dtype)
        return total

    def length(self, rest: Tensor, mean_moves: float) -> tuple[Tensor, Tensor]:
        """(B, 2) -> logarithms of mean and dispersion of the number of moves, in double precision."""
        rest = rest.double()
        return rest[:, 0] + math.log(mean_moves), rest[:, 1].clamp(*_LOG_DISPERSION)

    def constant(self, moves: Tensor, ends: int) -> Tensor:
        """The head's numbers for the moments of ``moves`` (N, 3) and so many ends of lines."""
        points, ups = moves[:, :2], float(moves[:, 2].sum())
        deviation = points.std(dim=0, correction=0).clamp(min=self._smallest_deviation)
        centred = (points - points.mean(dim=0)) / deviation
        r = torch.atanh(centred.prod(dim=1).mean().clamp(-1, 1)).clamp(
            -mixture_density.LARGEST_R, mixture_density.LARGEST_R
        )
        of_all = [0.0, *points.mean(dim=0).tolist(), *deviation.log().tolist(), float(r)]
        head = [_log_odds(ups, len(moves) - ups), *np.repeat(of_all, self._components)]
        if self.ending == "end_symbol":
            head.append(_log_odds(ends, len(moves) - ups))
        elif self.ending == "halt":
            head.append(_log_odds(ends, len(moves)))
        return torch.tensor(head, dtype=torch.float64)

    def constant_length(self, steps: Tensor, mean_moves: float) -> Tensor:
        from scipy.optimize import minimize_scalar  # takes a moment, and recipes load without it

        log_mean = steps.mean().log()

        def cost(log_dispersion: float) -> float:
            dispersion = torch.tensor(log_dispersion, dtype=torch.float64)
            return -float(log_negative_binomial(steps, log_mean, dispersion).sum())

        best = minimize_scalar(cost, bounds=_LOG_DISPERSION, method="bounded", options={"xatol": 1e-6})
        return torch.tensor([float(log_mean) - math.log(mean_moves), float(best.x)])


class LikelihoodMetrics(Metrics):
    """Mean log-likelihood of a sequence, and its negative mean over steps or sequences.

    Args:
        log_likelihood: (outputs, batch) -> (B,), in nats.
        loss_per: what the loss is a mean over.
    """

    def __init__(self, log_likelihood: Callable[[Tensor, Batch], Tensor], loss_per: LossPer) -> None:
        self._log_likelihood, self._loss_per = log_likelihood, loss_per
        self._total: Tensor | None = None
        self._steps = self._sequences = 0

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Add one batch; the sum is float64."""
        found = self._log_likelihood(outputs.detach(), batch)
        if self._total is None:
            self._total = torch.zeros((), dtype=torch.float64, device=found.device)
        self._total += found.sum(dtype=torch.float64)
        self._steps += int(batch.lengths.sum())
        self._sequences += len(batch.lengths)

    def compute(self) -> dict[str, float]:
        """Return ``loss`` (nats a step or a sequence) and ``log_likelihood`` (nats a sequence).

        Raises:
            ValueError: no batch was added.
        """
        if self._total is None:
            raise ValueError("no batch was added")
        total = self._total.item()
        targets = self._steps if self._loss_per == "step" else self._sequences
        return {"loss": -total / targets, "log_likelihood": total / self._sequences}


def log_negative_binomial(count: Tensor, log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """Logarithm of the probability of ``count`` (0, 1, ...); the variance is mean + mean² / dispersion.

    >>> one = torch.zeros((), dtype=torch.float64)
    >>> log_negative_binomial(torch.tensor([0.0, 1.0], dtype=torch.float64), one, one).exp().tolist()
    [0.5, 0.25]
    """
    dispersion, odds = log_dispersion.exp(), log_mean - log_dispersion
    ways = torch.lgamma(count + dispersion) - torch.lgamma(dispersion) - torch.lgamma(count + 1)
    return ways - dispersion * nnf.softplus(odds) - count * nnf.softplus(-odds)


def _log_odds(yes: float, no: float) -> float:
    """Finite where something never happens: a chance of one in a billion of all that was seen."""
    return math.log(max(yes, 1e-9)) - math.log(max(no, 1e-9))
