"""What keeps a tracking store in step with a study, beside it and never in its way."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sma_eval.errors import first_line
from sma_eval.records import Report, TrialRecord
from sma_eval.tracking import StudyRuns

log = logging.getLogger(__name__)

# In a row, at the end: a store that refuses one trial may take the next, one that is away will not.
_MISSES = 3


class Tracker:
    """Writes a study to its runs, in a thread of its own; an observer of its trials.

    A store takes some 50 ms for what a trial reports once, and for ever when it is away: the driver
    hands over and goes on. A store that fails is warned about and tried again later, and `close`
    brings every ended trial up to date: figures live in the study folder, the store is a view of
    them.

    Parameters
    ----------
    runs
        Of the study.
    every_seconds
        How long what trials report is collected before it is written.
    pause_seconds
        How long a store that failed is left alone.
    """

    def __init__(
        self, runs: StudyRuns, *, every_seconds: float = 2.0, pause_seconds: float = 60.0
    ) -> None:
        self._runs = runs
        self._every_seconds = every_seconds
        self._pause_seconds = pause_seconds
        self._lock = threading.Lock()
        self._records: dict[str, TrialRecord] = {}
        self._reports: dict[str, list[Report]] = {}
        self._due: dict[str, None] = {}  # in the order in which they came
        self._closed = threading.Event()
        # A daemon: a driver that dies of an error does not wait for a store.
        self._writer = threading.Thread(target=self._keep_writing, name="tracker", daemon=True)
        self._writer.start()

    def update(self, record: TrialRecord, report: Report | None) -> None:
        """Collect a report, or that a trial has ended."""
        if _never_ran(record):
            return
        with self._lock:
            self._records[record.trial.id] = record
            if report is not None:
                self._reports.setdefault(record.trial.id, []).append(report)
            if report is not None or record.ended:
                self._due[record.trial.id] = None

    def flush(self) -> bool:
        """Write what was collected; return whether the store took it."""
        with self._tolerated() as failed:
            while not self._closed.is_set() and (trial_id := self._next()) is not None:
                self._write(trial_id)
        return not failed

    def close(
        self,
        records: Sequence[TrialRecord],
        *,
        status: str,
        description: str = "",
        files: Sequence[Path] = (),
    ) -> None:
        """Bring every trial that ran up to date, then describe and end the study's run.

        Parameters
        ----------
        records
            Of every trial of the study.
        status, description, files
            As of `StudyRuns.end`.
        """
        self._closed.set()
        self._writer.join()
        misses = 0
        for record in records:
            if _never_ran(record):
                continue
            with self._tolerated() as failed:
                self._write_last(record)
            misses = misses + 1 if failed else 0
            if misses == _MISSES:
                return
        with self._tolerated():
            self._runs.end(status=status, description=description, files=files)

    def _write_last(self, record: TrialRecord) -> None:
        reports = self._reports.pop(record.trial.id, [])
        if record.ended:
            self._runs.write(record, reports)
        elif reports or record.trial in self._runs:
            self._runs.interrupt(record, reports)

    def _keep_writing(self) -> None:
        wait = self._every_seconds
        while not self._closed.wait(wait):
            wait = self._every_seconds if self.flush() else self._pause_seconds

    def _next(self) -> str | None:
        with self._lock:
            return next(iter(self._due), None)

    def _write(self, trial_id: str) -> None:
        with self._lock:
            del self._due[trial_id]
            record, reports = self._records[trial_id], self._reports.pop(trial_id, [])
        try:
            self._runs.write(record, reports)
        except BaseException:
            with self._lock:  # before what came meanwhile
                self._reports[trial_id] = [*reports, *self._reports.get(trial_id, [])]
                self._due[trial_id] = None
            raise

    @contextmanager
    def _tolerated(self) -> Iterator[list[Exception]]:
        failed: list[Exception] = []
        try:
            yield failed
        except Exception as error:  # the store is a view; none of its errors may stop a study
            failed.append(error)
            log.warning(
                "tracking store %s: %s; trials go on, and their figures are in the study folder",
                self._runs.uri,
                first_line(error),
            )


def _never_ran(record: TrialRecord) -> bool:
    """Whether a trial was stopped before it began: it has no run."""
    return record.status == "stopped" and not record.step
