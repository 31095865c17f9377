"""`hpml serve`: the service and its application in one uvicorn process that ends gracefully."""

import logging
import os
import socket
import sys

from hpml import env
from hpml.env import HpmlError

DRAIN_S = 30  # after SIGTERM accepted requests have so long


def serve(workload: str, given: dict, *, host: str, port: int, gallery: str | None, **asked) -> None:
    """Runs until SIGTERM or Ctrl-C; requests that were accepted by then are answered. `given`: settings, which come before those that a
    search has found; `asked`: of open_service. Raises HpmlError, in one line."""
    for package in ("fastapi", "uvicorn", "prometheus_client", "multipart"):
        if reason := env.missing(package):
            raise HpmlError(f"{reason}: pip install 'hpml[serve]'")
    import uvicorn

    from hpml.serve import searching
    from hpml.serve.app import described, make_app
    from hpml.serve.gallery import open_gallery
    from hpml.serve.service import open_service

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    taken = _bound(host, port)
    key = os.environ.get("HPML_API_KEY") or None
    if host not in ("127.0.0.1", "::1", "localhost") and not key:
        say(f"{host} is open to the network without an API key: set HPML_API_KEY to ask for one")
    service = open_service(workload, settings={**searching.found(workload, **asked), **given}, say=say, **asked)
    frames = open_gallery(service, gallery) if service.workload.NAME == "clip" else None
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    config = uvicorn.Config(make_app(service, gallery=frames, api_key=key), access_log=False, log_config=None, server_header=False,
                            timeout_graceful_shutdown=DRAIN_S, timeout_keep_alive=15, backlog=2048)
    address = f"[{host}]" if ":" in host else host
    taken.listen(config.backlog)  # whoever reads the line may come at once, before the loop runs
    print(described(service, f"http://{address}:{taken.getsockname()[1]}/"), flush=True)
    uvicorn.Server(config).run(sockets=[taken])


def search(workload: str, given: dict, **asked) -> str:
    """Finds settings, saves them beside the engines and says which; `serve` takes them from then on."""
    from hpml.serve import searching

    return searching.search(workload, given, **asked)


def _bound(host: str, port: int) -> socket.socket:
    """The listening socket, before minutes of work. Raises HpmlError where it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        taken = socket.socket(family)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except (OSError, OverflowError) as error:
        raise HpmlError(f"cannot listen on {host}:{port}: {error.strerror if isinstance(error, OSError) else error}") from None
    return taken
