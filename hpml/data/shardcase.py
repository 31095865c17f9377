"""Shards as a knob: a case's images packed once in the cache, and read from there, over loopback HTTP, or by WebDataset itself."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
import weakref
from pathlib import Path

from hpml.data import localhttp, packing
from hpml.data.images import say
from hpml.data.jpegfiles import FileSet
from hpml.data.shards import FORMAT, INDEX
from hpml.data.shardstore import open_store
from hpml.data.stream import ShardDataset
from hpml.env import Unavailable, cache_dir, missing

STORAGES = ("shards", "shards_http", "webdataset")
LEAST_MIB, PARTS = 0.25, 16  # shards as small as a small set needs, so that it too has several


def dataset(files: FileSet, *, image: int, storage: str):
    """The training images of a FileSet as shards. Raises Unavailable for a set of arrays, and where WebDataset is not installed.

    shards: from a folder. shards_http: from a web server on this machine, which the data set starts and takes along when it goes;
    each epoch is transferred anew, because only some of the shards are kept. webdataset: the same files by its own pipeline.
    """
    if not isinstance(files, FileSet):
        raise Unavailable(f"storage={storage}: shards are packed from image files, and {files.title} comes as arrays")
    if storage == "webdataset" and (reason := missing("webdataset")):
        raise Unavailable(reason)
    folder = packed(files)
    if storage == "webdataset":
        from hpml.data.bare import Bare

        return Bare(folder, image=image)
    if storage == "shards":
        return ShardDataset(open_store(folder), image=image)
    with contextlib.ExitStack() as stack:
        url, server = stack.enter_context(localhttp.serve(folder))
        store = open_store(url, cache=Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hpml-shards-"))))
        samples = ShardDataset(store, image=image, keep=max(1, len(store.index.shards) // 4))
        samples.actual["server"] = server
        weakref.finalize(samples, stack.pop_all().close)
    return samples


def packed(files: FileSet) -> Path:
    """The folder with the training images of `files` as shards, below the cache folder; packed on first use."""
    mib = size_mib(files)
    words = f"{FORMAT} {mib} {files.checksum}".encode() + files.train_images.tobytes() + files.train_labels.tobytes()
    folder = cache_dir() / f"shards-{hashlib.sha256(words).hexdigest()[:12]}"
    if not (folder / INDEX).exists():
        began = time.perf_counter()
        packing.pack(files, folder, shard_mib=mib)
        say(f"packing {len(files.train_images):,} images into shards once: {time.perf_counter() - began:.1f} s")
    return folder


def size_mib(files: FileSet) -> float:
    """The size of the shards of a case: the usual one, or PARTS of them where that would be fewer."""
    return min(float(packing.SHARD_MIB), max(LEAST_MIB, int(files.train_images["size"].sum()) / 2**20 / PARTS))
