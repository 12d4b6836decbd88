"""Skipped RNN against its equation in NumPy, and what it must reduce to."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.rnn import RNNConfig
from seqpyramid.models.skip import SkipRNN, SkipRNNConfig

SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")


def config(**fields: object) -> SkipRNNConfig:
    base: dict[str, object] = {"hidden_size": 3, "layers": 1, "skip": 3}
    return SkipRNNConfig.model_validate_json(json.dumps(base | fields))


def build(spec: TaskSpec = STEPS, **fields: object) -> SkipRNN:
    """A model whose every number is different, the biases too."""
    model = config(**fields).build(spec).double().eval()
    n = 0
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.sin(torch.arange(n, n + p.numel(), dtype=p.dtype) * 1.7).reshape(p.shape) * 0.6)
            n += p.numel()
    return model


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("skip", [2, 3, 5, 20])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("T", [1, 5, 6, 11])
def test_equals_the_equation_in_numpy(skip: int, layers: int, T: int) -> None:
    model = build(skip=skip, layers=layers)
    x = noise(2, T, 2)
    lengths = torch.tensor([T, (T + 1) // 2])
    output = model(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        xs = list(x[row, :length].numpy())
        for layer in model.layers:
            W, U, V, b = (p.detach().numpy() for p in (layer.W, layer.U, layer.V, layer.b))
            hs: list[np.ndarray] = []
            for t, x_t in enumerate(xs):
                near = hs[t - 1] if t >= 1 else np.zeros(3)
                far = hs[t - skip] if t >= skip else np.zeros(3)
                hs.append(np.tanh(W @ x_t + U @ near + V @ far + b))
            xs = hs
        np.testing.assert_allclose(output.steps[row, :length].detach().numpy(), xs, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(output.summary[row].detach().numpy(), xs[-1], rtol=1e-10, atol=1e-10)
        assert not output.steps[row, length:].any()


def test_without_the_skip_it_is_the_plain_stack() -> None:
    model = build(layers=2)
    plain = RNNConfig(hidden_size=3, layers=2).build(STEPS).double()
    with torch.no_grad():
        for layer, other in zip(model.layers, plain.layers, strict=True):
            layer.V.zero_()
            other.weight_ih_l0.copy_(layer.W)
            other.weight_hh_l0.copy_(layer.U)
            other.bias_ih_l0.copy_(layer.b)
    x = noise(2, 8, 2)
    torch.testing.assert_close(model(x).steps, plain(x).steps, rtol=1e-12, atol=1e-12)


def test_without_the_neighbour_it_is_a_dilated_layer() -> None:
    model = build(skip=3)
    with torch.no_grad():
        model.layers[0].U.zero_()
    x = noise(2, 9, 2)
    changed = x.clone()
    changed[:, 2] += 1
    moved = (model(changed).steps - model(x).steps).abs().amax((0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [2, 5, 8]


def test_options_reach_the_model() -> None:
    x = noise(2, 9, 2)
    summary = build()(x).summary
    assert not torch.allclose(build(skip=4)(x).summary, summary)
    assert not torch.allclose(build(layers=2)(x).summary, summary)
    assert build().step_loop


def test_parameter_counts() -> None:
    mnist = TaskSpec(input_size=1, outputs=10, max_length=784)
    assert SkipRNNConfig().build(mnist).parameter_count == 10_810
    # printed as 16k, which neither this nor the layer without V (10,175) gives
    assert SkipRNNConfig(hidden_size=95, layers=1, skip=21).build(mnist).parameter_count == 19_200


def test_starts() -> None:
    torch.manual_seed(0)
    spec = TaskSpec(input_size=60, outputs=10)
    glorot = config(hidden_size=40).build(spec).layers[0]
    uniform = config(hidden_size=40, init="torch").build(spec).layers[0]
    for layer, bound in ((glorot, (6 / (60 + 3 * 40)) ** 0.5), (uniform, 40**-0.5)):
        for weight in (layer.W, layer.U, layer.V):
            assert 0.95 * bound < weight.abs().max() <= bound
            assert abs(weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.08
    assert glorot.b.abs().sum() == 0
    assert 0 < uniform.b.abs().max() <= 40**-0.5
    head = config(hidden_size=200).build(spec).head.linear
    assert abs(head.weight.std().item() - 1) < 0.06


def test_a_skip_that_never_acts_is_refused() -> None:
    with pytest.raises(RecipeError, match="skip: is 9, but the task's sequences have 9 steps"):
        config(skip=9).build(TaskSpec(input_size=1, outputs=3, max_length=9))
    config(skip=8).build(TaskSpec(input_size=1, outputs=3, max_length=9))
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        config(skip=1)
