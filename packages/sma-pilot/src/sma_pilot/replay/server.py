"""The server scenario: an open loop, in which events come whether the arm is free or not.

Each event is due at a time that was drawn up before the first one. When the arm is still at an
earlier event, it waits in line, and its response time counts from when it was due: a slow answer
is charged with all that it held up [1]_. Service times are kept beside the response times.

One thread sends and serves, so an event can only be late because the arm was busy, or because the
harness was. The second is the slip: how long an event that was due was kept from an arm that was
free. A run with too much of it is invalid, since it offered less load than it says.

References
----------
.. [1] MLCommons, "MLPerf Inference Rules", Server scenario: latency is measured from the scheduled
   time of a query.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from sma_core.model import Inputs
from sma_pilot.errors import RunError
from sma_pilot.judge.load import keeps_bound
from sma_pilot.judge.load_sample import kept_schedule
from sma_pilot.plan import ServerPlan
from sma_pilot.replay.clock import Clock, Wait, garbage_collector_off
from sma_pilot.replay.further import LegContext
from sma_pilot.replay.parts import write_parquet
from sma_pilot.replay.single_stream import events_of, states_before
from sma_pilot.replay.stream import choose_stream

# The search stops when the rate is known to a thirty-second of what the arm could serve at most.
_PROBES = 5
_TRIES = 2


@dataclass(frozen=True)
class Run:
    """Times of one open loop, int64 [Q] each, in ns."""

    service: NDArray[np.int64]
    response: NDArray[np.int64]
    slip: NDArray[np.int64]


def run_server(leg: LegContext) -> dict[str, Any]:
    """Send the events of a stream by the plan's schedule, then search for the highest rate.

    Returns
    -------
    dict
        Figures of the leg, ready for JSON; ``server/`` gets every time of the declared rate.

    Raises
    ------
    RunError
        The schedule would take longer than the plan allows.
    """
    settings = leg.plan.replay.server
    assert settings is not None  # noqa: S101  (the plan has checked it)
    stream = choose_stream(leg.timeline, settings.events, f"{leg.plan.seed}/server")
    seed = f"{leg.plan.seed}/arrivals"
    arrivals, rate = arrivals_of(stream.time, settings, seed)
    if rate is not None and arrivals[-1] / rate > settings.most_seconds:
        what = "speed" if settings.arrivals == "log" else "rate"
        raise RunError(
            f"replay.server.{what}: {len(arrivals)} events at {rate:.3g} a second take "
            f"{arrivals[-1] / rate:,.0f} s, over replay.server.most_seconds; raise the {what} or "
            "send fewer events"
        )
    figures: dict[str, Any] = {"offered_rate": rate, "sustainable_rate": None, "search_note": ""}
    run = Run(*(np.zeros(0, np.int64) for _ in range(3)))
    if rate is not None:
        with torch.inference_mode():
            states = states_before(leg.scorer, leg.timeline, stream, leg.plan.replay.chunk_rows)
            bench = Bench(leg, events_of(leg.timeline, stream), states, stream.lane.tolist())
            bench.warm_up()
            leg.on_progress(f"replay server {leg.arm}", 0, None)
            run = bench.run(arrivals / rate)
            leg.sample_memory()
            if settings.bound_ms is not None:
                figures |= _search(leg, bench, arrivals, run, settings.bound_ms)
    columns = {f"{name}_ns": column for name, column in vars(run).items()}
    write_parquet(
        pl.DataFrame(columns).with_row_index("query"),
        leg.folder / "server" / f"part-{leg.arm}-00000.parquet",
    )
    return {
        "rows": len(run.service),
        "seconds": None if rate is None else float(arrivals[-1] / rate),
        "rows_per_second": None,  # the schedule's, and none of the arm's
        "activation_rate": None,
        "events_per_query": 1,
        **figures,
    }


def arrivals_of(
    time: NDArray[np.int64], settings: ServerPlan, seed: str
) -> tuple[NDArray[np.float64], float | None]:
    """Return when events are due in units of the mean gap, and the declared rate.

    Parameters
    ----------
    time : int64 [Q]
        The log's own timestamps, ns.
    settings : ServerPlan
    seed : str
        Draws the times of arrivals ``poisson``.

    Returns
    -------
    arrivals : float64 [Q]
        From 0 on, not decreasing; a rate of r events a second puts them at ``arrivals / r``.
    rate : float or None
        Events a second; None when there are fewer than two, or all have one time.
    """
    if len(time) < 2:
        return np.zeros(len(time)), None
    if settings.rate is not None:
        generator = np.random.default_rng(list(seed.encode()))
        gaps = generator.exponential(size=len(time) - 1)
        return np.concatenate([[0.0], np.cumsum(gaps)]), settings.rate
    since = (time - time[0]).astype(np.float64)
    mean = since[-1] / (len(time) - 1)
    if mean == 0:
        return since, None
    return since / mean, settings.speed * 1e9 / mean


class Bench:
    """Runs the same events by different schedules, each from the same states."""

    def __init__(
        self, leg: LegContext, events: list[Inputs], states: list[Any], lanes: list[int]
    ) -> None:
        self._step = leg.scorer.step
        self._clock: Clock = leg.clock
        self._wait: Wait = leg.wait
        self._events, self._states, self._lanes = events, states, lanes
        self._warmup = leg.plan.replay.warmup_events

    def _copies(self) -> list[Any]:
        return [state.select(torch.tensor([0])) for state in self._states]

    def warm_up(self) -> None:
        """Serve a few events that do not count."""
        states = self._copies()
        for event, lane in list(zip(self._events, self._lanes, strict=True))[: self._warmup]:
            self._step(event, states[lane])

    def run(self, due_seconds: NDArray[np.float64]) -> Run:
        """Send every event when it is due, or as soon as those before it are answered."""
        due = np.rint(due_seconds * 1e9).astype(np.int64)
        states, clock, wait, step = self._copies(), self._clock, self._wait, self._step
        calls = list(zip(self._events, self._lanes, due.tolist(), strict=True))
        begins, ends = [], []
        with garbage_collector_off():
            start = clock()
            for event, lane, own in calls:
                wait(clock, start + own)
                begins.append(clock())
                step(event, states[lane])
                ends.append(clock())
        begin, end = np.array(begins) - start, np.array(ends) - start
        free = np.concatenate([[0], end[:-1]])
        return Run(service=end - begin, response=end - due, slip=begin - np.maximum(due, free))


def _search(
    leg: LegContext, bench: Bench, arrivals: NDArray[np.float64], run: Run, bound_ms: float
) -> dict[str, Any]:
    """Halve the range between no load and what the arm could serve at most."""
    most = 1e9 / float(run.service.mean()) if run.service.sum() else None
    if most is None:
        return {}
    percentile = leg.plan.efficiency.latency_percentile
    low, high = 0.0, 1.0
    for probe in range(_PROBES):
        leg.on_progress(f"replay server {leg.arm}", probe, _PROBES)
        middle = (low + high) / 2
        for _ in range(_TRIES):
            tried = bench.run(arrivals / (middle * most))
            if kept_schedule(tried.service, tried.slip):
                break
        else:
            note = "Not estimable: the harness fell behind its schedule during the search."
            return {"search_note": note}
        keeps = keeps_bound(tried.response, bound_ms, percentile)
        low, high = (middle, high) if keeps else (low, middle)
    leg.on_progress(f"replay server {leg.arm}", _PROBES, _PROBES)
    if not low:
        note = (
            f"Not estimable: no rate tried kept p{percentile:g} of responses proven within "
            f"{bound_ms:g} ms by {len(arrivals)} events."
        )
        return {"search_note": note}
    return {
        "sustainable_rate": low * most,
        "search_note": f"p{percentile:g} of responses within {bound_ms:g} ms; "
        f"not kept at {high * most:.4g} events a second."
        if high < 1
        else f"p{percentile:g} of responses within {bound_ms:g} ms; the highest rate tried.",
    }
