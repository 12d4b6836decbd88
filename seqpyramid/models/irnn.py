r"""IRNN: a ReLU network whose recurrent matrix starts as the identity.

Source: Le, Jaitly, Hinton, "A simple way to initialize recurrent networks of rectified linear units", 2015,
arXiv:1504.00941v2:

.. math::
    h_t = \max(0, U x_t + W h_{t-1} + b), \qquad W_0 = \alpha I, \quad b_0 = 0, \quad U_0 \sim N(0, \sigma^2)

with alpha = 1; the paper scales the identity down (by 0.01, for speech) where long memory does harm. sigma = 0.001 is
the paper's value as it is commonly quoted; the paper itself was not at hand to check it.

Parameters: H (F + H + 1) with one bias vector: 11,210 with the classifier at F = 1, H = 100, K = 10. The 12K that later
tables print for it do not come out of any bias count.

Deviations: the classifier starts as torch starts it unless ``head_init`` says otherwise; whether the paper draws it
like U is not established.

Speed: torch's fused ReLU layer. A batch of unequal lengths is packed: unlike tanh, a ReLU state can grow past any
number over padding, and a gradient of zero through an infinite state is not zero.

Shapes: B batch, T time, F input features, H hidden units, K classes.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full, last_steps
from seqpyramid.models.heads import HeadInit


class IRNNConfig(ModelConfig):
    """IRNN; the defaults are the paper's for pixel-by-pixel MNIST."""

    summary_line: ClassVar[str] = (
        "IRNN (Le et al. 2015): ReLU network, recurrent matrix starts as the identity"
    )
    name: Literal["irnn"] = "irnn"
    hidden_size: int = Field(default=100, gt=0, description="H, units")
    input_deviation: float = Field(
        default=1e-3, gt=0, description="sigma, standard deviation of the first input weights"
    )
    identity_scale: float = Field(
        default=1.0, gt=0, description="alpha, what the recurrent matrix starts as, times I"
    )
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")

    @property
    def carries_state(self) -> bool:
        """The state is h."""
        return True

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return IRNN(spec, **self.model_dump(exclude={"name"}))


class IRNN(SequenceModel):
    """One fused ReLU layer with a start of its own; arguments as in :class:`IRNNConfig`."""

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_size: int,
        input_deviation: float,
        identity_scale: float,
        head_init: HeadInit,
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.hidden_size = hidden_size
        self.layer = nn.RNN(spec.input_size, hidden_size, nonlinearity="relu", batch_first=True)
        weights = dict(self.layer.named_parameters())
        nn.init.normal_(weights["weight_ih_l0"], std=input_deviation)
        with torch.no_grad():
            weights["weight_hh_l0"].copy_(identity_scale * torch.eye(hidden_size))
        nn.init.zeros_(weights["bias_ih_l0"])
        nn.init.zeros_(weights["bias_hh_l0"]).requires_grad_(False)  # one bias vector is all the paper has

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the layer over the batch; the state is h as torch's layer returns it, (1, B, H)."""
        if all_full(lengths, x.shape[1]):
            steps, state = self.layer(x, state)
        else:
            packed, state = self.layer(
                pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False), state
            )
            steps, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
        carried = state if self.spec.carry_state else None
        return Encoding(
            last_steps(steps, lengths), steps=steps if self.spec.needs == "steps" else None, state=carried
        )

    def encoder_flops(self, time: int) -> int:
        """The input and recurrent products of every step."""
        return 2 * time * self.hidden_size * (self.spec.input_size + self.hidden_size)
