"""How things stand after all looks: labels come late, so quality is of a look that has them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sma_pilot.monitor.finding import Finding
from sma_pilot.monitor.look import MonitorLook
from sma_pilot.monitor.recommendation import Recommendation, recommend


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What all looks together recommend.

    Attributes
    ----------
    recommendation : Recommendation
    summary : str
        Why, in words.
    findings : tuple of (int, Finding)
        Each with the number of the look that it is from.
    """

    recommendation: Recommendation
    summary: str
    findings: tuple[tuple[int, Finding], ...]


def standing_of(looks: Sequence[MonitorLook]) -> Standing:
    """Bring looks together: each finding is of the newest one, quality of the newest that tells.

    Parameters
    ----------
    looks : sequence of MonitorLook
        At least one, in the order of their rows, without those that were replaced.
    """
    findings = tuple(_newest(looks, own.name) for own in looks[-1].findings)
    recommendation, summary = recommend([finding for _, finding in findings])
    return Standing(recommendation=recommendation, summary=summary, findings=findings)


def _newest(looks: Sequence[MonitorLook], name: str) -> tuple[int, Finding]:
    """Return the finding that counts, with the number of its look."""
    found = [
        (look.number, finding)
        for look in reversed(looks)
        for finding in look.findings
        if finding.name == name
    ]
    if not name.startswith("quality/"):
        return found[0]
    return next((one for one in found if one[1].status in ("ok", "alarm")), found[0])
