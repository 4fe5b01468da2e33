"""Free text as events: plain lines parsed, templates mined from training, sessions judged."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.pilot.log_cases import MINUTE, START, same_split, split_arrays, write
from tests.pilot.replay_cases import quiet

from sma_core.dataset import PreparedDataset
from sma_pilot import pilot
from sma_pilot.errors import LogError
from sma_pilot.logs.checks import check_log
from sma_pilot.logs.drain import WILDCARD, Drain
from sma_pilot.logs.vocabulary import MAX_VOCABULARY, Templates
from sma_pilot.logs.windows import prepare
from sma_pilot.plan import Plan, TextSource
from sma_pilot.run_folder import RunFolder

RECORDED = Path(__file__).parent / "data" / "drain3.json"
PATTERN = r"^(?P<at>\d{6} \d{6}) \d+ (?P<level>\w+) (?P<message>.*)$"
LINES = {"pattern": PATTERN, "time_format": "%y%m%d %H%M%S"}
TEXT = {"column": "message", "session": r"(blk_-?\d+)"}
START_S = START // 10**9


def make_plan(*files: str, **sections: dict[str, Any]) -> Plan:
    """Sessions of block ids in plain lines, by simple arms."""
    document: dict[str, Any] = {
        "version": 1,
        "name": "blocks",
        "log": {
            "files": files or ("app.log",),
            "time": "at",
            "period": "1s",
            "max_gap": "1h",
            "duplicates": "keep",
            "lines": LINES,
            "text": TEXT,
        },
        "slices": {"validation_from": 0.5, "judged_from": 0.65},
        "task": {"kind": "session_anomaly"},
        "quality": {
            "headline": "average_precision",
            "loss_limit": 0.2,
            "false_alarms_per_day": 60,
            "alarm_merge": "1m",
            "resamples": 200,
        },
        "arms": {
            "incumbent": {"kind": "count_pca"},
            "candidate": {"kind": "count_pca", "components": 2},
        },
        "replay": {"single_stream_events": 20, "warmup_events": 5, "passes": 2},
    }
    for name, fields in sections.items():
        document[name] = {**document.get(name, {}), **fields}
    return Plan.model_validate(document)


def stamp(second: int) -> str:
    moment = np.datetime64(START_S + second, "s").astype(object)
    return moment.strftime("%y%m%d %H%M%S")


def line(second: int, message: str) -> str:
    return f"{stamp(second)} 143 INFO {message}"


def block_lines(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Lines of blocks, one a minute; an unusual one holds an exception. And which those are."""
    rng = np.random.default_rng(seed)
    lines, unusual = [], []
    for block in range(count):
        name = f"blk_{'-' if block % 2 else ''}{rng.integers(10**9)}"
        ip = f"10.250.{rng.integers(255)}.{rng.integers(255)}"
        messages = [
            f"Receiving block {name} src: /{ip}:50010",
            f"PacketResponder {rng.integers(3)} for block {name} <b>terminating</b>",
            f"Received block {name} of size {rng.integers(10**6)} from /{ip}",
        ]
        if rng.random() < 0.2:
            unusual.append(block)
            messages.insert(1, f"Exception 0x{rng.integers(10**6):x} while serving {name}")
        lines += [line(60 * block + place, text) for place, text in enumerate(messages)]
    return lines, unusual


# Templates.


def test_templates_are_those_of_drain3():
    cases = json.loads(RECORDED.read_text())["cases"]
    assert len(cases) == 10
    for case in cases:
        drain = Drain(case["similarity"], case["depth"], case["children"])
        found = [drain.add(text) for text in case["lines"]]
        assert [" ".join(group.template) for group in drain.groups] == case["templates"]
        places = {id(group): place for place, group in enumerate(drain.groups)}
        assert [places[id(group)] for group in found] == case["groups"]


def templates_of(lines: list[str], **fields: Any) -> Templates:
    counts = pl.Series(lines).to_frame("word").group_by("word", maintain_order=True).len()
    text = TextSource.model_validate({"column": "x", **fields})
    return Templates(Counter(dict(counts.iter_rows())), text)


WORDS = st.sampled_from(["a", "b", "c", "d1", "<*>", "e"])
LINE = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)
SOME_LINES = st.lists(LINE, min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(SOME_LINES, st.sampled_from([0.3, 0.6, 1.0]), st.integers(2, 5))
def test_every_training_line_has_a_template_and_the_same_lines_the_same_ones(
    lines, similarity, children
):
    mined = templates_of(lines, similarity=similarity, children=children)
    codes = mined.encode(pl.Series(lines))
    assert (codes > 0).all()
    assert len(set(mined.values)) == len(mined.values)
    for text, code in zip(lines, codes, strict=True):
        template = mined.values[code].split()
        pairs = zip(template, text.split(), strict=True)
        assert all(own in (WILDCARD, word) for own, word in pairs)
    again = templates_of(lines, similarity=similarity, children=children)
    assert again.values == mined.values
    # One by one, in the other order, is the same as all at once.
    alone = [int(again.encode(pl.Series([text]))[0]) for text in reversed(lines)]
    assert alone[::-1] == codes.tolist()


def test_the_most_special_template_wins_and_a_strange_line_has_none():
    mined = templates_of(["x up now ok", "x up now bad", "x up then ok", "y", "y"])
    assert mined.values == ("<unknown>", "x up <*> <*>", "y")
    codes = mined.encode(pl.Series(["x up today well", "x down now ok", "y", "y z", None]))
    assert codes.tolist() == [1, 0, 2, 0, 0]
    both = templates_of(["1 b c", "2 b c", "y b c"])
    assert both.values == ("<unknown>", "<*> b c", "y b c")
    assert both.encode(pl.Series(["y b c", "z b c"])).tolist() == [2, 1]
    assert mined.to_dict()["templates"][0] == {
        "template": "x up <*> <*>",
        "lines": 3,
        "example": "x up now ok",
    }


def test_rare_templates_go_first_when_there_are_too_many():
    lines = [f"{'a ' * (number // 26)}{chr(97 + number % 26)}" for number in range(1100)]
    mined = templates_of([*lines, lines[-1], lines[-1]], similarity=1.0, children=10_000)
    assert len(mined.values) == MAX_VOCABULARY
    assert mined.encode(pl.Series([lines[-1]])).tolist() != [0]


# Plain lines.


def prepared(folder: Path, text: str | bytes, **sections: Any) -> PreparedDataset:
    write(folder / "app.log", text)
    return prepare(make_plan(**sections), folder, folder / "made")


def test_lines_become_sessions_of_templates(tmp_path):
    lines, _ = block_lines(60)
    dataset = prepared(tmp_path, "\r\n".join(lines) + "\r\n\r\n")
    (channel,) = dataset.card.categorical
    assert channel.name == "message"
    assert channel.vocabulary[0] == "<unknown>"
    assert set(channel.vocabulary) == {
        "<unknown>",
        "Receiving block <*> src: /<IP>",
        "PacketResponder <NUM> for block <*> <b>terminating</b>",
        "Received block <*> of size <NUM> from /<IP>",
        "Exception <HEX> while serving <*>",
    }
    assert all(name.startswith("blk_") for name in dataset.card.entities)
    assert len(dataset.card.entities) == 60
    provenance = dataset.card.provenance
    assert provenance["lines_unparsed"] == {"lines": 0, "examples": []}
    mined = provenance["templates"]["templates"]
    assert sum(own["lines"] for own in mined) == provenance["slices"]["train"]["rows"]
    assert provenance["templates"]["mined"]["masks"] == ["ip", "hex", "number"]
    assert {path.suffix for path in dataset.folder.iterdir()} == {".json", ".safetensors"}


def test_masks_of_one_s_own_and_their_order(tmp_path):
    lines, _ = block_lines(60)
    masks = [{"name": "BLK", "pattern": r"blk_-?\d+"}, "number"]
    dataset = prepared(tmp_path, "\n".join(lines), log={"text": {**TEXT, "masks": masks}})
    vocabulary = dataset.card.categorical[0].vocabulary
    assert "Receiving block <BLK> src: <*>" in vocabulary or (
        "Receiving block <BLK> src: /<NUM>.<NUM>:<NUM>" in vocabulary
    )


def test_lines_that_do_not_parse_are_told_with_file_and_number(tmp_path):
    lines, _ = block_lines(60)
    lines.insert(3, "Traceback <most recent call last>")
    lines.insert(9, "999999 999999 143 INFO no such day blk_1")
    lines.insert(12, "")
    plan = make_plan(log={"lines": {**LINES, "unparsed_limit": 0.05}})
    write(tmp_path / "app.log", "\n".join(lines))
    dataset = prepare(plan, tmp_path, tmp_path / "made")
    told = dataset.card.provenance["lines_unparsed"]
    assert told["lines"] == 2
    assert told["examples"] == [
        "app.log: line 4: 'Traceback <most recent call last>'",
        "app.log: line 10: '999999 999999 143 INFO no such day blk_1'",
    ]
    assert dataset.card.provenance["rows_read"] == len(lines) - 1
    messages = [finding.message for finding in check_log(plan, tmp_path).findings]
    assert any("of the lines do not parse" in text and "line 10" in text for text in messages)
    strict = make_plan(log={"lines": {**LINES, "unparsed_limit": 0.0}})
    told = r"2 of \d+ lines lack .*unparsed_limit \(0\): app.log: line 4"
    with pytest.raises(LogError, match=told):
        prepare(strict, tmp_path, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_file_of_nothing_that_parses_and_one_without_a_pattern_are_refused(tmp_path):
    write(tmp_path / "app.log", "a\nb\n")
    with pytest.raises(LogError, match=r"2 of 2 lines lack log\.lines\.pattern"):
        prepare(make_plan(), tmp_path, tmp_path / "made")
    write(tmp_path / "app.log", "\n\n")
    with pytest.raises(LogError, match="the log has no row"):
        prepare(make_plan(), tmp_path, tmp_path / "made")
    write(tmp_path / "app.log", b"\xff\xfe\n")
    with pytest.raises(LogError, match=r"app\.log: line 1 is not UTF-8"):
        prepare(make_plan(), tmp_path, tmp_path / "made")
    document = make_plan().model_dump(mode="json")
    del document["log"]["lines"]
    with pytest.raises(LogError, match=r"app\.log: plain lines; give log\.lines\.pattern"):
        prepare(Plan.model_validate(document), tmp_path, tmp_path / "made")


def test_what_comes_later_changes_no_template(tmp_path):
    lines, _ = block_lines(100)
    late = [
        line(6000 + place, f"Shutdown of blk_9999999999 by hand {place}") for place in range(40)
    ]
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    borders = {"validation_from": "2024-01-01T00:50:00Z", "judged_from": "2024-01-01T01:00:00Z"}
    other = [t.replace("Receiving", "Refusing") if n > 200 else t for n, t in enumerate(lines)]
    a = prepared(tmp_path / "one", "\n".join(lines), slices=borders)
    b = prepared(tmp_path / "other", "\n".join(other + late), slices=borders)
    assert a.card.categorical == b.card.categorical
    assert same_split(a, b, "train")
    assert 0 not in split_arrays(a, "judged")["categorical"]
    assert 0 in split_arrays(b, "judged")["categorical"]


def test_text_in_a_column_needs_no_lines(tmp_path):
    lines, _ = block_lines(40)
    frame = pl.DataFrame(
        {
            "at": [START + MINUTE * place for place in range(len(lines))],
            "message": [text.split("INFO ")[1] for text in lines],
            "size": list(range(len(lines))),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    frame.write_csv(tmp_path / "log.csv")
    document = make_plan("log.parquet").model_dump(mode="json")
    del document["log"]["lines"]
    one = prepare(Plan.model_validate(document), tmp_path, tmp_path / "one")
    document["log"]["files"] = ["log.csv"]
    other = prepare(Plan.model_validate(document), tmp_path, tmp_path / "other")
    assert one.card.categorical == other.card.categorical
    assert len(one.card.entities) == 40
    document["log"]["text"] = {"column": "size"}
    document["log"] |= {"entity": "message", "files": ["log.parquet"]}
    with pytest.raises(LogError, match=r"log\.text\.column: column 'size' holds Int64 values"):
        prepare(Plan.model_validate(document), tmp_path, tmp_path / "made")


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ({"lines": {"pattern": "(?P<at>"}}, "is no regular expression that is read here"),
        ({"lines": {"pattern": "(?=x)(?P<at>y)"}}, "is no regular expression that is read here"),
        ({"lines": {"pattern": "(x)"}}, "no group has a name"),
        ({"lines": {"pattern": "(?P<when>x)"}}, "'at' is no named group of lines.pattern"),
        (
            {"text": {"column": "message", "session": "blk"}},
            "put what names the session in brackets",
        ),
        ({"entity": "level"}, "text.session: `entity` names the session already"),
        ({"text": {"column": "message"}}, "log.entity is needed by task 'session_anomaly'"),
        ({"text": {**TEXT, "masks": ["numbers"]}}, "masks"),
        ({"text": {**TEXT, "similarity": 0}}, "similarity"),
    ],
)
def test_a_plan_that_does_not_fit_names_the_field(log, message):
    with pytest.raises(ValidationError, match=message):
        make_plan(log=log)


# The way from plain lines to the page.


def test_unusual_sessions_of_plain_lines_are_found_and_shown(tmp_path):
    lines, unusual = block_lines(200)
    # The label comes in the line too: the last group is there in some lines only.
    labelled, block = [], -1
    for text in lines:
        block += "Receiving" in text
        labelled.append(f"{text} |{int(block in unusual)}")
    write(tmp_path / "app.log", "\n".join(labelled))
    pattern = PATTERN.removesuffix("$") + r" \|(?P<odd>\d)$"
    plan = make_plan(log={"label": "odd", "lines": {**LINES, "pattern": pattern}})
    run = RunFolder.create(plan, tmp_path / "runs")
    pilot.prepare(plan, tmp_path, run, quiet)
    pilot.fit(plan, tmp_path, run, quiet)
    pilot.replay(plan, run, quiet)
    result = pilot.judge(plan, run)
    judged = [number for number in unusual if number >= 0.65 * 200]
    assert result.kpi("quality/events").value == pytest.approx(len(judged), abs=1)
    assert result.kpi("quality/incumbent_average_precision").value == 1.0
    page = pilot.report(run).read_text()
    assert "PacketResponder &lt;NUM&gt; for block &lt;*&gt; &lt;b&gt;terminating&lt;/b&gt;" in page
    assert "mined from the lines of the train slice" in page
    assert "<b>terminating" not in page
