"""The benchmarks run on tiny sizes, say what they did, and refuse to time what is wrong."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tolerances import assert_close

from sma_core.bench import streams
from sma_core.bench.__main__ import BENCHMARKS, main
from sma_core.bench.cases import Problem
from sma_core.bench.ceilings import (
    Ceilings,
    Phase,
    floor_seconds,
    inference_phases,
    rows_seen,
    training_phases,
)
from sma_core.bench.first_step import main as first_step
from sma_core.bench.goals import judge_layer
from sma_core.bench.peers import Attention
from sma_core.bench.sizes import LayerSizes
from sma_core.bench.streams import EagerStep, RecordedStep
from sma_core.bench.tables import Report
from sma_core.bench.timing import Deadline, time_in_turn
from sma_core.costs import submodule_flops
from sma_core.ema import MultiHeadEMA


def flags(line: str) -> list[str]:
    return line.split()


CPU = torch.device("cpu")
SIZES = LayerSizes(width=16, query_width=8, value_width=16, states=2, window=8)
ONCE = flags("--device cpu --threads 1 --rounds 2 --iterations 2 --warmup 1 --check-steps 20")
LAYER = flags("--width 16 --query-width 8 --value-width 16 --states 2 --window 8")
TINY = [*ONCE, *LAYER, "--tokens", "64", "--compile-off"]

# A layer with the interface of the published one; the brackets make it wrong.
PEER = """
from torch import nn
from sma_core import GatedAttentionConfig, SMABlock
from sma_core.interop.seqboat import NAMES

class Layer(nn.Module):
    def __init__(self, width, query_width, value_width, states, *, window_size, **options):
        super().__init__()
        attention = GatedAttentionConfig(
            query_width=query_width, value_width=value_width, window=window_size - {less}
        )
        self.inner = SMABlock(width, pool=(attention,), states=states)

    def state_dict(self):
        ours = self.inner.layer.state_dict()
        return {{theirs: ours[name] for theirs, name in NAMES.items() if name in ours}}

    def load_state_dict(self, weights):
        self.inner.layer.load_state_dict({{NAMES[name]: w for name, w in weights.items()}})

    def forward(self, x):
        return self.inner(x.transpose(0, 1)).transpose(0, 1)

nothing = 1
"""


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    path = tmp_path / "peer.py"
    path.write_text(PEER.format(less=0))
    return path


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check against the specification, which is slow, where it is not the matter."""
    for benchmark in BENCHMARKS.values():
        monkeypatch.setattr(benchmark, "check_small", lambda *args, **options: ["unchecked"])


def run(tmp_path: Path, *words: str) -> dict[str, Any]:
    path = tmp_path / "bench.json"
    assert main([*words, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_layer_times_every_variant_and_peer(
    tmp_path: Path, peer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, "--lengths", "32", "--densities", "0,0.1,1", "--long", "64"]
    words += ["--rounds", "1"]
    found = run(tmp_path, "layer", *words, "--peer", f"{peer}:Layer")
    assert found["benchmark"] == "layer"
    assert found["settings"]["window"] == 8
    assert {"processor", "torch", "threads", "date"} <= found["machine"].keys()
    results = {(r["length"], r["density"], r["case"]): r for r in found["results"]}
    variants = {"capacity", "capacity_no_graphs", "packed", "eager", "padded", "dense"}
    others = {"reference", "transformer", "sliding"}
    assert {case for _, density, case in results if density == 0.1} == variants | others
    assert {key[1:] for key in results if key[1] != 0.1} == {(0.0, "capacity"), (1.0, "capacity")}
    for (length, density, case), result in results.items():
        assert not result["failure"]
        assert result["batch"] * length == result["tokens"] == 64
        for kind in ("train", "infer"):
            assert len(result[kind]["raw_ms"]) == 2
            assert result[kind]["median_ms"] > 0
        if case in variants:
            share = 1.0 if case == "dense" else round(64 * density) / 64
            assert result["ran"] == share
    said = capsys.readouterr().out
    assert "| 32 | 0.1 | reference |" in said
    assert "equal to the specification: " in said
    goals = {goal["what"] for goal in found["goals"]}
    assert "L 32, train: density 0 over density 1" in goals
    assert "train: time per token at 64 over that at 32" in goals


def test_goals_are_ratios_of_medians_and_what_is_missing_is_not_met() -> None:
    def result(case: str, train: float | None, infer: float, memory: int | None) -> dict[str, Any]:
        return {
            "length": 2048,
            "density": 0.1,
            "case": case,
            "tokens": 4096,
            "train": {"median_ms": train},
            "infer": {"median_ms": infer},
            "train_bytes": memory,
            "infer_bytes": memory,
        }

    report = Report("layer", command="", settings={}, device=CPU)
    report.add(**result("capacity", 2.0, 1.0, 30))
    report.add(**result("reference", 11.0, 5.0, 100))
    report.add(**result("transformer", None, 2.0, None))
    judge_layer(report, ours="capacity", density=0.1, long=0)
    judged = {goal["what"]: (goal["value"], goal["met"]) for goal in report.content["goals"]}
    assert judged == {
        "L 2,048, train: capacity faster than reference": (5.5, True),
        "L 2,048, infer: capacity faster than reference": (5.0, False),
        "L 2,048, train: capacity faster than transformer": (None, False),
        "L 2,048, infer: capacity faster than transformer": (2.0, True),
        "L 2,048, train: peak memory of capacity over reference's": (0.3, True),
        "L 2,048, infer: peak memory of capacity over reference's": (0.3, True),
    }


def test_a_wrong_peer_is_not_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(PEER.format(less=30))
    words = [*TINY, "--lengths", "32", "--check-steps", "40", "--peer", f"{path}:Layer"]
    assert main(["layer", *words]) == 1
    said = capsys.readouterr()
    assert "not equal: peer against the specification: output differs by" in said.err
    assert "| L |" not in said.out


@pytest.mark.parametrize("benchmark", ["layer", "model", "stream", "floor", "cpu"])
def test_a_wrong_layer_is_not_timed(
    benchmark: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = MultiHeadEMA.forward

    def wrong(self: Any, x: Any, state: Any = None, lengths: Any = None) -> Any:
        y, final = right(self, x, state, lengths)
        return 1.001 * y, final

    monkeypatch.setattr(MultiHeadEMA, "forward", wrong)
    assert main([benchmark, *ONCE]) == 1
    said = capsys.readouterr()
    assert "routed, packed against the specification: output differs by" in said.err
    assert "nothing is timed" in said.err
    assert "| L |" not in said.out


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("benchmark", ["layer", "floor"])
def test_what_is_wrong_at_the_timed_size_is_not_timed(
    benchmark: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Problem.truth

    def wrong(self: Problem, kind: str) -> Any:
        truth = right(self, kind)
        truth.gradients["x"].mul_(1.2)
        return truth

    monkeypatch.setattr(Problem, "truth", wrong)
    ceilings = flags("--copy-mib 1 --matrix 32") if benchmark == "floor" else []
    assert main([benchmark, *TINY, *ceilings, "--lengths", "32"]) == 1
    said = capsys.readouterr()
    assert "capacity at 32 steps against packed, eager, float32: gradient of the input" in said.err
    assert "| L |" not in said.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--peer nowhere.py:Layer", "peer: there is no file nowhere.py"),
        ("--peer nowhere", "peer: must be FILE:CLASS, not 'nowhere'"),
        ("--peer {peer}:Absent", "has no torch module of the name Absent"),
        ("--peer {peer}:nothing", "has no torch module of the name nothing"),
        ("--peer {peer}:nn.Linear", "has no torch module of the name nn.Linear"),
        ("--json /nowhere/at/all.json", "json: there is no folder /nowhere/at"),
        ("--device tpu9", "device: "),
    ],
)
def test_what_is_wrong_is_one_line(
    words: str, message: str, peer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["layer", *words.format(peer=peer).split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", ["--lengths many", "--variants fastest", "--rounds 0"])
def test_a_wrong_option_ends_with_2(words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["layer", *words.split()])
    assert stopped.value.code == 2


@pytest.mark.parametrize("density", [0.0, 0.1, 1 / 3, 1.0])
def test_the_asked_share_runs_exactly(density: float) -> None:
    problem = Problem(
        LayerSizes(width=32, query_width=8, value_width=16, states=2, window=8),
        batch=3,
        steps=70,
        density=density,
        device=CPU,
        rounded=True,
        compiles=False,
        seed=1,
    )
    wanted = round(density * 210)
    assert int(problem.active.sum()) == wanted
    for name in ("capacity", "eager", "padded"):
        assert problem.ours(name).density() == wanted / 210
    if 0 < density < 1:
        assert len(set(problem.active.sum(1).tolist())) > 1  # sequences differ


def test_a_step_that_fails_does_not_end_the_others() -> None:
    calls = []

    def fails() -> None:
        calls.append(1)
        if len(calls) > 5:  # in the second round
            raise RuntimeError("no room\nat all")

    timing: dict[str, int] = {"rounds": 2, "iterations": 3, "warmup": 1}
    steps = {"fails": fails, "works": lambda: None}
    found = time_in_turn(steps, CPU, deadline=Deadline(60.0), **timing)
    assert found["fails"].failure == "failed: RuntimeError: no room"
    assert found["fails"].median is None
    assert len(found["works"].milliseconds) == 6
    late = time_in_turn(steps, CPU, deadline=Deadline(0.0), **timing)
    assert late["works"].failure == "skipped: no time left"


def test_the_floor_counts_what_the_layer_does() -> None:
    seen = [min(row, 8) + 1 for row in range(30)]
    assert rows_seen(30.0, 8) == pytest.approx(sum(seen) / 30)
    assert rows_seen(5.0, 8) == 3
    # In the limit of long sequences, the operations that the library counts for itself.
    phases = inference_phases(SIZES, tokens=1, steps=10**9, density=1.0)
    width = SIZES.width
    always = 2 * width * (width + 2) + width * (5 * SIZES.states + 2)
    expected = always + submodule_flops(SIZES.attention, width, True)
    assert sum(phase.flops for phase in phases) == pytest.approx(expected)
    both = training_phases(SIZES, tokens=1, steps=10**9, density=1.0)
    assert sum(phase.flops for phase in both) == pytest.approx(3 * expected)
    bound = [Phase("computing", 10.0, 1.0), Phase("moving", 1.0, 30.0)]
    assert floor_seconds(bound, Ceilings(flops=10.0, bytes=10.0)) == pytest.approx(1 + 3)


@pytest.mark.usefixtures("unchecked")
def test_floor_prints_time_over_floor(tmp_path: Path) -> None:
    words = [*TINY, "--lengths", "32", "--copy-mib", "1", "--matrix", "32", "--densities", "0.1"]
    found = run(tmp_path, "floor", *words)
    (result,) = found["results"]
    assert found["ceilings"]["bytes"] > 0
    ratio = result["train"]["median_ms"] / result["train_floor_ms"]
    assert result["train_over_floor"] == pytest.approx(ratio)
    assert len(found["goals"]) == 2


@pytest.mark.usefixtures("unchecked")
def test_stream_times_both_modes_at_every_position(tmp_path: Path) -> None:
    words = [*ONCE, *flags("--width 16 --layers 2 --window 4 --batches 3")]
    found = run(tmp_path, "stream", *words)
    keys = {(r["mode"], r["batch"], r["position"]) for r in found["results"]}
    positions = (1_000, 1_000_000)
    assert keys == {(m, b, p) for m in ("eager", "captured") for b in (3,) for p in positions}
    assert all(len(r["step"]["raw_ms"]) == 4 for r in found["results"])
    assert len(found["goals"]) == 2


@pytest.mark.usefixtures("unchecked")
def test_a_stream_that_forgets_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = RecordedStep.__call__

    def forgets(self: RecordedStep, event: Any) -> Any:
        self._state.layers[0].ema.zero_()
        return right(self, event)

    monkeypatch.setattr(RecordedStep, "__call__", forgets)
    words = [*ONCE, *flags("--width 16 --layers 2 --window 4 --modes captured")]
    assert main(["stream", *words]) == 1
    assert "captured stream against one pass: differs by" in capsys.readouterr().err


def test_events_run_exactly_where_they_are_marked() -> None:
    config = streams.stream_config(width=16, layers=3, window=4)
    model = streams.routed_model(config, CPU, seed=0)
    state = model.init_state(2)
    step = EagerStep(model, state)
    for event in streams.draw_events(40, 2, 0.3, CPU, seed=3):
        step(event)
    counts = [layer.pool[0].count.tolist() for layer in state.layers]
    assert counts[0] == counts[1] == counts[2]
    assert sum(counts[0]) == round(0.3 * 80)


@pytest.mark.usefixtures("unchecked")
def test_cpu_times_passes_and_steps(tmp_path: Path, peer: Path) -> None:
    words = [*ONCE, *LAYER, *flags("--length 32 --tokens 64 --history 32 --step-batches 1")]
    words += flags("--model-width 8 --model-layers 1 --model-batches 2 --densities 0.1")
    words += flags("--rounds 1 --iterations 1")
    found = run(tmp_path, "cpu", *words, "--peer", f"{peer}:Layer")
    assert not any(r.get("failure") for r in found["results"])
    passes = [r for r in found["results"] if r["part"] == "pass"]
    assert {r["case"] for r in passes} == {"eager", "dense", "reference"}
    steps = {r["case"] for r in found["results"] if r["part"] == "step of a layer"}
    assert steps == {"skipped", "activated", "dense twin", "reference, over its history"}
    goals = [goal["what"] for goal in found["goals"]]
    assert goals[-1] == "events a second on one core"


@pytest.mark.usefixtures("unchecked")
def test_model_times_stacks_of_every_peer(tmp_path: Path, peer: Path) -> None:
    words = [*TINY, *flags("--layers 2 --lengths 32 --rounds 1 --iterations 1 --long 64")]
    words += ["--blocks", "transformer,sliding,baseline", "--peer", f"{peer}:Layer"]
    found = run(tmp_path, "model", *words)
    assert not any(r["failure"] for r in found["results"])
    ours = [r for r in found["results"] if r["case"] == "capacity"]
    assert {(r["task"], r["length"]) for r in ours} == {
        (task, length) for task in ("classification", "forecast") for length in (32, 64)
    }
    assert all(r["ran"] == round(6.4) / 64 for r in ours)
    cases = {r["case"] for r in found["results"]}
    assert {"dense", "reference", "transformer", "sliding", "baseline"} <= cases
    assert len(found["goals"]) == 4


def test_a_first_step_prints_its_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    begin = time.time()
    task = {"sizes": SIZES.as_json(), "batch": 2, "length": 32, "device": "cpu", "compiles": False}
    first_step(task | {"started": begin - 100})
    found = json.loads(capsys.readouterr().out)
    assert found["import_s"] >= 100
    assert found["first_s"] > 0
    assert found["import_s"] + found["first_s"] <= 100 + time.time() - begin


def test_sliding_attention_sees_its_window_and_no_more() -> None:
    attention = Attention(16, window=3)
    x = torch.randn(1, 12, 16, requires_grad=True)
    attention(x)[0, 8].sum().backward()
    assert x.grad is not None
    reached = x.grad[0].abs().sum(-1).nonzero().squeeze(1)
    assert reached.tolist() == [5, 6, 7, 8]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_sliding_attention_is_the_same_by_the_fused_kernel() -> None:
    attention = Attention(64, window=20).cuda()
    x = torch.randn(2, 100, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        fused = attention(x)
    assert_close(fused, attention(x), "bfloat16")
