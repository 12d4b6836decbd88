"""Training on raw data, whose inputs want no gradient: kernels then leave a part of their products out."""

import json

import pytest
import torch
from torch import Tensor

from seqpyramid.contracts import TaskSpec
from seqpyramid.models import MODELS
from tests.kernels import needs_kernels, running

pytestmark = needs_kernels

CONFIGS: list[dict[str, object]] = [
    *({"name": name, "hidden_size": 41, "layers": 2} for name in ("lstm", "gru", "rnn")),
    *(
        {"name": "dilated_rnn", "cell": cell, "hidden_size": 20, "layers": 3}
        for cell in ("lstm", "gru", "elman")
    ),
    {"name": "tp_rnn", "hidden_size": 41, "pyramid_length": [4, 2], "granularity": [2, 2]},
    {"name": "hm_lstm", "hidden_sizes": [100, 41]},
]


@pytest.mark.parametrize("inputs", [1, 20, 40])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(map(str, config.values())))
def test_weights_get_the_gradients_that_they_have_beside_the_inputs(
    level: str, config: dict[str, object], inputs: int
) -> None:
    torch.manual_seed(0)
    spec = TaskSpec(input_size=inputs, outputs=3, needs="summary")
    model = MODELS[str(config["name"])].model_validate_json(json.dumps(config)).build(spec)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    x, lengths = torch.randn(45, 7, inputs), torch.arange(45) % 7 + 1

    def gradients(x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(x, lengths).outputs.square().sum(), weights)

    with running("fused"):
        for beside, alone in zip(gradients(x.requires_grad_()), gradients(x.detach()), strict=True):
            assert torch.equal(beside, alone)
            assert torch.isfinite(alone).all()
