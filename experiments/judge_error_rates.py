"""How often the judge errs, by simulation on logs whose true loss is known.

Each log is drawn from a world of `tests.pilot.judge_worlds`: events whose losses hang together
through a hidden state with a memory, and through incidents. Its loss of event recall is bounded by
the judge's own functions. From the root of the workspace:

    uv run python -m experiments.judge_error_rates rates --logs 400 --plot rates.png
    uv run python -m experiments.judge_error_rates power --logs 400

``rates`` prints how often a loss at the limit passes, which must be at most alpha, and what
becomes of smaller and larger ones. ``power`` prints how often a candidate without any loss passes
at the limit that `sma-pilot plan` calls the smallest that the data can prove.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import binomtest
from tests.pilot.judge_worlds import World, bound_world

from sma_pilot.judge.provable import Assumption, Evidence, smallest_provable_loss

ALPHA = 0.05
LIMIT = 0.1
WON = 0.02
# The true losses whose fate is counted: none, the limit, twice the limit.
LOSSES = (0.0, 0.1, 0.2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A world, and the block that the plan declares (in bins), if it does."""

    world: World
    block: int | None = None


CASES = (
    Case(world=World(events=60, lost=0)),
    Case(world=World(events=60, lost=0, memory=10)),
    Case(world=World(events=200, lost=0)),
    Case(world=World(events=200, lost=0, memory=10)),
    Case(world=World(events=200, lost=0, together=4)),
    Case(world=World(events=200, lost=0, memory=33)),
    Case(world=World(events=600, lost=0, memory=10)),
    Case(world=World(events=200, lost=0, memory=10), block=1),
    Case(world=World(events=200, lost=0, memory=10), block=50),
    Case(world=World(events=200, lost=0, memory=10, together=4)),
    Case(world=World(events=600, lost=0)),
    Case(world=World(events=600, lost=0, memory=33)),
)


def rates(logs: int, seed: int, cases: Sequence[Case] = CASES) -> Iterator[dict[str, Any]]:
    """Yield, for each case, the shares of logs that pass and fail at each true loss."""
    for case in cases:
        row: dict[str, Any] = {
            "events": case.world.events,
            "memory": case.world.memory / case.world.bins,
            "together": case.world.together,
            "block": case.block,
        }
        for loss in LOSSES:
            world = replace(case.world, lost=loss + WON, won=WON)
            generator = np.random.default_rng([seed, round(100 * loss)])
            counts = {"pass": 0, "fail": 0, "inconclusive": 0}
            # The rate that must hold is measured the best.
            size = logs if loss == LIMIT else max(logs // 6, 1)
            for _ in range(size):
                judged = bound_world(world, generator, alpha=ALPHA, block=case.block)
                counts[judged.status(LIMIT)] += 1
            row[f"loss {loss:g}"] = {**counts, "logs": size}
        yield row


def interval(successes: int, trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper and Pearson)."""
    found = binomtest(successes, trials).proportion_ci(0.95)
    return found.low, found.high


def print_rates(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print one line a case as it comes; return them all."""
    head = ("events", "memory", "together", "block", "false go, 95 % interval")
    head += ("go at 0", "open at 0", "no-go at 0.2")
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}", flush=True)
    done = []
    for row in rows:
        counts = {loss: row[f"loss {loss:g}"] for loss in LOSSES}
        low, high = interval(counts[LIMIT]["pass"], counts[LIMIT]["logs"])
        cells = (
            row["events"],
            f"{row['memory']:g}",
            row["together"],
            "chosen" if row["block"] is None else row["block"],
            f"{counts[LIMIT]['pass'] / counts[LIMIT]['logs']:.3f} ({low:.3f} to {high:.3f})",
            f"{counts[0.0]['pass'] / counts[0.0]['logs']:.2f}",
            f"{counts[0.0]['inconclusive'] / counts[0.0]['logs']:.2f}",
            f"{counts[0.2]['fail'] / counts[0.2]['logs']:.2f}",
        )
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        done.append(row)
    return done


def plot_rates(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw false go at the limit against alpha, and what becomes of other losses, by case."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 0.36 * len(rows) + 1.4), sharey=True, layout="constrained"
    )
    places = range(len(rows))
    labels = []
    for place, row in zip(places, rows, strict=True):
        at_limit = row[f"loss {LIMIT:g}"]
        share = at_limit["pass"] / at_limit["logs"]
        low, high = interval(at_limit["pass"], at_limit["logs"])
        left.errorbar(share, place, xerr=[[share - low], [high - share]], fmt="o", color="tab:blue")
        block = "" if row["block"] is None else f", blocks of {row['block']}"
        together = "" if row["together"] == 1 else f", {row['together']} together"
        labels.append(f"{row['events']} events, memory {row['memory']:g}{together}{block}")
    left.axvline(ALPHA, color="tab:red", linestyle="--", label=f"alpha, {ALPHA:g}")
    left.set(title=f"false go at a loss of {LIMIT:g}, the limit", xlabel="share of logs, 95 %")
    left.set_yticks(list(places), labels)
    left.set_xlim(left=0)
    left.invert_yaxis()
    for loss, fate, marker in ((0.0, "pass", "o"), (0.2, "fail", "s")):
        shares = [row[f"loss {loss:g}"][fate] / row[f"loss {loss:g}"]["logs"] for row in rows]
        verdict = "go" if fate == "pass" else "no-go"
        right.plot(shares, places, marker, label=f"{verdict} at a loss of {loss:g}")
    right.set(title="what is told apart", xlabel="share of logs", xlim=(-0.02, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=90)


# Events and share lost (as many are won) of candidates without a loss.
PLANNED = ((60, 0.025), (200, 0.025), (200, 0.05), (600, 0.025))


def print_power(logs: int, seed: int) -> list[dict[str, Any]]:
    """Print how often candidates without a loss pass at the limit that is planned for 0.8."""
    print("| events | differing | planned limit | go, 95 % interval |\n| --- | --- | --- | --- |")
    done = []
    for events, lost in PLANNED:
        world = World(events=events, lost=lost, won=lost)
        evidence = Evidence(
            events=events, incidents=events, blocks=world.bins, days=1.0, design_effect=1.0
        )
        limit = smallest_provable_loss(evidence, Assumption(discordance=2 * lost, alpha=ALPHA))
        generator = np.random.default_rng([seed, events])
        passed = sum(
            bound_world(world, generator, alpha=ALPHA).status(limit) == "pass" for _ in range(logs)
        )
        low, high = interval(passed, logs)
        share = f"{passed / logs:.3f} ({low:.3f} to {high:.3f})"
        print(f"| {events} | {2 * lost:g} | {limit:.3f} | {share} |", flush=True)
        done.append({"events": events, "lost": lost, "limit": limit, "pass": passed, "logs": logs})
    return done


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=("rates", "power"))
    parser.add_argument("--logs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="picture of the rates, PNG or SVG")
    given = parser.parse_args()
    if given.table == "rates":
        done = print_rates(rates(given.logs, given.seed))
        if given.plot is not None:
            plot_rates(done, given.plot)
    else:
        done = print_power(given.logs, given.seed)
    if given.json is not None:
        given.json.write_text(json.dumps(done, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
