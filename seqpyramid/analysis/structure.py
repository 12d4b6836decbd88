r"""How far information travels: path lengths and connections of recurrent architectures, without any weights.

Source: Chang et al., "Dilated Recurrent Neural Networks", NIPS 2017, arXiv:1710.02224, Section 3 and its appendix.

A network that repeats itself every m steps is a cyclic graph: nodes (l, i), layer l at a time i modulo m, layer 0 the
input, and edges (u, v, sigma) whose delay sigma is the time between u and v. With d_i(n) the length in edges of the
shortest path from the input at time i to the top layer at time i + n:

.. math::
    \bar{d} = \frac{1}{m} \sum_{n=1}^{m} \max_i d_i(n), \qquad
    N_r = \frac{|\{(u, v, \sigma) : \sigma \ne 0\}|}{|\{v\}|}

the mean recurrent length, smaller is better for memory, and the recurrent edges per node of a hidden layer, which are
its price in parameters. In closed form, with L layers (each costs a path one edge):

.. math::
    \bar{d} &= \frac{m - 1}{2} + \frac{1}{m} + L && \text{a skip of m beside the step of 1 in every layer} \\
    \bar{d} &= \sum_{l=1}^{L-1} \frac{n_l - 1}{2} + \frac{1}{m} + L
        && \text{dilations } 1 = s_1, \; s_{l+1} = n_l s_l, \; s_L = m

The latter is 3/2 log2 m + 1/m + 1 for dilations 1, 2, 4, ..., m. Both are exact: a shortest path uses the longest
skips first, which is optimal because each divides the next, and the mean of a digit below n_l is (n_l - 1)/2.

Deviation: the paper is remembered to print (3m - 1)/(2m) log2 m + 1/m + 1 for the doubling dilations; that counts each
binary digit as set in half of m - 1 lengths, and falls short of what the graph has.

Theorem 3.1: with L layers and s_L = m as above, the mean recurrent length is least where all n_l are equal.

Not established: whether the paper counts the edge from the input; it does not change any comparison at equal L.

Numbers are exact fractions. L layers, m the period, s dilations in steps.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from math import lcm
from typing import NamedTuple


class Node(NamedTuple):
    """Layer and time."""

    layer: int
    """0 is the input, 1 the lowest hidden layer."""
    time: int
    """Step modulo the period."""


class Edge(NamedTuple):
    """A connection and how long it takes."""

    source: Node
    target: Node
    delay: int
    """sigma, in steps; a recurrent edge has one above 0."""


class CyclicGraph(NamedTuple):
    """One period of a network that repeats itself."""

    layers: int
    period: int
    edges: tuple[Edge, ...]


def recurrent(skips: Sequence[Sequence[int]]) -> CyclicGraph:
    """Build the graph of a recurrent stack whose layer l reads its own states the listed numbers of steps back.

    >>> dilated, skipped = recurrent([[1], [2], [4]]), recurrent([[1, 4]] * 3)
    >>> dilated.period, len(dilated.edges), len(skipped.edges)
    (4, 24, 36)
    """
    period = lcm(*(s for own in skips for s in own))
    edges = []
    for layer, own in enumerate(skips, start=1):
        for time in range(period):
            here = Node(layer, time)
            edges.append(Edge(Node(layer - 1, time), here, 0))
            edges += [Edge(Node(layer, (time - s) % period), here, s) for s in own]
    return CyclicGraph(len(skips), period, tuple(edges))


def convolutional(dilations: Sequence[int]) -> CyclicGraph:
    """Build the graph of causal convolutions of two taps, ``dilations`` steps apart, layer by layer."""
    period = lcm(*dilations)
    edges = []
    for layer, s in enumerate(dilations, start=1):
        for time in range(period):
            here = Node(layer, time)
            edges.append(Edge(Node(layer - 1, time), here, 0))
            edges.append(Edge(Node(layer - 1, (time - s) % period), here, s))
    return CyclicGraph(len(dilations), period, tuple(edges))


def shortest_paths(graph: CyclicGraph, start: int, reach: int) -> list[int | None]:
    """Search d_i(0), ..., d_i(reach) for i = ``start`` breadth first; None where no path leads.

    >>> shortest_paths(recurrent([[1], [2]]), start=0, reach=4)
    [2, 3, 3, 4, 4]
    """
    leaving: dict[Node, list[Edge]] = {}
    for edge in graph.edges:
        leaving.setdefault(edge.source, []).append(edge)
    found: list[int | None] = [None] * (reach + 1)
    edges, frontier = 0, {(Node(0, start), 0)}  # a node and the time since the start
    seen = set(frontier)
    while frontier:
        for node, elapsed in frontier:
            if node.layer == graph.layers and found[elapsed] is None:
                found[elapsed] = edges
        frontier = {
            (edge.target, elapsed + edge.delay)
            for node, elapsed in frontier
            for edge in leaving.get(node, [])
            if elapsed + edge.delay <= reach
        } - seen
        seen |= frontier
        edges += 1
    return found


def mean_recurrent_length(graph: CyclicGraph) -> Fraction:
    """Average d_i(n) over n = 1, ..., m, at the worst i for each n, by searching the graph.

    Raises:
        ValueError: the top layer is out of the input's reach at some n, so that no mean exists.
    """
    total = 0
    searches = [shortest_paths(graph, start, graph.period) for start in range(graph.period)]
    for n in range(1, graph.period + 1):
        lengths = [search[n] for search in searches]
        if None in lengths:
            raise ValueError(f"no path leads from an input to the top layer {n} steps later")
        total += max(length for length in lengths if length is not None)
    return Fraction(total, graph.period)


def recurrent_edges_per_node(graph: CyclicGraph) -> Fraction:
    """N_r: edges with a delay, per node of a hidden layer.

    >>> str(recurrent_edges_per_node(recurrent([[1], [2], [4]]))), str(recurrent_edges_per_node(recurrent([[1, 4]])))
    ('1', '2')
    """
    return Fraction(sum(edge.delay != 0 for edge in graph.edges), graph.layers * graph.period)


def dilated_recurrent_length(dilations: Sequence[int]) -> Fraction:
    """Mean recurrent length of a Dilated RNN in closed form.

    >>> float(dilated_recurrent_length([2**k for k in range(9)]))
    13.00390625

    Raises:
        ValueError: the dilations do not start at 1, or one does not divide the next.
    """
    if not dilations or dilations[0] != 1 or any(b % a for a, b in pairwise(dilations)):
        raise ValueError(
            f"the closed form needs dilations from 1 on, each dividing the next: {list(dilations)}"
        )
    digits = sum((Fraction(b // a - 1, 2) for a, b in pairwise(dilations)), start=Fraction(0))
    return digits + Fraction(1, dilations[-1]) + len(dilations)


def skipped_recurrent_length(skip: int, layers: int) -> Fraction:
    """Mean recurrent length of a stack with steps of 1 and ``skip`` in every layer, in closed form.

    >>> float(skipped_recurrent_length(256, 9))
    136.50390625
    """
    return Fraction(skip - 1, 2) + Fraction(1, skip) + layers


def receptive_field(dilations: Sequence[int], taps: int = 2) -> int:
    """Inputs that one output of causal convolutions sees.

    >>> receptive_field([2**k for k in range(10)])
    1024
    """
    return 1 + (taps - 1) * sum(dilations)


def dilation_lists(period: int, layers: int) -> Iterator[tuple[int, ...]]:
    """Every choice of dilations 1 = s_1, ..., s_L = ``period``, each dividing the next.

    >>> list(dilation_lists(4, 3))
    [(1, 1, 4), (1, 2, 4), (1, 4, 4)]
    """
    if layers == 1:
        if period == 1:
            yield (1,)
        return
    for last in range(1, period + 1):
        if period % last == 0:
            for below in dilation_lists(last, layers - 1):
                yield (*below, period)
