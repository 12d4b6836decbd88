"""The gated-feedback RNN against its equations in NumPy, its options and the stacks it must reduce to."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.gated_feedback import GatedFeedbackRNN, GatedFeedbackRNNConfig

Array = NDArray[np.float64]
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")


def build(spec: TaskSpec = STEPS, *, ramp: bool = True, **fields: object) -> GatedFeedbackRNN:
    torch.manual_seed(0)
    base: dict[str, object] = {"name": "gated_feedback_rnn", "hidden_size": 4, "layers": 3}
    model = GatedFeedbackRNNConfig.model_validate_json(json.dumps(base | fields)).build(spec).double().eval()
    n = 0
    with torch.no_grad():  # a sine ramp: no two weights equal
        for p in model.parameters() if ramp else ():
            p.copy_(torch.sin(torch.arange(n, n + p.numel()) * 1.7).reshape(p.shape) * 0.6)
            n += p.numel()
    return model


def inputs(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def numpy_model(x: Array, model: GatedFeedbackRNN) -> tuple[Array, Array]:
    """(T, F) -> the top layer's states (T, H) and every global gate (T, L, L): [t, i, j] is g^{i -> j}."""
    L, H, lstm = len(model.layers), model.hidden_size, model.cell == "lstm"
    weights = [{k: v.detach().numpy() for k, v in layer.named_parameters()} for layer in model.layers]
    hs, cs = [np.zeros(H)] * L, [np.zeros(H)] * L
    out, gates = [], []
    for x_t in x:
        star = np.concatenate(hs)
        below, new_hs, new_cs, now = x_t, [], [], np.ones((L, L))
        for j, p in enumerate(weights):
            content = p["weight_ih"][:H] @ below + p["bias"][:H]
            for i in range(L):
                if "gate_weight_ih" in p:
                    total = p["gate_weight_ih"][i] @ below + p["gate_weight_hh"][i] @ star
                    now[i, j] = sigmoid(total + p.get("gate_bias", np.zeros(L))[i])
                content = content + now[i, j] * (p["feedback_weight"][i] @ hs[i])
            h, c = np.tanh(content), cs[j]
            if lstm:
                unit = {}
                for k, name in enumerate("ifo"):
                    rows, own = slice((k + 1) * H, (k + 2) * H), slice(k * H, (k + 1) * H)
                    mine = p["weight_ih"][rows] @ below + p["unit_weight"][own] @ hs[j]
                    unit[name] = sigmoid(mine + p["bias"][rows])
                c = unit["f"] * cs[j] + unit["i"] * h
                h = unit["o"] * np.tanh(c)
            new_hs.append(h)
            new_cs.append(c)
            below = h
        hs, cs = new_hs, new_cs
        out.append(hs[-1])
        gates.append(now)
    return np.stack(out), np.stack(gates)


@pytest.mark.parametrize("cell", ["elman", "lstm"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("fields", [{}, {"gate_bias": True}, {"feedback": "ungated"}])
def test_equals_the_equations_in_numpy(cell: str, layers: int, fields: dict[str, object]) -> None:
    model, x = build(cell=cell, layers=layers, **fields), inputs(2, 8, 2)
    found = model(x).steps.detach().numpy()
    for row in range(2):
        expected, gates = numpy_model(x[row].numpy(), model)
        np.testing.assert_allclose(found[row], expected, rtol=1e-10, atol=1e-10)
        assert gates.min() == 1 if fields.get("feedback") else np.ptp(gates) > 0.1


def stack(model: GatedFeedbackRNN) -> nn.RNNBase:
    """Torch's stack with the model's own-layer weights."""
    H, L, lstm = model.hidden_size, len(model.layers), model.cell == "lstm"
    twin = (nn.LSTM if lstm else nn.RNN)(2, H, num_layers=L, batch_first=True).double()

    def rows(content: Tensor, units: Tensor) -> Tensor:
        """Content, i, f, o to torch's i, f, g, o."""
        return torch.cat([units[: 2 * H], content, units[2 * H :]])

    with torch.no_grad():
        for j, layer in enumerate(model.layers):
            getattr(twin, f"weight_ih_l{j}").copy_(rows(layer.weight_ih[:H], layer.weight_ih[H:]))
            getattr(twin, f"bias_ih_l{j}").copy_(rows(layer.bias[:H], layer.bias[H:]))
            units = layer.unit_weight if lstm else layer.weight_ih[H:, :0].new_zeros(0, H)
            getattr(twin, f"weight_hh_l{j}").copy_(rows(layer.feedback_weight[j], units))
            getattr(twin, f"bias_hh_l{j}").zero_()
    return twin


@pytest.mark.parametrize("cell", ["elman", "lstm"])
def test_own_layer_feedback_without_gates_is_torch_s_stack(cell: str) -> None:
    model, x = build(cell=cell, feedback="ungated"), inputs(2, 7, 2)
    with torch.no_grad():
        for j, layer in enumerate(model.layers):
            for i in range(3):
                if i != j:
                    layer.feedback_weight[i].zero_()
    torch.testing.assert_close(model(x).steps, stack(model)(x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ["elman", "lstm"])
def test_open_gates_are_no_gates_and_closed_ones_forget_the_others(cell: str) -> None:
    gated, ungated, x = (
        build(cell=cell, gate_bias=True),
        build(cell=cell, feedback="ungated"),
        inputs(2, 7, 2),
    )
    shared = {k: v for k, v in gated.state_dict().items() if "gate_" not in k}
    ungated.load_state_dict(shared)
    with torch.no_grad():
        for layer in gated.layers:
            layer.gate_bias.fill_(60.0)
    torch.testing.assert_close(gated(x).steps, ungated(x).steps, rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # only g^{j -> j} stays open
        for j, layer in enumerate(gated.layers):
            layer.gate_bias.fill_(-60.0)
            layer.gate_bias[j] = 60.0
    torch.testing.assert_close(gated(x).steps, stack(gated)(x)[0], rtol=1e-12, atol=1e-12)


def test_upper_layers_feed_back_to_lower_ones() -> None:
    spec = TaskSpec(input_size=2, outputs=3, needs="steps", carry_state=True)
    model, x = build(spec), inputs(1, 5, 2)
    before = model(x).state[0]
    with torch.no_grad():
        model.layers[0].feedback_weight[2].mul_(-1)
    after = model(x).state[0]
    assert not torch.allclose(after[:, 0], before[:, 0])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # W and b of each layer, U of every pair of layers, w and u of every pair of layers
        ({"cell": "elman"}, (1 + 100 + 100) * 100 + 300 + 9 * 100**2 + 3 * (1 + 100 + 100) + 9 * 300),
        ({"cell": "elman", "feedback": "ungated"}, (1 + 100 + 100) * 100 + 300 + 9 * 100**2),
        # three unit-wise gates more: W, b and the own layer's U
        (
            {},
            4 * ((1 + 100 + 100) * 100 + 300) + 9 * 100**2 + 3 * 3 * 100**2 + 3 * (1 + 100 + 100) + 9 * 300,
        ),
        ({"gate_bias": True}, 264_903 + 9),
    ],
)
def test_parameter_count(fields: dict[str, object], expected: int) -> None:
    config = GatedFeedbackRNNConfig.model_validate_json(json.dumps({"name": "gated_feedback_rnn", **fields}))
    assert config.build(TaskSpec(input_size=1, outputs=10)).parameter_count == expected + 1_010


@pytest.mark.parametrize("cell", ["elman", "lstm"])
def test_first_weights(cell: str) -> None:
    G = 4 if cell == "lstm" else 1
    for init in ("torch", "tensorflow"):
        model = build(ramp=False, cell=cell, hidden_size=50, layers=2, init=init, gate_bias=True)
        for j, layer in enumerate(model.layers):
            reads = (2 if j == 0 else 50) + 2 * 50
            bounds = {
                "weight_ih": (6 / (reads + G * 50)) ** 0.5,
                "feedback_weight": (6 / (reads + G * 50)) ** 0.5,
                "unit_weight": (6 / (reads + G * 50)) ** 0.5,
                "gate_weight_hh": (6 / (reads + 2)) ** 0.5,
                "gate_weight_ih": (6 / (reads + 2)) ** 0.5,
            }
            for name, value in layer.named_parameters():
                if name == "gate_bias" or (name == "bias" and init == "tensorflow"):
                    assert value.abs().sum() == 0
                else:
                    bound = 50**-0.5 if init == "torch" else bounds[name]
                    assert (0.6 if value.numel() < 50 else 0.9) * bound < value.abs().max() <= bound


def test_forget_bias_reaches_the_forget_gates_alone() -> None:
    low, high = (build(ramp=False, forget_bias=bias).layers for bias in (0, 1.5))
    for before, after in zip(low, high, strict=True):
        difference = after.bias - before.bias
        torch.testing.assert_close(difference[8:12], torch.full((4,), 1.5, dtype=torch.float64))
        assert difference[:8].abs().sum() + difference[12:].abs().sum() == 0


def test_options_change_the_output() -> None:
    x = inputs(2, 6, 2)
    plain = build(ramp=False)(x).outputs
    for fields in (
        {"cell": "elman"},
        {"layers": 2},
        {"feedback": "ungated"},
        {"forget_bias": 1.0},
        {"init": "tensorflow"},
        {"head_init": "released_tp_rnn"},
    ):
        assert not torch.allclose(build(ramp=False, **fields)(x).outputs, plain), fields
    assert not torch.allclose(build(gate_bias=True)(x).outputs, build()(x).outputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feedback": "ungated", "gate_bias": True}, "no effect without gates; set feedback to 'gated'"),
        ({"cell": "elman", "forget_bias": 1.0}, "which does not forget; set cell to 'lstm'"),
    ],
)
def test_options_without_effect_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build(**fields)
    assert len(caught.value.problems) == 1
