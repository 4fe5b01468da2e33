"""Which stretches of the judged log the report shows: chosen by rule, none by taste."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sma_pilot.judge.measurements import CANDIDATE
from sma_pilot.report.evidence import Evidence

_SHORTEST, _LONGEST = 120, 480


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Judged rows `start` to `stop` of one entity, and why they are shown."""

    name: str
    title: str
    rule: str
    start: int
    stop: int


def choose_stretches(evidence: Evidence) -> list[Stretch]:
    """Choose an event that the candidate caught, one that it missed, and a quiet stretch.

    Of the events caught, and of those missed, the one of median length is taken. Without labelled
    events the stretch around the candidate's highest score stands in for them. Sessions have none.
    """
    if evidence.plan.task.by_session or evidence.plan.task.by_class:
        return []  # what is judged is a session as a whole, and has no course to draw
    scene, caught = evidence.scene, evidence.quality[CANDIDATE].caught
    events = scene.events
    entity = scene.rows.entity
    chosen = []
    if events.count and caught is not None:
        for name, title, which in (
            ("caught", "An event that the candidate caught", caught),
            ("missed", "An event that the candidate missed", ~caught),
        ):
            indices = np.flatnonzero(which)
            if not indices.size:
                continue
            lengths = (events.stop - events.start)[indices]
            event = indices[np.argsort(lengths, kind="stable")[lengths.size // 2]]
            begin = int(min(events.window_start[event], events.start[event]))
            start, stop = _around(begin, int(events.stop[event]), entity)
            rule = f"the one of median length among {indices.size} {name}"
            chosen.append(Stretch(name=name, title=title, rule=rule, start=start, stop=stop))
    elif (peak := _peak(scene.rows.scores[CANDIDATE])) is not None:
        start, stop = _around(peak, peak + 1, entity)
        title, rule = "The candidate's highest score", "no event is labelled in the judged rows"
        chosen.append(Stretch(name="peak", title=title, rule=rule, start=start, stop=stop))
    quiet = _quiet(evidence)
    return [*chosen, quiet] if quiet else chosen


def _around(begin: int, end: int, entity: NDArray[np.int32]) -> tuple[int, int]:
    """Widen rows [begin, end) to show what led to them, within their entity and the limits."""
    first = int(np.searchsorted(entity, entity[begin], side="left"))
    last = int(np.searchsorted(entity, entity[begin], side="right"))
    width = int(np.clip(3 * (end - begin), _SHORTEST, _LONGEST))
    before = max(width // 4, (width - (end - begin)) // 2)
    start = max(first, begin - before)
    stop = min(last, start + width)
    return max(first, stop - width), stop


def _peak(score: NDArray[np.float32]) -> int | None:
    return None if np.isnan(score).all() else int(np.nanargmax(score))


def _quiet(evidence: Evidence) -> Stretch | None:
    """Take the middle of the longest run of rows without event or alarm."""
    rows, threshold = evidence.scene.rows, evidence.threshold(CANDIDATE)
    if threshold is None or not rows.rows:
        return None
    loud = (rows.label > 0) | (rows.scores[CANDIDATE] > threshold)
    ends = np.flatnonzero(np.diff(rows.entity, append=-1) != 0) + 1
    borders = np.unique(np.concatenate([[0], ends, np.flatnonzero(loud), np.flatnonzero(loud) + 1]))
    lengths = np.diff(borders)
    lengths[loud[borders[:-1]]] = 0
    longest = int(np.argmax(lengths))
    if lengths[longest] < 2:
        return None
    middle = int(borders[longest] + lengths[longest] // 2)
    half = min(int(lengths[longest]), _LONGEST // 2) // 2
    return Stretch(
        name="quiet",
        title="A quiet stretch",
        rule="the middle of the longest run without event or alarm",
        start=middle - half,
        stop=middle + half,
    )
