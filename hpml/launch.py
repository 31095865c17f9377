"""Measured children: each case runs in a fresh process from a warm server; crash, kill, out of memory and time-out come back as facts."""

import contextlib
import importlib
import json
import math
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from hpml import forkserver, turns
from hpml.env import HpmlError, Unavailable, cores, machine, no_gpu

# Which module measures a phase: its function takes (job, workload module) and returns fields of the record.
MEASURERS = {"train": ("hpml.train", "measure"), "infer": ("hpml.infer", "measure"), "prepare": ("hpml.infer", "prepare"),
             "export": ("hpml.infer", "measure_export"),
             "build": ("hpml.build", "measure"), "quantize": ("hpml.quantize", "measure"), "serve": ("hpml.loadtest", "measure"),
             "data": ("hpml.loading", "measure"), "pack": ("hpml.pack", "measure"), "transfer": ("hpml.transfer", "measure"),
             "profile": ("hpml.profiling", "measure"), "fit": ("hpml.fit", "fit")}
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "std::bad_alloc", "defaultcpuallocator",
                 "failed to allocate memory", "alloc_failed")


@contextlib.contextmanager
def _hidden_main():
    """multiprocessing runs the caller's __main__ again in every child: a notebook's or a script's top level must not be measured."""
    main = sys.modules["__main__"]
    saved = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    main.__spec__ = None
    main.__dict__.pop("__file__", None)
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(main, name, value)


def warm_up() -> float:
    """Start the server (it imports torch once) and return the seconds it took; later children start from it."""
    started = time.perf_counter()
    with _hidden_main():
        child = forkserver.context().Process(target=_nothing)
        child.start()
    child.join()
    return time.perf_counter() - started


def _nothing() -> None:
    """The first child's work: none."""


def run(job: dict, *, log: Path, timeout_s: float) -> dict:
    """Run one job in a child of its own process group; returns the record's fields with "status" and "reason".

    The child's output goes to `log`. A crash, a kill, lack of memory and the time-out are statuses, not exceptions; whatever the
    child started is gone afterwards, also when the caller is interrupted.
    """
    return side_by_side([(job, log, timeout_s)])[0]


def side_by_side(asked: list[tuple[dict, Path, float]], *, left_s: float | None = None) -> list[dict]:
    """`run` for several jobs (job, log, time-out in seconds of its own turns) whose steady calls are measured in turns, slice by slice.
    After `left_s` seconds all of them are stopped, whoever has the turn.

    Each child prepares itself alone, up to its first measured call. Where memory would not hold all of them, the rest comes afterwards.
    """
    if len(asked) > 1:
        _watched()
    answers: list[dict] = []
    deadline = math.inf if left_s is None else time.perf_counter() + left_s
    while len(answers) < len(asked):
        children: list[_Child] = []
        with contextlib.ExitStack() as folders:
            try:
                for job, log, timeout_s in asked[len(answers):]:
                    children.append(_Child(job, log, timeout_s, Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="hpml-"))),
                                           beside=len(asked) > 1, deadline=deadline))
                    children[-1].advance()
                    if _memory_is_short(children):
                        break
                going = [child for child in children if not child.ended]
                while going:
                    for child in going:
                        child.advance()
                    going = [child for child in reversed(going) if not child.ended]  # A B, then B A: a steady drift favours neither
            finally:
                for child in children:
                    if not child.ended:
                        _end(child.process)
            answers += [child.fields(len(children)) for child in children]
    return answers


_watcher = None  # multiprocessing.connection.Connection to it


def _watched() -> None:
    """From here on a process of its own knows the children, and ends them when this one is killed: no thread of a stopped one could."""
    global _watcher
    if _watcher is None:
        theirs, _watcher = multiprocessing.Pipe(duplex=False)
        with _hidden_main():
            forkserver.context().Process(target=_end_the_left, args=(theirs,), daemon=True).start()
        theirs.close()


def _tell(number: int) -> None:
    """The watcher of a child that has begun, by its number, or ended, by minus its number."""
    if _watcher:
        with contextlib.suppress(OSError):
            _watcher.send(number)


def _end_the_left(line) -> None:
    """Listen until the caller is gone, then end those of its children that are left, and nobody else."""
    os.setpgid(0, 0)  # Ctrl-C is not for it
    left: set[int] = set()
    with contextlib.suppress(EOFError, OSError):
        while True:
            number = line.recv()
            (left.add if number > 0 else left.discard)(abs(number))
    for number in left:
        _signal(number, signal.SIGKILL)


def _memory_is_short(children: list) -> bool:
    """Whether one more child like the largest so far would leave less than a quarter of the machine's memory."""
    import psutil

    from hpml.measure import rss_mib

    memory, cap = psutil.virtual_memory(), machine()["cgroup_memory_mib"]
    total = min(memory.total, cap * 2**20) if cap else memory.total
    sizes = [2**20 * (rss_mib(child.process.pid) or 0) for child in children if not child.ended]  # none: it was killed meanwhile
    return min(memory.available, total - sum(sizes)) - max(sizes, default=0) < total / 4


class _Child:
    """A started child and what is known of it: its answer comes as a file, replaced whole; a killed child leaves none."""

    def __init__(self, job: dict, log: Path, timeout_s: float, scratch: Path, *, beside: bool, deadline: float) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.job, self.log, self.timeout_s, self.spent_s, self.ended, self.timed_out = job, log, timeout_s, 0.0, False, False
        self.answer, self.deadline = scratch / "answer.json", deadline
        self.line, theirs = multiprocessing.Pipe() if beside else (None, None)
        self.started, self.began = time.perf_counter(), time.time()
        with _hidden_main():
            self.process = forkserver.context().Process(target=_child, args=(json.dumps(job), str(self.answer), str(log), theirs),
                                                        daemon=False)
            self.process.start()
        _tell(self.process.pid)
        if theirs:
            theirs.close()
        self.waits = False  # for its turn

    def advance(self) -> None:
        """Give the child its turn and wait until it is over, or until the child has ended or taken too long."""
        started = time.perf_counter()
        if self.waits:
            _signal(self.process.pid, signal.SIGCONT)
            with contextlib.suppress(OSError):  # it was killed meanwhile: the sentinel says so
                self.line.send("go on")
        self.waits, ends = False, min(self.deadline, time.perf_counter() + self.timeout_s - self.spent_s)
        while not self.waits and not self.ended:
            watched = [self.process.sentinel, *([self.line] if self.line else [])]
            signs = multiprocessing.connection.wait(watched, max(0.0, ends - time.perf_counter()))
            if self.line in signs:
                try:
                    self.line.recv()
                    self.waits = True
                    # Threads of an engine spin for a while after a call, on the cores of whoever comes next.
                    _signal(self.process.pid, signal.SIGSTOP)
                    continue
                except (EOFError, OSError):
                    self.line = None
            self.timed_out = not signs
            self.ended = self.timed_out or self.process.sentinel in signs
        self.spent_s += time.perf_counter() - started
        if self.ended:
            _end(self.process)
            if self.line:
                self.line.close()
            if not (self.answer.exists() and json.loads(self.answer.read_text())["status"] == "ok"):
                _forget_since(inductor_cache(self.job), self.began)

    def fields(self, beside: int) -> dict:
        """The record's fields of a child that has ended, with its own seconds; `beside` children were measured in turns."""
        if self.timed_out:
            reason = f"stopped after {min(self.timeout_s, self.spent_s):.0f} s"
            return {"status": "timeout", "reason": reason, "own_s": self.spent_s}
        if not self.answer.exists():
            return {**_death(self.process.exitcode, self.log), "own_s": self.spent_s}
        fields = json.loads(self.answer.read_text())
        fields["spawn_s"] = fields.pop("began") - self.started
        return {**fields, "beside": beside, "own_s": self.spent_s}


def inductor_cache(job: dict) -> Path:
    """Where torch.compile keeps what the run's children have compiled."""
    return Path(job.get("run_dir", os.devnull), "cache", "inductor")


def _forget_since(cache: Path, began: float) -> None:
    """Remove what a child that was stopped had written there: half a library would fail every later case that finds it."""
    for path in cache.rglob("*"):
        if path.is_file() and path.stat().st_mtime >= began - 1:
            path.unlink(missing_ok=True)


def _signal(group: int, number: int) -> None:
    """To a child's process group, as far as it is still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _end(child) -> None:
    """Kill the child's process group: also its loader workers, also when the child itself is already dead."""
    _signal(child.pid, signal.SIGKILL)
    if child.is_alive():
        child.kill()  # it had no group of its own yet
    child.join()
    _tell(-child.pid)


def _death(code: int, log: Path) -> dict:
    last = next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "no output")
    if code == -signal.SIGKILL:
        return {"status": "failed", "reason": "killed by signal 9 (by the kernel when memory runs out, or by hand)"}
    if code < 0:
        return {"status": "failed", "reason": f"crashed with signal {-code} ({signal.Signals(-code).name})"}
    return {"status": "failed", "reason": f"exit code {code}: {last[:200]}"}


def _child(job_text: str, answer: str, log: str, line) -> None:
    """What the fresh process does: a group of its own, dies with its parent, output to the log, one answer file."""
    began = time.perf_counter()  # one clock for all processes of a machine (CLOCK_MONOTONIC)
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    turns.take(line)
    job = {**json.loads(job_text), "began": began}
    os.environ["TMPDIR"], tempfile.tempdir = str(Path(answer).parent), None  # what its libraries unpack goes when the caller is done
    if "run_dir" in job:  # Inductor's cache belongs to the run: filled once by what this run has installed, found by its later cases
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(inductor_cache(job))
    fields = {**_measured(job), "began": began}
    partial = Path(answer + ".part")
    partial.write_text(json.dumps(fields, default=float))
    partial.replace(answer)
    forkserver.leave()


def _end_with_parent() -> None:
    """Sleep until the caller is gone (also by kill -9), then take the whole group along. Costs nothing while it waits."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os.killpg(0, signal.SIGKILL)


def _measured(job: dict) -> dict:
    from hpml import distributed, limits, workloads
    from hpml.engines import ProviderFallback, TooLong
    from hpml.measure import cpu_mark, disturbance

    try:
        if job["knobs"].get("device") == "cuda" and (reason := no_gpu()):
            raise Unavailable(reason)
        if (count := distributed.processes(job["case"]["phase"], job["knobs"])) > 1:
            return distributed.measure(job, count, run=_measured)
        if job["case"]["phase"] == "limit":
            asked = {name: job["knobs"][name] for name in ("kind", "engine", "device")}
            asked["threads"] = job["knobs"]["threads"] or cores()  # as the cases do: a library's own default knows no quota
            asked["dtype"] = None if job["knobs"]["dtype"] == "any" else job["knobs"]["dtype"]
            mark = cpu_mark()
            found = limits.measure(**asked, seconds=job["protocol"]["min_seconds"])
            return {"status": "ok", "reason": None, "actual": found, "disturbance": disturbance(mark)}
        module, function = MEASURERS["fit" if job["knobs"].get("epochs") else job["case"]["phase"]]
        workload = workloads.get(job["case"]["workload"])
        return {"status": "ok", "reason": None, **getattr(importlib.import_module(module), function)(job, workload)}
    except TooLong as error:
        return {"status": "skipped", "reason": str(error)}
    except Unavailable as error:
        return {"status": "unsupported", "reason": str(error)}
    except Exception as error:  # noqa: BLE001 whatever happens in a child is a fact of the case, with its traceback in the log
        text = (str(error) or type(error).__name__).splitlines()[0][:300]
        if isinstance(error, MemoryError) or any(sign in text.lower() for sign in OUT_OF_MEMORY):
            return {"status": "oom", "reason": f"out of memory at batch {job['knobs'].get('batch')}: {text}"}
        if isinstance(error, ProviderFallback):
            return {"status": "provider_fallback", "reason": text}
        if isinstance(error, HpmlError):
            return {"status": "failed", "reason": text}
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {text}"}
