"""Measure what the laboratory itself costs: many trials that only wait.

    uv run python -m experiments.sweep_overhead --trials 1000 --seconds 1 --slots 8

The whole path is the project's: study folder, records, Ray Tune, checkpoints, MLflow. Only training
is replaced, in the workers: a trial writes a small checkpoint, reports once and sleeps. Sleeping
takes no processor, so there may be more slots than processors. ``--bare`` then runs as many trials
that do the same by Ray Tune alone, without records and MLflow: the peer.
"""

import argparse
import logging
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sma_eval.sweep import tuning

# isort: split
import mlflow
import ray
from ray import tune

from sma_eval import experiment
from sma_eval.records import Report, TrialRecord, TrialResult
from sma_eval.space import Trial
from sma_eval.study import parse_study
from sma_eval.sweep.newest import NewestFirst
from sma_eval.trial import OnReport

# Ray's workers step back for every other process, and would wait for more than for the driver.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (Ray spells it so)

STUDY = """
version = 1
name = "overhead"
seeds = {seeds}
[task]
kind = "selective_copying"
length = 6
tokens = 2
vocabulary = 3
train_sequences = 32
validation_sequences = 16
test_sequences = 16
[model]
width = 8
layers = 1
states = 2
[training]
max_steps = 1
[scientific]
policy = [{{ kind = "always" }}]
pool = [[{{ kind = "gated_attention", query_width = 4, value_width = 8, window = 8 }}]]
[objective]
metric = "accuracy"
mode = "max"
"""


def waiting(seconds: float) -> Any:
    """Return a trial that only waits, for `sma_eval.sweep.tuning` to run in place of training."""

    def run_trial(
        trial: Trial, dataset: Path, folder: Path, *, report: OnReport, **rest: Any
    ) -> TrialResult:
        folder.mkdir(parents=True)
        (folder / "state").write_bytes(b"0" * 4096)
        report(Report(step=1, metrics={"train_loss": 1.0, "tokens_per_second": 1.0}), folder)
        time.sleep(seconds)
        figures: Mapping[str, float] = {"loss": 1.0, "accuracy": 0.5, "activation_rate": 1.0}
        return TrialResult(
            validation=figures,
            test=figures,
            activation=((1.0,),),
            flops_per_step=1.0,
            dense_flops_per_step=1.0,
            parameters=1,
            steps=1,
            best_step=1,
            seconds=seconds,
        )

    return run_trial


def run_bare(trials: int, seconds: float, folder: Path) -> float:
    """Return the seconds that Ray Tune alone takes for as many such trials."""

    def train(config: dict[str, int]) -> None:
        with tempfile.TemporaryDirectory() as work:
            (Path(work) / "state").write_bytes(b"0" * 4096)
            tune.report({"train_loss": 1.0}, checkpoint=tune.Checkpoint.from_directory(work))
        time.sleep(seconds)

    began = time.monotonic()
    results = tune.Tuner(
        tune.with_resources(train, {"CPU": 1}),
        param_space={"trial": tune.grid_search(list(range(trials)))},
        # Ray's own order would have one worker in eight do all the work.
        tune_config=tune.TuneConfig(reuse_actors=True, scheduler=NewestFirst()),
        run_config=tune.RunConfig(name="bare", storage_path=str(folder), verbose=0),
    ).fit()
    if results.num_errors:
        raise SystemExit(f"{results.num_errors} bare trials failed")
    return time.monotonic() - began


class Watch:
    """An observer that notes when trials report and end."""

    def __init__(self, trials: int) -> None:
        self._trials = trials
        self.reports = 0
        self.ends: list[float] = []
        self.first = float("nan")

    def update(self, record: TrialRecord, report: Report | None) -> None:
        """Take note, and say every hundred trials how far it is."""
        if report is not None:
            self.reports += 1
            if self.reports == 1:
                self.first = time.monotonic()
        if record.ended:
            self.ends.append(time.monotonic())
            if len(self.ends) % 100 == 0:
                print(f"{len(self.ends)} of {self._trials} trials", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What scheduling and book-keeping cost a trial.")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--bare", action="store_true", help="also run Ray Tune alone, the peer")
    args = parser.parse_args()
    run_trial = waiting(args.seconds)

    if not hasattr(tuning, "run_trial"):
        raise SystemExit("sma_eval.sweep.tuning.run_trial: what the workers run is elsewhere now")

    def replace() -> None:  # in each worker, when it starts
        tuning.run_trial = run_trial  # pyright: ignore[reportPrivateImportUsage]

    ray.init(
        address="local",
        num_cpus=args.slots,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"worker_process_setup_hook": replace},
    )
    study = parse_study(STUDY.format(seeds=list(range(args.trials))), "overhead")
    watch = Watch(args.trials)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        outcome = experiment.run(study, data=Path(), out=Path(folder) / "out", observers=[watch])
        ended = time.monotonic()
        bare = run_bare(args.trials, args.seconds, Path(folder)) if args.bare else None
    ray.shutdown()
    if outcome.count("finished") != args.trials or watch.reports != args.trials:
        raise SystemExit(f"{outcome.count('finished')} finished, {watch.reports} reports")
    ideal = args.trials * args.seconds / args.slots
    running = watch.ends[-1] - watch.first + args.seconds
    half = args.trials // 2
    late = (watch.ends[-1] - watch.ends[half]) / (args.trials - 1 - half)
    print(
        f"Ray {ray.__version__}, MLflow {mlflow.__version__}, Python {platform.python_version()}, "
        f"sma-eval's own path\n"
        f"{args.trials} trials of {args.seconds:g} s in {args.slots} slots: ideal {ideal:.1f} s\n"
        f"whole study {ended - began:.1f} s ({(ended - began) / ideal:.2f} of the ideal): "
        f"{watch.first - began:.1f} s to the first report, {running:.1f} s of trials, "
        f"{ended - watch.ends[-1]:.1f} s to close\n"
        f"overhead {(running * args.slots / args.trials - args.seconds) * 1e3:.0f} ms of a slot a "
        f"trial; the driver takes on a trial every {late * 1e3:.0f} ms in the second half"
    )
    if bare is not None:
        print(
            f"Ray Tune alone {bare:.1f} s: the laboratory takes {(ended - began) / bare:.2f} of it"
        )


if __name__ == "__main__":
    main()
