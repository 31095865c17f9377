"""Stored engines: what phase build left in the run, whether it is whole and still this model's, and how fast it starts.

A stored engine is a file in the run's models/ whose name holds a digest of all that it was made from (weights, engine, versions,
machine, knobs, the workload's source), with a JSON file beside it: its SHA-256, size, and the graph that it was built from.
"""

import hashlib
import json
import time
from pathlib import Path
from types import ModuleType

from hpml import engines, env
from hpml import measure as m
from hpml.env import HpmlError, Unavailable
from hpml.knobs import defaults


def construct(job: dict):
    """The case's engine, without a model. Raises Unavailable where it is not on this machine."""
    knobs, protocol = job["knobs"], job["protocol"]
    kind = engines.get(knobs["engine"])
    if reason := kind.unavailable(knobs["device"]):
        raise Unavailable(reason)
    if knobs["shapes"] == "static" and ("shapes" not in kind.OPTIONS or knobs.get("measure") == "quality"):
        raise Unavailable("shapes=static is OpenVINO's, and for a speed figure: a quality pass needs batches of other sizes")
    options = {name: knobs[name] for name in kind.OPTIONS if name in knobs}
    if knobs["engine"] == "compile":
        options["limit_s"] = protocol.get("compile_limit_s")
    return kind(device=knobs["device"], threads=m.set_threads(knobs["threads"]), precision=knobs["precision"], hint=knobs["hint"],
                **options)


def path_of(job: dict, workload: ModuleType) -> Path:
    """Where the stored form of the case's engine lies. Raises Unavailable for an engine that has none."""
    knobs = job["knobs"]
    kind = engines.get(knobs["engine"])
    if kind.SUFFIX is None:
        raise Unavailable(f"{knobs['engine']} executes the module as it is: it builds nothing that could be stored")
    facts = [job["case"]["workload"], job["weights_sha256"], env.machine()["id"], env.versions(), Path(workload.__file__).read_text(),
             {name: knobs[name] for name in defaults("build") if name in knobs}]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return Path(job["run_dir"]) / "models" / f"{Path(job['case']['workload']).stem}-{knobs['engine']}-{digest}{kind.SUFFIX}"


def find(job: dict, workload: ModuleType) -> Path:
    """The stored engine of a case. Raises HpmlError, in one line, where it is absent, damaged or of another graph."""
    path = path_of(job, workload)
    if not path.is_file():
        raise HpmlError(f"no stored {job['knobs']['engine']} engine of this model in the run")
    try:
        facts = json.loads(note(path).read_text())
        whole = facts["sha256"] == sha256(path)
        graph = path.parent / facts["graph"] if facts["graph"] else None
        fresh = graph is None or not graph.exists() or sha256(graph) == facts["graph_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        whole, fresh = False, True
    if not whole:
        raise HpmlError(f"stored engine {path.name} is damaged: its bytes are not those that were built")
    if not fresh:
        raise HpmlError(f"stored engine {path.name} is stale: {graph.name} is another graph than it was built from")
    return path


def note(path: Path) -> Path:
    """The JSON file beside a stored engine."""
    return path.with_name(path.name + ".json")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def start(job: dict, workload: ModuleType) -> tuple:
    """(loaded engine, cold figures) of a stored engine, up to its first result; nothing of the model or the data was touched before.

    first_result_s is loading and the first call; process_start_to_first_result_s counts from the first line of this process, which
    was forked from a server that had imported torch, and so includes the engine's own import and the check of the file.
    """
    engine = construct(job)
    path = find(job, workload)
    inputs = workload.example_inputs(job["knobs"], job["knobs"]["batch"])
    started = time.perf_counter()
    engine.load_stored(path, inputs)
    whole_s = time.perf_counter() - started
    load_s = engine.load_s or whole_s
    engine.bind([tuple(x.numpy() for x in inputs)])
    called = time.perf_counter()
    engine.run_bound(0)
    ended = time.perf_counter()
    facts = json.loads(note(path).read_text())
    engine.actual |= {"stored": facts["what"], "stored_file": path.name}
    return engine, {"bytes": path.stat().st_size, "load_s": load_s, "first_call_s": ended - called,
                    "first_result_s": load_s + ended - called,
                    "process_start_to_first_result_s": ended - job["began"]}
