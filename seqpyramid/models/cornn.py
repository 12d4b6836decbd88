r"""coRNN: a network of coupled, damped and driven oscillators.

Source: Rusch, Mishra, "Coupled Oscillatory Recurrent Neural Network (coRNN): An accurate and (gradient) stable
architecture for learning long time dependencies", ICLR 2021, arXiv:2010.00951. The oscillators
:math:`y'' = \tanh(W y + \mathcal{W} y' + V u + b) - \gamma y - \epsilon y'`, with z = y' and a time step dt:

.. math::
    z_t &= z_{t-1} + \Delta t\,(\tanh(W y_{t-1} + \mathcal{W} z_{t-1} + V u_t + b)
        - \gamma y_{t-1} - \epsilon \bar{z}) \\
    y_t &= y_{t-1} + \Delta t\, z_t

from y = z = 0; y is what the head reads.

Explicit or implicit, by the named option ``damping``: the released code (tk-rusch/coRNN) has
:math:`\bar{z} = z_{t-1}` (``explicit``, the default, as its results are the printed ones); with
:math:`\bar{z} = z_t` (``implicit``) the damping is solved for z_t, which divides by 1 + dt epsilon and is stable at any
epsilon. That the paper's text prints the second is only known from others' documentation.

What the released code settles: one weight matrix for [u, z, y] with one bias, started uniformly within
1 / sqrt(F + 2 H); on permuted MNIST dt = 0.076, gamma = 0.4, epsilon = 8 (the defaults here), on MNIST in order dt =
0.042, gamma = 2.7, epsilon = 4.7; 256 units on both.

Deviations: none.

Speed: tanh of the whole state forbids a scan, so this is a clear loop over steps (``step_loop``) with the products of
the input outside it.

Shapes: B batch, T time, F input features, H oscillators.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import ModelConfig, SequenceModel
from seqpyramid.models.heads import HeadInit
from seqpyramid.models.two_state import TwoStateModel

Damping = Literal["explicit", "implicit"]


class CoRNNConfig(ModelConfig):
    """coRNN; the defaults are the released code's on permuted MNIST."""

    summary_line: ClassVar[str] = "coRNN (Rusch & Mishra, ICLR 2021): coupled damped oscillators"
    name: Literal["cornn"] = "cornn"
    hidden_size: int = Field(default=256, gt=0, description="H, oscillators")
    dt: float = Field(default=0.076, gt=0, le=1, description="Delta t, time step of the oscillators")
    gamma: float = Field(default=0.4, gt=0, description="gamma, stiffness: pulls y back to 0")
    epsilon: float = Field(default=8.0, gt=0, description="epsilon, damping: slows z down")
    damping: Damping = Field(default="explicit", description="whether damping looks at the old or the new z")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def carries_state(self) -> bool:
        """The state is (y, z)."""
        return True

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse a damping that makes z grow."""
        found = super().problems(spec)
        if self.damping == "explicit" and self.dt * self.epsilon > 2:
            found["epsilon"] = (
                f"times dt is {self.dt * self.epsilon:g}; above 2 the explicit damping makes z grow without bound: "
                "lower it, or set damping to 'implicit'"
            )
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return CoRNN(spec, **self.model_dump(exclude={"name"}))


class CoRNN(TwoStateModel):
    """One layer of oscillators; arguments as in :class:`CoRNNConfig`.

    ``weight_hh`` (H, 2 H) holds the columns of z, then those of y.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        dt: float,
        gamma: float,
        epsilon: float,
        damping: Damping,
        head_init: HeadInit,
    ) -> None:
        super().__init__(spec, hidden_size=hidden_size, head_init=head_init)
        H, F = hidden_size, spec.input_size
        self.dt, self.gamma, self.epsilon, self.damping = dt, gamma, epsilon, damping
        self.weight_ih = nn.Parameter(torch.empty(H, F))
        self.weight_hh = nn.Parameter(torch.empty(H, 2 * H))
        self.bias = nn.Parameter(torch.empty(H))
        for parameter in (self.weight_ih, self.weight_hh, self.bias):
            nn.init.uniform_(parameter, -((F + 2 * H) ** -0.5), (F + 2 * H) ** -0.5)

    def project(self, x: Tensor) -> Tensor:
        """V u + b of every step."""
        return nnf.linear(x, self.weight_ih, self.bias)

    def step(self, projected: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Advance (y, z) by one step from V u + b."""
        force = torch.tanh(projected + nnf.linear(torch.cat([z, y], dim=1), self.weight_hh)) - self.gamma * y
        if self.damping == "explicit":
            z = z + self.dt * (force - self.epsilon * z)
        else:
            z = (z + self.dt * force) / (1 + self.dt * self.epsilon)
        return y + self.dt * z, z

    def encoder_flops(self, time: int) -> int:
        """V, W and the coupling of z at every step."""
        return 2 * time * (self.weight_ih.numel() + self.weight_hh.numel())
