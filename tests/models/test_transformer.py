"""The Transformer against its equations in NumPy and torch's own layer, and its options."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import DataError, RecipeError
from seqpyramid.models.transformer import Transformer, TransformerConfig, sinusoids

Array = NDArray[np.float64]
SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
MNIST = TaskSpec(input_size=1, outputs=10, max_length=784)


def build(spec: TaskSpec = SPEC, **fields: object) -> Transformer:
    """With every parameter moved away from its start, so that none is 0 or 1."""
    torch.manual_seed(0)
    small = {"name": "transformer", "hidden_size": 6, "heads": 2, "layers": 2, "feedforward_size": 5}
    model = TransformerConfig.model_validate_json(json.dumps({**small, **fields})).build(spec).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    assert isinstance(model, Transformer)
    return model


def linear(layer: nn.Module, x: Array) -> Array:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def layer_norm(norm: nn.Module, x: Array) -> Array:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def numpy_positions(time: int, units: int) -> Array:
    p = np.zeros((time, units))
    for t in range(time):
        for k in range(units):
            angle = t / 10_000 ** (2 * (k // 2) / units)
            p[t, k] = np.sin(angle) if k % 2 == 0 else np.cos(angle)
    return p


def numpy_model(model: Transformer, u: Array, causal: bool) -> Array:
    """(T, F) -> (T, H), one head and one query after the other."""
    T, H = len(u), 6
    p = numpy_positions(T, H) if model.positions is None else model.positions.detach().numpy()[:T]
    x = linear(model.input, u) + p
    for layer in model.layers:
        q, k, v = np.split(linear(layer.query_key_value, layer_norm(layer.attention_norm, x)), 3, axis=-1)
        heads = np.zeros((T, H))
        for head in range(2):
            own = slice(3 * head, 3 * head + 3)
            for t in range(T):
                end = t + 1 if causal else T
                weights = np.exp(k[:end, own] @ q[t, own] / np.sqrt(3))
                heads[t, own] = weights @ v[:end, own] / weights.sum()
        x = x + linear(layer.attention_output, heads)
        inner = np.maximum(linear(layer.widen, layer_norm(layer.feedforward_norm, x)), 0)
        x = x + linear(layer.narrow, inner)
    return layer_norm(model.norm, x)


@pytest.mark.parametrize("attention", ["full", "causal"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_equals_the_equations_in_numpy(attention: str, positions: str) -> None:
    more = {"max_length": 9} if positions == "learned" else {}
    model = build(STEPS, attention=attention, positions=positions, **more)
    x, lengths = torch.randn(2, 8, 2, dtype=torch.float64), torch.tensor([8, 5])
    steps = model(x, lengths).steps.detach().numpy()
    for row, length in enumerate(lengths):
        expected = numpy_model(model, x[row, :length].numpy(), attention == "causal")
        np.testing.assert_allclose(steps[row, :length], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_layer_is_torchs_own(activation: str) -> None:
    ours = build(activation=activation).layers[0]
    theirs = nn.TransformerEncoderLayer(
        6, 2, 5, dropout=0.0, activation=activation, batch_first=True, norm_first=True
    ).double()
    pairs = {
        "self_attn.in_proj_": "query_key_value.",
        "self_attn.out_proj.": "attention_output.",
        "linear1.": "widen.",
        "linear2.": "narrow.",
        "norm1.": "attention_norm.",
        "norm2.": "feedforward_norm.",
    }
    own = ours.state_dict()
    theirs.load_state_dict({a + kind: own[b + kind] for a, b in pairs.items() for kind in ("weight", "bias")})
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x, None, causal=False), theirs(x), rtol=1e-12, atol=1e-12)


def test_without_positions_the_order_does_not_matter() -> None:
    model = build(positions="learned", max_length=7)
    x = torch.randn(1, 7, 2, dtype=torch.float64)
    turned = x.flip(1)
    assert not torch.allclose(model(x).summary, model(turned).summary)
    nn.init.zeros_(model.positions)
    torch.testing.assert_close(model(x).summary, model(turned).summary, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("units", [6, 5])
def test_sinusoids(units: int) -> None:
    found = sinusoids(torch.zeros(1, 300, units, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(found, numpy_positions(300, units), rtol=1e-10, atol=1e-10)
    half = sinusoids(torch.zeros(1, 300, units, dtype=torch.bfloat16)).numpy()
    np.testing.assert_allclose(half, found, atol=1e-4)


def test_learned_positions_serve_padding_but_not_longer_sequences() -> None:
    model = build(positions="learned", max_length=5)
    x = torch.randn(2, 8, 2, dtype=torch.float64)
    found = model(x, torch.tensor([5, 3])).summary
    torch.testing.assert_close(found, model(x[:, :5], torch.tensor([5, 3])).summary, rtol=1e-12, atol=1e-12)
    with pytest.raises(DataError, match="has 8 steps, but the transformer learned positions for 5"):
        model(x)


def test_the_task_can_say_how_many_positions() -> None:
    spec = TaskSpec(input_size=2, outputs=3, max_length=11)
    assert build(spec, positions="learned").positions.shape == (11, 6)
    assert build(spec, positions="learned", max_length=12).positions.shape == (12, 6)
    std = TransformerConfig(positions="learned").build(MNIST).positions.std().item()
    assert abs(std / 0.02 - 1) < 0.02


def test_causality_is_declared_where_it_holds() -> None:
    assert TransformerConfig(attention="causal").causal
    assert not TransformerConfig().causal
    x = torch.randn(1, 6, 2, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4:] += 1
    full = build(STEPS)
    assert not torch.allclose(full(x).steps[:, :4], full(changed).steps[:, :4])


def test_summaries() -> None:
    x, lengths = torch.randn(2, 6, 2, dtype=torch.float64), torch.tensor([6, 4])
    steps = build(STEPS)(x, lengths).steps
    torch.testing.assert_close(build()(x, lengths).summary[1], steps[1, :4].mean(0))
    torch.testing.assert_close(build(summary="last")(x, lengths).summary[1], steps[1, 3])


def test_options_change_the_output() -> None:
    x = torch.randn(2, 6, 2, dtype=torch.float64)
    plain = build()(x).summary
    for fields in (
        {"heads": 3},
        {"activation": "gelu"},
        {"attention": "causal"},
        {"positions": "learned", "max_length": 6},
        {"summary": "last"},
    ):
        assert not torch.allclose(build(**fields)(x).summary, plain), fields


def test_dropout_acts_on_inputs_attention_and_branches_in_training_only() -> None:
    x = torch.randn(2, 6, 2, dtype=torch.float64)
    model = build(dropout=0.5)
    assert torch.equal(model(x).summary, build()(x).summary)
    model.train()
    assert not torch.equal(model(x).summary, model(x).summary)
    layer = model.layers[0]
    layer.dropout.p = 0.0  # what is left is the dropout on the attention weights
    hidden = torch.randn(2, 6, 6, dtype=torch.float64)
    assert not torch.equal(layer(hidden, None, causal=False), layer(hidden, None, causal=False))
    assert torch.equal(layer.eval()(hidden, None, causal=False), layer(hidden, None, causal=False))


def test_parameter_count_on_mnist() -> None:
    H, inner = 64, 256
    layer = 4 * (H * H + H) + H * inner + inner + inner * H + H + 4 * H
    assert TransformerConfig().build(MNIST).parameter_count == 200_842 == 4 * layer + 2 * H + 2 * H + 650
    learned = TransformerConfig(positions="learned").build(MNIST).parameter_count
    assert learned == 200_842 + 784 * 64


@pytest.mark.parametrize(
    ("fields", "spec", "message"),
    [
        ({"heads": 4}, SPEC, "does not divide hidden_size"),
        ({"max_length": 9}, SPEC, "no effect with sinusoidal"),
        ({"positions": "learned"}, SPEC, "set max_length"),
        ({"positions": "learned", "max_length": 700, "heads": 1}, MNIST, "raise it"),
    ],
)
def test_bad_settings_are_explained(fields: dict[str, object], spec: TaskSpec, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(spec, **fields)
