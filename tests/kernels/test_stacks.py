"""Stacks of recurrent layers give the same on their kernels as on torch's layers."""

import json

import pytest
import torch

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.kernels import Mode
from seqpyramid.models import MODELS
from tests.kernels import assert_same, needs_kernels, running

pytestmark = needs_kernels

STACKS = [
    {"name": "rnn"},
    {"name": "rnn", "nonlinearity": "relu", "layers": 2},
    {"name": "rnn", "layers": 3, "bias": "double", "output_aggregation": "sum", "output_maps": True},
    {"name": "gru"},
    {"name": "gru", "layers": 3, "bias": "double"},
    {"name": "gru", "layers": 2, "output_aggregation": "sum", "output_maps": True},
    {"name": "lstm"},
    {"name": "lstm", "layers": 3, "bias": "double", "forget_bias": 1.0},
    {"name": "lstm", "layers": 2, "output_aggregation": "sum", "output_maps": True},
]


@pytest.mark.parametrize("fields", STACKS)
@pytest.mark.parametrize("needs", ["summary", "steps"])
@pytest.mark.parametrize("carry_state", [False, True])
def test_models_give_the_same(fields: dict[str, object], needs: str, carry_state: bool) -> None:
    spec = TaskSpec(input_size=2, outputs=3, needs=needs, carry_state=carry_state)  # type: ignore[arg-type]
    torch.manual_seed(0)
    config = MODELS[str(fields["name"])].model_validate_json(json.dumps({"hidden_size": 5, **fields}))
    model = config.build(spec).double()
    x = torch.randn(4, 7, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([7, 3, 1, 6])
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    modes: list[Mode] = ["plain", "fused", "auto"]
    for mode in modes:
        with running(mode):
            first = model(x, lengths)
            second = model(x.flip(1), lengths, first.state)
            outputs = [first.outputs, first.summary, second.outputs]
            loss = torch.stack([(o * o).sum() for o in outputs]).sum()
            found.append([*outputs, *torch.autograd.grad(loss, [x, *parameters])])
    plain_run, fused_run, auto_run = found
    assert_same(plain_run, fused_run)
    assert all(torch.equal(a, b) for a, b in zip(fused_run, auto_run, strict=True))
    if "nonlinearity" not in fields:  # sums of so few numbers may agree to the last bit
        assert not all(torch.equal(a, b) for a, b in zip(plain_run, fused_run, strict=True))


KEEPERS = [
    {"name": "lstm", "layers": 2, "hidden_size": 20},
    {"name": "dilated_rnn", "cell": "lstm", "layers": 3, "hidden_size": 20},
    {"name": "dilated_rnn", "cell": "lstm", "layers": 2, "hidden_size": 20, "start_exponent": 1},
    {"name": "tp_rnn", "hidden_size": 20, "pyramid_length": [4, 3], "granularity": [2, 2]},
]
WITHOUT_KEPT_GATES = [
    {"name": "rnn", "layers": 2, "hidden_size": 20},
    {"name": "gru", "layers": 2, "hidden_size": 20},
    {"name": "dilated_rnn", "cell": "elman", "layers": 3, "hidden_size": 20},
    {"name": "dilated_rnn", "cell": "gru", "layers": 3, "hidden_size": 20},
    {
        "name": "dilated_rnn",
        "cell": "gru",
        "reset": "after",
        "layers": 2,
        "hidden_size": 20,
        "start_exponent": 1,
    },
]


@pytest.mark.parametrize(
    ("less", "fields"),
    [
        *[("recompute", fields) for fields in KEEPERS + WITHOUT_KEPT_GATES],
        *[("gates_in_16_bits", fields) for fields in KEEPERS],
    ],
)
@pytest.mark.parametrize("needs", ["summary", "steps"])
def test_keeping_less_changes_no_output(less: str, fields: dict[str, object], needs: str) -> None:
    """Nor any gradient, when steps run again; rounded gates change gradients by their rounding."""
    if fields["name"] == "tp_rnn" and needs == "steps":
        pytest.skip("a pyramid has one answer a sequence")
    spec = TaskSpec(input_size=2, outputs=3, needs=needs)  # type: ignore[arg-type]
    x, lengths = (
        torch.randn(4, 17, 2, generator=torch.Generator().manual_seed(1)),
        torch.tensor([17, 3, 1, 9]),
    )
    found = []
    for options in ({}, {less: True}):
        torch.manual_seed(0)
        config = MODELS[str(fields["name"])].model_validate_json(json.dumps({**fields, **options}))
        model = config.build(spec)
        with running("fused"):
            outputs = model(x, lengths).outputs
            parameters = [p for p in model.parameters() if p.requires_grad]
            found.append((outputs, torch.autograd.grad(outputs.sin().sum(), parameters)))
    (outputs, gradients), (same, other) = found
    assert torch.equal(outputs, same)
    with running("plain"), pytest.raises(RecipeError, match="needs the compiled kernels"):
        model(x, lengths)
    if less == "recompute":
        assert all(torch.equal(a, b) for a, b in zip(gradients, other, strict=True))
        return
    assert all((a - b).norm() < 1e-4 * a.norm() for a, b in zip(gradients, other, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(gradients, other, strict=True))


@pytest.mark.parametrize("recompute", [False, True])
def test_only_lstms_round_gates(recompute: bool) -> None:
    fields = {"cell": "gru", "gates_in_16_bits": True, "recompute": recompute}
    with pytest.raises(RecipeError, match="gates_in_16_bits: acts in an LSTM only, and the cell is 'gru'"):
        MODELS["dilated_rnn"].model_validate(fields).build(TaskSpec(input_size=2, outputs=3))
