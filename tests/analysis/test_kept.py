"""What a forward pass keeps, by the byte."""

import pytest
import torch

from seqpyramid.analysis.kept import kept_bytes
from seqpyramid.analysis.memory import SyntheticBuild
from seqpyramid.contracts import TaskSpec
from seqpyramid.kernels import library
from seqpyramid.kernels.lstm import padded
from seqpyramid.models import MODELS
from seqpyramid.models.base import ModelConfig
from tests.kernels import needs_kernels, running

CPU = torch.device("cpu")
SPEC = TaskSpec(input_size=1, outputs=3)


def kept(config: ModelConfig, *, B: int, T: int) -> int:
    return kept_bytes(SyntheticBuild(config=config, spec=SPEC, batch_size=B, time=T), CPU)


def config(name: str, **fields: object) -> ModelConfig:
    return MODELS[name].model_validate(fields)


@needs_kernels
def test_an_lstm_keeps_its_gates_and_c() -> None:
    B, T, H = 7, 23, 5
    with running("fused"):
        found = kept(config("lstm", hidden_size=H), B=B, T=T)
    width = padded(H, torch.float32)
    # and the lengths, the sum of two biases, the last h and c that the head reads
    steps = B * T * (width + library.gates_width(H, torch.float32))
    assert found == 4 * steps + 8 * B + 4 * 4 * H + 4 * 2 * B * width


@needs_kernels
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lstm", {"hidden_size": 32}),
        ("gru", {"hidden_size": 32}),
        ("rnn", {"hidden_size": 32}),
        ("tp_rnn", {"hidden_size": 32, "pyramid_length": (10, 5), "granularity": (5, 3)}),
        ("hm_lstm", {"hidden_sizes": (32, 32), "embedding_size": 1}),
    ],
)
def test_memory_is_linear_in_time_and_recomputation_saves_most(name: str, fields: dict[str, object]) -> None:
    with running("fused", threads=2):
        short, long = (kept(config(name, **fields), B=4, T=T) for T in (500, 1000))
        again, longer = (kept(config(name, recompute=True, **fields), B=4, T=T) for T in (1000, 4000))
    assert long == pytest.approx(2 * short, rel=0.02)
    if name == "tp_rnn":
        assert again < long / 7  # the second layer's inputs stay
    else:
        assert again < long / 10
        # the square root of four, and what does not grow; in HM-LSTM z and the output's few numbers of every step do
        assert longer < (3.2 if name == "hm_lstm" else 2.5) * again


@needs_kernels
@pytest.mark.parametrize(
    ("name", "fields", "planes"),
    [
        ("rnn", {"layers": 2}, 0),
        ("gru", {"layers": 2}, 4),
        ("dilated_rnn", {"cell": "elman", "dilations": (1, 1)}, 0),
        ("dilated_rnn", {"cell": "gru", "dilations": (1, 1)}, 3),
    ],
)
def test_of_two_layers_that_recompute_the_inputs_of_the_second_stay(
    name: str, fields: dict[str, object], planes: int
) -> None:
    B, T, H = 4, 9000, 32
    with running("fused", threads=2):
        whole, less = (
            kept(config(name, hidden_size=H, recompute=recompute, **fields), B=B, T=T)
            for recompute in (False, True)
        )
    handed_on = 4 * B * T * H
    assert whole == pytest.approx(2 * (1 + planes) * handed_on, rel=0.02)
    assert less == pytest.approx(handed_on, rel=0.1)


@needs_kernels
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lstm", {"hidden_size": 32}),
        ("tp_rnn", {"hidden_size": 32, "pyramid_length": (10, 5), "granularity": (5, 3)}),
        ("dilated_rnn", {"cell": "lstm", "hidden_size": 32, "layers": 5}),
        ("hm_lstm", {"hidden_sizes": (32, 32), "embedding_size": 8}),
    ],
)
def test_gates_in_16_bits_take_half_of_theirs(name: str, fields: dict[str, object]) -> None:
    with running("fused"):
        whole, short = (
            kept(config(name, gates_in_16_bits=rounded, **fields), B=4, T=500) for rounded in (False, True)
        )
    assert 0.55 < short / whole < 0.8
