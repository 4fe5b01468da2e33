"""The study file: every slip is told with its field, and nothing else decides the digest."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from tests.eval.studies import STUDY, study_text, tiny_study

from sma_core.config import HeadConfig, InputConfig
from sma_eval.errors import FieldError, StudyError
from sma_eval.experiment import list_trials
from sma_eval.scheduler import Asha
from sma_eval.section import MAX_TRIALS
from sma_eval.smoke import smoke_test
from sma_eval.space import expand
from sma_eval.study import Study, load_study, parse_study

ROOT = Path(__file__).parents[2]
POLICY = '    { kind = "tempered_softmax", target_rate = 0.5 },\n'


def error_of(text: str) -> str:
    with pytest.raises(FieldError) as caught:
        parse_study(text, "study.toml")
    message = str(caught.value)
    assert message.startswith("study.toml: ")
    return message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": "version = 2"}, "version: "),
        ({"version": ""}, "version: Field required"),
        ({"name": 'name = "../up"'}, "name: "),
        ({"name": 'name = ".hidden"'}, "name: "),
        ({"name": 'name = "a/b"'}, "name: "),
        ({"name": 'name = ""'}, "name: "),
        ({"seeds": "seeds = []"}, "seeds: at least one"),
        ({"seeds": "seeds = [0, 0]"}, "seeds: 0 is listed twice"),
        ({"seeds": "seeds = [-1]"}, "seeds[0]: "),
        ({"seeds": "seeds = [4294967296]"}, "seeds[0]: "),
        ({"seeds": "seeds = [0.5]"}, "seeds[0]: "),
        ({"seeds": "seeds = [nan]"}, "seeds[0]: must be text, a finite number"),
        ({"seeds": "seeds = 3"}, "seeds: "),
        ({"kind": 'kind = "cifar"'}, "task: "),
        ({"kind": 'kind = "listops"'}, "task.length: unknown field"),
        ({"kind": 'kind = "mqar"'}, "task.tokens: unknown field"),
        ({"tokens": "tokens = 7"}, "task: 7 tokens do not fit into length 6"),
        ({"vocabulary": "vocabulary = 1"}, "task.vocabulary: "),
        ({"length": "length = 1e9"}, "task.length: "),
        ({"train_sequences": "train_sequences = 1000000000"}, "task.train_sequences: "),
        ({"width": 'width = 8\nhead = "big"'}, "model.head: cannot be set here: the task"),
        ({"max_steps": ""}, "training.max_steps: missing"),
        ({"max_steps": "seed = 1"}, "training.seed: cannot be set here: list it in seeds"),
        ({"max_steps": "max_steps = inf"}, "training.max_steps: must be text, a finite number"),
        ({"metric": 'metric = "f1"'}, "objective.metric: "),
        ({"mode": 'mode = "min"'}, "mode = 'max'"),
        ({"max_concurrent": "max_concurrent = 0"}, "resources.max_concurrent: "),
        ({"max_concurrent": "gpus = 2"}, "write processes = 2 and gpus = 1"),
        ({"max_concurrent": "processes = 0"}, "resources.processes: "),
        ({"max_concurrent": "processes = 2\ngpus = 0.5"}, "2 processes of one trial cannot share"),
        ({"max_concurrent": 'sharding = "zero"'}, "resources.sharding: "),
        ({"max_concurrent": "cpus = 0"}, "resources.cpus: "),
        ({"max_concurrent": "memory = 3"}, "resources.memory: unknown field"),
    ],
)
def test_an_error_names_its_field(changes: dict[str, str], expected: str) -> None:
    assert expected in error_of(study_text(**changes))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("{ target_rate = 0.5 },", "scientific.policy[1].kind: Field required"),
        ('{ kind = "always" },', "is listed twice"),
        ('{ kind = "periodic", stride = nan },', "scientific.policy[1].stride: must be"),
        ('{ kind = "tempered_softmax", target_rate = 0.0 },', "scientific.policy[1].target_rate"),
        ('{ kind = "tempered_softmax", target_rate = 1.5 },', "scientific.policy[1].target_rate"),
        ('{ kind = "tempered_softmax", target_rate = [] },', "scientific.policy[1].target_rate"),
        ('{ kind = "tempered_softmax", target_rate = [0.5, 0.5] },', "0.5 is listed twice"),
    ],
)
def test_an_error_in_a_policy_names_its_place(policy: str, expected: str) -> None:
    assert expected in error_of(STUDY.replace(POLICY, policy))


@pytest.mark.parametrize(
    ("nuisance", "expected"),
    [
        ("learning_rate = []", "nuisance.learning_rate: at least one"),
        ("learning_rate = [1e-3, 0.001]", "nuisance.learning_rate: 0.001 is listed twice"),
        ('learning_rate = ["fast"]', "nuisance.learning_rate[0]: "),
        ("max_steps = [1, 2]", "nuisance.max_steps: part of the budget"),
        ("batch_size = [4, 8]", "nuisance.batch_size: part of the budget"),
        ("seed = [1]", "nuisance.seed: cannot be set here"),
        ("warmup_steps = [1, 2]", "nuisance.warmup_steps: also fixed in [training]"),
    ],
)
def test_an_error_in_a_nuisance_parameter_names_it(nuisance: str, expected: str) -> None:
    assert expected in error_of(f"{STUDY}\n[nuisance]\n{nuisance}\n")


def test_several_errors_are_told_at_once() -> None:
    message = error_of(study_text(version="version = 9", tokens="tokens = -1"))
    assert [line.split(": ")[1] for line in message.splitlines()] == ["version", "task.tokens"]


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "version = 1\nversion = 2",
        f"version = {'9' * 5000}",
        "x = " + "[" * 5000,
        "\x00",
    ],
)
def test_what_is_no_toml_is_said_so(text: str) -> None:
    assert "not valid TOML" in error_of(text)


def test_an_integer_beyond_any_float_is_an_error_of_its_field() -> None:
    assert "seeds[0]" in error_of(study_text(seeds=f"seeds = [1{'0' * 400}]"))


def test_a_study_too_large_to_list_is_refused_with_its_factors() -> None:
    grid = "\n[nuisance]\nlearning_rate = [" + ", ".join(f"{i}e-6" for i in range(1, 2502)) + "]\n"
    message = error_of(STUDY + grid)
    assert "2501 values of nuisance.learning_rate" in message
    assert "2 seeds are 10004 trials" in message
    many = ", ".join(map(str, range(20_000)))
    assert "seeds: 20000 entries" in error_of(study_text(seeds=f"seeds = [{many}]"))


def test_a_forecast_has_no_accuracy() -> None:
    head, _, tail = STUDY.partition("[task]")
    task = '[task]\nkind = "prepared"\ndataset = "d"\nhead = "forecast"\n\n[model]'
    assert "a forecast has no accuracy" in error_of(head + task + tail.partition("[model]")[2])


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "study.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StudyError, match=r"study\.toml: cannot read the study"):
        load_study(file)


def test_the_digest_changes_with_what_decides_a_figure_and_with_nothing_else() -> None:
    digest = tiny_study().digest
    assert tiny_study(max_concurrent="max_concurrent = 1").digest == digest
    assert tiny_study(name='name = "tiny"\ndescription = "why"').digest == digest
    assert tiny_study(max_steps="max_steps = 13").digest != digest
    assert tiny_study(seeds="seeds = [0, 2]").digest != digest


def test_the_shipped_studies_are_valid() -> None:
    studies = sorted((ROOT / "experiments" / "studies").glob("*.toml"))
    assert studies
    for file in studies:
        assert load_study(file).name == file.stem


@pytest.mark.parametrize("file", sorted((ROOT / "experiments" / "studies").glob("*.toml")))
def test_a_smoke_test_has_every_arm_once_and_is_short(file: Path) -> None:
    study = load_study(file)
    small = smoke_test(study)
    assert small.name == f"{study.name}-smoke"
    assert small.digest != study.digest
    assert small.seeds == study.seeds[:1]
    assert small.trials <= 2 * study.trials / len(study.seeds) / max(1, study.choices // 2)
    assert small.training["max_steps"] == 4
    assert (small.scientific, small.model, small.resources) == (
        study.scientific,
        study.model,
        study.resources,
    )
    # What is no budget stays.
    for name in ("batch_size", "learning_rate"):
        assert small.training.get(name) == study.training.get(name)


def test_a_smoke_test_of_a_scheduler_still_compares_two_choices() -> None:
    tables = """mode = "max"

[nuisance]
learning_rate = [1e-3, 3e-3, 1e-2]
warmup_steps = [9, 5]
[scheduler]
kind = "asha"
grace = 1
"""
    fixed = {"warmup_steps": "weight_decay = 0.0", "evaluate_every": "evaluate_every = 1"}
    small = smoke_test(tiny_study(mode=tables, **fixed))
    assert len(list_trials(small, Path())) == small.trials == 4
    assert small.nuisance == {"learning_rate": (1e-3, 3e-3), "warmup_steps": (9,)}
    assert small.scheduler == Asha(kind="asha", grace=2)
    assert "warmup_steps" not in small.training


def test_the_documented_study_is_valid_and_as_large_as_the_document_says() -> None:
    text = (ROOT / "docs" / "studies.md").read_text()
    block, searched = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inputs, head = InputConfig(numeric=3), HeadConfig(kind="forecast", outputs=3)
    trials = expand(parse_study(block, "studies.md"), inputs, head)
    assert f"{len(trials)} trials. A study has at most {MAX_TRIALS:,}." in text
    # The second one is a part of a study.
    content = tomllib.loads(STUDY) | tomllib.loads(searched)
    study = Study.model_validate_json(json.dumps(content))
    assert (study.choices, study.search.kind) == (16, "optuna")
