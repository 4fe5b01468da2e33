"""The run folder: a changed plan lands elsewhere, a changed file is noticed."""

import json
from pathlib import Path

import pytest
from tests.pilot.test_plan import PLAN, parse_plan

from sma_pilot.errors import RunError
from sma_pilot.run_folder import RunFolder, write_json


def test_another_plan_gets_another_folder(tmp_path: Path) -> None:
    one = RunFolder.create(parse_plan(PLAN, "a"), tmp_path)
    same = RunFolder.create(parse_plan(PLAN, "b"), tmp_path)
    other = RunFolder.create(parse_plan(PLAN.replace("0.05", "0.06"), "a"), tmp_path)
    assert one == same
    assert one.path != other.path
    assert RunFolder.open(one.path).load_plan() == parse_plan(PLAN, "a")


def test_a_plan_changed_after_it_was_frozen_is_refused(tmp_path: Path) -> None:
    run = RunFolder.create(parse_plan(PLAN, "a"), tmp_path)
    frozen = json.loads(run.plan.read_text())
    frozen["plan"]["quality"]["loss_limit"] = 0.5
    run.plan.write_text(json.dumps(frozen))
    with pytest.raises(RunError, match="changed after it was frozen"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"digest": 1, "plan": {}}', "\x00"])
def test_what_is_no_run_folder_is_told_apart(tmp_path: Path, content: str) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(RunError, match="not a frozen plan"):
        RunFolder.open(tmp_path)


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["file.json"]
