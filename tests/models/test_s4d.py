"""S4D and the block around it against the step form in NumPy, and their options."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import erf
from torch import nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.blocks import GatedBlock, summarize
from seqpyramid.models.s4d import S4D, DiagonalSSM, S4DConfig, expm1, smooth_length, split

Array = NDArray[np.float64]
SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
MNIST = TaskSpec(input_size=1, outputs=10)


def config(**fields: object) -> S4DConfig:
    small = {"hidden_size": 3, "layers": 2, "state_size": 4, "dt_min": 0.05, "dt_max": 0.5}
    return S4DConfig.model_validate_json(json.dumps({"name": "s4d", **small, **fields}))


def build(spec: TaskSpec = SPEC, **fields: object) -> S4D:
    """With every parameter moved away from its start, so that none is 0 or 1."""
    torch.manual_seed(0)
    model = config(**fields).build(spec).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    assert isinstance(model, S4D)
    return model


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def linear(layer: nn.Module, x: Array) -> Array:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def layer_norm(norm: nn.Module, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def numpy_steps(ssm: DiagonalSSM, u: Array) -> Array:
    """The recurrence, one step and one unit after the other, with all N states: (T, H) -> (T, H)."""
    p = {name: value.detach().numpy() for name, value in ssm.named_parameters()}
    out = np.zeros_like(u)
    for h in range(u.shape[1]):
        A = -np.exp(p["log_A_real"][h]) + 1j * p["A_imag"][h]
        C = p["C"][h, :, 0] + 1j * p["C"][h, :, 1]
        A, C = np.concatenate([A, A.conj()]), np.concatenate([C, C.conj()])
        dt = np.exp(p["log_dt"][h])
        s = np.zeros(len(A), dtype=np.complex128)
        for t in range(len(u)):
            s = np.exp(dt * A) * s + (np.exp(dt * A) - 1) / A * u[t, h]
            y = (C * s).sum()
            assert abs(y.imag) < 1e-12
            out[t, h] = y.real + p["D"][h] * u[t, h]
    return out


def numpy_block(block: GatedBlock, x: Array, pre: bool) -> Array:
    y = numpy_steps(block.mixer, layer_norm(block.norm, x) if pre else x)
    y = 0.5 * y * (1 + erf(y / np.sqrt(2)))
    value, gate = np.split(linear(block.output, y), 2, axis=-1)
    x = x + value * sigmoid(gate)
    return x if pre else layer_norm(block.norm, x)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("final_norm", [False, True])
def test_equals_the_step_form_in_numpy(norm: str, final_norm: bool) -> None:
    model = build(STEPS, norm=norm, final_norm=final_norm)
    x = torch.randn(2, 13, 2, dtype=torch.float64)
    steps = model(x).steps
    for row in range(2):
        expected = linear(model.input, x[row].numpy())
        for block in model.blocks:
            expected = numpy_block(block, expected, norm == "pre")
        if final_norm:
            expected = layer_norm(model.norm, expected)
        np.testing.assert_allclose(steps[row].detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("time", [1, 2, 3, 7, 16, 50])
def test_the_factored_kernel_is_the_sum_of_powers(time: int) -> None:
    ssm = build().blocks[0].mixer
    p = {name: value.detach().numpy() for name, value in ssm.named_parameters()}
    A = -np.exp(p["log_A_real"]) + 1j * p["A_imag"]
    dt = np.exp(p["log_dt"])[:, None]
    weights = (p["C"][..., 0] + 1j * p["C"][..., 1]) * (np.exp(dt * A) - 1) / A
    expected = np.stack([2 * (weights * np.exp(t * dt * A)).sum(1).real for t in range(time)], axis=1)
    np.testing.assert_allclose(ssm.kernel(time).detach().numpy(), expected, rtol=1e-11, atol=1e-12)


def test_split_covers_every_step() -> None:
    for time in range(1, 200):
        rows, columns = split(time)
        assert (rows - 1) * columns < time <= rows * columns
        assert rows + columns <= 2 * np.sqrt(time) + 2


def test_smooth_lengths() -> None:
    assert [smooth_length(n) for n in (1, 7, 11, 1567, 31_999)] == [1, 8, 12, 1600, 32_000]


def test_expm1_keeps_small_arguments() -> None:
    z = torch.tensor([1e-9 + 1e-9j, -0.5 + 3j, 2 - 7j], dtype=torch.complex128)
    np.testing.assert_allclose(expm1(z).numpy(), np.expm1(z.numpy()), rtol=1e-14)
    single = torch.tensor([1e-6 + 1e-6j], dtype=torch.complex64)
    np.testing.assert_allclose(
        expm1(single).numpy(), np.expm1(single.numpy().astype(np.complex128)), rtol=1e-6
    )


def test_starts() -> None:
    torch.manual_seed(0)
    ssm = DiagonalSSM(400, 64, dt_min=1e-3, dt_max=0.1)
    torch.testing.assert_close(-torch.exp(ssm.log_A_real), torch.full((400, 32), -0.5))
    torch.testing.assert_close(ssm.A_imag[7], torch.pi * torch.arange(32.0))
    log10 = ssm.log_dt.detach().numpy() / np.log(10)
    assert log10.min() >= -3
    assert log10.max() <= -1
    np.testing.assert_allclose([log10.mean(), log10.std()], [-2, 2 / np.sqrt(12)], atol=0.1)
    variance = ssm.C.detach().square().mean((0, 1))
    np.testing.assert_allclose(variance, [0.5, 0.5], rtol=0.05)
    assert abs(ssm.D.std().item() - 1) < 0.15


def test_time_scales_are_never_decayed() -> None:
    model = config().build(SPEC).double()
    exempt = {name for name, p in model.named_parameters() if getattr(p, "no_weight_decay", False)}
    assert exempt == {
        f"blocks.{k}.mixer.{name}" for k in (0, 1) for name in ("log_dt", "log_A_real", "A_imag")
    }


@pytest.mark.parametrize(("final_norm", "expected"), [(False, 201_226), (True, 201_482)])
def test_parameter_count_on_mnist(final_norm: bool, expected: int) -> None:
    """With a last norm it is the count of the run that literature reports with 97.79 on permuted MNIST."""
    model = S4DConfig(norm="pre", final_norm=final_norm).build(MNIST)
    H, N = 128, 64
    block = H + H * N + 2 * H * N // 2 + H + 2 * H * H + 2 * H + 2 * H
    assert model.parameter_count == expected == 2 * H + 4 * block + 10 * H + 10 + 2 * H * final_norm


def test_summaries() -> None:
    x, lengths = torch.randn(2, 6, 2, dtype=torch.float64), torch.tensor([6, 4])
    steps = build(STEPS)(x, lengths).steps
    mean, last = (build(summary=how)(x, lengths).summary for how in ("mean", "last"))
    torch.testing.assert_close(mean, torch.stack([steps[0].mean(0), steps[1, :4].mean(0)]))
    torch.testing.assert_close(last, torch.stack([steps[0, 5], steps[1, 3]]))
    torch.testing.assert_close(summarize(steps, lengths, "mean"), mean)


@pytest.mark.parametrize("tied", [True, False])
def test_dropout(tied: bool) -> None:
    torch.manual_seed(0)
    block = GatedBlock(nn.Identity(), 50, norm="pre", dropout=0.4, tied_dropout=tied)
    x = torch.ones(2, 20, 50)
    assert torch.equal(block.eval()._drop(x), x)
    dropped = block.train()._drop(x)
    assert set(dropped.unique().tolist()) == {0.0, x.new_tensor(1 / 0.6).item()}
    assert abs((dropped == 0).float().mean() - 0.4) < 0.1
    same_at_all_steps = (dropped == dropped[:, :1]).all().item()
    assert same_at_all_steps == tied
    assert not torch.equal(dropped[0], dropped[1])


def test_dropout_reaches_the_block() -> None:
    model = build(dropout=0.5)
    x = torch.randn(2, 5, 2, dtype=torch.float64)
    assert torch.equal(model(x).summary, model(x).summary)
    assert not torch.equal(model.train()(x).summary, model(x).summary)


def test_options_change_the_output() -> None:
    x = torch.randn(2, 6, 2, dtype=torch.float64)
    plain = build()(x).summary
    for fields in (
        {"norm": "pre"},
        {"final_norm": True},
        {"dt_max": 0.1},
        {"dt_min": 0.2},
        {"state_size": 6},
    ):
        assert not torch.allclose(build(**fields)(x).summary, plain), fields


def test_half_precision_keeps_a_float32_kernel() -> None:
    model = build(STEPS)
    x = torch.randn(2, 40, 2, dtype=torch.float64)
    expected = model(x).steps
    half = build(STEPS).to(torch.bfloat16)
    assert half.blocks[0].mixer.kernel(5).dtype == torch.float32
    found = half(x.to(torch.bfloat16)).steps
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).abs().max() < 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = build(STEPS).float()(x.float()).steps
    assert (mixed.double() - expected).abs().max() < 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dt_min": 0.2, "dt_max": 0.1}, "above dt_max"),
        ({"tied_dropout": False}, "no effect without dropout"),
    ],
)
def test_bad_settings_are_explained(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        config(**fields).build(SPEC)


def test_states_come_in_pairs() -> None:
    with pytest.raises(ValidationError, match="multiple of 2"):
        config(state_size=3)
