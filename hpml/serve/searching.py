"""A short search for the settings of a service: a few seconds of full load on each candidate, the best one saved beside the engines.

Best is the highest rate at which an answer's own seconds still leave room in the deadline: a large batch may be fast and late.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from hpml import env
from hpml.serve.service import Service, open_service
from hpml.serve.settings import DEADLINE_MS

SECONDS = 3.0
ROOM = 0.5  # of the deadline that an answer without a queue may take: the rest is for waiting
SEARCHED = ("streams", "max_batch", "max_wait_ms", "decoders")


def place(workload: str, *, engine: str, precision: str, run_id: str | None = None, image: int | None = None, **_asked) -> Path:
    """Where the settings of this machine are kept."""
    name = "-".join(["serve", Path(workload).stem, engine, precision, *([str(image)] if image else []), env.machine()["id"]])
    return env.run_dir(run_id or "serve") / "models" / f"{name}.json"


def found(workload: str, **asked) -> dict:
    """The settings that an earlier search has found; {} without one."""
    try:
        kept = json.loads(place(workload, **asked).read_text())["settings"]
        return {name: kept[name] for name in SEARCHED if name in kept}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def candidates(engine: str) -> list[dict]:
    """Few: streams from one to the number of cores, with and without batches."""
    cores = env.cores()
    streams = sorted({1, max(1, cores // 2), cores}) if engine in ("openvino", "onnxruntime") else [1]
    tried = [{"streams": count, "max_batch": batch, "max_wait_ms": 2.0 if batch > 1 else 0.0} for count in streams for batch in (1, 4)]
    return [{**one, "decoders": min(4, max(2, cores))} for one in tried]


def search(workload: str, given: dict, *, seconds: float = SECONDS, say: Callable[[str], object] = print, **asked) -> str:
    """Tries the candidates, saves the best, and says where. `given` settings are kept as they are."""
    rows = []
    for one in candidates(asked["engine"]):
        settings = {**one, **given, "deadline_ms": 60_000.0}
        with open_service(workload, settings=settings, say=say, **asked) as service:
            rows.append({"settings": {name: settings[name] for name in SEARCHED}, **full_load(service, seconds)})
        say(f"  {rows[-1]['settings']}: {rows[-1]['per_s']:.4g} answers/s, one takes {rows[-1]['own_ms']:.4g} ms")
    deadline_ms = given.get("deadline_ms") or DEADLINE_MS
    in_time = [row for row in rows if row["own_ms"] <= ROOM * deadline_ms]
    best = max(in_time, key=lambda row: row["per_s"]) if in_time else min(rows, key=lambda row: row["own_ms"])
    path = place(workload, **asked)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": best["settings"], "deadline_ms": deadline_ms, "tried": rows, "machine": env.machine()["id"]},
                               indent=1))
    return f"{best['settings']}: {best['per_s']:.4g} answers/s of {len(rows)} tried; kept in {path}"


def full_load(service: Service, seconds: float) -> dict:
    """Answers a second with twice as many requests under way as the streams hold, and the median seconds of an answer without the queue."""
    settings = service.settings
    payloads = [service.sample(i)[0] for i in range(16)]
    depth, waiting, answers, sent = 2 * settings.streams * settings.max_batch, [], [], 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or not answers:
        while len(waiting) < min(depth, settings.queue):
            waiting.append(service.submit(payloads[sent % len(payloads)]))
            sent += 1
        answers.append(waiting.pop(0).result())
    spent, done = time.perf_counter() - started, len(answers)
    for future in waiting:
        future.result()
    own_s = statistics.median(answer.decode_s + answer.model_s for answer in answers)
    return {"per_s": done / spent, "own_ms": 1e3 * (own_s + settings.max_wait_ms / 1e3), "n": done}
