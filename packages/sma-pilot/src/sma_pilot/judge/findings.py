"""Where the parts of the judge put what they found: KPIs, and the reasons of the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sma_pilot.judge.result import Kpi, Reason, Status, Verdict


@dataclass
class Findings:
    """KPIs and reasons in the order in which they were found."""

    kpis: list[Kpi] = field(default_factory=list)
    gates: list[Reason] = field(default_factory=list)
    remarks: list[Reason] = field(default_factory=list)

    def gate(self, kpi: Kpi, text: str) -> None:
        """Add a KPI that decides, and the sentence that says why it stands as it does."""
        if not kpi.is_gate:
            raise ValueError(f"{kpi.name}: a gate has status pass, fail or inconclusive")
        self.kpis.append(kpi)
        self.gates.append(Reason(kpi=kpi.name, status=kpi.status, text=text))

    def inform(self, kpi: Kpi) -> None:
        """Add a KPI that decides nothing; without a value it is marked as not measured."""
        if kpi.value is None:
            kpi = Kpi(**{**vars(kpi), "status": "not_measured"})
        self.kpis.append(kpi)

    def remark(self, kpi: str, text: str) -> None:
        """Add a sentence that a reader must see though it decides nothing."""
        self.remarks.append(Reason(kpi=kpi, status="info", text=text))

    @property
    def verdict(self) -> Verdict:
        """No-go when any gate fails, go only when every one passes, else inconclusive."""
        return combine([gate.status for gate in self.gates])


def combine(statuses: Sequence[Status]) -> Verdict:
    """Return the verdict of the gates' statuses; no gate at all proves nothing."""
    if "fail" in statuses:
        return "no-go"
    return "go" if statuses and set(statuses) == {"pass"} else "inconclusive"


def status_of(low: float, high: float, limit: float) -> Status:
    """Return pass when the whole interval is under `limit`, fail when it is over."""
    if high < limit:
        return "pass"
    return "fail" if low > limit else "inconclusive"


def confidence_text(alpha: float) -> str:
    """Write the confidence of a one-sided bound, such as ``95 %``."""
    return f"{100 * (1 - alpha):g} %"


def bound_text(interval: tuple[float, float], limit: float, alpha: float) -> str:
    """Say how an interval stands to its limit, in the words of its `status_of`."""
    low, high = interval
    confidence = confidence_text(alpha)
    where = {
        "pass": f"at most {high:.4g} with {confidence} confidence, under",
        "fail": f"at least {low:.4g} with {confidence} confidence, over",
    }.get(
        status_of(low, high, limit),
        f"from {low:.4g} to {high:.4g} at {confidence} confidence a side, which does not settle",
    )
    return f"{where} the limit of {limit:g}"
