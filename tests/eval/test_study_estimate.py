"""What a study will cost, before it starts; and that the shipped ones say so."""

import tomllib
from pathlib import Path

import pytest
from tests.eval.studies import tiny_study, tiny_trials

from sma_core.config import config_from_dict
from sma_core.costs import dense_step_flops
from sma_eval import estimate
from sma_eval.cli import main
from sma_eval.estimate import CostEstimate, estimate_cost
from sma_eval.resources import Resources

STUDIES = Path(__file__).parents[2] / "experiments" / "studies"
# The others need a data set that a pilot has prepared.
GENERATED = [
    file
    for file in sorted(STUDIES.glob("*.toml"))
    if tomllib.loads(file.read_text())["task"]["kind"] != "prepared"
]


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step takes a second, and a batch of validation a quarter of one."""
    monkeypatch.setattr(estimate, "_timed", lambda trial, config: (1.0, 0.25))


@pytest.mark.usefixtures("one_second")
def test_the_estimate_adds_up_the_budgets_of_all_trials() -> None:
    trials = tiny_trials()  # 4 trials of 12 steps of 8 sequences of 8 steps
    cost = estimate_cost(tiny_study(), trials, cpus=16)
    assert (cost.trials, cost.optimizer_steps, cost.time_steps) == (4, 48, 48 * 64)
    flops = [dense_step_flops(config_from_dict(trial.model)) for trial in trials]
    assert cost.training_flops == pytest.approx(3 * 12 * 64 * sum(flops))
    # Twelve steps and three evaluations of sixteen batches each, two trials at a time.
    assert cost.seconds == pytest.approx(4 * (12 + 3 * 16 * 0.25) / 2)
    assert "about 48 s on this machine, 2 at a time" in str(cost)
    assert cost.expected_steps == cost.optimizer_steps
    assert "early stops" not in str(cost)


@pytest.mark.usefixtures("one_second")
@pytest.mark.parametrize(
    ("resources", "cpus", "concurrent"),
    [
        (Resources(), 2, 2),
        (Resources(cpus=2.0), 5, 2),
        (Resources(cpus=8.0), 2, 1),
        (Resources(), 64, 4),
        (Resources(max_concurrent=1), 64, 1),
        (Resources(processes=2), 5, 2),
    ],
)
def test_trials_share_the_processors(resources: Resources, cpus: int, concurrent: int) -> None:
    study = tiny_study().model_copy(update={"resources": resources})
    assert estimate_cost(study, tiny_trials(), cpus=cpus).concurrent == concurrent


@pytest.mark.parametrize(
    ("resources", "reason"),
    [("gpus = 1", "the trials run on GPUs"), ("processes = 2", "2 processes train a trial")],
)
def test_what_this_machine_cannot_tell_is_not_timed(
    resources: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_timed", None)
    cost = estimate_cost(tiny_study(max_concurrent=resources), tiny_trials())
    assert cost.seconds is None
    assert f"time: not estimated, since {reason}" in str(cost)


@pytest.mark.usefixtures("one_second")
def test_an_early_stop_is_reckoned_with() -> None:
    rates = ", ".join(f"{i}e-3" for i in range(1, 9))
    changes = {
        "mode": f'mode = "max"\n\n[nuisance]\nlearning_rate = [{rates}]\n\n'
        '[scheduler]\nkind = "asha"\ngrace = 4\nreduction = 2',
    }
    cost = estimate_cost(tiny_study(**changes), tiny_trials(**changes), cpus=1)
    # Two arms, eight choices, two seeds, twelve steps. The first seed: eight choices for 4 steps,
    # four for 4 more, two for the last 4; the second seed: those two.
    assert cost.optimizer_steps == 2 * 8 * 2 * 12
    assert cost.expected_steps == 2 * (8 * 4 + 4 * 4 + 2 * 4 + 2 * 12)
    assert cost.seconds == pytest.approx(cost.expected_steps * (1.0 + 16 * 0.25 / 4))
    assert f"early stops: about {cost.expected_steps} optimiser steps (42%)" in str(cost)


@pytest.mark.usefixtures("one_second")
def test_trials_that_a_search_has_yet_to_ask_for_are_reckoned_with() -> None:
    pytest.importorskip("optuna")
    changes = {
        "mode": 'mode = "max"\n\n[nuisance]\nlearning_rate = { low = 1e-3, high = 0.1 }\n\n'
        '[search]\nkind = "optuna"\nsamples = 6\nbatch = 2',
    }
    known = tiny_trials(**changes)
    cost = estimate_cost(tiny_study(**changes), known, cpus=1)
    assert (len(known), cost.trials) == (8, 24)
    assert cost.optimizer_steps == 24 * 12
    assert cost.time_steps == 24 * 12 * 64
    assert cost.seconds == pytest.approx(24 * (12 + 3 * 16 * 0.25))


def test_a_step_is_timed_and_the_callers_random_numbers_stay() -> None:
    import torch

    torch.manual_seed(3)
    before = torch.get_rng_state()
    cost = estimate_cost(tiny_study(), tiny_trials())
    assert cost.seconds is not None
    assert 0.0 < cost.seconds < 60.0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.0, "5 s"), (150.0, "2.5 min"), (3 * 3600.0, "3.0 hours"), (4 * 86_400.0, "4.0 days")],
)
def test_durations_are_said_in_their_unit(seconds: float, text: str) -> None:
    cost = CostEstimate(
        trials=1,
        optimizer_steps=1,
        expected_steps=1,
        time_steps=1,
        training_flops=1.0,
        concurrent=1,
        seconds=seconds,
    )
    assert f"about {text} on" in str(cost)


@pytest.mark.usefixtures("one_second")
@pytest.mark.parametrize("file", GENERATED, ids=lambda file: file.stem)
def test_a_dry_run_of_a_shipped_study_starts_nothing(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["sma-eval", "run", str(file), "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out = capsys.readouterr().out
    # What the comment at the head of the file promises.
    trials = out.splitlines()[0].split(": ")[1]
    assert f"# {trials}" in file.read_text()
    assert "optimiser steps" in out
    assert not list(tmp_path.iterdir())
