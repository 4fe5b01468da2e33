"""What a look tells of one thing that was watched, and the figures that it tells it from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sma_pilot.judge.result import Kpi

Status = Literal["ok", "alarm", "open", "not_measured"]
Advice = Literal["re-pilot", "fall back"]

UNSCORED = "safety/unscored_share"
DRIFT = "drift/index"
COLLAPSED = "routing/collapsed_share"
ACTIVATION = "routing/activation_rate"


@dataclass(frozen=True, kw_only=True, eq=False)
class LookFigures:
    """What a look measured.

    Attributes
    ----------
    kpis : mapping name -> Kpi
        Under the names of ``result.json``, and `UNSCORED` and `COLLAPSED`.
    drift : mapping channel -> float
        Stability index of the new rows against the judged ones.
    rows, labelled_rows, events : int
        Of a task that judges by session, events are anomalous sessions.
    too_few : str
        Why no bound on quality can be trusted; empty when there are events and time enough.
    """

    kpis: Mapping[str, Kpi]
    drift: Mapping[str, float]
    rows: int
    labelled_rows: int
    events: int
    too_few: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was watched.

    Attributes
    ----------
    name : str
        That of the KPI it rests on.
    status : Status
        ``open``: measured, and too little of it to raise an alarm, or too uncertain.
    text : str
        A sentence or two.
    advice : Advice or None
        What an alarm recommends; None without one.
    value, low, high : float or None
        What was measured, and its interval.
    at_verdict : float or None
        The same on the judged rows.
    limit : float or None
    unit : str
    """

    name: str
    status: Status
    text: str
    advice: Advice | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    at_verdict: float | None = None
    limit: float | None = None
    unit: str = ""


def figures_of(
    name: str, kpi: Kpi | None, then: Mapping[str, Kpi], limit: float | None
) -> dict[str, Any]:
    """Return the fields of a finding that are numbers."""
    low, high = (None if kpi is None else kpi.interval) or (None, None)
    numbers = {
        "value": None if kpi is None else kpi.value,
        "low": low,
        "high": high,
        "at_verdict": value_of(then, name),
        "limit": limit,
    }
    return {
        "name": name,
        "unit": "" if kpi is None else kpi.unit,
        **{key: None if number is None else float(number) for key, number in numbers.items()},
    }


def value_of(kpis: Mapping[str, Kpi], name: str) -> float | None:
    """Return a KPI's value; None where there is none."""
    return kpis[name].value if name in kpis else None
