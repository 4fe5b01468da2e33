"""Shards on a real Ray: two nodes, of whose workers one is killed; and as the command starts it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from tests.pilot.demo_cases import SMALL_DAYS, small_demo_toml
from tests.pilot.replay_cases import make_dataset, quiet
from tests.pilot.shard_cases import contents, many_machines
from tests.pilot.test_replay import real_plan
from tests.slow import slow

from sma_pilot.arms import fit_arms
from sma_pilot.demo import make_demo_log
from sma_pilot.replay.runner import replay
from sma_pilot.replay.sharding import Sharding


@contextmanager
def a_worker_killed() -> Iterator[list[int]]:
    """Kill the first process that is seen to score a shard; yield the list that will name it."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not killed and not over.wait(0.005):
            for process in psutil.process_iter(["pid", "cmdline"]):
                if (process.info["cmdline"] or [""])[0].startswith("ray::replay"):
                    os.kill(process.info["pid"], signal.SIGKILL)
                    killed.append(process.info["pid"])
                    return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@slow
def test_a_replay_over_ray_is_the_same_and_survives_a_killed_worker(tmp_path: Path) -> None:
    from experiments.local_cluster import LocalCluster

    from sma_pilot.replay.cluster import sharding_over

    dataset = make_dataset(tmp_path / "dataset", many_machines())
    plan, models = real_plan(), tmp_path / "models"
    fit_arms(plan, dataset, tmp_path, models, quiet)

    def go(name: str, split: Sharding | None) -> dict[str, str]:
        replay(plan, dataset, models, tmp_path / name, quiet, sharding=split)
        return contents(tmp_path / name)

    whole = go("whole", None)
    cluster = LocalCluster(nodes=2)
    try:
        assert go("split", sharding_over("auto", None)) == whole
        with a_worker_killed() as killed:
            assert go("hurt", sharding_over("auto", 2)) == whole
    finally:
        cluster.close()
    assert killed


@slow
def test_the_command_starts_a_ray_of_its_own(tmp_path: Path) -> None:
    log, plan = tmp_path / "log", tmp_path / "pilot.toml"
    make_demo_log(log, on_progress=quiet, days=SMALL_DAYS)
    plan.write_text(small_demo_toml())
    command = [sys.executable, "-c", "from sma_pilot.cli import main; main()", "run", str(plan)]
    for name, options in (("whole", []), ("split", ["--address", "local", "--shards", "2"])):
        place = ["--data", str(log), "--out", str(tmp_path / name)]
        done = subprocess.run([*command, *place, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    whole, split = (next((tmp_path / name).glob("*/replay")) for name in ("whole", "split"))
    assert contents(split) == contents(whole)
