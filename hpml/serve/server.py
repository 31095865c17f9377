"""`hpml serve`: the service and its application in one uvicorn process that ends gracefully."""

import contextlib
import functools
import json
import logging
import os
import resource
import socket
import sys
import threading
import uuid

from hpml import env
from hpml.env import HpmlError

DRAIN_S = 30  # after SIGTERM accepted requests have so long
FILES = 65_536  # open ones that are asked for, where the hard limit lets them
CONNECTIONS = 1024  # at the same time, at most
BACKLOG = 128  # connections that wait to be taken; as many are taken in one turn of the event loop
EARLY_S = 0.3  # a client that comes before the service is ready has so long to send its request


def serve(workload: str, given: dict, *, host: str, port: int, gallery: str | None, **asked) -> None:
    """Runs until SIGTERM or Ctrl-C; requests that were accepted by then are answered. `given`: settings, which come before those that a
    search has found; `asked`: of open_service. Raises HpmlError, in one line."""
    for package in ("fastapi", "uvicorn", "prometheus_client", "multipart"):
        if reason := env.missing(package):
            raise HpmlError(f"{reason}: pip install -e '.[serve]'")
    import uvicorn

    from hpml.serve import searching
    from hpml.serve.app import described, make_app
    from hpml.serve.connection import Connection
    from hpml.serve.gallery import open_gallery
    from hpml.serve.service import open_service

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    taken = _bound(host, port)
    key = os.environ.get("HPML_API_KEY") or None
    if host not in ("127.0.0.1", "::1", "localhost") and not key:
        say(f"{host} is open to the network without an API key: set HPML_API_KEY to ask for one")
    with _early(taken):
        service = open_service(workload, settings={**searching.found(workload, **asked), **given}, say=say, **asked)
        frames = open_gallery(service, gallery) if service.workload.NAME == "clip" else None
    most = _most_connections()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    config = uvicorn.Config(make_app(service, gallery=frames, api_key=key), access_log=False, log_config=None, server_header=False,
                            timeout_graceful_shutdown=DRAIN_S, timeout_keep_alive=15, backlog=min(BACKLOG, most), ws="none",
                            http=functools.partial(Connection, most=most))
    address = f"[{host}]" if ":" in host else host
    # Whoever reads the line may come at once, before the loop runs: the socket listens, and nobody is told 503 any more.
    print(described(service, f"http://{address}:{taken.getsockname()[1]}/"), flush=True)
    uvicorn.Server(config).run(sockets=[taken])


def search(workload: str, given: dict, **asked) -> str:
    """Finds settings, saves them beside the engines and says which; `serve` takes them from then on."""
    from hpml.serve import searching

    return searching.search(workload, given, **asked)


def _bound(host: str, port: int) -> socket.socket:
    """The listening socket, before minutes of work. Raises HpmlError where it cannot be had.

    It listens from here on: with SO_REUSEADDR, which a restart needs, two servers can bind one port until one of them listens.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        taken = socket.socket(family)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
        taken.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        raise HpmlError(f"cannot listen on {host}:{port}: {error.strerror if isinstance(error, OSError) else error}") from None
    return taken


@contextlib.contextmanager
def _early(taken: socket.socket):
    """Meanwhile whoever comes is told 503 and to come again: in the kernel's queue a client would wait for the whole start-up."""
    ready = threading.Event()

    def answer() -> None:
        taken.settimeout(0.1)
        while not ready.is_set():
            with contextlib.suppress(OSError):
                client, _ = taken.accept()
                with client:
                    client.settimeout(EARLY_S)
                    client.recv(65_536)  # closed with bytes unread, the connection would be reset and the answer lost
                    content = json.dumps({"error": "starting: not ready yet", "request_id": uuid.uuid4().hex})
                    head = ("HTTP/1.1 503 Service Unavailable", "Content-Type: application/json", f"Content-Length: {len(content)}",
                            "Retry-After: 5", "Connection: close")
                    client.sendall("\r\n".join([*head, "", content]).encode())

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ready.set()
        thread.join()


def _most_connections() -> int:
    """How many connections are kept, after the limit of open files was raised as far as it goes: a quarter of it, since in one turn of the
    event loop as many again may be taken before those that make room are closed, and the service opens files of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    asked = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < asked:
        with contextlib.suppress(OSError, ValueError):  # a system may have a lower limit yet
            resource.setrlimit(resource.RLIMIT_NOFILE, (asked, hard))
            soft = asked
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(CONNECTIONS, soft // 4))
