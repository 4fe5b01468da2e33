"""Take the looks that are due: prepare what came, replay it, hold it against the verdict, keep it.

A look is made in a hidden folder and takes its place when it is whole, so one that was killed never
was: the next command starts it anew and removes what was left.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sma_core.dataset import PreparedDataset
from sma_core.files import replacing
from sma_core.threads import compute_threads
from sma_pilot.arms import Arm, build_arms
from sma_pilot.errors import RunError
from sma_pilot.guard.drift import DriftReference
from sma_pilot.judge.measurements import CANDIDATE
from sma_pilot.logs.slices import iso, nanoseconds
from sma_pilot.monitor.basis import Basis
from sma_pilot.monitor.look import CARD, Chain, MonitorLook, hashes_of, load_looks
from sma_pilot.monitor.measure import ARMS, measure
from sma_pilot.monitor.new_rows import NewRows, new_rows
from sma_pilot.monitor.recommendation import find, recommend
from sma_pilot.monitor.rows import Content, content_of, rows_of
from sma_pilot.monitor.standing import Standing, standing_of
from sma_pilot.plan import MonitorPlan, Plan
from sma_pilot.progress import OnProgress
from sma_pilot.replay.clock import Clock, wall_clock
from sma_pilot.replay.environment import environment
from sma_pilot.replay.offline import run_offline
from sma_pilot.replay.single_stream import run_single_stream
from sma_pilot.replay.stream import choose_stream
from sma_pilot.replay.timeline import Timeline, Window
from sma_pilot.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Monitored:
    """What came of a log that was given to the monitor.

    Attributes
    ----------
    taken : tuple of MonitorLook
        The looks that it was good for.
    chain : Chain
        All looks of the run, these among them.
    notes : tuple of str
        What was left out, and why.
    """

    taken: tuple[MonitorLook, ...]
    chain: Chain
    notes: tuple[str, ...]

    @property
    def standing(self) -> Standing:
        """What all looks together recommend."""
        return standing_of(self.chain.standing)


def take_looks(
    plan: Plan,
    run: RunFolder,
    log: Sequence[str],
    data: Path,
    on_progress: OnProgress,
    *,
    clock: Clock = wall_clock,
) -> Monitored:
    """Take a look at what a log has since the look before, and anew at what got labels since.

    Parameters
    ----------
    plan : Plan
        The pilot's plan.
    run : RunFolder
        Its run folder, signed go.
    log : sequence of str
        Files or patterns; the columns are those of the plan.
    data : Path
        Where relative ones start.
    on_progress : OnProgress
    clock : Clock
        What times the arms, where the plan asks for it.

    Raises
    ------
    RunError
        When nobody signed a go, the run or a look was changed since, the device is not there, or
        the plan is of classes or of text, which are not watched.
    LogError
        When the log does not fit the plan, or has no row that is later than the judged ones.
    """
    if plan.replay.device == "cuda" and not torch.cuda.is_available():
        raise RunError("replay.device: 'cuda' is asked for and there is no CUDA device here")
    _require_watchable(plan)
    chain = load_looks(run)
    basis = Basis.read(run, on_progress)
    course = _Course(basis, run, on_progress, clock)
    ends = basis.judged.until_ns
    beside = run.monitor / "look"
    with new_rows(plan, basis.dataset.card, log, data, ends, beside, on_progress) as rows:
        notes = list(_told_of(rows, basis))
        taken = []
        for due in _due(rows, chain, basis, notes):
            look = course.take(rows, due, chain)
            chain = Chain((*chain.looks, look), ())
            taken.append(look)
    return Monitored(taken=tuple(taken), chain=chain, notes=tuple(notes))


def _require_watchable(plan: Plan) -> None:
    """Refuse what rows after the go are not prepared for, instead of watching half of it."""
    unwatched = {
        "task.kind: classes": plan.task.kind == "classification",
        "log.text: templates": plan.log.text is not None,
        "log.lines: lines of text": plan.log.lines is not None,
        "arms: recorded scores": plan.is_recorded("incumbent") or plan.is_recorded("candidate"),
    }
    for what, asked in unwatched.items():
        if asked:
            raise RunError(f"{what} are not watched after a go; run a new pilot on the newer rows")


@dataclass(frozen=True, kw_only=True)
class _Due:
    """A look to take."""

    window: Window
    content: Content
    replaces: int | None = None


def _due(rows: NewRows, chain: Chain, basis: Basis, notes: list[str]) -> Iterator[_Due]:
    """Tell which looks the rows are good for, replaced ones first; add to `notes` what is not."""
    plan, standing = basis.plan, chain.standing
    left_out, taken = 0, []
    for look in standing:
        window = Window(look.since_ns, look.until_ns)
        content = content_of(_timeline(rows.dataset, plan, window))
        if not content.rows:
            continue
        where = f"look {look.number} ({iso(look.since_ns)} to {iso(look.until_ns - 1)})"
        same = content.inputs_sha256 == look.inputs_sha256
        if content.keys_sha256 != look.keys_sha256:
            notes.append(
                f"{content.rows:,} rows are left out: they lie within {where}, which was taken on "
                f"{look.rows:,} rows; give all of these to have it taken anew"
            )
        elif content.labels_sha256 == look.labels_sha256 and same:
            left_out += content.rows
            taken.append(str(look.number))
        elif content.labelled_rows < look.labelled_rows:
            notes.append(
                f"{content.rows:,} rows are left out: {where} was taken on them with more labels"
            )
        else:
            yield _Due(window=window, content=content, replaces=look.number)
    if taken:
        looks = f"look{'' if len(taken) == 1 else 's'} {', '.join(taken)}"
        notes.append(f"{left_out:,} rows are left out: {looks} saw them, and nothing has changed")
    since = max((look.until_ns for look in standing), default=basis.judged.until_ns)
    if rows.last_ns >= since:
        window = Window(since, rows.last_ns + 1)
        content = content_of(_timeline(rows.dataset, plan, window))
        yield _Due(window=window, content=content)


def _told_of(rows: NewRows, basis: Basis) -> Iterator[str]:
    """Say what of the log is not as the pilot's was."""
    if before := rows.account["rows_before"]:
        yield f"{before:,} rows are left out: they are not later than {basis.until}, as judged"
    if basis.plan.log.label is not None and not rows.account["has_label_column"]:
        yield f"no file has the label column {basis.plan.log.label!r}: nothing is labelled yet"
    if rows.unknown and not basis.plan.task.by_session:
        shown = ", ".join(repr(name) for name in rows.unknown[:5])
        more = f" and {len(rows.unknown) - 5} more" if len(rows.unknown) > 5 else ""
        yield f"the pilot never saw {shown}{more}: scaled as the fleet"


def _timeline(dataset: PreparedDataset, plan: Plan, window: Window) -> Timeline:
    return Timeline(dataset, nanoseconds(plan.log.max_gap), window)


class _Course:
    """Takes looks of one run; what they share is read once."""

    def __init__(self, basis: Basis, run: RunFolder, on_progress: OnProgress, clock: Clock) -> None:
        self._basis = basis
        self._run = run
        self._on_progress = on_progress
        self._clock = clock
        judged = _timeline(basis.dataset, basis.plan, basis.judged)
        self._reference = DriftReference.of_rows(
            basis.dataset.card, (rows for _, rows in rows_of(judged))
        )

    def take(self, rows: NewRows, due: _Due, chain: Chain) -> MonitorLook:
        """Take one look and leave its folder."""
        basis, plan = self._basis, self._basis.plan
        folder = rows.folder / "look"
        shutil.rmtree(folder, ignore_errors=True)
        timeline = _timeline(rows.dataset, plan, due.window)
        legs = self._replay(timeline, folder)
        self._on_progress("measure", 0, None)
        figures = measure(basis, self._reference, timeline, folder, legs)
        findings = find(figures, basis.kpis, plan)
        recommendation, summary = recommend(findings)
        look = MonitorLook(
            number=len(chain.looks) + 1,
            replaces=due.replaces,
            taken_at=datetime.now(UTC),
            plan_digest=plan.digest,
            decision=basis.decision.sha256,
            since_ns=due.window.since_ns,
            until_ns=due.window.until_ns,
            rows=due.content.rows,
            entities=due.content.entities,
            labelled_rows=due.content.labelled_rows,
            events=figures.events,
            unknown_entities=() if plan.task.by_session else rows.unknown,
            keys_sha256=due.content.keys_sha256,
            labels_sha256=due.content.labels_sha256,
            inputs_sha256=due.content.inputs_sha256,
            recommendation=recommendation,
            summary=summary,
            findings=findings,
            kpis=_plain([kpi.to_dict() for kpi in figures.kpis.values()]),
            drift=dict(figures.drift),
            log=rows.account,
            environment=environment(plan.replay.threads, plan.replay.device),
            files=hashes_of(folder),
            previous=chain.looks[-1].sha256 if chain.looks else None,
        )
        self._keep(look, folder)
        return look

    def _replay(self, timeline: Timeline, folder: Path) -> dict[str, dict[str, Any]]:
        """Send the rows through incumbent and candidate, as the pilot's replay did."""
        plan = self._basis.plan
        limits, settings = plan.monitor or MonitorPlan(), plan.replay
        arms: dict[str, Arm] = build_arms(plan)
        legs = {}
        with compute_threads(settings.threads):
            for arm in ARMS:
                scorer = arms[arm].open(self._run.models / arm)
                legs[arm] = run_offline(
                    arm,
                    scorer,
                    timeline,
                    folder,
                    chunk_rows=settings.chunk_rows,
                    routing=arm == CANDIDATE,
                    clock=self._clock,
                    on_progress=self._on_progress,
                )
            for arm in ARMS if limits.latency_events else ():
                self._on_progress(f"time {arm}", 0, None)
                size = settings.warmup_events + limits.latency_events
                run_single_stream(
                    arm,
                    0,
                    arms[arm].open(self._run.models / arm),
                    timeline,
                    choose_stream(timeline, size, f"{plan.seed}/monitor"),
                    folder,
                    chunk_rows=settings.chunk_rows,
                    warmup=settings.warmup_events,
                    clock=self._clock,
                    sample_memory=lambda: None,
                )
        return legs

    def _keep(self, look: MonitorLook, folder: Path) -> None:
        """Put the look in its place, whole or not at all."""
        monitor = self._run.monitor
        try:
            with replacing(folder / CARD) as partial:
                partial.write_bytes(look.content)
            if taken := next(monitor.glob(f"look-{look.number:04}-*"), None):
                raise RunError(f"{taken}: somebody else took a look meanwhile; type it again")
            folder.rename(monitor / look.folder_name)
        except OSError as error:
            raise RunError(f"{monitor}: cannot be written: {error.strerror}") from error


def _plain(content: Any) -> Any:
    """Return JSON-ready content as a reader of the JSON would see it."""
    return json.loads(json.dumps(content))
