"""The API reference builds from docstrings, and nothing public is missing in it."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import sma_core

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the documented command writes, with every warning an error."""
    folder = tmp_path_factory.mktemp("api")
    documented = re.search(
        r"uv run pdoc (.*?)(?:  |$)", (ROOT / "CONTRIBUTING.md").read_text(), re.M
    )
    assert documented
    arguments = shlex.split(documented[1])
    arguments[arguments.index("-o") + 1] = str(folder)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pdoc", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return (folder / "sma_core.html").read_text()


def test_every_public_name_is_in_it(page: str) -> None:
    missing = [name for name in sma_core.__all__ if f'id="{name}"' not in page]
    assert not missing
    assert "Parameters" in page
    assert "-----" not in page, "a section of a docstring is no numpydoc section"


@pytest.mark.parametrize("name", sma_core.__all__)
def test_every_public_name_has_a_summary(name: str) -> None:
    """Its own, not that of a base class or the signature that a dataclass writes."""
    text = inspect.cleandoc(
        vars(getattr(sma_core, name)).get("__doc__") or getattr(sma_core, name).__doc__ or ""
    )
    summary = text.split("\n")[0]
    assert summary.endswith("."), f"{name}: {summary!r}"
    assert not text.startswith(f"{name}(")
