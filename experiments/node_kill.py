"""Kill a machine under a running study, and count what that costs.

    uv run python -m experiments.node_kill

Ray nodes on this machine, a processor each, run a small study twice: undisturbed, then with a node
killed in the middle, which is not replaced. Both must end alike; what is printed is the price.
"""

import argparse
import logging
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.local_cluster import LocalCluster

from sma_eval import experiment
from sma_eval.experiment import Outcome
from sma_eval.records import Report, TrialRecord
from sma_eval.study import Study, parse_study

CHECKPOINT_EVERY, REPORT_EVERY = 50, 10
STUDY = """
version = 1
name = "node-kill"
seeds = {seeds}
[task]
kind = "selective_copying"
length = 16
tokens = 4
vocabulary = 4
[model]
width = 32
layers = 1
states = 8
[training]
max_steps = {steps}
batch_size = 32
evaluate_every = {report_every}
evaluate_batches = 1
patience = 1000000
checkpoint_every = {checkpoint_every}
[scientific]
pool = [[{{ kind = "gated_attention", query_width = 16, value_width = 32, window = 32 }}]]
policy = [{{ kind = "always" }}, {{ kind = "tempered_softmax", target_rate = 0.5 }}]
[objective]
metric = "accuracy"
mode = "max"
"""


class Killer(logging.Handler):
    """An observer that kills a node once, and notes who reports when and who starts again."""

    def __init__(self, cluster: LocalCluster, kill_at: int) -> None:
        super().__init__(logging.WARNING)
        self._cluster = cluster
        self._kill_at = kill_at
        self.killed: float | None = None
        self._reports: dict[str, list[tuple[float, int]]] = {}
        self._restarted: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a sweep's word that a trial starts again: its label is the first argument."""
        if isinstance(record.args, tuple):
            self._restarted.add(str(record.args[0]))

    def update(self, record: TrialRecord, report: Report | None) -> None:
        """Take note, and kill when the first trial has come far enough."""
        if report is None:
            return
        self._reports.setdefault(record.trial.label, []).append((time.monotonic(), report.step))
        if self.killed is None and report.step >= self._kill_at:
            self.killed = time.monotonic()
            self._cluster.lose(self._cluster.trial_processes()[0])

    def losses(self) -> list[tuple[int, float]]:
        """Return the steps that each restarted trial repeated, and its silence in seconds."""
        return [
            max(
                (
                    (last - (step - REPORT_EVERY), after - before)
                    for (before, last), (after, step) in pairwise(self._reports[label])
                ),
                key=lambda loss: loss[1],
            )
            for label in sorted(self._restarted)
        ]


def figures(outcome: Outcome) -> dict[str, Any]:
    """Return what must not depend on a machine's death."""
    return {
        record.trial.id: record.result and (record.result.validation, record.result.test)
        for record in outcome.records
    }


def timed(study: Study, out: Path, *observers: Any) -> tuple[Outcome, float]:
    """Run a study and return how long it took, in seconds."""
    began = time.monotonic()
    outcome = experiment.run(study, data=Path(), out=out, observers=observers)
    return outcome, time.monotonic() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What a machine's death costs a study.")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    text = STUDY.format(
        seeds=list(range(args.seeds)),
        steps=args.steps,
        checkpoint_every=CHECKPOINT_EVERY,
        report_every=REPORT_EVERY,
    )
    study = parse_study(text, "node-kill")
    cluster = LocalCluster(args.nodes)
    try:
        with tempfile.TemporaryDirectory() as folder:
            undisturbed, calm = timed(study, Path(folder) / "calm")
            killer = Killer(cluster, args.steps // 2)
            logging.getLogger("sma_eval.sweep").addHandler(killer)
            disturbed, hit = timed(study, Path(folder) / "hit", killer)
    finally:
        cluster.close()
    if killer.killed is None or figures(disturbed) != figures(undisturbed):
        raise SystemExit("the node was not killed in time, or the figures differ")
    trials = len(disturbed.records)
    print(
        f"{trials} trials of {args.steps} steps, a checkpoint every {CHECKPOINT_EVERY}, on "
        f"{args.nodes} nodes, one killed when a trial was half-way:"
    )
    print(f"all {disturbed.count('finished')} finished, with the figures of the undisturbed study")
    print(f"whole study: {calm:.1f} s undisturbed, {hit:.1f} s with one node less half-way")
    for steps, seconds in killer.losses():
        print(f"a trial repeated {steps} steps; {seconds:.1f} s from its last report to the next")


if __name__ == "__main__":
    main()
