r"""Elman, LSTM and GRU stacks on fused layers: the baselines of every table.

Sources: Elman, "Finding structure in time", 1990; Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al.
2000; Cho et al. 2014 (arXiv:1406.1078v1, reset after the product). The equations stand in
:mod:`seqpyramid.models.cells`; layer k reads the states of layer k-1.

As baselines of TP-RNN (Ma et al., AAAI 2020, Table 1): LSTM-S is one layer of 100; LSTM-M has three, and its
printed 233K parameters (232,610) only come out with the output aggregation of the released TP-RNN: a 100 x 100
matrix for each layer's last state, then their sum (``output_aggregation: sum, output_maps: true``).

Deviations: the released TensorFlow cells add a constant to the forget gate while running; here it is the start of
the (single) bias, which is the same function and the same training path.

Speed: torch's layers; on a CPU all three have faster ones with the same results, :mod:`seqpyramid.kernels`.

Shapes: B batch, T time, F input features, H hidden units, K layers.
"""

from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqpyramid import kernels
from seqpyramid.contracts import TaskSpec
from seqpyramid.models.aggregation import AggregationMethod, OutputAggregation
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full, last_steps, mask_steps
from seqpyramid.models.cells import CELLS, Bias, CellInit, CellName, start_cell
from seqpyramid.models.fused import (
    GATES_IN_16_BITS,
    RECOMPUTE,
    Keeping,
    LayerRun,
    run_fused,
)
from seqpyramid.models.heads import HeadInit


class StackConfig(ModelConfig):
    """Fields that the three stacks share."""

    hidden_size: int = Field(default=100, gt=0, description="H, units per layer")
    layers: int = Field(default=1, gt=0, description="K, number of stacked layers")
    bias: Bias = Field(
        default="single", description="one bias vector per layer (papers' counts) or torch's two"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout between layers")
    output_aggregation: AggregationMethod | Literal["sum", "none"] = Field(
        default="none",
        description="how the last states of all layers make the summary; none: the top layer's",
    )
    output_maps: bool = Field(
        default=False,
        description="multiply each layer's last state by a matrix of its own before aggregating",
    )
    init: CellInit = Field(default="torch", description="start of the recurrent weights")
    head_init: HeadInit = Field(default="torch", description="start of the classifier's weights")
    recompute: bool = RECOMPUTE

    @property
    def carries_state(self) -> bool:
        """A stack's state is the last state of each layer."""
        return True

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse options that could have no effect."""
        found = super().problems(spec)
        if self.output_maps and self.output_aggregation == "none":
            found["output_maps"] = (
                "has no effect without output_aggregation; set that to 'sum' or another method"
            )
        if self.dropout and self.layers == 1:
            found["dropout"] = "acts between layers, and there is only one; set layers to 2 or more"
        return found

    def _stack(self, spec: TaskSpec, cell: CellName, **options: Any) -> "RecurrentStack":
        return RecurrentStack(spec, cell=cell, **self.model_dump(exclude={"name", *options}), **options)


class LSTMConfig(StackConfig):
    """LSTM stack."""

    summary_line: ClassVar[str] = "LSTM stack (Hochreiter & Schmidhuber 1997), on torch's fused layers"
    name: Literal["lstm"] = "lstm"
    forget_bias: float = Field(default=0.0, description="added to the first forget bias")
    gates_in_16_bits: bool = GATES_IN_16_BITS

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse two ways of keeping less at once."""
        return super().problems(spec) | Keeping(self.recompute, self.gates_in_16_bits).problems()

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return self._stack(spec, "lstm")


class GRUConfig(StackConfig):
    """GRU stack, torch's form: reset after the recurrent product."""

    summary_line: ClassVar[str] = (
        "GRU stack (Cho et al. 2014, v1: reset after the product), on torch's fused layers"
    )
    name: Literal["gru"] = "gru"

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return self._stack(spec, "gru")


class RNNConfig(StackConfig):
    """Elman stack."""

    summary_line: ClassVar[str] = "Elman stack (Elman 1990), tanh or ReLU, on torch's fused layers"
    name: Literal["rnn"] = "rnn"
    nonlinearity: Literal["tanh", "relu"] = Field(default="tanh", description="activation of the state")

    def _build(self, spec: TaskSpec) -> SequenceModel:
        return self._stack(spec, "elman")


class RecurrentStack(SequenceModel):
    """K fused layers, each a torch module of its own so that every layer's states can be read.

    Args:
        spec: the task's side of the contract.
        cell: which recurrence.
        hidden_size: H.
        layers: K.
        bias: ``single`` freezes torch's second bias vector at zero, so that it is no parameter.
        dropout: between layers.
        output_aggregation: how the layers' states make the summary.
        output_maps: a matrix for each layer before aggregating.
        init: start of the recurrent weights, see :class:`seqpyramid.models.cells.Cell`.
        head_init: start of the classifier's weights.
        forget_bias: LSTM only.
        nonlinearity: Elman only.
        recompute: whether the backward pass runs segments again instead of keeping their states.
        gates_in_16_bits: LSTM only; whether the backward pass gets rounded gates.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        cell: CellName,
        hidden_size: int,
        layers: int,
        bias: Bias = "single",
        dropout: float = 0.0,
        output_aggregation: AggregationMethod | Literal["sum", "none"] = "none",
        output_maps: bool = False,
        init: CellInit = "torch",
        head_init: HeadInit = "torch",
        forget_bias: float = 0.0,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        recompute: bool = False,
        gates_in_16_bits: bool = False,
    ) -> None:
        super().__init__(spec, summary_size=hidden_size, head_init=head_init)
        self.gates = CELLS[cell].gates
        self.sizes = [spec.input_size] + [hidden_size] * layers
        self.layers = nn.ModuleList()
        for below, above in pairwise(self.sizes):
            layer: nn.RNNBase
            if cell == "elman":
                layer = nn.RNN(below, above, batch_first=True, nonlinearity=nonlinearity)
            else:
                layer = (nn.LSTM if cell == "lstm" else nn.GRU)(below, above, batch_first=True)
            start_cell(list(layer.parameters()), below, above, init=init)
            weights = dict(layer.named_parameters())
            if bias == "single":
                nn.init.zeros_(weights["bias_hh_l0"]).requires_grad_(False)
            if forget_bias:
                with torch.no_grad():
                    weights["bias_ih_l0"][hidden_size : 2 * hidden_size] += forget_bias
            self.layers.append(layer)
        self.keeping = Keeping(recompute, gates_in_16_bits)
        self.dropout = nn.Dropout(dropout)
        self.output = (
            None
            if output_aggregation == "none"
            else OutputAggregation(
                layers, hidden_size, method=output_aggregation, maps=output_maps, squash=False
            )
        )

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Run all layers over the batch; the state is one entry a layer, as torch's layers return it."""
        by_step = self.spec.needs == "steps"
        runs: list[LayerRun] = []
        for k, layer in enumerate(self.layers):
            keep = by_step or k + 1 < len(self.layers)
            run = self._run(
                layer, self.dropout(x) if k else x, lengths, state[k] if state else None, keep_steps=keep
            )
            runs.append(run)
            x = run.steps if run.steps is not None else x
        carried = [run.state for run in runs] if self.spec.carry_state else None
        if by_step:
            steps = self.output([run.steps for run in runs if run.steps is not None]) if self.output else x
            steps = mask_steps(steps, lengths)
            return Encoding(last_steps(steps, lengths), steps=steps, state=carried)
        summary = runs[-1].last if self.output is None else self.output([run.last for run in runs])
        return Encoding(summary, state=carried)

    def _run(self, layer: nn.Module, x: Tensor, lengths: Tensor, state: Any, *, keep_steps: bool) -> LayerRun:
        if kernels.fused(x, *layer.parameters()):
            return run_fused(layer, x, lengths, state, keep_steps=keep_steps, keeping=self.keeping)
        self.keeping.refuse_plain_training()
        # Running over the padding is faster than packing and cannot change a step before it; only the carried
        # state, which must be the one at each sequence's own end, needs the packed form.
        if not self.spec.carry_state or all_full(lengths, x.shape[1]):
            steps, state = layer(x, state)
        else:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            packed, state = layer(packed, state)
            steps = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])[0]
        return LayerRun(steps, last_steps(steps, lengths), state)

    def encoder_flops(self, time: int) -> int:
        """Gates of every layer and step, and the output aggregation."""
        total = 0
        for below, above in pairwise(self.sizes):
            total += 2 * time * self.gates * above * (below + above)
        if self.output is not None:
            reads = 1 if self.spec.needs == "summary" else time
            total += reads * self.output.flops(len(self.layers))
        return total
