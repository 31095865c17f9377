"""What a load test sends its queries to: a service in this process, or a server over HTTP with connections that are kept open."""

import contextlib
import http.client
import json
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from hpml.env import HpmlError
from hpml.loadgen import FAILED, OK, REFUSED, Done

CONNECTIONS = 64  # as many queries are under way over HTTP at most; what is due beyond them waits here, and its latency counts on
READY_S, ANSWER_S = 120, 60
PAUSE_S = 0.002


class InProcess:
    """Queries to a Service in this process. `patient`: a refused query is sent again until it is taken (Offline has no deadline).

    `client_s` counts the CPU seconds of sending, on the thread that sends.
    """

    def __init__(self, service, payloads: Sequence[bytes], *, deadline_s: float | None = None, patient: bool = False) -> None:
        self.service, self.payloads, self.deadline_s, self.patient = service, payloads, deadline_s, patient
        self.client_s, self.waits = 0.0, {"decode_s": [], "wait_s": [], "model_s": []}

    def send(self, index: int, done: Done) -> None:
        """See `loadgen.Target`: the bytes of the sample go to the service in this process."""
        began = time.thread_time()
        while True:
            try:
                future = self.service.submit(self.payloads[index % len(self.payloads)], deadline_s=self.deadline_s)
                break
            except Exception as error:  # noqa: BLE001 told apart below: busy, or broken
                if not _busy(error):
                    done(FAILED, error)
                    return
                if not self.patient:
                    done(REFUSED, error)
                    return
                time.sleep(PAUSE_S)
        self.client_s += time.thread_time() - began
        future.add_done_callback(lambda future: self._finish(future, done))

    def _finish(self, future: Future, done: Done) -> None:
        error = future.exception()
        if error is None:
            for name, values in self.waits.items():
                values.append(getattr(future.result(), name, None))
        done(OK if error is None else REFUSED if _busy(error) else FAILED, future.result().value if error is None else error)


def _busy(error: BaseException) -> bool:
    return hasattr(error, "retry_after_s")


class OverHttp:
    """Queries to POST /v1/predict of a server, over connections that stay open. 503 is a refusal, any other status but 200 a failure."""

    def __init__(self, url: str, payloads: Sequence[bytes], *, connections: int = CONNECTIONS, patient: bool = False) -> None:
        self.place, self.payloads, self.patient = _place(url), payloads, patient
        self.waiting: queue.SimpleQueue = queue.SimpleQueue()
        self.workers = [threading.Thread(target=self._work, daemon=True) for _ in range(connections)]
        for worker in self.workers:
            worker.start()

    def send(self, index: int, done: Done) -> None:
        """See `loadgen.Target`: the sample waits for a connection that is free."""
        self.waiting.put((self.payloads[index % len(self.payloads)], done))

    def close(self) -> None:
        """End the connections and their threads."""
        for _ in self.workers:
            self.waiting.put(None)
        for worker in self.workers:
            worker.join()

    def _work(self) -> None:
        connection = http.client.HTTPConnection(*self.place, timeout=ANSWER_S)
        while task := self.waiting.get():
            payload, done = task
            try:
                status, body = self._ask(connection, payload)
                while status == 503 and self.patient:
                    time.sleep(PAUSE_S)
                    status, body = self._ask(connection, payload)
                done(OK if status == 200 else REFUSED if status == 503 else FAILED, body)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                done(FAILED, error)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, payload: bytes) -> tuple[int, bytes]:
        fresh = connection.sock is None
        try:
            return _exchange(connection, payload)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            connection.close()  # a server may close a connection that was idle; the query has not been answered, so it may be asked again
            if fresh:
                raise
            return _exchange(connection, payload)


def _exchange(connection: http.client.HTTPConnection, payload: bytes) -> tuple[int, bytes]:
    connection.request("POST", "/v1/predict", body=payload, headers={"Content-Type": "image/jpeg"})
    response = connection.getresponse()
    return response.status, response.read()


def _place(url: str) -> tuple[str, int]:
    """(host, port) of an address. Raises HpmlError."""
    parts = urllib.parse.urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number
        host = None
    if parts.scheme != "http" or not host:
        raise HpmlError(f"{url!r}: give an address as http://127.0.0.1:8000")
    return host, port or 80


def get(url: str, path: str, *, timeout_s: float = 5.0) -> tuple[int, Any]:
    """(status, body, read as JSON where it is some) of a GET. Raises OSError where nothing answers, HpmlError for what is no address."""
    connection = http.client.HTTPConnection(*_place(url), timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from None
    finally:
        connection.close()
    with contextlib.suppress(ValueError):
        return response.status, json.loads(body)
    return response.status, body


def free_port() -> int:
    """A TCP port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(arguments: Sequence[str], *, log: Path) -> Iterator[tuple[str, subprocess.Popen, float]]:
    """`hpml serve` with these arguments in a process of its own: (address, process, seconds from start to ready); ended afterwards.

    Raises HpmlError with the server's last line where it does not become ready.
    """
    port = free_port()
    command = [sys.executable, "-c", "from hpml.cli import main; main()", "serve", *arguments, "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with log.open("ab") as out:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        while True:
            if process.poll() is not None or time.perf_counter() - started > READY_S:
                lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                raise HpmlError(f"hpml serve did not become ready: {lines[-1][:200] if lines else 'it said nothing'}")
            with contextlib.suppress(OSError):
                if get(url, "/readyz")[0] == 200:
                    break
            time.sleep(0.02)
        yield url, process, time.perf_counter() - started
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
