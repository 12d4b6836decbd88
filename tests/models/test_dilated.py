"""Dilated RNN against its equations, its released code, and what it must reduce to."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from seqpyramid.analysis.cost import flops
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models import MODELS
from seqpyramid.models.dilated import DilatedRNN, DilatedRNNConfig, ResetBeforeGRU, fold, unfold, windows
from seqpyramid.papers import printed

Array = NDArray[np.float64]
SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
CELLS = [("elman", "before"), ("lstm", "before"), ("gru", "before"), ("gru", "after")]


def config(**fields: object) -> DilatedRNNConfig:
    base: dict[str, object] = {"hidden_size": 3}
    return DilatedRNNConfig.model_validate_json(json.dumps(base | fields))


def build(spec: TaskSpec = SPEC, **fields: object) -> DilatedRNN:
    """A model whose every number is different, the biases too."""
    model = config(**fields).build(spec).double().eval()
    n = 0
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(torch.sin(torch.arange(n, n + p.numel(), dtype=p.dtype) * 1.7).reshape(p.shape) * 0.6)
                n += p.numel()
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- a loop written from the paper's equations, one sequence and one step at a time -------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def numpy_layer(xs: list[Array], layer: nn.Module, s: int) -> list[Array]:
    """Equation (1) for one layer."""
    weights = {name.removesuffix("_l0"): p.detach().numpy() for name, p in layer.named_parameters()}
    U, b = weights["weight_ih"], weights["bias_ih"]
    d = weights.get("bias_hh", np.zeros_like(b))
    H = layer.hidden_size
    hs: list[Array] = []
    cs: list[Array] = []
    for t, x in enumerate(xs):
        h = hs[t - s] if t >= s else np.zeros(H)
        c = cs[t - s] if t >= s else np.zeros(H)
        if isinstance(layer, ResetBeforeGRU):
            R, C = weights["weight_gates"], weights["weight_candidate"]
            a = U @ x + b + d
            r, z = sigmoid(a[:H] + R[:H] @ h), sigmoid(a[H : 2 * H] + R[H:] @ h)
            h = z * h + (1 - z) * np.tanh(a[2 * H :] + C @ (r * h))
        elif isinstance(layer, nn.GRU):
            W = weights["weight_hh"]
            (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(U @ x + b, 3), np.split(W @ h + d, 3)
            z = sigmoid(z_x + z_h)
            h = z * h + (1 - z) * np.tanh(n_x + sigmoid(r_x + r_h) * n_h)
        elif isinstance(layer, nn.LSTM):
            i, f, g, o = np.split(U @ x + b + weights["weight_hh"] @ h + d, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            h = np.tanh(U @ x + b + weights["weight_hh"] @ h + d)
        hs.append(h)
        cs.append(c)
    return hs


def numpy_model(x: Array, model: DilatedRNN, dilations: list[int]) -> Array:
    """What the head reads at each step: the last d_0 top states, the oldest first."""
    xs = list(x)
    for layer, s in zip(model.layers, dilations, strict=True):
        xs = numpy_layer(xs, layer, s)
    d0 = dilations[0]
    before = [np.zeros_like(xs[0])] * (d0 - 1)
    return np.stack([np.concatenate((before + xs)[t : t + d0]) for t in range(len(xs))])


@pytest.mark.parametrize(("cell", "reset"), CELLS)
@pytest.mark.parametrize(
    ("dilations", "T"),
    [
        ([1, 2, 4], 13),
        ([1], 3),
        ([3], 8),  # the fused recurrence alone
        ([2, 4, 8], 19),
        ([2, 3], 11),  # no dependency cone
        ([4, 2, 1], 10),
        ([1, 1, 5], 12),
        ([3, 3], 9),  # T a multiple of all
        ([1, 3, 9], 4),  # a dilation above T
        ([5, 10], 3),  # the first one too
    ],
)
def test_equals_the_equations_in_numpy(cell: str, reset: str, dilations: list[int], T: int) -> None:
    sizes = [3 + k for k in range(len(dilations))]
    for bias in ("single", "double"):
        fields = {"cell": cell, "reset": reset, "dilations": dilations, "hidden_size": sizes, "bias": bias}
        model, stepwise = build(**fields), build(STEPS, **fields)
        stepwise.load_state_dict(model.state_dict())
        lengths = torch.tensor([T, T - 1, max(1, T // 2), 1])
        x = noise(4, T, 2, seed=T)
        summary, steps = model(x, lengths).summary.detach().numpy(), stepwise(x, lengths)
        for row, length in enumerate(lengths.tolist()):
            expected = numpy_model(x[row, :length].numpy(), model, dilations)
            np.testing.assert_allclose(summary[row], expected[-1], rtol=1e-10, atol=1e-10)
            found = steps.steps[row].detach().numpy()
            np.testing.assert_allclose(found[:length], expected, rtol=1e-10, atol=1e-10)
            assert not found[length:].any()
        torch.testing.assert_close(steps.summary, model(x, lengths).summary, rtol=1e-12, atol=1e-12)


# --- released code -------------------------------------------------------------------------------------------------

GOLDEN = ["drnn_RNN_d1-2-4_T13", "drnn_GRU_d1-2-4_T13", "drnn_LSTM_d2-4-8_T19"]


def torch_layout(z: dict[str, Array], prefix: str, k: int, cell: str) -> dict[str, Array]:
    """TensorFlow's (inputs + states) x gates matrices as the weights of layer k, by parameter name."""

    def get(name: str) -> Array:
        return z[f"{prefix}L{k}.{name}"]

    if cell == "gru":
        gates, candidate = get("gates_kernel"), get("candidate_kernel")
        F = len(gates) - candidate.shape[1]
        return {
            "weight_ih": np.concatenate([gates[:F], candidate[:F]], axis=1).T,
            "weight_gates": gates[F:].T,
            "weight_candidate": candidate[F:].T,
            "bias_ih": np.concatenate([get("gates_bias"), get("candidate_bias")]),
        }
    kernel, bias = get("kernel"), get("bias")
    if cell == "lstm":
        i, j, f, o = np.split(kernel, 4, axis=1)
        kernel = np.concatenate([i, f, j, o], axis=1)
        i, j, f, o = np.split(bias, 4)
        bias = np.concatenate([i, f, j, o])
    H = len(bias) // (4 if cell == "lstm" else 1)
    return {"weight_ih_l0": kernel[:-H].T, "weight_hh_l0": kernel[-H:].T, "bias_ih_l0": bias}


def released(
    shared: Path, file: str, dtype: torch.dtype
) -> tuple[DilatedRNN, dict[str, Array], list[int], str]:
    z = dict(np.load(shared / "golden" / f"{file}.npz"))
    meta = json.loads(str(z["meta_json"]))
    cell = {"RNN": "elman", "GRU": "gru", "LSTM": "lstm"}[meta["cell"]]
    spec = TaskSpec(input_size=meta["in_dim"], outputs=meta["n_classes"])
    model = config(cell=cell, hidden_size=meta["hidden"], dilations=meta["dilations"]).build(spec).double()
    assert model.parameter_count == meta["n_params"]
    with torch.no_grad():
        for k, layer in enumerate(model.layers):
            for name, value in torch_layout(z, "w.", k, cell).items():
                layer.get_parameter(name).copy_(torch.tensor(value))
            if cell == "lstm":
                H = layer.hidden_size
                layer.bias_ih_l0[H : 2 * H] += meta["forget_bias"]
        model.head.linear.weight.copy_(torch.tensor(z["w.out_w"].T))
        model.head.linear.bias.copy_(torch.tensor(z["w.out_b"]))
    return model.to(dtype).eval(), z, meta["dilations"], cell


@pytest.mark.parametrize("file", GOLDEN)
@pytest.mark.parametrize(
    ("dtype", "key", "tolerance"), [(torch.float32, "f32", 1e-5), (torch.float64, "f64", 1e-10)]
)
def test_equals_the_released_code(
    shared: Path, file: str, dtype: torch.dtype, key: str, tolerance: float
) -> None:
    model, z, dilations, cell = released(shared, file, dtype)
    x = torch.tensor(z["x"]).to(dtype)
    output = model(x)
    steps, lengths = x.transpose(0, 1), torch.full((len(x),), x.shape[1])
    for k, (layer, d) in enumerate(zip(model.layers, dilations, strict=True)):
        steps = unfold(layer(fold(steps, d))[0], d, x.shape[1])
        found = steps.transpose(0, 1).detach().numpy()
        np.testing.assert_allclose(found, z[f"{key}.L{k}.out"], rtol=0, atol=tolerance)
    folded = model.head(model.recent(model.folded(x.transpose(0, 1)).transpose(0, 1), lengths))
    for logits in (output.outputs, folded):
        np.testing.assert_allclose(logits.detach().numpy(), z[f"{key}.logits"], rtol=0, atol=tolerance)
    loss = nn.functional.cross_entropy(output.outputs, torch.tensor(z["y"]).long())
    np.testing.assert_allclose(loss.item(), z[f"{key}.loss"], rtol=0, atol=tolerance)
    loss.backward()
    for k, layer in enumerate(model.layers):
        for name, expected in torch_layout(z, f"{key}.grad.", k, cell).items():
            grad = layer.get_parameter(name).grad.numpy()
            np.testing.assert_allclose(grad, expected, rtol=0, atol=tolerance, err_msg=f"layer {k} {name}")
    grad = model.head.linear.weight.grad.numpy().T
    np.testing.assert_allclose(grad, z[f"{key}.grad.out_w"], rtol=0, atol=tolerance)


# --- the two ways of running it ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CELLS),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.integers(1, 23), min_size=1, max_size=4),
)
def test_the_cone_equals_folding(cell: tuple[str, str], ratios: list[int], ends: list[int]) -> None:
    dilations = [math.prod(ratios[: k + 1]) for k in range(len(ratios))]
    model = build(cell=cell[0], reset=cell[1], dilations=dilations)
    assert model.read_by_cone
    lengths = torch.tensor(ends)
    x = noise(max(ends), len(ends), 2, seed=sum(ends)).requires_grad_()
    one, other = model.cone(x, lengths), model.recent(model.folded(x).transpose(0, 1), lengths)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    weights = noise(*one.shape, seed=1)
    leaves = [x] + [p for p in model.layers.parameters() if p.requires_grad]
    ones, others = (torch.autograd.grad((v * weights).sum(), leaves) for v in (one, other))
    for a, b in zip(ones, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_cone_costs_two_cell_steps_an_input() -> None:
    """The closed form, itself held against the count by the contract suite, at the paper's size."""
    cone, whole = (
        config(cell="lstm", hidden_size=59, layers=9).build(TaskSpec(input_size=1, outputs=10, needs=needs))
        for needs in ("summary", "steps")
    )
    steps = sum(-(-784 // 2**k) for k in range(9))
    assert steps == 2 * 784
    first, other = 2 * 4 * 59 * (1 + 59), 2 * 4 * 59 * (59 + 59)
    assert cone.encoder_flops(784) == 784 * first + (steps - 784) * other
    padded = sum(-(-784 // 2**k) * 2**k for k in range(1, 9))
    assert whole.encoder_flops(784) == 784 * first + padded * other
    small = config(dilations=[3, 6, 12]).build(SPEC)
    assert flops(small, 40).agrees
    assert small.encoder_flops(40) == 2 * 3 * 3 * (14 * 5 + 7 * 6 + 4 * 6)


def test_divisibility_decides_the_way() -> None:
    for dilations in ([1, 2, 4], [2, 3], [4, 2], [3, 3, 9]):
        divides = all(b % a == 0 for a, b in pairwise(dilations))
        assert build(dilations=dilations).read_by_cone == divides
        assert not build(STEPS, dilations=dilations).read_by_cone


@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 3), st.integers(1, 7))
def test_unfolding_undoes_folding(T: int, B: int, F: int, ways: int) -> None:
    x = noise(T, B, F)
    assert torch.equal(unfold(fold(x, ways), ways, T), x)


# --- what it must reduce to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "stack"), [("elman", "rnn"), ("lstm", "lstm"), ("gru", "gru")])
def test_dilations_of_one_are_the_plain_stack(cell: str, stack: str) -> None:
    model = build(STEPS, cell=cell, reset="after" if cell == "gru" else "before", dilations=[1, 1])
    plain = MODELS.lookup(stack)(name=stack, hidden_size=3, layers=2).build(STEPS).double()
    plain.load_state_dict(model.state_dict())
    x, lengths = noise(3, 7, 2), torch.tensor([7, 2, 5])
    torch.testing.assert_close(model(x, lengths).steps, plain(x, lengths).steps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("cell", "reset"), CELLS)
def test_one_phase_is_a_plain_recurrence_on_every_third_step(cell: str, reset: str) -> None:
    model = build(cell=cell, reset=reset, dilations=[3])
    x = noise(11, 2, 2)
    whole = model.folded(x)
    for phase in range(3):
        torch.testing.assert_close(whole[phase::3], model.layers[0](x[phase::3])[0], rtol=1e-12, atol=1e-12)


def test_resetting_before_or_after_is_the_same_without_recurrent_candidate() -> None:
    """With W_n = 0 the reset gate has nothing to act on, wherever it stands."""
    before, after = (build(cell="gru", reset=reset, dilations=[1, 2]) for reset in ("before", "after"))
    with torch.no_grad():
        for one, other in zip(before.layers, after.layers, strict=True):
            one.weight_candidate.zero_()
            other.weight_ih_l0.copy_(one.weight_ih)
            other.weight_hh_l0.copy_(torch.cat([one.weight_gates, one.weight_candidate]))
            other.bias_ih_l0.copy_(one.bias_ih)
    x = noise(2, 9, 2)
    torch.testing.assert_close(before(x).summary, after(x).summary, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        before.layers[0].weight_candidate.fill_(0.3)
        after.layers[0].weight_hh_l0[6:].fill_(0.3)
    assert (before(x).summary - after(x).summary).abs().max() > 1e-4


def test_windows_have_the_oldest_first() -> None:
    steps = torch.tensor([1.0, 2, 3]).view(1, 3, 1)
    assert windows(steps, 2)[0].tolist() == [[0, 1], [1, 2], [2, 3]]


# --- the config ----------------------------------------------------------------------------------------------------


def test_dilations_by_equation_4() -> None:
    assert config(layers=4).skips == (1, 2, 4, 8)
    assert config(layers=3, base=3, start_exponent=2).skips == (9, 27, 81)
    assert config().skips == tuple(2**k for k in range(9))
    assert config(dilations=[1, 5]).skips == (1, 5)
    model = config(layers=3, base=3, start_exponent=2).build(SPEC)
    assert model.dilations == (9, 27, 81)
    assert model.head.linear.in_features == 9 * 3


@pytest.mark.parametrize(
    "fields",
    [
        {"base": 3},
        {"start_exponent": 1},
        {"layers": 2},
        {"dilations": [1, 2, 5]},
        {"cell": "lstm"},
        {"cell": "gru"},
        {"cell": "gru", "reset": "after"},
    ],
)
def test_every_option_changes_the_output(fields: dict[str, object]) -> None:
    plain = {"layers": 3} if "dilations" not in fields else {}
    summary = build(**(plain | fields))(noise(2, 14, 2)).summary
    other = build(layers=3)(noise(2, 14, 2)).summary
    assert summary.shape != other.shape or not torch.allclose(summary, other)


def test_only_the_reset_before_form_is_a_step_loop() -> None:
    assert config(cell="gru", layers=2).build(SPEC).step_loop
    assert not config(cell="gru", reset="after", layers=2).build(SPEC).step_loop
    assert not config(cell="lstm", layers=2).build(SPEC).step_loop


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dilations": [1, 2], "layers": 2}, "layers: has no effect beside dilations"),
        ({"dilations": [1, 2], "base": 3}, "base: has no effect beside dilations"),
        ({"dilations": [1, 2], "start_exponent": 1}, "start_exponent: has no effect beside dilations"),
        ({"layers": 1, "base": 3}, "base: has no effect with one layer"),
        ({"layers": 2, "hidden_size": [3, 4, 5]}, "lists 3 layers but the dilations are 2"),
        ({"layers": 2, "reset": "after"}, "reset: acts in a GRU only"),
        ({"layers": 2, "forget_bias": 0.5}, "forget_bias: acts in an LSTM only"),
        ({"layers": 6}, "layers: layer 6 has dilation 32, but the task's sequences have 30 steps"),
        ({"dilations": [1, 30]}, "dilations: layer 2 has dilation 30"),
    ],
)
def test_impossible_settings_are_explained(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        config(**fields).build(TaskSpec(input_size=1, outputs=3, max_length=30))
    assert len(caught.value.problems) == 1


def test_the_longest_dilation_below_the_length_is_allowed() -> None:
    config(dilations=[1, 29]).build(TaskSpec(input_size=1, outputs=3, max_length=30))


# --- starts --------------------------------------------------------------------------------------------------------


def looks_uniform(weight: Tensor, bound: float) -> bool:
    return (
        bool(0.9 * bound < weight.abs().max() <= bound)
        and abs(weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.08
    )


def test_the_default_start_is_tensorflows() -> None:
    torch.manual_seed(0)
    spec = TaskSpec(input_size=60, outputs=10)
    H, F = 40, 60
    rnn, lstm, gru = (config(cell=c, hidden_size=H, layers=1).build(spec) for c in ("elman", "lstm", "gru"))
    for layer, bound in (
        (rnn.layers[0], (6 / (F + 2 * H)) ** 0.5),
        (lstm.layers[0], (6 / (F + 5 * H)) ** 0.5),
    ):
        assert looks_uniform(layer.weight_ih_l0, bound)
        assert looks_uniform(layer.weight_hh_l0, bound)
    assert rnn.layers[0].bias_ih_l0.abs().sum() == 0
    assert lstm.layers[0].bias_ih_l0.tolist() == [0.0] * H + [1.0] * H + [0.0] * 2 * H
    layer = gru.layers[0]
    for part in (layer.weight_ih[: 2 * H], layer.weight_gates):
        assert looks_uniform(part, (6 / (F + 3 * H)) ** 0.5)
    for part in (layer.weight_ih[2 * H :], layer.weight_candidate):
        assert looks_uniform(part, (6 / (F + 2 * H)) ** 0.5)
    assert layer.bias_ih.tolist() == [1.0] * 2 * H + [0.0] * H
    fused = config(cell="lstm", hidden_size=50, dilations=[8]).build(spec)
    for weight in (fused.head.linear.weight, fused.head.linear.bias):
        assert abs(weight.std().item() - 1) < (0.05 if weight.ndim == 2 else 0.6)


@pytest.mark.parametrize(("cell", "reset"), CELLS)
def test_the_other_starts(cell: str, reset: str) -> None:
    torch.manual_seed(0)
    fields = {"cell": cell, "reset": reset, "hidden_size": 40, "layers": 1}
    normal = config(**fields, init="standard_normal").build(TaskSpec(input_size=60, outputs=2)).layers[0]
    uniform = config(**fields, init="torch").build(TaskSpec(input_size=60, outputs=2)).layers[0]
    for weight in normal.parameters():
        if weight.ndim == 2:
            assert abs(weight.std().item() - 1) < 0.06
        else:
            assert set(weight.tolist()) <= {0.0, 1.0}
    for name, weight in uniform.named_parameters():
        if weight.requires_grad and not (cell == "lstm" and "bias" in name):
            assert weight.abs().max() <= 40**-0.5
            assert weight.std() > 0.8 * 40**-0.5 / math.sqrt(3)


def test_forget_bias_reaches_the_forget_gate() -> None:
    torch.manual_seed(0)
    with_one = config(cell="lstm", layers=1, init="torch").build(SPEC).layers[0].bias_ih_l0
    torch.manual_seed(0)
    without = config(cell="lstm", layers=1, init="torch", forget_bias=0.0).build(SPEC).layers[0].bias_ih_l0
    torch.testing.assert_close(with_one - without, torch.tensor([0.0] * 3 + [1.0] * 3 + [0.0] * 6))


def test_double_bias_adds_one_vector_a_layer() -> None:
    for cell, reset in CELLS:
        gates = {"elman": 1, "lstm": 4, "gru": 3}[cell]
        single, double = (
            config(cell=cell, reset=reset, layers=2, bias=b).build(SPEC) for b in ("single", "double")
        )
        assert double.parameter_count - single.parameter_count == 2 * gates * 3


# --- parameter counts ----------------------------------------------------------------------------------------------

MNIST = TaskSpec(input_size=1, outputs=10)
PTB = TaskSpec(input_size=49, outputs=49, needs="steps")  # 49 characters fit the printed counts best
RAW = TaskSpec(input_size=1, outputs=109)
MFCC = TaskSpec(input_size=13, outputs=109)


def count(spec: TaskSpec, model: str, **fields: object) -> int:
    with torch.device("meta"):
        built = MODELS.lookup(model).model_validate_json(json.dumps({"name": model, **fields})).build(spec)
    return built.parameter_count


def stack(name: str, size: int, layers: int = 1) -> dict[str, object]:
    return {"model": name, "hidden_size": size, "layers": layers}


def dilated(cell: str, size: int, **fields: object) -> dict[str, object]:
    return {"model": "dilated_rnn", "cell": cell, "hidden_size": size, **({"layers": 9} | fields)}


TABLE_1: list[tuple[str, dict[str, object], int, str]] = [
    ("rnn_256", stack("rnn", 256), 68_618, "printed truncated"),
    ("rnn_9x20", stack("rnn", 20, 9), 7_210, ""),
    ("lstm_256", stack("lstm", 256), 266_762, "270k is quoted from other work"),
    ("lstm_9x20", stack("lstm", 20, 9), 28_210, ""),
    ("gru_256", stack("gru", 256), 200_714, "printed truncated to the hundreds"),
    ("gru_9x20", stack("gru", 20, 9), 21_210, ""),
    ("irnn", stack("rnn", 100), 11_210, "12k is quoted from other work"),
    (
        "skip_rnn",
        {"model": "skip_rnn", "hidden_size": 95, "layers": 1, "skip": 21},
        19_200,
        "16k fits no form known",
    ),
    ("skip_rnn_9x20", {"model": "skip_rnn"}, 10_810, ""),
    ("zoneout_lstm", stack("lstm", 100), 41_810, ""),
    ("dilated_cnn_20", {"model": "dilated_cnn"}, 7_450, ""),
    ("dilated_cnn_50", {"model": "dilated_cnn", "filters": 50}, 45_610, ""),
    ("dilated_rnn_20", dilated("elman", 20), 7_210, ""),
    ("dilated_rnn_50", dilated("elman", 50), 43_510, ""),
    ("dilated_lstm_20", dilated("lstm", 20), 28_210, ""),
    ("dilated_lstm_50", dilated("lstm", 50), 172_510, ""),
    ("dilated_gru_20", dilated("gru", 20), 21_210, ""),
    ("dilated_gru_50", dilated("gru", 50), 129_510, ""),
]

FOUR = "printed for four layers of 256, not five"
TABLE_2: list[tuple[str, dict[str, object], int, str]] = [
    ("lstm_1000", stack("lstm", 1000), 4_249_049, ""),
    ("gru_1000", stack("gru", 1000), 3_199_049, "printed truncated"),
    ("lstm_5x256", stack("lstm", 256, 5), 2_427_185, FOUR),
    ("gru_5x256", stack("gru", 256, 5), 1_823_537, FOUR),
    ("dilated_rnn", dilated("elman", 256, layers=5), 616_241, ""),
    ("dilated_lstm", dilated("lstm", 256, layers=5), 2_427_185, FOUR),
    ("dilated_gru", dilated("gru", 256, layers=5), 1_823_537, FOUR),
]


@pytest.mark.parametrize(
    ("table", "column", "spec", "rows"),
    [("Table 1", "pMNIST", MNIST, TABLE_1), ("Table 2", "PTB", PTB, TABLE_2)],
)
def test_counts_of_tables_1_and_2(
    table: str, column: str, spec: TaskSpec, rows: list[tuple[str, dict[str, object], int, str]]
) -> None:
    cells = {cell.row: cell.parameters_printed for cell in printed("chang2017", table, column)}
    for row, fields, derived, why_not in rows:
        found = count(spec, **fields)
        assert found == derived, row
        as_printed = cells[row]
        number, unit = as_printed[:-1], 1_000_000 if as_printed.endswith("M") else 1_000
        digits = len(number.partition(".")[2])
        assert (f"{found / unit:.{digits}f}" == number) != bool(why_not), (row, found, as_printed, why_not)
        if why_not == "printed truncated":
            assert math.floor(found / unit * 10**digits) == float(number) * 10**digits
    four = count(PTB, **dilated("lstm", 256, layers=4)), count(PTB, **dilated("gru", 256, layers=4))
    assert four == (1_901_873, 1_429_553)  # 1.9M; 1.42M truncated


@pytest.mark.parametrize(
    ("column", "row", "fields", "extra_layers", "derived"),
    [
        ("MFCC", "gru_5x20", stack("gru", 20, 5), 1, 14_169),
        ("MFCC", "gru_128", stack("gru", 128), 0, 68_589),
        ("raw", "fused_gru_32", dilated("gru", 256, layers=None, dilations=[32]), 0, 1_091_181),
        ("raw", "fused_gru_8", dilated("gru", 256, layers=None, dilations=[8]), 0, 421_485),
        ("raw", "dilated_gru_32", dilated("gru", 50, layers=6, start_exponent=5), 1, 258_059),
        ("raw", "dilated_gru_8", dilated("gru", 50, layers=8, start_exponent=3), 1, 157_559),
    ],
)
def test_counts_of_table_3(
    column: str, row: str, fields: dict[str, object], extra_layers: int, derived: int
) -> None:
    """Printed without any bias, with one layer more in the deep rows, and without the weights of the convolution."""
    spec = MFCC if column == "MFCC" else RAW
    found = count(spec, **fields)
    assert found == derived
    as_printed = {cell.row: cell.parameters_printed for cell in printed("chang2017", "Table 3", column)}[row]
    assert f"{found / 1000:.0f}k" != as_printed
    H, layers = int(str(fields["hidden_size"])), int(str(fields["layers"] or 1))
    dilations = fields.get("dilations") or [2 ** int(str(fields.get("start_exponent", 0)))]
    biases = 3 * H * layers + spec.outputs
    convolution = (dilations[0] - 1) * H * spec.outputs  # type: ignore[index]
    assert f"{(found - biases - convolution + extra_layers * 6 * H * H) / 1000:.0f}k" == as_printed


def test_count_of_the_tp_rnn_papers_baseline() -> None:
    assert count(MNIST, **dilated("lstm", 59)) == 239_668  # 239K
