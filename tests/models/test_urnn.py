"""uRNN against its equations, and the group its matrix lives in."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.urnn import UnitaryRNN
from tests.models.numpy_lstm import MNIST, STEPS, arrays, build, close, normal, ramp

Complex = NDArray[np.complex128]


def numpy_W(model: UnitaryRNN) -> Complex:
    """D3 R2 F^-1 D2 Pi R1 F D1 as one matrix, from explicit factors."""
    theta, v = arrays(model.W.theta, model.W.v)
    size = theta.shape[1]
    n = np.arange(size)
    F = np.exp(-2j * np.pi * np.outer(n, n) / size) / np.sqrt(size)
    D1, D2, D3 = (np.diag(np.exp(1j * angles)) for angles in theta)
    R1, R2 = (
        np.eye(size) - 2 * np.outer(w, w.conj()) / np.vdot(w, w).real for w in (re + 1j * im for re, im in v)
    )
    Pi = np.eye(size)[model.W.permutation.numpy()]
    result: Complex = D3 @ R2 @ np.linalg.inv(F) @ D2 @ Pi @ R1 @ F @ D1
    return result


def numpy_states(x: NDArray[np.float64], model: UnitaryRNN) -> Complex:
    """(T, F) -> h of every step."""
    W, (V, b, h0) = numpy_W(model), arrays(model.V, model.b, model.h0)
    size = len(b)
    h = h0[0] + 1j * h0[1]
    states = []
    for x_t in x:
        z = W @ h + (V[:size] + 1j * V[size:]) @ x_t
        h = np.maximum(np.abs(z) + b, 0) * z / (np.abs(z) + model.epsilon)
        states.append(h)
    return np.stack(states)


def closing(model: UnitaryRNN) -> UnitaryRNN:
    """Give one unit a bias that closes it now and then."""
    with torch.no_grad():
        model.b[1] = -1.5
    return model


@pytest.mark.parametrize("size", [4, 5])
def test_equals_the_equations_in_numpy(size: int) -> None:
    model = closing(ramp(build("urnn", STEPS, hidden_size=size, epsilon=1e-3)))
    x, lengths = normal(3, 7, 2), torch.tensor([7, 3, 5])
    output = model(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        h = numpy_states(x[row, :length].numpy(), model)
        close(output.steps[row, :length], np.concatenate([h.real, h.imag], axis=1))
        close(output.summary[row], np.concatenate([h[-1].real, h[-1].imag]))
        assert output.steps[row, length:].abs().sum() == 0


def test_modrelu_closes_some_units_and_opens_others() -> None:
    """The equation test above must not pass on the linear part of modReLU alone."""
    model = closing(ramp(build("urnn", STEPS, hidden_size=5)))
    h = np.abs(numpy_states(normal(3, 7, 2)[0].numpy(), model))
    assert 0 < (h[:, 1] == 0).sum() < 7
    assert (h[:, [0, 2, 3, 4]] > 0).all()


def test_W_is_unitary() -> None:
    model = ramp(build("urnn", hidden_size=6))
    z = torch.complex(normal(4, 6), normal(4, 6, seed=1))
    turned = model.W.apply_to(z, model.W.factors())
    torch.testing.assert_close(turned.norm(dim=1), z.norm(dim=1), rtol=1e-12, atol=0)
    W = model.W.apply_to(torch.eye(6, dtype=torch.complex128), model.W.factors()).T
    torch.testing.assert_close(W @ W.conj().T, torch.eye(6, dtype=torch.complex128), rtol=0, atol=1e-12)
    np.testing.assert_allclose(W.detach().numpy(), numpy_W(model), rtol=0, atol=1e-12)


def test_without_input_and_bias_the_state_keeps_its_length() -> None:
    model = build("urnn", STEPS, hidden_size=8, epsilon=1e-14)
    steps = model(torch.zeros(1, 50, 2, dtype=torch.float64)).steps
    torch.testing.assert_close(steps.norm(dim=2), model.h0.norm().expand(1, 50), rtol=1e-10, atol=0)


def test_each_reflection_acts_in_its_own_domain() -> None:
    """Without phases and permutation R1 takes the mean away twice (along F^-1 of the first axis), R2 flips a sign."""
    model = build("urnn", hidden_size=6)
    with torch.no_grad():
        model.W.theta.zero_()
        model.W.v.zero_()[:, 0, 0] = 1.0
        model.W.permutation.copy_(torch.arange(6))
    z = torch.complex(normal(1, 6), normal(1, 6, seed=1))
    expected = z - 2 * z.mean()
    expected[0, 0] *= -1
    torch.testing.assert_close(model.W.apply_to(z, model.W.factors()), expected, rtol=1e-12, atol=1e-12)


def test_length_of_the_reflection_vectors_does_not_matter() -> None:
    model, x = build("urnn", hidden_size=4), normal(2, 5, 2)
    before = model(x).outputs
    with torch.no_grad():
        model.W.v *= 7
    torch.testing.assert_close(model(x).outputs, before, rtol=1e-12, atol=1e-12)


def test_state_goes_with_the_precision() -> None:
    spec = TaskSpec(input_size=2, outputs=3, carry_state=True)
    model = build("urnn", spec, hidden_size=4)
    assert model(normal(2, 5, 2)).state[0].dtype == torch.complex128
    assert model.float()(normal(2, 5, 2).float()).state[0].dtype == torch.complex64
    with pytest.raises(RecipeError, match=r"urnn cannot run in torch.bfloat16: .*; use float32 or float64"):
        model.bfloat16()(normal(2, 5, 2).bfloat16())


def test_runs_where_matrix_products_are_in_bfloat16() -> None:
    model = build("urnn", hidden_size=4).float().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(normal(2, 5, 2).float())
    output.outputs.float().sum().backward()
    assert torch.isfinite(model.W.theta.grad).all()


@pytest.mark.parametrize("init", ["paper", "released"])
def test_start(init: str) -> None:
    model = build("urnn", TaskSpec(input_size=3, outputs=2), hidden_size=600, init=init)
    released = init == "released"
    glorot = math.sqrt(6 / (3 + (2 if released else 1) * 600))
    bounds = {
        "theta": (model.W.theta, math.pi),
        "v": (model.W.v, math.sqrt(6 / 1202) if released else 1.0),
        "V": (model.V, glorot),
        "h0": (model.h0, math.sqrt(3 / 1200)),
    }
    if released:
        bounds["b"] = (model.b, 0.01)
    else:
        assert model.b.abs().sum() == 0
    for name, (parameter, bound) in bounds.items():
        assert 0.98 * bound < parameter.abs().max() <= bound * 1.000001, name
        assert abs(parameter.std().item() / (bound / math.sqrt(3)) - 1) < 0.1, name
    assert abs(model.h0.square().sum().item() - 1) < 0.1
    assert sorted(model.W.permutation.tolist()) == list(range(600))
    assert model.W.permutation.tolist() != list(range(600))


def test_parameter_count() -> None:
    """7 H + 2 H F + H + 2 H, and 2 H K + K for the classifier: not the 9K of later tables."""
    model = build("urnn", MNIST)
    assert sum(p.numel() for p in model.W.parameters()) == 7 * 512
    assert model.parameter_count - (2 * 512 * 10 + 10) == 6_144
    assert model.parameter_count == 16_394


def test_epsilon_acts() -> None:
    x = normal(2, 5, 2)
    small, large = (build("urnn", hidden_size=4, epsilon=e)(x).outputs for e in (1e-5, 1e-1))
    assert not torch.allclose(small, large)
