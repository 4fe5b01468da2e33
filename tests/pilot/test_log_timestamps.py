"""Clocks of many forms, all read as the same nanosecond."""

from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from tests.pilot.log_cases import read_log, source, write

from sma_pilot.errors import LogError
from sma_pilot.logs.reader import LogReader

MOMENT = datetime(2024, 3, 25, 17, 5, 9, 250_000, tzinfo=UTC)
NS = 1_711_386_309_250_000_000
WHOLE = NS - 250_000_000  # to the second
MINUTE = WHOLE - 9 * 10**9

TEXTS = {
    "2024-03-25T17:05:09.250Z": NS,
    "2024-03-25 17:05:09.25": NS,
    "2024-03-25T19:05:09.250+02:00": NS,
    "2024-03-25 12:05:09.250-0500": NS,
    "2024-03-25T17:05:09.250000001Z": NS + 1,
    "2024-03-25T17:05:09": WHOLE,
    "2024/03/25 17:05:09": WHOLE,
    "25.03.2024 17:05:09": WHOLE,
    "03/25/2024 17:05:09": WHOLE,
    "25/03/2024 17:05:09": WHOLE,
    "03/25/2024 05:05:09 PM": WHOLE,
    "20240325T17:05:09": WHOLE,
    "20240325170509": WHOLE,
    "2024-03-25 17:05:09 UTC": WHOLE,
    "2024-03-25T17:05": MINUTE,
    "2024-03-25": 1_711_324_800 * 10**9,
    "1711386309": WHOLE,
    "1711386309.25": NS,
    "1711386309250": NS,
    "1711386309250000": NS,
    "1711386309250000000": NS,
    " 1711386309250 ": NS,
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.items(), ids=TEXTS)
def test_text_forms(tmp_path: Path, text: str, expected: int) -> None:
    name = write(tmp_path / "a.csv", f"t,x\n{text},1\n")
    assert read_log(source(name), tmp_path)["time"].to_list() == [expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([MOMENT]), NS),
        (pl.Series([MOMENT]).dt.convert_time_zone("America/New_York"), NS),
        (pl.Series([MOMENT.replace(tzinfo=None)]).cast(pl.Datetime("ms")), NS),
        (pl.Series([MOMENT.astimezone(timezone(timedelta(hours=9)))]), NS),
        (pl.Series([date(2024, 3, 25)]), 1_711_324_800 * 10**9),
        (pl.Series([NS]), NS),
        (pl.Series([NS // 10**9], dtype=pl.UInt32), WHOLE),
        (pl.Series([NS / 1e9]), NS),
        (pl.Series([NS / 1e6]), NS),
    ],
)
def test_typed_forms(tmp_path: Path, values: pl.Series, expected: int) -> None:
    pl.DataFrame({"t": values, "x": [1.0]}).write_parquet(tmp_path / "a.parquet")
    assert read_log(source("a.parquet"), tmp_path)["time"].to_list() == [expected]


def test_zones_may_change_from_row_to_row(tmp_path: Path) -> None:
    rows = "2024-03-31T01:59:59+01:00,1\n2024-03-31T03:00:00+02:00,2\n2024-03-31T01:00:01Z,3\n"
    name = write(tmp_path / "a.csv", "t,x\n" + rows)
    times = read_log(source(name), tmp_path)["time"]
    assert times.diff().drop_nulls().to_list() == [10**9, 10**9]


def test_day_and_month_are_told_apart_by_a_late_row_or_another_file(tmp_path: Path) -> None:
    early = "".join(f"0{1 + i % 9}/02/2024,1\n" for i in range(2500))
    write(tmp_path / "a.csv", "t,x\n" + early + "25/02/2024,1\n")
    write(tmp_path / "b.csv", "t,x\n03/04/2024,2\n")
    rows = read_log(source("a.csv", "b.csv"), tmp_path)
    times = rows["time"].cast(pl.Datetime("ns"))
    assert times[0] == datetime(2024, 2, 1)
    assert times[-1] == datetime(2024, 4, 3)


def test_day_and_month_are_never_guessed(tmp_path: Path) -> None:
    name = write(tmp_path / "a.csv", "t,x\n03/04/2024,1\n04/04/2024,1\n")
    with pytest.raises(LogError, match="'t': day and month cannot be told apart"):
        read_log(source(name), tmp_path)
    write(tmp_path / "b.csv", "t,x\n25/04/2024,1\n")
    write(tmp_path / "c.csv", "t,x\n04/25/2024,1\n")
    with pytest.raises(LogError, match="one writes the day first, the other the month"):
        read_log(source("b.csv", "c.csv"), tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["noon"], "'noon' is no timestamp that is known here"),
        (["1", "2"], "1 is no epoch"),
        (["2024-01-01", "01.02.2024"], "different forms are mixed"),
        (["2024-01-01"] * 1500 + ["soon"], "row 1501: 'soon' is no timestamp of the form"),
        (["9999-12-31"], "is no timestamp"),
        (["2024-01-01"] * 1500 + ["9999-12-31"], "row 1501: '9999-12-31' is no timestamp"),
        (["0001-01-01"], "is no timestamp"),
        (["2024-02-30"], "is no timestamp"),
    ],
)
def test_times_that_cannot_be_read(tmp_path: Path, rows: list[str], message: str) -> None:
    name = write(tmp_path / "a.csv", "t,x\n" + "".join(f"{row},1\n" for row in rows))
    with pytest.raises(LogError, match=message):
        read_log(source(name), tmp_path)


def test_a_date_that_no_nanosecond_holds_is_an_error(tmp_path: Path) -> None:
    times = [datetime(2024, 1, 1), datetime(9999, 12, 31)]
    pl.DataFrame({"t": times, "x": [1.0, 2.0]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(LogError, match=r"a\.parquet: column 't'"):
        read_log(source("a.parquet"), tmp_path)


def test_numbers_that_are_no_time(tmp_path: Path) -> None:
    frame = pl.DataFrame({"t": [NS / 1e9, float("nan"), None], "x": [1.0, 2.0, 3.0]})
    frame.write_parquet(tmp_path / "a.parquet")
    assert read_log(source("a.parquet"), tmp_path)["time"].to_list() == [NS]
    frame = pl.DataFrame({"t": [2**64 - 1], "x": [1.0]}, schema_overrides={"t": pl.UInt64})
    frame.write_parquet(tmp_path / "b.parquet")
    with pytest.raises(LogError, match="18446744073709551615 is no epoch"):
        read_log(source("b.parquet"), tmp_path)


def test_rows_without_a_time_are_left_out_and_counted(tmp_path: Path) -> None:
    name = write(tmp_path / "a.csv", "t,e,x\n2024-01-01,a,1\n,a,2\n2024-01-02,,3\n2024-01-03,a,4\n")
    log = source(name, entity="e")
    assert read_log(log, tmp_path)["n0"].to_list() == [1.0, 4.0]
    survey = LogReader(log, tmp_path).survey
    assert (survey.rows, survey.without_time, survey.without_entity) == (4, 1, 1)
