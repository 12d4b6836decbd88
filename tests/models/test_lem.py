"""LEM against its equations in NumPy, and its options."""

import json

import numpy as np
import pytest
import torch

from seqpyramid.contracts import TaskSpec
from seqpyramid.models.lem import LEM, LEMConfig

SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
MNIST = TaskSpec(input_size=1, outputs=10)


def build(spec: TaskSpec = SPEC, **fields: object) -> LEM:
    torch.manual_seed(0)
    small = {"name": "lem", "hidden_size": 4, "dt": 0.7}
    model = LEMConfig.model_validate_json(json.dumps({**small, **fields})).build(spec).double().eval()
    assert isinstance(model, LEM)
    return model


@pytest.mark.parametrize("bias", ["single", "double"])
def test_equals_the_equations_in_numpy(bias: str) -> None:
    model = build(STEPS, bias=bias)
    p = {name: value.detach().numpy() for name, value in model.named_parameters() if "head" not in name}
    V = np.split(p["weight_ih"], 4)
    W = [*np.split(p["weight_yh"], 3), p["weight_zh"]]
    b = np.split(p["bias_ih"], 4)
    if bias == "double":
        second = [*np.split(p["bias_yh"], 3), p["bias_zh"]]
        b = [one + other for one, other in zip(b, second, strict=True)]
    x = torch.randn(2, 9, 2, dtype=torch.float64)
    steps = model(x).steps.detach().numpy()
    for row in range(2):
        y, z = np.zeros(4), np.zeros(4)
        for t in range(9):
            u = x[row, t].numpy()
            dt_z = 0.7 / (1 + np.exp(-(W[0] @ y + V[0] @ u + b[0])))
            dt_y = 0.7 / (1 + np.exp(-(W[1] @ y + V[1] @ u + b[1])))
            z = (1 - dt_z) * z + dt_z * np.tanh(W[2] @ y + V[2] @ u + b[2])
            y = (1 - dt_y) * y + dt_y * np.tanh(W[3] @ z + V[3] @ u + b[3])
            np.testing.assert_allclose(steps[row, t], y, rtol=1e-10, atol=1e-10)


def test_open_time_scales_make_it_an_elman_network_of_two_layers() -> None:
    model = build(STEPS, dt=1.0)
    with torch.no_grad():
        model.bias_ih[:8] = 60.0
    x = torch.randn(2, 6, 2, dtype=torch.float64)
    y = torch.zeros(2, 4, dtype=torch.float64)
    V_z, V_y = model.weight_ih[8:12], model.weight_ih[12:]
    for t in range(6):
        z = torch.tanh(y @ model.weight_yh[8:].T + x[:, t] @ V_z.T + model.bias_ih[8:12] + model.bias_yh[8:])
        y = torch.tanh(z @ model.weight_zh.T + x[:, t] @ V_y.T + model.bias_ih[12:] + model.bias_zh)
    torch.testing.assert_close(model(x).summary, y, rtol=1e-12, atol=1e-12)


def test_shut_time_scales_keep_the_state() -> None:
    model = build(TaskSpec(input_size=2, outputs=3, carry_state=True))
    with torch.no_grad():
        model.bias_ih[:8] = -60.0
    before = tuple(torch.randn(2, 4, dtype=torch.float64) for _ in range(2))
    after = model(torch.randn(2, 6, 2, dtype=torch.float64), state=before).state
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_each_time_scale_moves_its_own_state() -> None:
    for rows, frozen in ((slice(0, 4), 1), (slice(4, 8), 0)):
        model = build(TaskSpec(input_size=2, outputs=3, carry_state=True))
        with torch.no_grad():
            model.bias_ih[rows] = -60.0
        state = model(torch.randn(2, 6, 2, dtype=torch.float64)).state
        assert state[frozen].abs().max() < 1e-20
        assert state[1 - frozen].abs().min() > 1e-6


def test_options_change_the_output() -> None:
    x = torch.randn(2, 6, 2, dtype=torch.float64)
    plain = build()(x).summary
    for fields in ({"dt": 0.1}, {"bias": "single"}):
        assert not torch.allclose(build(**fields)(x).summary, plain), fields


@pytest.mark.parametrize(("bias", "expected"), [("double", 68_362), ("single", 67_850)])
def test_parameter_counts_on_mnist(bias: str, expected: int) -> None:
    """68k in print."""
    assert build(MNIST, hidden_size=128, bias=bias).parameter_count == expected


def test_starts() -> None:
    model = build(hidden_size=400)
    for name, parameter in model.named_parameters(recurse=False):
        assert parameter.abs().max() <= 0.05, name
        assert abs(parameter.std().item() / (0.05 / 3**0.5) - 1) < 0.1, name


def test_state_is_the_one_at_each_own_end() -> None:
    model = build(TaskSpec(input_size=2, outputs=3, carry_state=True))
    x, lengths = torch.randn(2, 5, 2, dtype=torch.float64), torch.tensor([5, 3])
    output, alone = model(x, lengths), model(x[1:, :3])
    assert torch.equal(output.state[0], output.summary)
    torch.testing.assert_close([s[1] for s in output.state], [s[0] for s in alone.state])
    assert build()(x).state is None
