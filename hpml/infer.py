"""Inference: one model on one engine: export, parity, latency in three figures, and the quality pass."""

import functools
import hashlib
import json
import math
import time
from pathlib import Path
from types import ModuleType

from hpml import distributed, engines, export, stored
from hpml import measure as m
from hpml.env import HpmlError, Unavailable
from hpml.fit import judge, quality
from hpml.knobs import INT8_KNOBS
from hpml.train import load_weights
from hpml.work import SHAPING, known_work
from hpml.workloads import part

ROTATION = 8  # different inputs in turn: one buffer used again and again would sit in the caches


def fp32_model(job: dict, workload: ModuleType, image_set):
    """The workload's FP32 module in evaluation mode. Random weights get their BatchNorm statistics from a batch of real samples:
    untrained ones let activations grow without bound, and ranges and parity would then be about noise."""
    import torch

    torch.manual_seed(job["knobs"]["seed"])
    cut = getattr(workload, "of", None)  # a part's: the weights are the whole's
    workload = getattr(workload, "whole", workload)
    model = workload.model(job["knobs"], len(image_set.classes))
    if job["weights"]:
        load_weights(model, Path(job["weights"]), workload)
        return cut(model.eval()) if cut else model.eval()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for module in norms:
        module.momentum = None  # the statistics become those of what passes through
    if norms:
        with torch.no_grad():
            model.train()(*(torch.as_tensor(x) for x in _samples(workload, job["knobs"], image_set, 16)))
    return cut(model.eval()) if cut else model.eval()


def _samples(workload: ModuleType, knobs: dict, image_set, count: int):
    """`count` real test samples, preprocessed, as a tuple of arrays; repeated where the test set is smaller."""
    dataset = workload.dataset(knobs, image_set, train=False)
    return stacked(workload, dataset, [i % len(dataset) for i in range(count)])


def stacked(workload: ModuleType, dataset, indices: list[int]) -> tuple:
    """The model's inputs of these samples of a data set, as a tuple of arrays [N, ...]."""
    import numpy as np

    picked = [dataset[i] for i in indices]
    return tuple(np.stack([np.asarray(sample[i]) for sample in picked]) for i in range(len(workload.INPUT_NAMES)))


def graph_file(job: dict, *more) -> Path:
    """Where the run keeps a graph of this model; `more` is what tells it from the model's other graphs."""
    knobs = job["knobs"]
    # With the code: after a reader has changed the model, its old graph is another one.
    identity = (job["case"]["workload"], job["code"], job["weights_sha256"], knobs["data"], knobs["seed"],
                *(knobs.get(name) for name in SHAPING), *more)
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:12]
    return Path(job["run_dir"]) / "models" / f"{Path(job['case']['workload']).stem}-{'int8-' if more else ''}{digest}.onnx"


def typed_file(job: dict) -> Path:
    """The graph that the case's engine loads: the exported or the INT8 one, in its FP16 form where the engine takes its floats from the
    file (HALF)."""
    source = int8_file(job) if job["knobs"]["precision"] == "int8" else graph_file(job)
    half = job["knobs"]["precision"] in engines.get(job["knobs"]["engine"]).HALF
    return source.with_suffix(".fp16.onnx") if half else source


def int8_file(job: dict) -> Path:
    """The INT8 graph of this model: phase quantize leaves it there, inference takes it from there."""
    knobs = job["knobs"]
    return graph_file(job, *(knobs[name] for name in (*INT8_KNOBS, "train_samples")))


def int8_note(job: dict) -> Path:
    """What is known of the INT8 graph, as JSON. It is written last, so where it is the graph is whole."""
    return int8_file(job).with_suffix(".json")


def onnx_file(job: dict, workload: ModuleType, model) -> tuple[Path, dict]:
    """The exported graph of this model, made once in a run and shared by its cases: (path, what the export said; {} if it was there)."""
    knobs = job["knobs"]
    path = graph_file(job)
    if path.exists():
        return path, {}
    path.parent.mkdir(parents=True, exist_ok=True)
    made = export.export_onnx(model, workload.example_inputs(knobs, 2), path, input_names=list(workload.INPUT_NAMES),
                              output_names=list(workload.OUTPUT_NAMES))
    return path, made


def _engine(job: dict, workload: ModuleType, model):
    """(loaded engine, cold figures). Raises Unavailable when the engine or the precision is not on this machine."""
    knobs = job["knobs"]
    engine = stored.construct(job)
    source, made = artefact(job, workload, model)
    cold = {"export_s": made.get("export_s"), "bytes": source.stat().st_size} if isinstance(source, Path) else {}
    started = time.perf_counter()
    engine.load(source, workload.example_inputs(knobs, knobs["batch"]))
    whole_s = time.perf_counter() - started
    if getattr(engine, "compile_s", None):
        cold["compile_s"] = engine.compile_s
    return engine, {**cold, "load_s": engine.load_s or whole_s}  # an ONNX engine's own, without the check of the file


def artefact(job: dict, workload: ModuleType, model) -> tuple:
    """(what the case's engine is loaded from: the module or the path of an ONNX file, what the export said)."""
    if engines.get(job["knobs"]["engine"]).WANTS == "module":
        return model, {}
    if job["knobs"]["precision"] == "int8":
        if not int8_note(job).exists():
            raise HpmlError(f"{int8_file(job).name}: the run has no INT8 graph of this model: phase quantize makes it")
        source, made = int8_file(job), {}
    else:
        source, made = onnx_file(job, workload, model)
    if not typed_file(job).exists():
        export.to_fp16(source, typed_file(job))
    return typed_file(job), made


def _parity_count(knobs: dict) -> int:
    return 32 if knobs.get("image", 224) <= 64 else 8


def _outputs(model, inputs: tuple):
    """The eager FP32 model's, as an array."""
    import torch

    with torch.inference_mode():
        return model(*(torch.as_tensor(x) for x in inputs)).float().numpy()


def expected_file(job: dict) -> Path:
    """Where the run keeps the FP32 module's outputs for the samples of parity."""
    knobs = job["knobs"]
    facts = (graph_file(job).stem, job["code"], knobs.get("train_samples"), knobs.get("test_samples"), _parity_count(knobs))
    return Path(job["run_dir"], "cache", "expected", f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.npy")


def prepare(job: dict, workload: ModuleType) -> dict:
    """What all engines of a model need of the module itself, made once in a run by a process of its own: the exported graph and the
    outputs that parity is held against. Their memory and seconds are then no case's."""
    import numpy as np

    knobs, workload = job["knobs"], part(workload, job["knobs"])
    image_set = workload.data(knobs)
    model = fp32_model(job, workload, image_set)
    path = expected_file(job)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, _outputs(model, _samples(workload, knobs, image_set, _parity_count(knobs))))
    partial.replace(path)
    artefact(job, workload, model)
    return {}


def check_parity(expect, engine, workload: ModuleType, knobs: dict, image_set) -> dict:
    """The engine's outputs beside the eager FP32 model's (`expect`: inputs -> outputs) on real samples, at batch sizes that the export
    never saw.

    Passed means: within the workload's tolerance for this precision, and the same answers for its share of the samples. With random
    weights all logits are near each other and the answers are about noise: then the tolerance alone decides.
    """
    import numpy as np

    tolerance = workload.PARITY.get(knobs["precision"])
    if tolerance is None:
        raise Unavailable(f"{workload.NAME} says in PARITY nothing about {knobs['precision']}: nobody could tell a wrong answer")
    only = getattr(engine, "batch", None)  # compiled for batches of this size alone
    count = _parity_count(knobs)
    count = max(only, count // only * only) if only else count
    inputs = _samples(workload, knobs, image_set, count)
    wanted = expect(inputs)
    # One sample, then two, then the rest, where any batch is taken.
    cuts = range(only, count + 1, only) if only else (1, 3, count)
    parts, start = [], 0
    for end in cuts:
        parts.append(engine.run(tuple(x[start:end] for x in inputs))[0])
        start = end
    got = np.concatenate(parts)
    atol = tolerance["atol"] if "atol" in tolerance else tolerance["range_share"] * float(np.abs(wanted).max())
    found = export.parity(wanted, got, atol=atol, rtol=tolerance["rtol"])
    if found["max_abs"] is None:  # what is not finite is like nothing
        return {**found, "likeness": {}, "n": count}
    if hasattr(workload, "agreement"):  # what the same answer is, where it is not one class for each sample
        found["top1_agreement"] = workload.agreement(wanted, got)
    found["likeness"] = workload.likeness(wanted, got) if hasattr(workload, "likeness") else {"same class": found["top1_agreement"]}
    found["tolerance"]["top1_agreement"] = tolerance["top1_agreement"] if knobs["weights"] != "random" else None
    found["tolerance"]["cosine"] = tolerance.get("cosine")
    if knobs["weights"] != "random" and found["top1_agreement"] < tolerance["top1_agreement"]:
        found["passed"] = False
    if found["cosine"] is not None and found["cosine"] < tolerance.get("cosine", -1):
        found["passed"] = False
    return {**found, "n": count}


def _apart(parity: dict) -> str:
    return "not finite" if parity["max_abs"] is None else f"max abs {parity['max_abs']:.2e}"


def measure(job: dict, workload: ModuleType) -> dict:
    """An inference case in a fresh process: the latency, or the quality pass. Returns the record's fields."""
    import numpy as np

    from hpml.data import summary

    knobs, workload = job["knobs"], part(workload, job["knobs"])
    if hasattr(workload, "whole") and knobs["measure"] == "quality":
        raise Unavailable(f"{workload.TITLE} has no quality of its own: {workload.whole.METRIC} is the whole model's")
    mark = m.cpu_mark()
    engine, cold = stored.start(job, workload) if knobs["stored"] else (None, {})
    image_set = workload.data(knobs)
    model = functools.cache(lambda: fp32_model(job, workload, image_set))  # most cases need none: see prepare

    def expect(inputs: tuple):
        known = np.load(expected_file(job)) if expected_file(job).exists() else ()
        return known[:len(inputs[0])] if len(known) >= len(inputs[0]) else _outputs(model(), inputs)

    if not engine:
        if engines.get(knobs["engine"]).WANTS == "module":  # the engine changes it (precision, memory format)
            loaded = fp32_model(job, workload, image_set)
        else:
            loaded = None if knobs["precision"] == "int8" or graph_file(job).exists() else model()
        engine, cold = _engine(job, workload, loaded)
        del loaded
    batches = input_batches(workload, knobs, image_set)
    engine.bind(batches)
    started = time.perf_counter()
    engine.run_bound(0)
    cold.setdefault("first_call_s", time.perf_counter() - started)  # before anything else has warmed the engine
    parity = check_parity(expect, engine, workload, knobs, image_set)
    shared = {"cold": cold, "parity": parity, "actual": {**engine.actual, "data": summary(image_set)}}
    if not parity["passed"]:
        why = f"outputs differ from eager FP32: {_apart(parity)}, top-1 agreement {parity['top1_agreement']}"
        return {**shared, "status": "parity_failed", "reason": why}
    if knobs["measure"] == "quality":
        beside = model() if hasattr(workload, "texts") else None
        scores = judge(lambda inputs: engine.run(inputs)[0], beside, workload, knobs, image_set)
        found = {"quality": quality(scores, workload) if knobs["weights"] != "random" else None,
                 "memory": {"peak_rss_mib": m.peak_rss_mib(), **m.device_memory()}, "disturbance": m.disturbance(mark)}
    else:
        found = _latency(job, workload, engine, image_set, batches)
    if knobs["precision"] == "int8":
        shared["actual"] |= _int8(job, engine)  # after measuring: it may load the graph again
    return {**shared, **found}


def _int8(job: dict, engine) -> dict:
    """What really runs in INT8, and what its ranges come from. Raises Unavailable where the engine computes the graph in floats only."""
    done, total = engine.int8_ops()
    if not done:
        raise Unavailable(f"{job['knobs']['engine']} computes the INT8 graph in floating point here: none of its {total} heavy operators "
                          "is INT8")
    made = json.loads(int8_note(job).read_text())
    kept = {name: made[name] for name in ("int8_share", "samples", "weight_bits", "fp32_bytes", "weights", "quantization", "kept_fp")}
    return {"int8_ops": done, "heavy_ops_total": total, "int8_share": done / total, "quantized": {"graph": int8_file(job).name, **kept}}


def input_batches(workload: ModuleType, knobs: dict, image_set) -> list[tuple]:
    """Different real inputs in turn, as the engine is given them."""
    import numpy as np

    batch = knobs["batch"]
    pool = _samples(workload, knobs, image_set, batch * ROTATION if batch * ROTATION <= 64 else batch * 2)
    return [tuple(np.ascontiguousarray(x[i * batch:(i + 1) * batch]) for x in pool) for i in range(len(pool[0]) // batch)]


def _latency(job: dict, workload: ModuleType, engine, image_set, batches: list[tuple]) -> dict:
    """Seconds of a call with everything resident (the headline), with copies in and out, and with preprocessing too."""
    import numpy as np

    knobs, protocol = job["knobs"], job["protocol"]
    batch, count = knobs["batch"], len(batches)
    clock = m.device_clock(knobs["device"])
    energy, mark = m.energy_mj() if knobs["device"] == "cuda" else None, m.cpu_mark()

    def step(i: int) -> None:
        started = clock()
        engine.run_bound(i)
        if knobs["slowdown"]:
            until = started + (clock() - started) * (1 + knobs["slowdown"])
            while clock() < until:
                pass

    limits = {name: protocol[name] for name in ("warmup", "min_iters", "min_seconds")}
    if knobs["hint"] == "throughput" and hasattr(engine, "throughput"):
        resident = {"values": _overlapped(engine, batches, protocol)}
    else:
        resident = distributed.steady(step, clock=clock, **limits)
    short = {"warmup": 1, "min_iters": max(3, protocol["min_iters"] // 2), "min_seconds": protocol["min_seconds"] / 4}
    copies = distributed.steady(lambda i: engine.run(batches[i % count]), clock=clock, **short)
    dataset = workload.dataset(knobs, image_set, train=False)
    width = len(workload.INPUT_NAMES)

    def whole(i: int) -> None:
        samples = [dataset[(i * batch + j) % len(dataset)] for j in range(batch)]
        engine.run(tuple(np.stack([np.asarray(sample[k]) for sample in samples]) for k in range(width)))

    preprocessed = distributed.steady(whole, clock=clock, **short)
    work = known_work(job, workload, len(image_set.classes), training=False)
    width_bytes = {"bf16": 2, "fp16": 2, "int8": 1}.get(knobs["precision"], 4)
    return {
        "samples": {"unit": "s", "items": batch, "values": resident["values"], "with_copies": copies["values"],
                    "with_preprocessing": preprocessed["values"]},
        "center": "median",
        "memory": {"peak_rss_mib": m.peak_rss_mib(), **m.device_memory()},
        "energy": None if energy is None else {"joules": (m.energy_mj() - energy) / 1e3},
        "disturbance": distributed.disturbance(mark, resident["values"]),
        # Backward costs twice the forward pass.
        "work": {"flops": work["flops"] / 3 * batch, "bytes": work["parameters"] * width_bytes + sum(x.nbytes for x in batches[0])},
    }


def _overlapped(engine, batches: list[tuple], protocol: dict) -> list[float]:
    """Seconds for a batch while several requests are under way: one value, from a window of at least 20 batches, because at its end
    some streams stand idle while the last requests finish."""
    started = time.perf_counter()
    engine.run_bound(0)
    one_s = time.perf_counter() - started
    engine.throughput(batches, one_s)
    samples, spent = engine.throughput(batches, max(protocol["min_seconds"], 20 * one_s))
    return [spent / (samples / len(batches[0][0]))]


def measure_export(job: dict, workload: ModuleType) -> dict:
    """An export case: the graph with its seconds, size, operators and parity on ONNX Runtime's and OpenVINO's CPU where present."""
    from hpml.data import summary

    knobs, workload = job["knobs"], part(workload, job["knobs"])
    image_set = workload.data(knobs)
    model = fp32_model(job, workload, image_set)
    folder = Path(job["run_dir"]) / "models"
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"export-{job['case']['key']}-r{job['protocol']['round']}.onnx"  # never the shared one: its making is the figure
    try:
        made = export.export_onnx(model, workload.example_inputs(knobs, 2), fresh, input_names=list(workload.INPUT_NAMES),
                                  output_names=list(workload.OUTPUT_NAMES))
        found = {}
        for name in ("onnxruntime", "openvino"):
            kind = engines.get(name)
            if not kind.unavailable("cpu"):
                engine = kind(device="cpu", threads=m.set_threads(knobs["threads"]), precision="fp32")
                engine.load(fresh)
                found[name] = check_parity(functools.partial(_outputs, model), engine, workload, {**knobs, "precision": "fp32"}, image_set)
    finally:
        fresh.unlink(missing_ok=True)
    if not found:
        raise Unavailable("no engine is installed that could run the exported graph")
    worst = max(found.values(), key=lambda p: (not p["passed"], math.inf if p["max_abs"] is None else p["max_abs"]))
    fields = {
        "cold": {"export_s": made["export_s"], "bytes": made["bytes"]}, "parity": worst,
        "actual": {"opset": made["opset"], "ops": made["ops"], "exporter": made["exporter"], "engines": found, "device": "cpu",
                   "parameters": sum(p.numel() for p in model.parameters()), "data": summary(image_set)},
        "memory": {"peak_rss_mib": m.peak_rss_mib()},
    }
    if not worst["passed"]:
        fields |= {"status": "parity_failed", "reason": f"the graph is another function: {_apart(worst)}"}
    return fields
