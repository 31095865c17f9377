"""A thin link on one machine: two network namespaces, a pair of virtual interfaces between them, and a rate set by the kernel (`tc tbf`).

Delay and loss come from netem, where the kernel has it. Without it a limit for each connection stands for the delay: one TCP connection
has at most a window of data under way, so it moves at most window / round trip (RFC 7323, section 1.1), whatever the link could carry.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from hpml.env import HpmlError, Unavailable

RATE_MBIT_S = 50.0  # megabits a second of the link
WINDOW_KIB, ROUND_TRIP_MS = 256, 200  # assumed of a long way: what a sender keeps under way, and how long an answer takes
CONNECTION_MBIT_S = WINDOW_KIB * 1024 * 8 / (ROUND_TRIP_MS / 1000) / 1e6  # 10.5: what that leaves one connection
NET = "10.77.0"
CLONE_NEWNET = 0x40000000
BURST, QUEUE = "32kb", "100ms"  # of tbf: what passes at once, and how long a packet waits before one is dropped


@dataclass(frozen=True)
class Link:
    """The two ends: what comes before a command that is to run there, and their addresses, the name of the interface of either;
    `no_netem`: why there is no delay, or None."""

    here: tuple[str, ...]
    there: tuple[str, ...]
    here_address: str
    there_address: str
    device: str
    no_netem: str | None


def unavailable() -> str | None:
    """Why there can be no shaped link here, or None."""
    absent = [tool for tool in ("ip", "tc", "unshare", "nsenter") if not shutil.which(tool)]
    if absent:
        return f"{', '.join(absent)} not installed: take the packages iproute2 and util-linux"
    if os.geteuid():
        return "a shaped link needs root: network namespaces are made by root only"
    done = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True, check=False)
    return f"no network namespace can be made here: {done.stderr.strip()}" if done.returncode else None


@contextlib.contextmanager
def shaped(*, rate_mbit_s: float = RATE_MBIT_S, delay_ms: float = 0, loss_percent: float = 0) -> Iterator[Link]:
    """A link of `rate_mbit_s` in either direction while the body runs; nothing of it is left afterwards.

    `delay_ms` (one way) and `loss_percent` are netem's. Raises Unavailable without root, `ip` or `tc`, or where the kernel lacks netem
    and a delay or a loss is asked for.
    """
    if reason := unavailable():
        raise Unavailable(reason)
    with _namespace() as here, _namespace() as there:
        a, b = _inside(here), _inside(there)
        _run("ip", "link", "add", f"v{here}", "netns", str(here), "type", "veth", "peer", "name", f"v{here}", "netns", str(there))
        for words, number in ((a, 1), (b, 2)):
            _run(*words, "ip", "address", "add", f"{NET}.{number}/24", "dev", f"v{here}")
            for name in ("lo", f"v{here}"):
                _run(*words, "ip", "link", "set", name, "up")
        reason = None
        for words in (a, b):
            _run(*words, "tc", "qdisc", "add", "dev", f"v{here}", "root", "handle", "1:", "tbf", "rate", f"{rate_mbit_s}mbit",
                 "burst", BURST, "latency", QUEUE)
            reason = _netem(words, f"v{here}", delay_ms, loss_percent)
            if reason and (delay_ms or loss_percent):
                raise Unavailable(reason)
        yield Link(a, b, f"{NET}.1", f"{NET}.2", f"v{here}", reason)


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """The id of a process that holds a network namespace; both end with the body, or with this process."""
    holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        yield holder.pid
    finally:
        holder.stdin.close()  # cat reads to the end of its input: it also ends when this process is killed
        holder.wait()
        holder.stdout.close()


@contextlib.contextmanager
def entered(end: tuple[str, ...]) -> Iterator[None]:
    """The calling thread, and what it starts, in the network of one end while the body runs."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own, open(f"/proc/{end[2]}/ns/net") as other:
        def enter(file) -> None:
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise HpmlError(f"the network of the link cannot be entered: {os.strerror(ctypes.get_errno())}")

        enter(other)
        try:
            yield
        finally:
            enter(own)


def _inside(pid: int) -> tuple[str, ...]:
    return "nsenter", "-t", str(pid), "-n"


def _netem(words: tuple[str, ...], device: str, delay_ms: float, loss_percent: float) -> str | None:
    """Delay and loss below the rate; why they cannot be, or None."""
    done = subprocess.run([*words, "tc", "qdisc", "add", "dev", device, "parent", "1:", "netem", "delay", f"{delay_ms}ms",
                           "loss", f"{loss_percent}%", "limit", "10000"], capture_output=True, text=True, check=False)
    return f"the kernel has no netem ({done.stderr.strip().splitlines()[0]})" if done.returncode else None


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HpmlError(f"{' '.join(words)}: {done.stderr.strip()}")
