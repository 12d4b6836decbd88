from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqpyramid.data.loading import IGNORED
from seqpyramid.data.streams import TextDataset, contiguous

SIZES = (st.integers(1, 400), st.integers(1, 40), st.integers(1, 50))


@given(*SIZES)
def test_every_prediction_is_in_one_window_and_streams_go_on(
    predictions: int, streams: int, window: int
) -> None:
    batches = contiguous(predictions, streams, window)
    rows = min(streams, predictions)
    assert all(len(batch) == rows for batch in batches)
    covered = [s + i for batch in batches for s, n in batch.tolist() for i in range(n)]
    assert sorted(covered) == list(range(predictions))
    for before, after in pairwise(batches):
        assert torch.equal(before.sum(dim=1), after[:, 0])
    for batch in batches:
        lengths = batch[:, 1]
        assert 1 <= int(lengths.min()) <= int(lengths.max()) <= min(window + 1, int(lengths.min()) + 1)
    assert all(bool((batch[:, 1] == window).all()) for batch in batches[:-1])


@given(*SIZES, st.integers(1, 300))
def test_an_evaluation_is_the_same_for_every_batch_size(
    predictions: int, streams: int, window: int, batch_size: int
) -> None:
    dataset = TextDataset(
        torch.zeros(predictions + 1, dtype=torch.uint8), 3, window=window, streams=streams, context=0
    )
    plan = dataset.plan(batch_size, seed=0, epoch=0, shuffle=False)
    assert all(map(torch.equal, plan, contiguous(predictions, streams, window)))
    training = dataset.plan(batch_size, seed=0, epoch=3)
    assert len(training[0]) == min(batch_size, predictions)


def read_back(dataset: TextDataset, plan: list[Tensor]) -> dict[int, int]:
    """Position -> symbol that is asked for there, of every scored step, each of which must read what is before."""
    found: dict[int, int] = {}
    for rows in plan:
        batch = dataset.batch(rows)
        for (start, length), x, y, valid in zip(
            rows.tolist(), batch.x, batch.y, batch.lengths.tolist(), strict=True
        ):
            assert x[valid:].abs().sum() == 0
            assert bool((y[valid:] == IGNORED).all())
            scored = (y != IGNORED).nonzero().flatten().tolist()
            assert scored == list(range(valid - length, valid))
            first = start + length - valid
            for t in range(valid):
                assert int(x[t].argmax()) == int(dataset._codes[first + t])
            for t in scored:
                assert first + t not in found
                found[first + t] = int(y[t])
    return found


@given(st.integers(2, 120), st.integers(1, 9), st.integers(1, 20), st.integers(0, 30), st.booleans())
def test_batches_read_the_text_and_score_each_symbol_once(
    symbols: int, batch_size: int, window: int, context: int, carried: bool
) -> None:
    codes = torch.randint(0, 5, (symbols,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    streams, context = (4, 0) if carried else (None, context)
    dataset = TextDataset(codes, 5, window=window, streams=streams, context=context)
    for shuffle in (True, False):
        plan = dataset.plan(batch_size, seed=0, epoch=1, shuffle=shuffle)
        found = read_back(dataset, plan)
        assert [found[i] for i in range(symbols - 1)] == codes[1:].tolist()


def test_context_is_read_and_not_scored() -> None:
    dataset = TextDataset(torch.arange(10), 10, window=3, streams=None, context=2)
    batch = dataset.batch(torch.tensor([[0, 3], [3, 3], [6, 3]]))
    assert batch.lengths.tolist() == [3, 5, 5]
    assert batch.x[1].argmax(-1).tolist() == [1, 2, 3, 4, 5]
    assert batch.y.tolist() == [[1, 2, 3, -1, -1], [-1, -1, 4, 5, 6], [-1, -1, 7, 8, 9]]


def test_independent_windows_are_shuffled_by_seed_and_epoch() -> None:
    dataset = TextDataset(torch.arange(100), 100, window=3, streams=None, context=0)
    first, again, later = (torch.cat(dataset.plan(4, seed=0, epoch=epoch)) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(first.sort(dim=0).values[:, 0], later.sort(dim=0).values[:, 0])
