"""The naive form of the Dilated RNN is the same function as the product's two ways."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.naive_dilated import NaiveDilatedRNN, all_states
from seqpyramid import kernels
from seqpyramid.contracts import Needs, TaskSpec
from seqpyramid.kernels import library
from seqpyramid.models import dilated, fused
from seqpyramid.models.dilated import DilatedRNN, DilatedRNNConfig
from seqpyramid.models.fused import LayerRun

CELLS = [("elman", "before"), ("lstm", "before"), ("gru", "before"), ("gru", "after")]


def build(needs: Needs, **fields: object) -> DilatedRNN:
    torch.manual_seed(3)
    config = DilatedRNNConfig.model_validate_json(json.dumps({"hidden_size": [3, 4, 5]} | fields))
    model = config.build(TaskSpec(input_size=2, outputs=3, needs=needs)).double()
    assert isinstance(model, DilatedRNN)
    return model


def gradients(model: nn.Module, outputs: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Of a loss that weighs every output differently, by the weights' names in the Dilated RNN."""
    weights = torch.cos(torch.arange(outputs.numel(), dtype=outputs.dtype)).view(outputs.shape)
    wanted = {name.removeprefix("dilated."): p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad((outputs**2 * weights).sum(), [*wanted.values(), x])
    return dict(zip([*wanted, "x"], grads, strict=True))


@pytest.mark.parametrize("needs", ["summary", "steps"])
@pytest.mark.parametrize(("cell", "reset"), CELLS)
@pytest.mark.parametrize("dilations", [[1, 2, 4], [2, 4, 8], [2, 3, 5], [1, 3, 30]])
@pytest.mark.parametrize("lengths", [(13, 13), (13, 6)])
def test_it_has_the_models_outputs_and_gradients(
    needs: Needs, cell: str, reset: str, dilations: list[int], lengths: tuple[int, int]
) -> None:
    model = build(needs, cell=cell, reset=reset, dilations=dilations)
    naive = NaiveDilatedRNN(model)
    x = torch.randn(2, 13, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = {}, {}
    for one, into in ((naive, found), (model, expected)):
        given = x.clone().requires_grad_()
        outputs = one(given, torch.tensor(lengths)).outputs
        into |= gradients(one, outputs, given) | {"outputs": outputs}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not library.available(), reason="no compiled kernels here")
@pytest.mark.parametrize(
    ("dilations", "by_kernels", "plain"),
    [
        ([1, 2, 4, 8], [16], [14, 16, 16]),
        ([1, 2, 3], [16], [14, 15]),
        ([1, 3], [15], [15]),
        ([1, 13], [], []),
    ],
)
def test_beside_it_the_model_copies_little(
    dilations: list[int], by_kernels: list[int], plain: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding is a copy of all states and of their gradient; a kernel computes none, so one serves all layers."""
    model = build("steps", cell="lstm", dilations=dilations, hidden_size=3)
    padded, steps = [], []

    def pad(x: Tensor, widths: tuple[int, ...]) -> Tensor:
        if len(widths) == 6:  # of the time axis
            padded.append(len(x) + widths[-1])
        return functional_pad(x, widths)

    def run_fused(layer: nn.Module, x: Tensor, lengths: Tensor, state: object, **options: Any) -> LayerRun:
        steps.append(int(lengths.sum()))
        return fused.run_fused(layer, x, lengths, state, **options)

    functional_pad = nn.functional.pad
    monkeypatch.setattr(nn.functional, "pad", pad)
    monkeypatch.setattr(dilated, "run_fused", run_fused)
    x = torch.ones(2, 13, 2, dtype=torch.float64)
    model(x)
    assert (padded, steps) == (by_kernels, [2 * 13] * len(dilations))
    padded.clear()
    monkeypatch.setattr(kernels, "fused", lambda *_: False)
    model(x)
    assert padded == plain


@pytest.mark.parametrize("needs", ["summary", "steps"])
@pytest.mark.parametrize(("cell", "reset"), CELLS)
@pytest.mark.parametrize("dilations", [[1, 2, 4], [2, 3, 5], [1, 3, 30]])
def test_the_model_without_kernels_is_the_same(
    needs: Needs, cell: str, reset: str, dilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(needs, cell=cell, reset=reset, dilations=dilations)
    x = torch.randn(
        2, 13, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True
    )
    naive, lengths = NaiveDilatedRNN(model), torch.tensor([13, 6])
    expected = model(x, lengths).outputs
    monkeypatch.setattr(kernels, "fused", lambda *_: False)
    outputs = model(x, lengths).outputs
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    wanted = gradients(model, outputs, x)
    for name, value in gradients(naive, naive(x, lengths).outputs, x).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-10, atol=1e-10)


def test_it_copies_the_weights() -> None:
    model = build("summary", cell="lstm", dilations=[1, 2, 4])
    naive = NaiveDilatedRNN(model)
    assert naive.parameter_count == model.parameter_count
    x = torch.ones(1, 9, 2, dtype=torch.float64)
    before = naive(x).outputs
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(naive(x).outputs, before)


def test_every_layer_runs_once_over_slices_that_stand_in_the_batch() -> None:
    layer = nn.RNN(1, 1)
    given = []
    layer.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    all_states(layer, torch.arange(10.0).view(5, 2, 1), 3)
    assert [x[:, :, 0].tolist() for x in given] == [[[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 0, 0]]]


def test_no_kernel_takes_part() -> None:
    for cell, reset in CELLS:
        seen = []
        naive = NaiveDilatedRNN(build("summary", cell=cell, reset=reset, dilations=[1, 2, 4]))
        for layer in naive.dilated.layers:
            layer.register_forward_pre_hook(lambda *_, seen=seen: seen.append(kernels.ready()))
        naive(torch.ones(1, 9, 2, dtype=torch.float64))
        assert seen == [False] * 3
    assert kernels.chosen() == "auto"


def test_all_steps_of_all_layers_are_counted() -> None:
    model = NaiveDilatedRNN(build("summary", cell="lstm", dilations=[1, 2, 4]))
    # T = 13 is 14 steps with the padding of dilation 2, and 16 with that of dilation 4
    assert model.encoder_flops(13) == 2 * 4 * (13 * 3 * (2 + 3) + 14 * 4 * (3 + 4) + 16 * 5 * (4 + 5))
    assert model.flops(13) == model.encoder_flops(13) + 2 * 5 * 3
