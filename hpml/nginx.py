"""nginx (https://nginx.org) as the server of a folder: started with a configuration of its own, gone at the end."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hpml.env import HpmlError, Unavailable

START_S = 10
CONFIGURATION = """
daemon off;
master_process off;
pid {scratch}/pid;
error_log {scratch}/errors;
events {{ worker_connections 256; }}
http {{
    log_format plain '$connection "$request" $status $http_range';
    access_log {log} plain;
    client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy; fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/scgi;
    default_type application/octet-stream;
    sendfile on;
    server {{
        listen {listen};
        root "{folder}";
        limit_rate {limit_rate};
        {more}
    }}
}}
"""


def find() -> str:
    """The program. Raises Unavailable with what to do."""
    if path := shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"):
        return path
    raise Unavailable("nginx is not installed: take the package nginx-light (Debian and Ubuntu) or nginx (conda-forge, homebrew)")


@contextlib.contextmanager
def serve(folder: Path, *, address: str = "127.0.0.1", port: int = 0, limit_rate: int = 0, more: str = "", log: Path | None = None,
          through: tuple[str, ...] = ()) -> Iterator[str]:
    """Serve `folder` while the body runs; yields its address (http://...). Port 0: one that is free.

    `limit_rate`: bytes a second of one connection, 0 = no limit; `more`: further lines of the server's block; `log`: where requests are
    written, one a line with the number of their connection; `through`: words before nginx's own, where it runs in another network.
    Raises Unavailable without nginx, HpmlError with nginx's reason where it cannot start.
    """
    program, port = find(), port or _free(address)
    with tempfile.TemporaryDirectory(prefix="hpml-nginx-") as scratch:
        configuration = Path(scratch, "nginx.conf")
        configuration.write_text(CONFIGURATION.format(scratch=scratch, listen=f"{address}:{port}", folder=folder.resolve(),
                                                      limit_rate=limit_rate, more=more, log=log or "/dev/null"))
        errors = Path(scratch, "errors")
        with errors.open("w") as said:
            process = subprocess.Popen([*through, program, "-p", scratch, "-e", str(errors), "-c", str(configuration)], stderr=said)
        try:
            until = time.monotonic() + START_S
            while not (Path(scratch, "pid").exists() and Path(scratch, "pid").read_text().strip()):
                if process.poll() is not None or time.monotonic() > until:
                    reasons = re.findall(r"\[emerg\] (?:\d+#\d+: )?(.+)", errors.read_text())
                    raise HpmlError(f"nginx did not start: {reasons[0] if reasons else 'it gives no reason'}")
                time.sleep(0.01)
            yield f"http://{address}:{port}"
        finally:
            process.terminate()
            process.wait()


def _free(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]
