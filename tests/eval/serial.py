"""A sweep without Ray's processes: trials one after the other in this one, with Ray's own ASHA."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sma_eval.records import Observer, Report, TrialRecord
from sma_eval.resources import Resources
from sma_eval.rounds import Round
from sma_eval.scheduler import Asha
from sma_eval.study import Study
from sma_eval.sweep.race import QUALITY, STEP, TRIAL, Race
from sma_eval.trial import run_trial


class Killed(Exception):
    """The driver died: nothing of it remains but the study folder."""


class _Stopped(Exception):
    pass


@contextmanager
def connected(address: str, resources: Resources, root: Path) -> Iterator[None]:
    yield


def sweep(
    study: Study,
    now: Round,
    records: Sequence[TrialRecord],
    *,
    root: Path,
    attempt: str,
    dataset: Path,
    provenance: Mapping[str, Any],
    observers: Sequence[Observer],
) -> None:
    """Do what `sma_eval.sweep.sweep` does."""
    scheduler = study.scheduler
    race = None
    if now.race and isinstance(scheduler, Asha):
        race = Race(scheduler, study.objective, records)
    for record in now.todo:
        _run(study, now, record, race, root / "ray" / attempt, dataset, observers)


def _run(
    study: Study,
    now: Round,
    record: TrialRecord,
    race: Race | None,
    attempt: Path,
    dataset: Path,
    observers: Sequence[Observer],
) -> None:
    root = attempt.parents[1]
    trial = dataclasses.replace(record.trial, training=record.training)
    ray_trial = SimpleNamespace(trial_id=f"ray-{trial.id}", config={TRIAL: trial.id})
    if race is not None:
        race.on_trial_add(None, ray_trial)
    work = attempt / f"work-{trial.id}"
    if record.checkpoint is not None:
        shutil.copytree(root / record.checkpoint, work)

    def change(report: Report | None = None, **changes: Any) -> None:
        nonlocal record
        record = dataclasses.replace(record, **changes)
        for observer in observers:
            observer.update(record, report)

    def keep(folder: Path) -> None:
        place = attempt / trial.id / f"checkpoint-{record.step}"
        shutil.copytree(folder, place, dirs_exist_ok=True)
        change(checkpoint=str(place.relative_to(root)))

    def report(report: Report, folder: Path | None) -> None:
        quality = report.metrics.get(f"validation_{study.objective.metric}")
        if quality is not None:
            change(curve=record.measured(report.step, quality).curve)
        change(report, status="running", step=report.step)
        if folder is not None:
            keep(folder)
        if race is None or quality is None:
            return
        told = {STEP: report.step, QUALITY: quality}
        if race.on_trial_result(None, ray_trial, told) == Race.STOP:
            raise _Stopped

    try:
        result = run_trial(
            trial,
            dataset,
            work,
            test_split="test",
            until=now.until,
            provenance={},
            report=report,
        )
    except _Stopped:
        change(status="stopped", reason="stopped", checkpoint=None)
        return
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if result is not None:
        change(status="finished", step=result.steps, result=result)
