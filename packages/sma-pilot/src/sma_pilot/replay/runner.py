"""Runs every leg of a replay: each arm, in each scenario, in random order, once.

A leg is measured in one go: stopped half way, it runs again from its start, while finished legs
stay. The incumbent runs twice under two names; what the two differ by is the noise of the bench.

The scores of offline legs may come from shards (`sharding`), and then what is finished of a leg
stays, too. What is timed is timed here and alone, whoever scores.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sma_core.dataset import PreparedDataset
from sma_core.threads import compute_threads
from sma_pilot.arms import Arm, Scorer, build_arms
from sma_pilot.arms.recorded import RecordedScorer
from sma_pilot.errors import RunError
from sma_pilot.logs.slices import iso
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress
from sma_pilot.replay.card import (
    ReplayCard,
    describe_dataset,
    describe_window,
    fingerprint,
    read_json,
)
from sma_pilot.replay.clock import (
    Clock,
    earlier_objects_settled,
    timer_overhead_ns,
    wall_clock,
)
from sma_pilot.replay.energy import EnergyMeter
from sma_pilot.replay.environment import environment
from sma_pilot.replay.further import LegContext, further_scenarios
from sma_pilot.replay.legs import (
    GUARDED,
    OFFLINE,
    SINGLE_STREAM,
    LegName,
    by_scenario,
    legs_of,
)
from sma_pilot.replay.meters import PeakMemory
from sma_pilot.replay.offline import run_offline, time_offline
from sma_pilot.replay.recorded import copy_scores, copy_times
from sma_pilot.replay.served import serving
from sma_pilot.replay.sharding import Sharding, discard_shards, score_in_shards
from sma_pilot.replay.shards import ShardJob
from sma_pilot.replay.single_stream import harness_ns, run_single_stream
from sma_pilot.replay.stream import Stream, choose_stream
from sma_pilot.replay.timeline import Lane, Timeline, Window
from sma_pilot.run_folder import write_json


def replay(
    plan: Plan,
    dataset: PreparedDataset,
    models: Path,
    folder: Path,
    on_progress: OnProgress,
    *,
    window: Window | None = None,
    arms: Mapping[str, Arm] | None = None,
    sharding: Sharding | None = None,
    clock: Clock = wall_clock,
) -> ReplayCard:
    """Replay the validation and judged slices through every arm and keep what was measured.

    Parameters
    ----------
    plan : Plan
        For a look of a stage: what the stage reads from it.
    dataset : PreparedDataset
        With splits ``validation`` and ``judged``.
    models : Path
        One folder per arm of the plan, as `fit_arms` left them.
    folder : Path
        Where the measurements go; a replay that was stopped there goes on.
    on_progress : OnProgress
    window : Window, optional
        The part of the judged slice to replay; all of it by default.
    arms : dict of str to Arm, optional
        Arms by role, in place of those that the plan names.
    sharding : Sharding, optional
        Who scores the offline legs; this process by default. Times are taken here in any case.
    clock : Clock
        What times the arms.

    Raises
    ------
    RunError
        `folder` holds a replay of another plan, data set, model or machine, the device is not
        there, or a shard failed.
    """
    arms = build_arms(plan) if arms is None else arms
    if plan.replay.device == "cuda" and not torch.cuda.is_available():
        raise RunError("replay.device: 'cuda' is asked for and there is no CUDA device here")
    timeline = Timeline(dataset, round(plan.log.max_gap.total_seconds() * 1e9), window)
    if window is not None and timeline.judged_rows == 0:
        raise RunError(
            f"{folder}: no row to judge lies from {iso(window.since_ns)} to "
            f"{iso(window.until_ns)}; plan fewer looks or another border"
        )
    begun = {
        "plan_digest": plan.digest,
        "models": {role: fingerprint(models / role) for role in arms},
        "dataset": describe_dataset(dataset.card, timeline.entities),
        "environment": environment(plan.replay.threads, plan.replay.device),
        "window": None if window is None else describe_window(window, timeline.entities),
    }
    finished = folder / "replay.json"
    _claim(folder, begun, finished.exists())
    if finished.exists():
        return ReplayCard.load(finished)

    bench = _Bench(plan, timeline, folder, clock, on_progress, sharded=sharding is not None)

    def bare(role: str) -> Scorer:
        return arms[role].open(models / role)

    open_scorer = serving(plan, timeline, bare, clock, on_progress)
    legs = legs_of(plan)
    with compute_threads(plan.replay.threads):
        waiting = [leg for leg in legs if not (folder / "legs" / leg.file).exists()]
        streams = [leg for leg in legs if leg.visit is not None]
        for role in dict.fromkeys(leg.role for leg in waiting):
            if not plan.is_recorded(role):
                bench.rehearse(open_scorer(role))
        with earlier_objects_settled():
            if sharding is not None:
                job_of = partial(
                    ShardJob,
                    plan=plan,
                    arms=arms,
                    dataset=dataset.folder.resolve(),
                    models=models.resolve(),
                    folder=folder.resolve(),
                    window=window,
                    begun=read_json(folder / "begun.json"),
                )
                offline = [
                    leg
                    for leg in waiting
                    if leg.scenario == OFFLINE and not plan.is_recorded(leg.role)
                ]
                _offline_in_shards(bench, offline, open_scorer, job_of, timeline, sharding)
                waiting = [leg for leg in waiting if leg not in offline]
            for leg in waiting:
                if leg.scenario == SINGLE_STREAM:
                    on_progress("replay single stream", streams.index(leg), len(streams))
                # The guarded leg puts its own guard around the candidate.
                opens = bare if leg.scenario == GUARDED else open_scorer
                _keep(folder, leg, bench.measure(leg, opens))
        on_progress("replay single stream", len(streams), len(streams))
    discard_shards(folder)
    begun["environment"]["timer_overhead_ns"] = timer_overhead_ns(clock)
    begun["environment"]["harness_ns"] = harness_ns(clock)
    measured = {leg: read_json(folder / "legs" / leg.file) for leg in legs}
    card = ReplayCard(**begun, order=[str(leg) for leg in legs], legs=by_scenario(measured))
    write_json(finished, card.to_dict())
    return card


def _claim(folder: Path, begun: dict[str, Any], finished: bool) -> None:
    """Make `folder` this replay's own, or refuse it as that of another one."""
    path = folder / "begun.json"
    if not path.exists():
        write_json(path, begun)
        return
    before = read_json(path)
    reasons: dict[str, str] = {
        "plan_digest": "of another plan",
        "dataset": "of another data set",
        "models": "of other models",
        "window": "of other rows",
    }
    if not finished:
        reasons["environment"] = "on another machine or with other software"
    for part, reason in reasons.items():
        if before.get(part) != begun[part]:
            raise RunError(
                f"{folder}: holds a replay {reason}, whose measurements cannot be mixed with "
                "these; delete the folder or replay into another one"
            )


def _offline_in_shards(
    bench: "_Bench",
    legs: list[LegName],
    open_scorer: Callable[[str], Scorer],
    job_of: Callable[..., ShardJob],
    timeline: Timeline,
    sharding: Sharding,
) -> None:
    """Time the offline legs here, one by one, and then have their rows scored in shards.

    In this order nothing else runs on this machine while something is timed, even where the
    workers are on it too: they are there for as long as they score, and no longer.
    """
    if not legs:
        return
    timed = {leg: bench.measure(leg, open_scorer) for leg in legs}
    with sharding.workers() as workers:
        for leg in legs:
            job = job_of(arm=leg.arm, role=leg.role)
            activation = score_in_shards(workers, job, timeline, sharding.shards, bench.on_progress)
            _keep(job.folder, leg, timed[leg] | activation)
            discard_shards(job.folder, leg.arm)


def _keep(folder: Path, leg: LegName, figures: dict[str, Any]) -> None:
    """Write down that a leg is finished, and what it came to."""
    write_json(folder / "legs" / leg.file, figures)


class _Bench:
    """Measures one leg after the other under the same conditions."""

    def __init__(
        self,
        plan: Plan,
        timeline: Timeline,
        folder: Path,
        clock: Clock,
        on_progress: OnProgress,
        *,
        sharded: bool,
    ) -> None:
        self._plan = plan
        self._timeline = timeline
        self._folder = folder
        self._clock = clock
        self.on_progress = on_progress
        self._sharded = sharded

    def rehearse(self, scorer: Scorer) -> None:
        """Score a few rows, so that what cannot work fails now and not hours later.

        It also has the process pay, before anything is metered, for what libraries do once.
        """
        few = [Lane(s, min(s.rows, 16)) for s in self._timeline.stretches[:1]]
        with torch.inference_mode():
            for chunk in self._timeline.walk(scorer, few, 16):
                scorer.score(chunk.inputs, chunk.state)
                scorer.step(chunk.inputs.map(lambda rows: rows[:, :1]), chunk.state)

    def measure(self, leg: LegName, open_scorer: Callable[[str], Scorer]) -> dict[str, Any]:
        """Run a leg and return its figures, ready for JSON."""
        settings = self._plan.replay
        if self._plan.is_recorded(leg.role):
            return self._copy(leg, open_scorer(leg.role))
        energy = EnergyMeter(device=settings.device, clock=self._clock)
        with PeakMemory(sampled=leg.scenario == OFFLINE, device=settings.device) as memory, energy:
            scorer = open_scorer(leg.role)
            if leg.scenario not in (OFFLINE, SINGLE_STREAM):
                context = LegContext(
                    plan=self._plan,
                    arm=leg.arm,
                    scorer=scorer,
                    open_scorer=open_scorer,
                    timeline=self._timeline,
                    folder=self._folder,
                    clock=self._clock,
                    on_progress=self.on_progress,
                    sample_memory=memory.sample,
                )
                figures = further_scenarios()[leg.scenario](context)
            elif leg.visit is None and self._sharded:
                figures = time_offline(
                    leg.arm,
                    scorer,
                    self._timeline,
                    chunk_rows=settings.chunk_rows,
                    clock=self._clock,
                    on_progress=self.on_progress,
                )
            elif leg.visit is None:
                figures = run_offline(
                    leg.arm,
                    scorer,
                    self._timeline,
                    self._folder,
                    chunk_rows=settings.chunk_rows,
                    routing=leg.arm == "candidate",
                    clock=self._clock,
                    on_progress=self.on_progress,
                )
            else:
                figures = run_single_stream(
                    leg.arm,
                    leg.visit,
                    scorer,
                    self._timeline,
                    self._stream(leg.visit),
                    self._folder,
                    chunk_rows=settings.chunk_rows,
                    warmup=settings.warmup_events,
                    clock=self._clock,
                    sample_memory=memory.sample,
                )
        return {
            **figures,
            "peak_rss_bytes": memory.peak_rss_bytes,
            "baseline_rss_bytes": memory.baseline_rss_bytes,
            "peak_cuda_bytes": memory.peak_cuda_bytes,
            "state_bytes_per_entity": scorer.start(1).nbytes,
            "weight_bytes": scorer.weight_bytes,
            "energy_joules": energy.joules,
            "threads": settings.threads,
        }

    def _copy(self, leg: LegName, scorer: Scorer) -> dict[str, Any]:
        """Copy what was recorded; of what nobody metered there is None."""
        assert isinstance(scorer, RecordedScorer)  # noqa: S101  (the arm is of that kind)
        settings = self._plan.replay
        if leg.visit is None:
            figures = copy_scores(
                leg.arm,
                scorer,
                self._timeline,
                self._folder,
                chunk_rows=settings.chunk_rows,
                on_progress=self.on_progress,
            )
        else:
            figures = copy_times(
                leg.arm,
                leg.visit,
                scorer,
                self._timeline,
                self._stream(leg.visit),
                self._folder,
                warmup=settings.warmup_events,
            )
        unknown = ("peak_rss_bytes", "baseline_rss_bytes", "peak_cuda_bytes", "energy_joules")
        return {
            **figures,
            **dict.fromkeys((*unknown, "threads")),
            "state_bytes_per_entity": scorer.state_bytes_per_entity,
            "weight_bytes": scorer.weight_bytes,
        }

    def _stream(self, visit: int) -> Stream:
        """Return the events of a pass: the same for every arm."""
        settings = self._plan.replay
        size = settings.warmup_events + settings.single_stream_events
        return choose_stream(self._timeline, size, f"{self._plan.seed}/{visit}")
