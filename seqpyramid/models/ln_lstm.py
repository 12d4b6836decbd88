r"""LSTM with layer normalization of both projections and of the cell.

Source: Ba, Kiros, Hinton, "Layer normalization", 2016, arXiv:1607.06450v1, supplement:

.. math::
    [i, f, g, o] &= LN(W_x x_t; \gamma_1) + LN(W_h h_{t-1}; \gamma_2) + b \\
    c_t &= \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh(g), \qquad
    h_t = \sigma(o) \odot \tanh(LN(c_t; \gamma_3, \beta_3)) \\
    LN(z; \gamma, \beta) &= \gamma \odot (z - \mu) / \sqrt{s^2 + \epsilon} + \beta

with mu and s^2 the mean and (biased) variance over the units of one vector: over all 4 H of a projection together, not
gate by gate (as the haste library computes it). Gains start at 1 (``initial_gamma``), beta_3 at 0.

Parameters: the LSTM's, and 8 H + 2 H.

Deviations: the paper writes an offset into each of the first two normalizations besides b; only their sum acts, so, as
in haste, b stands for all three. epsilon is not in the paper (0); ``epsilon`` keeps a vector of equal numbers finite.

Not established: the start of the weights (torch's here) and of the forget bias (no addition).

Note that with one input feature W_x x_t is one column times a number, and normalizing it leaves the number's sign and,
by epsilon, little of its size: on pixel-by-pixel images this model sees almost only which pixels are not zero. There
gains of 1 also make the recurrence chaotic, and the very first gradient overflows float32 over some hundred steps; a
start of 0.1, as Cooijmans et al. (2017) give batch normalization for the same reason, keeps it small.

Speed: no fused layer normalizes inside, so this is a step loop; the normalized input projections are hoisted out of it.

Shapes: B batch, T time, F input features, H hidden units.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import SequenceModel
from seqpyramid.models.cells import State
from seqpyramid.models.unrolled import Step, UnrolledLSTM, UnrolledLSTMConfig, gates


class LayerNormLSTMConfig(UnrolledLSTMConfig):
    """LSTM with layer normalization."""

    summary_line: ClassVar[str] = "Layer-norm LSTM (Ba et al. 2016): normalized projections and cell"
    name: Literal["ln_lstm"] = "ln_lstm"
    epsilon: float = Field(default=1e-5, gt=0, description="added to the variance")
    initial_gamma: float = Field(default=1.0, gt=0, description="start of the gains of the two projections")

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return LayerNormLSTM(spec, **self.model_dump(exclude={"name"}))


class LayerNormLSTM(UnrolledLSTM):
    """LSTM with layer normalization; see :class:`LayerNormLSTMConfig`.

    Args:
        spec: the task's side of the contract.
        epsilon: added to the variance.
        initial_gamma: start of gamma_1 and gamma_2.
        options: as in :class:`seqpyramid.models.unrolled.UnrolledLSTM`.
    """

    def __init__(self, spec: TaskSpec, *, epsilon: float, initial_gamma: float, **options: Any) -> None:
        super().__init__(spec, **options)
        size = self.cell.hidden_size
        self.epsilon = epsilon
        self.gamma_x = nn.Parameter(torch.full((4 * size,), initial_gamma))
        self.gamma_h = nn.Parameter(torch.full((4 * size,), initial_gamma))
        self.gamma_c = nn.Parameter(torch.ones(size))
        self.beta_c = nn.Parameter(torch.zeros(size))

    def project(self, x: Tensor) -> Tensor:
        """LN(W_x x) + b of all steps."""
        return self._normal(nnf.linear(x, self.cell.weight_ih), self.gamma_x) + self.cell.bias_ih

    def stepper(self, lengths: Tensor) -> Step:
        """Nothing is drawn."""
        return self._step

    def _step(self, t: int, projected: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = gates(projected + self._normal(self.cell.recur(h), self.gamma_h))
        c = f * c + i * g
        return o * torch.tanh(self._normal(c, self.gamma_c, self.beta_c)), c

    def _normal(self, z: Tensor, gamma: Tensor, beta: Tensor | None = None) -> Tensor:
        return nnf.layer_norm(z, gamma.shape, gamma, beta, self.epsilon)
