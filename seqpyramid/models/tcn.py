r"""TCN: residual blocks of dilated causal convolutions.

Source: Bai, Kolter, Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
Modeling", 2018, arXiv:1803.01271. Block l = 1, ..., L has two convolutions of k taps, 2^(l-1) steps apart, with zeros
before the first step:

.. math::
    \mathrm{conv}(x)_t = \sum_{j=0}^{k-1} W_j x_{t - j\,2^{l-1}} + b, \qquad
    x \leftarrow \mathrm{ReLU}(P x + F_2(F_1(x))), \qquad F = D \circ \mathrm{ReLU} \circ \mathrm{conv}

where D is dropout, and P the identity, or a 1 x 1 convolution where the number of channels changes. Each convolution is
weight-normalised: :math:`W = g\,V / \|V\|` with a g for each output channel. The top block at step t sees the last
1 + 2 (k - 1) (2^L - 1) inputs; the summary is its last valid step.

Start of the weights, paper or released code (locuslab/TCN), by the named option ``init``: the paper draws them from
N(0, 0.01), read here as the released code does, a standard deviation of 0.01 (``normal``, the default). That code
sets the convolutions' weights so after they were weight-normalised, where the next forward pass computes them anew from
g and V: they keep torch's uniform start, and only the 1 x 1 convolution is small (``released``). Biases start as torch
has them in both.

Deviations: none.

Shapes: B batch, T time, F input features, H channels, L blocks, k taps.
"""

from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.nn.utils.parametrizations import weight_norm

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, last_steps, mask_steps
from seqpyramid.models.heads import HeadInit

ConvolutionInit = Literal["normal", "released"]

INIT_STD = 0.01


class TCNConfig(ModelConfig):
    """TCN; the defaults are the paper's on pixel MNIST."""

    summary_line: ClassVar[str] = "TCN (Bai et al. 2018): residual blocks of dilated causal convolutions"
    name: Literal["tcn"] = "tcn"
    channels: int = Field(default=25, gt=0, description="H, channels per block")
    layers: int = Field(default=8, gt=0, le=30, description="L, blocks; block l has dilation 2 ** (l - 1)")
    kernel_size: int = Field(default=7, ge=2, description="k, taps of a convolution")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout after each convolution")
    init: ConvolutionInit = Field(
        default="normal", description="deviation 0.01 everywhere (paper), or what the released code has"
    )
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse blocks whose earlier taps would only meet zeros."""
        found = super().problems(spec)
        if spec.max_length is not None and 2 ** (self.layers - 1) >= spec.max_length:
            found["layers"] = (
                f"is {self.layers}, but the last block's dilation of {2 ** (self.layers - 1)} reaches before the first "
                f"of the task's {spec.max_length} steps; choose fewer"
            )
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return TCN(spec, **self.model_dump(exclude={"name"}))


class TCN(SequenceModel):
    """L residual blocks; arguments as in :class:`TCNConfig`."""

    def __init__(
        self,
        spec: TaskSpec,
        *,
        channels: int,
        layers: int,
        kernel_size: int,
        dropout: float,
        init: ConvolutionInit,
        head_init: HeadInit,
    ) -> None:
        super().__init__(spec, summary_size=channels, head_init=head_init)
        self.blocks = nn.ModuleList(
            TemporalBlock(
                channels if level else spec.input_size,
                channels,
                kernel_size=kernel_size,
                dilation=2**level,
                dropout=dropout,
                init=init,
            )
            for level in range(layers)
        )

    @property
    def receptive_field(self) -> int:
        """How many inputs one step of the top block sees."""
        blocks = cast("list[TemporalBlock]", list(self.blocks))
        return 1 + sum(block.first.reach + block.second.reach for block in blocks)

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the blocks over all steps at once."""
        x = x.transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = x.transpose(1, 2)
        steps = mask_steps(x, lengths) if self.spec.needs == "steps" else None
        return Encoding(last_steps(x, lengths), steps=steps)

    def encoder_flops(self, time: int) -> int:
        """Both convolutions and the 1 x 1 one of every block, at every step."""
        return sum(block.flops(time) for block in cast("list[TemporalBlock]", list(self.blocks)))


class TemporalBlock(nn.Module):
    """Two convolutions and the path around them.

    Args:
        input_size: channels in.
        channels: channels out.
        kernel_size: k.
        dilation: steps between two taps.
        dropout: rate.
        init: start of the weights.
    """

    def __init__(
        self,
        input_size: int,
        channels: int,
        *,
        kernel_size: int,
        dilation: int,
        dropout: float,
        init: ConvolutionInit,
    ) -> None:
        super().__init__()
        self.first = CausalConvolution(input_size, channels, kernel_size, dilation=dilation, init=init)
        self.second = CausalConvolution(channels, channels, kernel_size, dilation=dilation, init=init)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv1d(input_size, channels, 1) if input_size != channels else None
        if self.skip is not None:
            nn.init.normal_(self.skip.weight, std=INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F, T) to (B, H, T)."""
        y = self.dropout(torch.relu(self.first(x)))
        y = self.dropout(torch.relu(self.second(y)))
        return torch.relu(y + (x if self.skip is None else self.skip(x)))

    def flops(self, time: int) -> int:
        """FLOPs over ``time`` steps."""
        weights: int = self.first.conv.weight.numel() + self.second.conv.weight.numel()
        return 2 * time * (weights + (self.skip.weight.numel() if self.skip is not None else 0))


class CausalConvolution(nn.Module):
    """Weight-normalised dilated convolution over the present and the past.

    Args:
        input_size: channels in.
        channels: channels out.
        kernel_size: k.
        dilation: steps between two taps.
        init: start of the weights.
    """

    def __init__(
        self, input_size: int, channels: int, kernel_size: int, *, dilation: int, init: ConvolutionInit
    ) -> None:
        super().__init__()
        self.reach = (kernel_size - 1) * dilation
        conv = nn.Conv1d(input_size, channels, kernel_size, dilation=dilation)
        # Before the parametrisation, which then takes g and V from these weights; after it they would be overwritten.
        if init == "normal":
            nn.init.normal_(conv.weight, std=INIT_STD)
        self.conv = weight_norm(conv)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F, T) to (B, H, T)."""
        result: Tensor = self.conv(nnf.pad(x, (self.reach, 0)))
        return result
