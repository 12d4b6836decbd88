r"""Scheduled sampling: a network that trains reads its own draws now and then, as it will when it goes on by itself.

Source: Bengio, Vinyals, Jaitly, Shazeer, "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks",
NIPS 2015, section 2.4. Each input is, with probability e, the text's, and otherwise a draw from what the model answered
one step before (across windows, too). Every input is decided by itself. With i the optimiser step or the epoch, counted
from 0:

.. math:: e_i = \max(\epsilon, k - c\, i) \;\text{(linear)}, \qquad e_i = k^i \;\text{(exponential)}, \qquad
    e_i = k / (k + e^{i / k}) \;\text{(inverse sigmoid)}

Deviations: none. Not established: whether i counts steps or epochs (``per``).

Shapes: B streams, T steps of a window, V symbols.
"""

import math
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from seqpyramid.contracts import Batch, Model, ModelOutput
from seqpyramid.data.streams import one_hot
from seqpyramid.tasks.text_writer import draw

Per = Literal["step", "epoch"]


class _Schedule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    per: Per = Field(default="step", description="what i counts: optimiser steps or epochs")


class Linear(_Schedule):
    """e falls by c each time, from k to a floor."""

    name: Literal["linear"] = "linear"
    k: float = Field(default=1.0, ge=0, le=1, description="k, probability of the text's symbol at the start")
    c: float = Field(gt=0, le=1, description="c, by how much it falls each time")
    floor: float = Field(default=0.0, ge=0, le=1, description="epsilon, where the fall ends")

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.floor > self.k:
            raise ValueError(f"floor {self.floor:g} lies above the start, k {self.k:g}; lower it")
        return self

    def truth(self, i: int) -> float:
        """Return e_i."""
        return max(self.floor, self.k - self.c * i)


class Exponential(_Schedule):
    """e is k to the power of i."""

    name: Literal["exponential"] = "exponential"
    k: float = Field(gt=0, lt=1, description="k, what e is multiplied by each time")

    def truth(self, i: int) -> float:
        """Return e_i."""
        return math.exp(i * math.log(self.k))  # underflows to 0, where a power of floats may raise


class InverseSigmoid(_Schedule):
    """e stays near 1, then falls about i = k ln k, then nears 0."""

    name: Literal["inverse_sigmoid"] = "inverse_sigmoid"
    k: float = Field(ge=1, description="k, how long the fall takes")

    def truth(self, i: int) -> float:
        """Return e_i."""
        return 1 / (1 + math.exp(min(i / self.k - math.log(self.k), 700.0)))  # e^700 is finite, e^710 is not


Schedule = Annotated[Linear | Exponential | InverseSigmoid, Field(discriminator="name")]


class ScheduledSampling:
    """What a model reads while it trains under a schedule.

    Its state is the model's and, beside it, a draw (B,) from its last answer, the next window's first input.
    """

    def __init__(self, schedule: Linear | Exponential | InverseSigmoid) -> None:
        self._schedule = schedule
        self.truth = 1.0

    def set_progress(self, epoch: int, step: int) -> None:
        """Set e, the probability of the text's symbol."""
        self.truth = self._schedule.truth(step if self._schedule.per == "step" else epoch)

    def run(self, model: Model, batch: Batch, state: Any) -> ModelOutput:
        """Show a training batch to the model, with its own draws among the inputs."""
        inner, own = (None, None) if state is None else state
        if self.truth < 1:
            return self._step_by_step(model, batch.x, inner, own)
        output = model(batch.x, batch.lengths, inner)
        rows = torch.arange(len(batch.x), device=batch.x.device)
        last = output.outputs[rows, (batch.lengths - 1).to(batch.x.device)]
        return output._replace(state=(output.state, draw(last)))

    def _step_by_step(self, model: Model, x: Tensor, state: Any, own: Tensor | None) -> ModelOutput:
        """Read x (B, T, V) one step at a time.

        All rows take T steps: windows differ in length only at an epoch's end, where the state is dropped.
        """
        one = torch.ones(len(x), dtype=torch.int64)
        found: list[ModelOutput] = []
        for x_t in x.unbind(1):
            if own is not None:
                true = torch.rand(len(x), device=x.device) < self.truth
                x_t = torch.where(true[:, None], x_t, one_hot(own, x.shape[2]))
            output = model(x_t[:, None], one, state)
            found.append(output)
            state, own = output.state, draw(output.outputs[:, 0])
        losses = [output.aux_loss for output in found if output.aux_loss is not None]
        steps = [output.steps for output in found if output.steps is not None]
        return ModelOutput(
            outputs=torch.cat([output.outputs for output in found], dim=1),
            summary=found[-1].summary,
            steps=torch.cat(steps, dim=1) if steps else None,
            state=(state, own),
            aux_loss=torch.stack(losses).mean() if losses else None,
            diagnostics={
                name: torch.stack([output.diagnostics[name] for output in found]).mean()
                for name in found[-1].diagnostics
            },
        )
