"""LRU against its equations in NumPy, its starts and options."""

import json

import numpy as np
import pytest
import torch

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.lru import LRU, LinearRecurrence, LRUConfig

SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
MNIST = TaskSpec(input_size=1, outputs=10)


def config(**fields: object) -> LRUConfig:
    small = {"hidden_size": 3, "layers": 2, "state_size": 4}
    return LRUConfig.model_validate_json(json.dumps({"name": "lru", **small, **fields}))


def build(spec: TaskSpec = SPEC, **fields: object) -> LRU:
    torch.manual_seed(0)
    model = config(**fields).build(spec).double().eval()
    assert isinstance(model, LRU)
    return model


def test_the_recurrence_equals_its_equations_in_numpy() -> None:
    torch.manual_seed(0)
    layer = LinearRecurrence(3, 5, r_min=0.2, r_max=0.95, max_phase=2.0).double()
    with torch.no_grad():
        layer.gamma += 0.3 * torch.randn(5)
    p = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    Lambda = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    B_complex, C_complex = p["B"][0] + 1j * p["B"][1], p["C"][0] + 1j * p["C"][1]
    u = np.random.default_rng(0).normal(size=(2, 11, 3))
    found = layer(torch.tensor(u)).detach().numpy()
    for row in range(2):
        x = np.zeros(5, dtype=np.complex128)
        for t in range(11):
            x = Lambda * x + np.exp(p["gamma"]) * (B_complex @ u[row, t])
            expected = (C_complex @ x).real + p["D"] * u[row, t]
            np.testing.assert_allclose(found[row, t], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_model_is_a_stack_of_blocks(norm: str) -> None:
    """The block itself is held against NumPy in test_s4d."""
    model = build(STEPS, norm=norm, final_norm=True)
    x = torch.randn(2, 6, 2, dtype=torch.float64)
    expected = model.input(x)
    for block in model.blocks:
        y = block.norm(expected) if norm == "pre" else expected
        y = block.output(torch.nn.functional.gelu(block.mixer(y)))
        expected = expected + y[..., :3] * torch.sigmoid(y[..., 3:])
        if norm == "post":
            expected = block.norm(expected)
    torch.testing.assert_close(model(x).steps, model.norm(expected), rtol=1e-12, atol=1e-12)


def test_starts_on_the_ring() -> None:
    torch.manual_seed(0)
    layer = LinearRecurrence(50, 4000, r_min=0.4, r_max=0.9, max_phase=1.5)
    Lambda = layer.eigenvalues.detach().numpy()
    radius, phase = np.abs(Lambda), np.angle(Lambda)
    assert 0.4 - 1e-5 <= radius.min() <= 0.42
    assert 0.89 <= radius.max() <= 0.9 + 1e-5
    inside = (radius < np.sqrt((0.4**2 + 0.9**2) / 2)).mean()  # uniform by area: half of it lies within
    assert abs(inside - 0.5) < 0.03
    np.testing.assert_allclose([phase.min(), phase.mean(), phase.max()], [0, 0.75, 1.5], atol=0.03)
    np.testing.assert_allclose(np.exp(layer.gamma.detach().numpy()), np.sqrt(1 - radius**2), rtol=1e-4)
    variances = [layer.B.var().item() * 100, layer.C.var().item() * 4000, layer.D.var().item()]
    np.testing.assert_allclose(variances, [1, 1, 1], rtol=0.5)
    np.testing.assert_allclose(variances[:2], [1, 1], rtol=0.02)


def test_the_whole_disc_starts_finite_and_stable() -> None:
    torch.manual_seed(0)
    layer = LinearRecurrence(2, 100_000, r_min=0.0, r_max=1.0, max_phase=2 * np.pi)
    for parameter in layer.parameters():
        assert torch.isfinite(parameter).all()
    assert layer.eigenvalues.abs().max() <= 1
    with torch.no_grad():
        layer.nu.uniform_(-3, 3)
    assert layer.eigenvalues.abs().max() < 1


def test_gamma_gives_white_noise_the_variance_of_its_projection() -> None:
    torch.manual_seed(0)
    layer = LinearRecurrence(12, 6, r_min=0.5, r_max=0.95, max_phase=3.0).double()
    u = torch.randn(40, 2000, 12, dtype=torch.float64)
    projected = (u @ layer.B.flatten(0, 1).T).var((0, 1)).sum()
    with torch.no_grad():  # y becomes [Re x, Im x]
        layer.C.zero_()
        layer.D.zero_()
        layer.C[0, :6], layer.C[1, 6:] = torch.eye(6), -torch.eye(6)
        states = layer(u)[:, 500:].var((0, 1)).sum()
    assert abs(states / projected - 1) < 0.1


def test_time_scales_are_never_decayed() -> None:
    exempt = {name for name, p in build().named_parameters() if getattr(p, "no_weight_decay", False)}
    assert exempt == {f"blocks.{k}.mixer.{name}" for k in (0, 1) for name in ("nu", "theta", "gamma")}


def test_parameter_count_on_mnist() -> None:
    H = N = 96
    block = 3 * N + 4 * N * H + H + 2 * H * H + 2 * H + 2 * H
    assert LRUConfig().build(MNIST).parameter_count == 225_418 == 2 * H + 4 * block + 10 * H + 10


def test_options_change_the_output() -> None:
    x = torch.randn(2, 6, 2, dtype=torch.float64)
    plain = build()(x).summary
    for fields in (
        {"norm": "pre"},
        {"r_min": 0.5},
        {"r_max": 0.5},
        {"max_phase": 0.3},
        {"summary": "last"},
        {"state_size": 5},
    ):
        assert not torch.allclose(build(**fields)(x).summary, plain), fields
    model = build(final_norm=True)
    torch.nn.init.normal_(model.norm.weight)
    assert not torch.allclose(model(x).summary, plain)


def test_dropout_reaches_the_block() -> None:
    model, x = build(dropout=0.5, tied_dropout=False), torch.randn(2, 5, 2, dtype=torch.float64)
    assert torch.equal(model(x).summary, model(x).summary)
    assert not torch.equal(model.train()(x).summary, model(x).summary)
    assert [block.tied_dropout for block in model.blocks] == [False, False]


def test_half_precision_keeps_float32_states() -> None:
    x = torch.randn(2, 60, 2, dtype=torch.float64)
    expected = build(STEPS)(x).steps
    found = build(STEPS).to(torch.bfloat16)(x.to(torch.bfloat16)).steps
    assert (found.double() - expected).abs().mean() < 0.02
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = build(STEPS).float()(x.float()).steps
    assert (mixed.double() - expected).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r_min": 0.9, "r_max": 0.9}, "not below r_max"),
        ({"tied_dropout": False}, "no effect without dropout"),
    ],
)
def test_bad_settings_are_explained(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        config(**fields).build(SPEC)
