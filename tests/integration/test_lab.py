"""`hpml lab`: copies that are never overwritten, and a JupyterLab that asks for its token and runs the course."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import nbformat
import psutil
import pytest

from hpml import lab, notebooks
from hpml.env import HpmlError

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_absent_is_copied_and_nothing_is_overwritten(tmp_path, monkeypatch):
    course = tmp_path / "notebooks"
    (course / "answers").mkdir(parents=True)
    (course / "answers" / "00.md").write_text("because")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 00\n\n**Why?**")])
    nbformat.write(book, course / "00_first.ipynb")
    monkeypatch.setattr(notebooks, "folder", lambda: course)
    here = tmp_path / "lab"
    assert {one.target.relative_to(here).as_posix() for one in lab.arrivals(here)} == {"00_first.ipynb", "answers/00.md"}
    assert not here.exists(), "looking copies nothing"
    assert len(lab.fill(here)) == 2 and (here / "00_first.ipynb").read_bytes() == (course / "00_first.ipynb").read_bytes()
    (here / "00_first.ipynb").write_text("mine")
    assert lab.fill(here) == [] and (here / "00_first.ipynb").read_text() == "mine", "changed by the reader alone: nothing comes"
    for number, name in ((1, "00_first.new.ipynb"), (2, "00_first.new2.ipynb")):
        book.cells.append(nbformat.v4.new_markdown_cell(f"changed {number}"))
        nbformat.write(book, course / "00_first.ipynb")
        (came,) = lab.fill(here)
        assert came.new and came.target.name == name and came.target.read_bytes() == (course / "00_first.ipynb").read_bytes()
        assert lab.fill(here) == [], "each version comes once"
    assert (here / "00_first.ipynb").read_text() == "mine"
    (here / "00_first.ipynb").unlink()
    assert [one.target.name for one in lab.fill(here)] == ["00_first.ipynb"], "what was removed is absent"
    (here / lab.STATE).write_text("{")
    with pytest.raises(HpmlError, match="cannot be read: remove it"):
        lab.fill(here)


def test_a_dry_run_names_the_command_and_starts_nothing():
    words = ["bash", str(ROOT / "run_all.sh"), "--lab", "--dry-run", "--port", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "-m jupyterlab" in done.stdout and "--ServerApp.ip=127.0.0.1" in done.stdout and "nothing was copied or started" in done.stdout


class Lab:
    """A running JupyterLab of `lab.command`: its port, its token, its process."""

    def __init__(self, folder: Path) -> None:
        lab.fill(folder / "lab")
        places = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("RUNTIME", "CONFIG", "DATA")}
        environment = {**os.environ, **places, "HOME": str(folder), "PYTHONPATH": str(ROOT)}
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(lab.command(folder / "lab", port=0, browser=False), cwd=folder / "lab", stdout=log,
                                            stderr=log, env=environment)
        found: list[Path] = []
        while not found:
            assert self.process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
            found = list((folder / "RUNTIME").glob("jpserver-*.json"))
        facts = json.loads(found[0].read_text())
        self.port, self.token = facts["port"], facts["token"]
        while True:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", self.port)):
                    break
            time.sleep(0.1)

    def ask(self, path: str, *, token: str | None, body: dict | None = None):
        headers = {"Authorization": f"token {token}"} if token else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers,
                                         data=json.dumps(body).encode() if body is not None else None)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def run(self, kernel: str, source: str) -> str:
        """What the code prints in that kernel, by the server's websocket. Fails where it raises."""
        import websocket

        channel = websocket.create_connection(f"ws://127.0.0.1:{self.port}/api/kernels/{kernel}/channels", timeout=120,
                                              header=[f"Authorization: token {self.token}"])
        number = uuid.uuid4().hex
        header = {"msg_id": number, "msg_type": "execute_request", "username": "", "session": uuid.uuid4().hex, "version": "5.3"}
        channel.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "channel": "shell", "buffers": [], "content": {
            "code": source, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}}))
        said, done = "", set()
        while not done >= {"idle", "reply"}:
            message = json.loads(channel.recv())
            if message["parent_header"].get("msg_id") != number:
                continue
            content, kind = message["content"], message["header"]["msg_type"]
            assert kind != "error", "\n".join(content.get("traceback", []))
            said += content.get("text", "") if kind == "stream" else ""
            done |= {"idle"} if content.get("execution_state") == "idle" else {"reply"} if kind == "execute_reply" else set()
        channel.close()
        return said


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    started = Lab(tmp_path_factory.mktemp("jupyter"))
    yield started
    started.process.terminate()
    try:
        started.process.wait(30)
    finally:
        started.process.kill()


def test_it_listens_on_loopback_alone_and_asks_for_the_token(running):
    at = {one.laddr.ip for one in psutil.Process(running.process.pid).net_connections("tcp") if one.status == psutil.CONN_LISTEN}
    assert at == {"127.0.0.1"} and len(running.token) >= 32
    for token in (None, "wrong"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            running.ask("/api/contents/lab", token=token)
        assert refused.value.code == 403
    names = {entry["name"] for entry in running.ask("/api/contents/lab", token=running.token)["content"]}
    assert {book.path.name for book in notebooks.course()} <= names and {"answers", "examples"} <= names


def test_a_kernel_runs_the_first_cells_of_the_course(running):
    book = running.ask("/api/contents/lab/00_start_here.ipynb", token=running.token)["content"]
    cells = [cell["source"] for cell in book["cells"] if cell["cell_type"] == "code"]
    kernel = running.ask("/api/kernels", token=running.token, body={"name": "python3", "path": "lab"})["id"]
    for source in cells[:3]:
        running.run(kernel, source)
    assert running.run(kernel, "import os; print(session.notebook, os.path.basename(os.getcwd()))").split() == ["00_start_here", "lab"]
