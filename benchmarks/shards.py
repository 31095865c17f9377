"""What do shards cost and give? Packing beside tar; the loader from shards beside the cores' decoding, WebDataset and loopback HTTP.

    [HPML_DATA=FOLDER] python benchmarks/shards.py [--blocks 9] [--samples 400] [--workers N]

Alternating blocks in one process, medians of paired ratios with their range. On ImageNet's files where they lie below HPML_DATA, else on
the rendered stand-in. Wanted: packing at least 0.8 of tar's rate; the loader at least 0.95 of the decode limit and at least WebDataset's
rate; over loopback HTTP at least 0.9 of local. A block of the loader is an epoch: with few blocks its workers' start counts. LitData
(`pip install litdata`) stands beside where it is installed: the same JPEGs in its own chunks, its own loader.
"""

import argparse
import dataclasses
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from hpml import env, pack, workloads
from hpml.data import jpegfiles, shardcase
from hpml.data.loader import endless, loader
from hpml.knobs import validate
from hpml.measure import set_threads

IMAGE, BATCH = 224, 16


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def alternating(calls: dict, blocks: int) -> dict[str, list[float]]:
    """Seconds of each call by block, forwards and backwards in turn; a first block warms up and does not count."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for block in range(blocks + 1):
        for name in list(calls) if block % 2 else list(calls)[::-1]:
            took[name].append(seconds(calls[name]))
    return {name: values[1:] for name, values in took.items()}


def said(what: str, over: list[float], under: list[float], wanted: float) -> None:
    """The paired ratio of two rates: `under`'s seconds over `over`'s."""
    ratios = [b / a for a, b in zip(over, under, strict=True)]
    print(f"  {what}: {statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f}); wanted: at least {wanted}")


def packing(files, blocks: int, threads: int) -> None:
    with tempfile.TemporaryDirectory(prefix="hpml-bench-") as scratch:
        plain, target = pack.unpacked(files, Path(scratch, "files")), Path(scratch, "packed")
        calls = {}
        for name, made in (("tar", pack.by_tar), ("shards", pack.by_shards)):
            call, actual = made(plain, target, {"threads": threads})
            calls[name] = partial(lambda call: (shutil.rmtree(target, ignore_errors=True), call()), call)
        took = alternating(calls, blocks)
    mib = int(files.train_images["size"].sum()) / 2**20
    rates = ", ".join(f"{name} {mib / statistics.median(values):,.0f} MiB/s" for name, values in took.items())
    print(f"packing {len(files.train_images):,} files, {mib:,.0f} MiB, {actual['threads']} threads: {rates}")
    said("shards / tar", took["shards"], took["tar"], 0.8)


def decode(files, indices: list[int]) -> None:
    """What no loader can do without: read, decode, crop and normalise each sample, no batches made of them."""
    samples = jpegfiles.FileDataset(files, train=True, image=IMAGE)
    for index in indices:
        samples[index]


def item(files, index: int) -> dict:
    """What LitData writes of one image: its file as it is."""
    place = files.train_images[index]
    return {"image": jpegfiles.read_place(files.root, files.archives, place), "class": int(files.train_labels[index])}


def sample(change, found: dict) -> tuple:
    return change(jpegfiles.decoded(found["image"])), found["class"]


def litdata_batches(files, folder: Path, workers: int):
    """Batches without end by LitData's StreamingDataset and StreamingDataLoader, from chunks that are written to `folder` first."""
    os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"  # older versions ask the package index at import
    from litdata import StreamingDataLoader, StreamingDataset, optimize

    optimize(partial(item, files), list(range(len(files.train_images))), str(folder), num_workers=1, verbose=False,
             chunk_bytes=round(shardcase.size_mib(files) * 2**20))
    samples = StreamingDataset(str(folder), shuffle=True, drop_last=True,
                               transform=partial(sample, jpegfiles.transform(train=True, image=IMAGE)))
    batches = StreamingDataLoader(samples, batch_size=BATCH, num_workers=workers, drop_last=True, persistent_workers=workers > 0)
    while True:
        yield from batches


def loading(files, blocks: int, workers: int) -> None:
    knobs = {**validate("data", {"batch": BATCH, "image": IMAGE, "workers": workers}), "start_method": "fork"}
    count = len(files.train_images) // BATCH
    calls, kept = {}, []
    for storage in shardcase.STORAGES:
        if storage == "webdataset" and env.missing("webdataset"):
            continue
        kept.append(samples := shardcase.dataset(files, image=IMAGE, storage=storage))
        stream = endless(loader(samples, knobs, batch=BATCH, shuffle=True, seed=0, drop_last=True))
        calls[storage] = partial(lambda stream: [next(stream) for _ in range(count)], stream)
    if importlib.util.find_spec("litdata"):
        kept.append(scratch := tempfile.TemporaryDirectory(prefix="hpml-bench-"))
        stream = litdata_batches(files, Path(scratch.name, "litdata"), workers)
        calls["litdata"] = partial(lambda stream: [next(stream) for _ in range(count)], stream)
    parts = [list(range(i, count * BATCH, max(1, workers))) for i in range(max(1, workers))]
    with ProcessPoolExecutor(max(1, workers)) as pool:  # the same number of processes, nothing handed over
        calls["decode limit"] = lambda: list(pool.map(partial(decode, files), parts))
        took = alternating(calls, blocks)
    rates = ", ".join(f"{name} {count * BATCH / statistics.median(values):,.0f}" for name, values in took.items())
    print(f"loader, {workers} workers, {IMAGE} pixels, samples/s: {rates}")
    said("shards / decode limit of the cores", took["shards"], took["decode limit"], 0.95)
    if "webdataset" in took:
        said("shards / bare WebDataset", took["shards"], took["webdataset"], 1.0)
    if "litdata" in took:
        said("shards / LitData", took["shards"], took["litdata"], 1.0)
    said("loopback HTTP / local shards", took["shards_http"], took["shards"], 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--workers", type=int, default=env.cores())
    asked = parser.parse_args()
    set_threads(1)
    knobs = validate("data", {"train_samples": asked.samples, "storage": "jpeg"})
    files = workloads.get("resnet152").data(knobs)
    files = dataclasses.replace(files, test_images=files.test_images[:1], test_labels=files.test_labels[:1])
    print(f"machine {env.machine()['id']}; {files.title} ({files.origin})")
    packing(files, asked.blocks, 0)
    loading(files, asked.blocks, asked.workers)


if __name__ == "__main__":
    main()
