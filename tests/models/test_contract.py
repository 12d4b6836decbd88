"""The promises of models/base.py, for every entry of the MODELS table."""

import io

import pytest
import torch
from torch import Tensor

from seqpyramid.analysis.cost import flops
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import DataError, RecipeError
from seqpyramid.models import MODELS
from seqpyramid.models.base import ModelConfig, SequenceModel
from tests.models.tiny import TINY, label, tiny_configs

CONFIGS = tiny_configs()
T = 11
LENGTHS = torch.tensor([11, 1, 4, 7, 8])

ROUNDED_TOGETHER = {"s4d": 1e-13}
"""Tolerance of a model whose FFT runs over a whole sequence, so that a step's last bit depends on later ones."""


def build(config: ModelConfig, needs: str = "summary", *, carry_state: bool = False) -> SequenceModel:
    torch.manual_seed(0)
    spec = TaskSpec(input_size=2, outputs=3, needs=needs, carry_state=carry_state)  # type: ignore[arg-type]
    return config.build(spec).double().eval()


def cases(**wanted: bool) -> list[object]:
    """(config, needs) for everything that each config emits."""
    chosen = [c for c in CONFIGS if all(getattr(c, key) == value for key, value in wanted.items())]
    return [pytest.param(c, needs, id=f"{label(c)}-{needs}") for c in chosen for needs in sorted(c.emits)]


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(len(LENGTHS), T, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_model_has_a_tiny_config() -> None:
    assert set(TINY) == set(MODELS)
    assert all(TINY.values())


@pytest.mark.parametrize(("config", "needs"), cases())
def test_shapes(config: ModelConfig, needs: str) -> None:
    output = build(config, needs)(inputs(), LENGTHS)
    assert output.outputs.shape == ((5, 3) if needs == "summary" else (5, T, 3))
    assert len(output.summary) == 5
    assert torch.isfinite(output.outputs).all()


@pytest.mark.parametrize(("config", "needs"), cases())
def test_padding_changes_nothing(config: ModelConfig, needs: str) -> None:
    model, x = build(config, needs), inputs()
    other = x.clone()
    for row, length in enumerate(LENGTHS):
        other[row, length:] = 1e3
    longer = torch.cat([other, torch.full((5, 6, 2), -7.0, dtype=torch.float64)], dim=1)
    expected = model(x, LENGTHS).outputs
    torch.testing.assert_close(model(other, LENGTHS).outputs, expected, rtol=0, atol=0)
    found = model(longer, LENGTHS).outputs
    torch.testing.assert_close(
        found if needs == "summary" else found[:, :T], expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("config", "needs"), cases())
def test_batch_order_and_company_change_nothing(config: ModelConfig, needs: str) -> None:
    model, x = build(config, needs), inputs()
    expected = model(x, LENGTHS).outputs
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        model(x[order], LENGTHS[order]).outputs, expected[order], rtol=1e-12, atol=1e-12
    )
    for row, length in enumerate(LENGTHS):
        alone = model(x[row : row + 1, :length]).outputs[0]
        mine = expected[row] if needs == "summary" else expected[row, :length]
        torch.testing.assert_close(alone, mine, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.causal and "steps" in c.emits], ids=label)
def test_causal(config: ModelConfig) -> None:
    model, x = build(config, "steps"), inputs()
    changed = x.clone()
    changed[:, 5:] += 1
    before, after = model(x).outputs, model(changed).outputs
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=ROUNDED_TOGETHER.get(config.name, 0))
    assert not torch.equal(after[:, 5:], before[:, 5:])


@pytest.mark.parametrize(("config", "needs"), cases(carries_state=True))
def test_two_halves_equal_the_whole(config: ModelConfig, needs: str) -> None:
    model, x = build(config, needs, carry_state=True), inputs()
    whole = model(x)
    first = model(x[:, :4])
    second = model(x[:, 4:], state=first.state)
    expected = whole.outputs if needs == "summary" else whole.outputs[:, 4:]
    torch.testing.assert_close(second.outputs, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("config", "needs"), cases(carries_state=True))
def test_carried_state_is_the_one_at_each_own_end(config: ModelConfig, needs: str) -> None:
    model, x = build(config, needs, carry_state=True), inputs()
    lengths = torch.tensor([4, 1, 2, 3, 4])
    more = inputs(seed=1)[:, :3]
    after = model(more, state=model(x[:, :4], lengths).state).outputs
    for row, length in enumerate(lengths):
        joined = torch.cat([x[row, :length], more[row]])[None]
        alone = model(joined).outputs[0]
        mine = alone if needs == "summary" else alone[length:]
        torch.testing.assert_close(after[row], mine, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", [c for c in CONFIGS if not c.carries_state], ids=label)
def test_refuses_to_carry_state(config: ModelConfig) -> None:
    needs = sorted(config.emits)[0]
    with pytest.raises(RecipeError, match="cannot carry state"):
        config.build(TaskSpec(input_size=2, outputs=3, needs=needs, carry_state=True))


@pytest.mark.parametrize(("config", "needs"), cases())
def test_every_parameter_gets_a_gradient(config: ModelConfig, needs: str) -> None:
    model = build(config, needs).train()
    output = model(inputs(), LENGTHS)
    weights = torch.randn(
        output.outputs.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    (output.outputs * weights).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize(("config", "needs"), cases(exact_gradient=True))
def test_gradients(config: ModelConfig, needs: str) -> None:
    model = build(config, needs)
    x = inputs()[:3, :7].requires_grad_()
    lengths = torch.tensor([7, 3, 5])
    parameters = [p for p in model.parameters() if p.requires_grad]
    names = [n for n, p in model.named_parameters() if p.requires_grad]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        weights = dict(zip(names, values, strict=True))
        result: Tensor = torch.func.functional_call(model, weights, (x, lengths)).outputs
        return result

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize(("config", "needs"), cases())
def test_checkpoint_round_trip(config: ModelConfig, needs: str) -> None:
    model, buffer = build(config, needs), io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(99)
    again = config.build(model.spec).double().eval()
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(again(inputs(), LENGTHS).outputs, model(inputs(), LENGTHS).outputs)


@pytest.mark.parametrize(("config", "needs"), cases())
@pytest.mark.parametrize("time", [1, 6, 13])
def test_closed_form_flops_equal_the_count(config: ModelConfig, needs: str, time: int) -> None:
    found = flops(build(config, needs).float(), time)
    assert found.counted == found.closed_form


@pytest.mark.parametrize(("config", "needs"), cases())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(config: ModelConfig, needs: str, dtype: torch.dtype) -> None:
    model = build(config, needs)
    refusal = model.no_bfloat16
    if dtype == torch.bfloat16 and refusal:
        pytest.skip(refusal)
    model = model.to(dtype)
    output = model(inputs().to(dtype), LENGTHS).outputs
    assert output.dtype == dtype
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_bad_batches_are_explained(config: ModelConfig) -> None:
    model, x = build(config, sorted(config.emits)[0]), inputs()
    with pytest.raises(DataError, match="sequence 1 of the batch has length 0"):
        model(x, torch.tensor([3, 0, 1, 1, 1]))
    with pytest.raises(DataError, match="from 1 to 11"):
        model(x, torch.tensor([3, 12, 1, 1, 1]))
    with pytest.raises(DataError, match="reads 2 features"):
        model(x[:, :, :1])
    with pytest.raises(DataError, match="at least one step"):
        model(x[:, :0])


@pytest.mark.parametrize("config", [c for c in CONFIGS if not c.causal and "steps" in c.emits], ids=label)
def test_a_model_that_reads_ahead_is_kept_from_tasks_that_ask_what_comes_next(config: ModelConfig) -> None:
    with pytest.raises(RecipeError, match="reads ahead"):
        config.build(TaskSpec(input_size=2, outputs=3, needs="steps", causal=True))


def test_some_model_reads_ahead() -> None:
    assert {c.name for c in CONFIGS if not c.causal and "steps" in c.emits} >= {
        "bidirectional",
        "transformer",
    }
