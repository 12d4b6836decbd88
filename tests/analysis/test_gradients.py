"""Gradient flow where it is known in closed form, and its picture."""

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqpyramid.analysis.gradients import gradient_flow, plot_gradient_flow
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError, ResourceError
from seqpyramid.models import MODELS
from seqpyramid.models.base import Encoding, SequenceModel
from tests.models.tiny import tiny_config


class Linear(SequenceModel):
    """h_t = a h_{t-1} + W x_t, with dropout that evaluation mode must switch off."""

    def __init__(self, a: float, weight: Tensor, reads: int | None = None) -> None:
        super().__init__(TaskSpec(input_size=weight.shape[1], outputs=2), summary_size=weight.shape[0])
        self.a = a
        self.reads = reads
        self.weight = nn.Parameter(weight)
        self.dropout = nn.Dropout(0.5)

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        h = x.new_zeros(len(x), len(self.weight))
        for x_t in x.unbind(1)[: self.reads]:
            h = self.a * h + self.dropout(x_t) @ self.weight.T
        return Encoding(summary=h)

    def encoder_flops(self, time: int) -> int:
        return time * 2 * self.weight.numel()


def test_a_linear_recurrence_decays_by_its_factor() -> None:
    flow = gradient_flow(Linear(0.9, torch.ones(1, 1)), time=60, batch=3)
    expected = 0.9 ** torch.arange(59, -1, -1, dtype=torch.float64)
    assert flow.shape == (60,)
    torch.testing.assert_close(flow, expected, rtol=1e-12, atol=0)


def test_gradients_below_float32_are_seen() -> None:
    flow = gradient_flow(Linear(0.01, torch.ones(1, 1)), time=60, batch=1)
    torch.testing.assert_close(flow[0].log10().item(), -118.0, rtol=1e-10, atol=0)


def test_the_direction_is_a_unit_and_the_norm_is_over_features() -> None:
    # For an orthonormal W the norm of uW is the norm of u: 1, in however many dimensions.
    orthonormal = torch.linalg.qr(torch.arange(1.0, 26).reshape(5, 5).sin().double())[0]
    flow = gradient_flow(Linear(1.0, orthonormal), time=4, batch=2)
    torch.testing.assert_close(flow, torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_mean_is_over_the_batch() -> None:
    one = gradient_flow(Linear(0.5, torch.ones(1, 1)), time=5, batch=1)
    torch.testing.assert_close(gradient_flow(Linear(0.5, torch.ones(1, 1)), time=5, batch=7), one)


def test_steps_that_nothing_reads_have_none() -> None:
    flow = gradient_flow(Linear(0.5, torch.ones(1, 1), reads=3), time=5, batch=2)
    assert flow.tolist() == [0.25, 0.5, 1.0, 0.0, 0.0]


def test_the_model_is_left_as_it_was() -> None:
    model = Linear(0.5, torch.ones(1, 1)).train()
    gradient_flow(model, time=5, batch=2)
    assert model.training
    assert model.weight.dtype == torch.float32
    assert model.weight.grad is None


def test_the_same_seed_gives_the_same_curve() -> None:
    model = MODELS["lstm"].model_validate({}).build(TaskSpec(input_size=1, outputs=2))
    first = gradient_flow(model, time=6, batch=2)
    assert torch.equal(first, gradient_flow(model, time=6, batch=2))
    assert not torch.equal(first, gradient_flow(model, time=6, batch=2, seed=1))


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(RecipeError, match="time \\(steps\\) must be at least 1"):
        gradient_flow(Linear(0.5, torch.ones(1, 1)), time=0, batch=2)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_curve(name: str) -> None:
    torch.manual_seed(0)
    model = tiny_config(name).build(TaskSpec(input_size=2, outputs=3))
    flow = gradient_flow(model, time=9, batch=2)
    assert (flow.shape, flow.dtype) == ((9,), torch.float64)
    assert bool(torch.isfinite(flow).all())
    assert flow[-1] > 0, "the last step should reach the summary"
    if name in ("rnn", "lstm", "gru", "tp_rnn"):
        assert bool((flow > 0).all()), "every step should reach the summary"


def test_the_picture_is_a_png_of_some_size(tmp_path: Path) -> None:
    path = tmp_path / "new" / "flow.png"
    curves = {"steep": 0.5 ** torch.arange(30.0).flip(0), "dead": torch.zeros(10)}
    plot_gradient_flow(curves, path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 600
    assert height > 300
    plot_gradient_flow({"flat": torch.ones(30)}, path)
    assert path.read_bytes() != content


def test_a_picture_that_cannot_be_drawn_or_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no gradient curve"):
        plot_gradient_flow({}, tmp_path / "flow.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write here"):
        plot_gradient_flow({"a": torch.ones(3)}, tmp_path / "file" / "flow.png")
