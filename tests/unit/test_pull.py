"""Shards pulled from a real nginx: several connections, resumed, checked; every fault is named and nothing is lost."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from hpml import nginx
from hpml.data import aria2
from hpml.data import pull as module
from hpml.data.pull import pull
from hpml.data.shards import LOCK
from hpml.env import HpmlError, Unavailable

COUNT, SIZE = 4, 400_000


@pytest.fixture
def source(tmp_path, need, monkeypatch):
    """A folder of COUNT shards with their index, and the tools that a pull needs."""
    need("nginx", "/usr/sbin/nginx")
    need("aria2c")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE_S", 0.05)
    folder = tmp_path / "source"
    folder.mkdir()
    drawn = random.Random(0)
    for number in range(COUNT):
        (folder / f"train-{number}.tar").write_bytes(drawn.randbytes(SIZE))
    index(folder)
    return folder


def index(folder, **changes):
    """Write the index of what lies in the folder; `changes` to its first entry."""
    shards = [{"name": path.name, "part": "train", "samples": 1, "bytes": path.stat().st_size,
               "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
              for path in sorted(folder.glob("*.tar"))]
    shards[0] |= changes
    (folder / "index.json").write_text(json.dumps({"format": 1, "shards": shards, "classes": [], "origin": {}}))


def same(source, dst, *, but: tuple[str, ...] = ()) -> bool:
    """Whether the shards of dst are those of source, without those in `but`, and nothing unfinished lies beside them."""
    wanted = {path.name: path.read_bytes() for path in source.iterdir() if path.name not in but}
    return {path.name: path.read_bytes() for path in dst.iterdir() if not path.name.startswith(".")} == wanted


def test_several_shards_over_several_connections_at_once(source, tmp_path):
    lines, log = [], tmp_path / "log"
    with nginx.serve(source, limit_rate=200_000, log=log) as url:
        done = pull(f"{url}/index.json", tmp_path / "dst", connections=4, say=lines.append)
        assert (done.shards, done.bytes, done.failed) == (COUNT, COUNT * SIZE, {})
        assert same(source, tmp_path / "dst") and not (tmp_path / "dst" / ".partial").exists()
        connections = {line.split()[0] for line in log.read_text().splitlines() if ".tar" in line}
        assert len(connections) == 4
        assert "100 %" in lines[-1] and f"{COUNT} shards pulled and verified" in lines[-1]
        again = pull(url, tmp_path / "dst", say=lines.append)
        assert again.bytes == 0 and f"{COUNT} of {COUNT} shards are here already, with the right checksum" in lines


def test_one_large_shard_comes_over_several_connections(source, tmp_path):
    for path in sorted(source.glob("*.tar"))[1:]:
        path.unlink()
    (source / "train-0.tar").write_bytes(random.Random(1).randbytes(4 * 2**20))
    index(source)
    with nginx.serve(source, limit_rate=2**20, log=tmp_path / "log") as url:
        assert not pull(url, tmp_path / "dst", connections=2, say=str).failed
    asked = [line for line in (tmp_path / "log").read_text().splitlines() if "/train-0.tar" in line]
    assert len({line.split()[0] for line in asked}) == 2 and same(source, tmp_path / "dst")


def test_a_pull_killed_on_the_way_goes_on_where_it_stopped(source, tmp_path):
    log, dst = tmp_path / "log", tmp_path / "dst"
    with nginx.serve(source, limit_rate=100_000, log=log) as url:
        words = [sys.executable, "-c", "from hpml.cli import main; main()", "data", "pull", url, str(dst), "--connections", "2"]
        first = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while len(list(dst.glob(".partial/*.aria2"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1.2)  # aria2 notes once a second what is there
        first.send_signal(signal.SIGKILL)
        first.wait()
        while (dst / ".partial").exists() and _aria2_runs(dst) and time.monotonic() < until:
            time.sleep(0.1)
        assert not _aria2_runs(dst), "aria2 ends with the process that it works for"
    with nginx.serve(source, log=log) as url:
        second = subprocess.run([*words[:5], url, str(dst)], capture_output=True, text=True, check=False)
    assert second.returncode == 0 and f"{COUNT} shards, verified" in second.stdout, second.stderr
    asked = log.read_text().splitlines()
    assert any("206 bytes=" in line and "bytes=0-" not in line for line in asked), "it asks for the rest"
    assert same(source, dst)


def _aria2_runs(dst) -> bool:
    import psutil

    return any(f"--dir={dst / '.partial'}" in (p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))


def test_a_rate_limit_holds(source, tmp_path):
    with nginx.serve(source) as url:
        assert pull(url, tmp_path / "dst", limit_rate="1M", say=str).seconds > 1.0  # 1.6 MB


@pytest.mark.parametrize(("more", "said"), [
    ("location = /train-1.tar { return 404; }", "Resource not found"), ("location = /train-1.tar { return 416; }", "status=416"),
    ("location = /train-1.tar { return 200 short; }", "truncated: 5 of 400,000 bytes, twice"),
    ("location = /train-1.tar { return 444; }", "Got EOF")])  # 444: the connection is closed without an answer
def test_an_answer_that_cannot_be_used_is_named_and_the_rest_comes(source, tmp_path, more, said, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 2)
    monkeypatch.setattr(aria2, "TRIES", 2)
    with nginx.serve(source, more=more) as url:
        done = pull(url, tmp_path / "dst", say=str)
    assert list(done.failed) == ["train-1.tar"] and said in done.failed["train-1.tar"]
    assert done.shards == COUNT - 1 and same(source, tmp_path / "dst", but=("train-1.tar",))


def test_a_tampered_shard_is_removed_and_pulled_again_once(source, tmp_path, capsys):
    path, lines = source / "train-2.tar", []
    good = path.read_bytes()
    bad = good[:1000] + bytes([good[1000] ^ 1]) + good[1001:]

    def mended(line: str) -> None:
        lines.append(line)
        if "pulled again" in line:
            path.write_bytes(good)

    with nginx.serve(source) as url:
        path.write_bytes(bad)
        assert not pull(url, tmp_path / "dst", say=mended).failed and same(source, tmp_path / "dst")
        assert any(line.startswith("train-2.tar: corrupt or tampered with") and "removed, pulled again" in line for line in lines)
        path.write_bytes(bad)
        done = pull(url, tmp_path / "other", say=lines.append)
        assert list(done.failed) == ["train-2.tar"] and "twice" in done.failed["train-2.tar"]
        assert same(source, tmp_path / "other", but=("train-2.tar",)) and not (tmp_path / "other" / ".partial" / "train-2.tar").exists()


def test_what_was_damaged_afterwards_is_pulled_again(source, tmp_path):
    with nginx.serve(source) as url:
        pull(url, tmp_path / "dst", say=str)
        (tmp_path / "dst" / "train-0.tar").write_bytes(b"damaged")
        assert pull(url, tmp_path / "dst", say=str).bytes == SIZE and same(source, tmp_path / "dst")


def test_a_server_that_dies_half_way_is_named_and_the_next_pull_goes_on(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 2)
    monkeypatch.setattr(aria2, "TRIES", 2)
    dst, lines, found = tmp_path / "dst", [], {}
    with nginx.serve(source, limit_rate=100_000) as url:
        port = int(url.rpartition(":")[2])
        thread = threading.Thread(target=lambda: found.update(done=pull(url, dst, say=lines.append)))
        thread.start()
        until = time.monotonic() + 120
        while sum(path.stat().st_size for path in dst.glob(".partial/*.tar")) < 200_000 and time.monotonic() < until:
            time.sleep(0.05)
    thread.join()
    assert len(found["done"].failed) == COUNT and "Connection refused" in found["done"].failed["train-0.tar"]
    assert any("pulled again" in line for line in lines), "asked again before it is given up"
    with nginx.serve(source, port=port) as url:
        done = pull(url, dst, say=lines.append)
    assert not done.failed and 0 < done.bytes < COUNT * SIZE and same(source, dst)


def test_a_full_disk(source, tmp_path, monkeypatch):
    with nginx.serve(source) as url:
        with monkeypatch.context() as patch, pytest.raises(HpmlError, match=r"No space left on device: 1.5 MiB are to come and 0.0 MiB"):
            patch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
            pull(url, tmp_path / "dst", say=str)
        if os.geteuid():
            pytest.skip("a disk that fills on the way needs root (a small tmpfs)")
        (small := tmp_path / "small").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], check=True)
        try:
            monkeypatch.setattr(module, "_check_room", lambda *_: None)
            done = pull(url, small, say=str)
            assert done.failed and all("No space left on device" in reason for reason in done.failed.values())
        finally:
            subprocess.run(["umount", str(small)], check=True)


def entry(**changes) -> str:
    shards = [{"name": "a.tar", "part": "train", "samples": 1, "bytes": 5, "sha256": "0" * 64, **changes}]
    return json.dumps({"format": 1, "shards": shards, "classes": [], "origin": {}})


@pytest.mark.parametrize(("text", "said"), [
    (None, "404"), ("{broken", "not an index of shards"), ("[]", "not an index of shards"), ('{"format": 7}', "this version reads"),
    *((entry(name=name), "not an index of shards")
      for name in ("../a.tar", "/etc/a.tar", "a/b.tar", ".hidden.tar", "a.tar\n out=/etc/passwd", "index.json", "a.tar.aria2", 7)),
    (entry(sha256="no"), "'a.tar' is not valid"), (entry(bytes=-1), "'a.tar' is not valid"),
])
def test_an_index_that_cannot_be_used(tmp_path, need, monkeypatch, text, said):
    need("nginx", "/usr/sbin/nginx")
    need("aria2c")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (source := tmp_path / "source").mkdir()
    if text is not None:
        (source / "index.json").write_text(text)
    with nginx.serve(source) as url, pytest.raises(HpmlError, match=said):
        pull(url, tmp_path / "dst", say=str)
    assert not list(tmp_path.glob("dst/*.tar"))


@pytest.mark.parametrize(("url", "options", "said"), [
    ("ftp://host/folder", {}, "address of a folder"), ("http://host/a?key=1", {}, "address of a folder"),
    ("http://127.0.0.1:1/x", {}, "refused"), ("http://host/x", {"limit_rate": "fast"}, "500K"),
    ("http://host/x", {"connections": 0}, "connections 0")])
def test_values_that_cannot_be_used(tmp_path, need, monkeypatch, url, options, said):
    need("aria2c")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(HpmlError, match=said):
        pull(url, tmp_path / "dst", **options)


def test_without_aria2_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt install aria2"):
        pull("http://127.0.0.1:1/x", tmp_path / "dst")
    with pytest.raises(Unavailable, match="nginx-light"), contextlib.ExitStack() as stack:
        monkeypatch.setattr(nginx.shutil, "which", lambda *_, **__: None)
        stack.enter_context(nginx.serve(tmp_path))


# ---- what is in the folder already


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


@pytest.mark.parametrize("indexed", [True, False])
def test_another_set_of_shards_is_not_touched(source, tmp_path, indexed):
    other = tmp_path / "other"
    other.mkdir()
    (other / "train-0.tar").write_bytes(b"of another set")
    if indexed:
        index(other)
    before = contents(other)
    with nginx.serve(source) as url, pytest.raises(HpmlError, match="other: holds other shards than http.*: name another folder"):
        pull(url, other, say=str)
    assert contents(other) == before and not (other / ".partial").exists()


def test_the_index_comes_after_the_check_of_room_and_the_same_set_goes_on(source, tmp_path, monkeypatch):
    dst = tmp_path / "dst"
    dst.mkdir()
    shutil.copy(source / "train-0.tar", dst)
    with nginx.serve(source) as url:
        with monkeypatch.context() as patch, pytest.raises(HpmlError, match="No space left"):
            patch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
            pull(url, dst, say=str)
        assert not (dst / "index.json").exists()
        assert pull(url, dst, say=str).bytes == (COUNT - 1) * SIZE and same(source, dst)
        (source / "index.json").write_text(json.dumps(json.loads((source / "index.json").read_text()), indent=3))
        assert not pull(url, dst, say=str).failed and same(source, dst), "another spelling of the same set"


@pytest.mark.parametrize("name", ["train-0.tar", "index.json", ".partial/sub", ".partial/aria2.log"])
def test_a_folder_in_the_place_of_a_file_is_named(source, tmp_path, name):
    (tmp_path / "dst" / name).mkdir(parents=True)
    with nginx.serve(source) as url, pytest.raises(HpmlError, match=f"dst/{name} is a folder"):
        pull(url, tmp_path / "dst", say=str)


def test_a_second_pull_into_the_same_folder_is_refused(source, tmp_path):
    dst = tmp_path / "dst"
    with nginx.serve(source, limit_rate=100_000) as url:
        words = [sys.executable, "-c", "from hpml.cli import main; main()", "data", "pull", url, str(dst), "--connections", "1"]
        first = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not list(dst.glob(".partial/*.tar")) and time.monotonic() < until:
            time.sleep(0.05)
        second = subprocess.run(words, capture_output=True, text=True, check=False)
        assert second.returncode == 2 and second.stderr.count("\n") == 1
        assert f"{dst}: another process is pulling or packing into this folder" in second.stderr
        assert first.wait() == 0 and same(source, dst)
