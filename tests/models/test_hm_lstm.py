"""HM-LSTM against its equations, the public TensorFlow code, and what it must reduce to."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.hm_lstm import (
    HMLSTM,
    HMLSTMConfig,
    boundary_function,
    choose,
    copy,
    flush,
    mix,
    update,
)

Array = NDArray[np.float64]
SPEC = TaskSpec(input_size=2, outputs=3)
STEPS = TaskSpec(input_size=2, outputs=3, needs="steps")
CARRIED = TaskSpec(input_size=2, outputs=3, needs="steps", carry_state=True)
PUBLIC = {
    "cell_bias": False,
    "top_boundary": True,
    "boundary_gradient": "logistic",
    "selection_gradient": "where",
}


def config(**fields: object) -> HMLSTMConfig:
    base: dict[str, object] = {"hidden_sizes": [3, 4, 3], "embedding_size": 5}
    return HMLSTMConfig.model_validate_json(json.dumps(base | fields))


def ramp(model: HMLSTM) -> HMLSTM:
    """Weights from a sine ramp, wide enough that all three operations happen in every layer that has them."""
    n = 0
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.sin(torch.arange(n, n + p.numel(), dtype=p.dtype) * 2.1).reshape(p.shape) * 0.9)
            n += p.numel()
    return model


def build(spec: TaskSpec = SPEC, **fields: object) -> HMLSTM:
    model = ramp(config(**fields).build(spec).double()).eval()  # type: ignore[arg-type]
    return model


def inputs(batch: int = 3, time: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, time, 2, generator=generator, dtype=torch.float64)


# --- a loop written from the paper's equations, one sequence at a time --------------------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def layer_norm(x: Array) -> Array:
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)


def numpy_boundary(x: float, model: HMLSTM) -> float:
    a = model.slope.item()
    z_tilde = (
        1 / (1 + np.exp(-a * x)) if model.boundary_gradient == "logistic" else max(0, min(1, (a * x + 1) / 2))
    )
    return z_tilde if model.boundaries == "soft" else float(z_tilde > 0.5)


def numpy_steps(xs: Array, model: HMLSTM) -> tuple[Array, Array]:
    """Equations (1)-(12) for one sequence: h^e (T, E) and z (T, L)."""
    L = len(model.cells)
    sizes = [cell.hidden_size for cell in model.cells]
    h, c, z = [np.zeros(H) for H in sizes], [np.zeros(H) for H in sizes], [0.0] * L
    embedded, boundaries = [], []
    for x in xs:
        h_before, c_before, z_before = list(h), list(c), list(z)
        for k, cell in enumerate(model.cells):
            H = sizes[k]
            w = cell.weight.detach().numpy()
            U_own, W_below = w[:, :H], w[:, H + cell.above_size :]
            s = U_own @ h_before[k]  # (5)
            if k + 1 < L:
                s = s + z_before[k] * (w[:, H : H + cell.above_size] @ h_before[k + 1])  # (6)
            z_below, h_below = (1.0, x) if k == 0 else (z[k - 1], h[k - 1])
            s = s + z_below * (W_below @ h_below)  # (7)
            if cell.gain is not None:
                gain = cell.gain.detach().numpy()
                s = np.concatenate(
                    [*(layer_norm(s[n * H : (n + 1) * H]) * gain[n] for n in range(4)), s[4 * H :]]
                )
            if cell.bias is not None:
                s = s + cell.bias.detach().numpy()
            i, f, o, g = (
                sigmoid(s[:H]),
                sigmoid(s[H : 2 * H]),
                sigmoid(s[3 * H : 4 * H]),
                np.tanh(s[2 * H : 3 * H]),
            )
            if model.boundaries == "soft":
                w_flush = z_before[k]
                w_update, w_copy = (1 - w_flush) * z_below, (1 - w_flush) * (1 - z_below)
                c[k] = w_flush * i * g + w_update * (f * c_before[k] + i * g) + w_copy * c_before[k]
            elif z_before[k] == 1:
                w_copy, c[k] = 0, i * g
            elif z_below == 1:
                w_copy, c[k] = 0, f * c_before[k] + i * g
            else:
                w_copy, c[k] = 1, c_before[k]
            squashed = c[k]
            if cell.cell_norm is not None:
                weight, bias = (p.detach().numpy() for p in cell.cell_norm.parameters())
                squashed = layer_norm(c[k]) * weight + bias
            h[k] = w_copy * h_before[k] + (1 - w_copy) * o * np.tanh(squashed)  # (3)
            if len(s) > 4 * H:
                z[k] = numpy_boundary(s[-1], model)  # (8), (9)
        everything = np.concatenate(h)
        gates = [sigmoid(w_l @ everything) for w_l in model.output.gates.detach().numpy()]  # (11)
        maps = np.split(model.output.embedding.detach().numpy(), np.cumsum(sizes)[:-1], axis=1)
        embedded.append(
            np.maximum(0, sum(g_l * W @ h_l for g_l, W, h_l in zip(gates, maps, h, strict=True)))
        )  # (12)
        boundaries.append(list(z))
    return np.stack(embedded), np.array(boundaries)


VARIANTS: list[dict[str, object]] = [
    {},
    {"selection_gradient": "where"},
    {"boundaries": "soft"},
    {"boundaries": "soft", "boundary_gradient": "logistic", "slope": 2.5, "top_boundary": True},
    {"boundaries": "sampling"},  # by threshold outside of training
    {"layer_norm": True},
    {"layer_norm": True, "cell_bias": False, "boundaries": "soft"},
    PUBLIC,
]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_equals_the_equations_in_numpy(fields: dict[str, object]) -> None:
    lengths = torch.tensor([12, 1, 7])
    x = inputs()
    steps = build(STEPS, **fields)(x, lengths)
    mean, last = (build(summary=name, **fields)(x, lengths) for name in ("mean", "last"))
    model = build(**fields)
    weight, bias = (p.detach().numpy() for p in model.head.parameters())
    for row, T in enumerate(lengths):
        h_e, _ = numpy_steps(x[row, :T].numpy(), model)
        assert h_e.max() > 1e-3
        for found, expected in (
            (steps.steps[row, :T], h_e),
            (mean.summary[row], h_e.mean(0)),
            (last.summary[row], h_e[-1]),
            (mean.outputs[row], weight @ h_e.mean(0) + bias),
        ):
            np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
        assert steps.steps[row, T:].abs().sum() == 0


@pytest.mark.parametrize("fields", [{}, PUBLIC], ids=str)
def test_the_ramp_makes_every_operation_happen(fields: dict[str, object]) -> None:
    """Otherwise the test above would say little."""
    found = build(**fields)(inputs()).diagnostics
    shares = {name: share.item() for name, share in found.items() if "boundary" not in name}
    impossible = {"copy_1"} if fields else {"copy_1", "flush_3"}
    assert {name for name, share in shares.items() if share < 0.15} == impossible


@pytest.mark.parametrize("fields", [{}, PUBLIC, {"boundaries": "soft"}], ids=str)
def test_diagnostics_are_rates_over_the_valid_steps(fields: dict[str, object]) -> None:
    model, lengths, x = build(**fields), torch.tensor([12, 1, 7]), inputs()
    found = model(x, lengths).diagnostics
    z = [numpy_steps(x[row, :T].numpy(), model)[1] for row, T in enumerate(lengths)]
    before = np.concatenate([np.vstack([np.zeros(3), each[:-1]]) for each in z])
    z = np.concatenate(z)
    below = np.hstack([np.ones((len(z), 1)), z[:, :-1]])
    expected = {
        "copy": (1 - before) * (1 - below),
        "update": (1 - before) * below,
        "flush": before,
        "boundary": z,
    }
    for name, values in expected.items():
        for k, value in enumerate(values.mean(0)):
            if name == "boundary" and k == 2 and not fields.get("top_boundary"):
                assert "boundary_3" not in found
            else:
                assert found.pop(f"{name}_{k + 1}").item() == pytest.approx(value, rel=1e-5, abs=1e-7)
    assert not found


# --- the public TensorFlow code ------------------------------------------------------------------------------------


def released(shared: Path, dtype: torch.dtype, **fields: object) -> tuple[HMLSTM, dict[str, Array]]:
    """The recorded weights in our model."""
    with np.load(shared / "golden" / "hmlstm_nsf_L3_h8_T30_B4.npz") as content:
        z = {key: content[key] for key in content.files}
    spec = TaskSpec(input_size=2, outputs=5, needs="steps")
    model = config(hidden_sizes=[8, 8, 8], embedding_size=12, **(PUBLIC | fields)).build(spec).to(dtype)
    assert isinstance(model, HMLSTM)
    with torch.no_grad():
        for k, cell in enumerate(model.cells):
            cell.weight.copy_(torch.tensor(to_ours(z[f"w.L{k}.kernel"])))
            model.output.gates[k] = torch.tensor(z[f"w.gate_{k}"][:, 0])
        model.output.embedding.copy_(torch.tensor(z["w.embed_weights"].T))
    return model, z


def to_ours(kernel: Array) -> Array:
    """Column blocks i, g, f, o, z~ to rows i, f, g, o, z~."""
    i, g, f, o, z_tilde = np.split(kernel.T, [8, 16, 24, 32])
    return np.concatenate([i, f, g, o, z_tilde])


def unrolled(model: HMLSTM, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return h (B, T, sum of H) and z (B, T, L), and c (L, T, B, H) by going one step at a time."""
    lengths = torch.full((len(x),), x.shape[1])
    h, z, _ = model._unroll(x, lengths, model._initial(len(x)))
    states, cells = model._initial(len(x)), []
    for t in range(x.shape[1]):
        _, _, states = model._unroll(x[:, t : t + 1], lengths * 0 + 1, states)
        cells.append(torch.stack([c for _, c, _ in states]))
    return h, z, torch.stack(cells, dim=1)


PRECISIONS = [(torch.float32, "f32", 1e-5), (torch.float64, "f64", 1e-10)]


@pytest.mark.parametrize(("dtype", "key", "tolerance"), PRECISIONS)
def test_equals_the_public_code(shared: Path, dtype: torch.dtype, key: str, tolerance: float) -> None:
    model, golden = released(shared, dtype)
    h, z, c = unrolled(model, torch.tensor(golden["x"]).to(dtype).transpose(0, 1))
    found = {
        "h": torch.stack(h.split(8, dim=-1)).transpose(1, 2),
        "c": c,
        "z": z.permute(2, 1, 0),
        "indicators": z.transpose(1, 2),
    }
    for name, value in found.items():
        np.testing.assert_allclose(
            value.detach().numpy(), golden[f"{key}.{name}"], rtol=0, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize(("dtype", "key", "tolerance"), PRECISIONS)
def test_gradients_equal_the_public_code(
    shared: Path, dtype: torch.dtype, key: str, tolerance: float
) -> None:
    model, golden = released(shared, dtype)
    x = torch.tensor(golden["x"]).to(dtype).transpose(0, 1)
    h, _, _ = model._unroll(x, torch.full((4,), 30), model._initial(4))
    w1, b1, w2, b2, w3, b3 = (
        torch.tensor(golden[f"w.{n}"]).to(dtype) for n in ("w1", "b1", "w2", "b2", "w3", "b3")
    )
    embedded = model(x).steps  # the recorded net has two more tanh layers
    prediction = torch.tanh(torch.tanh(embedded @ w1 + b1) @ w2 + b2) @ w3 + b3
    np.testing.assert_allclose(
        prediction.detach().transpose(0, 1).numpy(), golden[f"{key}.pred"], rtol=0, atol=tolerance
    )
    sums = {"h_all": h.sum(), "h_top_last": h[:, -1, 16:].sum(), "pred": prediction.sum()}
    for name, value in sums.items():
        model.zero_grad()
        value.backward(retain_graph=True)
        expected = {f"L{k}.kernel": cell.weight.grad for k, cell in enumerate(model.cells)}
        for part, gradient in expected.items():
            recorded = to_ours(golden[f"{key}.grad_sum_{name}.{part}"])
            atol = tolerance * np.abs(recorded).max()
            np.testing.assert_allclose(
                gradient.numpy(), recorded, rtol=0, atol=atol, err_msg=f"{name} {part}"
            )
    for k in range(3):
        np.testing.assert_allclose(
            model.output.gates.grad[k].numpy(),
            golden[f"{key}.grad_sum_pred.gate_{k}"][:, 0],
            rtol=100 * tolerance,
            atol=tolerance,
        )
    recorded = golden[f"{key}.grad_sum_pred.embed_weights"].T
    np.testing.assert_allclose(
        model.output.embedding.grad.numpy(), recorded, rtol=0, atol=tolerance * np.abs(recorded).max()
    )


@pytest.mark.parametrize(
    ("fields", "largest"),
    [({"selection_gradient": "arithmetic"}, 0.54), ({"boundary_gradient": "hard_sigmoid"}, 0.29)],
    ids=str,
)
def test_how_much_the_gradient_options_matter(
    shared: Path, fields: dict[str, object], largest: float
) -> None:
    """As much as the same two changes of the public code: largest difference over largest value, 54% and 29%."""
    (plain, golden), (other, _) = released(shared, torch.float64), released(shared, torch.float64, **fields)
    x = torch.tensor(golden["x"]).double().transpose(0, 1)
    assert torch.equal(plain(x).steps, other(x).steps)
    for model in (plain, other):
        h, _, _ = model._unroll(x, torch.full((4,), 30), model._initial(4))
        h[:, -1, 16:].sum().backward()
    changes = [
        (one.weight.grad - two.weight.grad).abs().max() / one.weight.grad.abs().max()
        for one, two in zip(plain.cells, other.cells, strict=True)
    ]
    assert max(changes).item() == pytest.approx(largest, abs=0.005)


# --- what it must reduce to ----------------------------------------------------------------------------------------


def states(seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h, c, sums = (torch.randn(2, n, generator=generator, dtype=torch.float64) for n in (4, 4, 17))
    return h, c, sums


@pytest.mark.parametrize("selection", ["arithmetic", "where"])
def test_copy_leaves_the_state_bitwise(selection: str) -> None:
    cell = build(selection_gradient=selection).cells[1]
    h, c, sums = states()
    zero = torch.zeros(2, 1, dtype=torch.float64)
    after = cell.step(sums, (h, c, zero), zero)
    assert torch.equal(after[0], h)
    assert torch.equal(after[1], c)
    updated = cell.step(sums, (h, c, zero), zero + 1)
    assert not torch.isclose(updated[0], h).any()


@pytest.mark.parametrize("selection", ["arithmetic", "where"])
@pytest.mark.parametrize("z_below", [0.0, 1.0])
def test_flush_forgets_the_cell(selection: str, z_below: float) -> None:
    cell = build(selection_gradient=selection).cells[1]
    h, c, sums = states()
    one = torch.ones(2, 1, dtype=torch.float64)
    first = cell.step(sums, (h, c, one), one * z_below)
    second = cell.step(sums, (h - 7, c + 100, one), one * z_below)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    i, _, g, _ = (sums + cell.bias)[:, :16].chunk(4, dim=1)
    torch.testing.assert_close(first[1], torch.sigmoid(i) * torch.tanh(g), rtol=1e-12, atol=1e-12)


def test_the_operations_by_name() -> None:
    c, i, f, g = (torch.tensor([v]) for v in (2.0, 0.5, 0.25, 4.0))
    assert (copy(c).item(), update(c, i, f, g).item(), flush(i, g).item()) == (2.0, 2.5, 2.0)
    for select in (mix, choose):
        for z_own, z_below, expected in ((0, 0, 1), (0, 1, 10), (1, 0, 100), (1, 1, 100)):
            results = (torch.tensor([v]) for v in (1.0, 10.0, 100.0))
            assert select(torch.tensor([float(z_own)]), torch.tensor([float(z_below)]), *results) == expected


def torch_lstm(cell: nn.Module) -> nn.LSTM:
    """Torch's layer with a cell's own, bottom-up and bias parts."""
    H, below = cell.hidden_size, cell.below_size
    layer = nn.LSTM(below, H, batch_first=True).double()
    with torch.no_grad():
        layer.weight_hh_l0.copy_(cell.weight[: 4 * H, :H])
        layer.weight_ih_l0.copy_(cell.weight[: 4 * H, -below:])
        layer.bias_ih_l0.copy_(cell.bias[: 4 * H])
        layer.bias_hh_l0.zero_()
    return layer


def test_one_layer_of_the_equations_is_an_lstm() -> None:
    """No boundary, no layer above, z^0 = 1."""
    model = ramp(HMLSTM(CARRIED, hidden_sizes=[4], embedding_size=5).double())
    layers, _ = model(inputs()).state
    _, (h, c) = torch_lstm(model.cells[0])(inputs())
    torch.testing.assert_close(layers[0][0], h[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layers[0][1], c[0], rtol=1e-12, atol=1e-12)


def test_every_boundary_below_and_none_of_its_own_is_a_stacked_lstm() -> None:
    """z_{t-1}^l = 0 takes away FLUSH and the top-down term, z_t^{l-1} = 1 takes away COPY."""
    model = build()
    x = expected = inputs()
    for cell in model.cells:
        state, outputs = cell.initial(3), []
        zero, one = state[2], state[2] + 1
        matrices = cell.matrices()
        for x_t in x.unbind(1):
            h, c, _ = cell.step(
                state[0] @ matrices.recurrent[:, : cell.hidden_size].T + x_t @ matrices.bottom_up.T,
                (state[0], state[1], zero),
                one,
            )
            state = (h, c, zero)
            outputs.append(h)
        x = torch.stack(outputs, dim=1)
        expected, _ = torch_lstm(cell)(expected)
    torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)


def test_a_closed_layer_below_freezes_all_above() -> None:
    """Boundaries that never open: layer 1 is an LSTM without top-down term, the others keep their zero state."""
    model = build(CARRIED)
    with torch.no_grad():
        for cell in model.cells[:2]:
            cell.weight[-1] = 0
            cell.bias[-1] = -1
    layers, _ = model(inputs()).state
    _, (h, _) = torch_lstm(model.cells[0])(inputs())
    torch.testing.assert_close(layers[0][0], h[0], rtol=1e-12, atol=1e-12)
    for state in layers[1:]:
        assert all(part.abs().sum() == 0 for part in state)


@pytest.mark.parametrize("fields", [{}, PUBLIC, {"boundaries": "soft"}], ids=str)
def test_layer_1_never_copies_and_the_shares_add_up(fields: dict[str, object]) -> None:
    found = build(**fields)(inputs()).diagnostics
    assert found["copy_1"] == 0
    for k in (1, 2, 3):
        assert float(found[f"copy_{k}"] + found[f"update_{k}"] + found[f"flush_{k}"]) == pytest.approx(1)
    assert (found["flush_3"] > 0) == ("top_boundary" in fields)


# --- boundaries and their gradient ----------------------------------------------------------------------------------


def run(model: HMLSTM, x: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs, and the gradient of their sum for the second layer's weights."""
    outputs = model(x).outputs
    outputs.sum().backward()
    return outputs.detach(), model.cells[1].weight.grad


@pytest.mark.parametrize("kind", ["hard_sigmoid", "logistic"])
def test_the_slope_moves_the_gradient_of_a_step_and_nothing_else(kind: str) -> None:
    gentle, steep = (run(build(boundary_gradient=kind, slope=a), inputs()) for a in (1.0, 3.0))
    assert torch.equal(gentle[0], steep[0])
    assert not torch.allclose(gentle[1], steep[1])
    soft = [build(boundary_gradient=kind, boundaries="soft", slope=a)(inputs()).outputs for a in (1.0, 3.0)]
    assert not torch.allclose(*soft)


def test_straight_through_is_the_boundary_functions_own_slope() -> None:
    for a in (1.0, 4.0):
        x = torch.tensor([[-1.5], [-0.2], [0.0], [0.1], [0.9]], dtype=torch.float64, requires_grad=True)
        model = build(slope=a)
        z = model._boundary(x)
        assert z.squeeze().tolist() == [0, 0, 0, 1, 1]
        z.sum().backward()
        inside = x.detach().abs() < 1 / a
        torch.testing.assert_close(x.grad, inside.double() * a / 2)
        x.grad = None
        build(slope=a, boundary_gradient="logistic")._boundary(x).sum().backward()
        s = torch.sigmoid(a * x.detach())
        torch.testing.assert_close(x.grad, a * s * (1 - s))


def test_soft_boundaries_are_the_boundary_function() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    model = build(boundaries="soft", slope=1.5)
    expected = np.clip((1.5 * x.numpy() + 1) / 2, 0, 1)
    np.testing.assert_allclose(model._boundary(x).numpy(), expected, rtol=1e-12)
    logistic = boundary_function(x, model.slope, "logistic")
    np.testing.assert_allclose(logistic.numpy(), sigmoid(1.5 * x.numpy()), rtol=1e-12)


def test_sampling_draws_in_training_and_thresholds_after() -> None:
    model = build(boundaries="sampling").train()
    x = torch.full((20_000, 1), 0.4, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    z = model._boundary(x)
    assert set(z.unique().tolist()) == {0, 1}
    assert z.mean().item() == pytest.approx(0.7, abs=0.015)  # 4.6 standard errors
    z.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.5))
    assert model.eval()._boundary(x).mean() == 1
    assert torch.equal(model(inputs()).outputs, build()(inputs()).outputs)


def test_the_slope_schedule_is_the_papers() -> None:
    penn = build(slope_rate=0.04, max_slope=5.0)
    found = []
    for epoch in (0, 1, 50, 99, 100, 500):
        penn.set_progress(epoch, step=7)
        found.append(penn.slope.item())
    assert found == pytest.approx([1, 1.04, 3, 4.96, 5, 5], rel=1e-6)
    constant, endless = build(slope=2.0), build(slope_rate=0.5)
    for model, expected in ((constant, 2), (endless, 501)):
        model.set_progress(1000, step=0)
        assert model.slope.item() == expected


def test_a_checkpoint_brings_its_slope_along() -> None:
    fields = {"boundaries": "soft", "slope_rate": 0.5}
    trained, fresh = build(**fields), build(**fields)
    trained.set_progress(6, step=0)
    assert not torch.allclose(fresh(inputs()).outputs, trained(inputs()).outputs)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(inputs()).outputs, trained(inputs()).outputs)


def test_where_keeps_the_choice_out_of_the_gradient() -> None:
    """Layer 1's boundary then only learns from what it gates: with those products 0, not at all."""
    rows = []
    for selection in ("arithmetic", "where"):
        model = build(selection_gradient=selection)
        with torch.no_grad():
            for cell in model.cells[:2]:
                cell.weight[:, cell.hidden_size : cell.hidden_size + cell.above_size] = 0
            for cell in model.cells[1:]:
                cell.weight[:, -cell.below_size :] = 0
        model(inputs()).outputs.sum().backward()
        rows.append(model.cells[0].weight.grad[-1].abs().sum().item())
    assert rows[0] > 1e-3
    assert rows[1] == 0


# --- options, counts, starts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"boundaries": "soft"},
        {"layer_norm": True},
        {"cell_bias": False},
        {"top_boundary": True},
        {"summary": "last"},
        {"hidden_sizes": [3, 4, 4]},
        {"embedding_size": 4},
    ],
    ids=str,
)
def test_options_change_the_output(fields: dict[str, object]) -> None:
    def outputs(**fields: object) -> Tensor:
        torch.manual_seed(0)
        return config(**fields).build(SPEC).double()(inputs()).outputs

    assert not torch.allclose(outputs(), outputs(**fields), atol=1e-6)


@pytest.mark.parametrize("selection", ["arithmetic", "where"])
def test_gradient_options_leave_the_output(selection: str) -> None:
    plain, other = run(build(), inputs()), run(build(selection_gradient=selection), inputs())
    logistic = run(build(selection_gradient=selection, boundary_gradient="logistic"), inputs())
    assert torch.equal(plain[0], other[0])
    assert torch.equal(plain[0], logistic[0])
    assert torch.allclose(plain[1], other[1]) == (selection == "arithmetic")
    assert not torch.allclose(other[1], logistic[1])


@pytest.mark.parametrize(
    ("fields", "inputs_outputs", "expected"),
    [
        ({}, (1, 10), 314_013),  # equations (1)-(12)
        (PUBLIC, (1, 10), 353_111),  # "353K" of the TP-RNN paper, Table 1
        (PUBLIC, (13, 109), 367_922),  # "368K"
        (PUBLIC, (1, 109), 363_110),  # printed as "364K"
        (PUBLIC, (2, 1), 352_603),  # "353K"
        ({"layer_norm": True}, (1, 10), 314_013 + 3 * (4 + 2) * 100),
        ({"cell_bias": False}, (1, 10), 314_013 - 401 - 401 - 400),
        ({"top_boundary": True}, (1, 10), 314_013 + 401 * 100 + 200 + 1),
    ],
    ids=str,
)
def test_parameter_counts(fields: dict[str, object], inputs_outputs: tuple[int, int], expected: int) -> None:
    spec = TaskSpec(input_size=inputs_outputs[0], outputs=inputs_outputs[1])
    found = config(hidden_sizes=[100, 100, 100], embedding_size=100, **fields).build(spec)
    assert found.parameter_count == expected


def test_starts() -> None:
    torch.manual_seed(0)
    plain = config(hidden_sizes=[60, 50], forget_bias=1.5).build(SPEC)
    glorot = config(hidden_sizes=[60, 50], forget_bias=1.5, init="tensorflow").build(SPEC)
    bounds = {plain: [60**-0.5, 50**-0.5], glorot: [(6 / (112 + 241)) ** 0.5, (6 / (110 + 200)) ** 0.5]}
    for model, expected in bounds.items():
        for cell, bound in zip(model.cells, expected, strict=True):
            assert 0.98 * bound < cell.weight.abs().max() <= bound
            assert cell.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
            H = cell.hidden_size
            centre = cell.bias[H : 2 * H].mean().item() - 1.5
            assert abs(centre) < bound / 2
            others = torch.cat([cell.bias[:H], cell.bias[2 * H :]])
            assert others.abs().max() <= (bound if model is plain else 0)
    assert plain.output.gates.abs().max() <= 110**-0.5
    assert 0.9 * (6 / 111) ** 0.5 < glorot.output.gates.abs().max() <= (6 / 111) ** 0.5
    for model, bound in ((plain, 110**-0.5), (glorot, (6 / 115) ** 0.5)):
        assert model.output.embedding.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_a_start_with_layer_norm_is_neutral() -> None:
    for cell in config(layer_norm=True).build(SPEC).cells:
        assert (cell.gain == 1).all()
        assert (cell.cell_norm.weight == 1).all()
        assert (cell.cell_norm.bias == 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"boundaries": "soft", "selection_gradient": "where"},
            "^selection_gradient: 'where' branches on .* 0 or 1",
        ),
        ({"max_slope": 5.0}, "^max_slope: has no effect on a constant slope"),
        ({"slope": 2.0, "slope_rate": 0.1, "max_slope": 2.0}, "^max_slope: is 2, but the slope starts at 2"),
        ({"cell_bias": False, "forget_bias": 1.0}, "^forget_bias: needs a bias"),
        ({"hidden_sizes": [3, 1], "layer_norm": True}, "^layer_norm: turns a layer of one unit"),
    ],
    ids=str,
)
def test_bad_settings_are_explained(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build(**fields)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_sizes": [3]},
        {"hidden_sizes": [3, 0]},
        {"slope": 0.0},
        {"slope_rate": -1.0},
        {"embedding_size": 0},
    ],
    ids=str,
)
def test_impossible_values_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        config(**fields)


@pytest.mark.parametrize("summary", ["mean", "last"])
def test_a_carried_state_may_be_detached(summary: str) -> None:
    """Truncated backpropagation: the second half gives gradients without the first half's graph."""
    spec = TaskSpec(input_size=2, outputs=3, carry_state=True)
    model = build(spec, summary=summary)
    layers, pooled = model(inputs()).state
    assert (pooled is None) == (summary == "last")
    cut = tuple(tuple(part.detach() for part in state) for state in layers)
    model(inputs(seed=1), state=(cut, pooled and tuple(p.detach() for p in pooled))).outputs.sum().backward()
    assert model.cells[0].weight.grad is not None


def test_runs_under_autocast() -> None:
    model = config(layer_norm=True).build(SPEC)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(inputs().float()).outputs
    outputs.float().sum().backward()
    assert torch.isfinite(outputs).all()
