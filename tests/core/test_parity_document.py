"""docs/parity.md says what the table of tolerances says, and its figures stay within it."""

from pathlib import Path

from tests.tolerances import TOLERANCES

LINES = (Path(__file__).parents[2] / "docs/parity.md").read_text(encoding="utf-8").splitlines()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES if line[:1] == "|"]


def test_the_tolerances_are_those_in_force() -> None:
    told = {row[0]: (row[1], row[2]) for row in ROWS if len(row) == 3 and row[0] in TOLERANCES}
    assert told == {name: (f"{t.relative:.0e}", t.reason) for name, t in TOLERANCES.items()}


def test_the_figures_are_within_them() -> None:
    figures = [row for row in ROWS if len(row) == 6 and row[2] in TOLERANCES]
    assert len(figures) == 16
    for _, _, dtype, output, gradient, allowed in figures:
        assert float(allowed) == TOLERANCES[dtype].relative
        assert float(output) <= float(allowed)
        assert not gradient or float(gradient) <= float(allowed)
