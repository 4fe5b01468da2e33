"""The KPIs as tables, ready to print: gates, figures of each arm, comparisons of two arms."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from sma_pilot.judge.result import Kpi, Result
from sma_pilot.report.money import is_case
from sma_pilot.report.words import (
    GROUPS,
    format_interval,
    format_limit,
    format_number,
    format_value,
    kpi_group,
    kpi_label,
    kpi_topic,
    unit_name,
)


def gate_rows(result: Result, arms: Sequence[str]) -> list[dict[str, Any]]:
    """Table the gates: what each arm brings, how they compare, and the plan's limit."""
    return [
        {
            "label": kpi_label(kpi),
            "note": kpi.note,
            "by_arm": [_arm_figure(result, kpi, arm) for arm in arms],
            "value": format_value(kpi.value, kpi.unit),
            "interval": format_interval(kpi),
            "limit": format_limit(kpi),
            "status": kpi.status,
        }
        for kpi in result.kpis
        if kpi.is_gate
    ]


def _arm_figure(result: Result, gate: Kpi, arm: str) -> str:
    """Return what `arm` brings to a comparison; empty where no KPI says."""
    topic = gate.name.split("/", 1)[-1]
    topics = {
        "unscored_by_candidate": ["unscored_rows"],
        "unscored_by_incumbent": ["unscored_rows"],
        "ratio": ["weight_bytes", "state_bytes_per_entity"],
    }.get(topic)
    if topics is None:
        head, _, rest = topic.partition("_")
        topics = [{"ratio": f"{rest}_ms", "loss": rest}.get(head, topic)]
    parts = [
        kpi
        for kpi in result.kpis
        if kpi.arm == arm and kpi_group(kpi) == kpi_group(gate) and kpi_topic(kpi) in topics
    ]
    values = [kpi.value for kpi in parts if kpi.value is not None]
    if len(values) < len(topics):
        return ""
    return format_value(sum(values), parts[0].unit)


def arm_figures(result: Result, arms: Sequence[str]) -> list[dict[str, Any]]:
    """Table the KPIs of single arms: one row a topic, one column an arm."""
    groups = []
    own = [kpi for kpi in result.kpis if kpi.arm is not None and not kpi.is_gate]
    for title, members in groupby(sorted(own, key=_group_order), key=kpi_group):
        by_topic: dict[str, dict[str | None, Kpi]] = {}
        for kpi in members:
            by_topic.setdefault(kpi_topic(kpi), {})[kpi.arm] = kpi
        rows = [
            {
                "label": kpi_label(next(iter(cells.values()))),
                "unit": unit_name(next(iter(cells.values())).unit),
                "cells": [_cell(cells.get(arm)) for arm in arms],
            }
            for cells in by_topic.values()
        ]
        groups.append({"title": title, "rows": rows})
    return groups


def _cell(kpi: Kpi | None) -> dict[str, str]:
    if kpi is None:
        return {"value": "", "interval": ""}
    return {"value": format_number(kpi.value, kpi.unit), "interval": format_interval(kpi)}


def comparisons(result: Result) -> list[dict[str, Any]]:
    """Table the KPIs that are of no single arm and no gate, by group; money has its own table."""
    own = [kpi for kpi in result.kpis if kpi.arm is None and not kpi.is_gate and not is_case(kpi)]
    return [
        {
            "title": title,
            "rows": [
                {
                    "label": kpi_label(kpi),
                    "value": format_value(kpi.value, kpi.unit),
                    "interval": format_interval(kpi),
                    "note": kpi.note,
                }
                for kpi in members
            ],
        }
        for title, members in groupby(sorted(own, key=_group_order), key=kpi_group)
    ]


def _group_order(kpi: Kpi) -> int:
    order = list(GROUPS.values())
    return order.index(kpi_group(kpi)) if kpi_group(kpi) in order else len(order)
