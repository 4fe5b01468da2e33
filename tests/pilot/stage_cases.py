"""Pilots in stages with fitted fakes, replayed for real, and judged as a test has it written."""

import gc
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.pilot.decision_cases import make_quick
from tests.pilot.replay_cases import (
    MINUTE,
    START,
    FakeClock,
    fake_arms,
    make_dataset,
    make_plan,
    quiet,
)

from sma_core.dataset import PreparedDataset
from sma_pilot import pilot
from sma_pilot.decision import signing
from sma_pilot.judge.measurements import Measurements
from sma_pilot.judge.result import Kpi, Reason, Result, Status
from sma_pilot.judge.sequential import nominal_levels
from sma_pilot.plan import Plan
from sma_pilot.replay import runner
from sma_pilot.run_folder import RunFolder
from sma_pilot.stages import course
from sma_pilot.stages.standing import Standing, standing

Outcome = Literal["go", "no-go", "inconclusive", "breach"]
BREACH = "The share of rows without a score is 0.5, over the limit of 0.01: the stage is stopped."
# Two machines that report every minute; judged from minute 210 to minute 450.
SEQUENCES = tuple(
    (split, entity, first, rows)
    for split, first, rows in (("train", 0, 150), ("validation", 150, 60), ("judged", 210, 240))
    for entity in (0, 1)
)
BORDERS = [START + MINUTE * minute for minute in (0, 150, 210, 450)]
STAGES: tuple[dict[str, Any], ...] = (
    {"kind": "offline", "until": 0.65, "looks": 2},
    {
        "kind": "shadow",
        "until": 0.8,
        "looks": 2,
        "signature_required": True,
        "speed": 1e6,
        "paced_events": 20,
    },
    {"kind": "full", "signature_required": True},
)


def staged_plan(*stages: dict[str, Any], **tables: Any) -> Plan:
    """A plan with small arms in stages, `STAGES` by default."""
    document = make_plan(passes=1).model_dump(mode="json")
    return Plan.model_validate({**document, "stages": stages or STAGES, **tables})


def staged_run(root: Path, plan: Plan) -> RunFolder:
    """A run folder with a prepared data set and fitted fakes, before its first look."""
    run = RunFolder.create(plan, root)
    dataset = make_dataset(
        run.dataset, SEQUENCES, missing=False, provenance={"borders_ns": BORDERS}
    )
    fake_arms(run.models, FakeClock(), dataset)
    return run


def script(monkeypatch: pytest.MonkeyPatch, outcomes: dict[tuple[str, int], Outcome]) -> None:
    """Have looks come out as written, by stage and number; a go where nothing is written."""
    make_quick(monkeypatch)
    # A replay collects before every leg, which takes longer than a leg of so few rows.
    monkeypatch.setattr(gc, "collect", lambda *generation: 0)

    def judge(measurements: Measurements, plan: Plan) -> Result:
        (stage,) = plan.stages
        levels = nominal_levels(stage.look_times, 0.05, stage.spending)
        outcome = outcomes.get((stage.name, levels.index(plan.quality.alpha) + 1), "go")
        return scripted_result(measurements, plan, outcome)

    monkeypatch.setattr(course, "judge", judge)
    monkeypatch.setattr(signing, "judge", judge)

    def arms(plan: Plan) -> Any:
        return fake_arms(Path(pilot_models[0]), FakeClock(), None)  # pyright: ignore[reportArgumentType]

    pilot_models: list[str] = []

    def prepared(plan: Plan, data: Path, run: RunFolder, progress: Any) -> PreparedDataset:
        return PreparedDataset.open(run.dataset)

    def replay(plan: Plan, dataset: Any, models: Path, folder: Path, progress: Any, **how: Any):
        pilot_models[:] = [str(models)]
        return runner.replay(plan, dataset, models, folder, progress, **how)

    monkeypatch.setattr(runner, "build_arms", arms)
    monkeypatch.setattr(course, "replay", replay)
    monkeypatch.setattr(pilot, "prepare", prepared)
    monkeypatch.setattr(pilot, "fit", lambda *given: None)


def scripted_result(measurements: Measurements, plan: Plan, outcome: Outcome) -> Result:
    """A result with one gate on quality and one of safety."""
    statuses: dict[Outcome, tuple[Status, Status]] = {
        "go": ("pass", "pass"),
        "no-go": ("fail", "pass"),
        "inconclusive": ("inconclusive", "pass"),
        "breach": ("inconclusive", "fail"),
    }
    quality, safety = statuses[outcome]
    value = {"pass": 0.02, "fail": 0.4, "inconclusive": 0.08}[quality]
    return Result(
        verdict="no-go" if outcome == "breach" else outcome,
        reasons=(
            Reason(kpi="quality/loss_event_recall", status=quality, text="As scripted."),
            Reason(kpi="safety/unscored_share", status=safety, text=BREACH),
        ),
        kpis=(
            Kpi(
                name="quality/loss_event_recall",
                value=value,
                unit="",
                interval=(value - 0.05, value + 0.05),
                confidence=1 - plan.quality.alpha,
                threshold=plan.quality.loss_limit,
                direction="lower",
                status=quality,
            ),
            Kpi(
                name="safety/unscored_share",
                value=0.5 if safety == "fail" else 0.0,
                unit="",
                threshold=0.01,
                direction="lower",
                status=safety,
            ),
        ),
        plan={"name": plan.name, "digest": plan.digest},
        dataset=measurements.dataset,
    )


def go_on(run: RunFolder) -> Standing:
    """Take looks as far as the pilot may go, and return how it stands then."""
    dataset = PreparedDataset.open(run.dataset)
    while (now := standing(run)).next is not None:
        course.take_look(now, dataset, run, quiet)
    return now
