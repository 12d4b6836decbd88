"""coRNN against its equations in NumPy, and its options."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.cornn import CoRNN, CoRNNConfig

SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
MNIST = TaskSpec(input_size=1, outputs=10)


def build(spec: TaskSpec = SPEC, **fields: object) -> CoRNN:
    torch.manual_seed(0)
    small = {"name": "cornn", "hidden_size": 4, "dt": 0.3, "gamma": 1.7, "epsilon": 2.5}
    model = CoRNNConfig.model_validate_json(json.dumps({**small, **fields})).build(spec).double().eval()
    assert isinstance(model, CoRNN)
    return model


@pytest.mark.parametrize("damping", ["explicit", "implicit"])
def test_equals_the_equations_in_numpy(damping: str) -> None:
    model = build(STEPS, damping=damping)
    V, b = model.weight_ih.detach().numpy(), model.bias.detach().numpy()
    W_z, W_y = model.weight_hh.detach().numpy()[:, :4], model.weight_hh.detach().numpy()[:, 4:]
    x = torch.randn(2, 9, 2, dtype=torch.float64)
    steps = model(x).steps.detach().numpy()
    for row in range(2):
        y, z = np.zeros(4), np.zeros(4)
        for t in range(9):
            drive = np.tanh(W_y @ y + W_z @ z + V @ x[row, t].numpy() + b) - 1.7 * y
            if damping == "explicit":
                z = z + 0.3 * (drive - 2.5 * z)
            else:  # the new z solves z' = z + dt (drive - epsilon z')
                old, z = z, np.linalg.solve((1 + 0.3 * 2.5) * np.eye(4), z + 0.3 * drive)
                np.testing.assert_allclose(z, old + 0.3 * (drive - 2.5 * z), rtol=1e-12)
            y = y + 0.3 * z
            np.testing.assert_allclose(steps[row, t], y, rtol=1e-10, atol=1e-10)


def test_is_one_linear_map_of_input_z_and_y() -> None:
    """The layout of the released code: one map of [u, z, y]."""
    model = build(STEPS)
    joint = nn.Linear(2 + 4 + 4, 4).double()
    with torch.no_grad():
        joint.weight.copy_(torch.cat([model.weight_ih, model.weight_hh], dim=1))
        joint.bias.copy_(model.bias)
    x = torch.randn(3, 6, 2, dtype=torch.float64)
    y = z = torch.zeros(3, 4, dtype=torch.float64)
    for t in range(6):
        z = z + 0.3 * (torch.tanh(joint(torch.cat([x[:, t], z, y], 1))) - 1.7 * y - 2.5 * z)
        y = y + 0.3 * z
    torch.testing.assert_close(model(x).summary, y, rtol=1e-12, atol=1e-12)


def test_without_drive_it_is_a_damped_oscillator() -> None:
    """Weights 0: y'' = -gamma y - epsilon y', whose exact solution the time step approaches."""
    model = build(
        TaskSpec(input_size=2, outputs=3, carry_state=True, needs="steps"), dt=1e-3, gamma=4.0, epsilon=0.4
    )
    with torch.no_grad():
        for parameter in (model.weight_ih, model.weight_hh, model.bias):
            parameter.zero_()
    one = torch.ones(1, 4, dtype=torch.float64)
    found = model(torch.zeros(1, 1000, 2, dtype=torch.float64), state=(one, 0 * one)).steps[0, :, 0].detach()
    t = 1e-3 * np.arange(1, 1001)
    w = np.sqrt(4.0 - 0.2**2)
    exact = np.exp(-0.2 * t) * (np.cos(w * t) + 0.2 / w * np.sin(w * t))
    np.testing.assert_allclose(found.numpy(), exact, atol=2e-3)


def test_both_dampings_meet_as_the_time_step_shrinks() -> None:
    x = torch.randn(1, 1, 2, dtype=torch.float64)

    def difference(dt: float) -> float:
        long = x.expand(1, round(0.5 / dt), 2)
        a, b = (build(dt=dt, damping=how)(long).summary for how in ("explicit", "implicit"))
        return (a - b).abs().max().item()

    assert 1e-6 < difference(0.01) < 0.25 * difference(0.05)


def test_options_change_the_output() -> None:
    x = torch.randn(2, 6, 2, dtype=torch.float64)
    plain = build()(x).summary
    for fields in ({"dt": 0.1}, {"gamma": 1.0}, {"epsilon": 2.0}, {"damping": "implicit"}):
        assert not torch.allclose(build(**fields)(x).summary, plain), fields


@pytest.mark.parametrize(("hidden", "expected"), [(128, 34_314), (256, 134_154)])
def test_parameter_counts_on_mnist(hidden: int, expected: int) -> None:
    """34k and 134k in print."""
    assert build(MNIST, hidden_size=hidden).parameter_count == expected


def test_starts() -> None:
    model = build(hidden_size=200)
    bound = (2 + 400) ** -0.5
    for parameter in (model.weight_ih, model.weight_hh, model.bias):
        assert parameter.abs().max() <= bound
        assert abs(parameter.std().item() / (bound / 3**0.5) - 1) < 0.1


def test_summary_and_state_are_y_and_z() -> None:
    model = build(TaskSpec(input_size=2, outputs=3, carry_state=True))
    x, lengths = torch.randn(2, 5, 2, dtype=torch.float64), torch.tensor([5, 3])
    output = model(x, lengths)
    y, z = output.state
    assert torch.equal(y, output.summary)
    alone = model(x[1:, :3]).state
    torch.testing.assert_close(z[1], alone[1][0])
    assert build()(x).state is None


def test_unstable_damping_is_refused() -> None:
    with pytest.raises(RecipeError, match="grow without bound"):
        build(epsilon=8.0)
    build(epsilon=8.0, damping="implicit")
