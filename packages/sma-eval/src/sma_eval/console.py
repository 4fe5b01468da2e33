"""What a running study says on stderr: a line when a trial ends, and a sign of life between."""

import time

from rich.console import Console
from rich.markup import escape

from sma_eval.records import Report, TrialRecord
from sma_eval.study import Study

_SILENCE_SECONDS = 10.0


class ConsoleProgress:
    """An observer that prints.

    Parameters
    ----------
    study
        Its objective is shown.
    total
        Number of trials.
    ended
        Trials that had ended before.
    """

    def __init__(self, study: Study, total: int, ended: int = 0) -> None:
        self._metric = study.objective.metric
        self._total = total
        self._ended = ended
        self._running: dict[str, str] = {}
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._spoke = time.monotonic()

    def update(self, record: TrialRecord, report: Report | None) -> None:
        """Print what is worth a line."""
        label = escape(record.trial.label)
        if record.ended:
            self._running.pop(record.trial.id, None)
            self._ended += 1
            self._print(f"[{self._ended}/{self._total}]", f"{label}: {self._verdict(record)}")
        elif report is not None:
            budget = record.trial.training["max_steps"]
            self._running[record.trial.id] = f"{label} step {report.step}/{budget}"
            if time.monotonic() - self._spoke >= _SILENCE_SECONDS:
                self._print("running:", "; ".join(self._running.values()))

    def _verdict(self, record: TrialRecord) -> str:
        result = record.result
        if record.status == "stopped":
            return escape(record.reason or "stopped")
        if result is None:
            how = record.status.replace("_", " ")
            return f"[red]{how}[/red]: {escape(record.reason or 'no reason known')}"
        return (
            f"{self._metric} {result.test[self._metric]:.4f}, active "
            f"{result.test['activation_rate']:.3f}, {result.steps} steps, {result.seconds:.0f} s"
        )

    def _print(self, head: str, text: str) -> None:
        self._spoke = time.monotonic()
        self._console.print(f"{escape(head)} {text}")
