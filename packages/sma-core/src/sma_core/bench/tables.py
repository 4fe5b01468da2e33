"""The report: markdown tables on the screen as results come, all of it as JSON in the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sma_core.bench.machine import describe, headline
from sma_core.files import write_json


class Report:
    """Results of one benchmark.

    Parameters
    ----------
    benchmark
        Its name.
    command
        What was typed.
    settings
        Every option.
    device
        Where it runs.
    path
        JSON file, rewritten after every table; None writes none.
    """

    def __init__(
        self,
        benchmark: str,
        *,
        command: str,
        settings: Mapping[str, Any],
        device: torch.device,
        path: Path | None = None,
    ) -> None:
        self._path = path
        self.content: dict[str, Any] = {
            "benchmark": benchmark,
            "command": command,
            "machine": describe(device),
            "settings": dict(settings),
            "notes": [],
            "results": [],
            "goals": [],
        }
        print(f"{benchmark}: {headline(self.content['machine'])}")
        print(f"`{command}`")
        listed = ", ".join(f"{name} {value}" for name, value in settings.items())
        print(f"settings: {listed}", flush=True)

    def note(self, text: str) -> None:
        """Say something in words."""
        self.content["notes"].append(text)
        print(f"\n{text}", flush=True)

    def add(self, **result: Any) -> None:
        """Keep one result with its raw figures."""
        self.content["results"].append(result)

    def goal(self, what: str, value: float | None, limit: float, *, at_least: bool) -> None:
        """Keep a figure that has a goal; None was not measured, which never counts as met."""
        met = value is not None and (value >= limit if at_least else value <= limit)
        self.content["goals"].append(
            {"what": what, "value": value, "limit": limit, "at_least": at_least, "met": met}
        )

    def print_goals(self) -> None:
        """Print the table of goals."""
        rows = [
            (
                goal["what"],
                number(goal["value"], 3),
                f"{'at least' if goal['at_least'] else 'at most'} {goal['limit']:g}",
                "not measured" if goal["value"] is None else "yes" if goal["met"] else "no",
            )
            for goal in self.content["goals"]
        ]
        self.table(("goal", "measured", "limit", "met"), rows)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table, and write all so far to the file."""
        if rows:
            print(f"\n| {' | '.join(columns)} |")
            print("|" + "---|" * len(columns))
            for row in rows:
                print(f"| {' | '.join(row)} |")
        print(end="", flush=True)
        self.save()

    def save(self) -> None:
        """Write the JSON file, if there is to be one."""
        if self._path is not None:
            write_json(self._path, self.content)


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits for a table; a dash for what was not measured."""
    if value is None:
        return "-"
    if value and abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def mebibytes(value: int | None) -> str:
    """Bytes for a table."""
    return "-" if value is None else f"{value / 2**20:,.0f}"
