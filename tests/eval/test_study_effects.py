"""The statistics under the findings: by hand, by scipy, by simulation, and as properties."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sma_eval.analysis import mean_interval
from sma_eval.effects import compared, holm, paired_p
from sma_eval.noise import noise, shares
from sma_eval.study import Objective

ACCURACY = Objective(metric="accuracy", mode="max")
PROBABILITIES = st.lists(st.floats(0.0, 1.0), max_size=8)
# Not so small that their squares vanish.
VALUES = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


def test_holm_by_hand() -> None:
    # In order: 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04, which may not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(PROBABILITIES)
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, own in zip(p_values, adjusted, strict=True):
        assert p <= own <= min(1.0, len(p_values) * p) + 1e-12
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


@given(st.lists(VALUES, min_size=2, max_size=6))
def test_a_p_value_is_scipys_and_agrees_with_the_interval(differences: list[float]) -> None:
    p = paired_p(differences)
    assert p is not None
    estimate = mean_interval(differences)
    assert estimate.low is not None
    assert estimate.high is not None
    if len(set(differences)) == 1:
        assert p == (0.0 if differences[0] else 1.0)
        return
    known: Any = stats.ttest_1samp(differences, 0.0)
    assert p == pytest.approx(known.pvalue, abs=1e-9)
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (not estimate.low <= 0.0 <= estimate.high)


def test_a_single_difference_has_no_p_value() -> None:
    (one,) = compared(iter([("a", "b", {0: 0.5})]), ACCURACY)
    assert (one.verdict, one.p_value, one.adjusted_p, one.seeds) == ("too few seeds", None, None, 1)


def test_of_many_comparisons_without_effect_one_in_twenty_families_has_a_corrected_one() -> None:
    rng = random.Random(0)
    families, uncorrected, corrected = 400, 0, 0
    for _ in range(families):
        pairs = [(str(i), "a", {s: rng.gauss(0.0, 1.0) for s in range(3)}) for i in range(6)]
        found = compared(iter(pairs), ACCURACY)
        uncorrected += any(d.p_value is not None and d.p_value < 0.05 for d in found)
        corrected += any(d.adjusted_p is not None and d.adjusted_p < 0.05 for d in found)
    # 1 - 0.95 ** 6 = 0.26 without; at most 0.05 with, and three standard errors of the simulation.
    assert uncorrected / families > 0.2
    assert corrected / families <= 0.05 + 3 * (0.05 * 0.95 / families) ** 0.5


def test_noise_by_hand() -> None:
    # Variances 2 and 3 with 1 and 2 degrees of freedom: a pooled one of 8 / 3.
    found = noise({"a": {0: 1.0, 1: 3.0}, "b": {0: 2.0, 1: 2.0, 2: 5.0}, "c": {0: 9.0}, "d": {}})
    assert found is not None
    assert found.deviation == pytest.approx((8.0 / 3.0) ** 0.5)
    assert found.arms == {"a": pytest.approx(2.0**0.5), "b": pytest.approx(3.0**0.5)}
    # Quantiles of chi-squared with 3 degrees of freedom, from a printed table.
    assert found.low == pytest.approx((8.0 / 9.348) ** 0.5, rel=1e-3)
    assert found.high == pytest.approx((8.0 / 0.2158) ** 0.5, rel=1e-3)
    assert noise({"a": {0: 1.0}, "b": {}}) is None


def test_shares_by_hand() -> None:
    # Effects of +-1 and +-2, none together, seeds +-0.5: squares of 8, 32, 0 and 2 over 8 trials.
    cells = {
        (p, q): {s: 10.0 + i + 2.0 * j + e for s, e in enumerate((-0.5, 0.5))}
        for i, p in ((-1, "a"), (1, "b"))
        for j, q in ((-1, "x"), (1, "y"))
    }
    found = shares(cells)
    assert found is not None
    assert found.policy == pytest.approx(8 / 42)
    assert found.pool == pytest.approx(32 / 42)
    assert found.interaction == pytest.approx(0.0, abs=1e-12)
    assert found.seed == pytest.approx(2 / 42)
    crossed = {("a", "x"): {0: 1.0}, ("a", "y"): {0: 0.0}, ("b", "x"): {0: 0.0}}
    assert shares(crossed) is None  # a hole in the grid
    found = shares({**crossed, ("b", "y"): {0: 1.0}})
    assert found is not None
    assert found.interaction == pytest.approx(1.0)


def test_a_grid_with_unequal_seeds_or_without_variation_is_not_split() -> None:
    assert shares({("a", "x"): {0: 1.0, 1: 2.0}, ("b", "x"): {0: 1.0}}) is None
    assert shares({("a", "x"): {0: 1.0}, ("b", "x"): {0: 1.0}}) is None
    assert shares({("a", "x"): {}, ("b", "x"): {}}) is None
    assert shares({}) is None


@settings(max_examples=50)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_shares_are_shares(policies: int, pools: int, seeds: int, data: st.DataObject) -> None:
    cells = {
        (f"p{i}", f"q{j}"): {s: data.draw(VALUES) for s in range(seeds)}
        for i in range(policies)
        for j in range(pools)
    }
    if (found := shares(cells)) is not None:
        parts = (found.policy, found.pool, found.interaction, found.seed)
        assert sum(parts) == pytest.approx(1.0)
        assert all(-1e-9 <= part <= 1.0 + 1e-9 for part in parts)
