"""The binary tree against a recursion in NumPy, one sequence and one node at a time."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.tree import Tree, TreeConfig, depth

Array = NDArray[np.float64]
SPEC = TaskSpec(input_size=2, outputs=3)
COMPOSITIONS = ["tanh", "tree_lstm"]


def build(spec: TaskSpec = SPEC, **fields: object) -> Tree:
    torch.manual_seed(0)
    config = TreeConfig.model_validate_json(json.dumps({"hidden_size": 3} | fields))
    model = config.build(spec).double().eval()
    assert isinstance(model, Tree)
    return model


def inputs(batch: int, time: int) -> Tensor:
    return torch.randn(batch, time, 2, generator=torch.Generator().manual_seed(time), dtype=torch.float64)


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def numpy_tree(x: Array, model: Tree, composition: str) -> Array:
    """The root of one sequence, from above: a node of a level asks for its two children below."""
    H = 3
    leaf, parent, b = (p.detach().numpy() for p in model.composition.parameters())

    def make_leaf(x_t: Array) -> tuple[Array, Array]:
        if composition == "tanh":
            return np.tanh(leaf @ x_t + b[:H]), np.zeros(H)
        i, o, u = (W @ x_t + part for W, part in zip(np.split(leaf, 3), np.split(b, 4)[:3], strict=True))
        c = sigmoid(i) * np.tanh(u)
        return sigmoid(o) * np.tanh(c), c

    def make_parent(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        (h_a, c_a), (h_b, c_b) = left, right
        products = [W[:, :H] @ h_a + W[:, H:] @ h_b for W in np.split(parent, len(parent) // H)]
        if composition == "tanh":
            return np.tanh(products[0] + b[H:]), np.zeros(H)
        b_i, b_o, b_u, b_f = np.split(b, 4)
        i, o, u = sigmoid(products[0] + b_i), sigmoid(products[1] + b_o), np.tanh(products[2] + b_u)
        c = i * u + sigmoid(products[3] + b_f) * c_a + sigmoid(products[4] + b_f) * c_b
        return o * np.tanh(c), c

    def node(level: int, n: int) -> tuple[Array, Array]:
        if level == 0:
            return make_leaf(x[n])
        below = math.ceil(len(x) / 2 ** (level - 1))
        if 2 * n + 1 == below:  # the odd last one moves up
            return node(level - 1, 2 * n)
        return make_parent(node(level - 1, 2 * n), node(level - 1, 2 * n + 1))

    return node(math.ceil(math.log2(len(x))), 0)[0]


@pytest.mark.parametrize("composition", COMPOSITIONS)
@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 21), min_size=1, max_size=4))
def test_equals_the_recursion_in_numpy(composition: str, lengths: list[int]) -> None:
    model, x = build(composition=composition), inputs(len(lengths), max(lengths) + 2)
    found = model(x, torch.tensor(lengths)).summary.detach().numpy()
    for row, length in enumerate(lengths):
        expected = numpy_tree(x[row, :length].numpy(), model, composition)
        np.testing.assert_allclose(found[row], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_five_steps_make_this_tree(composition: str) -> None:
    """((1 2) (3 4)) 5: the fifth leaf moves up twice."""
    model, x = build(composition=composition), inputs(1, 5)
    part = model.composition
    one, two, three, four, five = ([v[:, t] for v in part.leaves(x)] for t in range(5))

    def join(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
        children = tuple(torch.stack(pair, dim=1)[:, None] for pair in zip(left, right, strict=True))
        return [v[:, 0] for v in part.parents(children)]

    expected = join(join(join(one, two), join(three, four)), five)[0]
    torch.testing.assert_close(model(x).summary, expected, rtol=1e-12, atol=1e-12)


def test_one_step_is_its_leaf() -> None:
    model, x = build(), inputs(2, 1)
    leaf, _, b = model.composition.parameters()
    torch.testing.assert_close(model(x).summary, torch.tanh(x[:, 0] @ leaf.T + b[:3]), rtol=1e-12, atol=1e-12)


def test_a_tree_lstm_that_forgets_everything_has_gated_nodes_without_memory() -> None:
    model, x = build(composition="tree_lstm", forget_bias=-1e4), inputs(1, 2)
    h, _ = model.composition.leaves(x)
    i, o, u, _, _ = (h.flatten(1) @ model.composition.parent_weight.T).split(3, dim=1)
    b_i, b_o, b_u, _ = model.composition.bias.split(3)
    expected = torch.sigmoid(o + b_o) * torch.tanh(torch.sigmoid(i + b_i) * torch.tanh(u + b_u))
    torch.testing.assert_close(model(x).summary, expected, rtol=1e-12, atol=1e-12)


def test_parameters() -> None:
    h, i = 3, 2
    head = 3 * h + 3
    assert build().parameter_count == h * i + 2 * h**2 + 2 * h + head
    assert build(composition="tree_lstm").parameter_count == 3 * h * i + 10 * h**2 + 4 * h + head
    mnist = TaskSpec(input_size=1, outputs=10)
    assert TreeConfig(hidden_size=100).build(mnist).parameter_count == 20_300 + 1_010
    assert (
        TreeConfig(hidden_size=100, composition="tree_lstm").build(mnist).parameter_count == 100_700 + 1_010
    )


@given(st.integers(1, 100_000))
def test_depth_is_the_exact_ceiling_of_the_logarithm(time: int) -> None:
    assert 2 ** depth(time) >= time
    assert time == 1 or 2 ** (depth(time) - 1) < time


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({}, {"composition": "tree_lstm"}),
        ({}, {"init": "tensorflow"}),
        ({}, {"head_init": "released_tp_rnn"}),
        ({"composition": "tree_lstm"}, {"forget_bias": 1.0}),
    ],
)
def test_every_option_changes_the_output(fields: dict[str, object], changed: dict[str, object]) -> None:
    x = inputs(2, 6)
    assert not torch.allclose(build(**fields)(x).outputs, build(**fields | changed)(x).outputs)


def test_initial_weights() -> None:
    wide = TaskSpec(input_size=50, outputs=3)
    part = build(wide, hidden_size=100).composition
    for p in part.parameters():
        assert p.abs().max() <= 0.1
        assert abs(p.std().item() / (0.1 / 3**0.5) - 1) < 0.1
    part = build(
        wide, hidden_size=100, composition="tree_lstm", init="tensorflow", forget_bias=0.5
    ).composition
    for p, fans in ((part.leaf_weight, 300 + 50), (part.parent_weight, 500 + 200)):
        bound = (6 / fans) ** 0.5
        assert p.abs().max() <= bound
        assert abs(p.std().item() / (bound / 3**0.5) - 1) < 0.05
    assert part.bias[:300].abs().sum() == 0
    assert (part.bias[300:] == 0.5).all()


def test_forget_bias_of_tanh_nodes_is_refused() -> None:
    with pytest.raises(RecipeError, match="forget_bias: has no effect on tanh nodes"):
        build(forget_bias=1.0)


def test_a_tree_has_no_output_a_step() -> None:
    with pytest.raises(RecipeError, match="emits summary, but the task needs steps"):
        build(TaskSpec(input_size=2, outputs=3, needs="steps"))
