"""Ray's ASHA, for each arm one: trials are stopped by comparison with their own arm's alone."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from sma_eval.records import TrialRecord
from sma_eval.scheduler import Asha
from sma_eval.study import Objective

from .newest import NewestFirst

STEP, QUALITY = "step", "quality"
"""Where a trial's report names the optimiser step, and the objective on validation if measured."""
TRIAL = "trial"
"""Where the configuration of one of Ray's trials names ours."""


class Race(NewestFirst):
    """A Ray scheduler that keeps the arms of a study apart.

    Parameters
    ----------
    asha
        When trials are compared.
    objective
        What they are compared by.
    records
        Of all trials that take part; those that have ended, and what the others have measured
        before, count as if they had been seen in this process.
    """

    def __init__(self, asha: Asha, objective: Objective, records: Sequence[TrialRecord]) -> None:
        super().__init__()
        self._asha = asha
        self._objective = objective
        self._records = {record.trial.id: record for record in records}
        self._arms: dict[str, ASHAScheduler] = {}
        self.stopped: dict[str, int] = {}
        """Trials that were stopped, by id, with the step."""
        for record in records:
            if record.ended:
                self._replay(record, SimpleNamespace(trial_id=record.trial.id))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Let a trial take part, with what it measured before."""
        self._replay(self._record(trial), trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on."""
        record = self._record(trial)
        # At its last step there is nothing to save by stopping it.
        if QUALITY not in result or result[STEP] >= record.trial.training["max_steps"]:
            return TrialScheduler.CONTINUE
        decision = self._of(record).on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self.stopped[record.trial.id] = result[STEP]
        return decision

    def _record(self, trial: Any) -> TrialRecord:
        return self._records[trial.config[TRIAL]]

    def _of(self, record: TrialRecord) -> ASHAScheduler:
        """Return the scheduler of a trial's arm."""
        return self._arms.setdefault(
            record.trial.arm,
            ASHAScheduler(
                time_attr=STEP,
                metric=QUALITY,
                mode=self._objective.mode,
                max_t=record.trial.training["max_steps"],
                grace_period=self._asha.grace,
                reduction_factor=self._asha.reduction,
                stop_last_trials=False,
            ),
        )

    def _replay(self, record: TrialRecord, trial: Any) -> None:
        """Tell ASHA what a trial has measured; it knows a trial by its attribute `trial_id`."""
        arm: Any = self._of(record)
        arm.on_trial_add(None, trial)
        for step, value in record.curve:
            if step < record.trial.training["max_steps"]:
                arm.on_trial_result(None, trial, {STEP: step, QUALITY: value})
