"""Every format and every fault of raw files."""

import gzip
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from tests.pilot.log_cases import START, read_log, source, write

from sma_pilot.errors import LogError
from sma_pilot.logs.files import find_files
from sma_pilot.logs.reader import LogReader

DAY = "2024-01-01T00:0"
ROWS = [(f"{DAY}0:00Z", "1.5"), (f"{DAY}1:00Z", ""), (f"{DAY}2:00Z", "-3e2")]


def _csv(separator: str = ",", end: str = "\n") -> str:
    return end.join(separator.join(cells) for cells in [("t", "x"), *ROWS]) + end


def _ndjson() -> str:
    return "".join(
        f'{{"t": "{time}", "x": {number or "null"}}}\n' for time, number in reversed(ROWS)
    )


def _contents(tmp_path: Path) -> dict[str, bytes]:
    pl.DataFrame({"x": [1.5, None, -300.0], "t": [time for time, _ in ROWS]}).write_parquet(
        tmp_path / "made"
    )
    return {
        "a.csv": _csv().encode(),
        "bom.csv": b"\xef\xbb\xbf" + _csv().encode(),
        "windows.csv": _csv(end="\r\n").encode(),
        "semicolon.csv": _csv(";").encode(),
        "pipe.csv": _csv("|").encode(),
        "a.tsv": _csv("\t").encode(),
        "A.CSV.GZ": gzip.compress(_csv().encode()),
        "a.ndjson": _ndjson().encode(),
        "a.jsonl": _ndjson().encode(),
        "a.parquet": (tmp_path / "made").read_bytes(),
        "a.pq": (tmp_path / "made").read_bytes(),
        "a[1].csv": _csv().encode(),
        "b[1]*.csv.gz": gzip.compress(_csv().encode()),
        "c?{}[!a].ndjson": _ndjson().encode(),
        "d[2]*.parquet": (tmp_path / "made").read_bytes(),
    }


def test_every_format_reads_the_same(tmp_path: Path) -> None:
    for name, content in _contents(tmp_path).items():
        # Another file that a name with glob characters would match as a pattern.
        write(tmp_path / "a1.csv", "t,x\n2020-01-01,9\n")
        rows = read_log(source(write(tmp_path / name, content)), tmp_path).sort("time")
        assert rows["n0"].to_list() == [1.5, None, -300.0], name
        assert (rows["time"] - START).to_list() == [0, 60 * 10**9, 120 * 10**9], name


def test_files_of_other_column_orders_and_formats_are_one_log(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "t,x,y\n2024-01-01T00:00:00Z,1,2\n")
    write(tmp_path / "b.csv", "y,junk,t,x\n4,?,2024-01-01T00:01:00Z,3\n")
    write(tmp_path / "c.ndjson", '{"y": 6, "t": 1704067320000, "x": 5}\n')
    rows = read_log(source("a.csv", "b.csv", "c.ndjson", numeric=("x", "y")), tmp_path)
    assert rows.select("n0", "n1").rows() == [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]
    assert rows["file"].to_list() == [0, 1, 2]
    assert ((rows["time"] - START) // 10**9).to_list() == [0, 60, 120]


def test_decimal_comma_goes_with_the_semicolon(tmp_path: Path) -> None:
    name = write(tmp_path / "a.csv", "t;x\n2024-01-01;12,5\n")
    assert read_log(source(name), tmp_path)["n0"].item() == 12.5


def test_truth_values_are_numbers(tmp_path: Path) -> None:
    name = write(tmp_path / "a.csv", "t,x\n2024-01-01,True\n2024-01-02,false\n2024-01-03,\n")
    assert read_log(source(name), tmp_path)["n0"].to_list() == [1.0, 0.0, None]
    name = write(tmp_path / "a.ndjson", '{"t": "2024-01-01", "x": true}\n')
    assert read_log(source(name), tmp_path)["n0"].to_list() == [1.0]


@pytest.mark.parametrize("word", ["NaN", "nan", "NULL", "N/A", "None", " "])
def test_words_for_no_value(tmp_path: Path, word: str) -> None:
    name = write(tmp_path / "a.csv", f"t,x\n2024-01-01,{word}\n2024-01-02,1\n")
    assert read_log(source(name), tmp_path)["n0"].to_list() == [None, 1.0]


@pytest.mark.parametrize(
    "name", ["^x.*$", "*", "temp [C]", "a?b", "te\nmp", "n0", "время", 'say "x"', "inner  blanks"]
)
def test_columns_are_read_by_their_very_name(tmp_path: Path, name: str) -> None:
    frame = pl.DataFrame({name: [1.0], "x1": [7.0], "temp C": [8.0], "t": ["2024-01-01"]})
    frame.write_csv(tmp_path / "a.csv")
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_ndjson(tmp_path / "a.ndjson")
    for ending in ("csv", "parquet", "ndjson"):
        # A star is a pattern unless a column is called so.
        rows = read_log(source(f"a.{ending}", numeric=(name,)), tmp_path)
        assert rows["n0"].to_list() == [1.0]
        assert "n1" not in rows.columns


def test_nameless_columns_are_passed_over(tmp_path: Path) -> None:
    name = write(tmp_path / "a.csv", ",t, x ,,\n0,2024-01-01,5,8,9\n")
    file = LogReader(source(name), tmp_path).files[0]
    assert list(file.dtypes) == ["t", "x"]
    assert read_log(source(name), tmp_path)["n0"].to_list() == [5.0]


def test_a_row_that_was_cut_off_lacks_its_last_values(tmp_path: Path) -> None:
    name = write(tmp_path / "a.csv", "t,x,y\n2024-01-01,5,6\n2024-01-02")
    rows = read_log(source(name, numeric=("x", "y")), tmp_path)
    assert rows.select("n0", "n1").rows() == [(5.0, 6.0), (None, None)]


def test_clock_machine_and_label_are_read_by_their_very_name(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "^t$": ["2024-01-01", "2024-01-02"],
            "t": ["1999-01-01", "1999-01-01"],
            "^e.*$": ["a", "b"],
            "ex": ["wrong", "wrong"],
            "*": [0, 1],
            "x": [1.0, 2.0],
        }
    )
    frame.write_csv(tmp_path / "a.csv")
    rows = read_log(source("a.csv", time="^t$", entity="^e.*$", label="*"), tmp_path)
    assert rows["entity"].to_list() == ["a", "b"]
    assert rows["label"].to_list() == [0, 1]
    assert (rows["time"][0] - START) == 0


def test_patterns_leave_out_what_is_named_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "t,m,l,a1,a2,b\n2024-01-01,m,0,1,2,3\n")
    log = source("a.csv", numeric=("a*", "b"), categorical=("a2",), entity="m", label="l")
    columns = LogReader(log, tmp_path).columns
    assert (columns.numeric, columns.categorical) == (("a1", "b"), ("a2",))
    everything = LogReader(source("a.csv", numeric=("*",), entity="m", label="l"), tmp_path)
    assert everything.columns.numeric == ("a1", "a2", "b")


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "a.csv", _csv())
    found = find_files(["*.csv", "a.csv", "sub/../a.csv", str(tmp_path / "a.csv")], tmp_path)
    assert found == [tmp_path / "a.csv"]


def test_patterns_and_absolute_paths(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    for name in ("b.csv", "a.csv", "x/c.csv", "x/y/d.csv"):
        (tmp_path / name).write_text(_csv())
    (tmp_path / "e.csv").mkdir()
    assert [path.name for path in find_files(["*.csv"], tmp_path)] == ["a.csv", "b.csv"]
    assert len(find_files(["**/*.csv"], tmp_path)) == 4
    elsewhere = find_files([str(tmp_path / "x" / "*.csv")], tmp_path / "x" / "y")
    assert [path.name for path in elsewhere] == ["c.csv"]


FAULTS: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("a.csv", "", r"a\.csv: the file is empty"),
    "blank": ("a.csv", "\n\n", "names no column"),
    "header alone": ("a.csv", "t,x\n", "no row with a time and an entity"),
    "no header": ("a.csv", "2024-01-01,1\n2024-01-02,2\n", "looks like data"),
    "twice": ("a.csv", "t,x,x\n2024-01-01,1,2\n", "'x' appears twice"),
    "ragged": ("a.csv", "t,x\n2024-01-01,1\n2024-01-02,1,3\n", "line 3 has 3 cells, the header 2"),
    "binary": ("a.csv", bytes(range(256)) * 20, "not UTF-8"),
    "latin": ("a.csv", "t,x\n2024-01-01,é\n".encode("latin1"), "line 2 is not UTF-8"),
    "utf-16": ("a.csv", "t,x\n2024-01-01,1\n".encode("utf-16"), "not UTF-8"),
    "cut gzip": (
        "a.csv.gz",
        gzip.compress(b"t,x\n" + b"2024-01-01,1\n" * 1000)[:-20],
        r"a\.csv\.gz: cannot be read",
    ),
    "binary parquet": ("a.parquet", bytes(range(256)), r"a\.parquet: cannot be read as parquet"),
    "binary json": ("a.ndjson", bytes(range(1, 256)), "line 1 is no JSON|not UTF-8"),
    "json list": ("a.ndjson", "[1]\n", "line 1 is no JSON object"),
    "json cut": ("a.ndjson", '{"t": "2024-01-01", "x": 1}\n{"t":\n', "line 2 is no JSON"),
    "json late": (
        "a.ndjson",
        '{"t": "2024-01-01", "x": 1}\n' * 3000 + "what\n",
        "line 3001 is no JSON",
    ),
    "json NaN": ("a.ndjson", '{"t": "2024-01-01", "x": NaN}\n', "line 1.*NaN.*write null"),
    "json mark": ("a.ndjson", '\ufeff{"t": "2024-01-01", "x": 1}\n', "byte order mark"),
    "text": ("a.csv", "t,x\n2024-01-01,1\n2024-01-02,abc\n", "'x', row 2: 'abc' is no number"),
    "thousands": ("a.csv", 't,x\n2024-01-01,"1,234"\n', "'x', row 1: '1,234' is no number"),
    "reserved": ("a.csv", "t,x,sma-pilot row\n2024-01-01,1,2\n", "'sma-pilot row'.*rename"),
    "no column": ("a.csv", "t,X2\n2024-01-01,1\n", "no column matches column 'x'; did you mean"),
    "no time": ("a.csv", "T,x\n2024-01-01,1\n", "log.time: no column 't'; did you mean 'T'"),
    "ending": ("a.xlsx", "t,x\n", "unknown ending '.xlsx'; known: "),
}


@pytest.mark.parametrize(("name", "content", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_name_their_place(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    write(tmp_path / name, content)
    with pytest.raises(LogError, match=f"(?s){message}"):
        read_log(source(name), tmp_path)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none*.csv", "'none.*' matches no file in"),
        ("sub", "'sub' is a folder; name the files in it, such as 'sub/"),
        (".", "is a folder"),
        ("", "is a folder"),
        ("**a/[.csv", "is no pattern|matches no file"),
        ("gone/../../x.csv", "matches no file"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(LogError, match=message):
        find_files([pattern], tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [([timedelta(1)], "Duration"), ([[1.0]], "List"), ([b"a"], "Binary"), ([{"a": 1}], "Struct")],
)
def test_parquet_values_that_are_no_numbers(tmp_path: Path, values: list, message: str) -> None:
    pl.DataFrame({"t": ["2024-01-01"], "x": values}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(LogError, match=f"'x' holds {message}"):
        read_log(source("a.parquet"), tmp_path)


def test_a_truncated_parquet_file_is_an_error(tmp_path: Path) -> None:
    pl.DataFrame({"t": ["2024-01-01"] * 99, "x": range(99)}).write_parquet(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (whole[:-10], whole[:4] + b"\xff" * 60 + whole[64:], whole[: len(whole) // 2]):
        write(tmp_path / "a.parquet", content)
        with pytest.raises(LogError, match=r"a\.parquet: cannot be read"):
            read_log(source("a.parquet"), tmp_path)


def test_a_file_that_lacks_a_channel_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "t,x1,x2\n2024-01-01,1,2\n")
    write(tmp_path / "b.csv", "t,x1\n2024-01-02,1\n")
    with pytest.raises(LogError, match=r"b\.csv: column 'x2' is missing; a\.csv has it"):
        LogReader(source("a.csv", "b.csv", numeric=("x*",)), tmp_path)


def test_one_column_cannot_play_two_parts(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "t,x\n2024-01-01,1\n")
    with pytest.raises(LogError, match=r"'x' is log\.numeric already"):
        LogReader(source("a.csv", categorical=("x",)), tmp_path)
    with pytest.raises(LogError, match=r"'t' is log\.time already"):
        LogReader(source("a.csv", numeric=("t", "x")), tmp_path)


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    name = write(tmp_path / "a\x1b[2J\n.csv", "t,x\n2024-01-01,abc\n")
    with pytest.raises(LogError) as caught:
        read_log(source(name), tmp_path)
    assert str(caught.value).isprintable()
