"""The public logs, counted by polars directly and by `prepare`."""

from pathlib import Path

import polars as pl
import pytest
from tests.pilot.log_cases import make_plan, split_arrays

from sma_pilot.logs.slices import SLICES
from sma_pilot.logs.windows import prepare

EDGES = ("2024-01-04T00:00:00Z", "2024-01-05T12:00:00Z", "2024-01-09T00:00:00Z")


@pytest.mark.parametrize("name", ["smd", "services"])
def test_counts_are_those_of_the_log(real_logs: Path, tmp_path: Path, name: str) -> None:
    keys = ("validation_from", "judged_from", "judged_until")
    plan = make_plan(
        f"{name}/*.parquet",
        time="timestamp",
        entity="entity",
        label="anomaly",
        numeric=("sensor_*",),
        max_gap="1h",
        slices=dict(zip(keys, EDGES, strict=True)),
    )
    dataset = prepare(plan, real_logs, tmp_path / "out")
    log = pl.read_parquet(real_logs / name / "*.parquet").sort("entity", "timestamp")
    edges = [pl.lit(edge).str.to_datetime(time_zone="UTC") for edge in EDGES]
    time = pl.col("timestamp")
    number = pl.sum_horizontal(time >= edge for edge in edges)
    sensors = pl.selectors.starts_with("sensor_")
    for i, slice_name in enumerate(SLICES):
        rows = log.filter(number == i)
        counts = dataset.card.provenance["slices"][slice_name]
        label = pl.col("anomaly")
        begins = (label == 1) & (label.shift().over("entity").fill_null(0) == 0)
        assert counts["rows"] == rows.height == dataset.card.splits[slice_name].rows
        assert counts["labelled"] == rows["anomaly"].count()
        assert counts["event_rows"] == (rows["anomaly"].sum() or 0)
        assert counts["events"] == rows.select(begins.sum()).item()
        assert counts["sequences"] == rows["entity"].n_unique()
        arrays = split_arrays(dataset, slice_name)
        assert (
            arrays["time"].tolist() == rows["timestamp"].cast(pl.Datetime("ns")).cast(int).to_list()
        )
        assert arrays["numeric"].shape == rows.select(sensors).shape
    scales = dataset.card.provenance["scaling"]["entities"]
    means = log.filter(number == 0).group_by("entity").agg(sensors.cast(pl.Float64).mean())
    for entity, *mean in means.iter_rows():
        assert scales[entity]["center"] == pytest.approx(mean, rel=1e-9, abs=1e-12)
