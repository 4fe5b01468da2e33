"""What the documents say is run: Python blocks as they stand, commands against the real parsers."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")]
)
# A Python block, and what it prints, if that is the next block.
PYTHON_BLOCK = re.compile(
    r"^```python\n(.*?)^```\n(?:(?:(?!^```).)*?^```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE
)
COMMAND = re.compile(r"(?:uv run )?(sma-(?:pilot|eval) [a-z-].*)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _commands() -> list[tuple[str, str]]:
    found = []
    for path in DOCUMENTS:
        code = [line for line in path.read_text().splitlines() if line.startswith("    ")]
        for block in re.findall(
            r"^```(?:sh|console)\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE
        ):
            code += block.splitlines()
        found += [
            (_id(path), match[1].split("   ")[0].split("#")[0].strip())
            for line in code
            if (match := COMMAND.search(line))
        ]
    return found


# One process for all of them: most of the time of one alone goes into importing torch.
RUN_BLOCKS = """
import contextlib, io, json, os, sys, tempfile, traceback

failed = []
for document, code, printed in json.load(sys.stdin):
    print(document, file=sys.stderr, flush=True)
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out):
        os.chdir(folder)
        try:
            exec(compile(code, document, "exec"), {"__name__": "__main__"})
        except BaseException:
            failed.append(f"{document}:\\n{code}\\n{traceback.format_exc()}")
        os.chdir("/")
    if printed and out.getvalue() != printed:
        failed.append(f"{document}: prints\\n{out.getvalue()}\\nand not\\n{printed}")
print(json.dumps(failed))
"""


def test_python_blocks_run_and_print_what_stands_below_them() -> None:
    texts = {_id(path): path.read_text() for path in DOCUMENTS}
    blocks = [
        (name, *block) for name, text in texts.items() for block in PYTHON_BLOCK.findall(text)
    ]
    assert sum(bool(printed) for *_, printed in blocks) >= 3
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN_BLOCKS],
        input=json.dumps(blocks),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout.splitlines()[-1])
    assert not failed, "\n\n".join(failed)


@pytest.mark.parametrize("path", DOCUMENTS, ids=_id)
def test_links_lead_somewhere(path: Path) -> None:
    broken = [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize(("document", "command"), sorted(set(_commands())))
def test_documented_commands_exist(document: str, command: str) -> None:
    """Each subcommand and option that a document names is one that the parser knows."""
    from typer.main import get_command

    program, name, *arguments = shlex.split(command.replace("|", " "))
    if program == "sma-pilot":
        from sma_pilot.cli import app
    else:
        from sma_eval.cli import app
    group = get_command(app)
    commands = group.commands  # pyright: ignore[reportAttributeAccessIssue]
    if name == "--help":
        return
    assert name in commands, f"{document}: {program} has no command {name}"
    options = {option for parameter in commands[name].params for option in parameter.opts}
    wanted = {a.strip("[]").split("=")[0] for a in arguments if a.strip("[]").startswith("--")}
    assert wanted <= options | {"--help"}, f"{document}: {program} {name}: {wanted - options}"
