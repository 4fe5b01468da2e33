"""What the guard says of itself: each fallback with its reason, and the tally of them all."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

Reason = Literal[
    "exception",
    "non_finite",
    "latency",
    "low_confidence",
    "never_active",
    "always_active",
    "drift",
]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
Server = Literal["incumbent", "person"]
Model = Literal["candidate", "incumbent"]

_MOST_DETAIL = 200  # characters of an exception's text, which may hold anything
_WORDS: Final[dict[Reason, str]] = {
    "exception": "the model raised {detail}",
    "non_finite": "the score was no number ({detail})",
    "latency": "the score took {value:.4g} ms, over the budget of {limit:.4g} ms",
    "low_confidence": "the routing confidence was {value:.3f}, under the limit of {limit:g}",
    "never_active": (
        "the router ran {value:.2%} of its sub-modules over the window, at or under {limit:.2%}"
    ),
    "always_active": (
        "the router ran {value:.2%} of its sub-modules over the window, at or over {limit:.2%}"
    ),
    "drift": "channel {detail} drifted: index {value:.3f}, over the limit of {limit:g}",
}


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why a row cannot be left to a model: the value that was found and the limit it broke."""

    reason: Reason
    value: float | None = None
    limit: float | None = None
    detail: str = ""

    @classmethod
    def of(cls, error: Exception) -> "Trouble":
        """Return the trouble that an exception is."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return cls(reason="exception", detail=text[:_MOST_DETAIL])


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """One fallback: which row began it, why, and who serves now.

    Parameters
    ----------
    lane, row : int
        Place in the call that began it: sequence of the batch, and step. Whoever called knows
        which entity and what time that is.
    model : str
        The model in trouble: ``candidate``, or ``incumbent`` when it failed in the fallback.
    to : str
        Who serves from here on: ``incumbent`` or ``person``.
    reason : Reason
    value, limit : float or None
        What was measured and the limit of the plan; None where the reason has none.
    detail : str
        Name of the channel, or text of the exception; it may come from a log and is not escaped.
    renewed : bool
        Whether the entity was on the fallback already and its trouble is not over.
    """

    lane: int
    row: int
    model: Model
    to: Server
    reason: Reason
    value: float | None
    limit: float | None
    detail: str
    renewed: bool

    @property
    def text(self) -> str:
        """The fallback in words."""
        return explain(self.reason, self.value, self.limit, self.detail)


def explain(reason: Reason, value: float | None, limit: float | None, detail: str) -> str:
    """Say in words why the guard fell back."""
    return _WORDS[reason].format(value=value, limit=limit, detail=detail)


@dataclass
class Tally:
    """What the guard has done so far.

    ``rows == candidate_rows + sum(fallback_rows.values())`` at any time.

    Parameters
    ----------
    rows, candidate_rows : int
        Rows served in all, and by the candidate.
    fallback_rows : Counter of Reason
        Rows served by the fallback, by what began it.
    fallbacks : Counter of Reason
        Times that a fallback began or was renewed.
    looks : int
        Times that a person was asked: once a fallback to a person, once for each fallback in
        which the incumbent failed as well.
    candidate_ns, incumbent_ns : int
        Time of each model's own calls, failed ones included, by the guard's clock.
    priming_ns : int
        Time of bringing either model up to date at a fallback or after it.
    """

    rows: int = 0
    candidate_rows: int = 0
    fallback_rows: Counter[Reason] = field(default_factory=Counter)
    fallbacks: Counter[Reason] = field(default_factory=Counter)
    looks: int = 0
    candidate_ns: int = 0
    incumbent_ns: int = 0
    priming_ns: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, each reason named."""
        return {
            **vars(self),
            "fallback_rows": {reason: self.fallback_rows[reason] for reason in REASONS},
            "fallbacks": {reason: self.fallbacks[reason] for reason in REASONS},
        }
