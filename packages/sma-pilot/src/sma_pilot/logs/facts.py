"""What two passes over an ordered log tell about it: the ground that checks and `init` stand on."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sma_pilot.logs.blocks import Block, blocks
from sma_pilot.logs.labels import EVENT, NORMAL, UNKNOWN
from sma_pilot.logs.leakage import RepeatTaker, Separation, SeparationTaker
from sma_pilot.logs.reader import LogReader
from sma_pilot.logs.slices import OUTSIDE, SLICES, Borders, nanoseconds
from sma_pilot.logs.staging import PARTITION_BYTES, stage
from sma_pilot.logs.tally import Tally
from sma_pilot.logs.vocabulary import Vocabulary
from sma_pilot.plan import LogSource, Slices
from sma_pilot.progress import OnProgress

_EXAMPLES = 3


class StepTaker:
    """The times between rows of an entity, kept to four significant digits."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._entity = -1
        self._last = 0

    def add(self, block: Block) -> None:
        """Add the next block in order."""
        before = {"prepend": self._last} if block.entity == self._entity else {}
        steps = np.diff(block.time, **before)
        self._entity, self._last = block.entity, int(block.time[-1])
        steps = steps[steps > 0]
        unit = 10 ** np.maximum(np.floor(np.log10(steps)).astype(np.int64) - 3, 0)
        values, counts = np.unique((steps + unit // 2) // unit * unit, return_counts=True)
        self._counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def quantile(self, share: float) -> int | None:
        """Return the step, in ns, that `share` of the steps do not exceed; None without a step."""
        wanted = share * self._counts.total()
        reached = 0
        for step in sorted(self._counts):
            reached += self._counts[step]
            if reached >= wanted:
                return step
        return None

    @property
    def median(self) -> int | None:
        """The usual step in ns."""
        return self.quantile(0.5)

    @property
    def longest(self) -> int:
        """The longest step in ns, 0 without a step."""
        return max(self._counts, default=0)


@dataclass
class UnseenWords:
    """Rows of later slices whose word of one channel training does not know."""

    rows: list[int] = field(default_factory=lambda: [0] * len(SLICES))
    examples: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class LogFacts:
    """What is known of a log.

    Parameters
    ----------
    reader : LogReader
        The log, surveyed.
    borders : Borders
        Where its slices lie.
    entities : list of str
        Names of the E entities, sorted.
    duplicates : int
        Rows dropped for another row of the same entity and time.
    tally : Tally
        Counts by slice.
    vocabularies : list of tuple of str
        Of each categorical channel, from training rows.
    rows_of_entity, events_of_entity : int64 [E, 3]
        Rows and labelled events by slice.
    event_times : int64 [N]
        Starts of all events of the slices in ns, rising.
    steps : StepTaker
        Times between rows.
    unseen : list of UnseenWords
        One for each categorical channel.
    label_separations, target_separations : list of Separation
        How well single channels tell the label, and an event within the horizon.
    announced : list of int
        Rows of each slice with an event within the horizon; zeros without a horizon.
    repeated : float
        Share of judged rows that training had seen already.
    """

    reader: LogReader
    borders: Borders
    entities: list[str]
    duplicates: int
    tally: Tally
    vocabularies: list[tuple[str, ...]]
    rows_of_entity: NDArray[np.int64]
    events_of_entity: NDArray[np.int64]
    event_times: NDArray[np.int64]
    steps: StepTaker
    unseen: list[UnseenWords]
    label_separations: list[Separation]
    target_separations: list[Separation]
    announced: list[int]
    repeated: float


def collect_facts(
    reader: LogReader,
    log: LogSource,
    slices: Slices,
    horizon: timedelta | None,
    on_progress: OnProgress | None = None,
    partition_bytes: int = PARTITION_BYTES,
    window: timedelta | None = None,
) -> LogFacts:
    """Read a log twice in order and return what it tells, in bounded memory.

    Parameters
    ----------
    reader : LogReader
        The log, opened.
    log, slices
        The plan's description of the log and of its slices.
    horizon : timedelta, optional
        Of the task "an event within the horizon".
    on_progress : OnProgress, optional
        Told the rows done by stage.
    partition_bytes : int
        Memory aimed at for one partition of the external sort.
    window : timedelta, optional
        Of the task that tells classes.

    Raises
    ------
    LogError
        When the log does not fit its description.
    """
    survey = reader.take_survey(on_progress)
    borders = Borders.of(slices, survey.first, survey.last)
    max_gap = nanoseconds(log.max_gap)
    with stage(log, reader, None, on_progress, partition_bytes) as staged:
        tally, steps, repeats = (
            Tally(len(staged.entities), reader.columns, window, log.text),
            StepTaker(),
            RepeatTaker(),
        )
        shape = (len(staged.entities), len(SLICES))
        rows_of_entity, events_of_entity = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        done = 0
        for block in blocks(staged, borders, max_gap):
            events_before = list(tally.events.events)
            tally.add(block)
            steps.add(block)
            repeats.add(block)
            inside = block.slices[block.slices < OUTSIDE]
            rows_of_entity[block.entity] += np.bincount(inside, minlength=len(SLICES))
            events_of_entity[block.entity] += np.subtract(tally.events.events, events_before)
            done += len(block.time)
            if on_progress is not None:
                on_progress("count rows", done, staged.rows)
        tally.finish()
        vocabularies = tally.vocabularies()
        second = _SecondPass(reader, tally, vocabularies, borders, horizon)
        done = 0
        for block in blocks(staged, borders, max_gap):
            second.add(block)
            done += len(block.time)
            if on_progress is not None:
                on_progress("look for leaks", done, staged.rows)
        return LogFacts(
            reader=reader,
            borders=borders,
            entities=staged.entities,
            duplicates=staged.duplicates,
            tally=tally,
            vocabularies=[own.values for own in vocabularies],
            rows_of_entity=rows_of_entity,
            events_of_entity=events_of_entity,
            event_times=np.sort(
                np.concatenate([tally.events.starts_of(i) for i in range(len(staged.entities))])
            ),
            steps=steps,
            unseen=second.unseen,
            label_separations=second.by_label.separations(),
            target_separations=second.by_target.separations(),
            announced=second.announced,
            repeated=repeats.share,
        )


class _SecondPass:
    """What needs the whole first pass: words unseen in training, and the future's events."""

    def __init__(
        self,
        reader: LogReader,
        tally: Tally,
        vocabularies: list[Vocabulary],
        borders: Borders,
        horizon: timedelta | None,
    ) -> None:
        self._tally = tally
        self._vocabularies = vocabularies
        self._borders = borders
        self._horizon = None if horizon is None else nanoseconds(horizon)
        self.unseen = [UnseenWords() for _ in vocabularies]
        self.by_label = SeparationTaker(reader.columns)
        self.by_target = SeparationTaker(reader.columns)
        self.announced = [0] * len(SLICES)

    def add(self, block: Block) -> None:
        inside = block.slices < OUTSIDE
        if self._tally.units is None:
            truth = np.where(block.label >= EVENT, 1, np.where(block.label == NORMAL, 0, UNKNOWN))
            self.by_label.add(block, np.where(inside, truth, UNKNOWN).astype(np.int32))
        if self._horizon is not None:
            target = self._tally.events.target(block, self._borders, self._horizon)
            target = np.where(inside, target, UNKNOWN).astype(np.int32)
            self.by_target.add(block, target)
            for number in range(len(SLICES)):
                self.announced[number] += int((target[block.slices == number] == 1).sum())
        for unseen, words, known in zip(
            self.unseen, block.categorical, self._vocabularies, strict=True
        ):
            strange = words.is_not_null().to_numpy() & (known.encode(words) == 0) & inside
            if not strange.any():
                continue
            for number in range(len(SLICES)):
                unseen.rows[number] += int((strange & (block.slices == number)).sum())
            missing = _EXAMPLES - len(unseen.examples)
            examples = words.filter(pl.Series(strange)).unique(maintain_order=True)
            unseen.examples |= dict.fromkeys(islice(examples, missing))
