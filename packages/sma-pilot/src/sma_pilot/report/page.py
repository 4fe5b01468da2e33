"""The one-page report: everything a decision needs in one HTML file that loads nothing else."""

import os
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sma_pilot.errors import RunError
from sma_pilot.judge.measurements import CANDIDATE, FIRST_OF
from sma_pilot.judge.metrics import EVENT_RECALL
from sma_pilot.report import content
from sma_pilot.report.evidence import Evidence
from sma_pilot.report.plots import (
    interval_plot,
    latency_by_share_plot,
    latency_plot,
    trade_off_plot,
)
from sma_pilot.report.routing_picture import routing_picture
from sma_pilot.report.stretches import choose_stretches
from sma_pilot.report.svg import Drawing, style_sheet


def write_report(run_folder: Path, out: Path | None = None) -> Path:
    """Write the report of a judged run as one self-contained HTML file.

    Parameters
    ----------
    run_folder : Path
    out : Path, optional
        Where the page goes; ``report.html`` in the run folder by default.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    RunError
        When the run was not judged, a part of it is damaged, or the page cannot be written.
    """
    evidence = Evidence.read(run_folder)
    path = evidence.run.report if out is None else out
    write_page(path, render(evidence, draw(evidence)))
    return path


def write_page(path: Path, page: str) -> None:
    """Write a page whole or not at all, in the same bytes on every system."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(page.encode())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot write the report: {error.strerror}") from error


def draw(evidence: Evidence) -> dict[str, Drawing]:
    """Return the report's drawings by name, in the page's order; those without data left out."""
    quality = {arm: own for arm, own in evidence.quality.items() if arm not in FIRST_OF}
    latency = evidence.measurements.latency
    gates = [kpi for kpi in evidence.result.kpis if kpi.is_gate]
    drawings = [
        # A count has no room for doubt to draw.
        interval_plot([kpi for kpi in gates if kpi.interval is not None or kpi.unit == "ratio"]),
        trade_off_plot(
            {arm: evidence.trade_off(arm) for arm in quality},
            {
                arm: (own.false_alarms_per_day, own.values[EVENT_RECALL])
                for arm, own in quality.items()
                if own.false_alarms_per_day is not None and EVENT_RECALL in own.values
            },
            evidence.plan.quality.false_alarms_per_day or 0.0,
        ),
        latency_plot(latency, evidence.plan.efficiency.latency_percentile),
        latency_by_share_plot(latency[CANDIDATE]) if CANDIDATE in latency else None,
        *(routing_picture(evidence, stretch) for stretch in choose_stretches(evidence)),
    ]
    return {drawing.name: drawing for drawing in drawings if drawing is not None}


def render(evidence: Evidence, drawings: dict[str, Drawing]) -> str:
    """Return the page as HTML. Whatever a log or a plan says is escaped."""
    environment = Environment(
        loader=PackageLoader("sma_pilot", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    sheet = resources.files("sma_pilot.report").joinpath("style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        **content.page_content(evidence),
        style=Markup(style_sheet() + sheet),  # noqa: S704 - both are the package's own
        drawings=drawings,
        stretches=[own for name, own in drawings.items() if name.startswith("stretch-")],
    )
