r"""Dilated CNN: causal convolutions of two taps whose distance doubles from layer to layer.

Source: the baseline of Chang et al., "Dilated Recurrent Neural Networks", NIPS 2017, arXiv:1710.02224, after van den
Oord et al., "WaveNet", arXiv:1609.03499, Section 2.1. With x^(0) the input and x = 0 before the first step:

.. math:: x_t^{(l)} = \phi(W_0^{(l)} x_{t - 2^{l-1}}^{(l-1)} + W_1^{(l)} x_t^{(l-1)}), \qquad l = 1, \dots, L

The summary is the top layer at the last step, which sees the last 2^L inputs.

The printed counts (7k and 46k for 10 layers of 20 and 50 filters) settle: two taps, no bias in the convolutions, no
gates, no residual or skip connections; only this form has 7,450 and 45,610 parameters.

Not established, hence options: the activation :math:`\phi` (``relu``), the start of the weights (``tensorflow``:
Glorot uniform, that framework's default for convolutions and the paper's framework; or torch's default) and of the
head (standard normal, as in the released Dilated RNN).

Deviations: none known beyond these choices.

Speed: a convolution of two taps is one linear map of two steps side by side. Where only the last step is read, each
layer is evaluated at those steps alone that the summary depends on, about T in all layers together: pairs counted back
from the sequence's end. A missing partner is a zero, which is what every layer makes of zeros without bias.

Shapes: B batch, T time steps, F input features, H filters, L layers.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full, last_steps, mask_steps
from seqpyramid.models.cells import CellInit
from seqpyramid.models.heads import HeadInit

Activation = Literal["relu", "tanh"]


class DilatedCNNConfig(ModelConfig):
    """Dilated CNN; the defaults are a row of the Dilated RNN paper's Table 1."""

    summary_line: ClassVar[str] = (
        "Dilated CNN (baseline of Chang et al., NIPS 2017): causal, two taps, no gates"
    )
    name: Literal["dilated_cnn"] = "dilated_cnn"
    filters: int = Field(default=20, gt=0, description="H, filters per layer")
    layers: int = Field(default=10, gt=0, le=30, description="L, layers; layer l has dilation 2 ** (l - 1)")
    activation: Activation = Field(default="relu", description="phi, not established")
    init: CellInit = Field(default="tensorflow", description="start of the convolutions' weights")
    head_init: HeadInit = Field(default="standard_normal", description="start of the classifier's weights")

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse layers whose second tap would only meet zeros."""
        found = super().problems(spec)
        if spec.max_length is not None and 2 ** (self.layers - 1) >= spec.max_length:
            found["layers"] = (
                f"is {self.layers}, but the last layer's dilation of {2 ** (self.layers - 1)} reaches before the first "
                f"of the task's {spec.max_length} steps; choose fewer"
            )
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return DilatedCNN(spec, **self.model_dump(exclude={"name"}))


class DilatedCNN(SequenceModel):
    """L causal convolutions; arguments as in :class:`DilatedCNNConfig`.

    The weights of a layer are one matrix (H, 2 F): the columns of the older tap, then those of the newer.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        filters: int,
        layers: int,
        activation: Activation,
        init: CellInit,
        head_init: HeadInit,
    ) -> None:
        super().__init__(spec, summary_size=filters, head_init=head_init)
        self.activation: Callable[[Tensor], Tensor] = torch.relu if activation == "relu" else torch.tanh
        self.sizes = [spec.input_size] + [filters] * layers
        self.layers = nn.ModuleList()
        for below, above in pairwise(self.sizes):
            layer = nn.Linear(2 * below, above, bias=False)
            if init == "tensorflow":
                bound = (6 / (2 * below + 2 * above)) ** 0.5  # both fans of a convolution count its two taps
                nn.init.uniform_(layer.weight, -bound, bound)
            self.layers.append(layer)

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Evaluate every layer at all steps, or only where the last step depends on it."""
        if self.spec.needs == "summary":
            return Encoding(self.cone(x, lengths))
        steps = mask_steps(self.dense(x), lengths)
        return Encoding(last_steps(steps, lengths), steps=steps)

    def dense(self, x: Tensor) -> Tensor:
        """Outputs of the top layer at all steps: (B, T, F) -> (B, T, H)."""
        for k, layer in enumerate(self.layers):
            older = nnf.pad(x, (0, 0, 2**k, 0))[:, : x.shape[1]]
            x = self.activation(layer(torch.cat([older, x], dim=2)))
        return x

    def cone(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Output of the top layer at each sequence's last step: (B, T, F) -> (B, H)."""
        x = last_window(x, lengths, min(x.shape[1], 2 ** len(self.layers)))
        for layer in self.layers:
            if x.shape[1] % 2:
                x = nnf.pad(x, (0, 0, 1, 0))
            x = self.activation(layer(x.reshape(len(x), x.shape[1] // 2, -1)))
        return x[:, 0]

    def encoder_flops(self, time: int) -> int:
        """Products of all layers at the steps where they are evaluated."""
        steps = min(time, 2 ** len(self.layers))
        total = 0
        for below, above in pairwise(self.sizes):
            steps = -(-steps // 2)
            total += 4 * below * above * (steps if self.spec.needs == "summary" else time)
        return total


def last_window(x: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Each sequence's last ``size`` steps, zeros before its first: (B, T, F) -> (B, size, F).

    >>> x = torch.arange(1.0, 5.0).expand(2, 4)[..., None]
    >>> last_window(x, torch.tensor([4, 2]), 3)[..., 0].tolist()
    [[2.0, 3.0, 4.0], [0.0, 1.0, 2.0]]
    """
    time = x.shape[1]
    if all_full(lengths, time):
        return x[:, time - size :]
    positions = lengths[:, None] - size + torch.arange(size)
    rows = torch.arange(len(x), device=x.device)
    chosen = x[rows[:, None], positions.clamp(min=0).to(x.device)]
    return chosen.masked_fill((positions < 0).to(x.device)[:, :, None], 0.0)
