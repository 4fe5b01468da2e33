"""What the runs of a pilot in stages say in the tracking store: its own, and each stage's."""

import json
from dataclasses import replace

from sma_pilot.judge.result import Result
from sma_pilot.report.entries import (
    PLAN_TAG,
    STAGE_TAG,
    STATE_TAG,
    VERDICT_TAG,
    Entries,
    gate_curves,
    pilot_entries,
    plan_params,
)
from sma_pilot.report.evidence import Evidence, read_result
from sma_pilot.report.markdown import escape_markdown
from sma_pilot.report.stages import STATES, headline_text
from sma_pilot.report.svg import printable
from sma_pilot.run_folder import RunFolder
from sma_pilot.stages.standing import StageStanding, Standing

STAGE_STATE_TAG = "sma.stage."
"""Before a stage's name: its state, on the pilot's own run."""
SIGNED_TAG = "sma.signed."
"""Before a stage's name: what was signed on it, and by whom."""


def stages_entries(now: Standing, run: RunFolder) -> Entries:
    """Return what the run of the pilot as a whole says.

    Gates are curves over all looks of all stages: a step is a look's place among those of the plan.
    """
    signed = {
        SIGNED_TAG + own.stage.name: f"{own.decision.decision} by {printable(own.decision.by, 200)}"
        for own in now.stages
        if own.decision is not None
    }
    return Entries(
        metrics={},
        curves=gate_curves(look_results(now, run)),
        params=plan_params(now.plan),
        tags={
            VERDICT_TAG: now.verdict,
            STATE_TAG: f"{now.current.stage.name}: {STATES[now.current.state][1]}",
            **{STAGE_STATE_TAG + own.stage.name: own.state for own in now.stages},
            **signed,
            PLAN_TAG: now.plan.digest,
            "sma.folder": str(run.path.resolve()),
        },
    )


def stage_entries(evidence: Evidence, own: StageStanding, *, unchanged: bool) -> Entries:
    """Return what the run of one stage says: as a pilot of one stage, its gates over its looks."""
    entries = pilot_entries(evidence, unchanged=unchanged)
    curves = gate_curves({look.number: _result(evidence.run, look.number) for look in own.looks})
    return replace(
        entries,
        metrics={name: value for name, value in entries.metrics.items() if name not in curves},
        curves=curves,
        # The pilot's run has the plan; this one has what is the stage's own, and never changes.
        params={
            f"stage.{name}": value if isinstance(value, str) else json.dumps(value)
            for name, value in own.stage.model_dump(mode="json").items()
            if value is not None
        },
        tags={**entries.tags, STAGE_TAG: own.stage.name, STATE_TAG: own.state},
    )


def look_results(now: Standing, run: RunFolder) -> dict[int, Result]:
    """Return the result of every look that was taken, by its place among those of the plan."""
    results: dict[int, Result] = {}
    before = 0
    for own in now.stages:
        folder = run.at(own.stage.name)
        for look in own.looks:
            results[before + look.number] = _result(folder, look.number)
        before += len(own.stage.look_times)
    return results


def standing_markdown(now: Standing, run: str, length: int) -> str:
    """Return how the pilot stands as Markdown, in at most so many characters."""
    lines = [f"**{escape_markdown(now.text(run), 600)}**", ""]
    lines += ["| stage | state | looks | loss (interval) | what became of it |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for own in now.stages:
        symbol, word, _ = STATES[own.state]
        shown = own.deciding or (own.looks[-1] if own.looks else None)
        cells = [
            escape_markdown(own.stage.name),
            f"{symbol} {word}",
            f"{len(own.looks)} of {len(own.stage.look_times)}",
            "" if shown is None else escape_markdown(headline_text(shown)),
            escape_markdown(own.text, 300),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Plan, frozen before the first row was replayed: `{now.plan.digest}`"]
    text = "\n".join(lines)
    return text if len(text) <= length else f"{lines[0]}\n\nThe stages are on the report."


def _result(folder: RunFolder, number: int) -> Result:
    return read_result(folder.look(number) / "result.json")[0]
