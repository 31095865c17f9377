"""A web server on this machine's loopback interface: what shards over HTTP are measured with."""

import contextlib
import functools
import multiprocessing
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from hpml import nginx
from hpml.env import HpmlError, Unavailable

START_S = 20.0


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[tuple[str, str]]:
    """Serve `folder` while the body runs: (address, what serves it). nginx where it is installed, else Python's http.server in a process
    of its own. Raises HpmlError where neither starts."""
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(nginx.serve(folder))
        except Unavailable:
            yield from _python(folder)
        else:
            yield url, "nginx"


def _python(folder: Path) -> Iterator[tuple[str, str]]:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_answer, args=(str(folder), theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(START_S):
            raise HpmlError("Python's http.server does not start on the loopback interface")
        yield f"http://127.0.0.1:{ours.recv()}", "Python's http.server"
    finally:
        process.kill()
        process.join()


class _Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """A line for each request would stand in the case's log."""


def _answer(folder: str, line) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder)) as server:
        line.send(server.server_address[1])
        server.serve_forever()
