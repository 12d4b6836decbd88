"""The bidirectional wrapper: what each half reads, what it must reduce to, and its nested section in a recipe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqpyramid.analysis.cost import flops
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.base import Encoding, SequenceModel, use_threads
from seqpyramid.models.bidirectional import Bidirectional, BidirectionalConfig, reverse
from seqpyramid.models.rnn import LSTMConfig
from seqpyramid.recipe import load, plan_from_yaml

SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
LENGTHS = torch.tensor([7, 1, 4])


def config(name: str = "lstm", **inner: object) -> BidirectionalConfig:
    sized: dict[str, object] = {} if name in ("bidirectional", "tdnn") else {"hidden_size": 3}
    return BidirectionalConfig.model_validate_json(json.dumps({"inner": {"name": name} | sized | inner}))


def build(spec: TaskSpec = SPEC, name: str = "lstm", **inner: object) -> Bidirectional:
    torch.manual_seed(0)
    model = config(name, **inner).build(spec).double().eval()
    assert isinstance(model, Bidirectional)
    return model


def inputs() -> Tensor:
    return torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- what it computes ------------------------------------------------------------------------------------------


def test_equals_the_equations_in_numpy() -> None:
    model, x = build(STEPS, name="rnn"), inputs()
    halves = [
        [p.detach().numpy() for p in half.parameters()][:3] for half in (model.forwards, model.backwards)
    ]
    output = model(x, LENGTHS)
    V, v = (p.detach().numpy() for p in model.head.parameters())
    for row, T in enumerate(LENGTHS.tolist()):
        xs = x[row].numpy()
        ahead, back = np.zeros((T, 3)), np.zeros((T, 3))
        h = np.zeros(3)
        for t in range(T):
            U, W, b = halves[0]
            h = ahead[t] = np.tanh(U @ xs[t] + W @ h + b)
        h = np.zeros(3)
        for t in range(T - 1, -1, -1):
            U, W, b = halves[1]
            h = back[t] = np.tanh(U @ xs[t] + W @ h + b)
        expected = np.concatenate([ahead, back], axis=1)
        close = {"rtol": 1e-10, "atol": 1e-10}
        np.testing.assert_allclose(output.steps[row, :T].detach().numpy(), expected, **close)
        np.testing.assert_allclose(output.outputs[row, :T].detach().numpy(), expected @ V.T + v, **close)
        summary = np.concatenate([ahead[T - 1], back[0]])
        np.testing.assert_allclose(output.summary[row].detach().numpy(), summary, **close)
        assert output.steps[row, T:].abs().sum() == 0


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_one_layer_is_torchs_bidirectional_layer(name: str) -> None:
    model = build(STEPS, name=name, bias="double")
    reference = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[name](
        2, 3, batch_first=True, bidirectional=True
    )
    weights = {}
    for half, suffix in ((model.forwards, ""), (model.backwards, "_reverse")):
        weights |= {f"{key}{suffix}": value for key, value in half.layers[0].state_dict().items()}
    reference.double().load_state_dict(weights)
    packed = pack_padded_sequence(inputs(), LENGTHS, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(reference(packed)[0], batch_first=True)
    torch.testing.assert_close(model(inputs(), LENGTHS).steps, expected, rtol=1e-12, atol=1e-12)


def test_a_reversed_sequence_and_exchanged_halves_give_the_exchanged_summary() -> None:
    model = build()
    forwards, backwards = model(inputs(), LENGTHS).summary.chunk(2, dim=1)
    model.forwards, model.backwards = model.backwards, model.forwards
    exchanged = model(reverse(inputs(), LENGTHS), LENGTHS).summary
    torch.testing.assert_close(exchanged, torch.cat([backwards, forwards], dim=1), rtol=1e-12, atol=1e-12)


def test_reverse_is_its_own_inverse_and_leaves_padding_in_place() -> None:
    x = inputs()
    torch.testing.assert_close(reverse(reverse(x, LENGTHS), LENGTHS), x, rtol=0, atol=0)
    for row, T in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(reverse(x, LENGTHS)[row, :T], x[row, :T].flip(0), rtol=0, atol=0)
        torch.testing.assert_close(reverse(x, LENGTHS)[row, T:], x[row, T:], rtol=0, atol=0)
    full = torch.full((3,), 7)
    torch.testing.assert_close(reverse(x, full), x.flip(1), rtol=0, atol=0)


def test_an_output_depends_on_the_steps_after_it() -> None:
    x = inputs().requires_grad_()
    build(STEPS)(x, LENGTHS).outputs[2, 0].sum().backward()
    assert (x.grad[2, :4].abs().sum(-1) > 0).all()
    assert x.grad[2, 4:].abs().sum() + x.grad[:2].abs().sum() == 0


# --- two of everything ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inner", "encoder"),
    [({"name": "lstm"}, 4 * 3 * (2 + 3 + 1)), ({"name": "rnn", "layers": 2}, 3 * 6 + 3 * 7)],
)
def test_parameters(inner: dict[str, object], encoder: int) -> None:
    assert build(**inner).parameter_count == 2 * encoder + 2 * 3 * 3 + 3
    assert not [name for name, _ in build(**inner).named_parameters() if "head" in name[4:]]


def test_parameters_on_mnist() -> None:
    spec = TaskSpec(input_size=1, outputs=10)
    assert config(hidden_size=100).build(spec).parameter_count == 2 * 40_800 + 2 * 100 * 10 + 10 == 83_610


def test_the_halves_start_differently() -> None:
    model = build()
    pairs = list(zip(model.forwards.parameters(), model.backwards.parameters(), strict=True))
    assert all(not torch.equal(a, b) for a, b in pairs if a.requires_grad)


def test_the_classifier_starts_as_the_inner_models_would() -> None:
    bias = build(head_init="released_tp_rnn").head.linear.bias
    torch.testing.assert_close(bias, torch.full_like(bias, 0.1), rtol=1e-6, atol=0)
    assert build().head.linear.bias.unique().numel() == 3


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gru", {"layers": 2}),
        ("tp_rnn", {"pyramid_length": [4], "granularity": [2]}),
        ("tdnn", {"channels": [3, 2], "kernel_sizes": [3, 2]}),
        ("tree", {}),
    ],
)
def test_flops_are_those_of_both_halves(name: str, fields: dict[str, object]) -> None:
    model = build(name=name, **fields).float()
    found = flops(model, 9)
    assert found.counted == found.closed_form
    assert model.encoder_flops(9) == 2 * model.forwards.encoder_flops(9)


class Talkative(SequenceModel):
    """An encoder with everything that an encoder may return."""

    def __init__(self, spec: TaskSpec, loss: float | None) -> None:
        super().__init__(spec, summary_size=2)
        self.loss, self.progress = loss, (0, 0)

    def encode(self, x: Tensor, lengths: Tensor, state: object = None) -> Encoding:
        aux = None if self.loss is None else x.new_tensor(self.loss)
        return Encoding(x[:, 0], aux_loss=aux, diagnostics={"first": x[0, 0, 0]})

    def encoder_flops(self, time: int) -> int:
        return time

    def set_progress(self, epoch: int, step: int) -> None:
        self.progress = (epoch, step)


def test_losses_diagnostics_and_progress_of_both_halves() -> None:
    model = Bidirectional(SPEC, forwards=Talkative(SPEC, 1.5), backwards=Talkative(SPEC, 2.0)).double()
    output = model(inputs(), LENGTHS)
    assert output.aux_loss.item() == 3.5
    expected = {"forwards_first": inputs()[0, 0, 0], "backwards_first": inputs()[0, 6, 0]}
    assert {key: value.item() for key, value in output.diagnostics.items()} == expected
    model.set_progress(2, 30)
    assert model.forwards.progress == model.backwards.progress == (2, 30)
    silent = Bidirectional(SPEC, forwards=Talkative(SPEC, None), backwards=Talkative(SPEC, None))
    assert silent.double()(inputs()).aux_loss is None


def test_one_thread_where_the_inner_model_is_a_step_loop() -> None:
    stepped = build(name="peephole_lstm")
    assert stepped.step_loop
    assert not build().step_loop
    before = torch.get_num_threads()
    use_threads(stepped, None)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_a_straight_through_gradient_inside_is_no_exact_one_outside() -> None:
    class Guessing(LSTMConfig):
        @property
        def exact_gradient(self) -> bool:
            return False

    assert config().exact_gradient
    assert not BidirectionalConfig(inner=Guessing()).exact_gradient


# --- what it refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (
            {"name": "bidirectional", "inner": {"name": "lstm"}},
            "inner: 'bidirectional' reads both directions",
        ),
        ({"dropout": 0.5}, "inner.dropout: acts between layers"),
        (
            {"name": "tp_rnn", "pyramid_length": [60], "granularity": [2]},
            "inner.pyramid_length: L of layer 1 is 60, longer than",
        ),
    ],
)
def test_what_the_inner_model_cannot_do_is_said_with_its_place(inner: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        config(**inner).build(TaskSpec(input_size=2, outputs=3, max_length=50))
    assert len(caught.value.problems) == 1


def test_it_needs_the_end_of_a_sequence_so_it_carries_no_state() -> None:
    with pytest.raises(
        RecipeError, match="cannot carry state from batch to batch: its backward half"
    ) as caught:
        config().build(TaskSpec(input_size=2, outputs=3, carry_state=True))
    assert len(caught.value.problems) == 1


def test_steps_of_an_inner_model_without_steps_are_refused_once() -> None:
    with pytest.raises(
        RecipeError, match="'bidirectional' emits summary, but the task needs steps"
    ) as caught:
        config(name="tp_rnn", pyramid_length=[4], granularity=[2]).build(STEPS)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("inner", "where", "message"),
    [
        ({"name": "lstn"}, ("inner", "name"), "unknown model 'lstn'; did you mean 'lstm'?"),
        ({"hidden_size": 3}, ("inner", "name"), "Field required"),
        ({"name": 3}, ("inner", "name"), "valid string"),
        ({"name": "lstm", "hidden_size": -1}, ("inner", "hidden_size"), "greater than 0"),
        ({"name": "lstm", "hiden_size": 1}, ("inner", "hiden_size"), "not permitted"),
        ({"name": "lstm", "hidden_size": 3.5}, ("inner", "hidden_size"), "integer"),
        ("lstm", ("inner",), "object"),
    ],
)
def test_a_wrong_inner_section_is_refused_at_its_place(
    inner: object, where: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        BidirectionalConfig.model_validate_json(json.dumps({"inner": inner}))
    (fault,) = caught.value.errors()
    assert fault["loc"] == where
    assert message in fault["msg"]


def test_config_survives_every_way_of_writing_it() -> None:
    chosen = config(name="tp_rnn", pyramid_length=[4], granularity=[2])
    assert chosen.model_dump(mode="json")["inner"]["pyramid_length"] == [4]
    assert BidirectionalConfig.model_validate_json(chosen.model_dump_json()) == chosen
    assert BidirectionalConfig.model_validate(chosen.model_dump()) == chosen
    assert BidirectionalConfig(inner=chosen.inner) == chosen


RECIPE = """
title: a bidirectional row
task: {name: masked_addition, length: 20}
train: {lr: 1e-3, batch_size: 4, epochs: 1}
models:
  both:
    name: bidirectional
    inner: {name: %s}
model: both
"""


def recipe(folder: Path, inner: str) -> Path:
    path = folder / "both.yaml"
    path.write_text(RECIPE % inner)
    return path


def test_a_recipe_round_trip_keeps_the_inner_model_and_its_fingerprint(tmp_path: Path) -> None:
    path = recipe(tmp_path, "tp_rnn, hidden_size: 5, pyramid_length: [4], granularity: [2]")
    plan = load(str(path)).plan("both")
    (tmp_path / "plan.yaml").write_text(plan.to_yaml())
    again = plan_from_yaml(tmp_path / "plan.yaml")
    assert again.model == plan.model
    assert again.fingerprint == plan.fingerprint
    other = load(str(path), overrides=["models.both.inner.hidden_size=6"]).plan("both")
    assert other.fingerprint["model"] != plan.fingerprint["model"]


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("lstn", "models.both.inner.name: unknown model 'lstn'; did you mean 'lstm'?"),
        ("lstm, dropout: 0.5", "models.both.inner.dropout: acts between layers"),
        ("lstm, hidden_size: 0", "models.both.inner.hidden_size: must be above 0, not 0"),
        ("lstm, hiden_size: 3", "models.both.inner.hiden_size: unknown key; did you mean 'hidden_size'?"),
    ],
)
def test_a_recipe_names_the_path_of_a_fault_inside(tmp_path: Path, inner: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(str(recipe(tmp_path, inner)))
    (problem,) = caught.value.problems
    assert message in problem
