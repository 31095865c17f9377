"""A processed set sent to a hub that stands in for the real one: only when asked, only its own files, one line for each fault."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hpml.data import publish
from hpml.env import HpmlError

NAME = "somebody/rallies"


class Hub(BaseHTTPRequestHandler):
    """Creates a data set, asks for small files inline, takes commits; remembers all of it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub = self.server
        hub.asked.append((self.path, self.headers.get("Authorization")))
        if hub.refuse:
            return self.answer({"error": "you may not write here"}, 403)
        if self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            return self.answer({"url": f"{hub.address}/datasets/{NAME}", "id": NAME})
        if "/preupload/" in self.path:
            return self.answer({"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                                          for one in json.loads(body)["files"]]})
        if "/commit/" in self.path:
            for one in map(json.loads, filter(None, body.splitlines())):
                if one["key"] == "file":
                    hub.files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            return self.answer({"commitUrl": f"{hub.address}/datasets/{NAME}/commit/1", "commitOid": "1" * 40, "success": True})
        return self.answer({"errors": [], "warnings": []})

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.answer({"id": NAME, "sha": "0" * 40, "siblings": [], "xetEnabled": False})

    def answer(self, content, status=200):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    server.asked, server.created, server.files, server.refuse = [], [], {}, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    for name in ("prepared.json", "images/a/0.jpg", "labels/a.csv", ".cache/x", "images/a/1.jpg.part", "set_aside/images/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"content of {name}")
    return root


def run(folder, address, tmp_path, *words, token="hf_made_up_for_this_test", **more):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    given = {**clean, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", **more}
    if token:
        given["HF_TOKEN"] = token
    return subprocess.run([sys.executable, "-c", "from hpml.cli import main; main()", "data", "publish", str(folder), NAME, *words],
                          capture_output=True, text=True, env=given, timeout=300)


def test_nothing_is_sent_before_it_is_asked_for(folder, hub, tmp_path):
    done = run(folder, hub.address, tmp_path)
    assert done.returncode == 0 and "3 files" in done.stdout and "nothing was sent" in done.stdout and NAME in done.stdout
    assert "no README.md" in done.stdout and hub.asked == []


def test_the_sets_own_files_arrive_in_a_private_data_set(folder, hub, tmp_path):
    (folder / "README.md").write_text("# Rallies\n")
    done = run(folder, hub.address, tmp_path, "--yes")
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/datasets/{NAME}" in done.stdout
    assert set(hub.files) == {"prepared.json", "images/a/0.jpg", "labels/a.csv", "README.md"}
    assert hub.files["labels/a.csv"] == b"content of labels/a.csv"
    assert hub.created[0]["type"] == "dataset" and hub.created[0].get("private", hub.created[0].get("visibility")) in (True, "private")
    assert all(token == "Bearer hf_made_up_for_this_test" for path, token in hub.asked if "commit" in path or "create" in path)


@pytest.mark.parametrize("case, said", [("no token", "needs a token"), ("offline", "HF_HUB_OFFLINE"), ("refused", "the hub refused it"),
                                        ("away", "cannot be reached")])
def test_what_stands_in_the_way_is_one_line(folder, hub, tmp_path, case, said):
    hub.refuse = case == "refused"
    address = "http://127.0.0.1:9" if case == "away" else hub.address
    done = run(folder, address, tmp_path, "--yes", token="" if case == "no token" else "hf_made_up_for_this_test",
               **({"HF_HUB_OFFLINE": "1"} if case == "offline" else {}))
    lines = [line for line in done.stderr.splitlines() if line.startswith("hpml:")]
    assert done.returncode == 2 and len(lines) == 1 and said in lines[0] and "Traceback" not in done.stderr, done.stderr
    assert hub.files == {}


def test_only_a_processed_set_without_links_is_published(folder, tmp_path):
    with pytest.raises(HpmlError, match="no processed set"):
        publish.plan(tmp_path, NAME)
    with pytest.raises(HpmlError, match="'a b' is no name"):
        publish.plan(folder, "a b")
    (folder / "images/a/9.jpg").symlink_to("/etc/hostname")
    with pytest.raises(HpmlError, match="9.jpg is a link"):
        publish.plan(folder, NAME)
