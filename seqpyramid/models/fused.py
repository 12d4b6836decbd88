"""One of torch's recurrent layers on its kernel (:mod:`seqpyramid.kernels`), where ``kernels.fused`` says there is one.

Shapes: B batch, T time, F inputs, H hidden units.
"""

from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from seqpyramid.contracts import NOT_IN_FINGERPRINT
from seqpyramid.errors import RecipeError
from seqpyramid.kernels.elman import elman_layer
from seqpyramid.kernels.gru import gru_layer
from seqpyramid.kernels.lstm import Segment, lstm_layer

RECOMPUTE: Any = Field(
    default=False,
    description="run steps again in the backward pass instead of keeping their states: long sequences in little "
    "memory, for 1.2 to 1.3 times the time; moves no number",
    json_schema_extra=NOT_IN_FINGERPRINT,
)
"""The option of a model whose kernels can."""

GATES_IN_16_BITS: Any = Field(
    default=False,
    description="keep the gates in 16 bits for the backward pass, in six tenths of the memory: it rounds gradients "
    "(an LSTM's by 1e-5 of their norm over 784 steps) and no output",
)
"""The same."""


class Keeping(NamedTuple):
    """How a model's kernels keep less for the backward pass than all they could."""

    recompute: bool = False
    gates_in_16_bits: bool = False

    def problems(self, unfit: str | None = None) -> dict[str, str]:
        """Say no, as ``ModelConfig.problems`` does, to both at once, and to either where ``unfit`` says why."""
        if unfit is not None:
            return {option: f"{unfit}; leave it out" for option, wanted in self._asdict().items() if wanted}
        if self.recompute and self.gates_in_16_bits:
            reason = "has no effect beside recompute, which keeps no gates; leave one of them out"
            return {"gates_in_16_bits": reason}
        return {}

    def refuse_plain_training(self) -> None:
        """Say no where the plain twin, which keeps everything, is about to be trained.

        Raises:
            RecipeError: gradients are wanted, and less is to be kept.
        """
        if torch.is_grad_enabled() and any(self):
            option = "recompute" if self.recompute else "gates_in_16_bits"
            raise RecipeError(
                f"model.{option} needs the compiled kernels (a CPU, precision fp32, --kernels not plain), which "
                "cannot run here; set it to false"
            )

    @property
    def segment(self) -> Segment:
        """``recompute`` as kernels take it."""
        return "auto" if self.recompute else None

    def kernel_options(self) -> dict[str, Any]:
        """The same as a kernel takes it that has both."""
        return {"segment": self.segment, "rounded": self.gates_in_16_bits}


KEEP_ALL = Keeping()


class LayerRun(NamedTuple):
    """What one layer hands on."""

    steps: Tensor | None
    """(B, T, H), or fewer steps as asked; None where nothing but the last is read."""
    last: Tensor
    """(B, H), each sequence's own."""
    state: Any
    """As torch's layers return it."""


def run_fused(
    layer: nn.Module,
    x: Tensor,
    lengths: Tensor,
    state: Any,
    *,
    keep_steps: bool,
    every: int = 1,
    keeping: Keeping = KEEP_ALL,
) -> LayerRun:
    """Run one layer by its kernel, over no padding; the state is as torch's layers return it.

    Of ``every`` steps one is kept, counted back from the last of T. Gates in 16 bits are for LSTM layers only. An Elman
    layer whose steps are wanted runs none of them again: they are all that its backward pass reads, and their reader
    holds them anyway.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = layer.parameters()
    if isinstance(layer, nn.LSTM):
        before = None if state is None else (state[0][0], state[1][0])
        steps, (h, c) = lstm_layer(
            x,
            weight_ih,
            weight_hh,
            bias_ih + bias_hh,
            lengths,
            before,
            keep_steps=keep_steps,
            every=every,
            **keeping.kernel_options(),
        )
        return LayerRun(steps, h, (h[None], c[None]))
    first = None if state is None else state[0]
    if isinstance(layer, nn.GRU):
        steps, h = gru_layer(
            x,
            weight_ih,
            weight_hh,
            bias_ih,
            bias_hh,
            lengths,
            first,
            keep_steps=keep_steps,
            every=every,
            segment=keeping.segment,
        )
    else:
        assert isinstance(layer, nn.RNN)
        steps, h = elman_layer(
            x,
            weight_ih,
            weight_hh,
            bias_ih + bias_hh,
            lengths,
            first,
            nonlinearity=layer.nonlinearity,
            keep_steps=keep_steps,
            every=every,
            segment=None if keep_steps else keeping.segment,
        )
    return LayerRun(steps, h, h[None])
