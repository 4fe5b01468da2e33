"""Saved views of MLflow's experiment page: the trials of a study by policy and pool, as charts.

MLflow keeps such views as tags of an experiment. Their form is its user interface's own and may
change with it: a view that a later MLflow does not understand is only not shown.
"""

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from sma_eval.entries import (
    ARM_TAG,
    FLOPS,
    LATENCY,
    LIVE,
    MEMORY,
    POLICY_TAG,
    POOL_TAG,
    STATUS_TAG,
    STUDY_TAG,
    TRIAL_TAG,
)
from sma_eval.study import Objective

VIEW_TAG = "mlflow.sharedViewState."
_MOST = 20_000  # characters of an experiment's tag that MLflow accepts
_RATE = "test/activation_rate"


def study_views(key: str, objective: Objective, arms: Iterable[str]) -> dict[str, str]:
    """Return the experiment's tags that hold the two views of a study.

    In the first the trials stand in groups, one for each policy and pool, and every chart shows
    means over their seeds; in the second each trial stands for itself.

    Parameters
    ----------
    key
        Of the study folder: an experiment may hold several.
    objective
        Its metric heads the page.
    arms
        Short names; their groups are folded at first.
    """
    trials = _state(key, objective)
    groups = trials | {
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": ARM_TAG}],
        },
        "useGroupedValuesInCharts": True,
    }
    folded = groups | {"groupsExpanded": {f"tag.{ARM_TAG}.{arm}": False for arm in arms}}
    by_arm, by_trial = _names(key)
    views = {by_arm: [folded, groups], by_trial: [trials]}
    texts = {name: [_text(name, state) for state in states] for name, states in views.items()}
    return {
        f"{VIEW_TAG}{name}": next(text for text in candidates if len(text) <= _MOST)
        for name, candidates in texts.items()
    }


def view_links(key: str, experiment_id: str) -> str:
    """Return markdown with the addresses of both views, relative to the server's root."""
    by_arm, by_trial = _names(key)
    link = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
    return (
        f"[charts by policy and pool]({link}{by_arm}&compareRunsMode=CHART), "
        f"[table of trials]({link}{by_trial}&compareRunsMode=TABLE)"
    )


def _names(key: str) -> tuple[str, str]:
    return f"arms-{key[:8]}", f"trials-{key[:8]}"


def _text(name: str, state: Mapping[str, Any]) -> str:
    now = int(time.time() * 1000)
    return json.dumps(
        {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    )


def _state(key: str, objective: Objective) -> dict[str, Any]:
    quality = f"test/{objective.metric}"
    # Title: columns and charts. MLflow itself adds the metrics that stand in none.
    sections = {
        "Quality": (2, [_bar(quality), _bar(f"validation/{objective.metric}")]),
        "Quality against cost": (3, [_scatter(cost, quality) for cost in (FLOPS, LATENCY, MEMORY)]),
        "Cost": (3, [_bar(FLOPS), _bar(LATENCY), _bar(MEMORY)]),
        "Training": (
            2,
            [
                _line(f"{LIVE}/validation_{objective.metric}"),
                _line(f"{LIVE}/train_loss"),
                _line(f"{LIVE}/activation_rate"),
                _bar(_RATE),
            ],
        ),
    }
    return {
        # Without the run of the study, under which its trials would be folded away.
        "searchFilter": f"tags.`{STUDY_TAG}` = '{key}' AND tags.`{TRIAL_TAG}` LIKE '%'",
        "orderByKey": f"metrics.`{quality}`",
        "orderByAsc": objective.mode == "min",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "startTime": "ALL",
        "datasetsFilter": [],
        "selectedColumns": [
            *(f"tags.`{name}`" for name in (POLICY_TAG, POOL_TAG, STATUS_TAG)),
            "params.`seed`",
            *(f"metrics.`{name}`" for name in (quality, _RATE, FLOPS, LATENCY, MEMORY)),
        ],
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": [
            {**chart, "uuid": _id(title, str(chart)), "metricSectionId": _id(title)}
            for title, (_, charts) in sections.items()
            for chart in charts
        ],
        "compareRunSections": [
            {
                "uuid": _id(title),
                "name": title,
                "display": True,
                "isReordered": True,
                "columns": columns,
                "cardHeight": 360,
            }
            for title, (columns, _) in sections.items()
        ],
        "isAccordionReordered": True,
    }


def _chart(kind: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "runsCountToCompare": 50,
        "deleted": False,
        "isGenerated": False,
        **fields,
    }


def _bar(metric: str) -> dict[str, Any]:
    return _chart("BAR", metricKey=metric)


def _line(metric: str) -> dict[str, Any]:
    selected = {"selectedMetricKeys": [metric], "xAxisKey": "step", "lineSmoothness": 0}
    return _chart("LINE", metricKey=metric, **selected)


def _scatter(x: str, y: str) -> dict[str, Any]:
    axes = {name: {"key": key, "type": "METRIC"} for name, key in (("xaxis", x), ("yaxis", y))}
    return _chart("SCATTER", **axes)


def _id(*text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, " ".join(text)))
