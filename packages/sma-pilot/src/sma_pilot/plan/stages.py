"""Tables ``stages``: the steps from a desk to the whole plant, each on its own later slice."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sma_pilot.plan.log import Border, Slices
from sma_pilot.plan.values import Duration, Section, Share

StageKind = Literal["offline", "shadow", "canary", "full"]
KINDS: tuple[StageKind, ...] = ("offline", "shadow", "canary", "full")
"""In the order in which a pilot may go through them."""


class StagePlan(Section):
    """One stage: which rows it judges, when it looks, and what stops it."""

    kind: StageKind
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    """Name of its folder; the kind unless given."""
    until: Border | None = None
    """Where its slice ends and the next one's begins; None, for the last: where the log ends."""
    looks: Annotated[int, Field(ge=1, le=20)] | Annotated[tuple[Share, ...], Field(max_length=19)]
    """How often it is judged, at equal distances; or at shares of its slice and its end."""
    spending: Literal["obrien_fleming", "pocock"] = "obrien_fleming"
    """How ``quality.alpha`` is spent over the looks: nearly all at the end, or evenly."""
    signature_required: bool = False
    """Whether the next stage, or the end, waits until somebody signs a go for this one."""
    share: Share | None = None
    """kind canary: share of the entities that the candidate serves."""
    speed: Annotated[float, Field(gt=0.0)] = 1.0
    """kind shadow: how many times faster than recorded events are sent."""
    paced_events: Annotated[int, Field(ge=1)] = 500
    """kind shadow: events sent at that pace at each look."""
    deadline: Duration | None = None
    """kind shadow: the candidate's answer is late when it takes longer than this; None: no gate."""
    late_limit: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Share of late answers over which the stage is stopped."""
    unscored_limit: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Share of rows that the incumbent scored and the candidate did not, over which it stops."""
    fallback_limit: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """kinds canary, full: share of rows served by the guard's fallback over which it is stopped."""
    watch_alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    """Chance that the watch over losses stops a candidate that loses just ``loss_limit``."""
    block: Duration | None = None
    """Time of one block of the watch over losses; None: ten times ``quality.alarm_merge``."""
    loss_limit: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """In place of ``quality.loss_limit``."""
    minimum_events: Annotated[int, Field(ge=1)] | None = None
    """In place of ``quality.minimum_events``."""
    latency_ratio_limit: Annotated[float, Field(gt=0.0)] | None = None
    """In place of ``efficiency.latency_ratio_limit``."""
    memory_ratio_limit: Annotated[float, Field(gt=0.0)] | None = None
    """In place of ``efficiency.memory_ratio_limit``; a guard holds the incumbent in memory, too."""

    @property
    def serves(self) -> bool:
        """Whether the candidate serves here, within its guard if the plan has one."""
        return self.kind in ("canary", "full")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {"name": given.get("kind"), "looks": 1, **given}
        return given

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> Self:
        if (self.kind == "canary") != (self.share is not None):
            raise ValueError("`share` is needed by kind 'canary' and unknown to the other kinds")
        for name in ("speed", "paced_events", "deadline", "late_limit"):
            default = type(self).model_fields[name].default
            if self.kind != "shadow" and getattr(self, name) != default:
                raise ValueError(f"kind {self.kind!r} takes no `{name}`; kind 'shadow' does")
        if self.fallback_limit is not None and self.kind not in ("canary", "full"):
            raise ValueError(f"kind {self.kind!r} takes no `fallback_limit`; nothing is served")
        if isinstance(self.looks, tuple) and list(self.looks) != sorted(set(self.looks)):
            raise ValueError("`looks` at shares of the slice are given in rising order")
        return self

    @property
    def look_times(self) -> tuple[float, ...]:
        """When it looks, as shares of its slice; the end is the last."""
        if isinstance(self.looks, tuple):
            return (*self.looks, 1.0)
        return tuple((look + 1) / self.looks for look in range(self.looks))


def check_stages(stages: Sequence[StagePlan], slices: Slices) -> None:
    """Check that the stages follow each other in kind and in time.

    Raises
    ------
    ValueError
        Naming the stage.
    """
    if not stages:
        return
    if slices.judged_until is not None:
        raise ValueError("slices.judged_until: with stages, the last stage's `until` says so")
    names = [stage.name for stage in stages]
    for place, stage in enumerate(stages):
        where = f"stages.{place}"
        if stage.name in names[:place]:
            raise ValueError(
                f"{where}.name: {stage.name!r} is taken; give stages names of their own"
            )
        if place and KINDS.index(stage.kind) < KINDS.index(stages[place - 1].kind):
            raise ValueError(f"{where}.kind: stages go {', '.join(KINDS)}, in this order")
        if stage.until is None and place < len(stages) - 1:
            raise ValueError(f"{where}.until: only the last stage may last until the log ends")
    borders = [slices.judged_from, *(stage.until for stage in stages if stage.until is not None)]
    if len({type(border) for border in borders}) > 1:
        raise ValueError("stages: give all borders as `slices` does: shares, or timestamps")
    for place, (before, border) in enumerate(pairwise(borders)):
        if not before < border:  # pyright: ignore[reportOperatorIssue]
            raise ValueError(f"stages.{place}.until: lies before the slice begins")
