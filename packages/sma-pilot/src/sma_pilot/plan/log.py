"""Tables ``log`` and ``slices``: which rows there are, and which of them teach or judge."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sma_pilot.plan.text import LineFormat, TextSource
from sma_pilot.plan.values import Duration, Moment, Section, Share


def _share_or_moment(value: object) -> object:
    # A number would pass for seconds since 1970.
    if isinstance(value, int | float) and not 0.0 < value < 1.0:
        raise ValueError("a border is a share of the time span, between 0 and 1, or a timestamp")
    return value


# A border between slices: a share of the log's time span, or a point in time.
Border = Annotated[Share | Moment, BeforeValidator(_share_or_moment)]


class LogSource(Section):
    """Which files hold the log and what its columns mean."""

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """Paths or glob patterns, relative to the data folder."""
    time: str
    """Column of the timestamp; without a zone it is taken as UTC."""
    entity: str | None = None
    """Column that names the machine; None for a log of one machine."""
    label: str | None = None
    """Column that marks an anomaly or failure (0 or null: none); for judging, and for `alarm`."""
    class_label: str | None = None
    """Column of the class, a word or a whole number (empty: nobody knows); for `classification`."""
    numeric: tuple[str, ...] = ()
    """Numeric columns, by name or glob pattern."""
    categorical: tuple[str, ...] = ()
    """Columns of discrete values, by name or glob pattern."""
    lines: LineFormat | None = None
    """How plain files, .log and .txt, become columns."""
    text: TextSource | None = None
    """The column of free text; the templates mined from it are a categorical channel."""
    period: Duration
    """Usual time between two rows of one entity."""
    max_gap: Duration
    """A longer silence of an entity starts a new sequence, with fresh state."""
    duplicates: Literal["first", "last", "keep"] = "last"
    """Which row stands when an entity has two of the same time, in the order of the files; keep:
    all, each a nanosecond after the one before."""
    scaling: Literal["per_entity", "global"] = "per_entity"
    """Whether centre and scale (of training rows) are taken for each entity or for all."""

    @model_validator(mode="after")
    def _text_fits(self) -> Self:
        if self.lines is not None and self.time not in self.lines.columns:
            raise ValueError(
                f"time: {self.time!r} is no named group of lines.pattern, which has "
                f"{', '.join(self.lines.columns)}"
            )
        if self.text is not None and self.text.session is not None and self.entity is not None:
            raise ValueError(
                "text.session: `entity` names the session already; give one of the two"
            )
        return self

    @property
    def has_entity(self) -> bool:
        """Whether the rows say which machine or session they are of."""
        return self.entity is not None or (self.text is not None and self.text.session is not None)

    @property
    def has_words(self) -> bool:
        """Whether there is a categorical channel: a column of words, or templates of a text."""
        return bool(self.categorical) or self.text is not None

    @property
    def answer(self) -> tuple[str, str | None]:
        """The field that names the column of the truth, and that column."""
        if self.class_label is not None:
            return "class_label", self.class_label
        return "label", self.label


class Slices(Section):
    """Cuts the log's time into train, validation and judged, in this order."""

    validation_from: Border
    judged_from: Border
    judged_until: Border | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        borders = [self.validation_from, self.judged_from, self.judged_until]
        given = [border for border in borders if border is not None]
        if len({type(border) for border in given}) > 1:
            raise ValueError("give all borders as shares of the time span, or all as timestamps")
        if given != sorted(given) or len(set(given)) < len(given):  # pyright: ignore[reportArgumentType]
            raise ValueError("need validation_from < judged_from < judged_until")
        return self
