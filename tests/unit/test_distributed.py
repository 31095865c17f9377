"""Ranks and replicas: two processes compute what one does, talk once a step, and nothing of them is left however they end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from hpml import distributed, env, launch, train, workloads
from hpml.data.loader import loader
from hpml.env import HpmlError, Unavailable
from hpml.knobs import validate
from hpml.measure import Marks

TINY = Path(__file__).parent.parent / "tiny.py"
two_cores = pytest.mark.skipif(env.cores() < 2, reason="two processes need two cores")
# The tiny workload with a fault in rank or replica 1; each process leaves its id, and what it listens on.
FAULTY = """
import json, os, psutil, signal, subprocess, time
from pathlib import Path
from runpy import run_path
from hpml import distributed
globals().update(run_path({tiny!r}))
_split = split

def split(batch):
    Path({folder!r}, f"{{distributed.place().index}}.pid").write_text(str(os.getpid()))
    ports = [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    Path({folder!r}, f"{{distributed.place().index}}.listens").write_text(json.dumps(ports))
    if distributed.place().index == 1:
        {fault}
    return _split(batch)
"""
FAULTS = {
    "none": "pass",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "raises": "raise ValueError('rank 1 ate a banana')",
    "memory": "import torch; torch.empty(2**60)",
    "stops": "time.sleep(60)",
}


def job(tmp_path, *, fault: str = "none", phase: str = "train", prelude: str = "", **knobs) -> dict:
    path = tmp_path / f"{fault}.py"
    path.write_text(prelude + FAULTY.format(tiny=str(TINY), folder=str(tmp_path), fault=FAULTS[fault]))
    return {"case": {"workload": str(path), "phase": phase, "key": "k"}, "weights": None, "weights_sha256": None, "run_dir": str(tmp_path),
            "code": "c", "knobs": validate(phase, {"batch": 16, "train_samples": 64, "test_samples": 40, "image": 8, **knobs}),
            "protocol": {"seed": 0, "round": 0, "warmup": 1, "min_iters": 3, "min_seconds": 0.0}}


def run(tmp_path, **settings) -> dict:
    return launch.run(job(tmp_path, **settings), log=tmp_path / "log", timeout_s=300)


def pids(tmp_path) -> list[int]:
    return [int(text) for path in tmp_path.glob("*.pid") if (text := path.read_text())]


def all_gone(tmp_path, *others: int, timeout_s: float = 15) -> bool:
    """Whether both processes, and others, have ended: at most their entries wait to be read by whoever inherits them."""
    def alive() -> bool:
        return any(p.status() != psutil.STATUS_ZOMBIE for pid in (*pids(tmp_path), *others) if psutil.pid_exists(pid)
                   for p in [psutil.Process(pid)])

    end = time.monotonic() + timeout_s
    while alive() and time.monotonic() < end:
        time.sleep(0.1)
    return len(pids(tmp_path)) == 2 and not alive()


@two_cores
def test_two_ranks_train_what_one_process_trains(tmp_path):
    """The weights after four steps at equal global batch, by the library's own loop and loader: so were the gradients."""
    weights = {}
    for ranks in (1, 2):
        (folder := tmp_path / str(ranks)).mkdir()
        knobs = {"epochs": 1, "lr": 0.5, "accum_steps": 2, "ranks": ranks, "parallel": "none" if ranks == 1 else "ddp"}
        fields = run(folder, **knobs)
        assert fields["status"] == "ok", fields["reason"]
        assert len(fields["samples"]["values"]) == 4 and fields["samples"]["items"] == 16
        weights[ranks] = load_file(folder / "models" / fields["actual"]["artefacts"]["weights"]), fields["quality"]["losses"]
    for name, value in weights[1][0].items():
        assert torch.allclose(value, weights[2][0][name], atol=1e-5), name
    assert weights[1][1] == pytest.approx(weights[2][1], rel=1e-4), "the loss is that of the global batch"


def test_ranks_share_the_order_of_one_process():
    points = workloads.get(str(TINY)).Points(torch.zeros(50, 8, 8, 3, dtype=torch.uint8).numpy(), torch.arange(50))
    whole = loader(points, {}, batch=8, shuffle=True, seed=1, drop_last=True)
    parts = [loader(points, {}, batch=4, shuffle=True, seed=1, drop_last=True, share=(rank, 2)) for rank in (0, 1)]
    for _ in range(2):  # and in the next epoch, which has an order of its own
        batches = [[set(y.tolist()) for _, y in part] for part in (whole, *parts)]
        assert [len(batch) for batch in batches] == [6, 6, 6]
        for one, first, second in zip(*batches, strict=True):
            assert first | second == one and not first & second


def test_accumulation_talks_once_a_step():
    """`no_sync` on all micro-batches but the last; without it, each backward pass would send the gradients."""
    workload = workloads.get(str(TINY))
    sent = {}
    for name, wrap in (("no_sync", lambda model: model), ("always", lambda model: lambda *inputs: model(*inputs))):
        knobs = validate("train", {"batch": 16, "accum_steps": 4, "parallel": "ddp"})
        try:
            model, optimizer, scaler, _ = train.build(workload, knobs, 3, None)
            model.register_comm_hook(sent, _counting(name))
            batches = [(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)) for _ in range(4)]
            train.train_step(wrap(model), iter(batches), knobs, workload=workload, optimizer=optimizer, scaler=scaler, marks=Marks("cpu"))
        finally:
            torch.distributed.destroy_process_group()
    assert sent == {"no_sync": 1, "always": 4}


def _counting(name: str):
    def hook(sent: dict, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent[name] = sent.get(name, 0) + 1
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    return hook


@two_cores
def test_ranks_listen_on_loopback_alone_and_share_batch_threads_and_memory(tmp_path):
    fields = run(tmp_path, parallel="ddp", ranks=2)
    assert fields["status"] == "ok", fields["reason"]
    heard = [address for path in tmp_path.glob("*.listens") for address in json.loads(path.read_text())]
    assert heard and set(heard) <= {"127.0.0.1", "::1"}
    assert fields["samples"]["items"] == 16 and fields["actual"]["replicas"] == fields["actual"]["processes"] == 2
    assert fields["actual"]["threads"] == env.cores() // 2
    each = fields["memory"]["peak_rss_mib_each"]
    assert len(each) == 2 and fields["memory"]["peak_rss_mib"] == pytest.approx(sum(each))
    assert all_gone(tmp_path)


@two_cores
@pytest.mark.parametrize(("fault", "status", "said"), [
    ("killed", "failed", "rank 1 of 2: killed by signal 9"), ("raises", "failed", "rank 1 of 2: ValueError: rank 1 ate a banana"),
    ("memory", "oom", "rank 1 of 2: out of memory")])
def test_a_rank_that_falls_makes_a_record_with_the_reason(tmp_path, fault, status, said):
    fields = run(tmp_path, fault=fault, parallel="ddp", ranks=2)
    assert fields["status"] == status and said in fields["reason"]
    assert fields.keys() <= {"status", "reason", "began", "spawn_s", "beside", "own_s"}, "a record takes no more"
    assert all_gone(tmp_path)


@two_cores
def test_a_rank_that_stands_still_is_no_hang(tmp_path):
    fields = run(tmp_path, fault="stops", prelude="import hpml.distributed\nhpml.distributed.STEP_TIMEOUT_S = 3\n", parallel="ddp", ranks=2)
    assert fields["status"] == "failed" and "rank 0 of 2" in fields["reason"]
    assert all_gone(tmp_path)


@two_cores
@pytest.mark.parametrize("victim", ["caller", "child"])
def test_nothing_is_left_after_kill_9(tmp_path, victim):
    script = tmp_path / "caller.py"
    script.write_text(f"from pathlib import Path\nfrom hpml import launch\n"
                      f"print(launch.run({job(tmp_path, fault='stops', parallel='ddp', ranks=2)!r}, log=Path({str(tmp_path / 'log')!r}), "
                      "timeout_s=300)['reason'])\n")
    caller = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=os.environ, start_new_session=True)
    end = time.monotonic() + 300
    while len(pids(tmp_path)) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    child = psutil.Process(os.getpgid(pids(tmp_path)[0]))  # the measured child leads the group
    (caller if victim == "caller" else child).kill()
    out, _ = caller.communicate(timeout=120)
    assert victim == "caller" or "killed by signal 9" in out
    assert all_gone(tmp_path, child.pid)


@two_cores
def test_replicas_serve_side_by_side(tmp_path):
    fields = run(tmp_path, phase="infer", batch=2, replicas=2)
    assert fields["status"] == "ok", fields["reason"]
    assert fields["samples"]["items"] == 4 and len(fields["samples"]["values"]) >= 6  # each of two gives at least three latencies
    assert fields["actual"]["threads"] == env.cores() // 2 and fields["parity"]["passed"]
    assert len(fields["actual"]["per_s_each"]) == 2
    assert fields["memory"]["peak_rss_mib"] == pytest.approx(sum(fields["memory"]["peak_rss_mib_each"]))


def slow_and_fast(job: dict) -> dict:
    """Runs in each of two processes: the second is slower; returns when its timed calls began and when its last call ended."""
    calls = []

    def step(_: int) -> None:
        time.sleep(0.05 if distributed.place().index else 0.001)
        calls.append(time.perf_counter())

    taken = distributed.steady(step, clock=time.perf_counter, warmup=2, min_iters=4, min_seconds=0.0)
    return {"status": "ok", "reason": None, "first": calls[2], "own": calls[len(taken["values"])], "last": calls[-1]}


def test_each_replica_is_measured_while_all_are_busy():
    fast, slow = distributed._together({"case": {"phase": "data"}, "knobs": {}}, 2, slow_and_fast).values()
    fast, slow = sorted((fast, slow), key=lambda one: one["own"])
    assert slow["first"] < fast["last"] and fast["last"] >= slow["own"] - 0.05, "the fast one goes on until the slow one is done"


@pytest.mark.parametrize(("phase", "knobs", "error", "said"), [
    ("train", {"ranks": 2}, HpmlError, "only parallel='ddp'"),
    ("train", {"ranks": 2, "parallel": "dp"}, HpmlError, "only parallel='ddp'"),
    ("train", {"ranks": 3, "batch": 16, "parallel": "ddp"}, HpmlError, "batch=16 cannot be split over 3 ranks"),
    ("train", {"ranks": 2, "batch": 6, "accum_steps": 2, "parallel": "ddp"}, HpmlError, "accum_steps=2"),
    ("train", {"ranks": 64, "batch": 64, "threads": 1, "parallel": "ddp"}, Unavailable, "each needs a core of its own"),
    ("infer", {"replicas": 10_000}, Unavailable, "replicas=10000: each needs a core of its own"),
    ("infer", {"replicas": 2, "threads": 1}, Unavailable, "this case has 1")])
def test_what_cannot_be_shared_is_said_in_one_line(phase, knobs, error, said):
    with pytest.raises(error, match=said) as caught:
        distributed.processes(phase, validate(phase, knobs))
    assert "\n" not in str(caught.value)


def test_half_of_torchruns_variables_are_one_line(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(HpmlError, match="WORLD_SIZE, LOCAL_WORLD_SIZE, LOCAL_RANK is not a number: start it by torchrun, or unset RANK"):
        distributed.place()


def test_two_ranks_on_one_gpu_are_unsupported(monkeypatch):
    monkeypatch.setattr(distributed.env, "gpus", lambda: [{"name": "the only one"}])
    monkeypatch.setattr(distributed.env, "cores", lambda: 8)
    knobs = validate("train", {"ranks": 2, "parallel": "ddp", "device": "cuda"})
    with pytest.raises(Unavailable, match="2 ranks need 2 GPUs, here is 1: NCCL forbids two ranks on one"):
        distributed.processes("train", knobs)


def test_a_restart_with_the_store_of_earlier_lives_is_known(monkeypatch):
    assert not distributed.meets_the_dead()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert distributed.meets_the_dead()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert not distributed.meets_the_dead()


@pytest.mark.slow
@two_cores
def test_torchrun_is_one_training(tmp_path):
    """`hpml train` under TorchElastic: the ranks share the data, the first one leaves weights and the run's one record."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python",
               sys.executable, "-c", "from hpml.cli import main; main()", "train", str(TINY), "--tier", "smoke", "--distributed",
               "--epochs", "1", "--run-id", "torchrun", "--threads", "2"]
    environment = {**os.environ, "HPML_RESULTS": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TORCH_DISABLE_SHARE" not in done.stderr, "nothing is restarted here"
    folder = tmp_path / "runs" / "torchrun"
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert len(records) == 1 and records[0]["actual"]["replicas"] == 2 and records[0]["samples"]["items"] == 16
    assert len(list((folder / "models").glob("*.safetensors"))) == 1 and done.stdout.count("on 200 test samples") == 1
    assert len(records[0]["samples"]["values"]) == 320 // 16
