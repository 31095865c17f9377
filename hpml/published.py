"""Published headline figures beside the nearest of ours, and whether the two may be compared at all.

Every figure is quoted from the named source with its hardware. Whether it is comparable is computed: a figure of another kind of processor
or of another model is not, whatever else is alike.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hpml import tables
from hpml.compare import Row
from hpml.records import Record


@dataclass(frozen=True)
class Published:
    """A quoted figure and where its like stands among records: `knobs` of the case, and `over`, what the other side of a ratio has instead.

    kind: ratio (of two rates of one comparison), core (samples/s by core), quality (of a whole training), jpeg (decodes/s by core) or
    start (seconds from a stored engine to the first result). `model`: a workload, or the name of another model. `device`: cpu or cuda.
    `isa`: what the cores must have. `unlike`: what differs besides and is not seen in the knobs.
    """

    figure: str
    source: str
    hardware: str
    kind: str
    model: str = "resnet50"
    phase: str = "infer"
    device: str = "cpu"
    knobs: dict = field(default_factory=dict)
    over: dict = field(default_factory=dict)
    isa: str | None = None
    unlike: tuple[str, ...] = ()


INT8 = {"precision": "int8", "image": 224}
FIGURES = (
    Published("2.63x, AMP over TF32", "NVIDIA DeepLearningExamples", "1 A100", "ratio", phase="train", device="cuda",
              knobs={"precision": "bf16"}, over={"precision": "fp32"}, unlike=("TF32 in the baseline", "batch")),
    Published("1.47x, channels-last", "timm result tables", "1 RTX 3090", "ratio", phase="train", device="cuda",
              knobs={"precision": "bf16", "memory_format": "channels_last"}, over={"memory_format": "contiguous"}, unlike=("image size",)),
    Published("0.875x, accumulation 1 x 4 instead of batch 4", "Hugging Face single-GPU guide", "1 GPU", "ratio", model="BERT-large",
              phase="train", device="cuda", knobs={"accum_steps": 4}, over={"accum_steps": 1}, unlike=("batch",)),
    Published("1.09x, DDP over DP", "Hugging Face multi-GPU guide", "2 GPUs, NVLink", "ratio", model="GPT-2", phase="train", device="cuda",
              knobs={"parallel": "ddp", "ranks": 2}, over={"parallel": "dp", "ranks": 1}),
    Published("6.72x, DDP on 8 devices", "NVIDIA DeepLearningExamples", "8 A100", "ratio", phase="train", device="cuda",
              knobs={"parallel": "ddp", "ranks": 8}, over={"parallel": "none", "ranks": 1}, unlike=("AMP on both sides",)),
    Published("95.9 %, CIFAR-10 from random weights", "BYOL, table 3", "not stated", "quality", phase="train",
              unlike=("epochs", "image size", "optimizer's recipe")),
    Published("326 JPEG images/s", "FFCV, by vCPU", "96 vCPU", "jpeg", model="", unlike=("decoder", "a loader around it")),
    Published("50.5 images/s, INT8", "MLPerf Inference v1.0, by core", "2 Xeon 8380, VNNI", "core", knobs=INT8, isa="avx512_vnni",
              unlike=("many samples at once", "clock")),
    Published("197 images/s, INT8", "MLPerf Inference v4.1, by core", "2 Xeon 8592+, AMX", "core", knobs=INT8, isa="amx_int8",
              unlike=("many samples at once", "clock")),
    Published("2.06x, ONNX Runtime INT8 over FP32", "Intel Neural Compressor list", "a Xeon", "ratio",
              knobs={"engine": "onnxruntime", "precision": "int8"}, over={"precision": "fp32"}, unlike=("number of cores",)),
    Published("1.18x, ONNX Runtime INT8 over FP32", "Intel Neural Compressor list", "a Xeon", "ratio", model="xlnet",
              knobs={"engine": "onnxruntime", "precision": "int8"}, over={"precision": "fp32"}, unlike=("number of cores",)),
    Published("0.81x, AMP over FP32 at batch 1", "NVIDIA DeepLearningExamples", "1 V100", "ratio", device="cuda",
              knobs={"engine": "eager", "precision": "bf16", "batch": 1}, over={"precision": "fp32"}, unlike=("FP16",)),
    Published("8 s the first load, under 0.5 s a later one", "NVIDIA/TensorRT#2061", "1 GPU", "start", model="", device="cuda",
              knobs={"stored": True}, unlike=("engine",)),
)


def nearest(one: Published, rows: Sequence[Row], records: Iterable[Record]) -> tuple[str, str] | None:
    """(figure, workload and machine) of ours that is nearest to `one`; None where nothing alike was measured. Of several ratios the middle
    one: the best would be a choice."""
    look = {"ratio": _ratios, "core": _by_core, "quality": _qualities, "jpeg": _decodes, "start": _starts}[one.kind]
    found = look(one, rows, list(records))
    if not found:
        return None
    found.sort()
    _, text, where = found[len(found) // 2] if one.kind == "ratio" else found[0] if one.kind == "start" else found[-1]
    return text, where


def _of(one: Published) -> str:
    """The workload whose figure stands beside it: its own, or ResNet-50's where the model is none of the course."""
    return one.model if one.model in tables.TITLES else "resnet50"


def _has(one: Published, knobs: dict) -> bool:
    return one.knobs.items() <= knobs.items()


def _ratios(one: Published, rows: Sequence[Row], _records) -> list[tuple]:
    own = [row for row in rows if (row.workload, row.phase) == (_of(one), one.phase) and row.per_s and row.tier != "smoke"]
    pairs = [(a, b) for a in own if _has(one, a.knobs) for b in own
             if (a.group, a.machine) == (b.group, b.machine) and {**a.knobs, **one.over} == b.knobs]
    return [(a.per_s / b.per_s, f"{a.per_s / b.per_s:.2f}x", f"{a.machine}, {a.rounds} rounds") for a, b in pairs]


def _by_core(one: Published, rows: Sequence[Row], records: list[Record]) -> list[tuple]:
    machines = {r.machine["id"]: r.machine for r in records}
    own = [row for row in rows if row.workload == _of(one) and row.per_s and row.tier != "smoke" and _has(one, row.knobs)
           and row.knobs.get("device") == "cpu" and _instructions(machines[row.machine]) == one.isa]
    rates = [(row.per_s / (row.knobs.get("threads") or machines[row.machine]["cores"]), row) for row in own]
    return [(rate, tables.figure(rate, "images/s"), f"{row.machine}, {row.knobs['engine']}") for rate, row in rates]


def _instructions(machine: dict) -> str | None:
    """The widest INT8 instructions of the cores: those of a library's INT8."""
    return next((name for name in ("amx_int8", "avx512_vnni", "avx_vnni") if name in machine["isa"]), None)


def _qualities(one: Published, _rows, records: list[Record]) -> list[tuple]:
    fits = [r for r in records if r.status == "ok" and r.knobs.get("epochs") and r.quality and r.case["workload"] == _of(one)
            and r.case["tier"] != "smoke" and r.actual["data"]["name"] == "cifar10"]
    return [(r.quality["value"], f"{r.quality['value']:.1%}", f"{r.machine['id']}, {r.knobs['epochs']} epochs of "
             f"{r.actual['data']['n_train']:,} images") for r in fits]


def _decodes(_one: Published, _rows, records: list[Record]) -> list[tuple]:
    own = [r for r in records if r.case["phase"] == "limit" and r.status == "ok" and r.knobs["kind"] == "jpeg"]
    return [(r.actual["value"], tables.figure(r.actual["value"], "images/s"), r.machine["id"]) for r in own]


def _starts(one: Published, _rows, records: list[Record]) -> list[tuple]:
    own = [r for r in records if r.status == "ok" and r.case["workload"] == _of(one) and _has(one, r.knobs) and r.cold.get("load_s")]
    engines = {(r.knobs["engine"], r.machine["id"]) for r in own}
    found = []
    for engine, machine in sorted(engines):
        seconds = statistics.median(r.cold["load_s"] + r.cold["first_call_s"] for r in own
                                    if (r.knobs["engine"], r.machine["id"]) == (engine, machine))
        found.append((seconds, tables.figure(seconds, "s"), f"{machine}, {engine}"))
    return found


def comparable(one: Published) -> tuple[bool, str]:
    """Whether our CPU figures may be held against it, and what differs."""
    decisive = (["a GPU against CPUs"] if one.device == "cuda" else []) + (
        [f"{one.model} against {tables.title(_of(one))}"] if one.model and one.model != _of(one) else [])
    return not decisive and one.kind != "quality", ", ".join([*decisive, *one.unlike])


def markdown(rows: Sequence[Row], records: Sequence[Record]) -> str:
    """All figures as a Markdown table: published, source, hardware, ours, where, comparable and why."""
    titles = ("published", "source", "hardware", "ours", "where", "comparable?")
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for one in FIGURES:
        ours, (may, why) = nearest(one, rows, records), comparable(one)
        word = "not measured here" if ours is None else f"{'yes, but' if may and why else 'yes' if may else 'no'}"
        model = f"{tables.title(one.model)}: " if one.model else ""
        cells = (model + one.figure, one.source, one.hardware, *(ours or ("", "")), word + (f": {why}" if why and ours else ""))
        lines.append("| " + " | ".join(tables.escape(cell) for cell in cells) + " |")
    return "\n".join(lines)
