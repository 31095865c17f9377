"""The engine that a service runs: which weights, which graph, and its stored form, made once by children and then loaded in moments."""

import contextlib
import json
import time
from pathlib import Path

from hpml import engines, env, infer, launch, pretrained, stored, workloads
from hpml.cases import Case, case
from hpml.env import HpmlError, Unavailable
from hpml.knobs import defaults, validate
from hpml.serve.settings import Settings
from hpml.work import SHAPING

ACTUAL = ("provider", "device", "threads", "streams", "runtime_precision", "version")  # of what an engine says of itself
TIMEOUT_S = 3600  # of making the INT8 graph or a build


def plan(workload: str, *, engine: str, precision: str, tier: str, image: int | None, run_id: str, weights: str, settings: Settings,
         data: str, device: str = "cpu", knobs: dict | None = None) -> Case:
    """The case that is served: inference at the tier's sizes, or with trained weights at those they were trained at.
    `knobs`: further ones.

    weights "auto": those that the run has trained, else the published ones where a copy is here, else random ones. Raises HpmlError for
    what is unknown, Unavailable where engine or precision cannot be here.
    """
    module = workloads.get(workload)
    name = workloads.canonical(workload)
    if precision not in module.PARITY:
        raise Unavailable(f"{module.TITLE} in {precision}: its file says nothing about the answers that this may give (PARITY)")
    weights = _weights(name, run_id) if weights == "auto" else weights
    sizes = _trained_sizes(name, run_id) if weights == "trained" else {}
    if image is not None:
        sizes["image"] = validate("infer", {"image": image})["image"]  # also where it means nothing for the workload
    chosen = {**(knobs or {}), "engine": engine, "precision": precision, "weights": weights, "threads": settings.threads,
              "batch": settings.max_batch, "device": "cuda" if engine == "tensorrt" else device, "data": data}
    if engine == "openvino" and settings.max_batch == 1:
        chosen["shapes"] = "static"
    if weights == "pretrained" and module.NAME == "resnet50" and data == "auto":
        chosen["data"] = "imagenet"
    idle = workloads.without(module)
    return case(name, phase="infer", tier=tier, **{knob: value for knob, value in {**chosen, **sizes}.items() if knob not in idle})


def _weights(name: str, run_id: str) -> str:
    if (env.run_dir(run_id) / "models" / f"{Path(name).stem}.safetensors").is_file():
        return "trained"
    return "pretrained" if pretrained.here(workloads.get(name)) else "random"


def _trained_sizes(name: str, run_id: str) -> dict:
    """What the run's trained weights were trained with, as far as it makes another graph; nothing where no record lies beside them."""
    try:
        knobs = json.loads((env.run_dir(run_id) / "models" / f"{Path(name).stem}.json").read_text())["knobs"]
    except (OSError, ValueError, KeyError):
        return {}
    return {knob: knobs[knob] for knob in SHAPING if knob in knobs}


def load(job: dict, workload, *, streams: int, say=print) -> tuple:
    """(loaded engine, seconds it took). What can be stored is made by children first, where it is not here yet, and loaded from its file;
    an engine that executes the module gets it in this process. Raises HpmlError or Unavailable with the reason."""
    engine = stored.construct(job)
    if hasattr(engine, "streams"):
        engine.streams = streams
    started = time.perf_counter()
    if engines.get(job["knobs"]["engine"]).SUFFIX is None:
        engine.load(infer.fp32_model(job, workload, workload.data(job["knobs"])), workload.example_inputs(job["knobs"], 1))
        return engine, time.perf_counter() - started
    try:
        path = stored.find(job, workload)
    except Unavailable:
        raise
    except HpmlError as reason:
        say(f"{reason}: making it once")
        _make(job, say)
        path, started = stored.find(job, workload), time.perf_counter()
    engine.load_stored(path, workload.example_inputs(job["knobs"], job["knobs"]["batch"]))
    return engine, time.perf_counter() - started


def quantize_once(job: dict, say) -> None:
    """Leave the INT8 graph in the run where one is asked and none is there: made by a child, so that its memory is not this process's."""
    knobs = job["knobs"]
    if knobs["precision"] == "int8" and not infer.int8_note(job).exists():
        say("no INT8 graph of these weights in this run: quantizing first")
        _child(job, "quantize", {name: knobs[name] for name in defaults("quantize") if name in knobs} | {"device": "cpu"})


def _make(job: dict, say) -> None:
    """The INT8 graph where one is asked, and the build, each by a child."""
    knobs = job["knobs"]
    quantize_once(job, say)
    _child(job, "build", {name: knobs[name] for name in defaults("build") if name in knobs})


def _child(job: dict, phase: str, knobs: dict) -> None:
    asked = {**job, "case": {**job["case"], "phase": phase}, "knobs": knobs}
    log = Path(job["run_dir"]) / "logs" / f"serve-{Path(job['case']['workload']).stem}-{phase}.log"
    with contextlib.suppress(FileNotFoundError):
        log.unlink()
    found = launch.run(asked, log=log, timeout_s=TIMEOUT_S)
    if found["status"] != "ok":
        kind = Unavailable if found["status"] == "unsupported" else HpmlError
        raise kind(f"{phase} of {Path(job['case']['workload']).stem}: {found['reason']} (log: {log})")


def facts_of(job: dict, workload, image_set, engine) -> dict:
    """What is served, for its first line, /readyz and the page."""
    knobs = job["knobs"]
    words = {"random": "random weights: the answers mean nothing", "trained": "weights trained in this run",
             "pretrained": "published weights"}.get(knobs["weights"], f"weights of {Path(knobs['weights']).name}")
    if knobs["weights"] == "pretrained" and workload.NAME == "deeplabv3":
        words += " with a new last layer: the answers mean nothing"
    return {"workload": Path(job["case"]["workload"]).stem, "title": workload.TITLE, "task": getattr(workload, "TASK", workload.METRIC),
            "engine": knobs["engine"], "precision": knobs["precision"], "weights": words, "weights_sha256": job["weights_sha256"],
            "sizes": {name: knobs[name] for name in SHAPING if name in knobs}, "data": f"{image_set.title} ({image_set.origin})",
            "run": Path(job["run_dir"]).name,
            "actual": {name: engine.actual.get(name) for name in ACTUAL}}

