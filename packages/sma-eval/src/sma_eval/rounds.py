"""What of a study runs next, decided from its records alone. No I/O.

A study runs in rounds. Between two of them the driver looks at what the trials have shown and
decides: which choices Optuna asks for, which of them the other seeds are worth, which members of a
population take over from which. Nothing else is kept, so a study that was killed decides again what
it had decided before.

- Without a scheduler, and all choices known: one round.
- Optuna: a round for each batch of choices.
- ASHA: the choices of an arm race with the first seed; those that come through are trained with
  the others in a round of their own.
- PBT: a round for each interval.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sma_eval.analysis import result_of, validation_cost
from sma_eval.population import moved
from sma_eval.records import TrialRecord
from sma_eval.scheduler import Asha, Pbt
from sma_eval.search import OptunaSearch, Tried
from sma_eval.space import Trial, follow
from sma_eval.study import Study


@dataclass(frozen=True, kw_only=True)
class Round:
    """What runs next.

    Parameters
    ----------
    todo
        The trials to run, each with the checkpoint that it goes on from.
    until
        Optimiser step after which they stop for now; None: they train to their ends.
    race
        Whether the scheduler may stop them.
    trials
        Those of them that the study did not know before.
    changed
        Records that a decision has changed, to be written before anything runs.
    """

    todo: tuple[TrialRecord, ...] = ()
    until: int | None = None
    race: bool = False
    trials: tuple[Trial, ...] = ()
    changed: tuple[TrialRecord, ...] = ()


def next_round(study: Study, records: Sequence[TrialRecord]) -> Round | None:
    """Decide what runs next; None when the study is complete.

    Parameters
    ----------
    study
        The study.
    records
        Of every trial that it has so far.
    """
    if isinstance(study.scheduler, Pbt):
        return _population_round(study, study.scheduler, records)
    trials: tuple[Trial, ...] = ()
    if all(record.ended for record in records):
        trials = _asked(study, records)
        if not trials:
            return None
        records = [*records, *(TrialRecord(trial=trial) for trial in trials)]
    if isinstance(study.scheduler, Asha):
        return replace(_race_round(study, records), trials=trials)
    return Round(todo=_open(records), trials=trials)


def _open(records: Iterable[TrialRecord]) -> tuple[TrialRecord, ...]:
    return tuple(record for record in records if not record.ended)


def _race_round(study: Study, records: Sequence[TrialRecord]) -> Round:
    """Race with the first seed; then train with the others what it has not stopped."""
    leaders = [record for record in records if record.trial.seed == study.seeds[0]]
    if racing := _open(leaders):
        return Round(todo=racing, race=True)
    stopped = {
        (leader.trial.arm, leader.trial.nuisance_label): leader.step
        for leader in leaders
        if leader.status == "stopped"
    }
    todo, spared = [], []
    for record in _open(records):
        step = stopped.get((record.trial.arm, record.trial.nuisance_label))
        if step is None:
            todo.append(record)
        else:
            reason = f"not begun: stopped at step {step} with seed {study.seeds[0]}"
            spared.append(replace(record, status="stopped", reason=reason, checkpoint=None))
    return Round(todo=tuple(todo), changed=tuple(spared))


def _population_round(study: Study, pbt: Pbt, records: Sequence[TrialRecord]) -> Round | None:
    """Every member to the next interval that not all have reached."""
    if not _open(records):
        return None
    budget = study.training["max_steps"]
    done = min(record.step for record in _open(records)) // pbt.interval * pbt.interval
    changed: list[TrialRecord] = []
    if done:
        populations: dict[tuple[str, int], list[TrialRecord]] = {}
        for record in records:
            populations.setdefault((record.trial.arm, record.trial.seed), []).append(record)
        for members in populations.values():
            changed += moved(members, done, pbt, study.nuisance, study.objective)
    now = {record.trial.id: record for record in [*records, *changed]}
    until = done + pbt.interval
    todo = tuple(record for record in _open(now.values()) if record.step < until)
    return Round(todo=todo, until=until if until < budget else None, changed=tuple(changed))


def _asked(study: Study, records: Sequence[TrialRecord]) -> tuple[Trial, ...]:
    """List the trials of the choices that a search asks for, going by all that have ended."""
    search = study.search
    if not isinstance(search, OptunaSearch):
        return ()
    objectives = 1 + len(study.objective.costs)
    arms: dict[str, list[TrialRecord]] = {}
    for record in records:
        arms.setdefault(record.trial.arm, []).append(record)
    return tuple(
        trial
        for members in arms.values()
        for trial in follow(
            study,
            members[0].trial,
            search.following(study.nuisance, _tried(study, members), objectives),
        )
    )


def _tried(study: Study, members: Sequence[TrialRecord]) -> list[Tried]:
    """Say what came of each choice of an arm, turned so that less is better."""
    choices: dict[str, list[TrialRecord]] = {}
    for record in members:
        choices.setdefault(record.trial.nuisance_label, []).append(record)
    sign = 1.0 if study.objective.mode == "min" else -1.0
    tried = []
    for group in choices.values():
        choice = group[0].trial.nuisance
        if all(record.result is not None for record in group):
            tried.append(Tried(choice=choice, objectives=_means(study, group)))
        else:
            leader = group[0]
            curve = leader.curve if leader.status == "stopped" else ()
            tried.append(Tried(choice=choice, curve={step: sign * value for step, value in curve}))
    return tried


def _means(study: Study, group: Sequence[TrialRecord]) -> tuple[float, ...]:
    objective = study.objective
    quality = [validation_cost(record, objective) for record in group]
    costs = [[getattr(result_of(record), name) for record in group] for name in objective.costs]
    return tuple(statistics.fmean(values) for values in (quality, *costs))
