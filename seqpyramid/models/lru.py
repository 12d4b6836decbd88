r"""LRU: linear recurrent units with a complex diagonal and a parametrisation that keeps them stable.

Source: Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu, De, "Resurrecting Recurrent Neural Networks for Long
Sequences", ICML 2023, arXiv:2303.06349. With N complex states x and an input u of H units:

.. math::
    x_t &= \Lambda \odot x_{t-1} + e^{\gamma} \odot (B u_t), \qquad y_t = \mathrm{Re}(C x_t) + D \odot u_t \\
    \Lambda &= \exp(-e^{\nu} + i e^{\theta}), \qquad |\Lambda| < 1

by :func:`seqpyramid.models.scan.linear_scan`, in the block of :mod:`seqpyramid.models.blocks`; a linear map makes the H
units from the input.

Starts: Lambda uniform on the ring r_min <= \|Lambda\| <= r_max, with phases uniform in [0, max_phase]:
:math:`\nu = \log(-\tfrac12 \log(u_1 (r_{max}^2 - r_{min}^2) + r_{min}^2))`, :math:`\theta = \log(u_2\,max\_phase)`;
:math:`\gamma = \log \sqrt{1 - |\Lambda|^2}`, so that the states of white noise start with the variance of B u; real and
imaginary parts of B ~ N(0, 1 / 2H), of C ~ N(0, 1 / N), D ~ N(0, 1).

The authors released no code. Where the text is open this follows a public implementation
(NicolasZucchet/minimal-LRU): the starts of B, C and D, the block, and the mean over all steps as summary. There, nu,
theta and gamma are trained at a rate of their own; here they carry ``no_weight_decay``, the rate is the recipe's.

Deviations: layer norm only, see :mod:`seqpyramid.models.blocks`; the random numbers u stay 1e-6 away from 0 and 1,
where the logarithms end.

Precision: states are computed in float32 at least.

Shapes: B batch, T time, F input features, H units, N states.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import SequenceModel
from seqpyramid.models.blocks import GatedStack, GatedStackConfig, Mixer
from seqpyramid.models.scan import at_least_float32, linear_scan

EDGE = 1e-6
"""How near the starts' uniform numbers come to 0 and 1."""


class LRUConfig(GatedStackConfig):
    """Linear recurrent units."""

    summary_line: ClassVar[str] = "LRU (Orvieto et al., ICML 2023): complex diagonal linear recurrence"
    name: Literal["lru"] = "lru"
    hidden_size: int = Field(default=96, gt=0, description="H, units per layer")
    state_size: int = Field(default=96, gt=0, description="N, complex states per layer")
    layers: int = Field(default=4, gt=0, description="number of blocks")
    r_min: float = Field(default=0.0, ge=0, lt=1, description="least |Lambda| at the start")
    r_max: float = Field(default=1.0, gt=0, le=1, description="largest |Lambda| at the start")
    max_phase: float = Field(
        default=2 * math.pi,
        gt=0,
        le=2 * math.pi,
        description="largest phase of Lambda at the start (radians)",
    )

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse an empty ring."""
        found = super().problems(spec)
        if self.r_min >= self.r_max:
            found["r_min"] = f"is {self.r_min}, not below r_max ({self.r_max}); choose a smaller one"
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return LRU(spec, **self.model_dump(exclude={"name"}))


class LRU(GatedStack):
    """Blocks around :class:`LinearRecurrence`; arguments as in :class:`LRUConfig`."""

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        state_size: int,
        layers: int,
        r_min: float,
        r_max: float,
        max_phase: float,
        **options: Any,
    ) -> None:
        mixers = [
            LinearRecurrence(hidden_size, state_size, r_min=r_min, r_max=r_max, max_phase=max_phase)
            for _ in range(layers)
        ]
        super().__init__(spec, mixers, hidden_size=hidden_size, **options)


class LinearRecurrence(Mixer):
    """The equations of the module's docstring, for H units and N states.

    Args:
        hidden_size: H.
        state_size: N.
        r_min: inner radius of the ring where Lambda starts.
        r_max: outer radius.
        max_phase: largest phase (radians).
    """

    def __init__(
        self, hidden_size: int, state_size: int, *, r_min: float, r_max: float, max_phase: float
    ) -> None:
        super().__init__()
        H, N = hidden_size, state_size
        u1, u2 = torch.rand(2, N).clamp(EDGE, 1 - EDGE)
        squared_radius = u1 * (r_max**2 - r_min**2) + r_min**2
        self.nu = nn.Parameter(torch.log(-0.5 * torch.log(squared_radius)))
        self.theta = nn.Parameter(torch.log(max_phase * u2))
        self.gamma = nn.Parameter(0.5 * torch.log1p(-squared_radius))
        for parameter in (self.nu, self.theta, self.gamma):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]
        # Real and imaginary parts are one axis, so that complex products are real ones.
        self.B = nn.Parameter(torch.randn(2, N, H) / math.sqrt(2 * H))
        self.C = nn.Parameter(torch.randn(2, H, N) / math.sqrt(N))
        self.D = nn.Parameter(torch.randn(H))

    @property
    def eigenvalues(self) -> Tensor:
        """Lambda (N,), complex."""
        nu, theta = at_least_float32(self.nu), at_least_float32(self.theta)
        return torch.exp(torch.complex(-torch.exp(nu), torch.exp(theta)))

    def forward(self, u: Tensor) -> Tensor:
        """Map (B, T, H) to (B, T, H)."""
        scale = torch.exp(at_least_float32(self.gamma))
        real, imag = at_least_float32(nnf.linear(u, self.B.flatten(0, 1))).chunk(2, dim=-1)
        x = linear_scan(self.eigenvalues.expand(1, 1, -1), torch.complex(scale * real, scale * imag))
        parts = torch.cat([x.real, x.imag], dim=-1).to(u.dtype)
        return nnf.linear(parts, torch.cat([self.C[0], -self.C[1]], dim=1)) + self.D * u

    def flops(self, time: int) -> int:
        """FLOPs of the products with B and C."""
        return 2 * time * (self.B.numel() + self.C.numel())
