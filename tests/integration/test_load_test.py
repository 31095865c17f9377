"""A load test from end to end: a tiny model is trained, served in a measured process and over HTTP, and driven by MLPerf LoadGen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hpml
from hpml import compare, results, tables_serving

for package in ("mlperf_loadgen", "openvino", "fastapi", "uvicorn"):
    pytest.importorskip(package)
TINY = Path(__file__).resolve().parents[1] / "tiny.py"


def hpml_command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", "from hpml.cli import main; main()", *arguments], capture_output=True, text=True,
                          timeout=300, check=False, env=os.environ)


def loaded(scenario: str, **knobs):
    case = hpml.case(str(TINY), phase="serve", engine="openvino", weights="trained", scenario=scenario, test_samples=60, **knobs)
    record = hpml.run(case, rounds=1).records[-1]
    assert record.status == "ok", record.reason
    return record


def test_in_process_and_over_http(smoke_session):
    inside = {name: loaded(name) for name in ("singlestream", "offline", "accuracy")}
    alone = inside["singlestream"].actual["serving"]
    assert alone["windows"][0]["n"] > 5 and alone["split"]["model_s"] > 0 and alone["cores"] >= 1
    assert len(inside["offline"].samples["latencies"]) == inside["offline"].actual["serving"]["windows"][0]["answered"]
    assert inside["offline"].stats["per_s"] == pytest.approx(inside["offline"].actual["serving"]["per_s"])
    quality = inside["accuracy"].quality
    assert quality["n"] == 60 and quality["value"] > quality["chance"]  # the answers are the model's, by the labels of the test images

    bound = loaded("bound", transport="http").actual["bound"]
    assert bound["stream_s"]["1"] > 0 and bound["decode_s"] > 0 and 0 < bound["http_s"] < 0.1
    over = loaded("server", transport="http", limit_ms=1000.0)
    serving = over.actual["serving"]
    last = serving["windows"][-1]
    assert last["confirmation"] and last["within"] and not last["failed"] and last["cpu_s"]["client"] > 0 < last["cpu_s"]["server"]
    assert serving["overload"]["asked_per_s"] == pytest.approx(2 * serving["offered_per_s"])
    assert over.memory["peak_rss_mib"] > 50 and over.cold["ready_s"] > 0

    found = results.load("here").records
    (load,) = (load for load in tables_serving.loads(found) if load.confirmed())
    assert load.bound and load.share() > 0 and load.cores_within(1.0) >= 1
    assert compare.rows(found) == [] or all(row.phase != "serve" for row in compare.rows(found))
    assert loaded("offline").record_id == inside["offline"].record_id  # loaded, not measured again


def test_what_cannot_be_tested_is_one_line():
    wrong = hpml_command("load-test", "--scenario", "nothing")
    assert wrong.returncode == 2 and "choose from bound" in wrong.stderr and "Traceback" not in wrong.stderr
    absent = hpml_command("load-test", "--tier", "smoke", "--scenario", "server", "--url", "http://127.0.0.1:9")
    assert absent.returncode == 2 and "no server answers" in absent.stderr and "Traceback" not in absent.stderr


def test_texts_are_refused_with_the_reason(smoke_session):
    record = hpml.run(hpml.case("xlnet", phase="serve", engine="openvino", scenario="offline"), rounds=1).records[-1]
    assert record.status == "unsupported" and "the load test sends images" in record.reason
