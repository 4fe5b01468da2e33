"""Signing: the run folder is checked, the report shows the decision, the record seals both."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sma_core import DatasetError, PreparedDataset
from sma_pilot.decision.record import Choice, Decision, is_against, write_decision
from sma_pilot.decision.seal import seal
from sma_pilot.errors import DecisionError, RunError
from sma_pilot.judge.verdict import judge
from sma_pilot.progress import OnProgress
from sma_pilot.replay.card import ReplayCard, fingerprint
from sma_pilot.report.evidence import Evidence
from sma_pilot.report.page import draw, render, write_page
from sma_pilot.run_folder import RunFolder
from sma_pilot.stages.standing import refuse_breached

# Figures that another processor adds up in another order are the same figures.
_SAME = 1e-6


def sign(
    run: RunFolder,
    decision: Choice,
    by: str,
    reason: str,
    *,
    override: bool,
    on_progress: OnProgress,
) -> Decision:
    """Sign a decision on a judged run.

    The same person signing the same again for the same files and page adds no record.

    Parameters
    ----------
    run : RunFolder
    decision : "go" or "no-go"
    by, reason : str
        Who decides, and why.
    override : bool
        Whether the one who signs knows that the decision goes against the verdict.
    on_progress : OnProgress

    Returns
    -------
    Decision
        The newest of the run.

    Raises
    ------
    DecisionError
        When name or reason is empty, `override` does not fit decision and verdict, or a go is
        asked for a stage that a safety gate stopped.
    RunError
        When the run is not judged, its parts do not belong together, a record was changed, or the
        folder cannot be written.
    """
    by, reason = _line("--by", by), _line("--reason", reason)
    evidence = Evidence.read(run.path)
    verdict = evidence.result.verdict
    if decision == "go":
        refuse_breached(run)
    against = is_against(decision, verdict)
    if against and not override:
        raise DecisionError(
            f"--decision {decision}: the verdict is {verdict}; to sign against it all the same, "
            "add --override, which shows on the report for ever"
        )
    if override and not against:
        raise DecisionError(
            f"--override: a {decision} does not go against the verdict {verdict}; leave it out"
        )
    on_progress("check", 0, None)
    check_whole(evidence)
    files = seal(run, on_progress)
    earlier = evidence.decisions
    newest = earlier[-1] if earlier else None
    signed = Decision(
        number=len(earlier) + 1,
        time=datetime.now(UTC),
        by=by,
        decision=decision,
        reason=reason,
        verdict=verdict,
        override=override,
        plan_digest=evidence.plan.digest,
        files=files,
        previous=None if newest is None else newest.sha256,
    )
    on_progress("report", 0, None)
    drawings = draw(evidence)
    if newest is not None and _words(newest, run) == _words(signed, run):
        page = render(evidence, drawings)
        if newest.files[run.name_of(run.report)] == _hash(page):
            write_page(run.report, page)
            return newest
    page = render(replace(evidence, decisions=(*earlier, signed)), drawings)
    sealed = dict(sorted({**files, run.name_of(run.report): _hash(page)}.items()))
    signed = signed.model_copy(update={"files": sealed})
    # The record first: a page can be written again.
    write_decision(run, signed)
    write_page(run.report, page)
    return signed


def check_whole(evidence: Evidence) -> None:
    """Check that the verdict is what the judge says of these very measurements, data and models.

    Raises
    ------
    RunError
        Naming the part that does not belong to the others.
    """
    run, plan = evidence.run, evidence.plan
    try:
        PreparedDataset.open(run.dataset, verify=True)
    except DatasetError as error:
        raise RunError(f"{error}; run `sma-pilot prepare` again") from error
    for replay in run.replays:
        card = ReplayCard.load(replay / "replay.json")
        if card.plan_digest != plan.digest:
            raise RunError(f"{replay}: replayed by another plan; run `sma-pilot replay` again")
        if card.dataset.get("digest") != evidence.dataset.card.digest:
            raise RunError(f"{replay}: replayed on other data; run `sma-pilot replay` again")
        for arm, replayed in card.models.items():
            if fingerprint(run.models / arm) != replayed:
                raise RunError(
                    f"{run.models / arm}: not the model that was replayed; run `sma-pilot fit` "
                    "and `sma-pilot replay` again"
                )
    judged = judge(evidence.measurements, plan).to_dict()
    if difference := _difference(evidence.result.to_dict(), judged):
        raise RunError(
            f"{run.result}: not what the judge says of these measurements ({difference}); "
            "run `sma-pilot judge` again"
        )


def _line(option: str, text: str) -> str:
    line = " ".join(text.split())
    if not line:
        raise DecisionError(f"{option}: is empty; a decision has a name and a reason")
    if not line.isprintable():
        raise DecisionError(f"{option}: holds characters that cannot be shown; use plain text")
    return line


def _hash(page: str) -> str:
    return hashlib.sha256(page.encode()).hexdigest()


def _words(decision: Decision, run: RunFolder) -> dict[str, Any]:
    """Return what makes two signatures the same: all but when, and the page that shows them."""
    words = decision.model_dump(exclude={"number", "time", "previous"})
    words["files"].pop(run.name_of(run.report), None)
    return words


def _difference(given: Any, wanted: Any, where: str = "") -> str:
    """Name the first place where two JSON values differ; empty when they are the same."""
    if isinstance(given, Mapping) and isinstance(wanted, Mapping):
        if given.keys() != wanted.keys():
            return where or "fields"
        pairs = [(f"{where}.{key}".lstrip("."), given[key], wanted[key]) for key in given]
    elif isinstance(given, list | tuple) and isinstance(wanted, list | tuple):
        if len(given) != len(wanted):
            return where
        pairs = [(f"{where}[{i}]", *two) for i, two in enumerate(zip(given, wanted, strict=True))]
    elif isinstance(given, float) and isinstance(wanted, float):
        return "" if math.isclose(given, wanted, rel_tol=_SAME, abs_tol=1e-12) else where
    else:
        return "" if given == wanted else where
    return next((found for name, a, b in pairs if (found := _difference(a, b, name))), "")
