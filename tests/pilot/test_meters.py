"""Memory is metered, the sampler stops, and what cannot be read is None."""

import json
import mmap
import platform
import sys
import threading
import time

import numpy as np
import pytest

from sma_pilot.replay.environment import cpu_model, environment
from sma_pilot.replay.meters import PeakMemory, private_bytes, release_freed_memory

MIB = 1 << 20


def allocate(megabytes: int) -> np.ndarray:
    """Take fresh memory: of 32 MiB and less, the allocator may hand out what was freed before."""
    assert megabytes > 32
    return np.ones(megabytes * MIB, dtype=np.uint8)  # ones: pages that are never written stay out


def test_the_sampler_sees_memory_that_is_gone_at_the_end():
    with PeakMemory(sampled=True, device="cpu") as memory:
        block = allocate(64)
        deadline = time.monotonic() + 20
        while memory.peak_rss_bytes - memory.baseline_rss_bytes < 60 * MIB:
            assert time.monotonic() < deadline, "the sampler took no sample"
            time.sleep(0.001)
        del block
        release_freed_memory()
        inside = private_bytes()
    assert memory.peak_rss_bytes - memory.baseline_rss_bytes >= 60 * MIB
    assert memory.peak_rss_bytes - inside >= 60 * MIB


@pytest.mark.parametrize("failing", [False, True])
def test_the_sampler_is_gone_after_the_block(failing):
    before = set(threading.enumerate())
    try:
        with PeakMemory(sampled=True, device="cpu"):
            assert len(set(threading.enumerate()) - before) == 1
            if failing:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert set(threading.enumerate()) == before


def test_without_a_sampler_memory_is_read_when_asked_and_no_thread_runs():
    before = set(threading.enumerate())
    with PeakMemory(sampled=False, device="cpu") as memory:
        assert set(threading.enumerate()) == before
        block = allocate(64)
        assert memory.peak_rss_bytes == memory.baseline_rss_bytes
        memory.sample()
        peak = memory.peak_rss_bytes
        assert peak - memory.baseline_rss_bytes >= 60 * MIB
        more = allocate(64)
    assert memory.peak_rss_bytes == peak
    assert block.sum() + more.sum() == 128 * MIB


def test_without_a_cuda_device_its_memory_is_not_measured_rather_than_zero():
    with PeakMemory(sampled=False, device="cpu") as memory:
        pass
    assert memory.peak_cuda_bytes is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells file pages apart")
def test_pages_of_a_mapped_file_are_not_charged(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"x" * (32 * MIB))
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    before = private_bytes()
    assert sum(view[:: mmap.PAGESIZE]) > 0
    assert private_bytes() - before < 8 * MIB
    view.close()


def test_the_environment_names_kinds_and_versions_and_no_one():
    card = environment(threads=3, device="cpu")
    assert set(card) == {
        *("cpu", "cores", "logical_cores", "memory_bytes", "gpu", "device", "threads"),
        *("platform", "python", "torch", "numpy", "polars"),
    }
    assert card["threads"] == 3
    assert card["gpu"] is None
    assert card["cpu"] == cpu_model() != ""
    assert platform.node() not in card["platform"].split()
    json.dumps(card, allow_nan=False)
