"""Phase build: an engine's stored form is made once, and its making is the figure."""

import json
import os
import tempfile
import time
from pathlib import Path
from types import ModuleType

from hpml import engines, infer, stored
from hpml import measure as m
from hpml.workloads import part


def measure(job: dict, workload: ModuleType) -> dict:
    """Builds the case's engine and leaves its stored form in the run's models/. Returns the record's fields.

    build_s counts from the module in memory or the ONNX file to the stored file; export_s is apart, and null where the run had the
    graph already. The compiler's cache is empty: this is a first build. Raises Unavailable for an engine that stores nothing, is not
    on this machine or refuses the model, TooLong beyond the tier's limit.
    """
    from hpml.data import summary

    knobs, workload = job["knobs"], part(workload, job["knobs"])
    engine, target = stored.construct(job), stored.path_of(job, workload)
    image_set = workload.data(knobs)
    model = infer.fp32_model(job, workload, image_set)
    artefact, made = infer.artefact(job, workload, model)
    graph = artefact if isinstance(artefact, Path) else None
    if graph:
        engines.graph_precision(graph)  # the check of the file is no part of the build; it is remembered
    target.parent.mkdir(parents=True, exist_ok=True)
    kind = engines.get(knobs["engine"])
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder, "inductor"))
        partial = Path(folder, target.name)
        started = time.perf_counter()
        engine.build(artefact, partial, workload.example_inputs(knobs, knobs["batch"]))
        build_s = time.perf_counter() - started
        facts = {"what": kind.STORED, "sha256": stored.sha256(partial), "bytes": partial.stat().st_size, "graph": graph and graph.name,
                 "graph_sha256": graph and stored.sha256(graph)}
        partial.replace(target)
        stored.note(target).write_text(json.dumps(facts, indent=1))
    return {
        "cold": {"export_s": made.get("export_s"), "build_s": build_s, "bytes": facts["bytes"]},
        "actual": {**engine.actual, "stored": kind.STORED, "stored_file": target.name, "graph_sha256": facts["graph_sha256"],
                   "device": knobs["device"], "data": summary(image_set)},
        "memory": {"peak_rss_mib": m.peak_rss_mib(), **m.device_memory()},
    }
