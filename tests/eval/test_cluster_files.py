"""The files for clusters, held against what their tools say of them, as far as goes without one.

Ray brings the schema of its autoscaler along. What the
manifest uses of KubeRay's stands in `tests.eval.kuberay`; with the path of the whole in KUBERAY_CRD
that is taken. Slurm's script runs with stand-ins for the commands that it calls.
"""

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from tests.eval.kuberay import RayJob, closed
from typer.main import get_command

from sma_eval.cli import app

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "experiments" / "cluster"
SCRIPT = CLUSTER / "study.sbatch"


def known_options(command: str) -> set[str]:
    """Return the options of `sma-eval COMMAND ...`, after a check that the parser knows them."""
    program, name, *arguments = shlex.split(command)
    assert program == "sma-eval"
    commands = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    options = {option for parameter in commands[name].params for option in parameter.opts}
    given = {argument for argument in arguments if argument.startswith("--")}
    assert given <= options
    return given


def test_the_autoscaler_file_follows_its_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(content, json.loads(schema.read_text()))
    whole = prepare_config(content)  # with the defaults of its provider
    validate_config(whole)
    types = whole["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert types["gpu"]["max_workers"] <= whole["max_workers"]
    assert "--volume=/shared:/shared" in whole["docker"]["run_options"]


def test_a_misspelt_field_of_the_autoscaler_file_is_refused() -> None:
    content = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        jsonschema.validate({**content, "idle_timeout": 3}, json.loads(schema.read_text()))


def test_the_kuberay_manifest_has_the_fields_of_its_crd() -> None:
    content = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    job = RayJob.model_validate(content)
    assert known_options(job.spec.entrypoint) == {"--address", "--out", "--cache"}
    cluster = job.spec.rayClusterSpec
    assert cluster.rayVersion.split(".")[:2] == ray.__version__.split(".")[:2]
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        pod = group.template.spec
        volumes = {volume.name for volume in pod.volumes}
        for container in pod.containers:
            assert {mount.name for mount in container.volumeMounts} <= volumes
            assert "/shared" in {mount.mountPath for mount in container.volumeMounts}
    for worker in cluster.workerGroupSpecs:
        assert worker.minReplicas <= worker.replicas <= worker.maxReplicas


@pytest.mark.skipif(
    "KUBERAY_CRD" not in os.environ, reason="set KUBERAY_CRD to ray.io_rayjobs.yaml"
)
def test_the_kuberay_manifest_follows_the_whole_crd() -> None:
    text = Path(os.environ["KUBERAY_CRD"]).read_text()
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    (version,) = (one for one in crd["spec"]["versions"] if one["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    content = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    metadata = content.pop("metadata")  # Kubernetes itself checks it
    jsonschema.Draft202012Validator(schema).validate(content)
    assert list(metadata) == ["name"]
    content["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.Draft202012Validator(schema).validate(content)


# Options that sbatch(1) documents, as far as a script of ours may use them.
SBATCH = {
    *("cpus-per-task", "gpus-per-node", "job-name", "mem", "nodes", "ntasks-per-node"),
    *("open-mode", "output", "requeue", "signal", "time"),
}


def test_the_slurm_script_is_bash_and_its_options_are_slurms() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    text = SCRIPT.read_text()
    head, _, body = text.partition("set -euo pipefail")
    options = re.findall(r"^#SBATCH --([a-z-]+)", head, re.MULTILINE)
    assert len(options) == len(set(options)) == head.count("#SBATCH")
    assert set(options) <= SBATCH
    assert "#SBATCH" not in body  # Slurm stops reading at the first command
    assert re.search(r"#SBATCH --time=(\d+-)?\d\d:\d\d:\d\d$", head, re.MULTILINE)


STANDIN = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
case "$(basename "$0") $*" in
    "scontrol show hostnames"*) printf 'n1\\nn2\\nn3\\n' ;;
    srun*) while [[ "$1" == --* ]]; do shift; done; "$@" ;;
    hostname*) echo 10.0.0.1 ;;
    "ray start"*) sleep 0.2 ;;
    "sma-eval"*) %s ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start the script with stand-ins for Slurm's commands, Ray's and ours, which note calls."""

    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, study: str, nodes: int = 3) -> "subprocess.Popen[str]":
        for name in ("scontrol", "srun", "hostname", "ray", "sma-eval"):
            file = tmp_path / name
            file.write_text(STANDIN % study)
            file.chmod(0o755)
        process = subprocess.Popen(
            ["bash", SCRIPT, *arguments],
            env={
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "CALLS": str(tmp_path / "calls"),
                "SLURM_JOB_ID": "41234",
                "SLURM_JOB_NODELIST": "n[1-3]",
                "SLURM_JOB_NUM_NODES": str(nodes),
                "SLURM_CPUS_PER_TASK": "16",
                "SLURM_GPUS_PER_NODE": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_slurm_script_starts_a_head_then_workers_then_the_study(
    slurm: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    process = slurm("s.toml", "/shared/out", "--cache", "/shared/c", study="exit 1")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, (out, err)  # the study's own
    calls = (tmp_path / "calls").read_text().splitlines()
    address = "10.0.0.1:21234"
    (study,) = (call for call in calls if call.startswith("sma-eval"))
    assert study == (f"sma-eval run s.toml --out /shared/out --address {address} --cache /shared/c")
    known_options(study)
    size = "--num-cpus=16 --num-gpus=1 --block"
    # Side by side: stand-ins come up at once, so either may write its line first.
    assert {call for call in calls if call.startswith("ray start")} == {
        "ray start --head --node-ip-address=10.0.0.1 --port=21234 --include-dashboard=false "
        + size,
        f"ray start --address={address} {size}",
    }
    assert calls.index(f"ray health-check --address {address}") < calls.index(study)
    (workers,) = (c for c in calls if c.startswith("srun") and "--exclude=n1" in c)
    assert "--nodes=2 --ntasks=2" in workers
    assert not [call for call in calls if call.startswith("scontrol requeue")]


def test_a_slurm_job_whose_time_is_up_stops_the_study_and_queues_itself_again(
    slurm: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    # Ctrl-C takes a study a while: it writes its tables first.
    waiting = (
        'trap \'sleep 0.3; echo ended >> "$CALLS"; exit 130\' USR1; touch "$CALLS.up"; '
        "while true; do sleep 0.05; done"
    )
    process = slurm("s.toml", "/out", study=waiting, nodes=1)
    while not (tmp_path / "calls.up").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert (tmp_path / "calls").read_text().splitlines()[-2:] == [
        "ended",
        "scontrol requeue 41234",
    ]


def test_the_slurm_script_says_how_it_is_used(
    slurm: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    process = slurm("s.toml", study="exit 0")
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "usage: sbatch study.sbatch STUDY OUT" in err
    assert not (tmp_path / "calls").exists()
