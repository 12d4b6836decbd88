"""A handwriting model that writes new lines, point by point, each from its own last one.

Shapes: B lines, T points, K outputs.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqpyramid.contracts import Model
from seqpyramid.errors import DivergedError
from seqpyramid.tasks import mixture_density
from seqpyramid.tasks.base import Drawn, Request
from seqpyramid.tasks.line_density import Answer, LineDensity

Coordinates = Literal["offsets", "positions"]


class Scale(NamedTuple):
    """What the training split says of all rows."""

    mean: tuple[float, float]
    """Of x and y, in units of the board."""
    deviation: tuple[float, float]
    steps: float
    """Mean number of moves of a line."""


class PenWriter:
    """Writes the lines of one request.

    Args:
        density: what the model's answers mean.
        scale: of the training split.
        coordinates: what a row's x and y are.
        request: how many lines, how long and how bold; all happens on its generator's device.
    """

    def __init__(
        self, density: LineDensity, scale: Scale, coordinates: Coordinates, request: Request
    ) -> None:
        self._density, self._scale, self._coordinates = density, scale, coordinates
        self._request, self._device = request, request.generator.device
        self._moves = torch.full((request.count,), request.steps - 1)  # what each line may still get, at most
        self._ended = torch.zeros(request.count, dtype=torch.bool)

    def write(self, model: Model) -> list[Drawn]:
        """Return the lines, each a row "x y pen" a point.

        Raises:
            DivergedError: the model answers with something that is no number.
        """
        request, scale = self._request, self._scale
        first = torch.zeros(request.count, 3, device=self._device)
        first[:, :2] = -torch.tensor(scale.mean) / torch.tensor(scale.deviation)
        rows, shown, state = [first], self._shown(first, 0)[:, None], None
        for step in range(1, request.steps):
            output = model(shown, None, state)
            state = output.state
            answer = self._density.read_out(output.outputs[:, -1].double())
            if not all(part.isfinite().all() for part in (answer.pen, *answer.mixture, answer.rest)):
                raise DivergedError(
                    f"at step {step} the model answers with something that is no number; "
                    "take a lower temperature, or a model that was trained longer"
                )
            if step == 1 and self._density.ending == "length":
                drawn = self._draw_lengths(*self._density.length(answer.rest, scale.steps))
                self._ended = drawn < request.steps
                self._moves = drawn.clamp(max=request.steps - 1)
            pen = self._draw_pen(answer, step)
            if bool((self._moves < step).all()):
                break
            move = mixture_density.draw(
                answer.mixture, temperature=request.temperature, generator=request.generator
            )
            rows.append(torch.cat([move, pen[:, None]], dim=-1).float())
            following = self._shown(rows[-1], step)[:, None]
            shown = torch.cat([shown, following], dim=1) if state is None else following
        return self._told(torch.stack(rows, dim=1))

    def _shown(self, row: Tensor, step: int) -> Tensor:
        """The row as the model reads it."""
        if self._density.ending != "length":
            return row
        remaining = (self._moves - step).clamp(min=0) * (step > 0) / self._scale.steps
        return torch.cat([row, remaining[:, None].to(row)], dim=-1)

    def _draw_lengths(self, log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
        """Numbers of moves; numpy draws them, as torch has no negative binomial that takes a generator."""
        seed = torch.randint(2**62, (), generator=self._request.generator, device=self._device)
        # beyond e**20 moves, more than anyone asks for, numpy refuses small dispersions
        dispersion, mean = log_dispersion.exp().cpu().numpy(), log_mean.clamp(max=20.0).exp().cpu().numpy()
        found = np.random.default_rng(int(seed)).negative_binomial(
            dispersion, dispersion / (dispersion + mean)
        )
        return torch.from_numpy(found.astype(np.int64))

    def _draw_pen(self, answer: Answer, step: int) -> Tensor:
        """Whether the stroke ends with this step's point; lines that are over before it are noted."""
        coins = torch.rand(
            len(answer.pen), 2, generator=self._request.generator, device=self._device, dtype=torch.float64
        )
        if self._density.ending == "end_symbol":
            logits = torch.stack([torch.zeros_like(answer.pen), answer.pen, answer.rest[:, 0]], dim=-1)
            down, up, _ = logits.softmax(-1).unbind(-1)
            self._end_before(step, coins[:, 0] >= down + up)
            up = up / (down + up)  # the second coin decides between the two that are left
        else:
            up = answer.pen.sigmoid()
            if self._density.ending == "halt":
                self._end_before(step, coins[:, 0] < answer.rest[:, 0].sigmoid())
        return (coins[:, 1] < up).to(answer.pen)

    def _end_before(self, step: int, over: Tensor) -> None:
        over = over.cpu() & ~self._ended
        self._moves[over] = step - 1
        self._ended |= over

    def _told(self, rows: Tensor) -> list[Drawn]:
        """(B, T, 3) standardised rows -> lines in units of the board."""
        told = rows.cpu().double()
        told[..., :2] = told[..., :2] * torch.tensor(self._scale.deviation) + torch.tensor(self._scale.mean)
        if self._coordinates == "offsets":
            told[..., :2] = told[..., :2].cumsum(dim=1)
        drawn = []
        for line, moves_of_line, ended in zip(told, self._moves.tolist(), self._ended.tolist(), strict=True):
            points = line[: moves_of_line + 1].tolist()
            # adding 0.0 makes a zero of a negative one
            text = "\n".join(f"{round(x, 1) + 0.0} {round(y, 1) + 0.0} {int(pen)}" for x, y, pen in points)
            drawn.append(Drawn(text=text, steps=len(points), ended=ended))
        return drawn


def parsed(text: str) -> NDArray[np.float64]:
    """Return (P, 3) of the text of a line."""
    return np.array([[float(word) for word in row.split()] for row in text.splitlines()]).reshape(-1, 3)
