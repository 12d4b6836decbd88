r"""The contract every model keeps, and the config that builds it.

A model is an encoder and a head. The encoder turns a padded batch into states; the head, inside the model, reads
what the task needs (one summary a sequence, or every step). :meth:`SequenceModel.forward` is final: a model file
writes :meth:`SequenceModel.encode` and nothing else of the call.

Promises, kept by ``tests/models/test_contract.py`` for every entry of the MODELS table: what stands past
``lengths`` never changes an output; permuting the batch permutes the output; a sequence's result does not depend
on its neighbours; where state is carried, two halves equal the whole.

Shapes: B batch, T time steps, F input features, H summary features, K outputs.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from seqpyramid.contracts import ModelOutput, Needs, TaskSpec
from seqpyramid.errors import DataError, RecipeError
from seqpyramid.kernels import library
from seqpyramid.models.heads import Head, HeadInit

ALL_THREADS = torch.get_num_threads()
"""What torch would use by itself."""


class Encoding(NamedTuple):
    """What an encoder returns."""

    summary: Tensor
    """(B, H): the state at each sequence's own last valid step, or what the paper's classifier reads."""
    steps: Tensor | None = None
    """(B, T, H), zero past ``lengths``; None where the model has no state a step, or none was asked for."""
    state: Any = None
    """State to carry into the next batch; None unless the task carries state."""
    aux_loss: Tensor | None = None
    """Scalar added to the task's mean loss."""
    diagnostics: dict[str, Tensor] | None = None
    """Named scalars worth logging (boundary rates, for one)."""


class ModelConfig(BaseModel):
    """One entry of the MODELS table. A config stops at :meth:`build`: modules take plain keyword arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    summary_line: ClassVar[str]
    """One line for ``seqpyramid list``: the paper and what the model is."""

    name: str

    @property
    def emits(self) -> frozenset[Needs]:
        """What the encoder can hand to a head."""
        return frozenset({"summary", "steps"})

    @property
    def carries_state(self) -> bool:
        """Whether the model can continue a sequence over batches."""
        return False

    @property
    def causal(self) -> bool:
        """Whether output t depends on inputs up to t only."""
        return True

    @property
    def exact_gradient(self) -> bool:
        """Whether the gradient is the derivative; a straight-through estimator's is not."""
        return True

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Name what this config cannot do for a task: field -> sentence (field ``""``: the model as a whole)."""
        if spec.carry_state and not self.carries_state and spec.needs in self.emits:
            return {
                "": f"model {self.name!r} cannot carry state from batch to batch, and the task asks for it"
            }
        if spec.causal and not self.causal:
            return {"": f"model {self.name!r} reads ahead, and the task asks for what comes next"}
        return self.cannot_serve(spec.needs)

    def cannot_serve(self, needs: Needs) -> dict[str, str]:
        """As :meth:`problems`, of what can be said while only the task's needs are known."""
        if needs in self.emits:
            return {}
        emits = " and ".join(sorted(self.emits))
        return {"": f"model {self.name!r} emits {emits}, but the task needs {needs}"}

    def build(self, spec: TaskSpec) -> "SequenceModel":
        """Build the module, refusing what :meth:`problems` names."""
        found = self.problems(spec)
        if found:
            raise RecipeError([f"{field or self.name}: {sentence}" for field, sentence in found.items()])
        return self._build(spec)

    def _build(self, spec: TaskSpec) -> "SequenceModel":
        raise NotImplementedError


class SequenceModel(nn.Module, ABC):
    """Encoder and head; see the module's docstring for the promises.

    Args:
        spec: the task's side of the contract.
        summary_size: H, features that the head reads.
        head_init: how the head's weights start.
    """

    step_loop: bool = False
    """Whether torch is left with many small operations: one time step after the other, or those around a kernel. Then
    one CPU thread is faster than a barrier an operation, and many times faster beside a busy process; kernels
    have threads of their own."""
    no_bfloat16: ClassVar[str | None] = None
    """Why the model cannot run in bfloat16, where it cannot."""

    def __init__(self, spec: TaskSpec, *, summary_size: int, head_init: HeadInit = "torch") -> None:
        super().__init__()
        self.spec = spec
        self.head = Head(summary_size, spec.outputs, init=head_init)

    @abstractmethod
    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Encode x (B, T, F) whose valid steps are ``lengths`` (B,), continuing from ``state`` if given."""

    @abstractmethod
    def encoder_flops(self, time: int) -> int:
        """FLOPs of the matrix products in one forward pass over one sequence of ``time`` steps.

        A multiply-add is two. Element-wise work is left out, as PyTorch's own counter leaves it out.
        """

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: Any = None) -> ModelOutput:
        """Run the batch x (B, T, F); ``lengths`` None means that every sequence has T steps.

        Raises:
            DataError: the batch is empty, its features are not F, or a length is below 1 or above T.
        """
        lengths = check_batch(x, lengths, self.spec.input_size)
        encoding = self.encode(x, lengths, state)
        read = encoding.summary if self.spec.needs == "summary" else encoding.steps
        if read is None:
            raise RuntimeError(f"{type(self).__name__} returned no {self.spec.needs}")
        return ModelOutput(
            outputs=self.head(read),
            summary=encoding.summary,
            steps=encoding.steps,
            state=encoding.state,
            aux_loss=encoding.aux_loss,
            diagnostics=encoding.diagnostics or {},
        )

    def set_progress(self, epoch: int, step: int) -> None:
        """Tell the model how far training is (for slope annealing and the like); a no-op by default."""

    def flops(self, time: int) -> int:
        """FLOPs of one forward pass over one sequence of ``time`` steps, head included."""
        reads = 1 if self.spec.needs == "summary" else time
        return self.encoder_flops(time) + reads * self.head.flops

    @property
    def parameter_count(self) -> int:
        """Trainable numbers; a frozen one is not a parameter."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def check_batch(x: Tensor, lengths: Tensor | None, input_size: int) -> Tensor:
    """Return ``lengths`` as CPU integers, or say what is wrong with the batch."""
    if x.ndim != 3 or x.shape[0] == 0 or x.shape[1] == 0:
        raise DataError(
            f"a batch must be (batch, time, features) with at least one step, not {tuple(x.shape)}"
        )
    if x.shape[2] != input_size:
        raise DataError(f"the model reads {input_size} features a step, but the batch has {x.shape[2]}")
    batch, time, _ = x.shape
    if lengths is None:
        return torch.full((batch,), time, dtype=torch.int64)
    lengths = lengths.to(device="cpu", dtype=torch.int64)
    if lengths.shape != (batch,):
        raise DataError(
            f"lengths must be one integer a sequence ({batch}), not of shape {tuple(lengths.shape)}"
        )
    if int(lengths.min()) < 1 or int(lengths.max()) > time:
        bad = int(((lengths < 1) | (lengths > time)).nonzero()[0])
        raise DataError(
            f"sequence {bad} of the batch has length {int(lengths[bad])}; lengths must be from 1 to {time}"
        )
    return lengths


def use_threads(model: SequenceModel, asked: int | None) -> None:
    """Let CPU work run on the threads asked for, or on as many as suit the model.

    The choice does not look at the machine's load, so that the same command gives the same bytes.
    """
    library.use_threads(
        asked or ALL_THREADS
    )  # a kernel has one fork and join a call, and no barrier in between
    torch.set_num_threads(asked or (1 if model.step_loop else ALL_THREADS))


def all_full(lengths: Tensor, time: int) -> bool:
    """Whether every sequence fills the batch's time axis, so that no step is padding."""
    return bool((lengths == time).all())


def mask_steps(steps: Tensor, lengths: Tensor) -> Tensor:
    """Set what stands past each sequence's length to zero in (B, T, H)."""
    time = steps.shape[1]
    if all_full(lengths, time):
        return steps
    valid = torch.arange(time) < lengths[:, None]
    return steps * valid.to(device=steps.device, dtype=steps.dtype)[:, :, None]


def last_steps(steps: Tensor, lengths: Tensor) -> Tensor:
    """Take the state at each sequence's own last valid step: (B, T, H) -> (B, H)."""
    if all_full(lengths, steps.shape[1]):
        return steps[:, -1]
    rows = torch.arange(len(lengths), device=steps.device)
    return steps[rows, (lengths - 1).to(steps.device)]
