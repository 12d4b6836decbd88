r"""Bidirectional network: a second model of the same kind reads each sequence from its end.

Source: Schuster and Paliwal, "Bidirectional recurrent neural networks", IEEE Transactions on Signal Processing
45(11), 1997. With two models of one config and weights of their own, over the T steps of one sequence:

.. math::
    \overrightarrow{h}_t = \mathrm{forward}(x_1, \dots, x_t), \qquad
    \overleftarrow{h}_t = \mathrm{backward}(x_T, \dots, x_t), \qquad
    h_t = [\overrightarrow{h}_t; \overleftarrow{h}_t]

The summary is :math:`[\overrightarrow{h}_T; \overleftarrow{h}_1]`: what each of the two has when it has read all.
Twice the parameters of one model, and a classifier of 2 H K + K.

Any causal entry of the MODELS table can be the inner model. Each sequence is reversed within its own length, so the
backward model begins at the last valid step and never sees padding first.

Deviations: the two directions meet at the top only, whatever number of layers the inner model has (torch's layers
exchange them after each layer). The classifier starts as the inner model's own would (its ``head_init``); the inner
models have no head.

Shapes: B batch, T time, F input features, H summary features of one direction, K outputs.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, WithJsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError, to_json
from torch import Tensor

from seqpyramid.contracts import Needs, TaskSpec
from seqpyramid.errors import RecipeError
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, all_full
from seqpyramid.models.heads import HeadInit


def _entry(value: Any) -> Any:
    """Turn the keys of a section into the config of the model that its ``name`` chooses."""
    from seqpyramid.models import MODELS  # here, because that table lists the config of this file

    if not isinstance(value, dict):
        return value  # a config already, or for pydantic to refuse
    name = value.get("name")
    if not isinstance(name, str):
        kind = "string_type" if "name" in value else "missing"
        fault = InitErrorDetails(type=kind, loc=("name",), input=name if "name" in value else value)
        raise ValidationError.from_exception_data("inner", [fault])
    try:
        config = MODELS.lookup(name)
    except RecipeError as error:
        unknown = PydanticCustomError("unknown_model", "{sentence}", {"sentence": str(error)})
        fault = InitErrorDetails(type=unknown, loc=("name",), input=name)
        raise ValidationError.from_exception_data("inner", [fault]) from None
    # By way of JSON, because strict validation of Python values would refuse a list for a tuple.
    return config.model_validate_json(to_json(value))


InnerConfig = Annotated[
    SerializeAsAny[ModelConfig],
    BeforeValidator(_entry),
    WithJsonSchema({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}),
]


class BidirectionalConfig(ModelConfig):
    """Two models of one config, one of which reads backwards."""

    summary_line: ClassVar[str] = "Bidirectional (Schuster & Paliwal 1997): any causal model, read both ways"
    name: Literal["bidirectional"] = "bidirectional"
    inner: InnerConfig = Field(
        description="the model of each direction: an entry of the table and its settings"
    )

    @property
    def emits(self) -> frozenset[Needs]:
        """What the inner model emits."""
        return self.inner.emits

    @property
    def causal(self) -> bool:
        """The backward half at step t has read the steps after t."""
        return False

    @property
    def exact_gradient(self) -> bool:
        """As exact as the inner model's."""
        return self.inner.exact_gradient

    def problems(self, spec: TaskSpec) -> dict[str, str]:
        """Refuse what the inner model refuses, and an inner model that reads both ways by itself."""
        found = super().problems(spec)
        if spec.carry_state:
            found[""] = (
                f"model {self.name!r} cannot carry state from batch to batch: "
                "its backward half begins at a sequence's end"
            )
        if not self.inner.causal:
            found["inner"] = (
                f"{self.inner.name!r} reads both directions by itself; choose a model that reads forwards only"
            )
        inner = self.inner.problems(replace(spec, carry_state=False))
        if spec.needs not in self.emits:
            del inner[""]  # said already
        return found | {f"inner.{field}".rstrip("."): sentence for field, sentence in inner.items()}

    def _build(self, spec: TaskSpec) -> SequenceModel:
        forwards, backwards = self.inner.build(spec), self.inner.build(spec)
        head_init: HeadInit = getattr(self.inner, "head_init", "torch")
        return Bidirectional(spec, forwards=forwards, backwards=backwards, head_init=head_init)


class Bidirectional(SequenceModel):
    """Two models side by side, without their heads.

    Args:
        spec: the task's side of the contract.
        forwards: reads each sequence as it is.
        backwards: reads each sequence reversed; of the same kind, with weights of its own.
        head_init: start of the classifier's weights.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        forwards: SequenceModel,
        backwards: SequenceModel,
        head_init: HeadInit = "torch",
    ) -> None:
        size = sum(half.head.linear.in_features for half in (forwards, backwards))
        super().__init__(spec, summary_size=size, head_init=head_init)
        for half in (forwards, backwards):
            del half.head  # only encode() of a half is called, and weights that nobody reads would be counted
        self.forwards, self.backwards = forwards, backwards

    @property
    def step_loop(self) -> bool:  # type: ignore[override]
        """Whether the inner model is one."""
        return self.forwards.step_loop

    def encode(self, x: Tensor, lengths: Tensor, state: Any = None) -> Encoding:
        """Encode both ways and put the halves side by side, aligned in time."""
        ahead = self.forwards.encode(x, lengths)
        back = self.backwards.encode(reverse(x, lengths), lengths)
        summary = torch.cat([ahead.summary, back.summary], dim=-1)
        steps = None
        if ahead.steps is not None and back.steps is not None:
            steps = torch.cat([ahead.steps, reverse(back.steps, lengths)], dim=-1)
        losses = [half.aux_loss for half in (ahead, back) if half.aux_loss is not None]
        diagnostics = {
            f"{way}_{key}": value
            for way, half in (("forwards", ahead), ("backwards", back))
            for key, value in (half.diagnostics or {}).items()
        }
        return Encoding(
            summary,
            steps=steps,
            aux_loss=torch.stack(losses).sum() if losses else None,
            diagnostics=diagnostics,
        )

    def encoder_flops(self, time: int) -> int:
        """Those of both halves."""
        return self.forwards.encoder_flops(time) + self.backwards.encoder_flops(time)

    def set_progress(self, epoch: int, step: int) -> None:
        """Pass the progress on to both halves."""
        self.forwards.set_progress(epoch, step)
        self.backwards.set_progress(epoch, step)


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each sequence of (B, T, ...) within its own length; what stands past it stays where it is.

    >>> reverse(torch.tensor([[[1], [2], [3]], [[4], [5], [0]]]), torch.tensor([3, 2])).squeeze(-1).tolist()
    [[3, 2, 1], [5, 4, 0]]
    """
    time = x.shape[1]
    if all_full(lengths, time):
        return x.flip(1)
    t, ends = torch.arange(time), lengths[:, None]
    source = torch.where(t < ends, ends - 1 - t, t).to(x.device)
    return x.gather(1, source[:, :, None].expand(x.shape))
