r"""A linear input embedding, or dropout on the inputs, before any other model of the table.

Sources: Chung, Ahn, Bengio, "Hierarchical Multiscale Recurrent Neural Networks", ICLR 2017, section 4.1 (characters
enter by a linear embedding of 128); Chang et al., "Dilated Recurrent Neural Networks", NIPS 2017, section 4.3 (dropout
on the input layer only). With x_t the task's features, for characters one-hot, and e_t what the inner model reads:

.. math:: e_t = m_t \odot (E\, x_t), \qquad m_{t,k} \sim \mathrm{Bernoulli}(1 - p) / (1 - p)

E has no bias. Without a ``size`` e_t = m_t * x_t: of a one-hot character, the whole character is dropped. m is drawn
anew for each step and is 1 outside training.

Not established: the rate p, and whether the mask lasts a step or a window (here: a step).

The head, its start and all promises are the inner model's; its state is what is carried.

Deviations: none.

Shapes: B batch, T time steps, F features of the task, E embedding size.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as nnf

from seqpyramid.contracts import Needs, TaskSpec
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel
from seqpyramid.models.bidirectional import InnerConfig


class EmbeddedConfig(ModelConfig):
    """Another model of the table behind an embedding, dropout, or both."""

    summary_line: ClassVar[str] = (
        "Input embedding or input dropout (HM-LSTM's, Dilated RNN's) before any model"
    )
    name: Literal["embedded"] = "embedded"
    inner: InnerConfig = Field(description="the model that reads e: an entry of the table and its settings")
    size: int | None = Field(default=None, gt=0, description="E, size of the embedding; null: none")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="p, how often a number that the inner model reads is dropped"
    )

    @property
    def emits(self) -> frozenset[Needs]:
        """What the inner model emits."""
        return self.inner.emits

    @property
    def carries_state(self) -> bool:
        """Whether the inner model does."""
        return self.inner.carries_state

    @property
    def causal(self) -> bool:
        """Whether the inner model is."""
        return self.inner.causal

    @property
    def exact_gradient(self) -> bool:
        """As exact as the inner model's."""
        return self.inner.exact_gradient

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse what the inner model refuses, and a wrapper that does nothing."""
        found = super().problems(spec)
        if self.size is None and self.dropout == 0:
            found["size"] = (
                "there is neither an embedding nor dropout; give one, or the inner model by itself"
            )
        inner = self.inner.problems(self._inner_spec(spec))
        if "" in found:
            inner.pop("", None)  # said already
        return found | {f"inner.{field}".rstrip("."): sentence for field, sentence in inner.items()}

    def _inner_spec(self, spec: TaskSpec) -> TaskSpec:
        return spec if self.size is None else replace(spec, input_size=self.size)

    def _build(self, spec: TaskSpec) -> SequenceModel:
        inner = self.inner.build(self._inner_spec(spec))
        return Embedded(spec, inner=inner, size=self.size, dropout=self.dropout)


class Embedded(SequenceModel):
    """The embedding, the dropout, and the inner model's encoder and head.

    Args:
        spec: the task's side of the contract.
        inner: reads E features a step, or F where there is no embedding.
        size: E; None leaves the embedding out.
        dropout: p.
    """

    def __init__(self, spec: TaskSpec, *, inner: SequenceModel, size: int | None, dropout: float) -> None:
        super().__init__(spec, summary_size=inner.head.linear.in_features)
        self.head = inner.head  # with the start that the inner model gave it
        del inner.head  # else a checkpoint would hold it twice
        self.inner, self.dropout = inner, dropout
        self.embedding = None if size is None else nn.Linear(spec.input_size, size, bias=False)

    @property
    def step_loop(self) -> bool:  # type: ignore[override]
        """Whether the inner model is one."""
        return self.inner.step_loop

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Embed x (B, T, F) and let the inner model read it."""
        if self.embedding is not None:
            x = self.embedding(x)
        return self.inner.encode(nnf.dropout(x, self.dropout, self.training), lengths, state)

    def encoder_flops(self, time: int) -> int:
        """The inner model's, and those of the embedding at every step."""
        embedding = 0 if self.embedding is None else 2 * time * self.embedding.weight.numel()
        return embedding + self.inner.encoder_flops(time)

    def set_progress(self, epoch: int, step: int) -> None:
        """Pass the progress on."""
        self.inner.set_progress(epoch, step)
