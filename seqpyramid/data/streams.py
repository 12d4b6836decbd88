"""A long text as batches of windows: contiguous streams whose state is carried on, or windows by themselves.

*Streams.* The N - 1 predictions of a split are cut into B contiguous streams whose lengths differ by one at most. Batch
k holds window k of each stream, always in the same order, so that the state of one batch fits the next; the last
windows take what is left.

*Windows by themselves* are shuffled in training; a context in front of each is read and not scored.

Shapes: N symbols, V different symbols, B streams or windows, T steps of a window.
"""

import torch
from torch import Tensor

from seqpyramid.contracts import Batch
from seqpyramid.data.loading import IGNORED, Dataset, Example, shuffled


class TextDataset(Dataset):
    """The predictions of one split: number i reads symbol i and says symbol i + 1.

    A row of a plan is (start, length), one window; a plain index is the window of one step there.

    Args:
        codes: (N,) the split's symbols, any integer type.
        symbols: V.
        window: T.
        streams: contiguous streams of an evaluation; None: windows are independent, and shuffled in training.
        context: steps in front of an independent window that are read and not scored.
    """

    def __init__(
        self, codes: Tensor, symbols: int, *, window: int, streams: int | None, context: int
    ) -> None:
        self._codes, self._symbols = codes, symbols
        self._window, self._streams, self._context = window, streams, context

    def __len__(self) -> int:
        return len(self._codes) - 1

    def __getitem__(self, index: int) -> Example:
        batch = self.batch(torch.tensor([index]))
        return Example(batch.x[0], batch.y[0])

    def batch(self, indices: Tensor) -> Batch:
        """Gather in one stroke: indices (B, 2) of a plan or (B,); x (B, T, V), y (B, T), one-hot only here."""
        if indices.ndim == 2:
            starts, scored = indices.unbind(1)
            first = (starts - self._context).clamp(min=0)
        else:
            starts = first = indices
            scored = torch.ones_like(indices)
        before = starts - first
        lengths = before + scored
        t = torch.arange(int(lengths.max()))
        valid = t < lengths[:, None]
        at = (first[:, None] + t).clamp(max=len(self) - 1)
        asked = (valid & (t >= before[:, None])).to(self._codes.device)
        at = at.to(self._codes.device)
        x = one_hot(self._codes[at].long(), self._symbols) * valid.to(self._codes.device)[..., None]
        y = self._codes[at + 1].long().masked_fill(~asked, IGNORED)
        return Batch(x, lengths, y)

    def plan(self, batch_size: int, *, seed: int, epoch: int, shuffle: bool = True) -> list[Tensor]:
        """Return one epoch's batches, (B, 2) rows of start and length each.

        With streams, training has ``batch_size`` of them in one order for all epochs, and an evaluation (not
        shuffled) has its own number.
        """
        if self._streams is not None:
            return contiguous(len(self), batch_size if shuffle else self._streams, self._window)
        starts = torch.arange(0, len(self), self._window)
        rows = torch.stack([starts, (len(self) - starts).clamp(max=self._window)], dim=1)
        if shuffle:
            rows = rows[shuffled(len(rows), seed=seed, epoch=epoch)]
        return list(torch.split(rows, batch_size))

    @property
    def nbytes(self) -> int:
        """Size of the codes."""
        return self._codes.nbytes

    def to(self, device: torch.device) -> "TextDataset":
        """Hold the codes on ``device``."""
        return TextDataset(
            self._codes.to(device),
            self._symbols,
            window=self._window,
            streams=self._streams,
            context=self._context,
        )


def contiguous(predictions: int, streams: int, window: int) -> list[Tensor]:
    """Cut so many predictions into contiguous streams and these into windows: batches of (start, length) rows.

    The longer streams, by one, come first; their last window is longer by one. Fewer predictions than streams make
    as many streams of one.

    >>> [rows.tolist() for rows in contiguous(9, 2, 2)]
    [[[0, 2], [5, 2]], [[2, 3], [7, 2]]]
    """
    streams = min(streams, predictions)
    shortest, longer = divmod(predictions, streams)
    b = torch.arange(streams)
    starts = b * shortest + b.clamp(max=longer)
    batches = []
    for done in range(0, shortest, window):
        lengths = torch.full((streams,), min(window, shortest - done))
        if done + window >= shortest:
            lengths += b < longer
        batches.append(torch.stack([starts + done, lengths], dim=1))
    return batches


def one_hot(codes: Tensor, symbols: int) -> Tensor:
    """(...) int64 -> (..., V) float32.

    >>> one_hot(torch.tensor([2, 0]), 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    zeros = torch.zeros(*codes.shape, symbols, device=codes.device)
    return zeros.scatter_(-1, codes.unsqueeze(-1), 1.0)
