"""An arm that fails while it scores: which entity it was, where in its rows, and why."""

from sma_core.errors import SMAError
from sma_pilot.arms.base import Scorer
from sma_pilot.errors import PilotError, RunError
from sma_pilot.logs.slices import iso
from sma_pilot.replay.timeline import Chunk, Timeline, stack


def scoring_failed(
    arm: str, scorer: Scorer, timeline: Timeline, chunk: Chunk, error: Exception
) -> RunError:
    """Return the error of a chunk in words.

    Each entity of the chunk is tried again on its own. Where none fails then, all are named.

    Parameters
    ----------
    arm : str
        Name in the measurements.
    scorer : Scorer
    timeline : Timeline
    chunk : Chunk
        Whose rows could not be scored.
    error : Exception
    """
    together = list(zip(chunk.lanes, chunk.rows, strict=True))
    for lane, rows in together:
        try:
            scorer.score(stack([rows]), scorer.start(1))
        except Exception as alone:
            together, error = [(lane, rows)], alone
            break
    names = dict.fromkeys(repr(timeline.entities[lane.stretch.entity]) for lane, _ in together)
    since = min(int(rows.time[0]) for _, rows in together)
    until = max(int(rows.time[-1]) for _, rows in together)
    told = isinstance(error, PilotError | SMAError)
    return RunError(
        f"replay {arm}: {'entity' if len(names) == 1 else 'one of the entities'} "
        f"{', '.join(names)} cannot be scored, on rows from {iso(since)} to {iso(until)}: "
        f"{error if told else f'{type(error).__name__}: {error}'}"
    )
