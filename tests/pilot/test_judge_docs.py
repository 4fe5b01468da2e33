"""What the project promises of the judge: its documented figures, and that it sees no clock."""

import ast
import re
from dataclasses import fields, replace
from pathlib import Path

from tests.pilot.judge_cases import (
    make_class_plan,
    make_measurements,
    make_plan,
    with_classes,
)

import sma_pilot.judge
from sma_pilot.guard import REASONS
from sma_pilot.judge.measurements import Leg
from sma_pilot.judge.metrics import METRICS
from sma_pilot.judge.result import Kpi, MoreData, Reason, Result
from sma_pilot.judge.verdict import judge

DOCUMENT = (Path(__file__).parents[2] / "docs" / "result.md").read_text(encoding="utf-8")


def emitted() -> set[str]:
    """Names of all KPIs of every task, baseline, routing, device and recorded scores included."""
    measurements = make_measurements(candidate_misses=8)
    scores = {
        name: {**arms, "baseline": arms["candidate"]} for name, arms in measurements.scores.items()
    }
    latency = {**measurements.latency, "baseline": measurements.latency["candidate"]}
    routed = replace(measurements.leg("candidate", "offline"), submodule_rates={"swiglu": 0.5})
    legs = {**measurements.legs, "candidate/offline": routed, "baseline/offline": Leg()}
    rich = replace(measurements, scores=scores, latency=latency, legs=legs)
    guard = {"latency_budget_ms": 1, "minimum_confidence": 0.5, "drift_limit": 1}
    guard |= {"never_active": 0, "always_active": 1}
    sections = {"arms": {"baseline": {"kind": "pca"}}, "replay": {"device": "cuda"}}
    sections["guard"] = guard
    sections["replay"] |= {"scenarios": ["multi_stream", "server"], "server": {}}
    results = [judge(rich, make_plan(**sections))]
    alarm = {"kind": "alarm", "horizon": "30m"}
    results.append(judge(measurements, make_plan(task=alarm)))
    life = {"kind": "remaining_life", "horizon": "30m"}
    results.append(judge(measurements, make_plan(task=life)))
    results.append(judge(with_classes(measurements), make_class_plan()))
    recorded = {"incumbent": {"kind": "recorded", "score": "score"}}
    results.append(judge(measurements, make_plan(arms=recorded)))
    plan = make_plan(**sections, quality={"headline": "average_precision"})
    results.append(judge(rich, plan))
    return {kpi.name for result in results for kpi in result.kpis}


def test_every_kpi_is_documented_and_every_documented_kpi_exists():
    groups = "quality|latency|memory|throughput|cost|routing|guard|energy|noise"
    documented = re.findall(rf"^\| `((?:{groups})/[^`]+)`", DOCUMENT, re.MULTILINE)
    choices = {
        "arm": "(incumbent|candidate|baseline)",
        "basis": "(usage|capacity)",
        "case": "(conservative|base|optimistic)",
        "metric": f"({'|'.join(METRICS)})",
        "percentile": r"\d+",
        "scenario": "(offline|single_stream)",
        "submodule": ".+",
        "reason": f"({'|'.join(REASONS)})",
    }
    patterns = [
        re.compile(re.sub("<([a-z]+)>", lambda match: choices[match[1]], name))
        for name in documented
    ]
    names = emitted()
    unexplained = {name for name in names if not any(p.fullmatch(name) for p in patterns)}
    assert unexplained == set()
    stale = {p.pattern for p in patterns if not any(p.fullmatch(name) for name in names)}
    assert stale == set()


def test_every_field_is_documented():
    documented = set(re.findall(r"`([a-z_]+)`", DOCUMENT))
    for kind in (Result, Kpi, Reason, MoreData):
        missing = {field.name for field in fields(kind)} - documented
        assert missing == set(), kind.__name__
    assert set(Result.from_dict(judge(make_measurements(), make_plan()).to_dict()).noise) == {
        "latency_band",
        *(f"latency_ratio_p{p}{end}" for p in (50, 95) for end in ("", "_low", "_high")),
        "score_rows_different",
    }


def test_the_judge_never_sees_a_clock_or_a_file():
    folder = Path(sma_pilot.judge.__file__).parent
    imported = {}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(dict.fromkeys((name.name for name in node.names), path.name))
            elif isinstance(node, ast.ImportFrom):
                imported[str(node.module)] = path.name
    assert len(imported) > 10
    harmless = {"abc", "collections", "dataclasses", "functools", "math", "statistics", "typing"}
    known = {*harmless, "arch", "numpy", "scipy"}
    own = ("sma_pilot.judge.", "sma_pilot.plan", "sma_pilot.errors")
    for module, file in imported.items():
        # Of `datetime` only a length of time is used: `plan` hands durations over as such.
        assert module.split(".")[0] in known or module.startswith(own) or module == "datetime", (
            f"{file} imports {module}"
        )
