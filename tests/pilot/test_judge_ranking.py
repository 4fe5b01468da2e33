"""Average precision against scikit-learn, and what must not change it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from tests.tolerances import TOLERANCES

from sma_pilot.judge.ranking import RankedRows

CLOSE = TOLERANCES["float64"].relative
BINS = 7


@st.composite
def rankings(draw):
    size = draw(st.integers(2, 50))
    levels = draw(st.sampled_from([1, 3, 1000]))
    integers = st.lists(st.integers(0, levels), min_size=size, max_size=size)
    score = np.array(draw(integers), np.float32)
    positive = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    positive[draw(st.integers(0, size - 1))] = True
    bins = np.array(draw(st.lists(st.integers(0, BINS - 1), min_size=size, max_size=size)))
    weights = np.array(draw(st.lists(st.integers(0, 4), min_size=BINS, max_size=BINS)), float)
    return score, positive, bins, weights


@given(rankings())
@settings(max_examples=300, deadline=None)
def test_average_precision_is_that_of_scikit_learn(case):
    score, positive, bins, weights = case
    ranking = RankedRows(score, positive, bins)
    expected = average_precision_score(positive, score)
    assert ranking(np.ones(BINS)) == pytest.approx(expected, rel=CLOSE)
    of_row = weights[bins]
    if of_row[positive].sum() == 0:
        assert np.isnan(ranking(weights))
    else:
        expected = average_precision_score(positive, score, sample_weight=of_row)
        assert ranking(weights) == pytest.approx(expected, rel=CLOSE)


@given(rankings())
@settings(max_examples=100, deadline=None)
def test_contributions_of_the_bins_add_up(case):
    score, positive, bins, _ = case
    ranking = RankedRows(score, positive, bins)
    whole = ranking(np.ones(BINS))
    assert ranking.contributions(BINS).sum() == pytest.approx(whole, rel=CLOSE)


@given(rankings())
@settings(max_examples=100, deadline=None)
def test_only_the_order_of_scores_counts(case):
    score, positive, bins, weights = case
    plain = RankedRows(score, positive, bins)(weights)
    bent = RankedRows(np.exp(score / 500) * 7 - 3, positive, bins)(weights)
    assert bent == pytest.approx(plain, rel=CLOSE, nan_ok=True)


def test_infinite_scores_rank_first_and_last():
    score = np.array([np.inf, 1, -np.inf, np.inf], np.float32)
    positive = np.array([True, False, True, False])
    # At the top 1 of 2 is right, at the bottom 2 of 4; each brings half of the recall.
    assert RankedRows(score, positive, np.zeros(4, int))(np.ones(1)) == 0.5


def test_no_positive_row_is_no_average_precision():
    ranking = RankedRows(np.ones(3, np.float32), np.zeros(3, bool), np.zeros(3, int))
    assert np.isnan(ranking(np.ones(1)))
    assert ranking.contributions(1).tolist() == [0.0]
