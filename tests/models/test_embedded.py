"""The embedding and the input dropout: what they compute, and what is the inner model's alone."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.base import use_threads
from seqpyramid.models.bidirectional import BidirectionalConfig
from seqpyramid.models.embedded import Embedded, EmbeddedConfig
from seqpyramid.papers import count, printed
from seqpyramid.recipe import load

STEPS = TaskSpec(input_size=4, outputs=3, needs="steps")
LENGTHS = torch.tensor([7, 1, 4])


def config(
    name: str = "rnn", *, size: int | None = 2, dropout: float = 0.0, **inner: object
) -> EmbeddedConfig:
    section = {"inner": {"name": name} | inner, "size": size, "dropout": dropout}
    return EmbeddedConfig.model_validate_json(json.dumps(section))


def build(name: str = "rnn", spec: TaskSpec = STEPS, **fields: object) -> Embedded:
    torch.manual_seed(0)
    fields = {"hidden_size": 3} | fields
    model = config(name, **fields).build(spec).double().eval()  # type: ignore[arg-type]
    assert isinstance(model, Embedded)
    return model


def inputs() -> Tensor:
    return torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_equals_the_equations_in_numpy() -> None:
    model, x = build(), inputs()
    assert model.embedding is not None
    E = model.embedding.weight.detach().numpy()
    U, W, b = [p.detach().numpy() for p in model.inner.parameters()][:3]
    V, v = (p.detach().numpy() for p in model.head.parameters())
    outputs = model(x, LENGTHS).outputs.detach().numpy()
    for row, T in enumerate(LENGTHS.tolist()):
        h = np.zeros(3)
        for t in range(T):
            h = np.tanh(U @ (E @ x[row, t].numpy()) + W @ h + b)
            np.testing.assert_allclose(outputs[row, t], V @ h + v, rtol=1e-10, atol=1e-10)


def test_the_identity_as_embedding_is_the_inner_model() -> None:
    model = build(size=4)
    assert model.embedding is not None
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(4))
    torch.manual_seed(0)
    inner = config().inner.model_copy(update={"hidden_size": 3}).build(STEPS).double().eval()
    expected = inner(inputs(), LENGTHS)
    found = model(inputs(), LENGTHS)
    torch.testing.assert_close(found.outputs, expected.outputs, rtol=0, atol=0)
    torch.testing.assert_close(found.summary, expected.summary, rtol=0, atol=0)


def test_a_one_hot_input_reads_a_column() -> None:
    model = build("lstm", size=5)
    assert model.embedding is not None
    x = torch.eye(4, dtype=torch.float64)[None]
    column = model.embedding.weight.T[None]
    assert torch.equal(model(x).steps, model.inner.encode(column, torch.tensor([4]), None).steps)


class Seen(torch.nn.Module):
    """Stands for an inner model and keeps what it reads."""

    def encode(self, x: Tensor, lengths: Tensor, state: object = None) -> Tensor:
        return x


def test_dropout_is_of_the_inputs_anew_each_step_and_in_training_alone() -> None:
    model = build(size=None, dropout=0.25).float()
    model.inner = Seen()  # type: ignore[assignment]
    ones = torch.ones(50, 80, 4)
    lengths = torch.full((50,), 80)
    assert torch.equal(model.eval().encode(ones, lengths), ones)
    read = model.train().encode(ones, lengths)
    assert sorted(set(read.flatten().tolist())) == [0.0, pytest.approx(4 / 3)]
    assert (read == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(read[:, 0], read[:, 1])


def test_dropout_comes_behind_the_embedding() -> None:
    model = build(size=64, dropout=0.5).float().train()
    model.inner = Seen()  # type: ignore[assignment]
    read = model.encode(torch.ones(1, 1, 4), torch.tensor([1]))
    assert 0 < int((read == 0).sum()) < 64


def test_parameters_flops_and_checkpoint() -> None:
    model = build("lstm", size=5)
    inner = build("lstm", size=None, dropout=0.1, spec=TaskSpec(input_size=5, outputs=3, needs="steps"))
    assert model.parameter_count == inner.parameter_count + 4 * 5
    assert model.flops(9) == inner.flops(9) + 9 * 2 * 4 * 5
    keys = list(model.state_dict())
    assert len([key for key in keys if "head" in key]) == 2
    assert "embedding.bias" not in keys


def test_state_progress_and_threads_are_the_inner_models() -> None:
    spec = TaskSpec(input_size=4, outputs=3, needs="steps", carry_state=True)
    model = config(
        "hm_lstm",
        hidden_sizes=[3, 3],
        embedding_size=4,
        slope_rate=0.5,
        layer_norm=True,  # no kernel has layer norm
    ).build(spec)
    assert isinstance(model, Embedded)
    model.set_progress(3, 100)
    assert model.inner.slope.item() == 2.5
    assert model.step_loop
    assert not build().step_loop
    before = torch.get_num_threads()
    use_threads(model, None)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
    assert len(model(inputs().float()).state) == 2


def test_what_the_inner_model_promises_is_promised() -> None:
    assert config().carries_state
    assert not config("dilated_rnn", hidden_size=3, layers=2).carries_state
    assert not config("hm_lstm").exact_gradient
    both = EmbeddedConfig(inner=BidirectionalConfig(inner=config().inner), size=2)
    assert not both.causal
    assert config("tp_rnn", pyramid_length=[4], granularity=[2]).emits == frozenset({"summary"})


@pytest.mark.parametrize(
    ("fields", "spec", "message"),
    [
        ({"size": None}, STEPS, "size: there is neither an embedding nor dropout"),
        ({"dropout": 0.5, "name": "lstm", "layers": 1}, STEPS, None),
        (
            {"name": "dilated_rnn", "layers": 3},
            TaskSpec(input_size=4, outputs=3, needs="steps", carry_state=True),
            "model 'embedded' cannot carry state",
        ),
        (
            {"name": "tp_rnn", "pyramid_length": [4], "granularity": [2]},
            STEPS,
            "model 'embedded' emits summary, but the task needs steps",
        ),
        (
            {"name": "dilated_rnn", "layers": 3},
            TaskSpec(input_size=4, outputs=3, needs="steps", max_length=4),
            "inner.layers: layer 3 has dilation 4",
        ),
    ],
)
def test_what_cannot_be_is_said_once(fields: dict[str, object], spec: TaskSpec, message: str | None) -> None:
    chosen = config(**fields)  # type: ignore[arg-type]
    if message is None:
        assert chosen.problems(spec) == {}
        return
    with pytest.raises(RecipeError, match=message) as caught:
        chosen.build(spec)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("recipe", "row", "symbols", "derived"),
    [
        ("ptb_char_hm_lstm", "hm_lstm", 50, 8_434_100),
        ("text8_hm_lstm", "hm_lstm", 27, 36_261_405),
        ("enwik8_hm_lstm", "hm_lstm", 205, 36_648_911),
    ],
)
def test_hm_lstm_counts_by_hand(recipe: str, row: str, symbols: int, derived: int) -> None:
    """8.43M, 36.3M and 36.6M before the gains of the layer normalization; none is printed."""
    H, E = (512, 512) if recipe.startswith("ptb") else (1024, 2048)
    rows = 4 * H + 1
    cells = rows * (H + H + 128) + rows * 3 * H + (rows - 1) * 2 * H + rows + rows + rows - 1
    output = 3 * 3 * H + 3 * H * E
    total = 128 * symbols + cells + output + E * symbols + symbols
    spec = TaskSpec(input_size=symbols, outputs=symbols, needs="steps", carry_state=True)
    assert load(recipe).models[row].build(spec).parameter_count == total == derived


def test_counts_of_dilated_rnns_table_2() -> None:
    """As printed, or above it where the printed number fits four layers."""
    recipe = load("ptb_char_dilated")
    assert recipe.paper is not None
    cells = printed(recipe.paper.paper, recipe.paper.table, recipe.paper.column)
    spec = recipe.task.build().spec
    found = {
        cell.row: (recipe.models[cell.row].build(spec).parameter_count, count(cell.parameters_printed))
        for cell in cells
        if cell.row is not None and cell.parameters_printed is not None
    }
    misses = {row for row, (ours, theirs) in found.items() if abs(ours - theirs) > 0.03 * theirs}
    assert misses == {"lstm_5x256", "gru_5x256", "dilated_lstm", "dilated_gru"}
    assert len(found) == 9
    fits = recipe.models["dilated_gru_4x256"].build(spec).parameter_count
    assert fits == pytest.approx(found["dilated_gru"][1], rel=0.01)
