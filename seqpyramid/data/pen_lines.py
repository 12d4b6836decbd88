"""Lines of pen rows (x, y, pen), gathered a batch at a time: each row is read, and the next is what follows.

Shapes: P points of a line, N lines, B batch, T steps.
"""

import torch
from torch import Tensor

from seqpyramid.contracts import Batch
from seqpyramid.data.loading import Dataset, Example

END = 2
"""In the pen column of a target: the line is over."""


class Lines(Dataset):
    """Lines of unequal lengths, gathered from one array.

    Args:
        rows: (sum of P, 3) standardised rows of all lines, end to end.
        lengths: (N,) points P of each line.
        last_point: whether the last row is an input too, with the target (0, 0, END).
        remaining_unit: what the remaining moves are divided by in the fourth feature; None: there is none.
    """

    def __init__(
        self, rows: Tensor, lengths: Tensor, *, last_point: bool, remaining_unit: float | None
    ) -> None:
        self._rows, self._lengths = rows, lengths
        self._last_point, self._remaining_unit = last_point, remaining_unit
        self._starts = lengths.cumsum(0) - lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Example:
        batch = self.batch(torch.tensor([index]))
        return Example(batch.x[0], batch.y[0])

    def batch(self, indices: Tensor) -> Batch:
        """Gather in one stroke."""
        here = indices.cpu()
        moves = self._lengths[here] - 1
        lengths = moves + self._last_point
        step = torch.arange(int(lengths.max()))
        valid, moving = step < lengths[:, None], step < moves[:, None]
        rows = self._starts[here, None] + step
        device = self._rows.device
        x = self._rows[(rows * valid).to(device)] * valid[..., None].to(device)
        y = self._rows[((rows + 1) * moving).to(device)] * moving[..., None].to(device)
        if self._last_point:
            over = (valid & ~moving).to(device)
            y[..., 2] = torch.where(over, float(END), y[..., 2])
        if self._remaining_unit is not None:
            remaining = (moves[:, None] - step) * (valid & (step > 0)) / self._remaining_unit
            x = torch.cat([x, remaining[..., None].to(device)], dim=-1)
        return Batch(x, lengths, y)

    @property
    def nbytes(self) -> int:
        """Size of the rows; the lengths stay on the CPU."""
        return self._rows.nbytes

    def to(self, device: torch.device) -> "Lines":
        """Hold the rows on ``device``."""
        return Lines(
            self._rows.to(device),
            self._lengths,
            last_point=self._last_point,
            remaining_unit=self._remaining_unit,
        )
