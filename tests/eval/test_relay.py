"""What Ray is given, and what its events do to records and checkpoints, without a Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.eval.studies import tiny_study, tiny_trials, trial

from sma_eval.records import Report, TrialRecord
from sma_eval.rounds import Round
from sma_eval.sweep.newest import NewestFirst
from sma_eval.sweep.race import TRIAL, Race
from sma_eval.sweep.tuning import _Relay, sweep


class Seen:
    """An observer that notes, at each change, which of the named checkpoints are on disk."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.named: list[tuple[str | None, bool]] = []
        self.on_disk: list[int] = []

    def update(self, record: TrialRecord, report: Report | None) -> None:
        whole = record.checkpoint is not None and (self._root / record.checkpoint).is_dir()
        self.named.append((record.checkpoint, whole))
        self.on_disk.append(len(list(self._root.rglob("checkpoint_*"))))


def test_an_old_checkpoint_goes_after_the_record_names_the_new_one(tmp_path: Path) -> None:
    record = TrialRecord(trial=trial())
    seen = Seen(tmp_path)
    relay = _Relay([record], tmp_path, [seen])
    ray_trial = SimpleNamespace(config={"trial": record.trial.id})

    def write(attempt: str, number: int) -> Any:
        path = tmp_path / "ray" / attempt / record.trial.id / f"checkpoint_{number:06d}"
        path.mkdir(parents=True)
        (path / "state").write_bytes(b"0")
        relay.on_checkpoint(0, [], ray_trial, SimpleNamespace(path=str(path)))
        return path

    first, second = write("attempt-000", 0), write("attempt-000", 1)
    assert (first.exists(), second.exists()) == (False, True)
    assert seen.on_disk == [1, 2], "the record changes before anything is deleted"
    assert all(whole for _, whole in seen.named)
    # What an earlier attempt left may be where another trial starts from.
    third = write("attempt-001", 0)
    assert (second.exists(), third.exists()) == (True, True)
    write("attempt-001", 1)
    assert (second.exists(), third.exists()) == (True, False)


def test_a_free_worker_goes_to_the_trial_that_was_added_last() -> None:
    states = ["RUNNING", "PENDING", "PENDING", "TERMINATED"]
    trials = [SimpleNamespace(status=status) for status in states]
    controller = SimpleNamespace(get_trials=lambda: trials)
    assert NewestFirst().choose_trial_to_run(controller) is trials[2]
    trials[1].status = trials[2].status = "RUNNING"
    assert NewestFirst().choose_trial_to_run(controller) is None


def test_ray_is_given_the_names_of_trials_and_where_free_workers_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grid of whole trials would be copied for each of them."""
    given: dict[str, Any] = {}

    class Tuner:
        def __init__(self, trainable: Any, **options: Any) -> None:
            given.update(options)

        def fit(self) -> None:
            pass

    monkeypatch.setattr("sma_eval.sweep.tuning.tune.Tuner", Tuner)
    monkeypatch.setattr("sma_eval.sweep.tuning.tune.with_parameters", lambda train, **_: train)
    records = [TrialRecord(trial=one) for one in tiny_trials()]
    sweep(
        tiny_study(),
        Round(todo=tuple(records)),
        records,
        root=tmp_path,
        attempt="attempt-000",
        dataset=tmp_path,
        provenance={},
        observers=(),
    )
    assert given["param_space"] == {TRIAL: {"grid_search": [record.trial.id for record in records]}}
    assert isinstance(given["tune_config"].scheduler, NewestFirst)
    assert issubclass(Race, NewestFirst)
