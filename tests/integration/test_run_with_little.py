"""A run where little is there: a bare machine in pieces, no network; and the lines that a reader types."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from hpml import compare, env, records

ROOT = Path(__file__).parent.parent.parent
RUN = [sys.executable, "-c", "from hpml.cli import main; main()", "run"]
TINY = str(ROOT / "tests" / "tiny.py")
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
    run = subprocess.run([*alone, *RUN, "--tier", "smoke", "--workloads", "resnet50", "--only", "30", "--run-id", "alone"],
                         env={**os.environ, "HPML_RESULTS": str(tmp_path)}, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert {r.status for r in records.read(tmp_path / "runs" / "alone" / "records.jsonl")} <= {"ok", "unsupported"}
