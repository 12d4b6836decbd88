"""TP-RNN layers for the tests of all their kernels: any shape and option, and what the plain loop makes of them."""

from hypothesis import strategies as st
from torch import Tensor, where, zeros_like
from torch import arange as positions

from seqpyramid.models.tp_rnn import TPRNNLayer, levels
from tests.kernels import running


def draw_layer(data: st.DataObject) -> TPRNNLayer:
    """Any layer that fits a test."""
    L, g = data.draw(st.integers(1, 14), "L"), data.draw(st.integers(2, 10), "g")
    return TPRNNLayer(
        data.draw(st.integers(1, 4), "F"),
        data.draw(st.integers(1, 20), "H"),
        length=L,
        granularity=g,
        emitted_level=data.draw(st.integers(1, levels(L, g)), "j"),
        attention=data.draw(st.sampled_from(["aligned", "scrambled"])),
        shortcut_order=data.draw(st.sampled_from(["paper", "released"])),
        aggregate_cell=data.draw(st.booleans(), "aggregate_cell"),
        shortcut=data.draw(st.booleans(), "shortcut"),
        top_down=data.draw(st.booleans(), "top_down"),
        bias=data.draw(st.sampled_from(["single", "double"])),
    )


def by_loop(layer: TPRNNLayer, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The plain loop's output and emitted states, zero past what a sequence has."""
    with running("plain"):
        result = layer(x, lengths)
    has = positions(result.emitted.shape[1]) < result.lengths[:, None]
    return result.output, where(has.to(x.device)[:, :, None], result.emitted, zeros_like(result.emitted))
