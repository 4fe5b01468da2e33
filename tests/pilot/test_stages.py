"""A pilot in stages: what comes next is told by files alone, and nothing starts before its time."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pilot.decision_cases import flip, give
from tests.pilot.replay_cases import quiet
from tests.pilot.stage_cases import BREACH, STAGES, go_on, script, staged_plan, staged_run

from sma_core.dataset import PreparedDataset
from sma_pilot import pilot
from sma_pilot.decision.record import Decision
from sma_pilot.decision.verification import verify
from sma_pilot.errors import DecisionError, RunError
from sma_pilot.plan import Plan
from sma_pilot.run_folder import RunFolder
from sma_pilot.stages.course import take_look
from sma_pilot.stages.look import Look, levels
from sma_pilot.stages.standing import ENDS, assess, standing
from sma_pilot.stages.windows import entity_draw, served_by_candidate, stage_edges

VERDICTS = ["go", "no-go", "inconclusive"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A pilot in stages before its first look; nobody writes to it."""
    return staged_run(tmp_path_factory.mktemp("made"), staged_plan())


@pytest.fixture(scope="module")
def gone(made: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same when every look that could be was taken, and the shadow waits for a signature."""
    run = RunFolder(Path(shutil.copytree(made.path, tmp_path_factory.mktemp("gone") / "run")))
    with pytest.MonkeyPatch.context() as patch:
        script(patch, {})
        go_on(run)
    return run


@pytest.fixture
def pending(gone: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(gone.path, tmp_path / "runs" / gone.path.name)))


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(made.path, tmp_path / "runs" / made.path.name)))


def look(number: int, verdict: Any, *, breached: bool = False) -> Look:
    return Look(
        stage="shadow",
        number=number,
        since_ns=number,
        until_ns=number + 1,
        alpha=0.01,
        judged_at="2024-01-01T00:00:00Z",
        verdict="no-go" if breached else verdict,
        breaches=(BREACH,) if breached else (),
        headline={"name": "quality/loss", "value": 0.0, "low": None, "high": None, "limit": 0.1},
    )


def decision(choice: Any, verdict: Any = "go") -> Decision:
    return Decision(
        number=1,
        time=datetime(2024, 1, 1, tzinfo=UTC),
        by="Ada",
        decision=choice,
        reason="So.",
        verdict=verdict,
        override=choice == "go" and verdict != "go",
        plan_digest="",
        files={},
        previous=None,
    )


@given(
    st.lists(st.tuples(st.sampled_from(VERDICTS), st.booleans()), max_size=4),
    st.sampled_from([None, "go", "no-go"]),
    st.sampled_from(VERDICTS),
    st.booleans(),
)
def test_a_stage_is_go_only_if_nothing_speaks_against_it(
    outcomes: list[tuple[str, bool]], choice: str | None, verdict: str, signature: bool
) -> None:
    stage = staged_plan({"kind": "offline", "looks": 4, "signature_required": signature}).stages[0]
    looks = [look(place + 1, *one[:1], breached=one[1]) for place, one in enumerate(outcomes)]
    signed = () if choice is None else (decision(choice, verdict),)
    own = assess(stage, looks, signed)
    breached = any(one.breaches for one in looks)
    first = next((one.verdict for one in looks if one.verdict != "inconclusive"), None)
    proven = first == "go" and not breached and choice != "no-go"
    assert (own.state in ("go", "pending")) == proven
    if signature:
        assert (own.state == "go") == (proven and choice == "go" and verdict == "go")
    assert (own.state == "stopped") == (breached or choice == "no-go")
    # Looks go on until the slice ends, unless the stage ended before.
    assert (own.next_look is None) == (own.state in ENDS or len(looks) == 4)


def test_a_pilot_goes_on_as_far_as_it_may(run: RunFolder, monkeypatch) -> None:
    script(monkeypatch, {("offline", 1): "inconclusive"})
    now = go_on(run)
    states = [own.state for own in now.stages]
    assert states == ["go", "pending", "waiting"]
    assert "--stage shadow --decision go" in now.text("RUN")
    assert not run.at("full").path.exists()  # no later row was touched
    assert [own.number for own in run.at("shadow").looks()] == [1, 2]

    give(run.at("shadow"))
    now = go_on(run)
    assert [own.state for own in now.stages] == ["go", "go", "pending"]
    give(run.at("full"))
    now = go_on(run)
    assert (now.verdict, now.next) == ("go", None)
    assert now.text("RUN") == "every stage is go"
    assert verify(run).is_intact
    assert len(verify(run).decisions) == 2


def test_looks_cut_the_judged_rows_and_lose_none(pending: RunFolder, monkeypatch) -> None:
    run = pending
    script(monkeypatch, {})
    give(run.at("shadow"))
    go_on(run)
    looks = [own for stage in ("offline", "shadow", "full") for own in run.at(stage).looks()]
    assert [own.since_ns for own in looks[1:]] == [own.until_ns for own in looks[:-1]]
    dataset = PreparedDataset.open(run.dataset)
    edges = stage_edges(standing(run).plan, dataset.card.provenance["borders_ns"])
    assert (looks[0].since_ns, looks[-1].until_ns) == (edges[0], edges[-1])
    parts = [
        pl.read_parquet(run.at(own.stage).look(own.number) / "scores" / "part-candidate-0*.parquet")
        for own in looks
    ]
    judged = pl.concat(parts).filter(pl.col("slice") == "judged").sort("entity", "time")
    assert judged.height == dataset.split("judged").rows
    # The score is a running sum from the entity's first row on: each look carried its state over.
    rows = dataset.split("validation").rows
    assert parts[0].filter(pl.col("slice") == "validation").height == rows
    split, sums = dataset.split("judged"), []
    before = {ref.entity: ref for ref in dataset.split("validation").sequences}
    for ref in split.sequences:
        past = before[ref.entity]
        numbers = [
            dataset.split("validation").read(past.start, past.stop).numeric,
            split.read(ref.start, ref.stop).numeric,
        ]
        whole = pl.concat([pl.Series(n[:, 0].double().numpy()) for n in numbers if n is not None])
        sums += whole.cum_sum()[past.stop - past.start :].to_list()
    assert judged["score"].to_list() == pytest.approx(sums, abs=1e-4)


@pytest.mark.parametrize("signed", [False, True])
def test_a_breach_while_watching_stops_a_stage_signed_or_not(
    run: RunFolder, monkeypatch, signed: bool
) -> None:
    script(monkeypatch, {("shadow", 2): "breach"})
    dataset = PreparedDataset.open(run.dataset)
    for _ in range(3):
        take_look(standing(run), dataset, run, quiet)
    now = standing(run)
    assert (now.current.stage.name, now.current.state) == ("shadow", "pending")
    if signed:
        give(run.at("shadow"))
        assert standing(run).current.state == "go"
    now = go_on(run)
    assert (now.current.state, now.verdict) == ("stopped", "no-go")
    assert BREACH in now.current.text
    assert not run.at("full").path.exists()
    for override in (False, True):
        with pytest.raises(DecisionError, match="no signature starts it again"):
            give(run.at("shadow"), override=override)


@pytest.mark.parametrize("outcome", ["no-go", "inconclusive", "breach"])
def test_nothing_starts_after_a_stage_that_is_not_go(
    run: RunFolder, monkeypatch, outcome: Any
) -> None:
    script(monkeypatch, {("offline", 1): outcome, ("offline", 2): outcome})
    now = go_on(run)
    assert now.current.stage.name == "offline"
    assert now.verdict == ("inconclusive" if outcome == "inconclusive" else "no-go")
    assert len(now.current.looks) == (2 if outcome == "inconclusive" else 1)
    assert not run.at("shadow").path.exists()
    with pytest.raises(RunError, match="no look comes next"):
        take_look(now, PreparedDataset.open(run.dataset), run, quiet)
    if outcome == "inconclusive":  # nor does an override, which is no proof
        give(run.at("offline"), override=True)
        assert go_on(run).current.state == "inconclusive"


def test_what_was_signed_must_still_stand_when_the_next_stage_starts(
    pending: RunFolder, monkeypatch
) -> None:
    run = pending
    script(monkeypatch, {})
    signed = give(run.at("shadow"))
    assert "stages/shadow/look-1/result.json" in signed.files
    assert "stages/shadow/report.html" in signed.files
    assert "stages/offline/look-2/look.json" in signed.files
    flip(run.at("offline").look(2) / "result.json", 40)
    found = verify(run.at("shadow"))
    assert found.changed == ("stages/offline/look-2/result.json",)
    with pytest.raises(RunError, match="changed since it was signed"):
        go_on(run)
    assert not run.at("full").looks()


def test_a_stage_of_a_changed_plan_is_told_from_an_intact_one(
    pending: RunFolder, monkeypatch
) -> None:
    run = pending
    script(monkeypatch, {})
    give(run.at("shadow"))
    frozen = json.loads(run.plan.read_text())
    frozen["plan"]["stages"][1]["signature_required"] = False
    run.plan.write_text(json.dumps(frozen))
    found = verify(run)
    assert not found.is_intact
    assert "plan.json" in found.changed
    with pytest.raises(RunError, match="changed after it was frozen"):
        standing(run)


def test_a_killed_look_is_taken_again_and_a_taken_one_never(run: RunFolder, monkeypatch) -> None:
    script(monkeypatch, {})
    dataset = PreparedDataset.open(run.dataset)
    take_look(standing(run), dataset, run, quiet)
    card = run.at("offline").look(1) / "look.json"
    before = card.read_bytes()
    card.unlink()  # as if the process had died before the card
    assert standing(run).next is not None
    take_look(standing(run), dataset, run, quiet)
    again = json.loads(card.read_bytes())
    assert {**again, "judged_at": ""} == {**json.loads(before), "judged_at": ""}
    assert standing(run).next is not None
    assert standing(run).next[1] == 2  # pyright: ignore[reportOptionalSubscript]
    card.write_text("{}")
    with pytest.raises(RunError, match=r"look.json: not a look of version 1"):
        standing(run)


def test_each_look_is_judged_at_its_own_level_and_the_digest_stays(run: RunFolder) -> None:
    plan = run.load_plan()
    shadow = plan.stage("shadow")
    first, last = levels(shadow, plan)
    assert first < last < plan.quality.alpha
    read = run.at("shadow").load_plan()
    assert read.quality.alpha == first
    assert read.digest == plan.digest
    assert read.stages == (shadow,)


def test_a_canary_is_drawn_by_name_and_seed() -> None:
    plan = staged_plan({"kind": "canary", "share": 0.3})
    (canary,) = plan.stages
    names = tuple(f"machine {i}" for i in range(400))
    drawn = served_by_candidate(plan, canary, names)
    assert drawn is not None
    assert 0.2 < len(drawn) / 400 < 0.4
    # Whoever joins or leaves, an entity stays where it was.
    fewer = served_by_candidate(plan, canary, names[::2])
    assert fewer == frozenset(i // 2 for i in drawn if i % 2 == 0)
    assert entity_draw(0, "machine 1") != entity_draw(1, "machine 1")
    assert served_by_candidate(plan, staged_plan({"kind": "full"}).stages[0], names) is None


def test_commands_of_a_pilot_in_stages(run: RunFolder, monkeypatch, typed: Any) -> None:
    script(monkeypatch, {})
    monkeypatch.setattr(pilot, "track", lambda run, store: "id")
    plan_file = run.path.parent / "plan.toml"
    monkeypatch.setattr("sma_pilot.plan.load_plan", lambda path: staged_plan())
    out = str(run.path.parent)
    code, text, _ = typed("run", str(plan_file), "--out", out, "--exit-code")
    assert code == 30
    assert f"waits for `sma-pilot sign {run.path} --stage shadow" in text.replace("\n", " ")
    code, text, _ = typed("status", str(run.path), "--json")
    document = json.loads(text)
    assert (code, document["state"], document["stage"]) == (0, "pending", "shadow")
    assert [len(own["looks"]) for own in document["stages"]] == [2, 2, 0]

    sign = ("sign", str(run.path), "--decision", "go", "--by", "Ada", "--reason", "As judged.")
    code, _, err = typed(*sign)
    assert code == 2
    assert "--stage: this pilot has stages" in err
    code, _, err = typed(*sign, "--stage", "canary")
    assert code == 2
    assert "no stage 'canary'; its stages: offline, shadow, full" in err
    code, _, err = typed(*sign, "--stage", "shadow")
    assert code == 0
    assert f"verify {run.path} --stage shadow --record" in err
    page = (run.path / "report.html").read_text()
    assert staged_plan().digest in page
    assert "signed go, by Ada" in page
    assert typed("verify", str(run.path), "--stage", "shadow")[0] == 0
    code, text, _ = typed("run", str(plan_file), "--out", out, "--json")
    assert json.loads(text)["stage"] == "full"
    for command in ("replay", "judge"):
        code, _, err = typed(command, str(plan_file), "--out", out)
        assert code == 2
        assert "the plan has stages" in err


def test_a_plan_of_one_stage_has_no_status(tmp_path: Path, typed: Any) -> None:
    plan = Plan.model_validate({**staged_plan().model_dump(mode="json"), "stages": ()})
    run = RunFolder.create(plan, tmp_path)
    assert run.replays == (run.path / "replay",)
    assert run.result == run.path / "result.json"
    code, _, err = typed("status", str(run.path))
    assert code == 2
    assert "a pilot of one stage" in err


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"kind": "canary"}], "`share` is needed by kind 'canary'"),
        ([{"kind": "full", "share": 0.5}], "`share` is needed by kind 'canary'"),
        ([{"kind": "full", "speed": 2.0}], "kind 'full' takes no `speed`"),
        ([{"kind": "full", "fallback_limit": 0.1}], "`fallback_limit` needs a table `guard`"),
        ([{"kind": "shadow", "fallback_limit": 0.1}], "takes no `fallback_limit`"),
        ([{"kind": "full", "looks": [0.5, 0.3]}], "given in rising order"),
        ([{"kind": "full", "name": "../x"}], "pattern"),
        ([{"kind": "offline"}, {"kind": "full"}], r"stages\.0\.until: only the last stage"),
        ([{"kind": "full", "until": 0.7}, {"kind": "offline"}], r"stages\.1\.kind"),
        ([{"kind": "full", "until": 0.7}, {"kind": "full"}], r"stages\.1\.name: 'full' is taken"),
        ([{"kind": "full", "until": 0.3}], r"stages\.0\.until: lies before"),
        ([{"kind": "full", "until": "2024-01-01T00:00:00Z"}], "shares, or timestamps"),
    ],
)
def test_what_is_wrong_with_stages_is_named(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        staged_plan(*stages)


def test_a_border_outside_of_the_log_is_refused(made: RunFolder) -> None:
    card = PreparedDataset.open(made.dataset).card
    assert len(stage_edges(staged_plan(), card.provenance["borders_ns"])) == len(STAGES) + 1
    late = staged_plan().model_dump(mode="json")
    late["slices"] = {
        "validation_from": "2023-11-14T23:00:00Z",
        "judged_from": "2023-11-15T00:00:00Z",
    }
    late["stages"] = [{"kind": "full", "until": "2030-01-01T00:00:00Z"}]
    with pytest.raises(ValueError, match="lies outside of the log"):
        stage_edges(Plan.model_validate(late), card.provenance["borders_ns"])
