"""Several processes at the same time: ranks of one training (DistributedDataParallel), replicas of one model that serve side by side.

A measured child starts them from a forkserver of its own, so they end with its process group. They meet through a file; gloo and NCCL
are bound to the loopback interface. Under torchrun the processes are torchrun's, and so is their meeting place.
"""

import itertools
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

from hpml import env, forkserver
from hpml import measure as m
from hpml.env import HpmlError, Unavailable

STEP_TIMEOUT_S, FIT_TIMEOUT_S = 100, 1800  # how long one waits for the others; between epochs rank 0 evaluates alone
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")  # what it tells each process
GRACE_S = 2.0  # after one process failed, its siblings get so long to say why: the first to fall is not always the cause


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is; `local` of them are on this machine. `store`: the file where they meet, if ours."""

    index: int = 0
    size: int = 1
    local: int = 1
    local_index: int = 0
    store: Path | None = None


_place: Place | None = None


def place() -> Place:
    """This process's place among those that we started, or that torchrun did; alone otherwise."""
    if _place:
        return _place
    if "RANK" not in os.environ:
        return Place()
    if absent := [name for name in TORCHRUN if not os.environ.get(name, "").isdigit()]:
        raise HpmlError(f"RANK is set and {', '.join(absent)} is not a number: start it by torchrun, or unset RANK")
    return Place(*(int(os.environ[name]) for name in TORCHRUN))


def processes(phase: str, knobs: dict) -> int:
    """How many processes a case needs: its ranks or replicas, 1 inside one of them. Raises Unavailable or HpmlError where it cannot be."""
    if _place:
        return 1
    if phase == "train" and knobs.get("ranks", 1) > 1:
        if place().size > 1:
            raise HpmlError(f"ranks={knobs['ranks']}: torchrun already started {place().size} processes; leave ranks at 1")
        _check_ranks(knobs, knobs["ranks"], knobs["ranks"])
        return knobs["ranks"]
    if phase == "infer" and knobs.get("replicas", 1) > 1 and knobs["measure"] == "speed":  # answers do not depend on copies
        _share_of_threads(knobs, knobs["replicas"], "replicas")
        if knobs["hint"] == "throughput":
            raise HpmlError(f"replicas={knobs['replicas']} with hint='throughput': streams are replicas inside one process; choose one")
        return knobs["replicas"]
    return 1


def own(knobs: dict) -> dict:
    """A training's knobs as this rank has them: its part of the global batch and of the threads."""
    here = place()
    if here.size == 1:
        if knobs["ranks"] > 1:
            raise HpmlError(f"ranks={knobs['ranks']}: this phase is measured in one process only")
        return knobs
    _check_ranks(knobs, here.size, here.local)
    return {**knobs, "batch": knobs["batch"] // here.size, "threads": _share_of_threads(knobs, here.local, "ranks")}


def _check_ranks(knobs: dict, ranks: int, local: int) -> None:
    if knobs["parallel"] != "ddp":
        raise HpmlError(f"{ranks} ranks with parallel={knobs['parallel']!r}: only parallel='ddp' takes more than one process")
    if knobs["batch"] % (ranks * knobs["accum_steps"]):
        raise HpmlError(f"batch={knobs['batch']} cannot be split over {ranks} ranks into accum_steps={knobs['accum_steps']} "
                        "equal micro-batches each")
    if knobs["device"] == "cuda" and local > (gpus := len(env.gpus())):
        raise Unavailable(f"{local} ranks need {local} GPUs, here {'is' if gpus == 1 else 'are'} {gpus}: NCCL forbids two ranks on one")
    _share_of_threads(knobs, local, "ranks")


def _share_of_threads(knobs: dict, count: int, what: str) -> int:
    threads = min(knobs["threads"] or env.cores(), env.cores())
    if count > threads:
        raise Unavailable(f"{what}={count}: each needs a core of its own, and this case has {threads}")
    return threads // count


def measure(job: dict, count: int, run: Callable[[dict], dict]) -> dict:
    """The case in `count` processes that each do `run(job)`; their answers as one.

    Ranks: rank 0's samples, memory summed. Replicas: the latencies of all, and as many samples in each as all of them serve in that
    time. When one process fails or dies, the others are ended and the record says which and why.
    """
    knobs = job["knobs"]
    training = job["case"]["phase"] == "train"
    if not training:
        job = {**job, "knobs": {**knobs, "replicas": 1, "threads": _share_of_threads(knobs, count, "replicas")}}
    started = time.perf_counter()
    answers = _together(job, count, run)
    lost = _cause(answers)
    if lost is not None:
        cause = {name: value for name, value in answers[lost].items() if name != "died"}
        return {**cause, "reason": f"{'rank' if training else 'replica'} {lost} of {count}: {cause['reason']}"}
    fields, memory = answers[0], [answers[index]["memory"] for index in range(count)]
    fields["memory"] = {name: _sum(each.get(name) for each in memory) for name in memory[0]}
    fields["memory"]["peak_rss_mib_each"] = [each["peak_rss_mib"] for each in memory]
    fields["actual"]["processes"] = count
    fields["cold"]["processes_s"] = min(answer["began"] for answer in answers.values()) - started
    if fields.get("work"):
        sharing = count / min(count, len(env.gpus())) if knobs["device"] == "cuda" else count  # processes on one device
        fields["work"] = {**fields["work"], **{name: sharing * fields["work"][name] for name in ("flops", "bytes")}}
    if training:
        fields["io"] = {**fields.get("io", {}), "bytes_read": _sum(answer.get("io", {}).get("bytes_read") for answer in answers.values())}
        fields["energy"] = None  # the counter is one GPU's
        return fields
    samples = [answers[index]["samples"] for index in range(count)]
    # What each served by its own clock while all were busy: their sum can be held against items / median.
    fields["actual"]["per_s_each"] = [one["items"] / statistics.fmean(one["values"]) for one in samples]
    pooled = {name: list(itertools.chain.from_iterable(one[name] for one in samples))
              for name, value in samples[0].items() if isinstance(value, list)}
    return {**fields, "samples": {**samples[0], **pooled, "items": count * samples[0]["items"]}}


def _sum(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) if found else None


def _together(job: dict, count: int, run: Callable[[dict], dict]) -> dict[int, dict]:
    """Answers of `count` processes, each `run(job)`, by their index; none of them is left when it returns. One that fails has GRACE_S
    of company: the first to fall is not always the cause. Those that were then still at work have no answer."""
    context = forkserver.context()
    answers: dict[int, dict] = {}
    with tempfile.TemporaryDirectory(prefix="hpml-") as scratch:
        started = [context.Process(target=_process, args=(run, json.dumps(job), index, count, scratch)) for index in range(count)]
        try:
            for process in started:
                process.start()
            left, deadline = {process.sentinel: index for index, process in enumerate(started)}, None
            while left and (deadline is None or time.monotonic() < deadline):
                for sentinel in wait(list(left), None if deadline is None else max(0.0, deadline - time.monotonic())):
                    index = left.pop(sentinel)
                    answers[index] = _answer(started[index], Path(scratch, f"{index}.json"))
                    if answers[index]["status"] != "ok":
                        deadline = deadline or time.monotonic() + GRACE_S
        finally:
            for process in started:
                if process.pid:
                    process.kill()
                    process.join()
    return answers


def _answer(process, path: Path) -> dict:
    process.join()
    if path.exists():
        return json.loads(path.read_text())
    code = process.exitcode
    return {"status": "failed", "reason": f"killed by signal {-code}" if code < 0 else f"exit code {code}", "died": True}


def _cause(answers: dict[int, dict]) -> int | None:
    """Which process made the case fail: a death or a lack of memory before a lost connection, which follows from it."""
    failed = [index for index, answer in answers.items() if answer["status"] != "ok"]
    return min(failed, key=lambda index: answers[index]["status"] == "failed" and not answers[index].get("died"), default=None)


def _process(run: Callable[[dict], dict], job_text: str, index: int, count: int, scratch: str) -> None:
    """What one of the processes does: knows its place, does its part, leaves one answer file. It ends with the one that started it."""
    global _place
    began = time.perf_counter()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _place = Place(index, count, count, index, Path(scratch, "store"))
    job = json.loads(job_text)
    if job["case"]["phase"] == "infer" and job["knobs"]["device"] == "cuda":  # replicas take turns on the GPUs that there are
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(str(i) for i in range(len(env.gpus())))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[index % len(visible.split(","))]
    answer = {**run(job), "began": began}
    partial = Path(scratch, f"{index}.part")
    partial.write_text(json.dumps(answer, default=float))
    partial.replace(Path(scratch, f"{index}.json"))
    forkserver.leave()


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def join(knobs: dict) -> None:
    """Enter torch's process group: NCCL for what is on GPUs, gloo for what the hosts tell each other (no GPU waits for that) and on a CPU;
    of our own ranks, of torchrun's, or of this process alone."""
    import torch
    from torch import distributed

    here, device = place(), knobs["device"]
    if device == "cuda":
        torch.cuda.set_device(here.local_index)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    meeting = {}
    if here.size == 1 or here.store:
        # All on one machine: nothing listens on an interface that others can reach.
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        if loopback:
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
        store = distributed.PrefixStore("torch", _store()) if here.store else distributed.HashStore()
        meeting = {"store": store, "rank": here.index, "world_size": here.size}
    distributed.init_process_group(backend, timeout=timedelta(seconds=FIT_TIMEOUT_S if knobs.get("epochs") else STEP_TIMEOUT_S), **meeting)


def meets_the_dead() -> bool:
    """Whether torchrun restarts its ranks with the store of their earlier lives: who comes first then reads where another one was
    (https://github.com/pytorch/pytorch/issues/135712; still so in torch 2.14)."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def agreed(value: bool) -> bool:
    """Rank 0's answer, on every rank: all must do the same number of steps, though each has its own clock."""
    if place().size == 1:
        return value
    import torch

    flag = torch.tensor(float(value))
    torch.distributed.broadcast(flag, src=0)
    return bool(flag)


def mean(values: list[float]) -> list[float]:
    """The mean over the ranks of each value, on every rank."""
    if place().size == 1:
        return values
    import torch

    total = torch.tensor(values, dtype=torch.float32)
    torch.distributed.all_reduce(total)
    return (total / place().size).tolist()


def steady(step: Callable[[int], object], *, clock: Callable[[], float], warmup: int, min_iters: int, min_seconds: float) -> dict:
    """measure.steady. Among replicas, all begin together and each stays busy until the last has its figures."""
    if not (_place and _place.store):
        return m.steady(step, clock=clock, warmup=warmup, min_iters=min_iters, min_seconds=min_seconds)
    first = m.steady(step, clock=clock, warmup=warmup, min_iters=1, min_seconds=0.0)
    _meet("begin")
    taken = m.steady(step, clock=clock, warmup=1, min_iters=min_iters, min_seconds=min_seconds)
    keys = _arrive("end")
    while not _store().check(keys):
        step(0)
    return {**taken, "first_call_s": first["first_call_s"]}


def disturbance(mark: dict, values: list[float] | None = None) -> dict:
    """measure.disturbance, in which the CPU time of the processes beside this one is our own."""
    if _place and _place.store:
        used = m.cpu_mark()["own"] - mark["own"]
        keys = _arrive("cpu", str(used))
        mark = {**mark, "own": mark["own"] + used - sum(float(_store().get(key)) for key in keys)}
    return m.disturbance(mark, values)


_made: list = []
_turns: dict[str, int] = {}


def _store():
    """The file through which our processes meet; torch's, so that it also serves as its rendezvous."""
    if not _made:
        from torch import distributed

        _made.append(distributed.FileStore(str(_place.store), _place.size))
        _made[0].set_timeout(timedelta(seconds=FIT_TIMEOUT_S))
    return _made[0]


def _arrive(name: str, value: str = "") -> list[str]:
    """Say that this process has come to a point; returns the keys under which all will have said so."""
    turn = _turns[name] = _turns.get(name, 0) + 1
    _store().set(f"{name}-{turn}-{_place.index}", value)
    return [f"{name}-{turn}-{index}" for index in range(_place.size)]


def _meet(name: str) -> None:
    _store().wait(_arrive(name))
