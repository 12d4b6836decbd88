r"""The gradients of an Elman network, derived by hand, against what autograd gives our ``rnn``.

For one sequence, with a loss at every step,

.. math::
    h^{(t)} &= \tanh(W h^{(t-1)} + U x^{(t)} + b) \\
    o^{(t)} &= V h^{(t)} + c \\
    L &= -\sum_t \log \operatorname{softmax}(o^{(t)})_{y^{(t)}}

the chain rule gives, from the last step backwards,

.. math::
    \delta_o^{(t)} &= \operatorname{softmax}(o^{(t)}) - e_{y^{(t)}} \\
    \delta_h^{(t)} &= V^\top \delta_o^{(t)} + W^\top \delta_a^{(t+1)}, \qquad
    \delta_a^{(t)} = (1 - h^{(t)} \odot h^{(t)}) \odot \delta_h^{(t)} \\
    \nabla_V L &= \sum_t \delta_o^{(t)} h^{(t)\top}, \quad \nabla_c L = \sum_t \delta_o^{(t)} \\
    \nabla_W L &= \sum_t \delta_a^{(t)} h^{(t-1)\top}, \quad
    \nabla_U L = \sum_t \delta_a^{(t)} x^{(t)\top}, \quad \nabla_b L = \sum_t \delta_a^{(t)}

Because :math:`o^{(t)}` reads :math:`h^{(t)}`, the gradient of V has the state of the same step; some course notes
print the state before it there, which is right for W only.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as nnf

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.rnn import RecurrentStack, RNNConfig

Array = NDArray[np.float64]
F, H, K, T = 2, 4, 3, 6


@pytest.fixture
def model() -> RecurrentStack:
    """Our ``rnn`` with weights from a sine ramp, no two equal."""
    built = RNNConfig(hidden_size=H).build(TaskSpec(input_size=F, outputs=K, needs="steps")).double()
    assert isinstance(built, RecurrentStack)
    n = 0
    with torch.no_grad():
        for p in built.parameters():
            if p.requires_grad:
                p.copy_(torch.sin(torch.arange(n, n + p.numel(), dtype=p.dtype) * 1.7).reshape(p.shape) * 0.8)
                n += p.numel()
    return built


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, T, F, generator=generator, dtype=torch.float64)
    return x, torch.randint(K, (3, T), generator=generator)


def weights(model: RecurrentStack) -> dict[str, Tensor]:
    layer = model.layers[0]
    return {
        "U": layer.weight_ih_l0,
        "W": layer.weight_hh_l0,
        "b": layer.bias_ih_l0,
        "V": model.head.linear.weight,
        "c": model.head.linear.bias,
    }


def by_autograd(model: RecurrentStack, x: Tensor, y: Tensor) -> dict[str, Array]:
    outputs = model(x).outputs
    nnf.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="sum").backward()
    found = {}
    for name, parameter in weights(model).items():
        assert parameter.grad is not None
        found[name] = parameter.grad.numpy()
    return found


def by_hand(model: RecurrentStack, xs: Array, ys: NDArray[np.int64]) -> dict[str, Array]:
    """The equations above, summed over the sequences; ``V_slip`` has the state of the step before."""
    U, W, b, V, c = (weights(model)[name].detach().numpy() for name in "UWbVc")
    total: dict[str, Array] = {
        name: np.zeros_like(value) for name, value in zip("UWbVc", (U, W, b, V, c), strict=True)
    }
    total["V_slip"] = np.zeros_like(V)
    for x, y in zip(xs, ys, strict=True):
        h = [np.zeros(H)]  # h[t] is the state after t steps
        for x_t in x:
            h.append(np.tanh(W @ h[-1] + U @ x_t + b))
        delta_a = np.zeros(H)
        for t in range(T, 0, -1):
            o = V @ h[t] + c
            delta_o = np.exp(o) / np.exp(o).sum() - np.eye(K)[y[t - 1]]
            delta_h = V.T @ delta_o + W.T @ delta_a
            delta_a = (1 - h[t] ** 2) * delta_h
            total["V"] += np.outer(delta_o, h[t])
            total["V_slip"] += np.outer(delta_o, h[t - 1])
            total["c"] += delta_o
            total["W"] += np.outer(delta_a, h[t - 1])
            total["U"] += np.outer(delta_a, x[t - 1])
            total["b"] += delta_a
    return total


@pytest.mark.parametrize("name", ["V", "c", "W", "U", "b"])
def test_gradient_by_hand_equals_autograd(model: RecurrentStack, name: str) -> None:
    x, y = batch()
    expected = by_hand(model, x.numpy(), y.numpy())[name]
    assert np.abs(expected).min() > 1e-6  # nothing is right by being zero
    np.testing.assert_allclose(by_autograd(model, x, y)[name], expected, rtol=1e-10, atol=1e-10)


def test_the_state_before_is_wrong_for_the_output_weights(model: RecurrentStack) -> None:
    x, y = batch()
    found, slip = by_autograd(model, x, y)["V"], by_hand(model, x.numpy(), y.numpy())["V_slip"]
    assert np.linalg.norm(found - slip) > 0.5 * np.linalg.norm(found)


def test_a_difference_quotient_agrees_with_the_state_of_the_same_step(model: RecurrentStack) -> None:
    """Without autograd and without the chain rule: move one entry of V and look at the loss."""
    x, y = batch()
    by_rule, V, step = by_hand(model, x.numpy(), y.numpy()), weights(model)["V"], 1e-5

    def loss_at(offset: float) -> float:
        with torch.no_grad():
            V[1, 2] += offset
            outputs = model(x).outputs.flatten(0, 1)
            V[1, 2] -= offset
            return nnf.cross_entropy(outputs, y.flatten(), reduction="sum").item()

    quotient = (loss_at(step) - loss_at(-step)) / (2 * step)
    assert quotient == pytest.approx(by_rule["V"][1, 2], rel=1e-6)
    assert quotient != pytest.approx(by_rule["V_slip"][1, 2], rel=1e-2)


def test_gradients_of_a_loss_at_the_end_only(model: RecurrentStack) -> None:
    """With one loss at step T, delta_o is zero before it; W still collects every step on the way."""
    x, y = batch()
    model(x).outputs[:, -1].gather(1, y[:, -1:]).sum().backward()
    U, W, b, V = (weights(model)[name].detach().numpy() for name in "UWbV")
    expected = np.zeros_like(W)
    for x_n, y_n in zip(x.numpy(), y.numpy(), strict=True):
        h = [np.zeros(H)]
        for x_t in x_n:
            h.append(np.tanh(W @ h[-1] + U @ x_t + b))
        delta_h = V[y_n[-1]]
        for t in range(T, 0, -1):
            delta_a = (1 - h[t] ** 2) * delta_h
            expected += np.outer(delta_a, h[t - 1])
            delta_h = W.T @ delta_a
    grad = weights(model)["W"].grad
    assert grad is not None
    np.testing.assert_allclose(grad.numpy(), expected, rtol=1e-10, atol=1e-10)
