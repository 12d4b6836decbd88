r"""Dilated RNN: recurrent skips that grow from layer to layer, in place of the step to the neighbour.

Source: Chang et al., "Dilated Recurrent Neural Networks", NIPS 2017, arXiv:1710.02224, equations (1), (3), (4):

.. math::
    c_t^{(l)} &= f(x_t^{(l)}, c_{t-s^{(l)}}^{(l)}), \qquad x_t^{(l+1)} = c_t^{(l)} \\
    s^{(l)} &= M^{\,l-1+l_0}, \quad l = 1, \dots, L

where a state before the first step is zero. With d_0 = s^(1) > 1 no path joins the d_0 interleaved sub-sequences, so a
1 x d_0 convolution closes the network: the last d_0 states of the top layer, the oldest first, zero before the first
step, are read together. Here that reading is the head's: the summary (and each of the steps) has d_0 H features.
One layer with d_0 > 1 is the "fused" recurrence of the paper's Table 3 (``dilations: [8]``).

Cells: Elman and LSTM as in :mod:`seqpyramid.models.cells`; GRU with the reset gate before the product,

.. math:: n = \tanh(U_n x_t + W_n (r \odot h_{t-s}) + b_n), \qquad h_t = z \odot h_{t-s} + (1 - z) \odot n

(``reset: before``, TensorFlow's cell) or after it (``reset: after``, torch's).

What the released code (code-terminator/DilatedRNN) settles, and the defaults follow: TensorFlow 1.3's
BasicRNNCell, BasicLSTMCell (1 added to the forget gate) and GRUCell with their own starts, which are Glorot uniform
over the joint matrix of inputs and states, biases 0, but 1 for a GRU's two gates; a head with weights and bias from
N(0, 1); the oldest of the d_0 states first. The paper's text draws "all weight matrices" from a standard normal:
``init: standard_normal`` does so for the matrices and leaves the biases, of which the text says nothing, as above.

Not established: the shape of the convolution in Table 3, whose printed counts leave no room for the d_0 H x K weights
of the released code; the released form is used.

Deviations: one dilation may stand in two layers, and lengths may differ (the released code fails at the former and
knows one T); each sequence is read at its own end. The forget gate's 1 is the start of the bias, not added while
running: the same function and the same training path.

Speed. *Folding*: the sub-sequences of a layer are independent, so they go into the batch axis, by a view where s
divides T, and one fused layer of torch runs all of them in ceil(T/s) steps. *Dependency cone*: where only the last step
is read and each dilation divides the next, a layer above another needs only every (s_l / s_{l-1})-th of its states,
counted back from the sequence's end. Kept states are consecutive for the next layer, so a stack of plain recurrences
with subsampling between them remains: about 2 T cell steps for M = 2, not L T. Same outputs and gradients, used
whenever it applies. A GRU with ``reset: before`` has no fused form in torch: a loop over the ceil(T/s) folded steps
runs it. On a CPU all layers are those of :mod:`seqpyramid.kernels`, which may keep less for the backward pass
(``recompute``; an LSTM's also ``gates_in_16_bits``).

Shapes: B batch, T time steps, F input features, H hidden units of the top layer, L layers, K outputs.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid import kernels
from seqpyramid.contracts import TaskSpec
from seqpyramid.kernels.gru import reset_before_gru_layer
from seqpyramid.kernels.lstm import Segment
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full, last_steps, mask_steps
from seqpyramid.models.cells import CELLS, Bias, CellInit, CellName, start_cell
from seqpyramid.models.fused import GATES_IN_16_BITS, KEEP_ALL, RECOMPUTE, Keeping, run_fused
from seqpyramid.models.heads import HeadInit

Reset = Literal["before", "after"]
WeightInit = CellInit | Literal["standard_normal"]

FUSED: dict[CellName, Callable[[int, int], nn.RNNBase]] = {"elman": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}

PAPER_LAYERS = 9
"""Layers of the paper's MNIST and copy-memory models: dilations 1 to 256."""

Positive = Annotated[int, Field(gt=0)]


class DilatedRNNConfig(ModelConfig):
    """Dilated RNN; the defaults are the released code's, see the module's docstring."""

    summary_line: ClassVar[str] = "Dilated RNN (Chang et al., NIPS 2017): skips of growing length, any cell"
    name: Literal["dilated_rnn"] = "dilated_rnn"
    cell: CellName = Field(default="elman", description="f, the recurrence")
    reset: Reset = Field(
        default="before",
        description="GRU's reset gate before the recurrent product (TensorFlow; a step loop) or after it (torch)",
    )
    hidden_size: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        default=20, description="units per layer: H for all, or one number for each"
    )
    layers: Positive | None = Field(
        default=None, description=f"L, number of stacked layers; {PAPER_LAYERS} if neither this nor dilations"
    )
    base: int = Field(default=2, ge=2, description="M, ratio of successive dilations")
    start_exponent: int = Field(
        default=0, ge=0, le=20, description="l0, the first dilation is base ** start_exponent"
    )
    dilations: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = Field(
        default=None, description="s of each layer in steps, in place of layers, base and start_exponent"
    )
    bias: Bias = Field(default="single", description="one bias vector a cell (papers' counts) or torch's two")
    forget_bias: float = Field(default=1.0, description="added to the LSTM's first forget bias")
    init: WeightInit = Field(default="tensorflow", description="start of the cells' weights")
    head_init: HeadInit = Field(default="standard_normal", description="start of the classifier's weights")
    recompute: bool = RECOMPUTE
    gates_in_16_bits: bool = GATES_IN_16_BITS

    @property
    def skips(self) -> tuple[int, ...]:
        """s^(1), ..., s^(L), as listed or by equation (4).

        >>> DilatedRNNConfig(layers=3, base=3, start_exponent=1).skips
        (3, 9, 27)
        """
        if self.dilations is not None:
            return self.dilations
        return tuple(self.base ** (self.start_exponent + k) for k in range(self.layers or PAPER_LAYERS))

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Units of each layer."""
        if isinstance(self.hidden_size, int):
            return (self.hidden_size,) * len(self.skips)
        return self.hidden_size

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse options that could have no effect, and recurrences that no sequence is long enough for."""
        found = super().problems(spec)
        if self.dilations is not None:
            for field, idle in (("layers", None), ("base", 2), ("start_exponent", 0)):
                if getattr(self, field) != idle:
                    found[field] = (
                        "has no effect beside dilations, which lists every layer; leave one of them out"
                    )
        elif self.base != 2 and self.skips == (1,):
            found["base"] = "has no effect with one layer of dilation 1; leave it out"
        if len(self.hidden_sizes) != len(self.skips):
            found["hidden_size"] = (
                f"lists {len(self.hidden_sizes)} layers but the dilations are {len(self.skips)}; "
                "give one number for all, or one for each"
            )
        if self.cell != "gru" and self.reset != "before":
            found["reset"] = f"acts in a GRU only, and the cell is {self.cell!r}; leave it out"
        if self.cell != "lstm" and self.forget_bias != 1:
            found["forget_bias"] = f"acts in an LSTM only, and the cell is {self.cell!r}; leave it out"
        found |= Keeping(self.recompute, self.gates_in_16_bits).problems()
        if self.cell != "lstm" and self.gates_in_16_bits:
            found["gates_in_16_bits"] = f"acts in an LSTM only, and the cell is {self.cell!r}; leave it out"
        if spec.max_length is not None and max(self.skips) >= spec.max_length:
            layer, skip = next((k, s) for k, s in enumerate(self.skips, 1) if s >= spec.max_length)
            found["layers" if self.dilations is None else "dilations"] = (
                f"layer {layer} has dilation {skip}, but the task's sequences have {spec.max_length} steps, so its "
                "recurrence would never act; choose dilations below that"
            )
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return DilatedRNN(
            spec,
            cell=self.cell,
            reset=self.reset,
            hidden_sizes=self.hidden_sizes,
            dilations=self.skips,
            bias=self.bias,
            forget_bias=self.forget_bias,
            init=self.init,
            head_init=self.head_init,
            keeping=Keeping(self.recompute, self.gates_in_16_bits),
        )


class DilatedRNN(SequenceModel):
    """L dilated layers; the head reads the last d_0 top states.

    Args:
        spec: the task's side of the contract.
        cell: which recurrence.
        reset: GRU only, where the reset gate stands.
        hidden_sizes: units of each layer.
        dilations: s of each layer.
        bias: ``single`` adds one vector a cell, ``double`` two, as torch's layers do.
        forget_bias: LSTM only.
        init: start of the cells' weights, see the module's docstring.
        head_init: start of the classifier's weights.
        keeping: what the backward pass gets; gates in 16 bits are for LSTM only.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        cell: CellName,
        reset: Reset,
        hidden_sizes: Sequence[int],
        dilations: Sequence[int],
        bias: Bias,
        forget_bias: float,
        init: WeightInit,
        head_init: HeadInit,
        keeping: Keeping = KEEP_ALL,
    ) -> None:
        super().__init__(spec, summary_size=dilations[0] * hidden_sizes[-1], head_init=head_init)
        self.dilations, self.keeping = tuple(dilations), keeping
        self.sizes = [spec.input_size, *hidden_sizes]
        self.gates = CELLS[cell].gates
        self.step_loop = cell == "gru" and reset == "before"
        self.read_by_cone = spec.needs == "summary" and all(b % a == 0 for a, b in pairwise(dilations))
        self.layers = nn.ModuleList()
        for below, above in pairwise(self.sizes):
            layer: nn.Module
            if cell == "gru" and reset == "before":
                layer = ResetBeforeGRU(below, above, bias=bias, init=init)
            else:
                layer = fused_layer(cell, below, above, bias=bias, forget_bias=forget_bias, init=init)
            self.layers.append(layer)

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run all layers; which way depends on what is read, see the module's docstring."""
        x = x.transpose(0, 1)  # time leads from here on, so that folding is a view
        if self.read_by_cone:
            return Encoding(self.cone(x, lengths))
        steps = self.folded(x).transpose(0, 1)
        if self.spec.needs == "summary":
            return Encoding(self.recent(steps, lengths))
        steps = mask_steps(windows(steps, self.dilations[0]), lengths)
        return Encoding(last_steps(steps, lengths), steps=steps)

    def folded(self, x: Tensor) -> Tensor:
        """All states of the top layer: (T, B, F) -> (T, B, H)."""
        time, batch, _ = x.shape
        lengths = torch.full((batch,), time)
        all_ways = [min(dilation, time) for dilation in self.dilations]  # more would be empty sub-sequences
        skips_padding = kernels.fused(x, *self.layers.parameters())
        for k, (layer, ways) in enumerate(zip(self.layers, all_ways, strict=True)):
            # Kernels compute no padding, so it may stay: made once, with room for the layers above.
            room = max(-(-time // above) * above for above in all_ways[k:]) if skips_padding else time
            states = all_states(layer, fold(x, ways, room), count_folded(lengths, ways), self.keeping)
            x = unfold(states, ways, room)
        return first_steps(x, time)

    def recent(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """Each sequence's last d_0 states, the oldest first: (B, T, H) -> (B, d_0 H)."""
        positions = lengths[:, None] - self.dilations[0] + torch.arange(self.dilations[0])
        rows = torch.arange(len(lengths), device=steps.device)
        chosen = steps[rows[:, None], positions.clamp(min=0).to(steps.device)]
        return zero_before_start(chosen, positions).flatten(1)

    def cone(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Only those states that the summary depends on: (T, B, F) -> (B, d_0 H)."""
        time, batch, _ = x.shape
        first = self.dilations[0]
        ways = min(first, time)
        x = fold(x, ways)
        counts = count_folded(lengths, ways).clamp(min=1)  # a row without a step is set to zero at the end
        for layer, (dilation, above) in zip(self.layers, pairwise(self.dilations), strict=False):
            x, counts = read_states(layer, x, counts, above // dilation, self.keeping)
        last = last_state(self.layers[-1], x, counts, self.keeping)
        if first == 1:
            return last
        positions = lengths[:, None] - first + torch.arange(first)
        rows = positions % ways * batch + torch.arange(batch)[:, None]
        chosen = last.index_select(0, rows.flatten().to(x.device)).view(batch, first, -1)
        return zero_before_start(chosen, positions).flatten(1)

    def encoder_flops(self, time: int) -> int:
        """Gates of every cell step, those of the folds' padding included."""
        total = 0
        ways = min(self.dilations[0], time)
        steps = -(-time // ways)
        for k, (below, above) in enumerate(pairwise(self.sizes)):
            if not self.read_by_cone:
                ways = min(self.dilations[k], time)
                steps = -(-time // ways)
            elif k:
                steps = -(-steps // (self.dilations[k] // self.dilations[k - 1]))
            total += 2 * ways * steps * self.gates * above * (below + above)
        return total


def read_states(
    layer: nn.Module, x: Tensor, counts: Tensor, every: int, keeping: Keeping
) -> tuple[Tensor, Tensor]:
    """States of one layer that one of ``every`` times its dilation reads, as :func:`subsample` would take them."""
    time, batch, _ = x.shape
    lengths = torch.full((batch,), time)
    if kernels.fused(x, *layer.parameters()) and all_full(counts, time):
        return all_states(layer, x, lengths, keeping, every), (counts + every - 1) // every
    return subsample(all_states(layer, x, lengths, keeping), counts, every)


def all_states(layer: nn.Module, x: Tensor, lengths: Tensor, keeping: Keeping, every: int = 1) -> Tensor:
    """States of one layer at the steps up to ``lengths`` (B,), longest first: (T, B, F) -> (T, B, H).

    Of ``every`` steps one is there, counted back from the last of T; more than one only the kernels leave out.
    """
    if kernels.fused(x, *layer.parameters()):
        steps, _ = run_kernel(layer, x, lengths, keeping, keep_steps=True, every=every)
        assert steps is not None  # they were asked for
        return steps.transpose(0, 1)
    assert every == 1
    keeping.refuse_plain_training()
    return layer(x)[0]  # type: ignore[no-any-return]


def last_state(layer: nn.Module, x: Tensor, lengths: Tensor, keeping: Keeping) -> Tensor:
    """State of one layer at each sequence's own last step: (T, B, F) -> (B, H)."""
    if kernels.fused(x, *layer.parameters()):
        return run_kernel(layer, x, lengths, keeping, keep_steps=False)[1]
    keeping.refuse_plain_training()
    return last_steps(layer(x)[0].transpose(0, 1), lengths)


def run_kernel(
    layer: nn.Module, x: Tensor, lengths: Tensor, keeping: Keeping, *, keep_steps: bool, every: int = 1
) -> tuple[Tensor | None, Tensor]:
    """Run one layer by its kernel: (T, B, F) -> (B, T, H), zero past ``lengths``, or None; and the last (B, H)."""
    x = x.transpose(0, 1)
    if isinstance(layer, ResetBeforeGRU):
        return layer.run_kernel(x, lengths, keep_steps=keep_steps, every=every, segment=keeping.segment)
    run = run_fused(layer, x, lengths, None, keep_steps=keep_steps, every=every, keeping=keeping)
    return run.steps, run.last


class ResetBeforeGRU(nn.Module):
    """GRU whose reset gate acts on the state before the recurrent product: a loop, for torch fuses the other form.

    Rows of the input's weights and of the biases are r, z, n.

    Args:
        input_size: F.
        hidden_size: H.
        bias: ``double`` adds a second vector, as torch's layers do.
        init: ``tensorflow`` is TensorFlow's GRUCell: Glorot uniform for the joint matrices (F + H) x 2H of the gates
            and (F + H) x H of the candidate, the gates' bias 1; ``standard_normal`` has the same biases.
    """

    def __init__(self, input_size: int, hidden_size: int, *, bias: Bias, init: WeightInit) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden_size, input_size))
        self.weight_gates = nn.Parameter(torch.empty(2 * hidden_size, hidden_size))
        self.weight_candidate = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(torch.zeros(3 * hidden_size))
        self.bias_hh = nn.Parameter(torch.zeros(3 * hidden_size)) if bias == "double" else None
        if init == "torch":
            start_cell(list(self.parameters()), input_size, hidden_size, init="torch")
            return
        with torch.no_grad():
            self.bias_ih[: 2 * hidden_size] = 1.0
            from_input = torch.split(self.weight_ih, [2 * hidden_size, hidden_size])
            for kernel in zip(from_input, (self.weight_gates, self.weight_candidate), strict=True):
                bound = (6 / (input_size + hidden_size + len(kernel[0]))) ** 0.5
                for part in kernel:
                    if init == "tensorflow":
                        part.uniform_(-bound, bound)
                    else:
                        part.normal_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (T, B, F) to all states (T, B, H) and the last one (B, H), without a kernel."""
        projected = nnf.linear(x, self.weight_ih, self.bias_ih)
        if self.bias_hh is not None:
            projected = projected + self.bias_hh
        gates, candidates = torch.split(projected, [2 * self.hidden_size, self.hidden_size], dim=2)
        h = x.new_zeros(x.shape[1], self.hidden_size)
        states = []
        # unbind, not gates[t]: the backward of indexing fills a whole gradient (T, B, 2 H) with zeros at every step
        for gate, candidate in zip(gates.unbind(0), candidates.unbind(0), strict=True):
            h = self.step(gate, candidate, h)
            states.append(h)
        return torch.stack(states), h

    def run_kernel(
        self, x: Tensor, lengths: Tensor, *, keep_steps: bool, every: int, segment: Segment
    ) -> tuple[Tensor | None, Tensor]:
        """As :func:`~seqpyramid.kernels.gru.reset_before_gru_layer` with these weights."""
        bias = self.bias_ih if self.bias_hh is None else self.bias_ih + self.bias_hh
        weights = (self.weight_ih, self.weight_gates, self.weight_candidate)
        return reset_before_gru_layer(
            x, *weights, bias, lengths, keep_steps=keep_steps, every=every, segment=segment
        )

    def step(self, gate: Tensor, candidate: Tensor, h: Tensor) -> Tensor:
        """Advance h (B, H) by one step from projected inputs (B, 2 H) and (B, H)."""
        r, z = torch.sigmoid(gate + nnf.linear(h, self.weight_gates)).chunk(2, dim=1)
        n = torch.tanh(candidate + nnf.linear(r * h, self.weight_candidate))
        return z * h + (1 - z) * n


def fused_layer(
    cell: CellName, input_size: int, hidden_size: int, *, bias: Bias, forget_bias: float, init: WeightInit
) -> nn.RNNBase:
    """One of torch's fused layers, time leading; arguments as in :class:`DilatedRNN`."""
    layer = FUSED[cell](input_size, hidden_size)
    weights = dict(layer.named_parameters())
    if init == "standard_normal":
        for weight in weights.values():
            if weight.ndim == 1:
                nn.init.zeros_(weight)
            else:
                nn.init.normal_(weight)
    else:
        start_cell(list(weights.values()), input_size, hidden_size, init=init)
    if bias == "single":
        nn.init.zeros_(weights["bias_hh_l0"]).requires_grad_(False)
    if cell == "lstm":
        with torch.no_grad():
            weights["bias_ih_l0"][hidden_size : 2 * hidden_size] += forget_bias
    return layer


def fold(x: Tensor, ways: int, room: int = 0) -> Tensor:
    """Put each of ``ways`` interleaved sub-sequences into the batch axis: (T, B, F) -> (ceil(T/s), s B, F).

    Row ``p * B + b`` holds ``x[p::ways, b]``. Where T is no multiple of ``ways``, zeros come behind it, so many that
    there are ``room`` steps at least; else this is a view.

    >>> fold(torch.arange(5.0)[:, None, None], 2)[:, :, 0].tolist()
    [[0.0, 1.0], [2.0, 3.0], [4.0, 0.0]]
    """
    time, batch, features = x.shape
    if time % ways:
        wanted = max(time, room)
        x = nnf.pad(x, (0, 0, 0, 0, 0, wanted + -wanted % ways - time))
    return x.reshape(-1, ways * batch, features)


def unfold(x: Tensor, ways: int, time: int) -> Tensor:
    """Undo :func:`fold` and keep ``time`` steps at most: (ceil(T/s), s B, F) -> (T, B, F)."""
    return first_steps(x.reshape(len(x) * ways, -1, x.shape[2]), time)


def first_steps(x: Tensor, time: int) -> Tensor:
    """Keep the first ``time`` steps of x (T, B, F), or all."""
    return x[:time] if time < len(x) else x  # even a slice of everything costs a copy of its gradient


def count_folded(lengths: Tensor, ways: int) -> Tensor:
    """Steps of every sub-sequence, in the order of :func:`fold`'s rows: (B,) -> (s B,).

    >>> count_folded(torch.tensor([5, 1]), 2).tolist()
    [3, 1, 2, 0]
    """
    return ((lengths - torch.arange(ways)[:, None] + ways - 1) // ways).flatten()


def subsample(x: Tensor, counts: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """Keep every ``every``-th step, counted back from each row's own last; and how many these are.

    x is (T, B, F), ``counts`` (B,) on the CPU.

    >>> x = torch.arange(5.0)[:, None].repeat(1, 2)[..., None]
    >>> kept, counts = subsample(x, torch.tensor([5, 4]), 2)
    >>> kept[:, 0, 0].tolist(), kept[:2, 1, 0].tolist(), counts.tolist()
    ([0.0, 2.0, 4.0], [1.0, 3.0], [3, 2])
    """
    time, batch, _ = x.shape
    left = (counts + every - 1) // every
    if all_full(counts, time):
        return x[(time - 1) % every :: every], left
    ways = min(every, time)
    rows = (counts - 1) % ways * batch + torch.arange(batch)
    return fold(x, ways).index_select(1, rows.to(x.device)), left


def windows(steps: Tensor, size: int) -> Tensor:
    """Join each step with the ``size - 1`` before it, the oldest first: (B, T, H) -> (B, T, size H)."""
    if size == 1:
        return steps
    padded = nnf.pad(steps, (0, 0, size - 1, 0))
    return torch.cat([padded[:, k : k + steps.shape[1]] for k in range(size)], dim=2)


def zero_before_start(states: Tensor, positions: Tensor) -> Tensor:
    """Set states (B, S, H) to zero whose time in ``positions`` (B, S) lies before the sequence."""
    return states.masked_fill((positions < 0).to(states.device)[:, :, None], 0.0)
