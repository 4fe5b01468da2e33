"""What a label column may say, and how silence is read."""

from pathlib import Path

import pytest
from tests.pilot.log_cases import read_log, source, write

from sma_pilot.errors import LogError


def _labels(folder: Path, *cells: str) -> list[int]:
    rows = "".join(f"2024-01-{i:02},1,{cell}\n" for i, cell in enumerate(cells, start=1))
    name = write(folder / "a.csv", "t,x,l\n" + rows)
    return read_log(source(name, label="l"), folder)["label"].to_list()


@pytest.mark.parametrize(
    ("cells", "codes"),
    [
        (("0", "1", ""), [0, 1, -1]),
        (("0.0", "1.0", "3"), [0, 1, 3]),
        (("True", "FALSE", ""), [1, 0, -1]),
        (("Normal", " failure ", "unknown"), [0, 1, -1]),
        (("ok", "ATTACK", "?"), [0, 1, -1]),
        # Nobody writes "normal" here, so silence means it.
        (("", "1", ""), [0, 1, 0]),
        (("", "fault", "NaN"), [0, 1, 0]),
        (("", "", ""), [-1, -1, -1]),
        (("0", "", "0"), [0, -1, 0]),
    ],
)
def test_values(tmp_path: Path, cells: tuple[str, ...], codes: list[int]) -> None:
    assert _labels(tmp_path, *cells) == codes


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("weird", "row 3: 'weird' is no label"),
        ("0.5", "row 3: '0.5' is no label"),
        ("-1", "two customary meanings"),
        ("101", "row 3: '101' is no label"),
        ("inf", "is no label"),
    ],
)
def test_garbage(tmp_path: Path, cell: str, message: str) -> None:
    with pytest.raises(LogError, match=f"column 'l'.*{message}|{message}"):
        _labels(tmp_path, "0", "1", cell)


def test_the_coding_is_one_for_all_files(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "t,x,l\n2024-01-01,1,\n2024-01-02,1,1\n")
    write(tmp_path / "b.csv", "t,x,l\n2024-01-03,1,0\n")
    assert read_log(source("a.csv", label="l"), tmp_path)["label"].to_list() == [0, 1]
    both = read_log(source("a.csv", "b.csv", label="l"), tmp_path)
    assert both["label"].to_list() == [-1, 1, 0]


def test_without_a_label_column_nothing_is_known(tmp_path: Path) -> None:
    name = write(tmp_path / "a.csv", "t,x\n2024-01-01,1\n")
    assert read_log(source(name), tmp_path)["label"].to_list() == [-1]
