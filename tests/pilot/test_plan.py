"""The plan: strict about names, clear about what is wrong, one digest for the same decisions."""

import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sma_pilot.errors import PlanError
from sma_pilot.plan import Plan, format_duration, load_plan, parse_duration, parse_plan

ROOT = Path(__file__).parents[2]
PLAN = """
version = 1
name = "pump"
[log]
files = ["pump.csv"]
time = "t"
label = "failure"
numeric = ["*"]
period = "10s"
max_gap = "5m"
[slices]
validation_from = 0.5
judged_from = 0.7
[task]
kind = "forecast_anomaly"
[quality]
loss_limit = 0.05
false_alarms_per_day = 1.0
alarm_merge = "10m"
[arms.incumbent]
kind = "dense_twin"
[arms.candidate]
kind = "sma"
"""


def test_a_plan_is_read_with_its_defaults() -> None:
    plan = parse_plan(PLAN, "pilot.toml")
    assert plan.log.period == timedelta(seconds=10)
    assert plan.quality.alpha == 0.05
    assert list(plan.named_arms()) == ["incumbent", "candidate"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "pump"', 'name = "../pump"', "name: "),
        ('time = "t"', 'tiem = "t"', "log.tiem: unknown field"),
        ('period = "10s"', 'period = "10 lightyears"', "log.period: a duration is a number"),
        ('period = "10s"', 'period = "0s"', "log.period: a duration must be longer than zero"),
        ('period = "10s"', 'period = "1.5ms"', "log.period: a duration is a whole number"),
        ("loss_limit = 0.05", "loss_limit = 5", "quality.loss_limit"),
        ("loss_limit = 0.05", "loss_limit = nan", "quality.loss_limit"),
        ("judged_from = 0.7", "judged_from = 0.4", "validation_from < judged_from"),
        ("judged_from = 0.7", "judged_from = 2024-01-01T00:00:00Z", "all borders as shares"),
        ("judged_from = 0.7", "judged_from = 1.7", "slices.judged_from"),
        ('kind = "forecast_anomaly"', 'kind = "alarm"', "`horizon` is needed"),
        ('kind = "dense_twin"', 'kind = "dense"', "arms.incumbent.kind"),
        ('kind = "sma"', 'kind = "transformer"', "twin of a candidate of kind 'sma'"),
        ('kind = "sma"', 'kind = "checkpoint"', "arms.candidate.checkpoint: Field required"),
        (
            'kind = "sma"',
            'kind = "pca"\nmodel = {}',
            "arms.candidate.model: unknown field of kind 'pca'",
        ),
        ('kind = "dense_twin"', 'kind = "logistic"', "cannot do task 'forecast_anomaly'"),
        ("version = 1", "version = 2", "version"),
        ("version = 1", "version = = 1", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, message: str) -> None:
    assert old in PLAN
    with pytest.raises(PlanError) as caught:
        parse_plan(PLAN.replace(old, new), "pilot.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("pilot.toml: ")


def test_every_error_of_a_plan_is_told_at_once() -> None:
    text = PLAN.replace("loss_limit = 0.05", "loss_limit = 5").replace('time = "t"', "time = 3")
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "pilot.toml")
    assert "log.time" in str(caught.value)
    assert "quality.loss_limit" in str(caught.value)


def test_a_file_that_is_no_plan_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read the plan"):
        load_plan(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="cannot read the plan"):
        load_plan(tmp_path / "binary.toml")


def test_the_digest_follows_decisions_and_not_typing() -> None:
    plan = parse_plan(PLAN, "a")
    assert parse_plan(PLAN.replace('"10s"', '"0.2m"'), "b").digest != plan.digest
    assert parse_plan(PLAN.replace('"5m"', '"300s"'), "b").digest == plan.digest
    assert parse_plan("# a comment\n" + PLAN, "b").digest == plan.digest
    assert parse_plan(PLAN.replace("0.05", "0.06"), "b").digest != plan.digest
    assert Plan.model_validate(plan.model_dump(mode="json")).digest == plan.digest


@pytest.mark.parametrize(
    "more",
    [
        '[replay]\nscenarios = ["server"]\n[replay.server]\narrivals = "poisson"\nrate = 5.0',
        '[arms.baseline]\nkind = "recorded"\nscore = "s"',
        '[arms.baseline]\nkind = "sklearn"\nestimator = "sklearn.svm.OneClassSVM"',
        '[arms.baseline]\nkind = "sklearn"\nfile = "a.skops"\nvalues = "scaled"',
        '[arms.baseline]\nkind = "pyfunc"\nuri = "m"\ntrust = true\nvalues = "scaled"',
        '[arms.baseline]\nkind = "kmeans"\nwindow = 5',
    ],
)
def test_a_frozen_plan_is_the_plan_that_was_typed(more: str) -> None:
    plan = parse_plan(PLAN + more, "a")
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ('kind = "sklearn"', "arms.candidate: name either an `estimator` to fit or the `file`"),
        ('kind = "sklearn"\nestimator = "os.system"', "arms.candidate.estimator: "),
        ('kind = "sklearn"\nestimator = "sklearn.x.Y"\nvalues = "log"', "`values` says what"),
        ('kind = "sklearn"\nfile = "a"\nvalues = "log"\nparams = {a = 1}', "`params` belong to"),
        ('kind = "sklearn"\nfile = "a"\nvalues = "log"', "arms.candidate.values: 'log' needs"),
        ('kind = "kmeans"\nclusters = 0', "arms.candidate.clusters: "),
        ('kind = "pyfunc"\nuri = "m"\nvalues = "scaled"', "arms.candidate.trust: running an"),
        ('kind = "pyfunc"\nuri = "models:/m@a"\nvalues = "scaled"\ntrust = true', "`store` names"),
        (
            'kind = "pyfunc"\nuri = "models:/a/b/c"\nstore = "x"\nvalues = "scaled"\ntrust = true',
            "`uri` of a model in",
        ),
        ('kind = "recorded"', "arms.candidate.score: Field required"),
        ('kind = "recorded"\nscore = "s"\nlatency_unit = "s"', "belongs to a column `latency`"),
        ('kind = "recorded"\nscore = "s"\nlatency = "s"', "name the same column"),
        ("", "arms.candidate.kind: Field required"),
        ('kind = "magic"', "arms.candidate.kind: none of 'sma'"),
    ],
)  # fmt: skip
def test_a_field_of_an_arm_is_named_by_its_place(arm: str, message: str) -> None:
    text = PLAN.replace('kind = "dense_twin"', 'kind = "pca"').replace('kind = "sma"', arm)
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "pilot.toml")
    assert message in str(caught.value)
    assert "sklearn." not in str(caught.value).split(": ")[1]


def test_a_moment_without_a_zone_is_utc() -> None:
    text = PLAN.replace("0.5", "2024-01-01T00:00:00").replace("0.7", "2024-01-02T01:00:00+01:00")
    slices = parse_plan(text, "a").slices
    assert slices.validation_from == datetime(2024, 1, 1, tzinfo=UTC)
    assert slices.judged_from == datetime(2024, 1, 2, tzinfo=UTC)


@given(st.integers(1, 10**9))
def test_durations_survive_being_written(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/pilots").glob("*.toml")), ids=str)
def test_the_pilots_of_this_repository_are_plans(path: Path) -> None:
    plan = load_plan(path)
    assert plan.name == path.stem
    assert not any(Path(file).is_absolute() for file in plan.log.files)


def test_every_field_of_a_plan_is_documented() -> None:
    text = (ROOT / "docs/plan.md").read_text()
    for name, field in _fields(Plan).items():
        assert f"`{name}`" in text, f"docs/plan.md does not name {name}"
        assert field is not None


def test_the_example_of_the_documentation_is_a_plan() -> None:
    text = (ROOT / "docs/plan.md").read_text()
    example = text.split("```toml\n")[1].split("```")[0]
    assert tomllib.loads(example)
    parse_plan(example, "docs/plan.md")


def _fields(section: type, prefix: str = "") -> dict[str, object]:
    """Fields by their place, such as ``log.files``; arms by what every arm has."""
    found: dict[str, object] = {}
    for name, field in section.model_fields.items():  # type: ignore[attr-defined]
        inner = [
            kind
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(kind, type) and hasattr(kind, "model_fields")
        ]
        if inner:
            place = "arms.ARM" if prefix == "arms." else f"{prefix}{name}"
            for section in inner:
                found |= _fields(section, f"{place}.")
        else:
            found[f"{prefix}{name}"] = field
    return found
