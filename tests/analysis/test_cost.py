"""Parameters and FLOPs against numbers worked out by hand."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from seqpyramid.analysis.cost import FlopCount, count_parameters, flops
from seqpyramid.analysis.speed import ReferenceLSTM
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import DataError
from seqpyramid.models import MODELS
from seqpyramid.models.base import Encoding, SequenceModel
from tests.models.tiny import tiny_config

SPEC = TaskSpec(input_size=3, outputs=5)
Kind = type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]


class Stack(SequenceModel):
    """A torch recurrent stack with its FLOPs as the gates' products."""

    gates: ClassVar[dict[Kind, int]] = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}

    def __init__(self, spec: TaskSpec, kind: Kind, hidden_size: int, layers: int) -> None:
        super().__init__(spec, summary_size=hidden_size)
        self.recurrent = kind(spec.input_size, hidden_size, num_layers=layers, batch_first=True)

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        steps, _ = self.recurrent(x)
        return Encoding(summary=steps[:, -1], steps=steps)

    def encoder_flops(self, time: int) -> int:
        cell = self.recurrent
        inputs = [cell.input_size] + [cell.hidden_size] * (cell.num_layers - 1)
        return sum(
            time * 2 * self.gates[type(cell)] * cell.hidden_size * (i + cell.hidden_size) for i in inputs
        )


class Branching(Stack):
    """Cannot run without values."""

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        return super().encode(-x if x.sum().item() > 0 else x, lengths)


class Wrong(Stack):
    def encoder_flops(self, time: int) -> int:
        return super().encoder_flops(time) + 2


class Broken(Stack):
    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        raise RuntimeError("a fault of the model")


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_counted_is_the_gates_products(kind: Kind, gates: int, layers: int) -> None:
    found = flops(Stack(SPEC, kind, 10, layers), 7)
    below = 7 * 2 * gates * 10 * (3 + 10)
    above = 7 * 2 * gates * 10 * (10 + 10)
    assert found.counted == below + (layers - 1) * above + 2 * 10 * 5
    assert found.agrees


def test_training_is_three_forward_passes() -> None:
    assert flops(Stack(SPEC, nn.RNN, 10, 1), 7).training == 3 * (7 * 2 * 10 * 13 + 2 * 10 * 5)


def test_a_head_that_reads_every_step_is_counted_every_step() -> None:
    spec = TaskSpec(input_size=3, outputs=5, needs="steps")
    found = flops(Stack(spec, nn.GRU, 10, 1), 7)
    assert found.agrees
    assert found.closed_form == 7 * (2 * 3 * 10 * 13 + 2 * 10 * 5)


def test_the_reference_is_a_hundred_unit_lstm() -> None:
    model = ReferenceLSTM(TaskSpec(input_size=1, outputs=10))
    by_hand = 28 * 2 * 400 * 101 + 2 * 100 * 10
    assert flops(model, 28) == FlopCount(closed_form=by_hand, counted=by_hand)
    # torch's LSTM keeps two bias vectors a gate
    assert count_parameters(model)["total"] == 4 * 100 * (1 + 100 + 2) + 1010


def test_a_wrong_closed_form_is_seen() -> None:
    found = flops(Wrong(SPEC, nn.LSTM, 10, 1), 7)
    assert found.counted is not None
    assert found.closed_form == found.counted + 2
    assert not found.agrees


def test_a_model_that_branches_on_values_has_no_count() -> None:
    found = flops(Branching(SPEC, nn.LSTM, 10, 1), 7)
    assert found.counted is None
    assert found.closed_form > 0
    assert not found.agrees


def test_a_fault_of_the_model_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="a fault of the model"):
        flops(Broken(SPEC, nn.LSTM, 10, 1), 7)


@pytest.mark.parametrize("time", [0, -2])
def test_no_steps_are_refused(time: int) -> None:
    with pytest.raises(DataError, match="at least one step"):
        flops(Stack(SPEC, nn.LSTM, 10, 1), time)


def test_the_model_is_left_where_it_was() -> None:
    model = Stack(SPEC, nn.LSTM, 10, 1)
    flops(model, 3)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_parameters_by_part() -> None:
    model = Stack(SPEC, nn.GRU, 10, 1)
    model.scale = nn.Parameter(torch.ones(2))
    assert count_parameters(model) == {
        "total": 3 * 10 * (3 + 10 + 2) + 55 + 2,
        "by_part": {"scale": 2, "head": 55, "recurrent": 3 * 10 * (3 + 10 + 2)},
    }


def test_frozen_numbers_are_not_parameters_and_shared_ones_count_once() -> None:
    model = Stack(SPEC, nn.GRU, 10, 1)
    model.again = model.head
    before = count_parameters(model)
    assert before["total"] == model.parameter_count
    assert before["by_part"]["head"] == 55
    assert "again" not in before["by_part"]
    model.head.linear.weight.requires_grad_(False)
    assert count_parameters(model)["by_part"]["head"] == 5


@pytest.mark.parametrize("name", MODELS)
def test_every_models_parts_add_up(name: str) -> None:
    model = tiny_config(name).build(SPEC)
    found = count_parameters(model)
    assert found["total"] == sum(found["by_part"].values()) == model.parameter_count > 0
