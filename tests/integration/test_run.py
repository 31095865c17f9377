"""A run as a user sees it: killed half-way and resumed, cut by its budget, interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from hpml import records

ROOT = Path(__file__).parent.parent.parent
RUN = [sys.executable, "-c", "from hpml.cli import main; main()", "run"]
RESNET = ["--tier", "smoke", "--workloads", "resnet50"]
TINY = str(ROOT / "tests" / "tiny.py")


def start(results: Path, *words: str) -> subprocess.Popen:
    # A shell's background jobs ignore Ctrl-C, and so would what these tests start from one.
    return subprocess.Popen([*RUN, *words], env={**os.environ, "HPML_RESULTS": str(results)}, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, cwd=results, start_new_session=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def left_over(results: Path) -> list[str]:
    """Processes that belong to a run, by the folder in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HPML_RESULTS") == str(results) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:100])
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def wait_for(condition, timeout_s: float = 240) -> bool:
    end = time.monotonic() + timeout_s
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return bool(met)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_ended_half_way_goes_on_without_measuring_again(tmp_path, end):
    store = tmp_path / "runs" / "half" / "records.jsonl"
    words = ["--tier", "smoke", "--workloads", TINY, "--only", "21", "--run-id", "half"]
    run = start(tmp_path, *words)
    assert wait_for(lambda: len(records.read(store)) >= 2)
    run.send_signal(end)
    run.communicate(timeout=120)
    assert run.returncode != 0
    assert wait_for(lambda: not left_over(tmp_path), 30), left_over(tmp_path)
    before = records.read(store)
    assert len(before) >= 2

    refused = start(tmp_path, *words)
    assert "is there already" in refused.communicate(timeout=120)[0] and refused.returncode == 2
    resumed = start(tmp_path, *words, "--resume")
    out, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, out
    after = records.read(store)
    assert [r.record_id for r in after[:len(before)]] == [r.record_id for r in before], "nothing recorded is lost or changed"
    measured = Counter((r.case["key"], r.case["group"], r.protocol["round"]) for r in after if r.status == "ok")
    assert max(measured.values()) == 1, "nothing recorded is measured again"
    assert len(after) > len(before)
    status = json.loads((tmp_path / "runs" / "half" / "status.json").read_text())
    assert {n["status"] for n in status["notebooks"]} == {"ok"}
    page = (tmp_path / "runs" / "half" / "report" / "index.html").read_text()
    assert "report:" in out and "no status" not in page and "21_loader_workers.html" in page
    again = start(tmp_path, *words, "--resume")
    assert "ok already" in again.communicate(timeout=240)[0]
    assert len(records.read(store)) == len(after)
    other = start(tmp_path, *words, "--resume", "--rounds", "2")
    assert "other settings (rounds)" in other.communicate(timeout=120)[0] and other.returncode == 2


def test_the_budget_is_kept_and_what_was_left_out_is_said(tmp_path):
    started = time.monotonic()
    run = start(tmp_path, *RESNET, "--only", "23,30", "--run-id", "short", "--budget", "45s")
    out, _ = run.communicate(timeout=300)
    assert run.returncode == 0, out
    assert time.monotonic() - started < 45 + 120, "the budget, and room for a busy machine's kernels and report"
    found = records.read(tmp_path / "runs" / "short" / "records.jsonl")
    skipped = [r for r in found if r.status == "skipped"]
    status = json.loads((tmp_path / "runs" / "short" / "status.json").read_text())["notebooks"]
    assert skipped or any(n["status"] == "skipped" for n in status), "45 s are not enough for both notebooks"
    assert all("budget" in r.reason for r in skipped)
