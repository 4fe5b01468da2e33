"""The core runs where torch, safetensors and jaxtyping, with what they need, are all there is."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import sma_core

ROOT = Path(sma_core.__file__).parent
ALLOWED = {"torch", "safetensors", "jaxtyping"}
# None in sys.modules is a package that is not installed. numpy is: safetensors brings it.
PROGRAM = """
import sys
absent = {names!r}
sys.modules.update(dict.fromkeys(absent))
import importlib, pkgutil
import sma_core
for module in pkgutil.walk_packages(sma_core.__path__, "sma_core."):
    importlib.import_module(module.name)

import tempfile, torch
from sma_core import *
config = ModelConfig(inputs=InputConfig(numeric=2), head=HeadConfig(kind="forecast", outputs=2))
model = build_model(config).eval()
inputs = Inputs(torch.zeros(1, 3, 2))
expected = model(inputs).prediction
with tempfile.TemporaryDirectory() as folder:
    save_checkpoint(folder, model, provenance={{}})
    assert load_checkpoint(folder).model(inputs).prediction.equal(expected)
state = model.init_state(1)
model.step(Inputs(torch.zeros(1, 1, 2)), state)
assert all(sys.modules[name] is None for name in absent)
print("fine")
"""


def third_party() -> set[str]:
    """Top-level packages that the sources name, besides the standard library's."""
    named: set[str] = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                named.add((node.module or "").partition(".")[0])
    return named - set(sys.stdlib_module_names) - {"sma_core"}


def test_the_sources_name_no_other_package() -> None:
    assert third_party() == ALLOWED


def test_the_sources_name_what_the_package_declares() -> None:
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[>]", spec)[0] for spec in project["dependencies"]}
    assert declared == ALLOWED


def test_it_works_where_nothing_else_is_installed() -> None:
    absent = {
        *("polars", "mlflow", "ray", "sklearn", "pydantic", "typer", "beartype"),
        *("pandas", "pyarrow", "scipy", "sma_eval", "sma_pilot", "hypothesis", "pytest"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(names=absent)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fine"


def test_every_public_name_is_there_and_documented() -> None:
    for name in sma_core.__all__:
        assert getattr(sma_core, name).__doc__, name
    assert sorted(sma_core.__all__) == sma_core.__all__
