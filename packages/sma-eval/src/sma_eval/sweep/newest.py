"""Which trial gets a worker that has become free."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler


class NewestFirst(FIFOScheduler):
    """Ray's own order, but a free worker goes to the trial that was added last.

    Ray 2.60 starts a worker for each waiting trial, oldest first, and gives a worker that becomes
    free to the oldest, too, whose own it then kills, half started. Where a worker takes longer to
    start than a trial to run, the first ones did all the work: the processors were busy starting
    others that never ran. The newest trial's worker is the one whose start has not begun.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the newest of the waiting trials."""
        newest = reversed(tune_controller.get_trials())
        return next((trial for trial in newest if trial.status == Trial.PENDING), None)
