"""The guard: no row is lost, no exception passes, and each trouble is met as the plan says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.pilot.guard_cases import (
    BUSY,
    DOUBT,
    FINE,
    HUGE,
    IDLE,
    INF,
    NAN,
    RAISE,
    SLOW,
    Bench,
    Obedient,
    Ticks,
    rows_of,
)

from sma_core.model import Inputs
from sma_pilot.guard import REASONS, GuardedScorer
from sma_pilot.plan import GuardPlan

ORDERS = st.lists(st.integers(FINE, HUGE), min_size=1, max_size=30)
CUTS = st.lists(st.integers(1, 29), max_size=3).map(sorted)
WATCHFUL = {
    "hold_rows": 3,
    "window_rows": 8,
    "minimum_confidence": 0.7,
    "never_active": 0.0,
    "always_active": 1.0,
    "latency_budget_ms": 5.0,
}
PLANS = st.builds(
    lambda hold, window: GuardPlan(**{**WATCHFUL, "hold_rows": hold, "window_rows": window}),
    st.integers(1, 9),
    st.integers(8, 20),
)


def sums(count: int) -> list[float]:
    return np.arange(1, count + 1).cumsum().astype(float).tolist()


def check_tally(bench: Bench, rows: int) -> None:
    tally, plan = bench.guarded.tally, bench.guarded._plan
    events = bench.guarded.take_fallbacks()
    assert tally.rows == rows
    assert tally.rows == tally.candidate_rows + sum(tally.fallback_rows.values())
    begun = [event for event in events if event.model == "candidate"]
    assert sum(tally.fallbacks.values()) == len(begun)
    for reason in REASONS:
        assert tally.fallbacks[reason] == sum(event.reason == reason for event in begun)
        assert tally.fallback_rows[reason] <= plan.hold_rows * tally.fallbacks[reason]
    assert all(event.text for event in events)


@settings(max_examples=25, deadline=None)
@given(ORDERS, CUTS, PLANS, st.booleans())
def test_whatever_the_candidate_does_every_row_is_scored(orders, cuts, plan, one_by_one):
    bench = Bench(plan)
    rows = rows_of(orders)
    scores = bench.step(rows) if one_by_one else bench.run(rows, cuts)
    assert len(scores) == len(orders)
    assert all(math.isfinite(score) for score in scores)
    first = orders[0] == NAN  # the candidate stays in charge, the score is the incumbent's
    # A score below zero is the incumbent's.
    assert sum(score > 0 for score in scores) == bench.guarded.tally.candidate_rows - first
    assert bench.guarded.tally.looks == 0
    check_tally(bench, len(orders))


@settings(max_examples=25, deadline=None)
@given(ORDERS, ORDERS, CUTS, PLANS, st.booleans())
def test_no_exception_passes_when_both_models_fail(orders, others, cuts, plan, one_by_one):
    others = (others * 30)[: len(orders)]
    bench = Bench(plan)
    rows = rows_of(orders, others)
    scores = bench.step(rows) if one_by_one else bench.run(rows, cuts)
    lost = [t for t, score in enumerate(scores) if not math.isfinite(score)]
    # A row is lost where the incumbent fails on it, or cannot be primed with rows it fails on.
    assert all({NAN, INF, HUGE, RAISE} & set(others[: t + 1]) for t in lost)
    assert (bench.guarded.tally.looks > 0) >= bool([t for t in lost if t > 0])
    check_tally(bench, len(orders))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([FINE, RAISE, NAN, INF, DOUBT, IDLE, BUSY]), min_size=1, max_size=30),
    CUTS,
)
def test_rows_one_by_one_and_in_bulk_are_served_alike(orders, cuts):
    plan = GuardPlan(**{**WATCHFUL, "latency_budget_ms": None})
    bulk, single = Bench(plan), Bench(plan)
    rows = rows_of(orders)
    assert bulk.run(rows, [cut for cut in cuts if cut < len(orders)]) == single.step(rows)
    assert bulk.guarded.tally.fallback_rows == single.guarded.tally.fallback_rows
    assert bulk.guarded.tally.fallbacks == single.guarded.tally.fallbacks


def test_without_trouble_the_candidate_serves_alone():
    bench = Bench(GuardPlan(**WATCHFUL))
    rows = rows_of([FINE] * 50)
    assert bench.run(rows, [7, 20]) == sums(50)
    assert bench.incumbent.calls == 0
    assert bench.guarded.tally.priming_ns == bench.guarded.tally.incumbent_ns == 0
    assert bench.guarded.take_fallbacks() == []


# Each trouble.


@pytest.mark.parametrize(
    ("order", "reason", "words"),
    [
        (NAN, "non_finite", "the score was no number (nan)"),
        (INF, "non_finite", "the score was no number (inf)"),
        (HUGE, "non_finite", "the score was no number (inf)"),
        (DOUBT, "low_confidence", "the routing confidence was 0.550, under the limit of 0.7"),
    ],
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_trouble_is_met_explained_and_held(order, reason, words, one_by_one):
    bench = Bench(GuardPlan(**WATCHFUL))
    rows = rows_of([FINE] * 5 + [order] + [FINE] * 6)
    scores = bench.step(rows) if one_by_one else bench.run(rows)
    expected = sums(12)
    expected[5:8] = [-score for score in expected[5:8]]  # the row itself, and two more
    assert scores == expected
    (event,) = bench.guarded.take_fallbacks()
    assert (event.reason, event.to, event.renewed) == (reason, "incumbent", False)
    assert event.text == words
    assert event.row == (0 if one_by_one else 5)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_row_that_raises_keeps_the_candidate_out_while_it_would_be_primed_with_it(one_by_one):
    bench = Bench(GuardPlan(**WATCHFUL))
    rows = rows_of([FINE] * 5 + [RAISE] + [FINE] * 12)
    scores = bench.step(rows) if one_by_one else bench.run(rows)
    assert [t for t, score in enumerate(scores) if score < 0] == list(range(5, 14))
    events = bench.guarded.take_fallbacks()
    assert [event.renewed for event in events] == [False, True, True]
    assert {event.text for event in events} == {"the model raised RuntimeError: out of order <b>"}


def test_a_late_score_stands_and_the_next_rows_fall_back():
    bench = Bench(GuardPlan(**WATCHFUL))
    scores = bench.step(rows_of([FINE, FINE, SLOW, FINE, FINE, FINE, FINE]))
    expected = sums(7)
    expected[3:6] = [-score for score in expected[3:6]]
    assert scores == expected
    (event,) = bench.guarded.take_fallbacks()
    assert event.reason == "latency"
    assert event.value == pytest.approx(10.0001)
    assert event.text == "the score took 10 ms, over the budget of 5 ms"
    bulk = Bench(GuardPlan(**WATCHFUL))
    assert bulk.run(rows_of([FINE, SLOW, FINE])) == sums(3)  # the budget is that of one event


@pytest.mark.parametrize(
    ("order", "reason", "value"), [(IDLE, "never_active", 0.0), (BUSY, "always_active", 1.0)]
)
def test_a_collapsed_router_is_told_once_the_window_is_full(order, reason, value):
    bench = Bench(GuardPlan(**WATCHFUL))
    scores = bench.run(rows_of([order] * 20))
    assert [score < 0 for score in scores] == [False] * 7 + [True] * 13
    events = bench.guarded.take_fallbacks()
    # Eight rows, then every three: what it routed while it was primed is not forgotten.
    assert [event.row for event in events] == [7, 10, 13, 16, 19]
    assert [event.renewed for event in events] == [False, True, True, True, True]
    assert {(event.reason, event.value) for event in events} == {(reason, value)}
    recovered = Bench(GuardPlan(**WATCHFUL))
    scores = recovered.run(rows_of([order] * 8 + [FINE] * 10))
    assert [t for t, score in enumerate(scores) if score < 0] == [7, 8, 9]


def test_a_model_that_does_not_route_has_no_doubt_and_no_collapse():
    bench = Bench(GuardPlan(**WATCHFUL), routes=False)
    assert bench.run(rows_of([DOUBT, IDLE] * 15)) == sums(30)


def test_a_row_without_values_has_no_score_and_is_no_trouble():
    rows = rows_of([FINE] * 6)
    assert rows.numeric is not None
    rows.numeric[0, 3] = torch.nan
    bench = Bench(GuardPlan())
    scores = bench.run(rows)
    assert [math.isnan(score) for score in scores] == [False] * 3 + [True] + [False] * 2
    assert bench.guarded.take_fallbacks() == []


def test_a_first_row_that_the_candidate_cannot_score_is_the_incumbents():
    bench = Bench(GuardPlan())
    assert bench.run(rows_of([NAN, FINE, FINE])) == [-1.0, 3.0, 6.0]
    assert bench.guarded.take_fallbacks() == []


# Who takes over.


def test_a_person_leaves_rows_unscored_and_each_look_counts():
    plan = GuardPlan(fallback="person", hold_rows=3)
    bench = Bench(plan)
    scores = bench.run(rows_of([FINE, INF, FINE, FINE, INF, FINE, FINE, FINE, FINE]))
    lost = [t for t, score in enumerate(scores) if math.isnan(score)]
    assert lost == [1, 2, 3, 4, 5, 6]
    assert bench.incumbent.calls == 0
    assert bench.guarded.tally.looks == 2
    first, second = bench.guarded.take_fallbacks()
    assert (first.to, second.to, second.renewed) == ("person", "person", True)


def test_a_person_is_asked_once_a_fallback_when_the_incumbent_fails_too():
    bench = Bench(GuardPlan(hold_rows=4))
    scores = bench.run(rows_of([FINE, INF] + [FINE] * 4, [FINE, FINE, RAISE, INF, FINE, FINE]))
    lost = [t for t, score in enumerate(scores) if math.isnan(score)]
    assert lost[:2] == [2, 3]
    escalated = [event for event in bench.guarded.take_fallbacks() if event.to == "person"]
    assert [(event.model, event.row, event.reason) for event in escalated] == [
        ("incumbent", 2, "exception")
    ]
    assert bench.guarded.tally.looks == 1


def test_the_model_that_takes_over_knows_the_window_and_no_more():
    plan = GuardPlan(hold_rows=2, window_rows=8)
    bench = Bench(plan)
    scores = bench.run(rows_of([FINE] * 20 + [INF] + [FINE] * 3))
    # Primed with rows 13 to 20 (values, that is), the incumbent adds value 21.
    assert scores[20] == -float(sum(range(13, 22)))
    # The candidate is primed with values 15 to 22 and adds 23.
    assert scores[22] == float(sum(range(15, 24)))


def test_the_cost_of_a_fallback_is_the_time_it_took():
    bench = Bench(GuardPlan(hold_rows=2, window_rows=8))
    bench.step(rows_of([FINE] * 9 + [INF] + [FINE] * 3))
    # Incumbent: primed with 8 rows, two of its own; candidate: primed with 8. 100 ns a row.
    assert bench.guarded.tally.priming_ns == 100 * (8 + 8)
    assert bench.guarded.tally.incumbent_ns == 100 * 2
    assert bench.guarded.tally.candidate_ns == 100 * (9 + 1 + 2)


# State.


def test_sequences_of_a_batch_do_not_know_each_other_and_select_copies():
    plan = GuardPlan(hold_rows=2, window_rows=8)
    bench = Bench(plan)
    numeric = [rows_of(orders).numeric for orders in ([FINE] * 6, [FINE, INF] + [FINE] * 4)]
    both = Inputs(numeric=torch.cat([part for part in numeric if part is not None]))
    state = bench.guarded.start(2)
    scores = bench.guarded.score(both.map(lambda tensor: tensor[:, :3]), state).score
    assert scores.tolist() == [[1, 3, 6], [1, -3, -6]]
    (event,) = bench.guarded.take_fallbacks()
    assert (event.lane, event.row) == (1, 1)
    twin = state.select(torch.tensor([1, 0]))
    rest = both.map(lambda tensor: tensor[:, 3:])
    first = bench.guarded.score(rest, state).score
    again = bench.guarded.score(rest, twin).score
    assert first.tolist() == again.flip(0).tolist() == [[10, 15, 21], [10, 15, 21]]
    assert state.nbytes == twin.nbytes > 0


def test_rows_that_are_kept_are_copies():
    bench = Bench(GuardPlan(hold_rows=2, window_rows=8))
    state = bench.guarded.start(1)
    buffer = rows_of([FINE])
    assert buffer.numeric is not None
    for value in (1.0, 2.0, 3.0):  # a feed that writes each row into the same memory
        buffer.numeric[0, 0, 2] = value
        bench.guarded.step(buffer, state)
    buffer.numeric[0, 0] = torch.tensor([float(RAISE), FINE, 4.0])
    assert bench.guarded.step(buffer, state)[0] == -10.0


def test_rows_of_another_shape_go_to_the_fallback_and_no_error_passes():
    bench = Bench(GuardPlan())
    state = bench.guarded.start(1)
    score, _ = bench.guarded.step(Inputs(numeric=torch.ones(1, 1, 1)), state)
    assert math.isnan(score)
    assert [event.to for event in bench.guarded.take_fallbacks()] == ["incumbent", "person"]


def test_an_interrupt_passes(monkeypatch):
    bench = Bench(GuardPlan())

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.candidate, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run(rows_of([FINE] * 3))


# The plan.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"person_cost": 4.0}, r"belongs to `money`.* write \[money.fallback\] with amount, per"),
        ({"never_active": 0.5, "always_active": 0.5}, "never_active < always_active"),
        ({"minimum_confidence": 1.0}, "minimum_confidence"),
        ({"latency_budget_ms": 0}, "latency_budget_ms"),
        ({"drift": 1}, "drift"),
    ],
)
def test_a_wrong_guard_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        GuardPlan(**fields)


def test_a_guard_without_what_it_needs_is_refused():
    model = Obedient(0, 1.0, Ticks())
    with pytest.raises(ValueError, match="incumbent's scorer"):
        GuardedScorer(model, None, GuardPlan(), None, Ticks())
    with pytest.raises(ValueError, match="reference of the training slice"):
        GuardedScorer(model, model, GuardPlan(drift_limit=0.2), None, Ticks())
