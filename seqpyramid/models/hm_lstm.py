r"""HM-LSTM: stacked LSTMs that learn when each layer copies, updates or flushes its state.

Source: Chung, Ahn, Bengio, "Hierarchical Multiscale Recurrent Neural Networks", ICLR 2017, arXiv:1609.01704v7,
equations (1)-(9), (11), (12); slope annealing in section 3.3. With :math:`h_t^0 = x_t` and :math:`z_t^0 = 1`:

.. math::
    c_t^l &= \begin{cases}
        f \odot c_{t-1}^l + i \odot g & z_{t-1}^l = 0,\ z_t^{l-1} = 1 & \text{(UPDATE)} \\
        c_{t-1}^l                     & z_{t-1}^l = 0,\ z_t^{l-1} = 0 & \text{(COPY)} \\
        i \odot g                     & z_{t-1}^l = 1                 & \text{(FLUSH)}
    \end{cases} \tag{2} \\
    h_t^l &= h_{t-1}^l \text{ if COPY, else } o \odot \tanh(c_t^l) \tag{3} \\
    [f, i, o, g, \tilde{z}] &= [\sigma, \sigma, \sigma, \tanh, \mathrm{hard}]
        (U_l^l h_{t-1}^l + z_{t-1}^l U_{l+1}^l h_{t-1}^{l+1} + z_t^{l-1} W_{l-1}^l h_t^{l-1} + b^l) \tag{4-7} \\
    z_t^l &= 1 \text{ if } \tilde{z}_t^l > 1/2 \text{ else } 0, \text{ or a draw } B(\tilde{z}_t^l) \tag{8-9} \\
    \mathrm{hard}(x) &= \max(0, \min(1, (a x + 1) / 2)) \\
    g_t^l &= \sigma(w^l [h_t^1; \dots; h_t^L]) \tag{11} \\
    h_t^e &= \mathrm{ReLU}\Big(\sum_l g_t^l W_l^e h_t^l\Big) \tag{12}

The top layer has neither a boundary nor a top-down term. :math:`\tilde{z} > 1/2` is :math:`x > 0` at any slope a, and
is computed so; the gradient of z is that of hard (straight-through). Rows of a layer's matrix are torch's i, f, g, o
and then z~; its columns are the factors of h of the layer itself, the layer above, the layer below. (11) and (12) run
over all steps at once, after the loop.

For one answer a sequence, h^e is averaged over the valid steps, as the supplement of TP-RNN (Ma et al., AAAI 2020)
does with this baseline; ``summary: last`` takes the last one.

Paper or public TensorFlow code (n-s-f/hierarchical-rnn; the authors released none), by named option. The 353K
parameters that the TP-RNN paper prints for three layers of 100 on MNIST fit the public layout (353,111: no cell bias,
top layer built like the others) and not the equations (314,013):

==================  ====================================  =====================================================
option              paper (the defaults)                  public TensorFlow code
==================  ====================================  =====================================================
cell_bias           b, equation (4)                       none
top_boundary        none in layer L                       z^L, on which layer L flushes; an idle matrix for h^{L+1}
boundary_gradient   hard_sigmoid                          logistic: the slope of sigma(a x), a = 1
selection_gradient  not established, see below            where
==================  ====================================  =====================================================

Its two further tanh layers after (12) are left out: with them the count is 373,311.

Not established, and what was chosen:

- How far the straight-through gradient reaches. ``arithmetic`` writes (2) and (3) as sums weighted by z (1 - z) and so
  on, so that z also learns from the operation that it chose; it is the only form that soft boundaries have, hence the
  default. ``where`` branches, so that z learns from the products in (6) and (7) alone.
- Evaluation of ``sampling`` boundaries: by threshold (9), so that the same sequence always gets the same answer.
- Place of the layer normalisation: after Ba et al. (2016), over each gate's sum of (5)-(7) with a gain, before b (z~, a
  single number, is left as it is), and over c inside the tanh of (3) with gain and shift.
- Slope schedule: min(max_slope, slope + slope_rate * epoch), the epoch counted from 0 (the text calls it "the maximum
  number of epochs"). PTB: 1, 0.04, 5; IAM-OnDB: 1, 0.004, 3; text8 and enwik8: constant 1.
- Start of the weights (``init``, ``forget_bias``), and the first h, c and z: 0. Some seeds start with a layer whose
  boundary never opens, or always is; ``diagnostics`` has each layer's boundary rate and its shares of the operations.

Speed: the plain twin is a clear loop over steps and layers (``step_loop``), since a step needs the layer above one step
earlier; only the first layer's input projection stands outside it. Where it can,
:mod:`seqpyramid.kernels.hm_lstm` (on a GPU :mod:`seqpyramid.kernels.gpu.hm_lstm`) runs the same loop, and on a CPU (11)
and (12) with it, unless boundaries are drawn or ``layer_norm`` is set.

Shapes: B batch, T time, F input features, H hidden units of a layer, L layers, E embedding size.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid import kernels
from seqpyramid.contracts import TaskSpec
from seqpyramid.kernels import hm_lstm
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full, last_steps, mask_steps
from seqpyramid.models.cells import CellInit, start_cell
from seqpyramid.models.fused import GATES_IN_16_BITS, RECOMPUTE, Keeping
from seqpyramid.models.heads import HeadInit

Boundaries = Literal["step", "sampling", "soft"]
BoundaryGradient = Literal["hard_sigmoid", "logistic"]
SelectionGradient = Literal["arithmetic", "where"]
Summary = Literal["mean", "last"]

LayerState = tuple[Tensor, Tensor, Tensor]
"""h (B, H), c (B, H) and z (B, 1) of one layer; z stays 0 where there is no boundary."""


class HMLSTMConfig(ModelConfig):
    """HM-LSTM; the defaults are the paper's equations, see the module's table."""

    summary_line: ClassVar[str] = (
        "HM-LSTM (Chung et al., ICLR 2017): layers that learn when to copy, update or flush"
    )
    name: Literal["hm_lstm"] = "hm_lstm"
    hidden_sizes: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(100, 100, 100), min_length=2, description="H of each layer, from the bottom; two or more"
    )
    embedding_size: int = Field(default=100, gt=0, description="E, size of h^e, the output embedding (12)")
    boundaries: Boundaries = Field(
        default="step",
        description="f_bound of (8): threshold, Bernoulli draw (in training; threshold after), or z~ itself",
    )
    boundary_gradient: BoundaryGradient = Field(
        default="hard_sigmoid",
        description="the function whose slope is z's gradient; also the value of z where soft, P(z=1) where drawn",
    )
    selection_gradient: SelectionGradient = Field(
        default="arithmetic",
        description="whether z learns from choosing COPY, UPDATE or FLUSH (arithmetic) or not (where)",
    )
    slope: float = Field(
        default=1.0, gt=0, description="a, slope of the boundary function in the first epoch"
    )
    slope_rate: float = Field(default=0.0, ge=0, description="growth of a per epoch; 0: constant")
    max_slope: float | None = Field(
        default=None, gt=0, description="where the growth of a ends; null: nowhere"
    )
    layer_norm: bool = Field(default=False, description="normalise each gate's sum, and c before its tanh")
    cell_bias: bool = Field(default=True, description="b of (4)")
    top_boundary: bool = Field(
        default=False,
        description="build the top layer like the others: a boundary, and an idle top-down matrix",
    )
    summary: Summary = Field(default="mean", description="h^e averaged over the valid steps, or the last one")
    forget_bias: float = Field(default=0.0, description="added to the first forget bias of every layer")
    init: CellInit = Field(
        default="torch", description="start of the weights in the cells and in (11) and (12)"
    )
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")
    recompute: bool = RECOMPUTE
    gates_in_16_bits: bool = GATES_IN_16_BITS

    @property
    def carries_state(self) -> bool:
        """The state is h, c and z of every layer, and the running mean where that is the summary."""
        return True

    @property
    def exact_gradient(self) -> bool:
        """A straight-through gradient is by definition not the derivative."""
        return self.boundaries == "soft"

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse options that contradict each other or could have no effect."""
        found = super().problems(spec)
        if self.boundaries == "soft" and self.selection_gradient == "where":
            found["selection_gradient"] = (
                "'where' branches on boundaries of 0 or 1, and soft ones lie between; set it to 'arithmetic'"
            )
        if self.max_slope is not None and self.slope_rate == 0:
            found["max_slope"] = "has no effect on a constant slope; set slope_rate above 0 or leave it out"
        elif self.max_slope is not None and self.max_slope <= self.slope:
            found["max_slope"] = (
                f"is {self.max_slope:g}, but the slope starts at {self.slope:g}; set it above that"
            )
        if self.forget_bias and not self.cell_bias:
            found["forget_bias"] = "needs a bias to be added to; set cell_bias to true or leave it out"
        unfit = "needs the compiled layers, which neither normalise nor draw boundaries"
        has_kernel = not self.layer_norm and self.boundaries != "sampling"
        found |= Keeping(self.recompute, self.gates_in_16_bits).problems(None if has_kernel else unfit)
        if self.layer_norm and min(self.hidden_sizes) == 1:
            found["layer_norm"] = (
                "turns a layer of one unit into a constant; give every layer two units or more"
            )
        return found

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return HMLSTM(spec, **self.model_dump(exclude={"name"}))


class HMLSTM(SequenceModel):
    """L layers, the loop over them, and the output module; arguments as in :class:`HMLSTMConfig`."""

    slope: Tensor

    step_loop = True

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden_sizes: Sequence[int],
        embedding_size: int,
        boundaries: Boundaries = "step",
        boundary_gradient: BoundaryGradient = "hard_sigmoid",
        selection_gradient: SelectionGradient = "arithmetic",
        slope: float = 1.0,
        slope_rate: float = 0.0,
        max_slope: float | None = None,
        layer_norm: bool = False,
        cell_bias: bool = True,
        top_boundary: bool = False,
        summary: Summary = "mean",
        forget_bias: float = 0.0,
        init: CellInit = "torch",
        head_init: HeadInit = "torch",
        recompute: bool = False,
        gates_in_16_bits: bool = False,
    ) -> None:
        super().__init__(spec, summary_size=embedding_size, head_init=head_init)
        self.first_slope, self.slope_rate, self.max_slope = slope, slope_rate, max_slope
        # A buffer, because soft and drawn boundaries depend on a: a checkpoint must bring its own along.
        self.register_buffer("slope", torch.tensor(float(slope)))
        self._slope_read: tuple[tuple[int, int], float] | None = None
        self.boundaries, self.boundary_gradient, self.summary = boundaries, boundary_gradient, summary
        self.selection_gradient = selection_gradient
        self.keeping = Keeping(recompute, gates_in_16_bits)
        self.cells = nn.ModuleList()
        for layer, hidden in enumerate(hidden_sizes):
            is_top = layer + 1 == len(hidden_sizes)
            cell = HMLSTMCell(
                hidden_sizes[layer - 1] if layer else spec.input_size,
                hidden,
                above_size=(hidden if top_boundary else 0) if is_top else hidden_sizes[layer + 1],
                idle_above=is_top,
                boundary=top_boundary or not is_top,
                bias=cell_bias,
                layer_norm=layer_norm,
                selection_gradient=selection_gradient,
                forget_bias=forget_bias,
                init=init,
            )
            self.cells.append(cell)
        self.output = OutputModule(hidden_sizes, embedding_size, init=init)

    def set_progress(self, epoch: int, step: int) -> None:
        """Anneal the slope; the epoch counts from 0."""
        slope = self.first_slope + self.slope_rate * epoch
        self.slope.fill_(slope if self.max_slope is None else min(self.max_slope, slope))

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run the layers step by step, then the output module over all steps that are read."""
        layers, pooled = state if state is not None else (self._initial(len(x)), None)
        read = self.summary == "mean" or self.spec.needs == "steps"
        steps, z, after = self._unroll(x, lengths, layers, read=read)
        if self.summary == "mean":
            total, count = steps.sum(1), _counts(lengths, x)
            if pooled is not None:
                total, count = total + pooled[0], count + pooled[1]
            summary, pooled = total / count, (total, count)
        else:
            summary = last_steps(steps, lengths)
            summary = summary if read else self.output(summary)
        return Encoding(
            summary,
            steps=steps if self.spec.needs == "steps" else None,
            state=(after, pooled) if self.spec.carry_state else None,
            diagnostics=self._diagnostics(z.detach(), [z.detach() for _, _, z in layers], lengths),
        )

    def _initial(self, batch: int) -> tuple[LayerState, ...]:
        return tuple(cell.initial(batch) for cell in cast("list[HMLSTMCell]", self.cells))

    def _unroll(
        self, x: Tensor, lengths: Tensor, states: Sequence[LayerState], *, read: bool = False
    ) -> tuple[Tensor, Tensor, tuple[LayerState, ...]]:
        """Return h of all layers side by side (B, T, sum of H), z (B, T, L), and the last states.

        With ``read`` h^e (B, T, E), zero past ``lengths``, takes the place of h.
        """
        tensors = (x, *self.cells.parameters(), *self.output.parameters(), *chain.from_iterable(states))
        run = self._loop
        if self.has_kernel:
            layers = [cell.kernel_layer() for cell in cast("list[HMLSTMCell]", self.cells)]
            if kernels.fused(*tensors):
                output = self.output.kernel_weights() if read else None
                return hm_lstm.unroll(x, lengths, layers, states, self._kernel_options(), output)
            if kernels.on_gpu(*tensors):
                from seqpyramid.kernels.gpu import hm_lstm as gpu  # needs Triton

                if gpu.admits(layers, x.dtype):
                    run = partial(gpu.unroll, layers=layers, options=self._kernel_options())
        self.keeping.refuse_plain_training()
        h, z, after = run(x, lengths, states=states)
        return mask_steps(self.output(h), lengths) if read else h, z, after

    @property
    def has_kernel(self) -> bool:
        """Whether these options stand in :mod:`seqpyramid.kernels.hm_lstm`; drawing and normalising do not."""
        drawn = self.boundaries == "sampling" and self.training
        return not drawn and cast(HMLSTMCell, self.cells[0]).gain is None

    def _slope_number(self) -> float:
        """The slope as the kernels take it, read anew only when it has moved: on a GPU reading it is a wait."""
        moved = (id(self.slope), self.slope._version)
        if self._slope_read is None or self._slope_read[0] != moved:
            self._slope_read = (moved, self.slope.item())
        return self._slope_read[1]

    def _kernel_options(self) -> hm_lstm.Options:
        return hm_lstm.Options(
            slope=self._slope_number(),
            soft=self.boundaries == "soft",
            logistic=self.boundary_gradient == "logistic",
            choice=self.selection_gradient == "arithmetic",
            **self.keeping.kernel_options(),
        )

    def _loop(
        self, x: Tensor, lengths: Tensor, states: Sequence[LayerState]
    ) -> tuple[Tensor, Tensor, tuple[LayerState, ...]]:
        """The plain twin of the kernel."""
        cells, states = cast("list[HMLSTMCell]", list(self.cells)), list(states)
        first, *others = [cell.matrices() for cell in cells]
        projected = x @ first.bottom_up.T  # z^0 = 1, so that (7) of layer 1 needs nothing of the loop
        joint = [torch.cat([recurrent, bottom_up], dim=1).T for recurrent, bottom_up in others]
        going: Sequence[Tensor | None] = [None] * x.shape[1]
        if self.spec.carry_state and not all_full(lengths, x.shape[1]):
            going = (torch.arange(x.shape[1]) < lengths[:, None]).to(x.device)[:, :, None].unbind(1)
        always = x.new_ones(len(x), 1)
        h_steps, z_steps = [], []
        for projected_t, going_t in zip(projected.unbind(1), going, strict=True):
            z_below = always
            for layer, cell in enumerate(cells):
                h, c, z = states[layer]
                sources = [h] if cell.idle_above else [h, z * states[layer + 1][0]]  # (5), (6)
                if layer:
                    sources.append(z_below * states[layer - 1][0])  # (7)
                    sums = torch.cat(sources, dim=1) @ joint[layer - 1]
                else:
                    sums = torch.addmm(projected_t, torch.cat(sources, dim=1), first.recurrent.T)
                h, c, z_tilde = cell.step(sums, states[layer], z_below)
                new = h, c, z if z_tilde is None else self._boundary(z_tilde)
                if going_t is not None:  # a sequence that has ended keeps its state for the next batch
                    old = states[layer]
                    new = (
                        torch.where(going_t, new[0], old[0]),
                        torch.where(going_t, new[1], old[1]),
                        torch.where(going_t, new[2], old[2]),
                    )
                states[layer], z_below = new, new[2]
            h_steps.append(torch.cat([h for h, _, _ in states], dim=1))
            z_steps.append(torch.cat([z for _, _, z in states], dim=1))
        return torch.stack(h_steps, dim=1), torch.stack(z_steps, dim=1), tuple(states)

    def _boundary(self, x: Tensor) -> Tensor:
        """Map z~ before its activation, x (B, 1), to z; equations (8) and (9)."""
        p = boundary_function(x, self.slope, self.boundary_gradient)
        if self.boundaries == "soft":
            return p
        drawn = self.boundaries == "sampling" and self.training
        z = torch.bernoulli(p.detach()) if drawn else (x > 0).to(p.dtype)
        return z + (p - p.detach())  # exactly z, with the gradient of p

    def _diagnostics(self, z: Tensor, before: Sequence[Tensor], lengths: Tensor) -> dict[str, Tensor]:
        """Rates over the valid steps, by layer from 1: boundaries, and shares of the three operations."""
        z_own = torch.cat([torch.cat(list(before), dim=1)[:, None], z[:, :-1]], dim=1)
        z_below = torch.cat([torch.ones_like(z[:, :, :1]), z[:, :, :-1]], dim=2)
        shares = {"boundary": z} | operation_weights(z_own, z_below)._asdict()
        found = {}
        for name, share in shares.items():
            rates = mask_steps(share.float(), lengths).sum((0, 1)) / int(lengths.sum())
            for layer, (cell, rate) in enumerate(zip(self.cells, rates.unbind(), strict=True), start=1):
                if name != "boundary" or cast(HMLSTMCell, cell).boundary:
                    found[f"{name}_{layer}"] = rate
        return found

    def encoder_flops(self, time: int) -> int:
        """Cells at every step, and the output module at every step that is read."""
        cells = sum(cell.flops() for cell in cast("list[HMLSTMCell]", self.cells))
        reads = time if self.summary == "mean" or self.spec.needs == "steps" else 1
        return time * cells + reads * self.output.flops


class Matrices(NamedTuple):
    """The parts of a cell's matrix that meet something."""

    recurrent: Tensor
    """(rows, H + H above): U of the layer itself and of the layer above."""
    bottom_up: Tensor
    """(rows, H below): W."""


class HMLSTMCell(nn.Module):
    """One layer's weights and its step; the rows are i, f, g, o (H each) and, with a boundary, z~ (one).

    Args:
        below_size: H of the layer below, or F.
        hidden_size: H.
        above_size: columns of the top-down matrix; 0: there is none.
        idle_above: whether no layer stands above, so that a top-down matrix meets zeros and is left out of the work.
        boundary: whether the layer has a boundary z.
        bias: whether it has b.
        layer_norm: see the module's docstring.
        selection_gradient: see the module's docstring.
        forget_bias: added to the start of b.
        init: as :class:`seqpyramid.models.cells.Cell`, over the joint matrix.
    """

    def __init__(
        self,
        below_size: int,
        hidden_size: int,
        *,
        above_size: int,
        idle_above: bool,
        boundary: bool,
        bias: bool,
        layer_norm: bool,
        selection_gradient: SelectionGradient,
        forget_bias: float,
        init: CellInit,
    ) -> None:
        super().__init__()
        self.below_size, self.hidden_size, self.above_size = below_size, hidden_size, above_size
        self.idle_above, self.boundary = idle_above, boundary
        self.select = SELECT[selection_gradient]
        rows = 4 * hidden_size + boundary
        self.weight = nn.Parameter(torch.empty(rows, hidden_size + above_size + below_size))
        self.bias = nn.Parameter(torch.empty(rows)) if bias else None
        start_cell(list(self.parameters()), above_size + below_size, hidden_size, init=init)
        if self.bias is not None and forget_bias:
            with torch.no_grad():
                self.bias[hidden_size : 2 * hidden_size] += forget_bias
        self.gain = nn.Parameter(torch.ones(4, hidden_size)) if layer_norm else None
        self.cell_norm = nn.LayerNorm(hidden_size) if layer_norm else None

    def initial(self, batch: int) -> LayerState:
        """Return the zero state."""
        zeros = self.weight.new_zeros(batch, self.hidden_size)
        return zeros, zeros, self.weight.new_zeros(batch, 1)

    def matrices(self) -> Matrices:
        """Cut the joint matrix, leaving out what meets zeros."""
        sizes = [self.hidden_size, self.above_size, self.below_size]
        own, above, below = torch.split(self.weight, sizes, dim=1)
        return Matrices(own if self.idle_above else torch.cat([own, above], dim=1), below)

    def kernel_layer(self) -> hm_lstm.Layer:
        """The weights as the kernel reads them."""
        above = 0 if self.idle_above else self.above_size
        return hm_lstm.Layer(self.weight, self.bias, self.hidden_size, above, self.below_size)

    def step(self, sums: Tensor, state: LayerState, z_below: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Advance by one step.

        Args:
            sums: (B, rows), the three sums of (5)-(7), without b.
            state: h, c and z before.
            z_below: (B, 1), the boundary of the layer below at this step.

        Returns:
            h, c, and z~ before its activation (B, 1), None without a boundary.
        """
        h, c, z = state
        if self.gain is not None:
            gates = sums[:, : 4 * self.hidden_size].view(-1, 4, self.hidden_size)
            normalised = (nnf.layer_norm(gates, (self.hidden_size,)) * self.gain).flatten(1)
            sums = torch.cat([normalised, sums[:, 4 * self.hidden_size :]], dim=1)
        if self.bias is not None:
            sums = sums + self.bias
        i, f, g, o, *z_tilde = torch.split(sums, [self.hidden_size] * 4 + [1] * self.boundary, dim=1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        c = self.select(z, z_below, copy(c), update(c, i, f, g), flush(i, g))
        new = o * torch.tanh(c if self.cell_norm is None else self.cell_norm(c))
        h = self.select(z, z_below, copy(h), new, new)
        return h, c, z_tilde[0] if z_tilde else None

    def flops(self) -> int:
        """FLOPs of one step, input products included."""
        sources = self.hidden_size + (0 if self.idle_above else self.above_size) + self.below_size
        return 2 * len(self.weight) * sources


class OutputModule(nn.Module):
    """Equations (11) and (12): h of all layers, side by side, into one embedding.

    Args:
        hidden_sizes: H of each layer.
        embedding_size: E.
        init: ``torch``: uniform, as torch's linear layers; ``tensorflow``: Glorot uniform, each w^l as a matrix of
            its own.
    """

    def __init__(self, hidden_sizes: Sequence[int], embedding_size: int, *, init: CellInit) -> None:
        super().__init__()
        self.hidden_sizes, total = list(hidden_sizes), sum(hidden_sizes)
        self.gates = nn.Parameter(torch.empty(len(hidden_sizes), total))  # row l is w^l
        self.embedding = nn.Parameter(torch.empty(embedding_size, total))  # W_1^e ... W_L^e, side by side
        for weight, outputs in ((self.gates, 1), (self.embedding, embedding_size)):
            bound = total**-0.5 if init == "torch" else (6 / (total + outputs)) ** 0.5
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, h: Tensor) -> Tensor:
        """Map (..., sum of H) to (..., E)."""
        gates = torch.sigmoid(nnf.linear(h, self.gates)).chunk(len(self.hidden_sizes), dim=-1)
        parts = torch.split(h, self.hidden_sizes, dim=-1)
        gated = torch.cat([g * part for g, part in zip(gates, parts, strict=True)], dim=-1)
        return torch.relu(nnf.linear(gated, self.embedding))

    def kernel_weights(self) -> hm_lstm.OutputModule:
        """The weights as the kernel reads them."""
        return hm_lstm.OutputModule(self.gates, self.embedding)

    @property
    def flops(self) -> int:
        """FLOPs of one reading."""
        return 2 * (self.gates.numel() + self.embedding.numel())


def copy(state: Tensor) -> Tensor:
    """COPY: keep c, or h, as it is."""
    return state


def update(c: Tensor, i: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """UPDATE: the LSTM's own step."""
    return f * c + i * g


def flush(i: Tensor, g: Tensor) -> Tensor:
    """FLUSH: start anew; the old cell has been handed up and is forgotten."""
    return i * g


class Operations(NamedTuple):
    """How much of each operation a layer does."""

    copy: Tensor
    update: Tensor
    flush: Tensor


def operation_weights(z_own: Tensor, z_below: Tensor) -> Operations:
    """Weigh the cases of (2) by z_{t-1}^l and z_t^{l-1}; the weights add up to 1.

    >>> z = torch.tensor([0.0, 0.0, 1.0, 1.0])
    >>> [weight.tolist() for weight in operation_weights(z, torch.tensor([0.0, 1.0, 0.0, 1.0]))]
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """
    going_on = 1 - z_own
    return Operations(copy=going_on * (1 - z_below), update=going_on * z_below, flush=z_own)


def mix(z_own: Tensor, z_below: Tensor, copied: Tensor, updated: Tensor, flushed: Tensor) -> Tensor:
    """Weigh the three results, so that the gradient reaches both boundaries; exact at boundaries of 0 or 1."""
    weights = operation_weights(z_own, z_below)
    return weights.copy * copied + weights.update * updated + weights.flush * flushed


def choose(z_own: Tensor, z_below: Tensor, copied: Tensor, updated: Tensor, flushed: Tensor) -> Tensor:
    """Take one of the three results by boundaries of 0 or 1, which get no gradient from it."""
    return torch.where(z_own > 0.5, flushed, torch.where(z_below > 0.5, updated, copied))


SELECT: dict[SelectionGradient, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "arithmetic": mix,
    "where": choose,
}


def _counts(lengths: Tensor, x: Tensor) -> Tensor:
    """Lengths (B, 1) beside x; equal ones are made on its device, since a GPU would wait for a copy of the others."""
    if all_full(lengths, x.shape[1]):
        return lengths.new_full((len(x), 1), x.shape[1], device=x.device)
    return lengths.to(x.device)[:, None]


def boundary_function(x: Tensor, slope: Tensor, kind: BoundaryGradient) -> Tensor:
    """Map z~ before its activation to [0, 1] with slope a; one half at 0, whatever the slope.

    >>> boundary_function(torch.tensor([-2.0, 0.0, 0.5]), torch.tensor(1.0), "hard_sigmoid").tolist()
    [0.0, 0.5, 0.75]
    """
    if kind == "logistic":
        return torch.sigmoid(slope * x)
    return ((slope * x + 1) / 2).clamp(0, 1)
