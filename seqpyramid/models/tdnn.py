r"""Time-delay neural network: the same small window of weights slides over time, layer upon layer.

Source: Waibel, Hanazawa, Hinton, Shikano, Lang, "Phoneme recognition using time-delay neural networks", IEEE
Transactions on Acoustics, Speech and Signal Processing 37(3), 1989; the dilations are those of Peddinti, Povey,
Khudanpur, "A time delay neural network architecture for efficient modeling of long temporal contexts", Interspeech
2015. With window k, dilation d and stride s of a layer, for n = 0, 1, ...:

.. math:: y_n = f\Big(b + \sum_{j=0}^{k-1} W_j\, x_{(n+1)s - 1 - jd}\Big)

which is a linear layer on k spliced frames, and costs :math:`C_{out} (C_{in} k + 1)` parameters. The summary is the
frame at the sequence's own end (``readout: last``) or the integration over time (``readout: mean``).

A window ends at the newest step of its stride, so that no frame sees a later one. What stands before the first step
is zero, in every layer; with a stride, a last short block is filled with zeros on the right, so that every step is
read and T steps make ceil(T / s) frames. With a stride above 1 there are fewer frames than steps, and only a summary
is emitted.

Not established here, from memory of the paper: the first network has 16 inputs, 8 units with k = 3, then one unit a
class with k = 5, all sigmoid, and a class's score is the sum of its unit's squares over time.

Deviations: windows reach before the first step (in the paper, a layer has k - 1 frames fewer than the one below), so
that a short sequence has an answer and every step an output; the integration is the mean of the frames, not a sum of
squares, so that it does not grow with T; a linear classifier reads it. The start of the weights is a choice of ours:
``torch`` draws weights and biases from ±1/sqrt(k C_in), ``tensorflow`` is Glorot uniform with biases 0.

Shapes: B batch, T time steps or frames of a layer, F input features, C channels of a layer.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import Needs, TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, last_steps, mask_steps
from seqpyramid.models.cells import CellInit
from seqpyramid.models.heads import HeadInit

Activation = Literal["sigmoid", "tanh", "relu"]
Readout = Literal["last", "mean"]
Positive = Annotated[int, Field(gt=0)]


class TDNNConfig(ModelConfig):
    """Time-delay network; every list has one entry a layer."""

    summary_line: ClassVar[str] = "TDNN (Waibel et al. 1989): causal convolutions over a window of delays"
    name: Literal["tdnn"] = "tdnn"
    channels: tuple[Positive, ...] = Field(min_length=1, description="C of each layer, its units")
    kernel_sizes: tuple[Positive, ...] = Field(
        min_length=1, description="k of each layer, frames of one window"
    )
    dilations: tuple[Positive, ...] | None = Field(
        default=None, description="d of each layer, steps between two frames of a window; null: 1 everywhere"
    )
    strides: tuple[Positive, ...] | None = Field(
        default=None, description="s of each layer, steps from one window to the next; null: 1 everywhere"
    )
    activation: Activation = Field(default="sigmoid", description="f")
    readout: Readout = Field(
        default="last", description="summary: the last frame, or the mean of all frames (Waibel integrates)"
    )
    init: CellInit = Field(default="torch", description="start of the weights, see the module's text")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def emits(self) -> frozenset[Needs]:
        """A mean over time is one answer a sequence, and strides leave fewer frames than steps."""
        if self.readout == "mean" or max(self.strides or (1,)) > 1:
            return frozenset({"summary"})
        return super().emits

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Check the lists against each other and the windows against the task's T."""
        found = super().problems(spec)
        if spec.needs not in self.emits:
            del found[""]  # one of these two is why
            if self.readout == "mean":
                found["readout"] = (
                    "a mean over time is one answer a sequence; the task needs steps, choose last"
                )
            if max(self.strides or (1,)) > 1:
                found["strides"] = (
                    "leave fewer frames than steps, and the task needs every step; leave them out"
                )
        for field in ("kernel_sizes", "dilations", "strides"):
            entries = getattr(self, field)
            if entries is not None and len(entries) != len(self.channels):
                found[field] = (
                    f"has {len(entries)} entries but channels has {len(self.channels)}; give one for each layer"
                )
        if not found.keys() & {"kernel_sizes", "dilations", "strides"}:
            found |= self._window_problems(spec.max_length)
        return found

    def _window_problems(self, time: int | None) -> dict[str, str]:
        for layer, (k, d, s) in enumerate(self._windows(), start=1):
            if d > 1 and k == 1:
                return {
                    "dilations": f"has no effect in layer {layer}, whose window is one frame; set it to 1"
                }
            if time is not None and (k - 1) * d >= time:
                return {
                    "kernel_sizes": f"layer {layer} looks {(k - 1) * d} frames back, but has at most {time} "
                    "(weights that only ever read zeros); choose a smaller window or dilation"
                }
            time = None if time is None else -(-time // s)
        return {}

    def _windows(self) -> list[tuple[int, int, int]]:
        ones = (1,) * len(self.channels)
        return list(zip(self.kernel_sizes, self.dilations or ones, self.strides or ones, strict=True))

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return TDNN(
            spec,
            channels=self.channels,
            windows=self._windows(),
            activation=self.activation,
            readout=self.readout,
            init=self.init,
            head_init=self.head_init,
        )


class TDNN(SequenceModel):
    """Time-delay layers one upon the other.

    Args:
        spec: the task's side of the contract.
        channels: C of each layer.
        windows: kernel size, dilation and stride of each layer.
        activation: f.
        readout: ``last`` frame or ``mean`` of all valid frames.
        init: start of the weights.
        head_init: start of the classifier's weights.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        channels: Sequence[int],
        windows: Sequence[tuple[int, int, int]],
        activation: Activation = "sigmoid",
        readout: Readout = "last",
        init: CellInit = "torch",
        head_init: HeadInit = "torch",
    ) -> None:
        super().__init__(spec, summary_size=channels[-1], head_init=head_init)
        self.readout = readout
        self.layers = nn.ModuleList(
            TDNNLayer(below, above, kernel_size=k, dilation=d, stride=s, activation=activation, init=init)
            for (below, above), (k, d, s) in zip(pairwise([spec.input_size, *channels]), windows, strict=True)
        )

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run all layers; ``lengths`` shrink with the strides."""
        for layer in self.layers:
            x, lengths = layer(x, lengths)
        if self.readout == "mean":
            counts = lengths.to(device=x.device, dtype=x.dtype)
            return Encoding(mask_steps(x, lengths).sum(1) / counts[:, None])
        steps = mask_steps(x, lengths) if self.spec.needs == "steps" else None
        return Encoding(last_steps(x, lengths), steps=steps)

    def encoder_flops(self, time: int) -> int:
        """One product a frame and layer."""
        total = 0
        for layer in self.layers:
            assert isinstance(layer, TDNNLayer)
            time = layer.frames(time)
            total += 2 * time * layer.conv.weight.numel()
        return total


class TDNNLayer(nn.Module):
    """One layer: (B, T, C_in) -> (B, ceil(T / stride), C_out).

    Args:
        input_size: C_in.
        channels: C_out.
        kernel_size: k.
        dilation: d.
        stride: s.
        activation: f.
        init: start of the weights.
    """

    def __init__(
        self,
        input_size: int,
        channels: int,
        *,
        kernel_size: int,
        dilation: int = 1,
        stride: int = 1,
        activation: Activation = "sigmoid",
        init: CellInit = "torch",
    ) -> None:
        super().__init__()
        self.delay, self.stride = (kernel_size - 1) * dilation, stride
        self.activation = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}[activation]
        self.conv = nn.Conv1d(input_size, channels, kernel_size, stride=stride, dilation=dilation)
        if init == "tensorflow":
            nn.init.xavier_uniform_(self.conv.weight)
            assert self.conv.bias is not None
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frames and how many of them are valid.

        >>> layer = TDNNLayer(1, 1, kernel_size=2, stride=2)
        >>> frames, counts = layer(torch.zeros(2, 5, 1), torch.tensor([5, 2]))
        >>> frames.shape[1], counts.tolist()
        (3, [3, 1])
        """
        if self.stride > 1:  # only then can a window that counts reach past a sequence's end
            x = mask_steps(x, lengths)
        padded = nnf.pad(x.transpose(1, 2), (self.delay, -x.shape[1] % self.stride))
        frames = self.conv(padded[:, :, self.stride - 1 :])
        return self.activation(frames).transpose(1, 2), -(-lengths // self.stride)

    def frames(self, time: int) -> int:
        """Frames that ``time`` steps make."""
        return -(-time // self.stride)
