"""Studies that decide on the way: what is stopped, asked for and taken over, and after a kill."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.eval import serial
from tests.eval.studies import MLFLOW_WARNING, finished, study_text, tiny_study, tiny_trials, trial
from tests.slow import slow

from sma_eval import experiment
from sma_eval.experiment import Outcome
from sma_eval.population import explore, moved
from sma_eval.records import Report, TrialRecord
from sma_eval.rounds import next_round
from sma_eval.scheduler import Asha, Pbt
from sma_eval.search import Range
from sma_eval.search_report import describe_search, efforts, pareto_choices
from sma_eval.study import Objective, Study, parse_study
from sma_eval.sweep.race import QUALITY, STEP, Race

pytestmark = pytest.mark.filterwarnings(MLFLOW_WARNING)

ACCURACY = Objective(metric="accuracy", mode="max")
# The best comes first, or none of those that race one after the other would be stopped.
RATES = "[nuisance]\nlearning_rate = [3e-3, 1e-9, 3e-2]"
ASHA = '[scheduler]\nkind = "asha"\ngrace = 4\nreduction = 2'
PBT = '[scheduler]\nkind = "pbt"\ninterval = 4'
OPTUNA = '[search]\nkind = "optuna"\nsamples = 3\nbatch = 2'


def study_with(*tables: str, costs: str = "", arms: int = 1, **changes: str) -> Study:
    """Return the tiny study by its loss, with more tables."""
    mode = f'mode = "min"\n{costs}'
    objective = {"metric": 'metric = "loss"', "mode": "\n\n".join([mode, *tables])}
    text = study_text(**objective, **changes)
    if arms == 1:
        text = text.replace('    { kind = "always" },\n', "")
    return parse_study(text, "study.toml")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run studies in this process."""
    monkeypatch.setattr("sma_eval.sweep.sweep", serial.sweep)
    monkeypatch.setattr("sma_eval.sweep.connected", serial.connected)
    monkeypatch.setattr("sma_eval.tracking.StudyRuns", lambda *arguments: None)
    monkeypatch.setattr("sma_eval.tracker.Tracker", _NoTracker)
    monkeypatch.setattr("sma_eval.trial.measure_latency", lambda *arguments: 1e-6)

    def run(study: Study, out: Path, *observers: Any) -> Outcome:
        return experiment.run(study, data=Path(), out=out, observers=observers)

    return run


class _NoTracker:
    def __init__(self, *arguments: Any) -> None:
        pass

    def update(self, record: TrialRecord, report: Report | None) -> None:
        pass

    def close(self, records: Any, **options: Any) -> None:
        pass


class Kill:
    """An observer that stands for a driver that dies at the n-th change of a record."""

    def __init__(self, at: int) -> None:
        self.left = at

    def update(self, record: TrialRecord, report: Report | None) -> None:
        self.left -= 1
        if self.left < 0:
            raise serial.Killed


def figures(outcome: Outcome) -> list[Any]:
    """All that is known of the trials, but for the clock and the places of checkpoints."""
    plain = []
    for record in outcome.records:
        result = record.result and dataclasses.replace(record.result, seconds=0.0)
        plain.append(dataclasses.replace(record, result=result, checkpoint=None))
    return plain


def killed_and_resumed(run: Callable[..., Outcome], study: Study, out: Path, every: int) -> Outcome:
    """Run a study whose driver dies again and again."""
    for _ in range(100):
        try:
            return run(study, out, Kill(every))
        except serial.Killed:
            pass
    raise AssertionError("it never came to an end")


def test_asha_stops_within_arms_and_gives_the_rest_every_seed(run: Any, tmp_path: Path) -> None:
    study = study_with(RATES, ASHA, arms=2)
    done = run(study, tmp_path / "study")
    assert done.complete
    statuses = Counter((r.trial.seed, r.status) for r in done.records)
    assert done.count("stopped") > 0
    assert done.count("failed", "running", "pending") == 0
    by_choice: dict[Any, set[str]] = {}
    for record in done.records:
        by_choice.setdefault((record.trial.arm, record.trial.nuisance_label), set()).add(
            record.status
        )
        if record.status == "stopped":
            assert record.result is None
            assert record.checkpoint is None
            assert record.step < 12
            assert record.reason is not None
    # A choice has all its seeds or none, and every arm has one that has them.
    assert all(len(found) == 1 for found in by_choice.values())
    assert {arm for (arm, _), found in by_choice.items() if found == {"finished"}} == {
        "always",
        "tempered_softmax @ 0.5",
    }
    assert statuses[1, "stopped"] == statuses[0, "stopped"]
    assert all(r.step == 0 for r in done.records if r.status == "stopped" and r.trial.seed == 1)
    assert [row.stopped for row in done.rows] == [e.stopped for e in efforts(done.records)]
    assert all(row.seeds == 2 for row in done.rows)
    assert f"arm were better: {done.count('stopped')} of the trials" in done.table
    # Their checkpoints are gone, those of the others are there.
    kept = {Path(r.checkpoint).parts[2] for r in done.records if r.checkpoint}
    assert kept == {path.name for path in (tmp_path / "study" / "ray").glob("attempt-*/*")}


@pytest.mark.parametrize(
    ("tables", "every"),
    [
        pytest.param((RATES, ASHA), 7, id="asha"),
        pytest.param((RATES, PBT), 9, id="pbt", marks=slow),
        pytest.param((RATES, OPTUNA), 11, id="optuna", marks=slow),
    ],
)
def test_a_study_that_is_killed_again_and_again_ends_as_one_that_is_not(
    run: Any, tmp_path: Path, tables: tuple[str, ...], every: int
) -> None:
    if OPTUNA in tables:
        pytest.importorskip("optuna")
    study = study_with(*tables, seeds="seeds = [0, 1]" if ASHA in tables else "seeds = [0]")
    undisturbed = run(study, tmp_path / "undisturbed")
    disturbed = killed_and_resumed(run, study, tmp_path / "disturbed", every)
    assert undisturbed.complete
    assert disturbed.complete
    assert figures(disturbed) == figures(undisturbed)
    assert disturbed.table == undisturbed.table


def test_a_population_hands_on_what_is_good(run: Any, tmp_path: Path) -> None:
    done = run(study_with(RATES, PBT), tmp_path / "study")
    assert done.complete
    assert done.count("finished") == 6
    best = []
    for seed in (0, 1):
        members = {r.trial.id: r for r in done.records if r.trial.seed == seed}
        moves = [(r, move) for r in members.values() for move in r.moves]
        assert sorted(move.step for _, move in moves) == [4, 8]
        for record, move in moves:
            at = {r.trial.id: dict(r.curve)[move.step] for r in members.values()}
            assert at[move.donor] == min(at.values())
            assert at[record.trial.id] == max(at.values())
            assert move.nuisance["learning_rate"] in (3e-3, 1e-9, 3e-2)
        results = [r.result for r in members.values() if r.result]
        best.append(min(results, key=lambda result: result.validation["loss"]).test["loss"])
    # One member a seed stands for the arm, whatever it was called at first.
    (row,) = done.rows
    assert (row.seeds, row.nuisance) == (2, "")
    assert row.objective is not None
    assert row.objective.mean == pytest.approx(sum(best) / 2)
    assert "for each seed the best of 3 members" in done.table
    assert not list((tmp_path / "study" / "ray").rglob("*.partial"))


def test_a_member_that_took_over_goes_on_from_the_donors_weights(run: Any, tmp_path: Path) -> None:
    seen: dict[str, list[Report]] = {}

    class Watch:
        def update(self, record: TrialRecord, report: Report | None) -> None:
            if report is not None:
                seen.setdefault(record.trial.id, []).append(report)

    study = study_with("[nuisance]\nlearning_rate = [3e-3, 1e-9]", PBT, seeds="seeds = [0]")
    done = run(study, tmp_path / "study", Watch())
    good, bad = done.records
    (first, *_) = bad.moves
    assert (first.step, first.donor, good.moves) == (4, good.trial.id, ())
    assert [report.step for report in seen[bad.trial.id]] == [4, 8, 12]
    rates = [report.metrics["learning_rate"] for report in seen[bad.trial.id]]
    assert rates[:2] == [1e-9, first.nuisance["learning_rate"]]
    # It had learned nothing, and has now what the other had learned.
    losses = dict(bad.curve)
    assert losses[8] < losses[4]


def test_optuna_asks_in_batches_and_every_arm_gets_as_many(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    study = study_with(
        RATES, OPTUNA, costs='costs = ["flops_per_step"]', arms=2, seeds="seeds = [0]"
    )
    assert len(experiment.list_trials(study, Path())) == 4
    out = tmp_path / "study"
    with pytest.raises(serial.Killed):
        run(study, out, Kill(8))
    early = Outcome.read(out)
    assert not early.complete
    assert (study.trials, len(early.records), early.unknown) == (6, 4, 2)
    done = run(study, out)
    assert done.complete
    assert Counter(record.trial.arm for record in done.records) == {
        "always": 3,
        "tempered_softmax @ 0.5": 3,
    }
    assert len({record.trial.id for record in done.records}) == 6
    assert Outcome.read(out).folder.trials == tuple(record.trial for record in done.records)
    assert "Of all choices, not beaten in both loss on validation and flops_per_step" in (
        done.table
    )


def leading(arm: str, rate: float, seed: int = 0, **changes: Any) -> TrialRecord:
    return TrialRecord(trial=trial(arm, seed, {"learning_rate": rate}), **changes)


def in_race(records: list[TrialRecord]) -> Callable[[TrialRecord, int, float], bool]:
    """Return a function that says whether a trial of a race goes on after a measurement."""
    race = Race(Asha(kind="asha", grace=2, reduction=2), ACCURACY, records)
    added: dict[str, Any] = {}

    def goes_on(record: TrialRecord, step: int, value: float) -> bool:
        if record.trial.id not in added:
            config = {"trial": record.trial.id}
            added[record.trial.id] = SimpleTrial(f"ray-{record.trial.id}", config)
            race.on_trial_add(None, added[record.trial.id])
        told = {STEP: step, QUALITY: value}
        goes = race.on_trial_result(None, added[record.trial.id], told) == Race.CONTINUE
        assert (record.trial.id in race.stopped) == (not goes)
        return goes

    return goes_on


@dataclasses.dataclass
class SimpleTrial:
    trial_id: str
    config: dict[str, Any]


def test_a_race_is_within_an_arm() -> None:
    good = [leading("a", rate) for rate in (0.1, 0.2)]
    bad = [leading("b", rate) for rate in (0.1, 0.2)]
    goes_on = in_race([*good, *bad])
    assert goes_on(good[0], 2, 0.9)
    # The first of its arm, however much worse than the other arm.
    assert goes_on(bad[0], 2, 0.1)
    assert not goes_on(good[1], 2, 0.8)
    assert goes_on(bad[1], 2, 0.2)
    # At the last step there is nothing left to stop.
    assert goes_on(bad[0], 12, 0.0)


def test_a_resumed_race_knows_what_ran_before() -> None:
    before = leading("a", 0.1, status="finished", step=12, curve=((2, 0.9), (4, 0.95), (12, 1.0)))
    stopped = leading("a", 0.2, status="stopped", step=2, curve=((2, 0.1),))
    halfway = leading("a", 0.3, status="running", step=2, curve=((2, 0.5),))
    fresh, other = leading("a", 0.4), leading("a", 0.5)
    goes_on = in_race([before, stopped, halfway, fresh, other])
    # Of 0.9, 0.1 and, once it is there, 0.5, the upper half begins at the median.
    assert not goes_on(fresh, 2, 0.4)
    assert not goes_on(halfway, 4, 0.94)
    assert goes_on(other, 2, 0.91)


def test_other_seeds_are_for_what_the_first_has_not_stopped() -> None:
    study = tiny_study(mode=f'mode = "max"\n\n{RATES}\n\n{ASHA}')
    records = [TrialRecord(trial=t) for t in tiny_trials(mode=f'mode = "max"\n\n{RATES}\n\n{ASHA}')]
    first = next_round(study, records)
    assert first is not None
    assert first.race
    assert {record.trial.seed for record in first.todo} == {0}
    ends = ["finished", "stopped", "failed"]
    led = [
        dataclasses.replace(
            finished(r.trial) if ends[i % 3] == "finished" else r, status=ends[i % 3], step=4
        )
        if r.trial.seed == 0
        else r
        for i, r in enumerate(records)
    ]
    second = next_round(study, led)
    assert second is not None
    assert not second.race
    rates = {(r.trial.seed, r.trial.nuisance["learning_rate"]) for r in second.todo}
    assert rates == {(1, 3e-3), (1, 3e-2)}
    (reason,) = {record.reason for record in second.changed}
    assert reason == "not begun: stopped at step 4 with seed 0"
    assert {record.trial.nuisance["learning_rate"] for record in second.changed} == {1e-9}
    # What was decided is not decided again, and when all has ended there is nothing to do.
    decided = {record.trial.id: record for record in second.changed}
    now = [decided.get(record.trial.id, record) for record in led]
    third = next_round(study, now)
    assert third is not None
    assert third.changed == ()
    assert third.todo == second.todo
    assert next_round(study, [finished(r.trial) if not r.ended else r for r in now]) is None


def member(rate: float, value: float, **changes: Any) -> TrialRecord:
    plain = {
        "status": "running",
        "step": 4,
        "curve": ((4, value),),
        "checkpoint": f"ray/{rate}",
        **changes,
    }
    return leading("a", rate, **plain)


def test_the_worst_take_over_from_the_best() -> None:
    pbt = Pbt(kind="pbt", interval=4, quantile=0.25, resample=0.0)
    rates = (0.1, 0.2, 0.3, 0.4)
    nuisance: Any = {"learning_rate": rates}
    members = [member(rate, rate) for rate in rates]
    (change,) = moved(members, 4, pbt, nuisance, ACCURACY)
    assert change.trial == members[0].trial
    assert change.checkpoint == members[3].checkpoint
    assert change.moves[0].donor == members[3].trial.id
    assert change.moves[0].nuisance["learning_rate"] in (0.3, 0.4)
    assert change.training["learning_rate"] == change.moves[0].nuisance["learning_rate"]
    # The same again while it is written, and not again once it is.
    assert moved(members, 4, pbt, nuisance, ACCURACY) == [change]
    assert moved([change, *members[1:]], 4, pbt, nuisance, ACCURACY) == []
    # A loss is better when it is smaller.
    (change,) = moved(members, 4, pbt, nuisance, Objective(metric="loss", mode="min"))
    assert change.trial == members[3].trial
    # Who has ended neither takes nor gives; one alone has nobody.
    ended = [dataclasses.replace(m, status="failed") for m in members[1:]]
    assert moved([members[0], *ended], 4, pbt, nuisance, ACCURACY) == []


def test_exploring_stays_within_what_is_allowed() -> None:
    import random

    nuisance: Any = {
        "learning_rate": Range(low=0.01, high=0.1),
        "warmup_steps": Range(low=1, high=9),
        "rate_weight": (0.1, 0.5, 1.0),
    }
    rng = random.Random(0)
    choice: Any = {"learning_rate": 0.09, "warmup_steps": 4, "rate_weight": 0.1}
    found = [explore(choice, nuisance, 0.0, rng) for _ in range(50)]
    assert {round(c["learning_rate"], 6) for c in found} == {0.072, 0.1}
    assert {c["warmup_steps"] for c in found} == {3, 5}
    assert {c["rate_weight"] for c in found} == {0.1, 0.5}
    drawn = [explore(choice, nuisance, 1.0, rng) for _ in range(50)]
    assert all(0.01 <= c["learning_rate"] <= 0.1 for c in drawn)
    assert {c["rate_weight"] for c in drawn} == {0.1, 0.5, 1.0}


def test_arms_that_were_not_tuned_alike_are_said_so() -> None:
    study = study_with(RATES)
    equal = [
        finished(trial(arm, seed, {"learning_rate": rate}))
        for arm in "ab"
        for seed in (0, 1)
        for rate in (1, 2)
    ]
    assert describe_search(equal, study) == [
        "Every arm was tuned alike: 2 choices of nuisance values, 2 of them to the end with every "
        "seed."
    ]
    failed = dataclasses.replace(equal[0], status="failed", result=None, step=5)
    (line,) = describe_search([failed, *equal[1:]], study)
    assert line == (
        "Arms were NOT tuned alike, which may favour those tuned more: a 2 choices, 1 to the end, "
        "41 steps; b 2 choices, 2 to the end, 48 steps."
    )
    # Nothing tuned, nothing to say.
    assert describe_search(equal, study_with()) == []


def test_the_front_of_choices_is_by_hand() -> None:
    pytest.importorskip("optuna")
    study = study_with(RATES, OPTUNA, costs='costs = ["flops_per_step"]')
    points = {"a": (0.1, 10.0), "b": (0.2, 5.0), "c": (0.2, 6.0), "d": (0.1, 10.0)}
    records = [
        finished(trial(arm, seed), loss, metric="loss", flops_per_step=flops)
        for arm, (loss, flops) in points.items()
        for seed in (0, 1)
    ]
    assert pareto_choices(records, study) == ["a", "b", "d"]
    lacking = dataclasses.replace(records[2], status="failed", result=None)
    assert pareto_choices([*records[:2], lacking, *records[3:]], study) == ["a", "c", "d"]
