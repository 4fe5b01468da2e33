"""What a change is worth: the document's example, properties of the sums, and what is missing."""

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.pilot.judge_cases import latency_sample, make_measurements, make_plan

from sma_pilot.judge.findings import Findings
from sma_pilot.judge.latency import ArmLatency, Figure, measure_latency
from sma_pilot.judge.money import inform_cost
from sma_pilot.judge.result import Kpi, Result
from sma_pilot.judge.roi import (
    BASES,
    CASES,
    NEVER,
    Fallbacks,
    machines_kept,
    net_present_value,
    payback_years,
    value_of_change,
)
from sma_pilot.plan import Money
from sma_pilot.report.money import money_content

DOCUMENT = (Path(__file__).parents[2] / "docs" / "money.md").read_text(encoding="utf-8")
EXAMPLE = tomllib.loads(re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)[0])["money"]
RATE = 1000.0
EXACT = 1e-9

amounts = st.floats(0.0, 1e7)
ratios = st.floats(0.01, 3.0)


def example_latency() -> dict[str, ArmLatency]:
    none: dict[str, Any] = {"queries": 1000, "passes": 3, "percentiles": {}, "ratios": {}}
    ratio = Figure(value=0.599, interval=(0.499, 0.759))
    return {
        "incumbent": ArmLatency(**none, mean_ms=9.0),
        "candidate": ArmLatency(**none, mean_ms=9.0 * 0.599, mean_ratio=ratio),
    }


def handed(per_million: float, **known: Any) -> Fallbacks:
    """Fallbacks to the incumbent, each of which takes its 9 ms."""
    rate = per_million / 1e6
    return Fallbacks(rate=rate, seconds=rate * 0.009, **known)


SEEN = handed(RATE)


def appraise(money: dict[str, Any] | None, fallbacks: Fallbacks | None = SEEN) -> Findings:
    findings = Findings()
    plan = make_plan(**({} if money is None else {"money": money}))
    inform_cost(make_measurements(), example_latency(), plan, findings, fallbacks)
    return findings


def kpis_of(findings: Findings) -> dict[str, Kpi]:
    return {kpi.name: kpi for kpi in findings.kpis}


def without(*tables: str) -> dict[str, Any]:
    return {name: table for name, table in EXAMPLE.items() if name not in tables}


def documented() -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in DOCUMENT.splitlines() if line[:2] == "| "]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_documents_table_is_what_the_judge_says():
    kpis, table = kpis_of(appraise(EXAMPLE)), documented()
    names = {
        "candidate, a million events": "candidate_per_million_events",
        "candidate, a year": "candidate_per_year",
        "saved a year": "saving_per_year",
        "less running and fallbacks": "net_saving_per_year",
        "payback, years": "payback_years",
        "net present value": "npv",
    }
    places = [(basis, case) for basis in BASES for case in CASES]
    assert set(table) == {*names, "incumbent, a million events", "incumbent, a year"}
    for label, cells in table.items():
        assert len(cells) == len(places)
        for (basis, case), cell in zip(places, cells, strict=True):
            if label in names:
                kpi = kpis[f"cost/{basis}/{case}/{names[label]}"]
            else:
                million = "million" in label
                kpi = kpis[f"cost/{basis}/incumbent_per_{'million_events' if million else 'year'}"]
            digits = 2 if "." in cell else 0
            said = "never" if kpi.value is None else f"{kpi.value:,.{digits}f}"
            assert said == cell, (label, basis, case)
            assert kpi.status == "info"
    assert kpis["cost/setup"].value == 15_000
    assert kpis["cost/running_per_year"].value == 3_000
    assert kpis["cost/fallback_per_year"].value == pytest.approx(2_000, rel=EXACT)


def test_every_price_comes_with_its_source():
    findings = appraise(EXAMPLE)
    content = money_content(
        Result(verdict="go", reasons=(), kpis=tuple(findings.kpis), plan={}),
        Money.model_validate(EXAMPLE),
    )
    assert content is not None
    sources = [source for _, _, source in content["prices"]]
    for table in ("capacity", "setup", "running", "fallback", "appraisal"):
        assert EXAMPLE[table]["source"] in sources
        nameless = {**EXAMPLE, table: {**EXAMPLE[table], "source": ""}}
        with pytest.raises(ValidationError, match=f"{table}.source"):
            Money.model_validate(nameless)
    assert EXAMPLE["price_source"] in sources
    assert [row["cells"] for row in content["rows"]][6][3] == "never"


def test_words_name_both_bases_and_all_cases():
    (remark,) = appraise(EXAMPLE).remarks
    assert "10,000 EUR a year of machine time saved (conservative case 6,000" in remark.text
    assert "paid back in 3.0 years (in 15.0 years, in 2.0 years)" in remark.text
    assert "43,800 EUR a year; set-up is paid back in 0.4 years (never, in 0.4 years)" in (
        remark.text
    )
    assert "fallback" not in remark.text.lower()


@pytest.mark.parametrize(
    ("table", "lost"),
    [
        ("setup", {"payback_years", "npv"}),
        ("running", {"net_saving_per_year", "payback_years", "npv"}),
        ("fallback", {"net_saving_per_year", "payback_years", "npv"}),
        ("appraisal", {"npv"}),
    ],
)
def test_a_missing_price_is_not_measured_and_never_zero(table: str, lost: set[str]):
    findings = appraise(without(table))
    for name, kpi in kpis_of(findings).items():
        if name.count("/") == 3:
            unknown = kpi.status == "not_measured"
            assert unknown == (name.rsplit("/", 1)[1] in lost), name
            if unknown:
                assert kpi.value is None
                assert f"money.{table}" in kpi.note or table == "appraisal"
    assert f"`money.{table}`" in findings.remarks[0].text


def test_without_capacity_nothing_is_given_back():
    kpis = kpis_of(appraise(without("capacity")))
    assert kpis["cost/capacity/incumbent_per_year"].status == "not_measured"
    for case in CASES:
        assert kpis[f"cost/capacity/{case}/candidate_per_year"].status == "not_measured"
        assert kpis[f"cost/capacity/{case}/saving_per_year"].value == 0
        payback = kpis[f"cost/capacity/{case}/payback_years"]
        assert (payback.value, payback.status) == (None, "info")
        assert "Never" in payback.note


def test_unmeasured_fallbacks_are_left_out_and_that_is_said():
    findings = appraise(EXAMPLE, None)
    kpis = kpis_of(findings)
    assert kpis["cost/fallbacks_per_million"].status == "not_measured"
    assert kpis["cost/fallback_per_year"].status == "not_measured"
    net = kpis["cost/usage/base/net_saving_per_year"]
    assert net.value == pytest.approx(25_000 * 0.401 - 3_000, rel=EXACT)
    assert "Their cost is left out." in net.note
    assert "Their cost is in none of these figures." in findings.remarks[0].text
    never = kpis_of(appraise(without("fallback"), handed(0.0)))
    assert never["cost/fallback_per_year"].value == 0
    assert never["cost/usage/base/npv"].value is not None


def test_a_fallback_is_priced_once_by_the_event_or_by_the_look():
    seen = handed(RATE, looks=RATE / 1e6 / 50)  # a person looks at one in fifty
    by_event = kpis_of(appraise(EXAMPLE, seen))
    per_look = {**EXAMPLE, "fallback": {**EXAMPLE["fallback"], "amount": 0.05, "per": "look"}}
    by_look = kpis_of(appraise(per_look, seen))
    for kpis, unit in ((by_event, "event"), (by_look, "look")):
        assert kpis["cost/fallback_per_year"].value == pytest.approx(2_000, rel=EXACT)
        assert f"EUR for each {unit}." in kpis["cost/fallback_per_year"].note
    for name, kpi in by_event.items():
        same = kpi.value if kpi.value is None else pytest.approx(kpi.value, rel=EXACT)
        assert by_look[name].value == same, name
    nobody = kpis_of(appraise(per_look, handed(RATE)))
    assert nobody["cost/fallback_per_year"].value == 0
    content = money_content(
        Result(verdict="go", reasons=(), kpis=(), plan={}), Money.model_validate(per_look)
    )
    assert content is not None
    assert ("A look of a person", "0.05 EUR") in [price[:2] for price in content["prices"]]


def test_fallbacks_are_not_added_to_a_time_that_holds_them():
    apart = kpis_of(appraise(EXAMPLE))
    within = kpis_of(appraise(EXAMPLE, handed(RATE, in_service_time=True)))
    name = "cost/usage/base/candidate_per_million_events"
    assert apart[name].value == pytest.approx(7.50, rel=EXACT)
    assert within[name].value == pytest.approx(0.599 * 12.50, rel=EXACT)
    same = "cost/fallback_per_year"
    assert within[same].value == apart[same].value


def test_no_prices_and_no_times_measure_nothing():
    for findings in (appraise(None), Findings()):
        if not findings.kpis:
            inform_cost(make_measurements(), {}, make_plan(money=EXAMPLE), findings)
        cases = [kpi for kpi in findings.kpis if kpi.name.startswith(("cost/us", "cost/cap"))]
        assert {kpi.status for kpi in cases} == {"not_measured"}
        assert {kpi.value for kpi in cases} == {None}
        assert findings.remarks == []


def measured(**changes: Any) -> tuple[dict[str, ArmLatency], dict[str, Kpi]]:
    measurements = make_measurements()
    samples = {**measurements.latency, **changes}
    latency = measure_latency(samples, (95.0,), resamples=200, alpha=0.05, seed=0)
    findings = Findings()
    inform_cost(measurements, latency, make_plan(money=EXAMPLE), findings)
    return latency, kpis_of(findings)


def test_the_cases_are_the_interval_of_the_mean():
    latency, kpis = measured()
    ratio = latency["candidate"].mean_ratio
    assert ratio is not None
    assert latency["incumbent"].mean_ratio is None
    means = latency["candidate"].mean_ms / latency["incumbent"].mean_ms
    assert ratio.value == pytest.approx(means, rel=EXACT)
    assert ratio.interval[0] < ratio.value < ratio.interval[1]
    before = kpis["cost/usage/incumbent_per_year"].value
    assert before is not None
    for case, share in zip(CASES, (ratio.interval[1], ratio.value, ratio.interval[0]), strict=True):
        after = kpis[f"cost/usage/{case}/candidate_per_year"].value
        assert after == pytest.approx(share * before, rel=EXACT)


def test_a_noisy_machine_is_said_beside_the_money():
    name = "cost/usage/base/saving_per_year"
    _, noisy = measured(incumbent_again=latency_sample(1.6, seed=2))
    assert "noisier than the plan allows" in noisy[name].note
    _, quiet = measured()
    assert "noisier" not in quiet[name].note


@settings(deadline=None, max_examples=50)
@given(setup=amounts, saving=st.floats(-1e7, 1e7), years=st.integers(1, 40))
def test_payback_and_present_value_agree(setup: float, saving: float, years: int):
    payback = payback_years(setup, saving)
    undiscounted = net_present_value(setup, saving, 0.0, years)
    assert math.isclose(undiscounted, years * saving - setup, rel_tol=1e-9, abs_tol=1e-3)
    if abs(undiscounted) > 1e-3:
        assert (payback < years) == (undiscounted > 0)
    discounted = net_present_value(setup, saving, 0.1, years)
    if discounted > 1e-3:
        assert payback < years
    assert (payback == NEVER) == (saving <= 0 or payback == math.inf)


@settings(deadline=None, max_examples=50)
@given(rate=st.floats(0, 1), more=st.floats(0, 1), saving=amounts, years=st.integers(1, 40))
def test_a_higher_discount_rate_never_raises_what_savings_are_worth(rate, more, saving, years):
    now = net_present_value(0.0, saving, rate, years)
    assert net_present_value(0.0, saving, rate + more, years) <= now * (1 + 1e-12)


def priced(**changes: Any) -> Money:
    tables = {name: {**EXAMPLE[name], "amount": amount} for name, amount in changes.items()}
    return Money.model_validate({**EXAMPLE, **tables})


@settings(deadline=None, max_examples=50)
@given(
    ratio=ratios,
    table=st.sampled_from(["setup", "running", "fallback"]),
    price=amounts,
    more=amounts,
    basis=st.sampled_from(BASES),
)
def test_a_higher_price_never_makes_the_change_worth_more(ratio, table, price, more, basis):
    cheap, dear = (
        value_of_change(
            basis,
            seconds_per_event=0.009,
            ratio=ratio,
            money=priced(**{table: amount}),
            fallbacks=handed(RATE),
        )
        for amount in (price, price + more)
    )
    assert dear.npv is not None
    assert cheap.npv is not None
    assert dear.npv <= cheap.npv + 1e-9 * abs(cheap.npv)
    assert dear.payback_years is not None
    assert cheap.payback_years is not None
    assert dear.payback_years >= cheap.payback_years


@settings(deadline=None, max_examples=50)
@given(ratio=ratios, slower=st.floats(0, 1), rate=st.floats(0, 1e6), basis=st.sampled_from(BASES))
def test_a_slower_candidate_and_more_fallbacks_never_save_more(ratio, slower, rate, basis):
    def saved(ratio: float, rate: float | None) -> float:
        money = Money.model_validate(EXAMPLE)
        value = value_of_change(
            basis,
            seconds_per_event=0.009,
            ratio=ratio,
            money=money,
            fallbacks=None if rate is None else handed(rate),
        )
        assert value.net_saving_per_year is not None
        return value.net_saving_per_year

    slack = 1e-6
    assert saved(ratio + slower, RATE) <= saved(ratio, RATE) + slack
    assert saved(ratio, rate) <= saved(ratio, None) + slack


@settings(deadline=None, max_examples=50)
@given(ratio=ratios, machines=st.integers(1, 1000), data=st.data())
def test_machines_do_the_work_and_no_more_go_than_the_plan_says(ratio, machines, data):
    released = data.draw(st.integers(0, machines - 1))
    kept = machines_kept(ratio, machines, released)
    assert kept >= machines - released
    assert kept >= machines * ratio * (1 - 1e-9)
    assert kept <= max(machines - released, machines * ratio + 1)


def test_hand_computed_machines():
    assert machines_kept(0.29, 100, 99) == 29
    assert machines_kept(0.76, 4, 1) == 4
    assert machines_kept(0.60, 4, 1) == 3
    assert machines_kept(0.50, 4, 1) == 3
    assert machines_kept(0.50, 4, 3) == 2
    assert machines_kept(0.001, 4, 3) == 1
    assert machines_kept(1.30, 4, 3) == 6


def test_one_machine_has_to_serve():
    with pytest.raises(ValidationError, match="one machine has to serve"):
        Money.model_validate({**EXAMPLE, "capacity": {"machines": 2, "released": 2, "source": "x"}})
