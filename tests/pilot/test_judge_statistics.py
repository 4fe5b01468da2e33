"""Resamples against `arch`, bounds against published and exact figures, and error rates kept."""

import numpy as np
import pytest
from arch.bootstrap import CircularBlockBootstrap
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.signal import lfilter
from tests.tolerances import TOLERANCES

from sma_pilot.judge.power import events_needed, more_data
from sma_pilot.judge.statistics import (
    Estimate,
    block_weights,
    bootstrap,
    choose_block,
    count_bounds,
    leave_out_stretches,
    metric_loss,
    paired_upper_bound,
    percentile_bounds,
    recall_loss,
    share_upper_bound,
    stretch_variance,
    student,
    time_bins,
)

ALPHA = 0.05
CLOSE = TOLERANCES["float64"].relative


@pytest.mark.parametrize(("bins", "block"), [(50, 7), (50, 1), (50, 25), (12, 12), (1, 1)])
def test_block_weights_are_those_of_arch(bins, block):
    resampler = CircularBlockBootstrap(block, np.arange(bins), seed=np.random.default_rng(3))
    generator = np.random.default_rng(3)
    for (drawn,), _ in resampler.bootstrap(5):
        weights = block_weights(bins, block, generator)
        assert weights.tolist() == np.bincount(drawn, minlength=bins).tolist()


@given(bins=st.integers(1, 60), data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_resample_has_as_many_bins_as_there_are(bins, data):
    block = data.draw(st.integers(1, bins))
    seed = data.draw(st.integers(0, 2**32))
    assert block_weights(bins, block, np.random.default_rng(seed)).sum() == bins


def test_all_statistics_see_the_same_resample():
    drawn = bootstrap({"a": lambda w: w[0], "b": lambda w: 2 * w[0]}, 20, 3, 50, seed=1)
    assert np.array_equal(drawn["b"], 2 * drawn["a"])
    assert np.ptp(drawn["a"]) > 0


def test_the_bootstrap_of_a_mean_has_the_variance_of_a_mean():
    x = np.random.default_rng(0).normal(size=400)
    resamples = 2000
    drawn = bootstrap({"mean": lambda w: w @ x / w.sum()}, x.size, 1, resamples, seed=0)["mean"]
    three_sigma = 3 / np.sqrt(2 * resamples)
    assert drawn.std() == pytest.approx(x.std() / 20, rel=three_sigma)


def test_bins_are_periods_in_which_someone_reported():
    bins, count = time_bins(np.array([100, 109, 110, 990, 100]), 10)
    assert (bins.tolist(), count) == ([0, 0, 1, 2, 0], 3)


def remember(noise, rho) -> np.ndarray:
    """A process that keeps the share `rho` of itself from bin to bin."""
    return np.asarray(lfilter([1], [1, -rho], noise))


def test_block_length_follows_the_memory_of_the_loss():
    noise = np.random.default_rng(1).normal(size=4000)
    slow = remember(noise, 0.95)
    every = np.ones(noise.size, dtype=bool)
    assert choose_block(noise, every, floor=1) < 10 < choose_block(slow, every, floor=1)


def test_block_length_sees_memory_between_rare_events():
    # Every tenth bin has an event; in between, zeros that hide how long losses persist.
    slow = remember(np.random.default_rng(1).normal(size=400), 0.9)
    loss, carries = np.zeros(4000), np.zeros(4000, dtype=bool)
    loss[::10], carries[::10] = slow, True
    dense = choose_block(slow, np.ones(400, dtype=bool), floor=1)
    assert choose_block(loss, carries, floor=1) == pytest.approx(10 * dense, abs=10)


def test_block_length_keeps_to_the_floor_and_to_half_of_the_time():
    flat = np.zeros(100)
    assert choose_block(flat, np.ones(100, bool), floor=17) == 17
    assert choose_block(flat, np.ones(100, bool), floor=99) == 50
    assert choose_block(np.zeros(1), np.ones(1, bool), floor=5) == 1


def test_a_few_differing_events_show_no_memory():
    loss = np.zeros(400)
    loss[[10, 11, 12, 13]] = 1.0  # four in a row, which chance may make
    every = np.ones(400, dtype=bool)
    assert choose_block(loss, every, floor=3) == 3
    loss[14:20] = 1.0
    assert choose_block(loss, every, floor=3) > 3


def test_stretches_by_hand():
    # Two bins a stretch; without its own stretch the mean of 0..7 is (28 - pair) / 6.
    values = np.arange(8.0)
    found = leave_out_stretches({"mean": lambda w: w @ values / w.sum()}, 8, 4)["mean"]
    assert found == pytest.approx(np.array([27, 23, 19, 15]) / 6, rel=CLOSE)
    # Their mean is 3.5; deviations of +-1 and +-1/3; (4 - 1) times the mean square 5/9.
    assert stretch_variance(found) == pytest.approx(3 * 5 / 9, rel=CLOSE)


def test_the_jackknife_of_a_mean_is_the_variance_between_stretches():
    x = np.random.default_rng(4).normal(size=800)
    left_out = leave_out_stretches({"mean": lambda w: w @ x / w.sum()}, x.size, 8)["mean"]
    between = x.reshape(8, 100).mean(1).var(ddof=1) / 8
    assert stretch_variance(left_out) == pytest.approx(between, rel=CLOSE)


def test_a_stretch_that_holds_every_event_leaves_nothing():
    at = np.array([3, 4])
    found = leave_out_stretches(
        {"share": lambda w: w[at] @ np.ones(2) / w[at].sum() if w[at].sum() else np.nan}, 80, 8
    )["share"]
    assert np.isnan(found).tolist() == [True] + 7 * [False]
    assert np.isnan(stretch_variance(found))


def test_share_bound_is_exact():
    for count, total in ((0, 59), (3, 40), (39, 40)):
        bound = share_upper_bound(count, total, ALPHA)
        assert stats.binom.cdf(count, total, bound) == pytest.approx(ALPHA, rel=1e3 * CLOSE)
    assert share_upper_bound(5, 5, ALPHA) == 1.0


def test_no_loss_in_59_pairs_is_the_classic_five_percent():
    assert share_upper_bound(0, 59, ALPHA) == pytest.approx(1 - ALPHA ** (1 / 59), rel=CLOSE)
    assert share_upper_bound(0, 58, ALPHA) > 0.05 > share_upper_bound(0, 59, ALPHA)


def test_count_bounds_are_exact():
    low, high = count_bounds(7, ALPHA)
    assert stats.poisson.sf(6, low) == pytest.approx(ALPHA, rel=1e3 * CLOSE)
    assert stats.poisson.cdf(7, high) == pytest.approx(ALPHA, rel=1e3 * CLOSE)
    assert count_bounds(0, ALPHA) == (0.0, pytest.approx(-np.log(ALPHA), rel=CLOSE))


def test_paired_bound_is_tangos_published_one():
    # Airway hyper-responsiveness before and after transplantation: 1 and 7 of 21 pairs differ,
    # 95 % interval -0.517 to -0.026 (Fagerland, Lydersen and Laake, 2014, table VII).
    high = paired_upper_bound(1, 7, 21, 0.025)
    low = -paired_upper_bound(7, 1, 21, 0.025)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


def test_paired_bound_inverts_the_score_test_of_a_maximised_likelihood():
    # Compared in float32's row: a maximum is found to half of the digits.
    lost, won, total = 9, 4, 80
    bound = paired_upper_bound(lost, won, total, ALPHA)

    def unlikelihood(share):
        alike = np.log(1 - 2 * share - bound)
        return -(lost * np.log(share + bound) + won * np.log(share) + (total - lost - won) * alike)

    best = minimize_scalar(
        unlikelihood, bounds=(0, (1 - bound) / 2), method="bounded", options={"xatol": 1e-12}
    ).x
    deviation = np.sqrt(total * (2 * best + bound - bound**2))
    score = (lost - won - total * bound) / deviation
    assert score == pytest.approx(-stats.norm.ppf(1 - ALPHA), rel=TOLERANCES["float32"].relative)


@given(
    lost=st.integers(0, 20),
    won=st.integers(0, 20),
    alike=st.integers(1, 60),
    more=st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_paired_bound_is_over_the_loss_and_shrinks_with_evidence(lost, won, alike, more):
    total = lost + won + alike
    bound = paired_upper_bound(lost, won, total, ALPHA)
    assert (lost - won) / total < bound <= 1
    more += 1
    assert paired_upper_bound(more * lost, more * won, more * total, ALPHA) < bound


def as_caught(lost, won, both):
    reference = np.array([True] * lost + [False] * won + [True] * both)
    challenger = np.array([False] * lost + [True] * won + [True] * both)
    return reference, challenger


def resampled(reference, challenger, resamples=400, seed=0):
    loss = reference.astype(float) - challenger
    weights = np.random.default_rng(seed).multinomial(
        loss.size, np.full(loss.size, 1 / loss.size), size=resamples
    )
    return weights @ loss / loss.size


# Long stretches between which nothing varies.
ALIKE = np.zeros(8)


def test_arms_that_agree_get_the_exact_bound_and_no_zero_width():
    arms = as_caught(0, 0, 60)
    estimate = recall_loss(*arms, np.zeros(400), ALIKE, incidents=60, blocks=100, alpha=ALPHA)
    assert estimate.value == 0
    assert estimate.high == pytest.approx(1 - ALPHA ** (1 / 60), rel=CLOSE)
    assert estimate.low == pytest.approx(-estimate.high, rel=CLOSE)
    assert "rule of three" in estimate.note


def test_agreement_on_events_that_start_together_proves_less():
    arms = as_caught(0, 0, 60)
    estimate = recall_loss(*arms, np.zeros(400), ALIKE, incidents=20, blocks=100, alpha=ALPHA)
    assert estimate.high == pytest.approx(1 - ALPHA ** (1 / 20), rel=CLOSE)


def test_swapping_the_arms_mirrors_the_loss():
    reference, challenger = as_caught(9, 4, 60)
    drawn = resampled(reference, challenger)
    evidence = {"incidents": 73, "blocks": 50, "alpha": ALPHA}
    one = recall_loss(reference, challenger, drawn, ALIKE, **evidence)
    other = recall_loss(challenger, reference, -drawn, ALIKE, **evidence)
    assert other.value == -one.value
    assert other.high == pytest.approx(-one.low, rel=CLOSE)
    assert other.low == pytest.approx(-one.high, rel=CLOSE)


def test_bounds_are_never_narrower_than_the_bootstraps():
    arms = as_caught(9, 4, 60)
    drawn = resampled(*arms) * 3  # a dependence that spreads the resamples
    estimate = recall_loss(*arms, drawn, ALIKE, incidents=73, blocks=50, alpha=ALPHA)
    low, high = percentile_bounds(drawn, ALPHA) or (np.nan, np.nan)
    assert estimate.low <= low < high <= estimate.high
    assert (estimate.design_effect or 0) > 5


def test_losses_in_one_long_stretch_prove_little():
    reference, challenger = as_caught(6, 2, 92)
    drawn = resampled(reference, challenger)
    evidence = {"incidents": 100, "blocks": 100, "alpha": ALPHA}
    spread = recall_loss(reference, challenger, drawn, np.full(8, 0.04), **evidence)
    # All six lost in the first stretch: without it the loss is -2 of 88.
    apart = np.r_[-2 / 88, np.full(7, 4.5 / 87.5)]
    bunched = recall_loss(reference, challenger, drawn, apart, **evidence)
    assert bunched.high > spread.high
    assert bunched.design_effect == pytest.approx(
        7 * apart.var() / ((8 / 100 - 0.04**2) / 100), rel=CLOSE
    )
    alone = recall_loss(reference, challenger, drawn, np.full(8, np.nan), **evidence)
    assert alone.design_effect == 100
    assert alone.high > 0.5


def test_a_metric_in_one_stretch_is_not_bounded():
    drawn = np.random.default_rng(0).normal(0.02, 0.01, 400)
    found = metric_loss(
        0.02, drawn, np.r_[np.nan, np.zeros(7)], incidents=40, blocks=40, alpha=ALPHA
    )
    assert found.high == pytest.approx(0.02 + 0.95, rel=CLOSE)


def test_a_metric_whose_resamples_agree_gets_no_zero_width():
    estimate = metric_loss(0.0, np.zeros(400), ALIKE, incidents=30, blocks=40, alpha=ALPHA)
    assert estimate.high == pytest.approx(1 - ALPHA ** (1 / 30), rel=CLOSE)


def test_a_metric_of_few_incidents_is_bound_by_students_t():
    drawn = np.random.default_rng(0).normal(0.02, 0.01, 4000)
    few = metric_loss(0.02, drawn, ALIKE, incidents=4, blocks=40, alpha=ALPHA)
    assert few.high == pytest.approx(0.02 + stats.t.ppf(0.95, 3) * drawn.std(), rel=CLOSE)
    few_blocks = metric_loss(0.02, drawn, ALIKE, incidents=40, blocks=4, alpha=ALPHA)
    assert few_blocks.high == few.high


def test_events_needed_follow_the_textbook():
    # 8.57 x discordance / margin^2: 5 % discordance and a margin of one point need 4,282 events.
    discordance, events = 0.05, 10_000
    estimate = Estimate(
        value=0.0, low=-0.01, high=0.003, standard_error=np.sqrt(discordance / events)
    )
    assert events_needed(estimate, 0.01, events, ALPHA) == 4282
    doubled = Estimate(
        value=0.0, low=-0.01, high=0.003, standard_error=np.sqrt(2 * discordance / events)
    )
    assert events_needed(doubled, 0.01, events, ALPHA) == 8564


def test_events_needed_hold_a_bound_that_is_wider_than_the_standard_error_says():
    # To halve the width of a bound takes four times the events; of an exact one, twice.
    estimate = Estimate(value=0.0, low=-0.2, high=0.2, standard_error=1e-6)
    assert events_needed(estimate, 0.1, 100, ALPHA) == 400
    exact = Estimate(value=0.0, low=-0.2, high=0.2, standard_error=0.0)
    assert events_needed(exact, 0.1, 100, ALPHA) == 200


def test_more_data_scales_events_to_days_and_admits_when_none_would_do():
    arms = as_caught(3, 0, 57)
    estimate = recall_loss(*arms, resampled(*arms), ALIKE, incidents=60, blocks=100, alpha=ALPHA)
    evidence = {
        "events": 60,
        "observed_days": 30.0,
        "minimum_events": 10,
        "minimum_days": 0.0,
        "discordance": 0.05,
        "alpha": ALPHA,
    }
    enough = more_data(estimate, limit=0.1, **evidence)
    assert enough.events is not None
    assert enough.events > 60
    assert enough.days == pytest.approx(enough.events / 2)
    assert enough.further_events == enough.events - 60
    hopeless = more_data(estimate, limit=0.05, **evidence)
    assert (hopeless.events, hopeless.days) == (None, None)
    assert hopeless.text.startswith("No amount")


def test_student_is_wider_than_normal_for_few_groups():
    assert student(ALPHA, 3) > student(ALPHA, 30) > stats.norm.ppf(1 - ALPHA)
