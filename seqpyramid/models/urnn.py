r"""Unitary evolution RNN: a complex state, turned by a unitary matrix of 7 H real parameters.

Source: Arjovsky, Shah, Bengio, "Unitary evolution recurrent neural networks", ICML 2016, arXiv:1511.06464:

.. math::
    h_t &= \mathrm{modReLU}(W h_{t-1} + V x_t), \qquad
    W = D_3 R_2 F^{-1} D_2 \Pi R_1 F D_1 \\
    D &= \mathrm{diag}(e^{i \theta}), \qquad R = I - 2 \frac{v v^*}{\lVert v \rVert^2} \\
    \mathrm{modReLU}(z) &= (|z| + b)_+ \frac{z}{|z|}

F is the (unitary) Fourier transform, Pi a fixed permutation, drawn when the model is built and kept with it. The
classifier reads [Re h; Im h], 2 H numbers; h_0 is learned. This is the restricted-capacity uRNN: the products reach
only a 7 H-dimensional part of the H^2 dimensions of the unitary group (Wisdom et al. 2016).

Parameters: 7 H (three phases and two complex vectors) + 2 H F + H + 2 H, and the classifier's 2 H K + K: 16,394 at
F = 1, H = 512, K = 10. The 9K that later tables print do not come out (6,144 without the classifier).

What the released code settles: the order of the factors, 1/sqrt(H) in both transforms, and |z| + 1e-5 in place of |z|
under the fraction (``epsilon``). The start of the weights, by ``init``:

===========  ==========================  =============================
what         ``paper`` (as remembered)   ``released``
===========  ==========================  =============================
theta        U(-pi, pi)                  the same
v            U(-1, 1)                    U(±sqrt(6 / (2 + 2 H)))
b            0                           U(±0.01)
h_0          U(±sqrt(3 / (2 H)))         the same
V            U(±sqrt(6 / (F + H)))       U(±sqrt(6 / (F + 2 H)))
===========  ==========================  =============================

Versions of the released code differ among themselves (one leaves the transforms out and scales the diagonal); these are
the ones its users kept. The length of v does not change W, only how far a step of the optimizer turns it.

Deviations: the classifier's start is ``head_init``'s (the paper has Glorot's, biases 0); the permutation is not the
released code's draw.

Speed: no fused form, so this is a step loop of two transforms a step; only V x is hoisted out of it. All parameters are
real, so any optimizer serves; the state is complex, for which torch has no bfloat16.

Shapes: B batch, T time, F input features, H complex hidden units, K classes.
"""

import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel
from seqpyramid.models.cells import State
from seqpyramid.models.heads import HeadInit
from seqpyramid.models.unrolled import unroll

UnitaryInit = Literal["paper", "released"]


class UnitaryRNNConfig(ModelConfig):
    """Restricted-capacity uRNN."""

    summary_line: ClassVar[str] = "uRNN (Arjovsky et al., ICML 2016): complex state, unitary recurrent matrix"
    name: Literal["urnn"] = "urnn"
    hidden_size: int = Field(default=512, gt=0, description="H, complex units")
    epsilon: float = Field(default=1e-5, gt=0, description="added to |z| under modReLU's fraction")
    init: UnitaryInit = Field(default="paper", description="start of the weights")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def carries_state(self) -> bool:
        """The state is h."""
        return True

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return UnitaryRNN(spec, **self.model_dump(exclude={"name"}))


class Factors(NamedTuple):
    """What W is made of, ready to be applied at every step."""

    diagonals: Tensor
    """(3, H): e^{i theta} of D1, D2, D3."""
    reflections: Tensor
    """(2, H): v / |v| of R1, R2."""


class UnitaryMatrix(nn.Module):
    """W = D3 R2 F^-1 D2 Pi R1 F D1.

    Args:
        size: H.
        init: start of v, see the module's docstring.
    """

    permutation: Tensor

    def __init__(self, size: int, *, init: UnitaryInit) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.empty(3, size).uniform_(-math.pi, math.pi))
        bound = 1.0 if init == "paper" else math.sqrt(6 / (2 + 2 * size))
        self.v = nn.Parameter(torch.empty(2, 2, size).uniform_(-bound, bound))  # (reflection, Re or Im, unit)
        self.register_buffer("permutation", torch.randperm(size))

    def factors(self) -> Factors:
        """Form the complex factors once for all steps."""
        v = torch.complex(self.v[:, 0], self.v[:, 1])
        length = self.v.square().sum(dim=(1, 2)).sqrt()
        return Factors(torch.polar(torch.ones_like(self.theta), self.theta), v / length[:, None])

    def apply_to(self, z: Tensor, factors: Factors) -> Tensor:
        """W z for each row of (B, H)."""
        d, v = factors
        z = torch.fft.fft(d[0] * z, norm="ortho")
        z = reflect(z, v[0]).index_select(1, self.permutation)
        z = torch.fft.ifft(d[1] * z, norm="ortho")
        return d[2] * reflect(z, v[1])


class UnitaryRNN(SequenceModel):
    """The recurrence; arguments as in :class:`UnitaryRNNConfig`."""

    step_loop = True
    no_bfloat16 = "the state is complex, and torch has no complex numbers of two bfloat16"

    def __init__(
        self, spec: TaskSpec, *, hidden_size: int, epsilon: float, init: UnitaryInit, head_init: HeadInit
    ) -> None:
        super().__init__(spec, summary_size=2 * hidden_size, head_init=head_init)
        self.epsilon = epsilon
        self.W = UnitaryMatrix(hidden_size, init=init)
        self.V = nn.Parameter(torch.empty(2 * hidden_size, spec.input_size))  # real rows, then imaginary ones
        self.b = nn.Parameter(torch.zeros(hidden_size))
        self.h0 = nn.Parameter(torch.empty(2, hidden_size))
        inputs_and_units = spec.input_size + (1 if init == "paper" else 2) * hidden_size
        glorot, unit_length = math.sqrt(6 / inputs_and_units), math.sqrt(3 / (2 * hidden_size))
        nn.init.uniform_(self.V, -glorot, glorot)
        nn.init.uniform_(self.h0, -unit_length, unit_length)  # so that E |h_0|^2 = 1
        if init == "released":
            nn.init.uniform_(self.b, -0.01, 0.01)

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the recurrence over the batch; the state is (h,), complex (B, H)."""
        dtype = self.h0.dtype
        if dtype not in (torch.float32, torch.float64):
            raise RecipeError(f"urnn cannot run in {dtype}: {self.no_bfloat16}; use float32 or float64")
        if state is None:
            state = (torch.complex(*self.h0).expand(len(x), -1),)
        inputs = torch.complex(*nnf.linear(x, self.V).to(dtype).chunk(2, dim=-1))
        factors = self.W.factors()

        def step(t: int, projected: Tensor, state: State) -> State:
            return (modrelu(self.W.apply_to(state[0], factors) + projected, self.b, self.epsilon),)

        state, steps = unroll(step, inputs, state, lengths, keep_steps=self.spec.needs == "steps")
        return Encoding(
            real_parts(state[0]),
            steps=None if steps is None else real_parts(steps),
            state=state if self.spec.carry_state else None,
        )

    def encoder_flops(self, time: int) -> int:
        """The products V x; the transforms, diagonals and reflections are no matrix products."""
        return 2 * time * self.V.numel()


def reflect(z: Tensor, v: Tensor) -> Tensor:
    """(I - 2 v v*) z for each row of (B, H), v of length 1.

    >>> reflect(torch.tensor([[3 + 1j, 2j]]), torch.tensor([1 + 0j, 0j]))
    tensor([[-3.-1.j,  0.+2.j]])
    """
    return z - 2 * (z * v.conj()).sum(dim=-1, keepdim=True) * v


def modrelu(z: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """Shrink or grow each complex number by b, down to 0 and without turning it.

    >>> modrelu(torch.tensor([3 + 4j, 0.6 + 0.8j]), torch.tensor([-2.5, -2.5]), 0.0)
    tensor([1.5000+2.j, 0.0000+0.j])
    """
    size = z.abs()
    return z * (torch.relu(size + b) / (size + epsilon))


def real_parts(z: Tensor) -> Tensor:
    """[Re z; Im z] over the last axis."""
    return torch.cat([z.real, z.imag], dim=-1)
