r"""TP-RNN: sub-pyramids of aggregated states, a shortcut path over their tops, several layers.

Source: Ma, Lin, Chen, Cottrell, "Temporal Pyramid Recurrent Neural Network", AAAI 2020, equations (1)-(6), and its
supplement; theta is equations (7)-(10), in :mod:`seqpyramid.models.aggregation`.

A layer cuts its T input steps into N sub-pyramids of L steps. In one sub-pyramid, with granularity g:

.. math::
    h_l &= f(U x_l + W h_{l-1} + b) & (l-1) \bmod g \ne 0 \\
    h_l &= f(U x_l + W \hat{h}_i^j + b) & \text{else, with } i = (l-1)/g^j \\
    \hat{h}_i^1 &= \theta(h_{(i-1)g+1}, \dots, h_{ig}), \qquad
    \hat{h}_i^j = \theta(\hat{h}_{(i-1)g+1}^{j-1}, \dots, \hat{h}_{ig}^{j-1}), \quad 2 \le j \le J = \log_g L

where j counts the trailing zeros of l-1 in base g. The first step of a sub-pyramid is driven by the top of the one
before it. The tops make the layer's output through a shortcut path, and the states of one level make the next
layer's input; all layers' outputs are aggregated:

.. math::
    o_0 = \hat{h}_1, \quad o_n = \theta(o_{n-1}, \hat{h}_{n+1}), \qquad
    X^{k+1} = \hat{H}^{j}, \qquad \hat{o} = \theta(o^1, \dots, o^K)

One theta for all levels of (2), one for (3), one for (6): three sets of weights a layer stack. With LSTM cells the
cell state c passes through the same tree with a theta of its own (released code; the paper speaks of h only).

Ragged cases. L need not be a power of g, T need not be a multiple of L, and each sequence of a batch may end where it
likes: every step counts once; when a sub-pyramid closes after r steps, level j has ceil(r / g^j) states, the last of
them from a short group (top-left slice of theta's weights, one state included), up to one top at level
J = max(1, ceil(log_g r)), by integer arithmetic; with fewer levels than j of (4), it hands its top to the next layer.
A whole sub-pyramid below a next layer has j levels at least, else the model is refused; the last layer has no j.
**Deviation**: the released code has slips there (it forgets, doubles or drops states at ragged lengths, and its
floating-point logarithm gives 125 a fourth level in base 5); none occurs at the paper's settings for T = 784.

Paper or released code (qianlima-lab/TPRNN), by named option; the recipes use the released code's, because the printed
parameter counts and presumably the printed numbers come from it:

=====================  ===========================  =========================================
option                 paper                        released code
=====================  ===========================  =========================================
attention              aligned, equation (9)        scrambled
shortcut_order         theta(o, top), equation (3)  theta(top, o)
output_maps            none                         one H x H matrix a layer
output_squash          tanh, equation (10)          none
aggregate_cell         not mentioned                c like h, own weights
forget_bias            not mentioned                0.1
init, head_init        not mentioned                Glorot; truncated normal 0.1, bias 0.1
=====================  ===========================  =========================================

At the end of a sequence only h is aggregated in the released code; c has no reader there, so nothing differs, and
the same is done here.

Ablations of Table 5. The paper's abbreviations are read as: IAC, the iterative aggregation connections of the
shortcut path (without: the output is the last top); TDC, the top-down connections from aggregated states to the next
step (without: h_{l-1} drives every step); OAC, the output aggregation (without: the top layer's output). The text that
spells them out was not at hand: inferred from the figure's caption and from OAC having no entry for one layer.

Speed: the step loop below is the plain twin, for any option, device and dtype, with the input projections hoisted
out of it. For LSTM cells and the paper's theta, :mod:`seqpyramid.kernels` has three more, tested against it: compiled
for the CPU, several times faster; in Triton for CUDA devices; and in torch operations for machines without a compiler.
With ``recompute`` the compiled one keeps next to nothing for the backward pass, which then runs the steps again; with
``gates_in_16_bits`` it keeps the gates in half the memory, which rounds gradients.

Shapes: B batch, T time steps of a layer, F input features, H hidden units, K layers, J levels, N sub-pyramids.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from seqpyramid import kernels
from seqpyramid.contracts import Needs, TaskSpec
from seqpyramid.kernels.operations.tp_rnn import tp_rnn_layer as by_operations
from seqpyramid.kernels.tp_rnn import Pyramids, Theta, tp_rnn_layer
from seqpyramid.models.aggregation import AggregationMethod, Attention, OutputAggregation, StateAggregation
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel
from seqpyramid.models.cells import CELLS, Bias, CellInit, CellName, State
from seqpyramid.models.fused import GATES_IN_16_BITS, RECOMPUTE, Keeping
from seqpyramid.models.heads import HeadInit

ShortcutOrder = Literal["paper", "released"]


class TPRNNConfig(ModelConfig):
    """TP-RNN; the defaults are the released code's, see the module's table."""

    summary_line: ClassVar[str] = "TP-RNN (Ma et al., AAAI 2020): sub-pyramids, shortcut path, several layers"
    name: Literal["tp_rnn"] = "tp_rnn"
    cell: CellName = Field(default="lstm", description="f, the recurrence")
    hidden_size: int = Field(default=100, gt=0, description="H, units per layer")
    pyramid_length: tuple[int, ...] = Field(
        min_length=1, description="L of each layer, steps of one sub-pyramid"
    )
    granularity: tuple[int, ...] = Field(
        min_length=1, description="g of each layer, states that make one of the next level"
    )
    aggregation: AggregationMethod = Field(default="ours", description="theta; Table 4 compares four")
    attention: Attention = Field(
        default="scrambled", description="whether S is transposed (paper) or reshaped (code)"
    )
    shortcut_order: ShortcutOrder = Field(default="released", description="order of the two states in (3)")
    aggregate_cell: bool = Field(default=True, description="aggregate the LSTM's c as well as h")
    output_maps: bool = Field(default=True, description="multiply each layer's output by its own matrix")
    output_squash: bool = Field(default=False, description="close (6) with tanh")
    iterative_aggregation: bool = Field(default=True, description="IAC: the shortcut path over the tops")
    top_down: bool = Field(default=True, description="TDC: aggregated states drive the next step")
    output_aggregation: bool = Field(default=True, description="OAC: aggregate the outputs of all layers")
    input_level: int = Field(default=1, gt=0, description="j of (4), level whose states feed the next layer")
    bias: Bias = Field(default="single", description="one bias vector a cell (papers' counts) or torch's two")
    forget_bias: float = Field(default=0.1, description="added to the LSTM's first forget bias")
    init: CellInit = Field(default="tensorflow", description="start of the cells' weights")
    head_init: HeadInit = Field(default="released_tp_rnn", description="start of the classifier's weights")
    recompute: bool = RECOMPUTE
    gates_in_16_bits: bool = GATES_IN_16_BITS

    @property
    def emits(self) -> frozenset[Needs]:
        """A pyramid has one answer a sequence."""
        return frozenset({"summary"})

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Check L and g against each other and, in the first layer, against the task's T."""
        found = super().problems(spec)
        if len(self.pyramid_length) != len(self.granularity):
            found["granularity"] = (
                f"has {len(self.granularity)} entries but pyramid_length has {len(self.pyramid_length)}; "
                "give one g for each layer's L"
            )
            return found
        layers = len(self.pyramid_length)
        for k, (length, g) in enumerate(zip(self.pyramid_length, self.granularity, strict=True)):
            if length < 1:
                found["pyramid_length"] = (
                    f"L of layer {k + 1} is {length}; a sub-pyramid has at least one step"
                )
            elif g < 2:
                found["granularity"] = (
                    f"g of layer {k + 1} is {g}; at least 2 states make one of the next level"
                )
            elif k + 1 < layers and self.input_level > levels(length, g):
                found["input_level"] = (
                    f"is {self.input_level}, but layer {k + 1} (L {length}, g {g}) has {levels(length, g)} "
                    "levels; choose at most that, or a longer L"
                )
        if not found and spec.max_length is not None and self.pyramid_length[0] > spec.max_length:
            found["pyramid_length"] = (
                f"L of layer 1 is {self.pyramid_length[0]}, longer than the task's sequences "
                f"(T = {spec.max_length}); choose L up to {spec.max_length}"
            )
        unfit = "needs the compiled layer, which is for LSTM cells and aggregation 'ours'"
        keeping = Keeping(self.recompute, self.gates_in_16_bits)
        found |= keeping.problems(None if has_kernel(self.cell, self.aggregation) else unfit)
        if not found and layers == 1:
            for option in ("output_aggregation", "input_level"):
                if getattr(self, option) != type(self).model_fields[option].default:
                    found[option] = "has no effect with one layer; leave it out"
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return TPRNN(spec, **self.model_dump(exclude={"name"}))


class TPRNN(SequenceModel):
    """K TP-RNN layers and the aggregation of their outputs; arguments as in :class:`TPRNNConfig`."""

    step_loop = True

    def __init__(
        self,
        spec: TaskSpec,
        *,
        cell: CellName,
        hidden_size: int,
        pyramid_length: Sequence[int],
        granularity: Sequence[int],
        aggregation: AggregationMethod,
        attention: Attention,
        shortcut_order: ShortcutOrder,
        aggregate_cell: bool,
        output_maps: bool,
        output_squash: bool,
        iterative_aggregation: bool,
        top_down: bool,
        output_aggregation: bool,
        input_level: int,
        bias: Bias,
        forget_bias: float,
        init: CellInit,
        head_init: HeadInit,
        recompute: bool,
        gates_in_16_bits: bool,
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.layers = nn.ModuleList()
        for k, (length, g) in enumerate(zip(pyramid_length, granularity, strict=True)):
            layer = TPRNNLayer(
                spec.input_size if k == 0 else hidden_size,
                hidden_size,
                length=length,
                granularity=g,
                cell=cell,
                aggregation=aggregation,
                attention=attention,
                shortcut_order=shortcut_order,
                aggregate_cell=aggregate_cell,
                shortcut=iterative_aggregation,
                top_down=top_down,
                # nothing reads what the last layer emits, so its level may be one that every pyramid has
                emitted_level=input_level if k + 1 < len(pyramid_length) else 1,
                bias=bias,
                forget_bias=forget_bias if cell == "lstm" else 0.0,
                init=init,
                recompute=recompute,
                gates_in_16_bits=gates_in_16_bits,
            )
            self.layers.append(layer)
        self.output = (
            OutputAggregation(
                len(self.layers),
                hidden_size,
                method=aggregation,
                attention=attention,
                maps=output_maps,
                squash=output_squash,
            )
            if len(self.layers) > 1 and output_aggregation
            else None
        )

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the layers, each on the level-j states of the one below, and aggregate their outputs (6)."""
        outputs = []
        for layer in self.layers:
            result = layer(x, lengths)
            outputs.append(result.output)
            x, lengths = result.emitted, result.lengths
        return Encoding(self.output(outputs) if self.output is not None else outputs[-1])

    def encoder_flops(self, time: int) -> int:
        """Cells and aggregations, counted on the pyramid's integer skeleton."""
        total = self.output.flops(len(self.layers)) if self.output is not None else 0
        for layer in cast("list[TPRNNLayer]", self.layers):
            total += layer.flops(time)
            time = emitted_count(time, layer.length, layer.granularity, layer.emitted_level)
        return total


class LayerResult(NamedTuple):
    """What one layer hands on."""

    output: Tensor
    """(B, H): o_{N-1}, each sequence's own."""
    emitted: Tensor
    """(B, T', H): the states of the chosen level, the next layer's input."""
    lengths: Tensor
    """(B,): how many of them each sequence has."""


class TPRNNLayer(nn.Module):
    """One layer: a cell, sub-pyramids of L steps in granularity g, and the shortcut path over their tops.

    Args:
        input_size: F.
        hidden_size: H.
        length: L.
        granularity: g.
        emitted_level: j of (4), at most ``levels(length, granularity)``.
        cell: the recurrence f.
        aggregation: theta's method.
        attention: theta's attention.
        shortcut_order: order of the two states in (3).
        aggregate_cell: whether an LSTM's c is aggregated too.
        shortcut: whether there is a shortcut path (IAC).
        top_down: whether aggregated states drive the next step (TDC).
        bias: of the cell.
        forget_bias: of the cell.
        init: of the cell.
        recompute: whether the backward pass runs segments again instead of keeping their states.
        gates_in_16_bits: whether the backward pass gets rounded gates.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        length: int,
        granularity: int,
        emitted_level: int = 1,
        cell: CellName = "lstm",
        aggregation: AggregationMethod = "ours",
        attention: Attention = "aligned",
        shortcut_order: ShortcutOrder = "paper",
        aggregate_cell: bool = True,
        shortcut: bool = True,
        top_down: bool = True,
        bias: Bias = "single",
        forget_bias: float = 0.0,
        init: CellInit = "torch",
        recompute: bool = False,
        gates_in_16_bits: bool = False,
    ) -> None:
        super().__init__()
        self.length, self.granularity, self.emitted_level = length, granularity, emitted_level
        self.shortcut_order, self.top_down = shortcut_order, top_down
        self.cell = CELLS[cell](input_size, hidden_size, bias=bias, init=init, forget_bias=forget_bias)
        # Without top-down connections nothing reads an aggregated c, so it gets no theta.
        aggregated = self.cell.states if aggregate_cell and top_down else 1
        self.within = nn.ModuleList(
            StateAggregation(granularity, method=aggregation, attention=attention) for _ in range(aggregated)
        )
        self.shortcut = StateAggregation(2, method=aggregation, attention=attention) if shortcut else None
        self.has_kernel = has_kernel(cell, aggregation)
        self.keeping = Keeping(recompute, gates_in_16_bits)
        self.scrambled = attention == "scrambled"

    def forward(self, x: Tensor, lengths: Tensor) -> LayerResult:
        """Run (B, T, F), each sequence up to its own length."""
        kernel = self._kernel(x)
        return self._plain(x, lengths) if kernel is None else self._fused(kernel, x, lengths)

    def _kernel(self, x: Tensor) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """What gives the same as :meth:`_plain` in one call, if anything may."""
        tensors = (x, *self.parameters())
        if self.has_kernel and kernels.fused(*tensors):
            return partial(tp_rnn_layer, **self.keeping.kernel_options())
        self.keeping.refuse_plain_training()
        if self.has_kernel and kernels.on_gpu(*tensors):
            from seqpyramid.kernels.gpu.tp_rnn import tp_rnn_layer as on_gpu  # needs Triton

            return on_gpu
        return by_operations if self.has_kernel and kernels.by_operations(*tensors) else None

    def _fused(self, kernel: Callable[..., tuple[Tensor, Tensor]], x: Tensor, lengths: Tensor) -> LayerResult:
        counts = self._emitted_counts(lengths)
        theta_h, theta_c, theta_path = (
            None if theta is None else Theta(theta.W1, theta.W2)
            for theta in (*self.within, *[None] * (2 - len(self.within)), self.shortcut)
        )
        pyramids = Pyramids(
            length=self.length,
            granularity=self.granularity,
            emitted_level=self.emitted_level,
            emitted_time=max(counts),
            scrambled=self.scrambled,
            top_down=self.top_down,
            top_first=self.shortcut_order == "released",
        )
        cell = self.cell
        bias = cell.bias_ih if cell.bias_hh is None else cell.bias_ih + cell.bias_hh
        weights = (cell.weight_ih, cell.weight_hh, bias)
        assert theta_h is not None  # h is always aggregated
        output, emitted = kernel(x, weights, theta_h, theta_c, theta_path, lengths, pyramids)
        return LayerResult(output, emitted, torch.tensor(counts))

    def _emitted_counts(self, lengths: Tensor) -> list[int]:
        return [emitted_count(n, self.length, self.granularity, self.emitted_level) for n in lengths.tolist()]

    def _plain(self, x: Tensor, lengths: Tensor) -> LayerResult:
        """Run step by step, all sequences abreast; each leaves at its own last step."""
        batch, time = len(x), int(lengths.max())
        ends = rows_by_end(lengths, x.device)
        state = self.cell.initial(batch)
        pyramid = SubPyramid(self.granularity)
        path: Tensor | None = None  # o of the sub-pyramids closed so far
        leaving: list[tuple[Tensor, Tensor]] = []  # (rows, their outputs)
        emitted = EmittedStates(batch)

        # unbind, not x[t]: the backward of indexing fills a whole gradient (B, T, G H) with zeros at every step
        for t, projected in enumerate(self.cell.project(x[:, :time]).unbind(1)):
            state = self.cell.step(projected, state)
            last = t + 1 == time
            pyramid.add(
                state[:1] if last else state[: len(self.within)]
            )  # c has no reader after the last step
            closing = (t + 1) % self.length == 0
            for level, top in self._close(pyramid) if closing else self._complete(pyramid):
                if level == self.emitted_level:
                    emitted.append(top[0])
                if self.top_down:
                    state = top + state[len(top) :]
            if closing:
                path = self._extend(path, pyramid.top())
                pyramid = SubPyramid(self.granularity)
            rows = ends.get(t + 1)
            if rows is not None:
                if pyramid.steps:
                    leaving.append((rows, self._leave(pyramid, path, rows, emitted)))
                else:
                    assert path is not None  # a sub-pyramid has just closed
                    leaving.append((rows, path.index_select(0, rows)))

        counts = self._emitted_counts(lengths)
        return LayerResult(gather_rows(leaving), emitted.stack(max(counts)), torch.tensor(counts))

    def _aggregate(self, nodes: Sequence[State]) -> State:
        """Theta of h and, where it is aggregated, of c, each with its own weights."""
        parts = zip(*nodes, strict=True)
        return tuple(theta(part) for theta, part in zip(self.within, parts, strict=False))

    def _complete(self, pyramid: "SubPyramid") -> Iterator[tuple[int, State]]:
        """Aggregate every full group of g, level by level upwards; equation (2)."""
        level = 0
        while len(pyramid.waiting(level)) == self.granularity:
            node = self._aggregate(pyramid.take(level))
            level += 1
            pyramid.put(level, node)
            yield level, node

    def _close(self, pyramid: "SubPyramid") -> Iterator[tuple[int, State]]:
        """Aggregate what waits at every level, full group or short, up to the one top at level J."""
        for level in range(levels(pyramid.steps, self.granularity)):
            if pyramid.waiting(level):
                node = self._aggregate(pyramid.take(level))
                pyramid.put(level + 1, node)
                yield level + 1, node

    def _extend(self, path: Tensor | None, top: Tensor) -> Tensor:
        """Equation (3): o_n from o_{n-1} and the newest top."""
        if path is None or self.shortcut is None:
            return top
        result: Tensor = self.shortcut([path, top] if self.shortcut_order == "paper" else [top, path])
        return result

    def _leave(
        self, pyramid: "SubPyramid", path: Tensor | None, rows: Tensor, emitted: "EmittedStates"
    ) -> Tensor:
        """Close the open sub-pyramid for the sequences that end inside it; the others go on unchanged."""
        mine = pyramid.select(rows)
        position = len(emitted)
        for level, top in self._close(mine):
            if level == self.emitted_level:
                emitted.place(position, rows, top[0])
        if levels(mine.steps, self.granularity) < self.emitted_level:
            emitted.place(position, rows, mine.top())
        return self._extend(None if path is None else path.index_select(0, rows), mine.top())

    def flops(self, time: int) -> int:
        """FLOPs of one sequence of ``time`` steps."""
        length, g, hidden = self.length, self.granularity, self.cell.hidden_size
        h_theta, *c_theta = cast("list[StateAggregation]", self.within)
        total = time * self.cell.flops()
        full, rest = divmod(time, length)
        for steps, count in ((length, full), (rest, 1 if rest else 0)):
            total += count * len(self.within) * sum(h_theta.flops(n, hidden) for n in groups(steps, g))
        for theta in c_theta:  # at the very last step only h is aggregated
            total -= sum(theta.flops(n, hidden) for n in last_groups(rest or length, g))
        if self.shortcut is not None:
            total += (full + (1 if rest else 0) - 1) * self.shortcut.flops(2, hidden)
        return total


class SubPyramid:
    """The states of the open sub-pyramid that still wait for their group, level by level (level 0: the steps)."""

    def __init__(self, granularity: int) -> None:
        self._granularity = granularity
        self._levels: list[list[State]] = [[]]
        self.steps = 0

    def add(self, state: State) -> None:
        """Add the state of the next step."""
        self._levels[0].append(state)
        self.steps += 1

    def waiting(self, level: int) -> list[State]:
        """States of a level that are in no aggregate yet."""
        return self._levels[level] if level < len(self._levels) else []

    def take(self, level: int) -> list[State]:
        """Hand over the waiting states of a level, cut to the parts that the newest of them has."""
        nodes = self._levels[level]
        self._levels[level] = []
        return [node[: len(nodes[-1])] for node in nodes]

    def put(self, level: int, node: State) -> None:
        """Let an aggregate wait at its level."""
        while len(self._levels) <= level:
            self._levels.append([])
        self._levels[level].append(node)

    def top(self) -> Tensor:
        """The h of the one state left after closing."""
        (node,) = self._levels[-1]
        return node[0]

    def select(self, rows: Tensor) -> "SubPyramid":
        """A copy with the h of some sequences only."""
        copy = SubPyramid(self._granularity)
        copy._levels = [[(node[0].index_select(0, rows),) for node in nodes] for nodes in self._levels]
        copy.steps = self.steps
        return copy


class EmittedStates:
    """The next layer's inputs: states all sequences have in common, and short groups of those that ended."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._states: list[Tensor] = []
        self._placed: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def append(self, state: Tensor) -> None:
        """Add a state (B, H) of every sequence."""
        self._states.append(state)

    def place(self, position: int, rows: Tensor, state: Tensor) -> None:
        """Let some sequences have a state of their own at a position."""
        self._placed.setdefault(position, []).append((rows, state))

    def stack(self, count: int) -> Tensor:
        """Return (B, count, H)."""
        states = self._states[:count]
        if len(states) < count:  # only sequences that ended inside the last group have a state here
            example = next(iter(self._placed[len(states)]))[1]
            states.append(example.new_zeros(self._batch, example.shape[1]))
        for position, replacements in self._placed.items():
            for rows, state in replacements:
                states[position] = states[position].index_copy(0, rows, state)
        return torch.stack(states, dim=1)


def has_kernel(cell: CellName, aggregation: AggregationMethod) -> bool:
    """Whether a layer of such cells and such a theta has a compiled twin."""
    return cell == "lstm" and aggregation == "ours"


def levels(steps: int, g: int) -> int:
    """J: aggregations between a step and the top of a sub-pyramid of that many steps, by integers.

    >>> [levels(n, 5) for n in (1, 5, 6, 125, 126)]
    [1, 1, 2, 3, 4]
    """
    level, reach = 1, g
    while reach < steps:
        level, reach = level + 1, reach * g
    return level


def groups(steps: int, g: int) -> Iterator[int]:
    """Sizes of all groups that a sub-pyramid of some steps aggregates, level by level.

    >>> list(groups(6, 2))
    [2, 2, 2, 2, 1, 2]
    """
    for _ in range(levels(steps, g)):
        full, rest = divmod(steps, g)
        yield from [g] * full
        if rest:
            yield rest
        steps = full + bool(rest)


def last_groups(steps: int, g: int) -> Iterator[int]:
    """Sizes of the groups that are aggregated when a sub-pyramid closes: the last of each level.

    >>> list(last_groups(6, 2))
    [2, 1, 2]
    """
    for _ in range(levels(steps, g)):
        yield steps % g or g
        steps = -(-steps // g)


def emitted_count(time: int, length: int, g: int, level: int) -> int:
    """How many states of a level a layer of ``time`` steps makes.

    >>> emitted_count(784, 49, 7, 1), emitted_count(23, 5, 2, 1)
    (112, 14)
    """
    full, rest = divmod(time, length)
    group: int = g**level
    return full * -(-length // group) + -(-rest // group)


def rows_by_end(lengths: Tensor, device: torch.device) -> dict[int, Tensor]:
    """Group a batch's rows by the step at which they end."""
    ends: dict[int, list[int]] = {}
    for row, end in enumerate(lengths.tolist()):
        ends.setdefault(end, []).append(row)
    return {end: torch.tensor(rows, device=device) for end, rows in ends.items()}


def gather_rows(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Put row-wise parts back into batch order."""
    rows = torch.cat([rows for rows, _ in parts])
    return torch.cat([values for _, values in parts]).index_select(0, rows.argsort())
