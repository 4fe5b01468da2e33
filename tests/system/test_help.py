"""Every command documents itself: a sentence, an example, and no surprise in its exit code."""

from importlib import import_module

import pytest
from typer.main import get_command
from typer.testing import CliRunner

PROGRAMS = ("sma_pilot.cli", "sma_eval.cli")


def _subcommands() -> list[tuple[str, str]]:
    return [
        (program, name)
        for program in PROGRAMS
        for name in get_command(import_module(program).app).commands  # pyright: ignore[reportAttributeAccessIssue]
    ]


@pytest.mark.parametrize(("program", "name"), _subcommands())
def test_help_has_an_example(program: str, name: str) -> None:
    result = CliRunner().invoke(import_module(program).app, [name, "--help"])
    assert result.exit_code == 0
    tool = program.split(".")[0].replace("_", "-")
    assert f"Example: {tool} {name}" in " ".join(result.output.split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_unknown_option_exits_with_two(program: str) -> None:
    app = import_module(program).app
    name = next(iter(get_command(app).commands))  # pyright: ignore[reportAttributeAccessIssue]
    assert CliRunner().invoke(app, [name, "--no-such-option"]).exit_code == 2
