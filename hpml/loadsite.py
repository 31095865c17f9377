"""The place of a load test: a service started for it, the images that are sent to it, what it and the client use."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from hpml import env, queueing, records
from hpml import measure as m
from hpml.env import Unavailable
from hpml.loadgen import Window, drive
from hpml.loadtargets import InProcess, OverHttp, served

IN_FLIGHT = 32  # in the Offline scenario, where everything is due at once


@dataclass
class Site:
    """A running service with a way to send queries to it, and what it and the client have used."""

    payloads: list[bytes]
    limit_s: float
    service: object = None
    url: str | None = None
    server_pid: int | None = None
    ready_s: float | None = None
    streams: int | None = None
    clients: list = field(default_factory=list)

    @contextlib.contextmanager
    def target(self, *, patient: bool = False) -> Iterator[InProcess | OverHttp]:
        """A client of the service: in this process, or over HTTP where the site has an address."""
        if self.url is None:
            client = InProcess(self.service, self.payloads, deadline_s=None if patient else self.limit_s, patient=patient)
            self.clients.append(client)
            yield client
            return
        client = OverHttp(self.url, self.payloads, patient=patient)
        try:
            yield client
        finally:
            client.close()

    def window(self, scenario: str, seconds: float, *, rate: float | None = None, accuracy: bool = False, seed: int = 0) -> Window:
        """One window of LoadGen under `scenario`, with the CPU seconds that it took."""
        offline = scenario == "offline"
        with self.target(patient=offline) as target:
            before = self.cpu_s()
            window = drive(target, scenario=scenario, samples=len(self.payloads), seconds=seconds, rate=rate, limit_s=self.limit_s,
                           in_flight=IN_FLIGHT if offline else None, accuracy=accuracy, seed=seed)
            window.cpu_s = {name: used - before[name] for name, used in self.cpu_s().items() if used is not None}
        return window

    def cpu_s(self) -> dict:
        """CPU seconds so far of server and client. In one process the client's are those of the thread that sends."""
        if self.url is None:
            client = sum(one.client_s for one in self.clients)
            return {"server": time.process_time() - client, "client": client}
        return {"server": tree_cpu_s(self.server_pid), "client": time.process_time()}

    def rss_mib(self, *, peak: bool = False) -> float | None:
        """Resident memory of the process that serves; with another machine's server None."""
        pid = self.server_pid if self.url else os.getpid()
        return pid and (m.peak_rss_mib(pid) if peak else m.rss_mib(pid))


def tree_cpu_s(pid: int | None) -> float | None:
    """CPU seconds of a process and its children so far; None where it has gone."""
    import psutil

    if pid is None:
        return None
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def best_streams(job: dict) -> int | None:
    """The number of streams with the highest bound, where the run holds its parts (scenario "bound"); None leaves it to the service."""
    def same(record: records.Record) -> bool:
        return (record.case["phase"] == "serve" and record.status == "ok" and record.knobs["scenario"] == "bound"
                and record.case["workload"] == job["case"]["workload"] and record.machine.get("id") == env.machine()["id"]
                and all(record.knobs[name] == job["knobs"][name] for name in ("engine", "precision", "image", "threads")))

    for record in reversed(records.read(Path(job["run_dir"]) / "records.jsonl")):
        if same(record):
            found = record.actual["bound"]
            other_s = sum(found[name] or 0.0 for name in ("decode_s", "client_s", "http_s"))
            stream_s = {int(c): seconds for c, seconds in found["stream_s"].items()}
            return queueing.bound(stream_s, cores=found["cores"], other_s=other_s, limit_s=job["knobs"]["limit_ms"] / 1e3)[0].c
    return None


def arguments(job: dict) -> list[str]:
    """What `hpml serve` is told so that it serves the case."""
    knobs, streams = job["knobs"], job["knobs"]["streams"] or best_streams(job)
    return ["--workload", job["case"]["workload"], "--engine", knobs["engine"], "--precision", knobs["precision"],
            "--tier", job["case"]["tier"], "--image", str(knobs["image"]), "--run-id", Path(job["run_dir"]).name,
            "--weights", knobs["weights"], "--data", knobs["data"], "--deadline-ms", str(knobs["limit_ms"]),
            *(["--streams", str(streams)] if streams else [])]


@contextlib.contextmanager
def opened(job: dict, payloads: list[bytes]) -> Iterator[Site]:
    """The case's service, in this process or as a server beside it, ready and warm."""
    knobs, run_id = job["knobs"], Path(job["run_dir"]).name
    limit_s, streams = knobs["limit_ms"] / 1e3, knobs["streams"] or best_streams(job)
    if knobs["transport"] == "http":
        log = Path(job["run_dir"]) / "logs" / f"serve-{job['case']['key']}.log"
        with served(arguments(job), log=log) as (url, process, ready_s):
            yield Site(payloads, limit_s, url=url, server_pid=process.pid, ready_s=ready_s, streams=streams)
        return
    from hpml.serve.service import open_service

    started = time.perf_counter()
    service = open_service(job["case"]["workload"], engine=knobs["engine"], precision=knobs["precision"], tier=job["case"]["tier"],
                           image=knobs["image"], run_id=run_id, weights=knobs["weights"], data=knobs["data"],
                           settings={"deadline_ms": knobs["limit_ms"], **({"streams": streams} if streams else {})})
    try:
        yield Site(payloads, limit_s, service=service, ready_s=time.perf_counter() - started, streams=service.settings.streams)
    finally:
        service.close()


def pictures(workload: ModuleType, knobs: dict, *, most: int) -> tuple[object, list[bytes]]:
    """(image set, its test images as the files that a client would send). Raises Unavailable where the workload does not answer images."""
    from hpml.data.images import jpegs
    from hpml.data.jpegfiles import FileSet

    image_set = workload.data(knobs)
    images = getattr(image_set, "test_images", None)
    if images is None:
        raise Unavailable(f"{workload.NAME}: the load test sends images, which this workload does not answer")
    if isinstance(image_set, FileSet):
        return image_set, [image_set.read(place) for place in images[:most]]
    encoded, offsets = jpegs(images[:most], 256)
    return image_set, [encoded[offsets[i]:offsets[i + 1]].tobytes() for i in range(len(offsets) - 1)]
