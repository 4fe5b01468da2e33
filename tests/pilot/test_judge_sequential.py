"""Looks share one alpha, and evidence may be read at any time: known constants and simulation."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sma_pilot.judge.sequential import evidence_of_loss, nominal_levels, spent
from sma_pilot.judge.statistics import student

ALPHA = 0.05


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        # Lan and DeMets' functions for five equal looks at one-sided 0.025, as printed by the
        # standard packages of group-sequential design.
        ("obrien_fleming", [4.877, 3.357, 2.680, 2.290, 2.031]),
        ("pocock", [2.438, 2.427, 2.410, 2.397, 2.386]),
    ],
)
def test_borders_are_those_of_the_literature(spending, published: list[float]) -> None:
    levels = nominal_levels((0.2, 0.4, 0.6, 0.8, 1.0), 0.025, spending)
    borders = [-NormalDist().inv_cdf(level) for level in levels]
    assert [round(border, 3) for border in borders] == published


@settings(max_examples=20)
@given(
    st.lists(st.floats(0.05, 0.95), max_size=4, unique_by=lambda time: round(time, 1)),
    st.sampled_from(["obrien_fleming", "pocock"]),
)
def test_one_look_has_all_of_alpha_and_more_looks_share_it(times: list[float], spending) -> None:
    levels = nominal_levels((*sorted(times), 1.0), ALPHA, spending)
    assert len(levels) == len(times) + 1
    assert 0 < min(levels) <= max(levels) <= ALPHA + 1e-9
    # No look alone spends more than is left by then, nor do all of them less than alpha.
    assert levels[0] == pytest.approx(spent(sorted([*times, 1.0])[0], ALPHA, spending))
    assert sum(levels) >= ALPHA - 1e-9


@pytest.mark.parametrize("times", [(), (0.5, 0.5, 1.0), (0.5, 1.5), (0.0, 1.0)])
def test_times_of_looks_rise_within_the_whole(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="times of looks"):
        nominal_levels(times, ALPHA, "pocock")


def series(generator: np.random.Generator, runs: int, bins: int, memory: float) -> np.ndarray:
    """Autocorrelated series [runs, bins] of mean 0: first-order, with the given correlation."""
    noise = generator.standard_normal((runs, bins))
    values = np.empty_like(noise)
    values[:, 0] = noise[:, 0] / np.sqrt(1 - memory**2)
    for place in range(1, bins):
        values[:, place] = memory * values[:, place - 1] + noise[:, place]
    return values


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_looks_at_dependent_data_pass_no_more_than_alpha(spending) -> None:
    """The loss is just the limit: with block means, a false go at any look has rate alpha."""
    runs, bins, block, looks = 2000, 2400, 40, 3
    values = series(np.random.default_rng(1), runs, bins, memory=0.8)
    means = values.reshape(runs, bins // block, block).mean(axis=2)
    times = tuple((look + 1) / looks for look in range(looks))
    passed, naive = np.zeros(runs, bool), np.zeros(runs, bool)
    for time, level in zip(times, nominal_levels(times, ALPHA, spending), strict=True):
        seen = means[:, : round(time * means.shape[1])]
        error = seen.std(axis=1, ddof=1) / np.sqrt(seen.shape[1])
        z = seen.mean(axis=1) / error
        passed |= z < -student(level, seen.shape[1])  # as the judge bounds a mean of few blocks
        naive |= z < -student(ALPHA, seen.shape[1])
    noise = 3 * np.sqrt(ALPHA * (1 - ALPHA) / runs)
    # Blocks touch: a little over alpha is theirs.
    assert ALPHA - noise - 0.01 < passed.mean() < ALPHA + noise + 0.01
    assert naive.mean() > 1.5 * ALPHA
    assert naive.mean() > passed.mean() + noise


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_the_watch_seldom_stops_a_candidate_at_the_limit_and_soon_one_beyond(memory: float) -> None:
    generator = np.random.default_rng(2)
    runs, blocks, size, limit = 200, 60, 20, 0.1
    hidden = series(generator, runs, blocks * size, memory)
    hidden /= hidden.std()

    def stopped(loss: float) -> float:
        lost = hidden > NormalDist().inv_cdf(1 - loss)
        means = lost.reshape(runs, blocks, size).mean(axis=2)
        return float(np.mean([evidence_of_loss(own, limit).max() >= 1 / ALPHA for own in means]))

    assert stopped(limit) <= ALPHA
    assert stopped(0.15) < stopped(0.3)
    assert stopped(0.3) > 0.9


def test_evidence_by_hand() -> None:
    assert evidence_of_loss(np.array([]), 0.1).size == 0
    # A block at the limit neither wins nor loses a bet; one beyond wins every bet.
    np.testing.assert_allclose(evidence_of_loss(np.array([0.1, 0.1]), 0.1), 1.0)
    rising = evidence_of_loss(np.ones(5), 0.0)
    bets = np.geomspace(0.02, 0.8, 8)
    np.testing.assert_allclose(rising[1], np.mean((1 + bets) ** 2))
    assert (np.diff(rising) > 0).all()
    with pytest.raises(ValueError, match="block means"):
        evidence_of_loss(np.array([1.5]), 0.1)
