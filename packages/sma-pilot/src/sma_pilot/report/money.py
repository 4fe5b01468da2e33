"""The page's section on money: three cases on two bases, and where each price is from."""

from typing import Any

from sma_pilot.judge.result import Kpi, Result
from sma_pilot.judge.roi import BASES, CASES
from sma_pilot.plan import Money
from sma_pilot.report.svg import printable
from sma_pilot.report.words import format_number, minus

_BASIS_TITLES = {"usage": "paid by use", "capacity": "paid whether busy or not"}
_ROWS = {
    "incumbent_per_million_events": "Incumbent, a million events",
    "candidate_per_million_events": "Candidate, a million events",
    "incumbent_per_year": "Incumbent, a year",
    "candidate_per_year": "Candidate, a year",
    "saving_per_year": "Machine time saved a year",
    "net_saving_per_year": "The same, less running cost and fallbacks",
    "payback_years": "Set-up is paid back in",
    "npv": "Net present value",
}
_SINGLE_CASE = ("incumbent_per_million_events", "incumbent_per_year")


def is_case(kpi: Kpi) -> bool:
    """Whether a KPI is a figure of one basis, which this section's table has a place for."""
    return kpi.name.startswith(tuple(f"cost/{basis}/" for basis in BASES))


def payback_text(kpi: Kpi) -> str:
    """Write a payback: years, `never`, or that it was not measured."""
    if kpi.value is not None:
        return f"{kpi.value:.1f} years"
    return "not measured" if kpi.status == "not_measured" else "never"


def money_content(result: Result, money: Money | None) -> dict[str, Any] | None:
    """Return the section's words and tables; None when the plan has no prices."""
    if money is None:
        return None
    kpis = {kpi.name: kpi for kpi in result.kpis if is_case(kpi)}
    rows = []
    for name, label in _ROWS.items():
        cells = []
        for basis in BASES:
            for case in CASES:
                middle = "" if name in _SINGLE_CASE else f"{case}/"
                kpi = kpis.get(f"cost/{basis}/{middle}{name}")
                cells.append("not measured" if kpi is None else _cell(kpi))
        rows.append({"label": label, "cells": cells})
    notes = [
        kpis[name].note
        for name in (
            "cost/usage/base/saving_per_year",
            "cost/capacity/base/saving_per_year",
            "cost/usage/base/net_saving_per_year",
        )
        if name in kpis
    ]
    return {
        "currency": money.currency,
        "bases": [_BASIS_TITLES[basis] for basis in BASES],
        "cases": CASES,
        "rows": rows,
        "notes": list(dict.fromkeys(notes)),
        "prices": _prices(money),
    }


def _cell(kpi: Kpi) -> str:
    if kpi.name.endswith("payback_years"):
        return payback_text(kpi)
    return format_number(kpi.value, kpi.unit)


def _prices(money: Money) -> list[tuple[str, str, str]]:
    """List what each figure rests on: what it is, how much, who says so."""
    currency = money.currency
    none = ("not in the plan", "")

    def amount(value: float, per: str) -> str:
        return f"{minus(f'{value:,.12g}')} {currency}{per}"

    capacity, terms = none, none
    if money.capacity is not None:
        held = money.capacity
        capacity = (f"{held.machines:,}, at most {held.released:,} given back", held.source)
    if money.appraisal is not None:
        rate = f"{100 * money.appraisal.discount_rate:g} % a year"
        terms = (f"{money.appraisal.horizon_years} years, {rate}", money.appraisal.source)
    per_look = money.fallback is not None and money.fallback.per == "look"
    fallback = "A look of a person" if per_look else "An event that the guard hands over"
    listed = [
        ("Machine, an hour", amount(money.price_per_hour, ""), money.price_source),
        ("Events a year", f"{money.events_per_year:,.0f}", ""),
        ("Machines that serve today", *capacity),
    ]
    for name, price, per in (
        ("Set-up, once", money.setup, ""),
        ("Running cost beside machines", money.running, " a year"),
        (fallback, money.fallback, ""),
    ):
        listed.append(
            (name, *none) if price is None else (name, amount(price.amount, per), price.source)
        )
    listed.append(("Horizon and discount rate", *terms))
    return [(name, value, printable(source, 400)) for name, value, source in listed]
