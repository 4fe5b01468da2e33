"""McNemar's exact test against binomials counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pilot.judge_cases import make_measurements, make_plan
from tests.tolerances import TOLERANCES

from sma_pilot.judge.discordance import mcnemar_p
from sma_pilot.judge.verdict import judge

CLOSE = TOLERANCES["float64"].relative


@pytest.mark.parametrize(
    ("lost", "won", "by_hand"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 2**5),
        (1, 7, 2 * (1 + 8) / 2**8),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
    ],
)
def test_by_hand(lost, won, by_hand):
    assert mcnemar_p(lost, won) == pytest.approx(by_hand, rel=CLOSE)


@given(lost=st.integers(0, 60), won=st.integers(0, 60))
def test_it_is_a_chance_and_the_arms_may_be_swapped(lost, won):
    assert 0 < mcnemar_p(lost, won) <= 1
    assert mcnemar_p(lost, won) == pytest.approx(mcnemar_p(won, lost), rel=CLOSE)


def test_the_result_tells_both_ways_and_decides_nothing_by_them():
    result = judge(make_measurements(candidate_misses=8), make_plan())
    figures = {
        name: result.kpi(f"quality/{name}")
        for name in ("right_to_wrong", "wrong_to_right", "discordance", "mcnemar_p")
    }
    assert figures["right_to_wrong"].value == 8
    assert figures["wrong_to_right"].value == 0
    assert figures["discordance"].value == pytest.approx(8 / 120, rel=CLOSE)
    assert figures["mcnemar_p"].value == pytest.approx(2 / 2**8, rel=CLOSE)
    assert {kpi.status for kpi in figures.values()} == {"info"}
