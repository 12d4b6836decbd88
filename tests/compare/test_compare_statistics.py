"""Statistics against scipy, and against worked examples that were published with their answers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from seqpyramid.compare.statistics import paired, summarize, welch

# Student (1908), "The probable error of a mean": hours of extra sleep with two drugs, ten patients
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

samples = st.lists(st.floats(-100, 100), min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-3)


def test_students_sleep_data() -> None:
    first, second = summarize(DRUG_1), summarize(DRUG_2)
    assert first.mean == pytest.approx(0.75, abs=1e-12)
    assert second.mean == pytest.approx(2.33, abs=1e-12)
    assert first.sd == pytest.approx(1.789010, abs=1e-6)
    both = paired(dict(enumerate(DRUG_1)), dict(enumerate(DRUG_2)))
    assert both is not None
    assert (both.statistic, both.degrees, both.n) == (pytest.approx(-4.0621, abs=1e-4), 9, 10)
    assert both.p == pytest.approx(0.002833, abs=1e-6)
    apart = welch(DRUG_1, DRUG_2)
    assert apart is not None
    assert apart.statistic == pytest.approx(-1.8608, abs=1e-4)
    assert apart.degrees == pytest.approx(17.776, abs=1e-3)
    assert apart.p == pytest.approx(0.07939, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(samples)
def test_summary_agrees_with_scipy(values: list[float]) -> None:
    summary = summarize(values)
    assert summary.n == len(values)
    assert summary.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-12)
    assert summary.sd == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert summary.standard_error == pytest.approx(stats.sem(values), rel=1e-9)
    interval = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert summary.interval == pytest.approx(interval, rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(samples, samples)
def test_welch_agrees_with_scipy(a: list[float], b: list[float]) -> None:
    ours, theirs = welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert ours is not None
    assert ours.statistic == pytest.approx(theirs.statistic, rel=1e-9, abs=1e-9)
    assert ours.degrees == pytest.approx(theirs.df, rel=1e-9)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=8))
def test_paired_agrees_with_scipy(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    if np.std(a - b) < 1e-3:
        return
    ours, theirs = paired(dict(enumerate(a)), dict(enumerate(b))), stats.ttest_rel(a, b)
    assert ours is not None
    assert ours.statistic == pytest.approx(theirs.statistic, rel=1e-9, abs=1e-9)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9, abs=1e-9)


def test_pairs_are_matched_by_seed() -> None:
    ours = paired({3: 0.9, 1: 0.7, 2: 0.6, 8: 0.1}, {1: 0.6, 2: 0.7, 3: 0.5, 9: 0.3})
    theirs = stats.ttest_rel([0.7, 0.6, 0.9], [0.6, 0.7, 0.5])
    assert ours is not None
    assert ours.n == 3
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)


def test_one_value_has_no_spread() -> None:
    summary = summarize([0.9])
    assert (summary.mean, summary.sd, summary.standard_error, summary.interval) == (0.9, None, None, None)
    assert welch([0.9], [0.8, 0.7]) is None
    assert paired({1: 0.9, 2: 0.8}, {2: 0.7, 3: 0.6}) is None
    with pytest.raises(ValueError, match="nothing"):
        summarize([])


def test_equal_values_have_no_p() -> None:
    summary = summarize([0.1] * 3)
    assert (summary.mean, summary.sd, summary.interval) == (0.1, 0.0, (0.1, 0.1))
    for a, b in (([0.1] * 3, [0.1] * 3), ([0.1] * 3, [0.2] * 3)):
        apart = welch(a, b)
        assert apart is not None
        assert math.isnan(apart.p)
    # a constant difference whose rounding errors are not a spread
    constant = paired({1: 0.9, 2: 0.8, 3: 0.3}, {1: 0.8, 2: 0.7, 3: 0.2})
    assert constant is not None
    assert math.isnan(constant.p)
