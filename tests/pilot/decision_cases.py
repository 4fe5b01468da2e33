"""Judged runs to sign, and how tests sign, spoil and type."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.pilot.fabricated_run import make_run

from sma_pilot import cli, tracking
from sma_pilot.decision import signing
from sma_pilot.decision.record import Decision
from sma_pilot.decision.signing import sign
from sma_pilot.judge.measurements import Measurements
from sma_pilot.judge.result import Result
from sma_pilot.judge.verdict import judge
from sma_pilot.plan import Plan
from sma_pilot.progress import no_progress
from sma_pilot.report import page
from sma_pilot.run_folder import RunFolder

NAME = "Ada <script>alert(1)</script> Berg"
REASON = "As judged; *all* limits hold. <img src=x onerror=alert(2)>"
JUDGED: dict[str, Result] = {}


def make_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, as it says nothing of who signed; judge the same measurements once."""
    for module in (signing, tracking, page):
        monkeypatch.setattr(module, "draw", lambda evidence: {})

    def judge_once(measurements: Measurements, plan: Plan) -> Result:
        if plan.digest not in JUDGED:
            JUDGED[plan.digest] = judge(measurements, plan)
        return JUDGED[plan.digest]

    monkeypatch.setattr(signing, "judge", judge_once)


def make_runs(root: Path) -> dict[str, RunFolder]:
    """Make a run of each verdict."""
    kinds = ("go", "no-go", "inconclusive")
    return {kind: make_run(root, kind=kind, days=8, seed=i) for i, kind in enumerate(kinds)}


def copied(run: RunFolder, root: Path) -> RunFolder:
    """Return a copy of `run` under `root`."""
    return RunFolder(Path(shutil.copytree(run.path, root / run.path.name)))


def give(run: RunFolder, decision: Any = "go", reason: str = REASON, **options: Any) -> Decision:
    """Sign as `NAME`, by default with the verdict of a run that was judged a go."""
    options = {"override": False, "on_progress": no_progress} | options
    return sign(run, decision, NAME, reason, **options)


def records(run: RunFolder) -> list[Path]:
    """Return the files of the run's decisions, oldest first."""
    return sorted(run.decisions.iterdir())


def flip(path: Path, place: int) -> None:
    """Flip a bit of the byte at `place`."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def run_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """Run a command as typed; return its exit code, stdout and stderr."""
    monkeypatch.setattr("sys.argv", ["sma-pilot", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err
