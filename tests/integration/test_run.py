"""A run as a user sees it: killed half-way and resumed, cut by its budget, interrupted; and the lines that a reader types."""

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

from hpml import compare, env, records

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
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 0, out
    assert time.monotonic() - started < 90, "45 s, and room for a slow machine's kernels"
    found = records.read(tmp_path / "runs" / "short" / "records.jsonl")
    skipped = [r for r in found if r.status == "skipped"]
    status = json.loads((tmp_path / "runs" / "short" / "status.json").read_text())["notebooks"]
    assert skipped or any(n["status"] == "skipped" for n in status), "45 s are not enough for both notebooks"
    assert all("budget" in r.reason for r in skipped)


ABSENT = ("openvino", "nncf", "webdataset", "onnxruntime", "tensorrt", "sklearn", "torchmetrics", "sentencepiece", "tensorboard", "rich",
          "latex2mathml", "fastapi", "uvicorn", "prometheus_client", "multipart", "mlperf_loadgen", "av")


def test_the_gpu_tier_in_pieces_on_a_bare_machine(tmp_path):
    """The whole path without a GPU: each piece ends within its time and leaves valid records, the next one goes on, and what a machine
    with little more than torch lacks is a reason in a record."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(f"""import importlib.machinery as m
find = m.PathFinder.find_spec
m.PathFinder.find_spec = classmethod(lambda cls, name, *more: None if name.split(".")[0] in {ABSENT} else find(name, *more))
""")
    command = [*RUN, "--tier", "gpu", "--device", "cpu", "--workloads", TINY, "--only", "22,30",
               "--run-id", "pieces", "--rounds", "1"]
    settings = {**os.environ, "HPML_RESULTS": str(tmp_path), "PYTHONPATH": f"{bare}{os.pathsep}{ROOT}"}

    def piece(*words: str) -> str:
        done = subprocess.run([*command, *words], env=settings, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    planned = piece("--budget", "60s", "--dry-run")
    assert "in pieces" in planned and "22_pinned_memory" in planned and "a later piece" in planned and "nothing was run" in planned
    assert not (tmp_path / "runs").exists()
    store = tmp_path / "runs" / "pieces" / "records.jsonl"

    def states() -> dict:
        return {n["name"]: n for n in json.loads((store.parent / "status.json").read_text())["notebooks"]}

    started = time.monotonic()
    piece("--budget", "60s")
    assert time.monotonic() - started < 60 + 240, "the piece's time, and room for a very busy machine's kernels and reports"
    before = records.read(store)
    excuses = "budget", "onnxruntime is not installed"
    assert all(n["status"] == "ok" or any(word in n["reason"] for word in excuses) for n in states().values())
    piece("--budget", "none", "--resume")
    after = records.read(store)
    assert [r.record_id for r in after[:len(before)]] == [r.record_id for r in before], "nothing recorded is lost"
    assert {name[:2]: n["status"] for name, n in states().items()} == {"22": "ok", "30": "skipped"}, "30 cannot do without an engine"
    assert "onnxruntime is not installed" in states()["30_onnx_export"]["reason"]
    measured = Counter((r.case["key"], r.case["group"], r.protocol["round"]) for r in after
                       if r.status == "ok" and r.case["technique"] != compare.NOISE)  # its very first launch is thrown away
    assert max(measured.values()) == 1 and {r.case["tier"] for r in after} == {"gpu"}


def test_what_a_reader_types_works_word_for_word(tmp_path):
    """The lines of README.md's first code block, in a folder of their own, one round each."""
    text = (ROOT / "README.md").read_text()
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    assert "import hpml" in code and 'hpml.case("my_model.py"' in code
    if "avx512f" not in env.machine()["isa"]:  # BF16 is computed one number at a time there: a larger tier's step takes minutes
        code = code.replace('tier="cpu"', 'tier="smoke"')
    (tmp_path / "my_model.py").write_text((ROOT / "tests" / "tiny.py").read_text())
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=900,
                          env={**os.environ, "HPML_RESULTS": str(tmp_path), "HPML_ROUNDS": "1", "OMP_WAIT_POLICY": "PASSIVE"})
    assert done.returncode == 0, done.stderr
    assert "precision=bf16" in done.stdout
    assert (tmp_path / "runs" / "lab" / "records.jsonl").exists()
    assert "torch.cuda" not in done.stderr


def test_nothing_phones_out(tmp_path):
    """The study without any network: a namespace of its own that has not even a route."""
    try:
        subprocess.run(["unshare", "-n", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        if os.environ.get("CI") == "true":
            pytest.fail("unshare -n is needed here")
        pytest.skip("no right to make a network namespace")
    # Jupyter's kernels talk over loopback, which a fresh namespace has switched off.
    alone = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    run = subprocess.run([*alone, *RUN, *RESNET, "--only", "30", "--run-id", "alone"],
                         env={**os.environ, "HPML_RESULTS": str(tmp_path)}, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert {r.status for r in records.read(tmp_path / "runs" / "alone" / "records.jsonl")} <= {"ok", "unsupported"}
