"""What the queueing bound is made of: the engine's own seconds a request by the number of streams, and what a request costs beside it."""

import statistics
import time
from types import ModuleType

from hpml import env, infer, loadgen, stored
from hpml import measure as m
from hpml.loadsite import opened, tree_cpu_s

REQUESTS = 20  # one after the other, for what a request costs beside the model


def counts(cores: int) -> list[int]:
    """Numbers of streams that are tried: 1, 2, 4, ..., one for each core."""
    return sorted({*(2**i for i in range(cores.bit_length()) if 2**i <= cores), cores})


def measure(job: dict, workload: ModuleType, image_set, payloads: list[bytes], *, seconds: float) -> dict:
    """Scenario "bound" of a serve case: what queueing theory needs. per_s is the engine's rate in its best number of streams, without
    any server. What HTTP costs is measured where the transport is http; in process it is left out of the bound."""
    from hpml.data import summary

    knobs = job["knobs"]
    stream_s, actual = engine_seconds(job, workload, image_set, seconds=seconds)
    beside = beside_the_model(job, payloads)
    per_s = max(c / took for c, took in stream_s.items())
    return {
        "samples": {"unit": "s", "items": 1, "values": [1 / per_s]}, "center": "mean",
        "memory": {"peak_rss_mib": m.peak_rss_mib()},
        "actual": {**actual, "data": summary(image_set), "bound": {
            "stream_s": {str(c): took for c, took in stream_s.items()}, **beside, "cores": env.cores(),
            "limit_s": knobs["limit_ms"] / 1e3}},
    }


def engine_seconds(job: dict, workload: ModuleType, image_set, *, seconds: float) -> tuple[dict[int, float], dict]:
    """(seconds of one request in one of c streams while all c work, by c; what the engine says of itself). An engine without streams
    is one that works on one request with all cores."""
    knobs = {"hint": "latency", "shapes": "dynamic", "capture": "trace", "measure": "speed", **job["knobs"], "batch": 1}
    model = infer.fp32_model(job, workload, image_set)
    batches = infer.input_batches(workload, knobs, image_set)
    found: dict[int, float] = {}
    for count in counts(env.cores()):
        own = {**job, "knobs": {**knobs, "shapes": "static"} if knobs["engine"] == "openvino" else knobs}
        engine = stored.construct(own)
        if hasattr(engine, "streams"):
            engine.streams = count
        engine.load(infer.artefact(own, workload, model)[0], workload.example_inputs(knobs, 1))
        if not hasattr(engine, "throughput"):
            engine.bind(batches)
            taken = m.steady(engine.run_bound, clock=time.perf_counter, warmup=2, min_iters=4, min_seconds=seconds)
            return {1: statistics.median(taken["values"])}, engine.actual
        engine.throughput(batches, seconds / 4)
        samples, spent = engine.throughput(batches, seconds)
        found[count] = count * spent / samples
    return found, engine.actual


def beside_the_model(job: dict, payloads: list[bytes]) -> dict:
    """CPU seconds of a request beside the model: decoding, what the client spends on sending, and, over HTTP, both ends of an exchange.

    The exchange is measured with one that needs no model. All of it is taken alone, so the bound that rests on it is the best case.
    """
    in_process = {**job, "knobs": {**job["knobs"], "transport": "inprocess"}}
    with opened(in_process, payloads) as site, site.target() as target:
        for number in range(REQUESTS):
            site.service.submit(payloads[number % len(payloads)]).result()
        target.client_s, target.waits = 0.0, {name: [] for name in target.waits}
        window = loadgen.drive(target, scenario="singlestream", samples=len(payloads), seconds=REQUESTS * 1e-2)
        decode_s, client_s = statistics.median(target.waits["decode_s"]), target.client_s / len(window.outcomes)
    if job["knobs"]["transport"] != "http":
        return {"decode_s": decode_s, "client_s": client_s, "http_s": None}
    with opened(job, payloads) as site:
        return {"decode_s": decode_s, "client_s": client_s, "http_s": exchange_s(site.url, site.server_pid)}


def exchange_s(url: str, pid: int, *, exchanges: int = 300) -> float:
    """CPU seconds, of client and server together, of one exchange over a connection that stays open, without a body or a model."""
    import http.client
    import urllib.parse

    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port)

    def ask(count: int) -> float:
        before = time.process_time() + tree_cpu_s(pid)
        for _ in range(count):
            connection.request("GET", "/healthz")
            connection.getresponse().read()
        return time.process_time() + tree_cpu_s(pid) - before

    try:
        ask(20)
        return ask(exchanges) / exchanges
    finally:
        connection.close()
