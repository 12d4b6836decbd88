r"""S4D: a diagonal state-space model for every unit, run as one long convolution.

Source: Gu, Gupta, Goel, Ré, "On the Parameterization and Initialization of Diagonal State Space Models", NeurIPS 2022,
arXiv:2206.11893 (the form S4D-Lin). Each of the H units has N/2 complex states, the other N/2 being their conjugates,
that read the unit's own input u:

.. math::
    s_t &= e^{\Delta A} s_{t-1} + \frac{e^{\Delta A} - 1}{A} u_t, \qquad
    y_t = 2\,\mathrm{Re} \sum_n C_n s_{t,n} + D u_t \\
    A &= -e^{a} + i b, \qquad \Delta = e^{\delta} \qquad \text{(zero-order hold, with the input weights B = 1)}

which from s = 0 is the convolution

.. math::
    y = K * u + D u, \qquad K_l = 2\,\mathrm{Re} \sum_n C_n \frac{e^{\Delta A_n} - 1}{A_n} e^{l \Delta A_n},
    \qquad l = 0, \dots, T - 1

computed by an FFT of at least 2 T - 1 points, so that nothing wraps around. K is a product of powers: with
:math:`l = i R + j` it is, for every unit, a matrix product over n of :math:`C'_n e^{i R \Delta A_n}` and
:math:`e^{j \Delta A_n}`, which needs H N sqrt(T) numbers instead of H N T.

Around it stands the block of :mod:`seqpyramid.models.blocks`; a linear map makes the H units from the input.

Starts (released code): Re A = -1/2, Im A_n = pi n, Delta log-uniform in [``dt_min``, ``dt_max``], C complex normal of
variance 1, D ~ N(0, 1). The released code never decays a, b and delta, and trains them at a rate of at most 1e-3; they
carry ``no_weight_decay``, the separate rate is left out.

What the released classifier settles (state-spaces/s4, ``example.py``): the mean over all steps as summary, layer norm
after the block (``norm: post``), dropout over whole units. ``final_norm`` adds a layer norm after the last block, which
pre-norm stacks usually have and that code has not.

Deviations: the separate learning rate; :math:`e^z - 1` is computed without cancellation.

Precision: kernel and FFT are computed in float32 at least. As an FFT rounds all steps together, a step's last bits can
depend on later inputs.

FLOPs: the linear maps and, once a batch, the kernel's matrix product; FFTs are not counted.

Shapes: B batch, T time, F input features, H units, N states of a unit.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import SequenceModel
from seqpyramid.models.blocks import GatedStack, GatedStackConfig, Mixer
from seqpyramid.models.scan import at_least_float32


class S4DConfig(GatedStackConfig):
    """S4D; the defaults are the released classifier's."""

    summary_line: ClassVar[str] = "S4D (Gu et al., NeurIPS 2022): diagonal state space as a long convolution"
    name: Literal["s4d"] = "s4d"
    hidden_size: int = Field(default=128, gt=0, description="H, units per layer")
    layers: int = Field(default=4, gt=0, description="number of blocks")
    state_size: int = Field(
        default=64, gt=0, multiple_of=2, description="N, states of a unit, conjugates included"
    )
    dt_min: float = Field(default=1e-3, gt=0, description="shortest first time step Delta")
    dt_max: float = Field(default=0.1, gt=0, description="longest first time step Delta")

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse an empty range of time steps."""
        found = super().problems(spec)
        if self.dt_min > self.dt_max:
            found["dt_min"] = f"is {self.dt_min}, above dt_max ({self.dt_max}); exchange them"
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return S4D(spec, **self.model_dump(exclude={"name"}))


class S4D(GatedStack):
    """Blocks around :class:`DiagonalSSM`; arguments as in :class:`S4DConfig`."""

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        layers: int,
        state_size: int,
        dt_min: float,
        dt_max: float,
        **options: Any,
    ) -> None:
        mixers = [DiagonalSSM(hidden_size, state_size, dt_min=dt_min, dt_max=dt_max) for _ in range(layers)]
        super().__init__(spec, mixers, hidden_size=hidden_size, **options)


class DiagonalSSM(Mixer):
    """H state-space models, one a unit: y = K * u + D u.

    Args:
        hidden_size: H.
        state_size: N.
        dt_min: lower end of the first Delta.
        dt_max: upper end of the first Delta.
    """

    def __init__(self, hidden_size: int, state_size: int, *, dt_min: float, dt_max: float) -> None:
        super().__init__()
        H, pairs = hidden_size, state_size // 2
        low, high = math.log(dt_min), math.log(dt_max)
        self.log_dt = nn.Parameter(low + (high - low) * torch.rand(H))
        self.log_A_real = nn.Parameter(torch.full((H, pairs), math.log(0.5)))
        self.A_imag = nn.Parameter(
            math.pi * torch.arange(pairs).expand(H, pairs).to(torch.get_default_dtype())
        )
        for parameter in (self.log_dt, self.log_A_real, self.A_imag):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]
        self.C = nn.Parameter(torch.randn(H, pairs, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(H))

    def forward(self, u: Tensor) -> Tensor:
        """Map (B, T, H) to (B, T, H)."""
        time = u.shape[1]
        points = smooth_length(2 * time - 1)
        wide = at_least_float32(u)
        kernel = torch.fft.rfft(self.kernel(time).T, n=points, dim=0)
        convolved = torch.fft.irfft(torch.fft.rfft(wide, n=points, dim=1) * kernel, n=points, dim=1)
        y: Tensor = convolved[:, :time] + at_least_float32(self.D) * wide
        return y.to(u.dtype)

    def kernel(self, time: int) -> Tensor:
        """K (H, T)."""
        dt = torch.exp(at_least_float32(self.log_dt))[:, None]
        A = torch.complex(-torch.exp(at_least_float32(self.log_A_real)), at_least_float32(self.A_imag))
        z = dt * A
        C = torch.view_as_complex(at_least_float32(self.C)) * expm1(z) / A
        rows, columns = split(time)
        j = torch.arange(columns, device=z.device)
        i = columns * torch.arange(rows, device=z.device)
        across = torch.exp(z[:, :, None] * j)  # (H, N/2, columns)
        down = torch.exp(z[:, :, None] * i) * C[:, :, None]  # (H, N/2, rows)
        K = 2 * torch.bmm(down.transpose(1, 2), across).real
        result: Tensor = K.reshape(len(K), rows * columns)[:, :time]
        return result

    def flops(self, time: int) -> int:
        """FLOPs of the kernel's product over the N/2 states, as PyTorch counts complex numbers: like real ones."""
        rows, columns = split(time)
        return 2 * self.A_imag.numel() * rows * columns


def expm1(z: Tensor) -> Tensor:
    """Compute exp(z) - 1 of complex z without the cancellation at small z."""
    x, y = z.real, z.imag
    return torch.complex(
        torch.expm1(x) * torch.cos(y) - 2 * torch.sin(y / 2) ** 2, torch.exp(x) * torch.sin(y)
    )


def split(time: int) -> tuple[int, int]:
    """Cut T steps into rows of about sqrt(T); the last one may reach past the end.

    >>> split(784), split(7)
    ((28, 28), (3, 3))
    """
    columns = math.isqrt(time - 1) + 1
    return -(-time // columns), columns


def smooth_length(points: int) -> int:
    """Smallest length from ``points`` on whose prime factors are 2, 3 and 5: FFTs of such lengths are fast.

    >>> smooth_length(1567), smooth_length(1)
    (1600, 1)
    """
    while True:
        rest = points
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return points
        points += 1
