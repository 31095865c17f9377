"""Turns: children of one round that are measured side by side, one slice at a time, so that a slow moment of the machine falls on all.

On a shared host the speed of a core drifts within seconds. Two cases measured one after the other meet different moments; measured in
turns of a tenth of a second they meet the same ones. Who waits is stopped (SIGSTOP): the threads of an engine spin on after a call. A
child that nobody takes turns with has no line, and waiting costs it nothing.
"""

import time

SLICE_S = 0.1

_line = None  # multiprocessing.connection.Connection to the launcher
_since = 0.0
away = {"time": 0.0, "busy": 0.0, "steal": 0.0}  # what passed while others had their turn: seconds, and CPU seconds of the machine


def take(line) -> None:
    """Measure in turns from here on: `line` leads to the launcher, which says when."""
    global _line
    _line = line


def wait() -> bool:
    """Before a measured call: go on at once, or, when the slice is over (and before the first one), let the others go first.

    Returns whether others had their turn: the next call then finds cold caches.
    """
    global _since
    if _line is None or time.perf_counter() - _since < SLICE_S:
        return False
    before = machine_seconds()
    _line.send("your turn")
    _line.recv()
    for name, after in machine_seconds().items():
        away[name] += after - before[name]
    _since = time.perf_counter()
    return True


def machine_seconds() -> dict:
    """Seconds so far, and the machine's CPU seconds that were used or stolen."""
    import psutil

    total = psutil.cpu_times()
    return {"time": time.perf_counter(), "busy": sum(total) - total.idle - getattr(total, "iowait", 0.0),
            "steal": getattr(total, "steal", 0.0)}
