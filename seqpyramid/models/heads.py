"""The classifier or regressor on top of an encoder."""

from typing import Literal

from torch import Tensor, nn

HeadInit = Literal["torch", "released_tp_rnn", "standard_normal"]


class Head(nn.Module):
    """One linear layer, (..., H) -> (..., K).

    Args:
        features: H.
        outputs: K.
        init: ``torch`` keeps torch's uniform start; ``released_tp_rnn`` draws weights from a normal of deviation
            0.1 truncated at two deviations and sets the bias to 0.1 (TP-RNN's released code);
            ``standard_normal`` draws both from N(0, 1) (Dilated RNN's released code).
    """

    def __init__(self, features: int, outputs: int, *, init: HeadInit = "torch") -> None:
        super().__init__()
        self.linear = nn.Linear(features, outputs)
        if init == "released_tp_rnn":
            nn.init.trunc_normal_(self.linear.weight, std=0.1, a=-0.2, b=0.2)
            nn.init.constant_(self.linear.bias, 0.1)
        elif init == "standard_normal":
            nn.init.normal_(self.linear.weight)
            nn.init.normal_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis from H to K."""
        result: Tensor = self.linear(x)
        return result

    @property
    def flops(self) -> int:
        """FLOPs of one reading."""
        return 2 * self.linear.in_features * self.linear.out_features
