"""The layer-norm LSTM against its equations."""

import numpy as np
import torch

from seqpyramid.contracts import TaskSpec
from tests.models.numpy_lstm import MNIST, STEPS, Array, arrays, build, cell, close, normal, ramp, squashed


def layer_norm(z: Array, gamma: Array, beta: Array | float, epsilon: float) -> Array:
    return gamma * (z - z.mean()) / np.sqrt(((z - z.mean()) ** 2).mean() + epsilon) + beta


def test_equals_the_equations_in_numpy() -> None:
    model = ramp(build("ln_lstm", STEPS, hidden_size=4, epsilon=1e-3))
    U, W, b = cell(model)
    gamma_x, gamma_h, gamma_c, beta_c = arrays(model.gamma_x, model.gamma_h, model.gamma_c, model.beta_c)
    x, lengths = normal(2, 6, 2), torch.tensor([6, 4])
    output = model(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        h, c = np.zeros(4), np.zeros(4)
        for t in range(length):
            x_t = x[row, t].numpy()
            v = layer_norm(U @ x_t, gamma_x, 0, 1e-3) + layer_norm(W @ h, gamma_h, 0, 1e-3) + b
            i, f, g, o = squashed(v)
            c = f * c + i * g
            h = o * np.tanh(layer_norm(c, gamma_c, beta_c, 1e-3))
            close(output.steps[row, t], h)
        close(output.summary[row], h)


def test_the_size_of_the_weights_does_not_matter() -> None:
    model = build("ln_lstm", hidden_size=4, epsilon=1e-12)
    x = normal(2, 5, 2)
    before = model(x).outputs
    with torch.no_grad():
        model.cell.weight_ih *= 3
        model.cell.weight_hh *= 7
    torch.testing.assert_close(model(x).outputs, before, rtol=1e-8, atol=1e-8)


def test_of_one_feature_only_the_sign_is_left() -> None:
    model = build("ln_lstm", TaskSpec(input_size=1, outputs=3), hidden_size=4, epsilon=1e-12)
    x = normal(2, 5, 1)
    torch.testing.assert_close(model(x).outputs, model(x.sign()).outputs, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(model(x).outputs, model(-x).outputs)


def test_epsilon_acts() -> None:
    x = normal(2, 5, 2)
    small, large = (build("ln_lstm", hidden_size=4, epsilon=e)(x).outputs for e in (1e-5, 1e-1))
    assert not torch.allclose(small, large)


def test_start() -> None:
    model = build("ln_lstm", hidden_size=4)
    for gain in (model.gamma_x, model.gamma_h, model.gamma_c):
        assert torch.equal(gain, torch.ones_like(gain))
    assert model.beta_c.abs().sum() == 0


def test_small_gains_keep_the_first_gradient_finite() -> None:
    """784 pixels, most of them zero: with gains of 1 the gradient overflows float32."""
    norms = {}
    for gamma in (1.0, 0.1):
        model = build("ln_lstm", MNIST, initial_gamma=gamma).float()
        assert model.gamma_x[0] == model.gamma_h[0] == gamma
        assert model.gamma_c[0] == 1
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(2, 400, 1, generator=generator)
        model(pixels * (pixels > 0.8)).outputs.logsumexp(1).sum().backward()
        norms[gamma] = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    assert norms[0.1] < 100
    assert not norms[1.0] < 1e6


def test_parameter_count() -> None:
    lstm = build("lstm", MNIST).parameter_count
    assert build("ln_lstm", MNIST).parameter_count == lstm + 8 * 100 + 2 * 100 == 42_810
