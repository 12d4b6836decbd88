"""The fused TP-RNN layer against the plain step loop of the model."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.kernels import Mode, library
from seqpyramid.kernels.lstm import Segment
from seqpyramid.kernels.tp_rnn import Pyramids, Theta, tp_rnn_layer
from seqpyramid.models import base
from seqpyramid.models.tp_rnn import TPRNN, TPRNNConfig, TPRNNLayer, emitted_count, levels
from tests.kernels import asked_segments, assert_same, needs_kernels, running
from tests.kernels.tp_rnn_layers import draw_layer

pytestmark = needs_kernels

Options = dict[str, object]


def compare(
    layer: TPRNNLayer, *, B: int, T: int, F: int, ragged: bool, dtype: torch.dtype, threads: int = 1
) -> None:
    """Outputs and gradients of both twins, and the outputs without gradients."""
    torch.manual_seed(1)
    layer = layer.to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = torch.randn(B, T, F, dtype=dtype, requires_grad=True)
    lengths = torch.randint(1, T + 1, (B,)) if ragged else torch.full((B,), T)
    found: list[list[Tensor]] = []
    modes: list[Mode] = ["plain", "fused"]
    for mode in modes:
        with running(mode, threads):
            result = layer(x, lengths)
            counts = result.lengths
            has = torch.arange(result.emitted.shape[1]) < counts[:, None]
            emitted = torch.where(has[:, :, None], result.emitted, torch.zeros_like(result.emitted))
            generator = torch.Generator().manual_seed(2)
            loss = sum(
                (o * torch.randn(o.shape, generator=generator, dtype=dtype)).sum()
                for o in (result.output, emitted)
            )
            assert isinstance(loss, Tensor)
            inputs = [x, *layer.parameters()]
            gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
            found.append([counts.to(dtype), result.output, emitted, *(g for g in gradients if g is not None)])
            with torch.no_grad():
                quiet = layer(x, lengths)
            if mode == "fused":
                assert torch.equal(quiet.output, result.output)
                assert torch.equal(quiet.emitted, result.emitted)
    # A relu at a rounding error from its corner, or a sum that cancels, costs float32 more than a digit.
    assert_same(*found, slack=3 if dtype == torch.float32 else 1)


@settings(max_examples=60)
@given(data=st.data())
def test_equals_the_loop(data: st.DataObject) -> None:
    layer = draw_layer(data)
    compare(
        layer,
        B=data.draw(st.integers(1, 7), "B"),
        T=data.draw(st.integers(1, 30), "T"),
        F=layer.cell.input_size,
        ragged=data.draw(st.booleans(), "ragged"),
        dtype=torch.float64,
        threads=data.draw(st.integers(1, 3), "threads"),
    )


@pytest.mark.parametrize("B", [6, 80])  # where there are tiles, they make the products of 80 rows
@pytest.mark.parametrize(("L", "g"), [(9, 3), (7, 7), (12, 2)])
def test_float32(level: str, L: int, g: int, B: int) -> None:
    compare(TPRNNLayer(2, 33, length=L, granularity=g), B=B, T=23, F=2, ragged=True, dtype=torch.float32)


def test_every_level_equals_the_loop(level: str) -> None:
    layer = TPRNNLayer(3, 9, length=8, granularity=3, attention="scrambled")
    compare(layer, B=5, T=21, F=3, ragged=True, dtype=torch.float64, threads=2)


@pytest.mark.parametrize("attention", ["aligned", "scrambled"])
@pytest.mark.parametrize("H", [63, 100, 450])
def test_more_rows_than_theta_takes_together(level: str, H: int, attention: str) -> None:
    layer = TPRNNLayer(1, H, length=5, granularity=3, attention=attention)
    compare(layer, B=9, T=12, F=1, ragged=True, dtype=torch.float64)


def test_gates_that_outgrow_the_caches(level: str) -> None:
    layer = TPRNNLayer(1, 100, length=8, granularity=3)
    compare(layer, B=70, T=41, F=1, ragged=True, dtype=torch.float64, threads=2)


def test_more_rows_than_go_through_time_together() -> None:
    compare(
        TPRNNLayer(1, 4, length=4, granularity=2),
        B=150,
        T=9,
        F=1,
        ragged=True,
        dtype=torch.float64,
        threads=2,
    )


def run_layer(
    weights: list[Tensor | None], x: Tensor, lengths: Tensor, pyramids: Pyramids, segment: Segment
) -> list[Tensor]:
    """Outputs, and gradients of what there is."""
    parts = [None if w is None else w.detach().requires_grad_() for w in (x, *weights)]
    first, U, W, b, *thetas = parts
    assert first is not None
    assert U is not None
    assert W is not None
    assert b is not None
    pairs = [
        None if one is None or two is None else Theta(one, two)
        for one, two in zip(thetas[::2], thetas[1::2], strict=True)
    ]
    theta_h, theta_c, theta_path = pairs
    assert theta_h is not None
    outputs = tp_rnn_layer(first, (U, W, b), theta_h, theta_c, theta_path, lengths, pyramids, segment)
    generator = torch.Generator().manual_seed(2)
    loss = torch.stack(
        [(o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outputs]
    )
    gradients = torch.autograd.grad(
        loss.sum(), [part for part in parts if part is not None], allow_unused=True, materialize_grads=True
    )
    return [*outputs, *gradients]


@settings(max_examples=60)
@given(data=st.data())
def test_recomputation_changes_no_bit(data: st.DataObject) -> None:
    L, g = data.draw(st.integers(1, 9), "L"), data.draw(st.integers(2, 6), "g")
    B, T, H = data.draw(st.integers(1, 40), "B"), data.draw(st.integers(1, 50), "T"), 19
    torch.manual_seed(3)
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    top_down = data.draw(st.booleans(), "top_down")
    aggregate_cell = top_down and data.draw(st.booleans(), "aggregate_cell")
    shortcut = data.draw(st.booleans(), "shortcut")
    sizes = [(4 * H, 2), (4 * H, H), (4 * H,), *[(3 * g, g), (g, 3 * g)] * 2, (6, 2), (2, 6)]
    there = [True] * 5 + [aggregate_cell] * 2 + [shortcut] * 2
    weights = [
        0.4 * torch.randn(size, dtype=dtype) if has else None for size, has in zip(sizes, there, strict=True)
    ]
    ragged = data.draw(st.booleans(), "ragged")
    lengths = torch.randint(1, T + 1, (B,)) if ragged else torch.full((B,), T)
    level = data.draw(st.integers(1, levels(L, g)), "j")
    pyramids = Pyramids(
        length=L,
        granularity=g,
        emitted_level=level,
        emitted_time=emitted_count(int(lengths.max()), L, g, level),
        scrambled=data.draw(st.booleans()),
        top_down=top_down,
        top_first=data.draw(st.booleans()),
    )
    x = torch.randn(B, T, 2, dtype=dtype)
    segment = data.draw(st.sampled_from(["auto", 1, 2, 3, 7]), "segment")
    with running("auto", data.draw(st.integers(1, 3), "threads")):
        kept, again = (run_layer(weights, x, lengths, pyramids, how) for how in (None, segment))
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert kept[2].abs().sum() > 0  # of x, through all segments


def build(**options: object) -> TPRNN:
    torch.manual_seed(0)
    fields: Options = {"hidden_size": 5, "pyramid_length": [6, 3], "granularity": [3, 2], **options}
    model = TPRNNConfig.model_validate_json(json.dumps(fields)).build(TaskSpec(input_size=2, outputs=3))
    assert isinstance(model, TPRNN)
    return model.double()


@pytest.mark.parametrize(
    "options", [{}, {"attention": "aligned", "input_level": 2}, {"output_aggregation": False}]
)
def test_models_give_the_same(options: Options) -> None:
    model = build(**options)
    x = torch.randn(4, 31, 2, dtype=torch.float64)
    found = []
    modes: list[Mode] = ["plain", "fused", "auto"]
    for mode in modes:
        with running(mode):
            outputs = model(x, torch.tensor([31, 6, 1, 20])).outputs
            gradients = torch.autograd.grad(
                outputs.square().sum(), list(model.parameters()), allow_unused=True
            )
            found.append([outputs, *(g for g in gradients if g is not None)])
    plain, fused, auto = found
    assert_same(plain, fused)
    assert all(torch.equal(a, b) for a, b in zip(fused, auto, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, fused, strict=True))


@settings(max_examples=60)
@given(data=st.data())
def test_every_stack_that_is_let_through_is_the_same_in_both(data: st.DataObject) -> None:
    shapes = data.draw(
        st.lists(st.tuples(st.integers(1, 7), st.integers(2, 4)), min_size=1, max_size=3), "L, g"
    )
    feeding = [levels(L, g) for L, g in shapes[:-1]]
    level = data.draw(st.integers(1, 1 + max(feeding, default=1)), "input_level")
    fields = {
        "pyramid_length": [L for L, _ in shapes],
        "granularity": [g for _, g in shapes],
        "input_level": level,
        "hidden_size": 3,
    }
    if level > min(feeding, default=1):
        with pytest.raises(RecipeError, match="input_level: "):
            build(**fields)
        return
    model = build(**fields)
    B, T = data.draw(st.integers(1, 4), "B"), data.draw(st.integers(1, 30), "T")
    x = torch.randn(B, T, 2, dtype=torch.float64)
    # all at full length too: then the last pyramid of every layer may close at once, with nothing left open
    ends = st.one_of(st.just([T] * B), st.lists(st.integers(1, T), min_size=B, max_size=B))
    lengths = torch.tensor(data.draw(ends, "lengths"))
    found = []
    modes: list[Mode] = ["plain", "fused"]
    for mode in modes:
        with running(mode):
            outputs = model(x, lengths).outputs
            gradients = torch.autograd.grad(
                outputs.square().sum(), list(model.parameters()), allow_unused=True, materialize_grads=True
            )
            found.append([outputs, *gradients])
    assert_same(*found)


def test_gates_in_16_bits_round_gradients_and_nothing_else() -> None:
    torch.manual_seed(3)
    x, lengths = torch.randn(40, 21, 2), torch.arange(40) % 21 + 1
    found = []
    for short in (False, True):
        model = build(gates_in_16_bits=short).float()
        output = model(x, lengths).outputs
        found.append((output, torch.autograd.grad(output.sin().sum(), list(model.parameters()))))
    assert torch.equal(found[0][0], found[1][0])
    for exact, short in zip(found[0][1], found[1][1], strict=True):
        assert (exact - short).norm() < 1e-4 * exact.norm()
    assert any(not torch.equal(exact, short) for exact, short in zip(found[0][1], found[1][1], strict=True))


def test_two_ways_of_keeping_less_at_once_are_refused() -> None:
    with pytest.raises(RecipeError, match="gates_in_16_bits: has no effect beside recompute"):
        build(gates_in_16_bits=True, recompute=True)


def test_a_model_that_recomputes_gives_the_same_bytes() -> None:
    x, lengths = torch.randn(4, 61, 2, dtype=torch.float64), torch.tensor([61, 6, 1, 40])
    found = []
    for recompute in (False, True):
        model = build(recompute=recompute)
        outputs = model(x, lengths).outputs
        found.append([outputs, *torch.autograd.grad(outputs.square().sum(), list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_segments_are_as_long_as_needs_the_least_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = asked_segments(monkeypatch)
    layer, T = TPRNNLayer(1, 3, length=4, granularity=2, recompute=True), 4001
    layer(torch.randn(8, T, 1), torch.full((8,), T))  # one slice

    def states(segment: int) -> int:
        """Of a sequence: h, c and path of each start but the first; of each step c and four gates, of each
        sub-pyramid h and c of 2 + 1 aggregates, and the path."""
        return ((T - 1) // 4 // segment) * 3 + (4 * 5 + 3 * 2 + 1) * segment

    assert seen[-1] == min(range(1, 1002), key=states) > 5


def test_recomputation_needs_the_kernel() -> None:
    model, x = build(recompute=True), torch.randn(2, 13, 2, dtype=torch.float64)
    with running("plain"):
        with pytest.raises(RecipeError, match="needs the compiled kernels"):
            model(x)
        with torch.no_grad():  # nothing would be kept
            model(x)
    with pytest.raises(RecipeError, match="recompute: needs the compiled layer, which is for LSTM cells"):
        build(recompute=True, cell="gru")
    with pytest.raises(
        RecipeError, match="gates_in_16_bits: needs the compiled layer, which is for LSTM cells"
    ):
        build(gates_in_16_bits=True, cell="gru")


@pytest.mark.parametrize("options", [{"cell": "gru"}, {"aggregation": "mean"}])
def test_other_cells_and_aggregations_stay_on_the_plain_path(options: Options) -> None:
    model, x = build(**options), torch.randn(2, 13, 2, dtype=torch.float64)
    with running("fused"):
        fused = model(x).outputs
    with running("plain"):
        assert torch.equal(model(x).outputs, fused)


def test_kernels_have_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's small operations beside the kernel stay on one thread, where no barrier can wait for a busy core."""
    model, seen = build(), []
    monkeypatch.setattr(base, "ALL_THREADS", 3)
    call = library.call
    monkeypatch.setattr(
        library, "call", lambda name, dtype, found: (seen.append(found.threads), call(name, dtype, found))
    )
    with running("auto"):
        for asked, torchs in ((None, 1), (2, 2)):
            base.use_threads(model, asked)
            model(torch.randn(4, 13, 2, dtype=torch.float64))
            assert torch.get_num_threads() == torchs
    assert set(seen) == {3, 2}
