"""The server of fresh processes: measured children, ranks, replicas and loader workers are forked from it, torch already imported."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver, resource_tracker


def context():
    """multiprocessing's context of this process's server, which is started where it is not.

    Ctrl-C goes to every process of the terminal, and an interpreter that is just starting would answer it with a traceback. So the server
    begins with the signal held back, until hpml.preload has it ignored.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["hpml.preload"])
    resource_tracker.ensure_running()  # it starts alike, and would let the signal through once it has
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return found


def leave() -> None:
    """End a child whose answer is whole, without the clean-up of runtimes that may crash on exit. Only the threads that feed a loader's
    queues are awaited: each holds two semaphores, which would be reported as leaked."""
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
