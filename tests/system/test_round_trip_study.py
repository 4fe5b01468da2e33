"""The whole round, as typed: logs, prepared data, study, its best checkpoint, pilot, verdict."""

import json
import math
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.slow import slow

from sma_core.checkpoint import load_checkpoint

START = datetime(2024, 1, 1)
MINUTES = 3000
PILOT = """\
version = 1
name = "pump"
seed = 0

[log]
files = ["pump.csv"]
time = "time"
entity = "pump"
label = "failure"
numeric = ["flow", "pressure"]
period = "1m"
max_gap = "10m"

[slices]
validation_from = 0.5
judged_from = 0.65

[task]
kind = "forecast_anomaly"
smoothing = 3

[quality]
loss_limit = 0.2
false_alarms_per_day = 4.0
alarm_merge = "10m"
resamples = 200

[arms.incumbent]
kind = "transformer"
[arms.incumbent.model]
width = 16
layers = 1
heads = 2
hidden_width = 32
window = 32
[arms.incumbent.training]
max_steps = 40
batch_size = 8
window = 64
evaluate_every = 20

[replay]
single_stream_events = 150
warmup_events = 20
passes = 1
"""
STUDY = """\
version = 1
name = "pump-routing"
seeds = [0]

[task]
kind = "prepared"
dataset = "{dataset}"
head = "forecast"

[model]
width = 16
layers = 1
states = 4

[training]
max_steps = 40
batch_size = 8
window = 64
evaluate_every = 20
checkpoint_every = 20

[scientific]
pool = [[{{ kind = "gated_attention", query_width = 8, value_width = 16, window = 32 }}]]
policy = [
    {{ kind = "periodic", stride = 4 }},
    {{ kind = "tempered_softmax", target_rate = 0.25 }},
]

[objective]
metric = "loss"
mode = "min"
"""


def write_log(file: Path) -> None:
    """Write two pumps' telemetry: a rhythm, and ten short failures in the second half."""
    lines = ["time,pump,flow,pressure,failure"]
    for pump, phase in (("p1", 0.0), ("p2", 1.0)):
        for minute in range(MINUTES):
            time = START + timedelta(minutes=minute)
            rhythm = math.sin(minute / 40.0 + phase)
            wobble = math.sin(minute * 12.9898 + phase) * 0.1
            failure = minute > MINUTES // 2 and minute % 150 < 6
            flow = 5.0 + rhythm + wobble + (4.0 if failure else 0.0)
            pressure = 2.0 - rhythm + wobble * 2.0
            lines.append(f"{time.isoformat()},{pump},{flow:.4f},{pressure:.4f},{int(failure)}")
    file.write_text("\n".join(lines) + "\n")


def typed(command: str, folder: Path) -> Any:
    """Run a command with --json in a folder and return the one document on its stdout."""
    program, *arguments = command.split()
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments, "--json"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("round")
    write_log(place / "pump.csv")
    return place


@slow
def test_a_study_on_prepared_logs_hands_its_best_model_to_a_pilot(place: Path) -> None:
    # Any plan of that log will do to prepare it; a candidate must stand in it.
    (place / "prepare.toml").write_text(PILOT + '\n[arms.candidate]\nkind = "sma"\n')
    dataset = Path(typed("sma-pilot prepare prepare.toml --data .", place)["folder"])

    (place / "study.toml").write_text(STUDY.format(dataset=dataset))
    study = typed("sma-eval run study.toml --data . --out study", place)
    assert study["counts"]["finished"] == 2
    assert all(math.isfinite(arm["objective_mean"]) for arm in study["arms"])
    best = typed("sma-eval best study --export best", place)
    checkpoint = load_checkpoint(place / best["checkpoint"])
    assert checkpoint.config.head.kind == "forecast"
    assert checkpoint.card["provenance"]["study"] == "pump-routing"

    candidate = '\n[arms.candidate]\nkind = "checkpoint"\ncheckpoint = "best"\n'
    (place / "pilot.toml").write_text(PILOT + candidate)
    result = typed("sma-pilot run pilot.toml --data .", place)
    assert result["verdict"] in ("go", "no-go", "inconclusive")
    assert result["reasons"]
    (candidate_card,) = (place / "runs").glob("pump-*/models/candidate/model.json")
    assert json.loads(candidate_card.read_text())["provenance"]["trial"] == best["trial"]
