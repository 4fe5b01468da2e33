"""Each way to end without a result has its word, and every table counts them alike."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.eval.studies import finished, tiny_study, tiny_trials

from sma_core.errors import ConfigError, DivergenceError, TrainingError
from sma_eval.analysis import summarize
from sma_eval.failures import FAILURES, failure_of, failure_of_death
from sma_eval.records import Report, TrialRecord
from sma_eval.sweep.tuning import _Relay

# What Ray 2.60 says of a worker that its memory monitor killed, and of one that somebody killed.
MEMORY_MONITOR = (
    "Failure # 1 (occurred at 2026-11-27_17-42-15)\n1 worker(s) were killed due to the node "
    "running low on memory. Memory on the node was 4.32GB used / 23.54GB limit (0.183419)\n"
)
KILLED = (
    "Failure # 2 (occurred at 2026-11-27_17-43-15)\nThe actor died unexpectedly before finishing "
    "this task.\nThe actor is dead because its worker process has died.\n"
)


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("boom"), "failed"),
        (ConfigError("width: must be at least 1"), "failed"),
        (TrainingError("another process failed"), "failed"),
        (DivergenceError("step 3: the gradient is not finite"), "diverged"),
        (raised_from(TrainingError("rank 1"), DivergenceError("step 3")), "diverged"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (raised_from(RuntimeError("a worker failed"), MemoryError()), "out_of_memory"),
    ],
)
def test_an_error_has_its_word(error: Exception, expected: str) -> None:
    assert failure_of(error) == expected


def test_a_full_machine_is_out_of_memory_in_the_words_of_this_pytorch() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert failure_of(caught.value) == "out_of_memory"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("", "lost"),
        (KILLED, "lost"),
        (MEMORY_MONITOR, "out_of_memory"),
        (KILLED + MEMORY_MONITOR, "out_of_memory"),
        (MEMORY_MONITOR + KILLED, "lost"),
    ],
)
def test_the_last_death_counts(told: str, expected: str) -> None:
    assert failure_of_death(told) == expected


def test_a_trial_whose_process_died_too_often_is_recorded(tmp_path: Path) -> None:
    seen: list[TrialRecord] = []

    class Seen:
        def update(self, record: TrialRecord, report: Report | None) -> None:
            seen.append(record)

    trial = tiny_trials()[0]
    running = TrialRecord(trial=trial, status="running", step=8)
    relay = _Relay([running], tmp_path, [Seen()], None)
    died: Any = SimpleNamespace(
        config={"trial": trial.id},
        num_failures=3,
        get_error=lambda: MEMORY_MONITOR + KILLED,
    )
    relay.on_trial_error(0, [], died)
    (record,) = seen
    assert (record.status, record.step) == ("lost", 8)
    assert record.reason == "its process or machine died, 3 times"
    assert record.traceback is not None
    assert "The actor died unexpectedly" in record.traceback
    died.get_error = lambda: MEMORY_MONITOR
    relay.on_trial_error(0, [], died)
    assert seen[-1].status == "out_of_memory"
    assert seen[-1].reason == "its process used up memory and was killed, 3 times"


@pytest.mark.parametrize("status", FAILURES)
def test_a_failure_ends_a_trial_and_the_table_counts_it(status: Any) -> None:
    one, other, *_ = (TrialRecord(trial=trial) for trial in tiny_trials())
    failed = replace(one, status=status, reason="boom")
    assert failed.ended
    assert failed.failed
    assert TrialRecord.from_dict(json.loads(json.dumps(failed.to_dict()))) == failed
    assert not one.failed
    assert not finished(one.trial).failed
    (row,) = summarize([failed, replace(other, trial=other.trial)], tiny_study().objective)[:1]
    assert row.failed == 1
