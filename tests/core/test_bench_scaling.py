"""The benchmark of several GPUs: what one process measures, and what is made of many."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from sma_core.bench import scaling
from sma_core.bench.__main__ import main, parser
from sma_core.bench.scaling_worker import measure


def flags(line: str) -> list[str]:
    return line.split()


LAYER = flags("--width 16 --query-width 8 --value-width 16 --states 2 --window 8 --layers 2")
ONCE = flags("--length 64 --batch 3 --rounds 2 --iterations 2 --warmup 1 --compile-off")
TINY = [*LAYER, *ONCE]


@pytest.mark.parametrize("case", ["packed", "capacity", "transformer"])
def test_a_process_counts_its_rows_and_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # so that what is set inside is forgotten
    options = parser().parse_args(["scaling", *TINY, "--density", "0.25", "--spread", "0"])
    measure(0, options, case, 3, 1, 0, "cpu", tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text())
    assert len(found["step"]["raw_ms"]) == 4
    median = statistics.median(found["step"]["raw_ms"])
    assert found["tokens_per_s"] == pytest.approx(1000 * 3 * 64 / median)
    assert 0.1 * 3 * 64 < found["rows_by_rank"][0] < 0.4 * 3 * 64
    assert found["rows_imbalance"] == (None if case == "transformer" else 1.0)
    assert found["time_imbalance"] == 1.0
    assert found["peak_bytes"] is None


def test_efficiency_is_over_as_many_times_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {("weak", 1): 100.0, ("weak", 2): 190.0, ("weak", 3): 280.0, ("weak", 4): 360.0}
    rates["strong", 2] = 150.0
    started: list[tuple[str, int]] = []

    def start(options: Any, device: Any, mode: str, case: str, count: int) -> dict[str, Any]:
        started.append((mode, count))
        if count == 4 and mode == "strong":
            return {"failure": "failed: RuntimeError: out of memory"}
        step = {"median_ms": 1.0, "iqr_ms": 0.1}
        figures = {"peak_bytes": None, "rows_imbalance": 1.2, "time_imbalance": 1.01}
        return {"tokens_per_s": rates[mode, count], "step": step, **figures}

    monkeypatch.setattr(scaling, "_start", start)
    path = tmp_path / "scaling.json"
    words = [*TINY, *flags("--batch 4 --device cpu --processes 1,2,3,4 --check-steps 20")]
    assert main(["scaling", *words, "--cases", "packed", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    efficiency = {(r["scaling"], r["processes"]): r["efficiency"] for r in found["results"]}
    assert efficiency == {
        ("weak", 1): 1.0,
        ("weak", 2): 0.95,
        ("weak", 3): pytest.approx(280 / 300),
        ("weak", 4): 0.9,
        ("strong", 1): 1.0,
        ("strong", 2): 0.75,
        ("strong", 4): None,
    }
    # One process is measured once, and 4 sequences do not go into 3.
    assert started == [("weak", n) for n in (1, 2, 3, 4)] + [("strong", 2), ("strong", 4)]
    assert any("strong, 3 processes: skipped" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--spread 2", "spread: must lie in 0..1"),
        ("--density 0.6", "spread: must lie in 0..1"),
    ],
)
def test_a_share_of_more_than_all_is_refused(
    capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert main(["scaling", *TINY, "--device", "cpu", *words.split()]) == 2
    assert message in capsys.readouterr().err
