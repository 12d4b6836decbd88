r"""LEM: two states whose time scales depend on the input and on the state.

Source: Rusch, Mishra, Erichson, Mahoney, "Long Expressive Memory for Sequence Modeling", ICLR 2022, arXiv:2110.04744:

.. math::
    \Delta t_t &= \Delta t\,\sigma(W_1 y_{t-1} + V_1 u_t + b_1), \qquad
    \overline{\Delta t}_t = \Delta t\,\sigma(W_2 y_{t-1} + V_2 u_t + b_2) \\
    z_t &= (1 - \Delta t_t) \odot z_{t-1} + \Delta t_t \odot \tanh(W_z y_{t-1} + V_z u_t + b_z) \\
    y_t &= (1 - \overline{\Delta t}_t) \odot y_{t-1} + \overline{\Delta t}_t \odot \tanh(W_y z_t + V_y u_t + b_y)

from y = z = 0; y is what the head reads.

What the released code (tk-rusch/LEM) settles: two bias vectors for each of the four maps (``bias: double``, with which
128 units have the printed 68k parameters), all weights and biases uniform within 1 / sqrt(H); dt = 0.31 on permuted
MNIST (the default here), 0.21 on MNIST in order; 128 units on both. Its classifier starts from a normal of variance
2 / H; here that is ``head_init``, uniform within 1 / sqrt(H) unless chosen otherwise.

Deviations: that start of the classifier.

Speed: tanh of the whole state forbids a scan, so this is a clear loop over steps (``step_loop``) with the products of
the input outside it.

Shapes: B batch, T time, F input features, H units.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import ModelConfig, SequenceModel
from seqpyramid.models.cells import Bias, start_cell
from seqpyramid.models.heads import HeadInit
from seqpyramid.models.two_state import TwoStateModel


class LEMConfig(ModelConfig):
    """LEM; the defaults are the released code's on permuted MNIST."""

    summary_line: ClassVar[str] = "LEM (Rusch et al., ICLR 2022): two states with learned time scales"
    name: Literal["lem"] = "lem"
    hidden_size: int = Field(default=128, gt=0, description="H, units")
    dt: float = Field(default=0.31, gt=0, le=1, description="Delta t, longest time step")
    bias: Bias = Field(default="double", description="one bias vector a map or the released code's two")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def carries_state(self) -> bool:
        """The state is (y, z)."""
        return True

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return LEM(spec, **self.model_dump(exclude={"name"}))


class LEM(TwoStateModel):
    """One layer; arguments as in :class:`LEMConfig`.

    Rows of ``weight_ih`` (4 H, F) are V_1, V_2, V_z, V_y; of ``weight_yh`` (3 H, H) W_1, W_2, W_z; the matrix
    ``weight_zh`` is W_y.
    """

    def __init__(
        self, spec: TaskSpec, *, hidden_size: int, dt: float, bias: Bias, head_init: HeadInit
    ) -> None:
        super().__init__(spec, hidden_size=hidden_size, head_init=head_init)
        H, F = hidden_size, spec.input_size
        self.dt = dt
        self.weight_ih = nn.Parameter(torch.empty(4 * H, F))
        self.weight_yh = nn.Parameter(torch.empty(3 * H, H))
        self.weight_zh = nn.Parameter(torch.empty(H, H))
        self.bias_ih = nn.Parameter(torch.empty(4 * H))
        self.bias_yh = nn.Parameter(torch.empty(3 * H)) if bias == "double" else None
        self.bias_zh = nn.Parameter(torch.empty(H)) if bias == "double" else None
        start_cell(list(self.parameters(recurse=False)), F, H, init="torch")

    def project(self, x: Tensor) -> Tensor:
        """V u + b of every step."""
        return nnf.linear(x, self.weight_ih, self.bias_ih)

    def step(self, projected: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Advance (y, z) by one step from the four V u + b."""
        H = self.hidden_size
        from_y = projected[:, : 3 * H] + nnf.linear(y, self.weight_yh, self.bias_yh)
        scale_z, scale_y = (self.dt * torch.sigmoid(from_y[:, : 2 * H])).chunk(2, dim=1)
        z = (1 - scale_z) * z + scale_z * torch.tanh(from_y[:, 2 * H :])
        from_z = projected[:, 3 * H :] + nnf.linear(z, self.weight_zh, self.bias_zh)
        return (1 - scale_y) * y + scale_y * torch.tanh(from_z), z

    def encoder_flops(self, time: int) -> int:
        """The four maps of the input and the four of the states, at every step."""
        return 2 * time * (self.weight_ih.numel() + self.weight_yh.numel() + self.weight_zh.numel())
