"""What a look finds is a pure function of figures and limits: by hand, and as properties."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pilot.monitor_cases import monitor_plan
from tests.tolerances import TOLERANCES

from sma_pilot.guard.drift import BINS, stability_index
from sma_pilot.judge.result import Kpi
from sma_pilot.monitor.finding import ACTIVATION, COLLAPSED, DRIFT, UNSCORED, Finding, LookFigures
from sma_pilot.monitor.recommendation import find, recommend
from sma_pilot.plan import Plan

LOSS = "quality/loss_event_recall"
OWN = "quality/candidate_event_recall"
OTHER = "quality/incumbent_event_recall"
ALARMS = "quality/candidate_false_alarms_per_day"
RATE = "routing/rate/layer 0 swiglu"
PLAN = monitor_plan()
GRAVITY = ("keep", "re-pilot", "fall back")


def kpi(name: str, value: float | None, *interval: float) -> Kpi:
    return Kpi(name=name, value=value, unit="", interval=interval or None)  # pyright: ignore[reportArgumentType]


def kpis(**changed: Kpi) -> dict[str, Kpi]:
    """Figures without any trouble."""
    usual = [
        kpi(LOSS, 0.02, -0.05, 0.09),
        kpi(OWN, 0.9, 0.8, 0.97),
        kpi(OTHER, 0.92, 0.8, 0.97),
        kpi(ALARMS, 21.0, 15.0, 28.0),
        kpi(ACTIVATION, 0.2),
        kpi(RATE, 0.3),
        kpi(COLLAPSED, 0.0),
        kpi(UNSCORED, 0.0),
        kpi("latency/ratio_p95", None),
    ]
    return {own.name: own for own in (*usual, *changed.values())}


def figures(*changed: Kpi, **fields: Any) -> LookFigures:
    """A look without any trouble, but for what is given."""
    usual: dict[str, Any] = {
        "kpis": kpis(**{str(i): own for i, own in enumerate(changed)}),
        "drift": {"x": 0.05, "y": 0.02},
        "rows": 5000,
        "labelled_rows": 5000,
        "events": 40,
    }
    return LookFigures(**usual | fields)


def found(now: LookFigures, name: str, plan: Plan = PLAN) -> Finding:
    return next(own for own in find(now, kpis(), plan) if own.name == name)


def advised(now: LookFigures, plan: Plan = PLAN) -> str:
    return recommend(find(now, kpis(), plan))[0]


def test_nothing_over_a_limit_keeps() -> None:
    findings = find(figures(), kpis(), PLAN)
    assert {own.status for own in findings} == {"ok", "not_measured"}
    assert recommend(findings) == ("keep", "No change is over a limit of the plan.")


@pytest.mark.parametrize(
    ("changed", "name", "status", "advice"),
    [
        (kpi(LOSS, 0.3, 0.25, 0.4), LOSS, "alarm", "fall back"),  # the limit is 0.2
        (kpi(LOSS, 0.3, 0.1, 0.4), LOSS, "alarm", "re-pilot"),
        (kpi(LOSS, 0.3, -0.1, 0.6), LOSS, "open", None),
        (kpi(LOSS, 0.2, 0.1, 0.6), LOSS, "ok", None),
        (kpi(LOSS, -0.1, -0.2, 0.0), LOSS, "ok", None),
        (kpi(OWN, 0.6, 0.5, 0.7), OWN, "alarm", "re-pilot"),  # 0.9 at the verdict
        (kpi(OWN, 0.6, 0.3, 0.95), OWN, "open", None),
        (kpi(OWN, 0.71, 0.6, 0.8), OWN, "ok", None),
        (kpi(ALARMS, 41.0, 30.0, 60.0), ALARMS, "alarm", "re-pilot"),  # 20 declared, twice allowed
        (kpi(ALARMS, 41.0, 15.0, 90.0), ALARMS, "open", None),
        (kpi(ALARMS, 40.0, 30.0, 60.0), ALARMS, "ok", None),
        (kpi(UNSCORED, 0.02), UNSCORED, "alarm", "fall back"),
        (kpi(UNSCORED, 0.01), UNSCORED, "ok", None),
        (kpi(UNSCORED, None), UNSCORED, "not_measured", None),
        (kpi(ACTIVATION, 0.31), ACTIVATION, "alarm", "re-pilot"),  # 0.2 at the verdict, 1.5 times
        (kpi(ACTIVATION, 0.13), ACTIVATION, "alarm", "re-pilot"),
        (kpi(ACTIVATION, 0.14), ACTIVATION, "ok", None),
        (kpi(COLLAPSED, 0.06), COLLAPSED, "alarm", "fall back"),
        (kpi(COLLAPSED, 0.05), COLLAPSED, "ok", None),
        (kpi(COLLAPSED, None), COLLAPSED, "not_measured", None),
        (kpi(RATE, 0.0), "routing/collapsed_submodules", "alarm", "re-pilot"),
        (kpi(RATE, 1.0), "routing/collapsed_submodules", "alarm", "re-pilot"),
        (kpi("latency/ratio_p95", 2.5, 2.2, 2.8), "latency/ratio_p95", "alarm", "re-pilot"),
        (kpi("latency/ratio_p95", 2.5, 1.9, 2.8), "latency/ratio_p95", "open", None),
        (kpi("latency/ratio_p95", 0.5, 0.4, 0.6), "latency/ratio_p95", "ok", None),
    ],
)
def test_one_figure_at_a_time(changed: Kpi, name: str, status: str, advice: str | None) -> None:
    own = found(figures(changed), name)
    assert (own.status, own.advice) == (status, advice)
    assert advised(figures(changed)) == (advice or "keep")


def test_drift_counts_the_channels_that_the_plan_asks_for() -> None:
    now = figures(drift={"a": 0.9, "b": 0.3, "c": 0.1})
    for channels, value, advice in ((1, 0.9, "re-pilot"), (2, 0.3, "re-pilot"), (3, 0.1, "keep")):
        plan = monitor_plan(monitor={"drift_channels": channels})
        assert found(now, DRIFT, plan).value == value
        assert advised(now, plan) == advice
    # More than there are: the least drifted one.
    assert found(now, DRIFT, monitor_plan(monitor={"drift_channels": 9})).value == 0.1


def test_a_policy_that_always_ran_has_not_collapsed_since() -> None:
    then = kpis(a=kpi(COLLAPSED, 1.0), b=kpi(RATE, 1.0), c=kpi(ACTIVATION, 1.0))
    now = figures(kpi(COLLAPSED, 1.0), kpi(RATE, 1.0), kpi(ACTIVATION, 1.0))
    assert recommend(find(now, then, PLAN))[0] == "keep"


def test_calibration_is_watched_where_scores_are_probabilities() -> None:
    error = "quality/candidate_calibration_error"
    document = PLAN.model_dump(mode="json") | {"task": {"kind": "alarm", "horizon": "30m"}}
    plan = Plan.model_validate(document)
    then = kpis(a=kpi(error, 0.1))
    for value, status in ((0.16, "alarm"), (0.14, "ok"), (None, "not_measured")):
        findings = find(figures(kpi(error, value)), then, plan)
        assert {own.name: own.status for own in findings}[error] == status
    assert error not in {own.name for own in find(figures(), then, PLAN)}


def test_silence_is_no_proof() -> None:
    now = figures(kpi(LOSS, None), kpi(OWN, None), kpi(ALARMS, None), labelled_rows=0, events=0)
    findings = find(now, kpis(), PLAN)
    texts = {own.name: own.text for own in findings}
    assert texts[LOSS] == "Event recall: not measured: no labels yet."
    assert recommend(findings)[0] == "keep"
    assert "is not known" in recommend(findings)[1]


def test_a_fallback_is_graver_than_what_comes_first() -> None:
    now = figures(kpi(OWN, 0.5, 0.4, 0.6), kpi(COLLAPSED, 1.0))
    advice, why = recommend(find(now, kpis(), PLAN))
    assert advice == "fall back"
    assert why.startswith("Go back to the incumbent (2 alarms). The router has collapsed.")


@given(
    loss=st.floats(-1, 1),
    low=st.floats(0, 0.5),
    high=st.floats(0, 0.5),
    drift=st.floats(0, 20),
    rate=st.floats(0, 1),
    collapsed=st.floats(0, 1),
    rows=st.integers(1, 10**9),
)
def test_effects_and_not_rows_raise_alarms(
    loss: float,
    low: float,
    high: float,
    drift: float,
    rate: float,
    collapsed: float,
    rows: int,
) -> None:
    """However many rows there are, what is within its limit is no alarm; whatever it is, few are
    none, and a worse figure never has a milder advice."""
    now = figures(
        kpi(LOSS, loss, loss - low, loss + high),
        kpi(ACTIVATION, rate),
        kpi(COLLAPSED, collapsed),
        drift={"x": drift},
        rows=rows,
    )
    findings = {own.name: own for own in find(now, kpis(), PLAN)}
    enough = rows >= 1000
    assert (findings[LOSS].status == "alarm") == (loss > 0.2 and loss - low > 0)
    assert (findings[DRIFT].status == "alarm") == (enough and drift > 0.25)
    assert (findings[COLLAPSED].status == "alarm") == (enough and collapsed > 0.05)
    for own in findings.values():
        assert (own.advice is not None) == (own.status == "alarm")
    worse = replace(
        now,
        kpis={**now.kpis, LOSS: kpi(LOSS, loss + 0.1, loss + 0.1 - low, loss + 0.1 + high)},
        drift={"x": drift + 1},
    )
    assert GRAVITY.index(advised(worse)) >= GRAVITY.index(advised(now))


@given(
    counts=st.lists(st.integers(0, 1000), min_size=BINS + 1, max_size=BINS + 1),
    factor=st.integers(1, 50),
)
def test_the_index_is_a_size_and_no_count(counts: list[int], factor: int) -> None:
    """Rows like the reference have none, and it stays within what their shares allow."""
    own = np.array([counts])
    total = own.sum()
    share = own / max(total, 1) if total else np.full(own.shape, 1 / own.size)
    assert stability_index(own * factor, share)[0] <= TOLERANCES["float64"].relative + (
        0.0 if total else np.inf
    )
    shifted = np.roll(own, 1, axis=1)
    assert stability_index(shifted * factor, share)[0] >= 0


def test_the_index_by_hand() -> None:
    # 60 of 100 rows and 40; the reference has half and half, as half a row is in every bin.
    p, q = np.array([60.5, 40.5]) / 101, np.array([50.5, 50.5]) / 101
    expected = float(((p - q) * np.log(p / q)).sum())
    found = stability_index(np.array([[60, 40]]), np.array([[0.5, 0.5]]))
    assert found == pytest.approx([expected], rel=TOLERANCES["float64"].relative)
