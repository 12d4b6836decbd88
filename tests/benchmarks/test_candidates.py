"""What takes part in the rounds, and on which twin, form and threads."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.candidates import (
    Setting,
    all_naive_forms,
    candidate,
    configured,
    on_threads,
    plain,
    references,
    rows,
)
from benchmarks.naive_dilated import NaiveDilatedRNN
from seqpyramid import kernels
from seqpyramid.analysis.speed import ReferenceLSTM
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.kernels import library
from seqpyramid.models.base import ALL_THREADS, Encoding
from seqpyramid.recipe import load

SPEC = TaskSpec(input_size=2, outputs=3)
SETTING = Setting(spec=SPEC, batch_size=2, time=3, device=torch.device("cpu"))


class Watched(ReferenceLSTM):
    """Notes what is in force when it runs."""

    step_loop = True

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.seen: list[tuple[str, int, int]] = []

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        self.seen.append((kernels.chosen(), torch.get_num_threads(), library.threads()))
        return super().encode(x, lengths, state)


def test_the_references_have_one_layer_and_three() -> None:
    found = references(SETTING)
    assert [one.name for one in found] == ["torch.nn.LSTM(2,100)", "torch.nn.LSTM(2,100), three layers"]
    one = 4 * 100 * (2 + 100 + 2) + 303
    assert [one.parameters for one in found] == [one, one + 2 * 4 * 100 * (100 + 100 + 2)]
    # three steps of four gates that read two inputs and 100 states, and the head; backward twice as many
    assert found[0].training_flops == 3 * (3 * 2 * 400 * 102 + 2 * 100 * 3)


def test_a_twin_runs_without_kernels_and_leaves_them_as_they_were() -> None:
    model = Watched(SPEC)
    fast = candidate("a", model, SETTING)
    twin = plain(fast)
    assert (twin.name, twin.parameters, twin.forward_flops) == (
        "a, plain",
        fast.parameters,
        fast.forward_flops,
    )
    for one in (fast, twin):
        one.training()
        one.inference()
    assert [mode for mode, *_ in model.seen] == ["auto", "auto", "plain", "plain"]
    assert kernels.chosen() == "auto"


def test_threads_are_chosen_as_in_training_and_given_back() -> None:
    model = Watched(SPEC)
    one = candidate("a", model, SETTING)
    before = torch.get_num_threads()
    on_threads(one).training()
    on_threads(one, 3).inference()
    # a loop over steps is trained with one thread for torch's operations and all for the kernels
    assert [threads for _, *threads in model.seen] == [[1, ALL_THREADS], [3, 3]]
    assert torch.get_num_threads() == library.threads() == before


def test_a_dilated_rnn_has_a_naive_form_for_each_reading() -> None:
    recipe = load("pmnist")
    setting = Setting(
        spec=TaskSpec(input_size=1, outputs=10), batch_size=2, time=7, device=torch.device("cpu")
    )
    found = all_naive_forms(recipe, ["lstm_s", "dilated_lstm"], setting)
    assert [(one.name, one.model.spec.needs if one.model else None) for one in found] == [
        ("dilated_lstm, naive form", "summary"),
        ("dilated_lstm, every step read", "steps"),
        ("dilated_lstm, every step read, naive form", "steps"),
    ]
    assert [isinstance(one.model, NaiveDilatedRNN) for one in found] == [True, False, True]
    for one in found:
        one.training()
        one.inference()
    (ours,) = rows(recipe, ["dilated_lstm"], setting)
    assert ours.forward_flops is not None
    assert found[0].forward_flops is not None
    assert found[0].forward_flops > 2 * ours.forward_flops  # the cone saves work even over seven steps


def test_naive_forms_of_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"--naive: none of lstm_s is a Dilated RNN"):
        all_naive_forms(load("pmnist"), ["lstm_s"], SETTING)


def test_a_row_may_have_other_options() -> None:
    recipe = load("pmnist")
    changed = configured(recipe, "tp_rnn_s:recompute=true:hidden_size=7")
    assert changed == recipe.plan("tp_rnn_s").model.model_copy(update={"recompute": True, "hidden_size": 7})
    for name, sentence in (
        ("tp_rnn_s:hidden_size=many", "tp_rnn_s:hidden_size=many: hidden_size: "),
        ("tp_rnn_s:layer=2", "tp_rnn_s:layer=2: layer: "),
    ):
        with pytest.raises(RecipeError, match=f"^{sentence}"):
            configured(recipe, name)
