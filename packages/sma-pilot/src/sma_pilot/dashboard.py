"""A saved view of MLflow's experiment page: what matters of each run, as columns and as bars.

MLflow keeps such views as tags of an experiment. Their form is its user interface's own and may
change with it: a view that a later MLflow does not understand is only not shown.
"""

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sma_pilot.report.entries import (
    ARM_TAG,
    DECISION_TAG,
    GATE_SECTION,
    KIND_TAG,
    LOOK_TAG,
    RECOMMENDATION_TAG,
    SIGNED_BY_TAG,
    VERDICT_TAG,
)

VIEW = "pilot"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"

_TAGS = (VERDICT_TAG, DECISION_TAG, SIGNED_BY_TAG, ARM_TAG, KIND_TAG)
# Sections of the page: kind and columns of its charts, and how the names of its metrics begin.
_PILOTS = f"{GATE_SECTION}/"
_LOOKS = "Each limit of the plan, look by look"
_AFTER = "After the go, look by look"
_AFTER_TAGS = (LOOK_TAG, RECOMMENDATION_TAG)
_SECTIONS: Mapping[str, tuple[str, int, Sequence[str]]] = {
    # Two columns put each figure beside its limit.
    "Limits of the plan, pilot by pilot": ("BAR", 2, [_PILOTS]),
    _LOOKS: ("LINE", 2, []),
    _AFTER: ("LINE", 2, []),
    "Quality of each arm": (
        "BAR",
        3,
        [
            "quality/event_recall",
            "quality/average_precision",
            "quality/vus_pr",
            "quality/false_alarms_per_day",
            "quality/median_",
        ],
    ),
    "Time, memory and cost of each arm": (
        "BAR",
        3,
        [
            "latency/p",
            "throughput/rows_per_second",
            "memory/weight_bytes",
            "memory/state_bytes_per_entity",
            "memory/peak_",
            "cost/",
        ],
    ),
    "Routing": ("BAR", 3, ["routing/"]),
    "Training": ("LINE", 3, ["training/"]),
}


def view_link(experiment_id: str) -> str:
    """Return the view's address, relative to the server's root."""
    query = f"viewStateShareKey={VIEW}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"#/experiments/{experiment_id}/runs?{query}"


def shared_view(
    pilot: Iterable[str],
    arms: Iterable[str],
    *,
    looks: bool = False,
    watched: Iterable[str] = (),
) -> str:
    """Return the view's JSON text.

    Parameters
    ----------
    pilot, arms : iterable of str
        Names of the metrics that runs of pilots and of arms have.
    looks : bool
        Whether the metrics of pilots are curves over looks.
    watched : iterable of str
        Metrics of the looks after a go; none where there was none.
    """
    pilot, watched = list(pilot), list(watched)
    limits = [name for name in pilot if name.startswith(_PILOTS)]
    limits = sorted(name for name in limits if not name.endswith(("_low", "_high")))
    known = [*limits, *sorted(arms)]
    sections, charts = [], []
    for title, (kind, columns, heads) in _SECTIONS.items():
        section = _id(title)
        names = [name for head in heads for name in known if name.startswith(head)]
        charts += [_chart(kind, [name], section) for name in names]
        if looks and title == _LOOKS:
            gates = [name for name in limits if not name.endswith("_limit")]
            trends = [[n for n in pilot if n in _with_limit(gate)] for gate in gates]
            charts += [_chart(kind, trend, section) for trend in trends]
            names = gates
        if title == _AFTER:
            charts += [_chart(kind, _with_limit(name), section) for name in watched]
            names = watched
        sections.append(
            {
                "uuid": section,
                "name": title,
                "display": bool(names),
                "isReordered": True,
                "columns": columns,
                "cardHeight": 260,
            }
        )
    state = {
        "searchFilter": "",
        # Newest pilot first, its arms right after it: an order by start would fold these away.
        "orderByKey": "attributes.end_time",
        "orderByAsc": False,
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "startTime": "ALL",
        "datasetsFilter": [],
        "selectedColumns": [
            *(f"tags.`{name}`" for name in (*_TAGS, *(_AFTER_TAGS if watched else ()))),
            *(f"metrics.`{name}`" for name in limits if not name.endswith("_limit")),
        ],
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
    }
    now = int(time.time() * 1000)
    view = {"name": VIEW, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return json.dumps(view)


def _with_limit(gate: str) -> tuple[str, ...]:
    return (gate, f"{gate}_low", f"{gate}_high", f"{gate}_limit")


def _chart(kind: str, metrics: Sequence[str], section: str) -> dict[str, Any]:
    chart = {
        "uuid": _id(f"{section} {metrics[0]}"),
        "type": kind,
        "metricKey": metrics[0],
        "runsCountToCompare": 20,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
    }
    if kind == "LINE":
        chart |= {"selectedMetricKeys": list(metrics), "xAxisKey": "step", "lineSmoothness": 0}
    return chart


def _id(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, text))
