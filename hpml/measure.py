"""Taking a figure inside a measured process: the steady loop, memory, threads, and what else the machine did meanwhile."""

import itertools
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hpml import env, turns

BUSY_SHARE = 0.10  # of all cores, taken by other processes or stolen by the host: above it a round is flagged and repeated
# A host that takes its cores away need not tell its guests. What shows it are bursts: calls that take much longer than most.
BURST = 1.25  # times the median call
BURST_SHARE = 0.20  # of the window's time, spent in bursts: above it a round is flagged and repeated likewise
LONG_S = 10.0  # a call of so many seconds needs no more warm-up and is measured once a round: BF16 on a CPU that computes it in FP32


def set_threads(threads: int) -> int:
    """Set torch's compute threads (0 = all cores) and return their number."""
    import torch

    count = threads or env.cores()
    torch.set_num_threads(count)
    return count


def device_clock(device: str) -> Callable[[], float]:
    """perf_counter that waits for the device first, in seconds."""
    if device != "cuda":
        return time.perf_counter

    import torch

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def steady(step: Callable[[int], object], *, clock: Callable[[], float], warmup: int, min_iters: int, min_seconds: float) -> dict:
    """Call step(i) until both minima are reached; seconds of each call after the warm-up, in turns with the children beside this one.

    Where no call was shorter than LONG_S, one ends the warm-up and one the measurement. Returns {"first_call_s", "values"}: the very
    first call is a figure of its own.
    """
    calls = itertools.count()

    def timed() -> float:
        before = clock()
        step(next(calls))
        return clock() - before

    first_call_s = shortest_s = timed()
    for _ in range(1, warmup):
        shortest_s = min(shortest_s, timed())
        if shortest_s > LONG_S:
            break
    values = []
    while unfinished(values, shortest_s, min_iters=min_iters, min_seconds=min_seconds):
        if turns.wait() and values and is_short(values[-1]):
            timed()
        values.append(timed())
    return {"first_call_s": first_call_s, "values": values}


def unfinished(values: Sequence[float], shortest_s: float, *, min_iters: int, min_seconds: float) -> bool:
    """Whether more calls are to be measured after these, in seconds: for both minima, but none after the first where every call is long.

    `shortest_s`: of the calls before. One long call among short ones is a burst of the machine and says nothing of the others."""
    return (len(values) < min_iters or sum(values) < min_seconds) and not (values and min(shortest_s, *values) > LONG_S)


def is_short(seconds: float) -> bool:
    """Whether a slice holds so many calls that its first one, which finds cold caches, need not count."""
    return seconds < turns.SLICE_S / 4


def peak_rss_mib(pid: int | None = None) -> float | None:
    """Highest resident memory so far of a process, of this one by default; None where it is gone."""
    return _status_mib(pid or os.getpid(), "VmHWM")


def rss_mib(pid: int | None = None) -> float | None:
    """Resident memory of a process, of this one by default, now; None where it is gone."""
    return _status_mib(pid or os.getpid(), "VmRSS")


def workers_peak_rss_mib() -> float | None:
    """Sum of the highest resident memory of this process's living children (loader workers), None without any."""
    import psutil

    peaks = [_status_mib(child.pid, "VmHWM") for child in psutil.Process().children(recursive=True)]
    return sum(p for p in peaks if p) or None


def _status_mib(pid: int, field: str) -> float | None:
    try:
        line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) / 1024


def device_memory() -> dict:
    """Peak MiB that torch allocated and reserved on the CUDA device; empty when CUDA was not used."""
    import torch

    if not torch.cuda.is_initialized():
        return {}
    return {"device_peak_mib": torch.cuda.max_memory_allocated() / 2**20, "device_reserved_mib": torch.cuda.max_memory_reserved() / 2**20}


def bytes_read() -> int | None:
    """Bytes that this process fetched from storage so far (the page cache does not count)."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes")), None)


def cpu_mark() -> dict:
    """CPU seconds so far: of the machine by kind, of this process and its children, living and ended. The turns of others do not count."""
    import psutil

    own = 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        own += times.user + times.system + times.children_user + times.children_system
    return {**{name: value - turns.away[name] for name, value in turns.machine_seconds().items()}, "own": own}


def disturbance(mark: dict, values: list[float] | None = None) -> dict:
    """What others did since `mark`: shares of all cores used by foreign processes and stolen by the host, the share of the calls' time
    (`values`, seconds of calls that should be alike) that went into bursts, and whether that is too much."""
    end = cpu_mark()
    capacity = max(1e-9, (end["time"] - mark["time"]) * (os.cpu_count() or 1))
    steal = max(0.0, end["steal"] - mark["steal"]) / capacity
    foreign = max(0.0, (end["busy"] - mark["busy"] - (end["own"] - mark["own"])) / capacity - steal)
    # Under half a second the kernel's ticks (10 ms) are too coarse to tell.
    busy = (foreign > BUSY_SHARE or steal > BUSY_SHARE) and capacity > 0.5 * (os.cpu_count() or 1)
    bursts = burst_share(values) if values else 0.0
    return {"foreign_cpu": round(foreign, 4), "steal": round(steal, 4), "bursts": round(bursts, 4), "busy": busy or bursts > BURST_SHARE}


def burst_share(values: list[float]) -> float:
    """Share of the summed seconds that lies in calls longer than BURST times the median call."""
    longest = BURST * statistics.median(values)
    return sum(value for value in values if value > longest) / sum(values)


def energy_mj() -> float | None:
    """Energy that the first GPU used so far, in millijoules, by NVML; None without a GPU or without the counter."""
    if env.missing("pynvml"):
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)))
    except pynvml.NVMLError:
        return None


class Marks:
    """Points in time on the device that does the work: perf_counter on a CPU, CUDA events on torch's stream on a GPU.

    On a GPU the span that ends with the arrival of a batch is the time the device stood idle for it, not the host's wait.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.points: list = []  # of the step under way
        self.ended: deque[list] = deque()  # those of the steps before it whose spans nobody has asked for

    def end_step(self) -> None:
        """The next mark begins another step."""
        self.ended.append(self.points)
        self.points = []

    def steps(self, *, last: bool = False) -> Iterator[list[float]]:
        """Spans of the ended steps, each once. On a GPU the newest is left out, unless this is the `last` time: a host that waited for it
        could not prepare the next step while the GPU computes, as a training without a clock does."""
        while len(self.ended) > (self.cuda and not last):
            yield self._between(self.ended.popleft())

    def mark(self) -> None:
        """Take the time here: a clock's, or an event on the GPU's stream."""
        if not self.cuda:
            self.points.append(time.perf_counter())
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.points.append(event)

    def spans(self) -> list[float]:
        """Seconds between neighbouring marks of the step under way."""
        return self._between(self.points)

    def _between(self, points: list) -> list[float]:
        pairs = zip(points, points[1:], strict=False)
        if not self.cuda:
            return [after - before for before, after in pairs]
        points[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]
