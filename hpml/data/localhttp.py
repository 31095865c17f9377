"""A web server on this machine's loopback interface: what shards over HTTP are measured and tested with."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpml.env import HpmlError

START_S = 20.0
_NGINX = """daemon off;
{user}worker_processes 1;
error_log stderr error;
pid {scratch}/nginx.pid;
events {{ worker_connections 256; }}
http {{
  access_log off;
  sendfile on;
  default_type application/octet-stream;
  client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy; fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/scgi;
  server {{ listen 127.0.0.1:{port}; root "{folder}"; }}
}}
"""


class Server:
    """nginx where it is installed, else Python's http.server, in a process of its own; `stop` ends it. Raises HpmlError."""

    def __init__(self, folder: Path) -> None:
        self.port = _free_port()
        self.scratch = tempfile.TemporaryDirectory(prefix="hpml-http-")
        nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        self.name = "nginx" if nginx else "Python's http.server"
        if nginx:
            config = Path(self.scratch.name, "nginx.conf")
            # Its workers become another user where root starts it, who may not read the folder.
            user = "user root;\n" if os.geteuid() == 0 else ""
            config.write_text(_NGINX.format(user=user, scratch=self.scratch.name, port=self.port, folder=Path(folder).resolve()))
            command = [nginx, "-e", "stderr", "-p", self.scratch.name, "-c", str(config)]
        else:
            command = [sys.executable, "-m", "http.server", str(self.port), "--bind", "127.0.0.1", "--directory", str(folder)]
        self.log = Path(self.scratch.name, "log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        said = self.log.read_text(errors="replace").strip()
        self.stop()
        raise HpmlError(f"{self.name} does not start on the loopback interface: {said.splitlines()[-1] if said else 'no reason given'}")

    def stop(self) -> None:
        """End the server and what it wrote."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.scratch.cleanup()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
