"""Records: what is refused, and a store that loses nothing and holds nothing half-written."""

import json
import os
import subprocess
import sys

import pytest

from hpml import records
from hpml.env import HpmlError
from hpml.records import Record

CASE = {"workload": "resnet50", "phase": "train", "key": "k", "technique": "precision", "group": "g", "label": "fp32"}


def record(**changes) -> Record:
    return Record(**{"run_id": "r", "status": "ok", "case": CASE, "knobs": {}, "protocol": {"round": 0}, **changes})


def test_a_record_comes_back_as_it_was(tmp_path):
    store = tmp_path / "run" / "records.jsonl"
    first, second = record(samples={"unit": "s", "items": 2, "values": [0.1, 0.2]}), record(status="oom", reason="batch 64")
    records.append(store, first)
    records.append(store, second)
    assert records.read(store) == [first, second]
    assert records.read(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize(("changes", "said"), [
    ({"quality": {"value": float("nan")}}, "not a figure"),
    ({"knobs": {"lr": float("inf")}}, "not a figure"),
    ({"status": "fine"}, "record status 'fine'"),
    ({"status": "failed"}, "needs a reason"),
    ({"case": {"workload": "resnet50"}}, "without case.phase"),
    ({"case": {name: value for name, value in CASE.items() if name != "group"}}, "without case.group"),
    ({"case": "hello"}, "case is no mapping"),
    ({"machine": None}, "machine is no mapping"),
    ({"protocol": {}}, "without protocol.round"),
    ({"samples": {"values": [0.1, -0.1]}}, "not above 0"),
    ({"samples": {"values": []}}, "no sample"),
    ({"stats": {"p99": 0.1, "median": 0.2}}, "p99"),
    ({"schema_version": 99}, "schema 99"),
])
def test_nonsense_is_refused(changes, said):
    with pytest.raises(HpmlError, match=said):
        record(**changes)


def test_statistics_follow_from_the_raw_values():
    values = [0.1, 0.1, 0.1, 0.5]
    by_mean, by_median = (records.stats(values, items=10, center=center) for center in ("mean", "median"))
    assert by_mean["per_s"] == pytest.approx(10 / 0.2)
    assert by_median["per_s"] == pytest.approx(100)
    # Two steps waited for their loader (0.4 s), another was held up in its arithmetic: the first counts, the second does not.
    mixed = records.stats([0.1, 0.5, 0.1, 0.5, 0.9], items=10, center="work median + wait mean", wait=[0.0, 0.4, 0.0, 0.4, 0.0])
    assert mixed["center_s"] == pytest.approx(0.1 + 0.8 / 5) and mixed["per_s"] == pytest.approx(10 / 0.26)
    assert by_mean["n"] == 4 and by_mean["p90"] > by_mean["median"]


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path):
    store = tmp_path / "records.jsonl"
    records.append(store, record())
    with store.open("ab") as file:
        file.write(b'{"run_id": "killed while wri')
    assert len(records.read(store)) == 1
    records.append(store, record(reason="after the kill", status="failed"))
    assert [r.status for r in records.read(store)] == ["ok", "failed"]


def test_a_line_that_is_no_record_is_named(tmp_path):
    store = tmp_path / "records.jsonl"
    records.append(store, record())
    good = store.read_bytes()
    for line in ('{"a": 1}', '{"run_id": "r", "status": "ok", "case": "hello", "knobs": {}}', "[" * 100_000, "nothing"):
        store.write_bytes(good + line.encode() + b"\n")
        with pytest.raises(HpmlError, match=r"records\.jsonl, line 2"):
            records.read(store)
    with pytest.raises(HpmlError, match="cannot be read"):
        records.read(tmp_path)


def test_another_schema_is_one_clear_line(tmp_path):
    store = tmp_path / "records.jsonl"
    records.append(store, record())
    line = json.loads(store.read_text())
    store.write_text(json.dumps({**line, "schema_version": 7}) + "\n")
    with pytest.raises(HpmlError, match="line 1: record schema 7 is not 1"):
        records.read(store)


def test_a_full_disk_keeps_the_records_before_it(tmp_path):
    """A real limit of the system: the file may not grow beyond what holds one record."""
    store = tmp_path / "records.jsonl"
    records.append(store, record())
    code = f"""
import resource, signal
from pathlib import Path
from hpml import records
from hpml.env import HpmlError
store = Path({str(store)!r})
one = records.read(store)[0]
size = store.stat().st_size
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, size + size // 2))
try:
    records.append(store, one)
except HpmlError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert "cannot write the record" in done.stdout and len(done.stdout.splitlines()) == 1
    assert len(records.read(store)) == 1
    assert store.read_bytes().endswith(b"}\n")
