"""An assessment as one self-contained page, and as text for a terminal."""

import io
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sma_pilot.assess.answer import Answer
from sma_pilot.assess.assessment import Assessment
from sma_pilot.assess.plots import draw
from sma_pilot.assess.tables import tables
from sma_pilot.report.page import write_page
from sma_pilot.report.svg import printable, style_sheet

_WIDTH = 100
_TONES = {"much": "go", "some": "inconclusive", "little": "no-go"}


def write_assessment(assessment: Assessment, path: Path) -> None:
    """Write the page at `path`, whole or not at all; it loads nothing else.

    Raises
    ------
    RunError
        When it cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("sma_pilot", "assess"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    sheet = resources.files("sma_pilot.report").joinpath("style.css").read_text(encoding="utf-8")
    page = environment.get_template("assessment.html.j2").render(
        plan=assessment.plan,
        answer=assessment.answer,
        tone=_TONES[assessment.answer.word],
        scope=scope(assessment),
        machine=None
        if assessment.ceilings is None
        else printable(assessment.ceilings.machine, 200),
        drawings=draw(assessment),
        tables=tables(assessment),
        style=Markup(style_sheet() + sheet),  # noqa: S704 - both are the package's own
    )
    write_page(path, page)


def assessment_text(assessment: Assessment) -> str:
    """Lay the assessment out for a terminal."""
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, color_system=None, highlight=False)
    found: Answer = assessment.answer
    console.print(Text(f"assessment of {assessment.plan.name}: {found.sentence}\n"))
    for mark, lines in (("\N{MIDDLE DOT}", found.reasons), ("!", found.cautions)):
        grid = RichTable.grid(padding=(0, 1))
        for line in lines:
            grid.add_row(f" {mark}", Text(line))
        console.print(grid)
    console.print(Text(f"\n{scope(assessment)}"))
    for table in tables(assessment):
        drawn = RichTable(title=table.title, box=box.SIMPLE, title_justify="left", pad_edge=False)
        for number, column in enumerate(table.columns):
            drawn.add_column(column, justify="right" if number else "left")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def scope(assessment: Assessment) -> str:
    """Say which rows and which model the figures are of."""
    own, config = assessment.difficulty, assessment.costs.config
    entities = max(1, len(assessment.dataset.card.entities))
    pool = ", ".join(member.kind.replace("_", " ") for member in config.pool)
    return (
        f"{own.error.size:,} validation rows of {entities:,} "
        f"{'entity' if entities == 1 else 'entities'}, each forecast from the rows before it by "
        f"{own.labels[own.best]}, fitted on earlier rows; rows that will judge were not read. "
        f"Candidate: {config.layers} {'layer' if config.layers == 1 else 'layers'} of width "
        f"{config.width} with {pool}."
    )
