"""Shards pulled over a thin link, by the number of connections: a server, a link and a receiver on one machine."""

import hashlib
import json
import random
import tempfile
from pathlib import Path
from types import ModuleType

from hpml import link, nginx
from hpml import measure as m
from hpml.data.pull import pull
from hpml.env import HpmlError

SHARDS = 8
SHARD_S = {"smoke": 1, "cpu": 2, "gpu": 2, "full": 4}  # seconds of one shard over one connection
SAMPLE_BYTES = 110_000  # of an ImageNet file, on average: how many samples a shard of so many bytes holds


def shards(folder: Path, *, each_bytes: int, seed: int) -> dict:
    """Write SHARDS files of random bytes and their index: what the transfer of shards sees of them. Returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn, entries = random.Random(seed), []
    for number in range(SHARDS):
        body, name = drawn.randbytes(each_bytes), f"train-{number:06d}.tar"
        (folder / name).write_bytes(body)
        entries.append({"name": name, "part": "train", "samples": max(1, each_bytes // SAMPLE_BYTES), "bytes": len(body),
                        "sha256": hashlib.sha256(body).hexdigest()})
    index = {"format": 1, "shards": entries, "classes": [], "origin": {"title": "random bytes"}}
    (folder / "index.json").write_text(json.dumps(index))
    return index


def limit_rate(each_bytes: int, seconds: int) -> int:
    """nginx's `limit_rate` by which one request of so many bytes takes so many seconds.

    nginx counts in whole seconds and grants one of them at a request's start, so requests that follow each other take
    ceil(bytes / limit_rate) - 1 seconds each.
    """
    return round(each_bytes / (seconds + 0.5))


def measure(job: dict, workload: ModuleType) -> dict:
    """A transfer case: SHARDS shards from nginx over a link of link.RATE_MBIT_S, each connection held to link.CONNECTION_MBIT_S. The
    seconds are those of the pull up to the last checksum. Raises Unavailable where there can be no such link."""
    connections, seconds = job["knobs"]["connections"], SHARD_S[job["case"]["tier"]]
    each_bytes = round(link.CONNECTION_MBIT_S * 1e6 / 8 * seconds)
    with tempfile.TemporaryDirectory(prefix="hpml-") as scratch:
        source, target = Path(scratch, "served"), Path(scratch, "pulled")
        index = shards(source, each_bytes=each_bytes, seed=job["protocol"]["seed"])
        with link.shaped() as line, nginx.serve(source, address=line.there_address, port=8080, through=line.there,
                                                limit_rate=limit_rate(each_bytes, seconds)) as url:
            mark = m.cpu_mark()
            with link.entered(line.here):
                pulled = pull(url, target, connections=connections)
        if pulled.failed:
            raise HpmlError("; ".join(f"{name}: {reason}" for name, reason in pulled.failed.items()))
    rate = 8 * pulled.bytes / pulled.seconds / 1e6
    return {
        "samples": {"unit": "s", "items": sum(shard["samples"] for shard in index["shards"]), "values": [pulled.seconds]}, "center": "mean",
        "io": {"bytes": pulled.bytes, "seconds": pulled.seconds, "mbit_s": rate, "link_mbit_s": link.RATE_MBIT_S,
               "link_share": rate / link.RATE_MBIT_S, "connection_mbit_s": link.CONNECTION_MBIT_S},
        "actual": {"device": "cpu", "connections": connections, "shards": pulled.shards, "verified": pulled.shards == len(index["shards"]),
                   "window_kib": link.WINDOW_KIB, "round_trip_ms": link.ROUND_TRIP_MS, "netem": line.no_netem or "yes"},
        "disturbance": m.disturbance(mark),
    }
