"""The theory of the Dilated RNN paper: what its closed forms say against what a search of the graph finds."""

from fractions import Fraction
from itertools import pairwise
from math import log2

import pytest

from seqpyramid.analysis.structure import (
    CyclicGraph,
    Edge,
    Node,
    convolutional,
    dilated_recurrent_length,
    dilation_lists,
    mean_recurrent_length,
    receptive_field,
    recurrent,
    recurrent_edges_per_node,
    shortest_paths,
    skipped_recurrent_length,
)


def doubling(layers: int) -> list[int]:
    return [2**k for k in range(layers)]


@pytest.mark.parametrize("layers", range(1, 7))
def test_doubling_dilations(layers: int) -> None:
    m = 2 ** (layers - 1)
    found = mean_recurrent_length(recurrent([[s] for s in doubling(layers)]))
    assert found == dilated_recurrent_length(doubling(layers))
    assert found == Fraction(3, 2) * (layers - 1) + Fraction(1, m) + 1


@pytest.mark.parametrize("dilations", [[1], [1, 1, 4], [1, 2, 6], [1, 3, 3, 9], [1, 5], [1, 2, 4, 12]])
def test_any_chain_of_divisors(dilations: list[int]) -> None:
    found = mean_recurrent_length(recurrent([[s] for s in dilations]))
    assert found == dilated_recurrent_length(dilations)


@pytest.mark.parametrize(("skip", "layers"), [(2, 1), (4, 3), (8, 4), (8, 1), (15, 2)])
def test_regular_skips(skip: int, layers: int) -> None:
    assert mean_recurrent_length(recurrent([[1, skip]] * layers)) == skipped_recurrent_length(skip, layers)


def test_values_at_the_papers_sizes() -> None:
    assert float(dilated_recurrent_length(doubling(9))) == pytest.approx(13.004, abs=5e-4)
    assert float(skipped_recurrent_length(256, 9)) == pytest.approx(136.50, abs=5e-3)
    assert float(dilated_recurrent_length(doubling(7))) == pytest.approx(10.016, abs=5e-4)
    assert float(skipped_recurrent_length(64, 7)) == pytest.approx(38.52, abs=5e-3)


def test_the_remembered_printed_form_falls_short() -> None:
    m = 64
    printed = (3 * m - 1) / (2 * m) * log2(m) + 1 / m + 1
    assert float(mean_recurrent_length(recurrent([[s] for s in doubling(7)]))) - printed == pytest.approx(
        log2(m) / (2 * m)
    )


@pytest.mark.parametrize("layers", [1, 2, 4, 5])
def test_a_path_has_one_edge_for_each_binary_digit_and_layer(layers: int) -> None:
    m = 2 ** (layers - 1)
    paths = shortest_paths(recurrent([[s] for s in doubling(layers)]), start=0, reach=m)
    assert paths[:m] == [n.bit_count() + layers for n in range(m)]
    assert paths[m] == 1 + layers


def test_the_start_makes_no_difference() -> None:
    graph = recurrent([[1], [2], [4]])
    assert len({tuple(shortest_paths(graph, start, 8)) for start in range(4)}) == 1


def test_the_worst_start_counts() -> None:
    """A short cut of two steps that leaves from even times only: 2 edges to n = 1, 3 (not 1) to n = 2."""
    edges = [Edge(Node(0, 0), Node(1, 0), 2)]
    for time in range(2):
        edges.append(Edge(Node(0, time), Node(1, time), 0))
        edges.append(Edge(Node(1, time), Node(1, 1 - time), 1))
    graph = CyclicGraph(layers=1, period=2, edges=tuple(edges))
    assert mean_recurrent_length(graph) == Fraction(5, 2)
    assert shortest_paths(graph, start=0, reach=2)[2] == 1


def test_recurrent_edges_per_node() -> None:
    assert recurrent_edges_per_node(recurrent([[s] for s in doubling(5)])) == 1
    assert recurrent_edges_per_node(recurrent([[1, 16]] * 5)) == 2
    assert recurrent_edges_per_node(recurrent([[1]] * 3)) == 1
    assert recurrent_edges_per_node(convolutional(doubling(5))) == 1


@pytest.mark.parametrize(("period", "layers"), [(4, 3), (8, 4), (9, 3), (16, 3), (16, 5), (27, 4), (25, 3)])
def test_theorem_3_1_equal_ratios_are_best(period: int, layers: int) -> None:
    lengths = {s: mean_recurrent_length(recurrent([[k] for k in s])) for s in dilation_lists(period, layers)}
    base = round(period ** (1 / (layers - 1)))
    best = tuple(base**k for k in range(layers))
    assert best[-1] == period
    assert [s for s in lengths if lengths[s] == min(lengths.values())] == [best]
    assert len(lengths) > 2
    assert all(length == dilated_recurrent_length(s) for s, length in lengths.items())


@pytest.mark.parametrize(("period", "layers"), [(1, 1), (4, 1), (6, 2), (12, 4), (8, 5)])
def test_dilation_lists_are_all_and_once(period: int, layers: int) -> None:
    found = list(dilation_lists(period, layers))
    expected = [()] if layers else []
    for _ in range(layers):
        expected = [(*s, n) for s in expected for n in range(1, period + 1)]
    wanted = [
        s for s in expected if s[0] == 1 and s[-1] == period and all(b % a == 0 for a, b in pairwise(s))
    ]
    assert sorted(found) == wanted


@pytest.mark.parametrize("layers", range(1, 7))
def test_receptive_field(layers: int) -> None:
    reach = 2**layers + 3
    paths = shortest_paths(convolutional(doubling(layers)), start=0, reach=reach)
    seen = [n for n, length in enumerate(paths) if length is not None]
    assert seen == list(range(receptive_field(doubling(layers))))
    assert receptive_field(doubling(layers)) == 2**layers
    assert {paths[n] for n in seen} == {layers}  # every path of a convolutional network has one edge a layer


def test_receptive_field_of_more_taps() -> None:
    assert receptive_field([1, 3], taps=3) == 9


def test_what_has_no_mean_or_no_closed_form_is_refused() -> None:
    with pytest.raises(ValueError, match="no path leads from an input to the top layer 1 steps later"):
        mean_recurrent_length(recurrent([[2], [4]]))
    for dilations in ([], [2, 4], [1, 2, 3]):
        with pytest.raises(ValueError, match="each dividing the next"):
            dilated_recurrent_length(dilations)
