"""Money in words and KPIs: what serving costs, and what the change is worth. It decides nothing.

Three cases come from one measured interval, that of the candidate's mean service time over the
incumbent's: its upper end is the conservative case, the measured ratio the base, its lower end the
optimistic one. The incumbent's own time is taken as measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sma_pilot.judge.findings import Findings, confidence_text
from sma_pilot.judge.latency import ArmLatency
from sma_pilot.judge.measurements import (
    CANDIDATE,
    FIRST_OF,
    INCUMBENT,
    INCUMBENT_AGAIN,
    OFFLINE,
    SINGLE_STREAM,
    Measurements,
)
from sma_pilot.judge.result import Kpi
from sma_pilot.judge.roi import (
    BASES,
    CASES,
    MILLION,
    NEVER,
    Basis,
    Case,
    Cost,
    Fallbacks,
    Value,
    fallback_cost_per_year,
    incumbent_cost,
    serving_cost,
    value_of_change,
)
from sma_pilot.plan import Money, Plan

_NO_PRICES = "The plan gives no prices."
_NO_RATE = "How often the guard falls back was not measured."


def inform_cost(
    measurements: Measurements,
    latency: Mapping[str, ArmLatency],
    plan: Plan,
    findings: Findings,
    fallbacks: Fallbacks | None = None,
) -> None:
    """Add what serving costs by scenario, and what the change is worth on both bases.

    Parameters
    ----------
    fallbacks : Fallbacks or None
        What the guard does; None: not measured.
    """
    _inform_scenarios(measurements, latency, plan, findings)
    _inform_prices(plan.money, fallbacks, findings)
    appraisal = _Appraisal.of(latency, plan, fallbacks)
    for basis in BASES:
        for kpi in appraisal.kpis(basis):
            findings.inform(kpi)
        for case in CASES:
            kpi = appraisal.payback(basis, case)
            if appraisal.values.get((basis, case), Value()).payback_years == NEVER:
                findings.kpis.append(kpi)  # has no value, and was measured all the same
            else:
                findings.inform(kpi)
    if plan.money is not None and appraisal.values:
        findings.remark("cost/usage/base/saving_per_year", appraisal.text(plan.money))


def _inform_scenarios(
    measurements: Measurements,
    latency: Mapping[str, ArmLatency],
    plan: Plan,
    findings: Findings,
) -> None:
    money = plan.money
    currency = "" if money is None else money.currency
    note = _machine_note(money)
    for scenario in (OFFLINE, SINGLE_STREAM):
        per_year: dict[str, float | None] = {}
        for arm in plan.named_arms():
            rate = measurements.leg(arm, OFFLINE).rows_per_second
            seconds = 1 / rate if rate else None
            if scenario == SINGLE_STREAM:
                seconds = latency[arm].mean_ms / 1e3 if arm in latency else None
            cost = None
            if seconds is not None and money is not None:
                cost = serving_cost(seconds, money)
            per_year[arm] = None if cost is None else cost.per_year
            for name, value, unit in _cost_figures(cost, currency):
                findings.inform(
                    Kpi(
                        name=f"cost/{arm}_{scenario}_{name}",
                        arm=arm,
                        value=value,
                        unit=unit,
                        direction="lower",
                        note=note,
                    )
                )
        before, after = per_year[INCUMBENT], per_year[CANDIDATE]
        findings.inform(
            Kpi(
                name=f"cost/{scenario}_saving_per_year",
                value=None if before is None or after is None else before - after,
                unit=currency and f"{currency}/year",
                direction="higher",
                note=note,
            )
        )


def _cost_figures(cost: Cost | None, currency: str) -> list[tuple[str, float | None, str]]:
    return [
        ("per_million_events", None if cost is None else cost.per_million_events, currency),
        ("per_year", None if cost is None else cost.per_year, currency and f"{currency}/year"),
    ]


def _machine_note(money: Money | None) -> str:
    if money is None:
        return _NO_PRICES
    return (
        f"{money.price_per_hour:g} {money.currency} an hour ({money.price_source}), the machine "
        "always busy. On a reserved machine nothing is saved until capacity is given back."
    )


def _inform_prices(money: Money | None, fallbacks: Fallbacks | None, findings: Findings) -> None:
    """Add what the plan prices beside machine time, each with its source."""
    currency = "" if money is None else money.currency
    yearly = currency and f"{currency}/year"
    for name, price, unit in (
        ("setup", None if money is None else money.setup, currency),
        ("running_per_year", None if money is None else money.running, yearly),
    ):
        source = f"The plan gives no `money.{name.removesuffix('_per_year')}`."
        findings.inform(
            Kpi(
                name=f"cost/{name}",
                value=None if price is None else price.amount,
                unit=unit,
                direction="lower",
                note=f"Source: {price.source}." if price is not None else source,
            )
        )
    findings.inform(
        Kpi(
            name="cost/fallbacks_per_million",
            value=None if fallbacks is None else fallbacks.rate * MILLION,
            unit="",
            direction="lower",
            note=_NO_RATE
            if fallbacks is None
            else "Of a million events, those that the guard handed over.",
        )
    )
    handed = None if money is None else fallback_cost_per_year(money, fallbacks)
    note = _NO_RATE if fallbacks is None else "The plan gives no `money.fallback`."
    if money is not None and money.fallback is not None and fallbacks is not None:
        price = money.fallback
        note = f"{price.amount:g} {currency} for each {price.per}. Source: {price.source}."
    findings.inform(
        Kpi(
            name="cost/fallback_per_year",
            value=handed,
            unit=yearly,
            direction="lower",
            note=f"{note} Machine time of fallbacks is in the candidate's cost.",
        )
    )


@dataclass(frozen=True, kw_only=True)
class _Appraisal:
    """What the change is worth on each basis in each case; no values where times are missing."""

    money: Money | None
    before: Mapping[Basis, Cost | None]
    values: Mapping[tuple[Basis, Case], Value]
    note: str
    fallbacks: Fallbacks | None

    @classmethod
    def of(
        cls, latency: Mapping[str, ArmLatency], plan: Plan, fallbacks: Fallbacks | None
    ) -> "_Appraisal":
        money = plan.money
        measured = latency.get(CANDIDATE)
        ratio = None if measured is None else measured.mean_ratio
        if money is None or ratio is None or INCUMBENT not in latency:
            note = _NO_PRICES if money is None else "Service times were not measured."
            return cls(money=money, before={}, values={}, note=note, fallbacks=fallbacks)
        low, high = ratio.interval
        ratios: dict[Case, float] = {
            "conservative": max(high, ratio.value),
            "base": ratio.value,
            "optimistic": min(low, ratio.value),
        }
        seconds = latency[INCUMBENT].mean_ms / 1e3
        return cls(
            money=money,
            before={basis: incumbent_cost(basis, seconds, money) for basis in BASES},
            values={
                (basis, case): value_of_change(
                    basis,
                    seconds_per_event=seconds,
                    ratio=ratios[case],
                    money=money,
                    fallbacks=fallbacks,
                )
                for basis in BASES
                for case in CASES
            },
            note=_ratio_note(ratios, latency, plan),
            fallbacks=fallbacks,
        )

    def kpis(self, basis: Basis) -> Iterator[Kpi]:
        """Give every figure of a basis but the paybacks."""
        currency = "" if self.money is None else self.money.currency
        yearly = currency and f"{currency}/year"
        for name, value, unit in _cost_figures(self.before.get(basis), currency):
            yield Kpi(
                name=f"cost/{basis}/incumbent_{name}",
                value=value,
                unit=unit,
                direction="lower",
                note=self._basis_note(basis),
            )
        for case in CASES:
            value = self.values.get((basis, case), Value())
            for name, figure, unit in _cost_figures(value.candidate, currency):
                yield Kpi(
                    name=f"cost/{basis}/{case}/candidate_{name}",
                    value=figure,
                    unit=unit,
                    direction="lower",
                    note=self._basis_note(basis),
                )
            for name, figure, unit, note in (
                ("saving_per_year", value.saving_per_year, yearly, self._basis_note(basis)),
                ("net_saving_per_year", value.net_saving_per_year, yearly, self._net_note()),
                ("npv", value.npv, currency, self._npv_note()),
            ):
                yield Kpi(
                    name=f"cost/{basis}/{case}/{name}",
                    value=figure,
                    unit=unit,
                    direction="higher",
                    note=note,
                )

    def payback(self, basis: Basis, case: Case) -> Kpi:
        """Return the payback of a case; `NEVER` is no number, and the note says so."""
        years = self.values.get((basis, case), Value()).payback_years
        note = self._missing("setup") or self._net_note()
        return Kpi(
            name=f"cost/{basis}/{case}/payback_years",
            value=None if years == NEVER else years,
            unit="years",
            direction="lower",
            note="Never: nothing is saved that could pay the set-up." if years == NEVER else note,
        )

    def text(self, money: Money) -> str:
        """Say what the change is worth, on both bases, in plain words."""
        usage = self.values["usage", "base"]
        worst, best = (self.values["usage", case] for case in ("conservative", "optimistic"))
        words = [
            f"Money, if machines are paid by use: {_money(usage.saving_per_year)} "
            f"{money.currency} a year of machine time saved (conservative case "
            f"{_money(worst.saving_per_year)}, optimistic {_money(best.saving_per_year)})"
            + self._outcome("usage")
        ]
        if money.capacity is None or not money.capacity.released:
            words.append(
                "If they are paid whether busy or not: the plan gives back no machine"
                + self._outcome("capacity")
            )
        else:
            held = self.values["capacity", "base"].saving_per_year
            words.append(
                f"If they are paid whether busy or not: {_money(held)} {money.currency} a year"
                + self._outcome("capacity")
            )
        missing = [self._missing(name) for name in ("setup", "running", "appraisal")]
        words += [text for text in missing if text]
        if self.fallbacks is None:
            words.append(f"{_NO_RATE} Their cost is in none of these figures.")
        elif self.fallbacks.rate and self._missing("fallback"):
            words.append(self._missing("fallback"))
        return " ".join(words)

    def _outcome(self, basis: Basis) -> str:
        worst, base, best = (self.values[basis, case] for case in CASES)
        if base.payback_years is None:
            return "."
        payback = (
            f"; set-up is paid back {_years(base.payback_years)} "
            f"({_years(worst.payback_years)}, {_years(best.payback_years)})"
        )
        if base.npv is None or self.money is None or self.money.appraisal is None:
            return f"{payback}."
        return (
            f"{payback}, and the change is worth {_money(base.npv)} {self.money.currency} over "
            f"{self.money.appraisal.horizon_years} years ({_money(worst.npv)}, {_money(best.npv)})."
        )

    def _basis_note(self, basis: Basis) -> str:
        money = self.money
        if money is None or basis == "usage" or not self.values:
            return self.note
        if money.capacity is None:
            return "The plan gives no `money.capacity`: no machine is given back, nothing is saved."
        held = money.capacity
        return (
            f"{held.machines} machines, at most {held.released} given back ({held.source}); those "
            "that stay are as busy as today."
        )

    def _net_note(self) -> str:
        absent = self._missing("running") or (
            self._missing("fallback") if self.fallbacks and self.fallbacks.rate else ""
        )
        left_out = f" {_NO_RATE} Their cost is left out." if self.fallbacks is None else ""
        return (absent or "Less running cost and fallbacks.") + (left_out if not absent else "")

    def _npv_note(self) -> str:
        absent = self._missing("setup") or self._missing("appraisal")
        if absent or self.money is None or self.money.appraisal is None:
            return absent
        terms = self.money.appraisal
        return (
            f"{terms.horizon_years} years at {100 * terms.discount_rate:g} % a year "
            f"({terms.source}). {self._net_note()}"
        )

    def _missing(self, name: str) -> str:
        if self.money is None:
            return _NO_PRICES
        return "" if getattr(self.money, name) is not None else f"The plan gives no `money.{name}`."


def _ratio_note(ratios: Mapping[Case, float], latency: Mapping[str, ArmLatency], plan: Plan) -> str:
    note = (
        f"The candidate takes {ratios['base']:.3f} of the incumbent's machine time; conservative "
        f"{ratios['conservative']:.3f}, optimistic {ratios['optimistic']:.3f}, each a bound with "
        f"{confidence_text(plan.quality.alpha)} confidence."
    )
    twice = next((arm for arm in FIRST_OF if arm in latency), INCUMBENT_AGAIN)
    again = latency.get(twice)
    noise = None if again is None else again.mean_ratio
    band = plan.efficiency.noise_band
    if noise is not None and not (1 - band <= noise.interval[0] <= noise.interval[1] <= 1 + band):
        note += (
            f" The machine was noisier than the plan allows: the {FIRST_OF[twice]} against itself "
            f"takes {noise.interval[0]:.3f} to {noise.interval[1]:.3f}."
        )
    return note


def _years(years: float | None) -> str:
    if years is None:
        return "not measured"
    return "never" if years == NEVER else f"in {years:.1f} years"


def _money(amount: float | None) -> str:
    if amount is None:
        return "not measured"
    return f"{amount:,.0f}" if abs(amount) >= 100 else f"{amount:,.2f}"
