"""The time-delay network against its equation in NumPy, and as a linear layer on spliced frames."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.tdnn import TDNN, TDNNConfig, TDNNLayer

Array = NDArray[np.float64]
SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
FUNCTIONS = {"sigmoid": lambda a: 1 / (1 + np.exp(-a)), "tanh": np.tanh, "relu": lambda a: np.maximum(a, 0)}


def build(spec: TaskSpec = SPEC, **fields: object) -> TDNN:
    torch.manual_seed(0)
    base: dict[str, object] = {"channels": [3, 4], "kernel_sizes": [3, 2]}
    model = TDNNConfig.model_validate_json(json.dumps(base | fields)).build(spec).double().eval()
    assert isinstance(model, TDNN)
    return model


def inputs(batch: int = 3, time: int = 9) -> Tensor:
    return torch.randn(batch, time, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def numpy_tdnn(x: Array, model: TDNN, windows: list[tuple[int, int, int]], function: str) -> Array:
    """All frames of the top layer for one sequence, one weight matrix and one delay after the other."""
    for layer, (k, d, s) in zip(model.layers, windows, strict=True):
        weight, b = layer.conv.weight.detach().numpy(), layer.conv.bias.detach().numpy()
        frames = []
        for end in range(s - 1, s - 1 + s * -(-len(x) // s), s):  # the newest step of each window
            a = b.copy()
            for j in range(k):
                if 0 <= end - j * d < len(x):
                    a += weight[:, :, k - 1 - j] @ x[end - j * d]
            frames.append(FUNCTIONS[function](a))
        x = np.stack(frames)
    return x


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dilations", [[1, 1], [2, 3]])
@pytest.mark.parametrize("strides", [[1, 1], [1, 2], [3, 2]])
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_equals_the_equation_in_numpy(
    function: str, dilations: list[int], strides: list[int], readout: str
) -> None:
    model = build(activation=function, dilations=dilations, strides=strides, readout=readout)
    x, lengths = inputs(), torch.tensor([9, 1, 5])
    summary = model(x, lengths).summary.detach().numpy()
    windows = list(zip([3, 2], dilations, strides, strict=True))
    for row, length in enumerate(lengths):
        frames = numpy_tdnn(x[row, :length].numpy(), model, windows, function)
        expected = frames[-1] if readout == "last" else frames.mean(0)
        np.testing.assert_allclose(summary[row], expected, rtol=1e-10, atol=1e-10)


def test_every_step_equals_the_equation_in_numpy() -> None:
    model, x = build(STEPS, dilations=[1, 3]), inputs()
    for row in range(3):
        expected = numpy_tdnn(x[row].numpy(), model, [(3, 1, 1), (2, 3, 1)], "sigmoid")
        np.testing.assert_allclose(model(x).steps[row].detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_a_layer_is_a_linear_layer_on_spliced_frames() -> None:
    k, d = 3, 2
    layer = TDNNLayer(2, 5, kernel_size=k, dilation=d, activation="tanh").double()
    x = inputs(2, 10)
    before = torch.cat([x.new_zeros(2, (k - 1) * d, 2), x], dim=1)
    spliced = torch.cat([before[:, j * d : j * d + 10] for j in range(k)], dim=-1)  # oldest frame first
    linear = nn.Linear(k * 2, 5).double()
    with torch.no_grad():
        linear.weight.copy_(layer.conv.weight.transpose(1, 2).reshape(5, k * 2))
        linear.bias.copy_(layer.conv.bias)
    frames, _ = layer(x, torch.tensor([10, 10]))
    torch.testing.assert_close(frames, torch.tanh(linear(spliced)), rtol=1e-12, atol=1e-12)


def test_a_window_of_one_frame_is_a_perceptron_at_every_step() -> None:
    model, x = build(STEPS, kernel_sizes=[1, 1]), inputs()
    for t in range(x.shape[1]):
        torch.testing.assert_close(
            model(x).steps[:, t], model(x[:, t : t + 1]).steps[:, 0], rtol=0, atol=1e-14
        )


def test_a_frame_sees_its_window_and_nothing_else() -> None:
    """Receptive field: 1 + (3 - 1) * 2 + (2 - 1) * 3 = 8 steps, of which these."""
    model = build(STEPS, dilations=[2, 3])
    x = inputs(1, 12).requires_grad_()
    model(x).steps[0, 11].sum().backward()
    seen = x.grad.abs().sum((0, 2)).nonzero().flatten().tolist()
    assert seen == sorted({11 - 2 * j - 3 * i for j, i in product(range(3), range(2))})


def test_with_strides_every_step_is_read() -> None:
    """Seven steps in blocks of 2, then 2: the last blocks are short, and their steps count."""
    model = build(kernel_sizes=[2, 2], strides=[2, 2], readout="mean")
    x = inputs(1, 7).requires_grad_()
    model(x).summary.sum().backward()
    assert (x.grad.abs().sum((0, 2)) > 0).all()


def test_parameters() -> None:
    assert build().parameter_count == 3 * (2 * 3 + 1) + 4 * (3 * 2 + 1) + (4 * 3 + 3)
    spec = TaskSpec(input_size=1, outputs=10)
    row = TDNNConfig(channels=(50, 50, 50), kernel_sizes=(7, 7, 7), dilations=(1, 7, 49), readout="mean")
    assert row.build(spec).parameter_count == 50 * 8 + 2 * 50 * (50 * 7 + 1) + 510 == 36_010


@pytest.mark.parametrize(
    "fields",
    [
        {"dilations": [1, 2]},
        {"strides": [2, 1]},
        {"readout": "mean"},
        {"activation": "tanh"},
        {"activation": "relu"},
        {"init": "tensorflow"},
        {"head_init": "released_tp_rnn"},
    ],
)
def test_every_option_changes_the_output(fields: dict[str, object]) -> None:
    assert not torch.allclose(build(**fields)(inputs()).outputs, build()(inputs()).outputs)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    for init, bound in (("torch", (7 * 60) ** -0.5), ("tensorflow", (6 / (7 * (60 + 40))) ** 0.5)):
        conv = TDNNLayer(60, 40, kernel_size=7, init=init).conv
        assert conv.weight.abs().max() <= bound
        assert abs(conv.weight.std().item() / (bound / 3**0.5) - 1) < 0.02
        assert (conv.bias.abs().max() == 0) == (init == "tensorflow")


def test_a_window_may_just_span_the_sequence() -> None:
    model = build(TaskSpec(input_size=2, outputs=3, max_length=8), kernel_sizes=[8, 8])
    model(inputs(2, 8)).outputs.sum().backward()
    assert (model.layers[1].conv.weight.grad.abs().sum((0, 1)) > 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel_sizes": [3]}, "kernel_sizes: has 1 entries but channels has 2; give one for each layer"),
        ({"dilations": [1, 1, 1]}, "dilations: has 3 entries"),
        ({"strides": [2]}, "strides: has 1 entries"),
        ({"kernel_sizes": [3, 1], "dilations": [1, 2]}, "no effect in layer 2, whose window is one frame"),
        ({"kernel_sizes": [3, 9]}, "layer 2 looks 8 frames back, but has at most 8 "),
        ({"kernel_sizes": [3, 5], "strides": [2, 1]}, "layer 2 looks 4 frames back, but has at most 4 "),
    ],
)
def test_impossible_settings_are_explained(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build(TaskSpec(input_size=2, outputs=3, max_length=8), **fields)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"readout": "mean"}, "readout: a mean over time is one answer"),
        ({"strides": [2, 1]}, "strides: leave fewer"),
    ],
)
def test_what_has_no_output_a_step_says_so(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build(STEPS, **fields)
    assert len(caught.value.problems) == 1
