"""Packing: equal bytes for equal input, resumed, whole or not there; what lies in a shard; every fault named."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from shardmaking import folder, jpeg, packed

from hpml.data import imagefolder, packing, recode, rendered
from hpml.data.recode import Recode
from hpml.data.shards import BLOCK, INDEX, parsed, read_index, verify
from hpml.data.shardstore import open_store
from hpml.data.stream import ShardDataset
from hpml.env import HpmlError


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(place.iterdir()) if not path.name.startswith(".")}


def hpml(*words: object, **settings: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", "from hpml.cli import main; main()", *map(str, words)], capture_output=True, text=True,
                          env={**os.environ, **settings})


def test_equal_input_gives_equal_bytes_whatever_the_number_of_threads(tmp_path):
    _, index = packed(tmp_path)
    files = imagefolder.load(tmp_path / "images")
    packing.pack(files, tmp_path / "two", shard_mib=0.02, threads=2)
    packing.pack(files, tmp_path / "other seed", shard_mib=0.02, seed=1)
    assert len(index.shards) > 2 and index.samples == 24 and index.classes == ("class0", "class1", "class2")
    assert contents(tmp_path / "shards") == contents(tmp_path / "two") != contents(tmp_path / "other seed")
    assert read_index(tmp_path / "two") == index and verify(tmp_path / "two") == []


def test_a_shard_holds_the_files_as_they_are_and_webdataset_reads_it(tmp_path):
    place, index = packed(tmp_path)
    files = imagefolder.load(tmp_path / "images")
    found = {}
    for shard in index.shards:
        with tarfile.open(place / shard.name) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                found[member.name] = tar.extractfile(member).read()
    for i, (image, label) in enumerate(zip(files.train_images, files.train_labels, strict=True)):
        assert found[f"{i:08d}.jpg"] == files.read(image) and found[f"{i:08d}.cls"] == str(label).encode()
    assert len(found) == 2 * index.samples

    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset([str(place / shard.name) for shard in index.shards], shardshuffle=False).decode("pil"))
    assert sorted(int(sample["__key__"]) for sample in samples) == list(range(24)) and {sample["cls"] for sample in samples} == {0, 1, 2}


def test_what_is_no_image_is_left_out_and_named(tmp_path):
    top = folder(tmp_path / "images")
    (top / "train/class0/000.jpg").write_bytes(b"")
    (top / "train/class0/001.jpg").write_bytes(b"<html>not here</html>")
    (top / "train/class1/000.jpg").write_bytes(jpeg(1)[:-300])
    (top / "train/class1/001.jpg").write_bytes(jpeg(2, kind="PNG"))  # another format is read all the same
    (top / "train/class2/000.jpg").write_bytes(jpeg(3) + b"\0" * 100)  # and so is one with a tail
    done = hpml("data", "shard", top, tmp_path / "shards")
    assert done.returncode == 0 and "21 samples in 1 shards" in done.stdout and "3 left out" in done.stdout, done.stderr
    index = read_index(tmp_path / "shards")
    assert sorted(entry["name"] for entry in index.skipped) == ["train/class0/000.jpg", "train/class0/001.jpg", "train/class1/000.jpg"]
    assert all(f"left out: {entry['name']}: {entry['reason']}" in done.stdout and entry["reason"] for entry in index.skipped)
    with tarfile.open(tmp_path / "shards" / index.shards[0].name) as tar:
        assert sum(name.endswith(".png") for name in tar.getnames()) == 1
    again = hpml("data", "shard", top, tmp_path / "shards")
    assert "1 of 1 shards are there and right" in again.stderr and read_index(tmp_path / "shards") == index

    for path in top.rglob("*.jpg"):
        path.write_bytes(b"none")
    with pytest.raises(HpmlError, match="none of the 24 images can be read"):
        packing.pack(imagefolder.load(top), tmp_path / "nothing")


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    real, count = packing._one, 0

    def stops(*args):
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(packing, "_one", stops)
    with pytest.raises(HpmlError, match=r"no space left; make room, then run it again: finished shards are kept"):
        packed(tmp_path, threads=1)
    place, files = tmp_path / "shards", imagefolder.load(tmp_path / "images")
    assert not (place / INDEX).exists() and len(list(place.glob("*.tar"))) == 2 and not list(place.glob("*.part"))
    times = {path.name: path.stat().st_mtime_ns for path in place.glob("*.tar")}
    monkeypatch.setattr(packing, "_one", real)
    index = packing.pack(files, place, shard_mib=0.02)
    assert all((place / name).stat().st_mtime_ns == at for name, at in times.items()) and verify(place) == []
    assert not (place / packing.JOURNAL).exists()

    (place / index.shards[1].name).write_bytes(b"damaged")
    assert packing.pack(files, place, shard_mib=0.02) == index and verify(place) == []
    with pytest.raises(HpmlError, match="holds shards of something else"):
        packing.pack(files, place, shard_mib=0.05)


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/self/ns/mnt").exists(), reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line(tmp_path):
    folder(tmp_path / "images", each=30)
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"mount -t tmpfs -o size=128k none {disk} && exec {sys.executable} -c 'from hpml.cli import main; main()' " \
              f"data shard {tmp_path / 'images'} {disk / 'shards'} --shard-mib 0.05 --threads 2"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 2 and "no space left; make room" in done.stderr and "Traceback" not in done.stderr


def test_a_target_that_cannot_be_written_is_one_line(tmp_path):
    folder(tmp_path / "images")
    (tmp_path / "file").write_text("")
    done = hpml("data", "shard", tmp_path / "images", tmp_path / "file" / "shards")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot write to" in done.stderr


@pytest.mark.parametrize(("words", "said"), [
    (["nowhere", "out"], "nowhere: no such folder"), ([".", "out"], "no images in it"),
    (["standin", "out", "--shard-mib", "0"], "shard-mib 0"), (["standin", "out", "--quality", "99"], "quality 99"),
    (["standin", "out", "--max-side", "3"], "max-side 3"),
    *((["standin", "out", "--shard-mib", size], f"shard-mib {size}: must be above 0") for size in ("nan", "inf", "1e-09")),
])
def test_a_mistake_is_one_line(words, said, tmp_path, monkeypatch):
    monkeypatch.setattr(rendered, "load", lambda: imagefolder.load(folder(tmp_path / "images")))
    monkeypatch.chdir(tmp_path)
    from typer.testing import CliRunner

    from hpml import cli

    failed = CliRunner().invoke(cli.app, ["data", "shard", *words])
    assert isinstance(failed.exception, HpmlError) and said in str(failed.exception) and not (tmp_path / "out").exists()


def test_each_damaged_shard_is_named(tmp_path):
    place, index = packed(tmp_path)
    names = [shard.name for shard in index.shards]
    (place / names[0]).unlink()
    (place / names[1]).write_bytes((place / names[1]).read_bytes()[:-600])
    changed = bytearray((place / names[2]).read_bytes())
    changed[700] ^= 1
    (place / names[2]).write_bytes(changed)
    (place / "extra.tar").write_bytes(b"")
    done = hpml("data", "check", place)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and len(lines) == 4
    assert lines[0] == f"{names[0]}: missing" and lines[1].startswith(f"{names[1]}: truncated: ")
    assert lines[2].startswith(f"{names[2]}: corrupt or tampered with") and lines[3] == "extra.tar: not in the index"


@pytest.mark.parametrize("change", [
    {"format": 2}, {"shards": []}, {"shards": [{"name": "a.tar"}]}, {"classes": None},
    *({"shards": [{"name": name, "part": "train", "samples": 1, "bytes": 1, "sha256": "0" * 64}]} for name in ("../a.tar", "/a.tar", "a")),
    {"shards": [{"name": "a.tar", "part": "train", "samples": 1, "bytes": 1, "sha256": "0"}]},
    {"shards": [{"name": "a.tar", "part": "train", "samples": "1", "bytes": 1, "sha256": "0" * 64}]},
])
def test_an_index_that_cannot_be_used_is_refused(change):
    whole = {"format": 1, "classes": [], "origin": {},
             "shards": [{"name": "a.tar", "part": "train", "samples": 1, "bytes": 1, "sha256": "0" * 64}]}
    assert parsed(json.dumps(whole), "here").samples == 1
    with pytest.raises(HpmlError, match=r"^here: "):
        parsed(json.dumps({**whole, **change}), "here")
    with pytest.raises(HpmlError, match="not an index of shards"):
        parsed("<html>", "here")


def test_encoding_again_makes_smaller_files_and_says_what_it_costs(tmp_path):
    folder(tmp_path / "images")
    files = imagefolder.load(tmp_path / "images")
    some = recode.readable(files, files.train_images)
    rows = recode.table(some, Recode(50))
    sizes, losses = [row["bytes"] for row in rows[1:]], [row["psnr_db"] for row in rows[1:]]
    assert [row["quality"] for row in rows] == ["as it is", 50, 75, 85, 90, 95]
    assert sizes == sorted(sizes) and losses[0] < losses[1] and sizes[0] < rows[0]["bytes"]
    done = hpml("data", "shard", tmp_path / "images", tmp_path / "small", "--quality", "60", "--max-side", "24")
    assert "PSNR dB" in done.stdout and "24 samples" in done.stdout, done.stderr
    index = read_index(tmp_path / "small")
    assert index.origin["recode"] == {"quality": 60, "max_side": 24} and "Pillow" in index.origin["encoder"]
    assert index.bytes < packing.pack(files, tmp_path / "whole").bytes
    assert recode.psnr([[0, 0]], [[0, 0]]) == float("inf") and recode.psnr([[0.0]], [[255.0]]) == 0


def test_the_test_part_gets_shards_of_its_own(tmp_path):
    folder(tmp_path / "images")
    (tmp_path / "images/val/class1").mkdir(parents=True)
    (tmp_path / "images/val/class1/a.jpg").write_bytes(jpeg(7))
    files = imagefolder.load(tmp_path / "images")
    assert files.informative and files.test_labels.tolist() == [1]
    index = packing.pack(files, tmp_path / "shards", parts=("train", "test"))
    assert [(shard.name, shard.samples) for shard in index.shards] == [("train-000000.tar", 24), ("test-000000.tar", 1)]


def test_packing_is_measured_beside_tar(tmp_path):
    from types import SimpleNamespace

    from hpml import pack
    from hpml.knobs import validate

    folder(tmp_path / "images")
    workload = SimpleNamespace(data=lambda knobs: imagefolder.load(tmp_path / "images"))
    made = {}
    for packer in ("tar", "shards"):
        job = {"knobs": validate("pack", {"packer": packer}), "protocol": {"warmup": 1, "min_iters": 2, "min_seconds": 0.0}}
        made[packer] = pack.measure(job, workload)
        assert len(made[packer]["samples"]["values"]) == 2 and made[packer]["samples"]["items"] == 24
    assert made["shards"]["actual"]["shards"] == 1 and made["tar"]["actual"]["packer"].startswith("tar")
    assert made["tar"]["io"]["files_mib"] == made["shards"]["io"]["files_mib"] <= made["tar"]["io"]["packed_mib"]


# ---- shards whose checksum is right and whose content is not: an index from elsewhere may belong to a crafted one


def crafted(place: Path, harm) -> str:
    """Change the first shard's bytes by `harm` and write its new checksum into the index; returns its name."""
    facts = json.loads((place / INDEX).read_text())
    entry = facts["shards"][0]
    content = harm(bytearray((place / entry["name"]).read_bytes()))
    (place / entry["name"]).write_bytes(content)
    entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (place / INDEX).write_text(json.dumps(facts))
    return entry["name"]


def field(tar: bytearray, start: int, value: bytes) -> bytearray:
    tar[start : start + len(value)] = value
    return tar


CRAFTED = [
    (lambda tar: field(tar, 2 * BLOCK + 124, b"-0000001000"), "'-0000001000' is not a number"),
    (lambda tar: field(tar, 124, b"-0000001000"), "'-0000001000' is not a number"),
    (lambda tar: field(tar, 2 * BLOCK + 124, b"0_000000001"), "is not a number"),
    (lambda tar: field(tar, 2 * BLOCK + 124, b"77777777777"), "is longer than the file"),
    (lambda tar: field(tar, 0, b"-0000001"), "is not a number"),
    (lambda tar: field(tar, BLOCK, b"7"), r"sample \d{8} has class 7, the index has classes 0 to 2"),
    (lambda tar: field(tar, BLOCK, b"-"), "'-' is not a number"),
    (lambda tar: tar[: -2 * BLOCK] + tar, r"more samples than the \d of the index"),
    (lambda tar: field(tar, 0, bytes(1)), r"0 samples in it, the index says \d"),
]


@pytest.mark.parametrize(("harm", "said"), CRAFTED)
def test_a_crafted_shard_is_found_by_the_check_and_by_the_reader(tmp_path, harm, said, monkeypatch):
    monkeypatch.setenv("HPML_CACHE", str(tmp_path / "cache"))
    place, _ = packed(tmp_path)
    name = crafted(place, harm)
    wrong = verify(place)
    assert len(wrong) == 1 and re.match(f"{name}: .*{said}", wrong[0])
    samples = ShardDataset(open_store(place), image=32)
    with pytest.raises(HpmlError, match=f"{name}: .*{said}"):
        samples[0]


@pytest.mark.parametrize(("words", "said"), [
    (["shard", "standin", "out", "--seed", "-1"], "--seed"), (["shard", "standin", "out", "--threads", "-1"], "--threads"),
    (["shuttle-render", "out", "--seed", "-1"], "--seed"), (["shuttle-label", "a.mp4", "out", "--start", "nan"], "--start nan: give"),
    (["shuttle-label", "a.mp4", "out", "--start", "-1"], "--start -1: give"),
    (["shuttle-label", "a.mp4", "out", "--start", "2", "--stop", "nan"], "--stop nan: give"),
    (["shuttle-label", "a.mp4", "out", "--start", "2", "--stop", "1"], "--stop 1: give"),
    (["shuttle-prepare", "labels.csv", "out", "--frames", "nosuch"], "--frames nosuch: no such folder"),
])
def test_a_value_that_cannot_be_used_is_said_and_ends_with_code_2(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("Frame,Visibility,X,Y\n0,1,3,4\n")
    done = hpml("data", *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
