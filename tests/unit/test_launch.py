"""Measured children: every way to end becomes a fact, and nothing is left running."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from hpml import launch

TINY = Path(__file__).parent.parent / "tiny.py"
KNOBS = {"workers": 0, "batch": 8, "data": "auto", "threads": 0}
FAULTS = {
    "raises": "raise ValueError('the loss is a banana')",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "leaves": "import os; print('leaving in anger', flush=True); os._exit(7)",
    "memory": "import torch; torch.empty(2**60)",
    "none": "return _data(knobs)",
    "absent": "from hpml.env import Unavailable; raise Unavailable('no such card here')",
    "sleeps": "import subprocess, time; subprocess.Popen(['sleep', '300']); time.sleep(300)",
}


def job(tmp_path, fault: str, phase: str = "data") -> dict:
    """A job on a workload file whose data set misbehaves."""
    path = tmp_path / f"{fault}.py"
    path.write_text(f"from runpy import run_path\nglobals().update(run_path({str(TINY)!r}))\n"
                    f"def data(knobs):\n    {FAULTS[fault]}\n")
    return {"case": {"workload": str(path), "phase": phase, "key": "k"}, "knobs": KNOBS,
            "protocol": {"seed": 0, "round": 0, "warmup": 1, "min_iters": 2, "min_seconds": 0}, "run_dir": str(tmp_path), "weights": None}


@pytest.mark.parametrize(("fault", "status", "said"), [
    ("raises", "failed", "ValueError: the loss is a banana"), ("killed", "failed", "signal 9"), ("crashes", "failed", "SIGSEGV"),
    ("leaves", "failed", "exit code 7: leaving in anger"), ("memory", "oom", "out of memory at batch 8"),
    ("absent", "unsupported", "no such card here")])
def test_every_end_is_a_status(tmp_path, fault, status, said):
    fields = launch.run(job(tmp_path, fault), log=tmp_path / "log", timeout_s=300)
    assert fields["status"] == status and said in fields["reason"]
    assert "\n" not in fields["reason"]
    if fault == "raises":
        assert "Traceback" in (tmp_path / "log").read_text(), "the log has what the reason leaves out"


@pytest.mark.parametrize(("fault", "kept"), [("killed", ["old"]), ("none", ["old", "new"])])
def test_what_a_stopped_child_left_in_the_compilers_cache_is_removed(tmp_path, fault, kept):
    cache = tmp_path / "cache" / "inductor"
    cache.mkdir(parents=True)
    (cache / "old").write_text("whole")
    os.utime(cache / "old", (0, 0))
    write = f"import pathlib; pathlib.Path({str(cache / 'new')!r}).write_text('half'); "
    started = job(tmp_path, fault)
    path = Path(started["case"]["workload"])
    path.write_text(path.read_text().replace("def data(knobs):\n    ", f"_data = data\ndef data(knobs):\n    {write}"))
    started["knobs"] = {**KNOBS, "train_samples": 32, "test_samples": 8, "prefetch": 2, "storage": "array"}
    launch.run(started, log=tmp_path / "log", timeout_s=300)
    assert sorted(path.name for path in cache.iterdir()) == sorted(kept), (tmp_path / "log").read_text()


def sleepers() -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "300"]]


def gone(timeout_s: float = 10) -> bool:
    end = time.monotonic() + timeout_s
    while sleepers() and time.monotonic() < end:
        time.sleep(0.1)
    return not sleepers()


def test_a_time_out_ends_the_child_and_its_children(tmp_path):
    fields = launch.run(job(tmp_path, "sleeps"), log=tmp_path / "log", timeout_s=3)
    assert fields.pop("own_s") >= 3 and fields == {"status": "timeout", "reason": "stopped after 3 s"}
    assert gone()


def test_a_kill_from_outside_is_recorded(tmp_path):
    def kill() -> None:
        while not (found := [p for pid in sleepers() for p in [psutil.Process(pid).parent()]]):
            time.sleep(0.05)
        found[0].kill()

    threading.Thread(target=kill, daemon=True).start()
    fields = launch.run(job(tmp_path, "sleeps"), log=tmp_path / "log", timeout_s=300)
    assert fields["status"] == "failed" and "signal 9" in fields["reason"]
    assert gone()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_its_caller(tmp_path, end):
    """Ctrl-C and kill -9 of the measuring process: the child and what it started are gone."""
    script = tmp_path / "caller.py"  # no `if __name__ == "__main__"`: a script's top level is not run again in the child
    script.write_text(f"print('top level', flush=True)\nfrom pathlib import Path\nfrom hpml import launch\n"
                      f"launch.run({job(tmp_path, 'sleeps')!r}, log=Path({str(tmp_path / 'log')!r}), timeout_s=300)\n")
    caller = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
                              start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    end_at = time.monotonic() + 300
    while not sleepers() and time.monotonic() < end_at:
        time.sleep(0.1)
    assert sleepers(), "the child never started"
    caller.send_signal(end)
    out, _ = caller.communicate(timeout=120)
    assert caller.returncode != 0
    assert out.count("top level") == 1
    assert gone()


def training(tmp_path, **knobs) -> dict:
    from hpml.knobs import validate

    return {"case": {"workload": str(TINY), "phase": "train", "key": "k"}, "run_dir": str(tmp_path), "weights": None, "code": "c",
            "knobs": validate("train", {"batch": 16, "train_samples": 64, "test_samples": 40, "image": 8, **knobs}),
            "protocol": {"seed": 0, "round": 0, "warmup": 1, "min_iters": 3, "min_seconds": 0.6}}


def test_children_beside_each_other_measure_in_turns(tmp_path):
    """Each has its figures, and one that fails or is killed holds nobody up."""
    asked = [(training(tmp_path), tmp_path / "a", 300), (job(tmp_path, "killed"), tmp_path / "b", 300),
             (training(tmp_path, accum_steps=2), tmp_path / "c", 300), (job(tmp_path, "sleeps"), tmp_path / "d", 3)]
    first, killed, second, slept = launch.side_by_side(asked)
    assert (first["status"], second["status"]) == ("ok", "ok") and "signal 9" in killed["reason"]
    assert slept.pop("own_s") >= 3 and slept == {"status": "timeout", "reason": "stopped after 3 s"} and gone()
    for fields in (first, second):
        assert fields["beside"] == 4 and sum(fields["samples"]["values"]) >= 0.6


SEES = """
import contextlib, os, pathlib, psutil
folder, plain_data, plain_loss = pathlib.Path({folder!r}), data, loss
def data(knobs):
    (folder / f"pid-{{os.getpid()}}").touch()
    return plain_data(knobs)
def loss(outputs, targets):
    for other in {{int(path.name[4:]) for path in folder.glob("pid-*")}} - {{os.getpid()}}:
        with (folder / f"seen-{{os.getpid()}}").open("a") as file, contextlib.suppress(psutil.NoSuchProcess):
            for process in (psutil.Process(other), *psutil.Process(other).children()):
                print(process.status(), file=file)
    return plain_loss(outputs, targets)
"""


def seeing(tmp_path, **knobs) -> dict:
    """A training that notes at every step what its neighbour and its loader workers are doing."""
    path = tmp_path / "sees.py"
    path.write_text(TINY.read_text() + SEES.format(folder=str(tmp_path)))
    asked = training(tmp_path, **knobs)
    return {**asked, "case": {**asked["case"], "workload": str(path)}}


@pytest.mark.parametrize("workers", [0, 2])
def test_who_waits_for_a_turn_is_stopped(tmp_path, workers):
    """Its threads may spin, its loader workers read ahead: on the cores of whoever has the turn."""
    asked = [(seeing(tmp_path), tmp_path / "a", 300), (seeing(tmp_path, accum_steps=2, workers=workers), tmp_path / "b", 300)]
    assert [fields["reason"] for fields in launch.side_by_side(asked)] == [None, None]
    seen = [path.read_text().split() for path in tmp_path.glob("seen-*")]
    there = [[status for status in one if status != "zombie"] for one in seen]
    assert len(there) == 2 and all(one.count("stopped") > len(one) / 2 for one in there), seen  # it takes a moment to stop


@pytest.mark.parametrize("alone", [True, False])
def test_who_waits_for_a_turn_ends_with_its_caller(tmp_path, alone):
    """By kill -9, of the caller alone or of the server of children before it, as a notebook's kernel and its group may end. No thread of a
    stopped process can see that. Nobody else ends: not even who shares the parent that then adopts them, here this test."""
    asked = [{**seeing(tmp_path, accum_steps=steps), "protocol": {"seed": 0, "round": 0, "warmup": 1, "min_iters": 3, "min_seconds": 60}}
             for steps in (1, 2)]
    script = tmp_path / "caller.py"
    script.write_text(f"from pathlib import Path\nfrom hpml import launch\n"
                      f"launch.side_by_side([(one, Path({str(tmp_path)!r}, name), 120) for one, name in zip({asked!r}, 'ab')])\n")
    adopt, set_adopting = ctypes.CDLL(None).prctl, 36  # PR_SET_CHILD_SUBREAPER
    adopt(set_adopting, 1)
    stranger = subprocess.Popen(["sleep", "301"], start_new_session=True)
    caller = subprocess.Popen([sys.executable, str(script)], env=os.environ, start_new_session=True)

    def alive(pid: int) -> bool:
        return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE

    try:
        end_at = time.monotonic() + 300
        while len(list(tmp_path.glob("seen-*"))) < 2 and time.monotonic() < end_at:
            time.sleep(0.1)
        pids = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
        assert len(pids) == 2, "the children never took turns"
        ours = {process.pid for process in psutil.Process(caller.pid).children(recursive=True)}
        assert set(pids) < ours
        if not alone:
            server = psutil.Process(psutil.Process(pids[0]).ppid())
            server.kill()
            psutil.wait_procs([server], timeout=120)
        caller.kill()
        end_at = time.monotonic() + 120
        while any(map(alive, ours)) and time.monotonic() < end_at:
            time.sleep(0.1)
        assert not [pid for pid in ours if alive(pid)], "children, server and watcher are gone"
        assert alive(stranger.pid)
    finally:
        adopt(set_adopting, 0)
        caller.kill()
        caller.wait(30)
        stranger.kill()
        stranger.wait(30)


def test_the_time_that_is_left_is_shared(tmp_path):
    """Three seconds for all of them, not for each."""
    asked = [(job(tmp_path, "sleeps"), tmp_path / name, 300) for name in "ab"]
    first, second = launch.side_by_side(asked, left_s=3)
    assert first["status"] == second["status"] == "timeout" and first["own_s"] + second["own_s"] < 5 and gone()


def test_a_turn_lasts_a_slice(monkeypatch):
    import multiprocessing

    from hpml import measure, turns

    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(turns, "_line", None)
    monkeypatch.setattr(turns, "SLICE_S", 0.05)
    turns.take(theirs)
    said = []

    def launcher():
        while ours.poll(5) and (word := ours.recv()) != "end":
            said.append(word)
            time.sleep(0.2)
            ours.send("go on")

    thread = threading.Thread(target=launcher)
    thread.start()
    mark = measure.cpu_mark()
    calls = []
    taken = measure.steady(lambda i: (calls.append(i), time.sleep(0.02)), clock=time.perf_counter, warmup=1, min_iters=6, min_seconds=0.0)
    theirs.send("end")
    thread.join()
    assert len(taken["values"]) == 6 and max(taken["values"]) < 0.1, "a pause stands in no figure"
    assert 2 <= len(said) <= 6 and calls == list(range(len(calls)))
    assert measure.cpu_mark()["time"] - mark["time"] < 0.2 * len(said), "nor in the surroundings' share"
