"""A served workload as a process of its own, and a browser that looks at it."""

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVE = [sys.executable, "-c", "from hpml.cli import main; main()", "serve"]


class Server:
    """A running `hpml serve`: its `url`, its `line`, its log."""

    def __init__(self, words: list[str], folder: Path, **environment: str) -> None:
        self.log = folder / "serve.log"
        with self.log.open("w") as log:
            # Background jobs of a shell ignore Ctrl-C, and so would a server that is started from one.
            self.process = subprocess.Popen([*SERVE, "--port", "0", "--tier", "smoke", *words], stdout=subprocess.PIPE, stderr=log,
                                            text=True, cwd=folder, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment},
                                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        self.line = self.process.stdout.readline()
        assert self.line.startswith("http://127.0.0.1:"), self.log.read_text()
        self.url = self.line.split()[0].rstrip("/")

    def end(self, by: int = signal.SIGTERM) -> int:
        """Ends the server and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(by)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.stdout.close()

    def logged(self) -> list[dict]:
        """What it logged as JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@pytest.fixture(scope="session")
def serving(tmp_path_factory):
    """`serving(workload, *words, **environment)`: a Server, ended with the session. All share a folder of runs: engines are built once."""
    results = tmp_path_factory.mktemp("served")
    with contextlib.ExitStack() as running:
        def start(workload: str, *words: str, **environment: str) -> Server:
            folder = tmp_path_factory.mktemp("server")
            server = Server(["--workload", str(ROOT / "tests" / workload), *words], folder, HPML_RESULTS=str(results), **environment)
            running.callback(server.end)
            return server

        yield start


class Browser:
    """One page of a headless Chromium by its DevTools protocol."""

    def __init__(self, program: str, profile: Path) -> None:
        import websocket

        self.process = subprocess.Popen([program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
                                         "--remote-allow-origins=*", f"--user-data-dir={profile}", "about:blank"],
                                        stderr=subprocess.PIPE, text=True, env={**os.environ, "HOME": str(profile)})
        port = next(found[1] for line in self.process.stderr if (found := re.search(r"DevTools listening on ws://127.0.0.1:(\d+)/", line)))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        self.socket, self.number = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=60), 0
        self.said: list[str] = []  # on the page's console
        self.asked: list[str] = []  # addresses that the page requested
        for domain in ("Page", "DOM", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while (message := json.loads(self.socket.recv())).get("id") != self.number:
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.said.append(json.dumps(message["params"]))
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
        assert "error" not in message, message
        return message["result"]

    def look(self, expression: str):
        """The value of a JavaScript expression on the page."""
        return self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true."""
        end = time.monotonic() + 60
        while not self.look(expression):
            assert time.monotonic() < end, f"{expression} never came: {self.look('document.body.innerText')}; {self.said}"
            time.sleep(0.05)

    def open(self, url: str, *, width: int = 1280, ready: str = "document.body && document.body.dataset.samples === 'ready'") -> None:
        """Until the page is `ready`, by default a served one with its samples."""
        self.said.clear()  # the page before said it
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && ({ready})")

    def picture(self) -> bytes:
        """The page as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def end(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
        self.process.stderr.close()


@pytest.fixture(scope="session")
def browser(need, tmp_path_factory):
    opened = Browser(need("chromium", "google-chrome"), tmp_path_factory.mktemp("profile"))
    yield opened
    opened.end()
