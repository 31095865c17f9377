"""Downloads against a real server on loopback: resumed, checked, and complete or not there."""

import errno
import hashlib
import io
import os
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hpml.data import fetch as module
from hpml.data.fetch import check, fetch, manifest, status
from hpml.env import HpmlError

BODY = bytes(range(256)) * 4096  # 1 MiB


class Handler(BaseHTTPRequestHandler):
    """Serves BODY; `server.plan` says how the next requests go wrong, `server.ranges` what was asked."""

    def do_GET(self):
        mode = self.server.plan.pop(0) if self.server.plan else self.server.otherwise
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        body = self.server.body
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and mode != "no ranges" else 0
        if mode == "missing":
            return self.send_error(404)
        if mode == "drop":
            return self.connection.shutdown(socket.SHUT_RDWR)
        if mode == "unsatisfiable":
            return self.send_error(416)
        if mode == "portal":
            body, start = b"<html>log in first</html>", 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + (mode == 'shifted')}-{len(body) - 1}/{len(body)}")
        if mode != "endless":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if mode == "endless":
            self.wfile.write(body + b"and more")
        else:
            self.wfile.write(body[start : start + 300_000] if mode == "dies" else body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE_S", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.plan, served.otherwise, served.ranges, served.body = [], "whole", [], BODY
        thread = threading.Thread(target=served.serve_forever, args=(0.02,))
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture
def entries(server):
    url = f"http://127.0.0.1:{server.server_address[1]}/toy.bin"
    return {"toy": {"name": "toy", "title": "Toy", "licence": "none", "urls": [url], "file": "toy.bin",
                    "size_bytes": len(BODY), "md5": hashlib.md5(BODY).hexdigest(), "unpack": None,
                    "how": "hpml data fetch toy"}}


def quiet(text):
    pass


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_download_is_complete_and_not_repeated(server, entries, tmp_path):
    lines = []
    path = fetch("toy", into=tmp_path / "new", entries=entries, progress=lines.append)
    assert path.read_bytes() == BODY and names(tmp_path / "new") == ["toy.bin"]
    assert "checksum right" in lines[-1]
    fetch("toy", into=tmp_path / "new", entries=entries, progress=quiet)
    assert server.ranges == [None]


def test_an_interrupted_download_goes_on_where_it_stopped(server, entries, tmp_path):
    (tmp_path / "toy.bin.part").write_bytes(BODY[:1000])
    assert fetch("toy", into=tmp_path, entries=entries, progress=quiet).read_bytes() == BODY
    assert server.ranges == ["bytes=1000-"]


def test_a_server_that_dies_halfway_is_asked_for_the_rest(server, entries, tmp_path):
    server.plan = ["dies", "drop", "dies"]
    assert fetch("toy", into=tmp_path, entries=entries, progress=quiet).read_bytes() == BODY
    assert server.ranges == [None, "bytes=300000-", "bytes=300000-", "bytes=600000-"]


def test_a_server_that_always_dies_leaves_only_the_part(server, entries, tmp_path):
    server.otherwise = "drop"
    server.plan = ["dies"]
    with pytest.raises(HpmlError, match=r"toy: 127.0.0.1:\d+ stopped at 0.3 MiB of 1.0 MiB; run it again"):
        fetch("toy", into=tmp_path, entries=entries, progress=quiet)
    assert names(tmp_path) == ["toy.bin.part"]
    server.otherwise = "whole"
    assert fetch("toy", into=tmp_path, entries=entries, progress=quiet).read_bytes() == BODY


@pytest.mark.parametrize("mode", ["no ranges", "unsatisfiable"])
def test_a_server_without_ranges_sends_everything_again(server, entries, tmp_path, mode):
    (tmp_path / "toy.bin.part").write_bytes(BODY[:1000])
    server.plan = [mode]
    assert fetch("toy", into=tmp_path, entries=entries, progress=quiet).read_bytes() == BODY


def test_a_wrong_part_is_found_by_its_checksum_and_begun_anew(server, entries, tmp_path):
    (tmp_path / "toy.bin.part").write_bytes(b"x" * 1000)
    assert fetch("toy", into=tmp_path, entries=entries, progress=quiet).read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", None]


def test_a_wrong_checksum_is_not_kept(server, entries, tmp_path):
    server.body = BODY[:-1] + b"!"
    with pytest.raises(HpmlError, match="not the published file.*md5") as error:
        fetch("toy", into=tmp_path, entries=entries, progress=quiet)
    assert "\n" not in str(error.value) and names(tmp_path) == [] and len(server.ranges) == 1


@pytest.mark.parametrize(("mode", "words"), [("missing", "answered 404 Not Found"), ("endless", "something else than"),
                                             ("portal", "something else than the 1,048,576 bytes")])
def test_what_is_not_the_file_is_one_line_with_what_to_do(server, entries, tmp_path, mode, words):
    server.otherwise = mode
    with pytest.raises(HpmlError, match=words) as error:
        fetch("toy", into=tmp_path, entries=entries, progress=quiet)
    assert "download it yourself from http://" in str(error.value) and "\n" not in str(error.value)
    assert names(tmp_path) == []


def test_a_range_from_another_place_is_refused(server, entries, tmp_path):
    (tmp_path / "toy.bin.part").write_bytes(BODY[:1000])
    server.plan = ["shifted"]
    with pytest.raises(HpmlError, match="something else"):
        fetch("toy", into=tmp_path, entries=entries, progress=quiet)


def test_the_second_address_serves_when_the_first_does_not(server, entries, tmp_path):
    entries["toy"]["urls"] = [entries["toy"]["urls"][0] + "?first", *entries["toy"]["urls"]]
    server.plan = ["missing"]
    assert fetch("toy", into=tmp_path, entries=entries, progress=quiet).read_bytes() == BODY


def test_no_network_is_one_line_with_what_to_do(entries, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    entries["toy"]["urls"] = [f"http://127.0.0.1:{port}/toy.bin"]
    with pytest.raises(HpmlError) as error:
        fetch("toy", into=tmp_path, entries=entries, progress=quiet)
    assert str(error.value) == (f"toy: cannot reach 127.0.0.1:{port}: Connection refused; "
                                f"download it yourself from http://127.0.0.1:{port}/toy.bin and put it in {tmp_path}")
    assert names(tmp_path) == []


def test_a_damaged_file_is_replaced(server, entries, tmp_path):
    (tmp_path / "toy.bin").write_bytes(BODY[:-5])
    assert fetch("toy", into=tmp_path, entries=entries, progress=quiet).read_bytes() == BODY


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_fills_is_one_line(server, entries, tmp_path):
    (tmp_path / "toy.bin.part").symlink_to("/dev/full")
    with pytest.raises(HpmlError, match=r"toy: no space left in .* \(1.0 MiB are needed\); make room"):
        fetch("toy", into=tmp_path, entries=entries, progress=quiet)
    assert "toy.bin" not in names(tmp_path)


def test_too_small_a_disk_is_said_before_the_download(server, entries, tmp_path):
    entries["toy"]["size_bytes"] = 1 << 60
    with pytest.raises(HpmlError, match="MiB free, .* are needed"):
        fetch("toy", into=tmp_path, entries=entries, progress=quiet)
    assert server.ranges == [] and names(tmp_path) == []


def test_a_folder_that_cannot_be_is_one_line(entries, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HpmlError, match=os.strerror(errno.ENOTDIR)):
        fetch("toy", into=tmp_path / "file" / "below", entries=entries, progress=quiet)


def test_two_fetches_of_one_file_do_not_mix(entries, tmp_path):
    import fcntl

    with (tmp_path / "toy.bin.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(HpmlError, match="another process"):
            fetch("toy", into=tmp_path, entries=entries, progress=quiet)
    assert names(tmp_path) == ["toy.bin.part"]


def packed(member):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        info = tarfile.TarInfo(member)
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    return file.getvalue()


def unpackable(server, entries, body):
    server.body = body
    entries["toy"] |= {"size_bytes": len(body), "md5": hashlib.md5(body).hexdigest(), "unpack": "toy"}


def test_an_archive_is_unpacked_whole(server, entries, tmp_path):
    unpackable(server, entries, packed("toy/a.txt"))
    for _ in range(2):
        folder = fetch("toy", into=tmp_path, entries=entries, progress=quiet)
        assert (folder / "a.txt").read_text() == "hello"
    assert len(server.ranges) == 1 and names(tmp_path) == ["toy", "toy.bin"]


@pytest.mark.parametrize("member", ["../escaped.txt", "other/a.txt"])
def test_an_archive_that_is_not_what_it_should_be_is_refused(server, entries, tmp_path, member):
    unpackable(server, entries, packed(member))
    with pytest.raises(HpmlError, match="cannot be unpacked"):
        fetch("toy", into=tmp_path / "in", entries=entries, progress=quiet)
    assert names(tmp_path / "in") == ["toy.bin"] and names(tmp_path) == ["in"]


def test_check_and_status_of_a_fetched_set(server, entries, tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_DATA", str(tmp_path))
    assert check("toy", entries=entries) == ["toy is not on this machine: hpml data fetch toy"]
    assert status(entries=entries)[0]["found"] is None
    path = fetch("toy", entries=entries, progress=quiet)
    assert path == tmp_path.resolve() / "toy" / "toy.bin"
    assert check("toy", entries=entries) == [] and status(entries=entries)[0]["found"] == str(path)
    path.write_bytes(BODY[:-1] + b"!")
    assert len(check("toy", entries=entries)) == 1 and "md5" in check("toy", entries=entries)[0]


def test_the_real_manifest_is_complete_and_agrees_with_the_readers(tmp_path, monkeypatch):
    from hpml.data import cifar, pets

    monkeypatch.setenv("HPML_DATA", str(tmp_path))
    entries = manifest()
    assert {"cifar10", "cifar100", "digits", "standin", "pets"} <= set(entries)
    assert {file["file"]: file["md5"] for file in entries["pets"]["files"]} == pets.ARCHIVES
    for name, files in cifar.SETS.items():
        assert (entries[name]["file"], entries[name]["md5"]) == (files.archive, files.archive_md5)
        assert check(name) == [f"{name} is not on this machine: hpml data fetch {name}"]
    rows = {row["name"]: row for row in status()}
    assert rows["cifar10"]["found"] is None and all(row["licence"] and row["how"] for row in rows.values())


def test_a_set_of_several_files_is_fetched_whole_and_not_twice(server, entries, tmp_path):
    toy = entries["toy"]
    facts = {key: toy[key] for key in ("urls", "size_bytes", "md5")}
    shared = {key: toy[key] for key in ("name", "title", "licence", "how")}
    two = {"toy": {**shared, "files": [{"file": "a.bin", **facts}, {"file": "b.bin", **facts}]}}
    assert fetch("toy", into=tmp_path / "new", entries=two, progress=quiet) == tmp_path / "new"
    assert names(tmp_path / "new") == ["a.bin", "b.bin"] and len(server.ranges) == 2
    (tmp_path / "new" / "b.bin").unlink()
    fetch("toy", into=tmp_path / "new", entries=two, progress=quiet)
    assert names(tmp_path / "new") == ["a.bin", "b.bin"] and len(server.ranges) == 3


def test_what_needs_no_fetching_and_what_is_unknown_say_so(tmp_path):
    with pytest.raises(HpmlError, match="comes with scikit-learn"):
        fetch("digits", into=tmp_path)
    with pytest.raises(HpmlError, match="'cifra10' is unknown; known: cifar10, cifar100, digits, "):
        fetch("cifra10", into=tmp_path)


def test_a_broken_manifest_is_one_line(tmp_path):
    (tmp_path / "manifest.json").write_text('{"datasets": [')
    with pytest.raises(HpmlError, match="cannot be read as the manifest"):
        manifest(tmp_path / "manifest.json")
