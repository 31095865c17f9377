"""Packing measured: the rate at which image files become shards, beside plain `tar` on the same files."""

import dataclasses
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import ModuleType

from hpml import measure as m
from hpml.data import packing, shardcase
from hpml.data.jpegfiles import FileSet
from hpml.env import HpmlError, Unavailable, cores


def measure(job: dict, workload: ModuleType) -> dict:
    """A packing case in a fresh process: the training images lie in a folder as files, and one call packs all of them.

    knobs["packer"]: "tar", one archive by GNU tar; "shards", with header check, checksums and index, by `threads` threads.
    """
    from hpml.data import summary

    knobs, protocol = job["knobs"], job["protocol"]
    image_set = workload.data(knobs)
    if not isinstance(image_set, FileSet):
        raise Unavailable(f"shards are packed from image files, and {image_set.title} comes as arrays")
    with tempfile.TemporaryDirectory(prefix="hpml-pack-") as scratch:
        files, target = unpacked(image_set, Path(scratch, "files")), Path(scratch, "packed")
        call, actual = (by_tar if knobs["packer"] == "tar" else by_shards)(files, target, knobs)
        mark = m.cpu_mark()
        taken = m.steady(lambda _: (shutil.rmtree(target, ignore_errors=True), call()), clock=time.perf_counter,
                         **{name: protocol[name] for name in ("warmup", "min_iters", "min_seconds")})
        packed = sum(path.stat().st_size for path in target.glob("*.tar"))
    mean = sum(taken["values"]) / len(taken["values"])
    return {
        "samples": {"unit": "s", "items": len(files.train_images), "values": taken["values"]}, "center": "mean",
        "memory": {"peak_rss_mib": m.peak_rss_mib()},
        "io": {"files_mib": int(files.train_images["size"].sum()) / 2**20, "packed_mib": packed / 2**20, "mib_s": packed / 2**20 / mean},
        "actual": {"device": "cpu", "data": summary(image_set), **actual},
        "disturbance": m.disturbance(mark),
    }


def unpacked(files: FileSet, folder: Path) -> FileSet:
    """The training images as files of their own, also where they lie in an archive: both packers get the same."""
    places = files.train_images.copy()
    for place in places:
        path = folder / place["name"].decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files.read(place))
    places["archive"], places["offset"] = -1, 0
    return dataclasses.replace(files, root=str(folder), archives=(), train_images=places)


def by_tar(files: FileSet, target: Path, knobs: dict) -> tuple:
    """(a call that packs all files of a folder into one archive, what it is). Raises Unavailable without tar."""
    program = shutil.which("tar")
    if not program:
        raise Unavailable("tar is not installed")
    names = Path(files.root).with_name("names")
    names.write_bytes(b"\0".join(files.train_images["name"]))

    def call() -> None:
        target.mkdir()
        done = subprocess.run([program, "--create", f"--file={target / 'all.tar'}", f"--directory={files.root}", "--null",
                               f"--files-from={names}"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise HpmlError(f"tar: {done.stderr.strip().splitlines()[-1]}")

    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return call, {"packer": version[0] if version else "tar", "threads": 1}


def by_shards(files: FileSet, target: Path, knobs: dict) -> tuple:
    """(a call that packs the same files into shards with their index, what it is)."""
    mib, threads = shardcase.size_mib(files), knobs["threads"] or cores()
    found = {"packer": "hpml data shard", "shard_mib": mib, "threads": threads}

    def call() -> None:
        index = packing.pack(files, target, shard_mib=mib, threads=threads)
        found.update(shards=len(index.shards), skipped=len(index.skipped))

    return call, found
