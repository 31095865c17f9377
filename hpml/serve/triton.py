"""A workload as a model repository of NVIDIA Triton: the ONNX graph that the study measures, its configuration, its labels.

    REPOSITORY/NAME/config.pbtxt    inputs, outputs, batching, instances (Triton's model_config.proto, as text)
    REPOSITORY/NAME/labels.txt      names of the classes, for Triton's classification extension
    REPOSITORY/NAME/1/model.onnx

Triton batches and schedules; turning bytes into tensors stays the client's part.
"""

import json
import shutil
import tempfile
from pathlib import Path

from hpml import infer, study, workloads
from hpml.env import HpmlError
from hpml.serve import prepare
from hpml.serve.settings import settings_of

# Triton's names of ONNX's element types (onnx.TensorProto.DataType).
TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 3: "TYPE_INT8", 6: "TYPE_INT32", 7: "TYPE_INT64", 9: "TYPE_BOOL", 10: "TYPE_FP16",
         11: "TYPE_FP64", 16: "TYPE_BF16"}
# Of Triton's ONNX Runtime backend, by engine: which device's list of accelerators it stands in.
ACCELERATORS = {"onnxruntime": None, "openvino": "cpu", "tensorrt": "gpu"}
START = "tritonserver --model-repository={root} --http-address=127.0.0.1 --grpc-address=127.0.0.1 --metrics-address=127.0.0.1"


def export(workload: str, repository: Path, *, engine: str = "onnxruntime", precision: str = "fp32", tier: str = "cpu",
           image: int | None = None, run_id: str = "serve", weights: str = "auto", data: str = "auto", device: str = "cpu",
           settings: dict | None = None, knobs: dict | None = None, say=print) -> Path:
    """Write the workload's model into the repository and return its folder; it appears whole. Arguments as of open_service.

    max_batch, max_wait_ms, queue, deadline_ms and streams of `settings` become Triton's. Raises HpmlError for an engine or a precision
    that Triton has not, a model that is there already, or a graph with a fixed batch.
    """
    if engine not in ACCELERATORS:
        raise HpmlError(f"engine {engine!r}: Triton runs the ONNX graph by {', '.join(ACCELERATORS)}")
    if precision not in ("fp32", "fp16", "int8"):
        raise HpmlError(f"precision {precision!r}: the exported graph computes in fp32, fp16 or int8")
    if precision == "fp16" and device == "cpu":
        raise HpmlError("precision 'fp16' is for a GPU: give --device cuda")
    if engine == "tensorrt" and device == "cpu":
        raise HpmlError("engine 'tensorrt' runs on a GPU: give --device cuda")
    if Path(repository).exists() and not Path(repository).is_dir():
        raise HpmlError(f"{repository}: is a file: name a folder")
    settings = settings_of(settings)
    one = prepare.plan(workload, engine="onnxruntime", precision=precision, tier=tier, image=image, run_id=run_id, weights=weights,
                       settings=settings, data=data, device="cpu",
                       knobs={"scheme": "symmetric", **(knobs or {})} if engine == "tensorrt" else knobs)
    job, module = study.job_of(one, run_id), workloads.get(one.workload)
    target = Path(repository) / "_".join((Path(one.workload).stem, *([precision] if precision != "fp32" else [])))
    if target.exists():
        raise HpmlError(f"{target}: is there already: move it away, or choose another repository")
    image_set = module.data(job["knobs"])
    prepare.quantize_once(job, say)
    graph, _ = infer.artefact(job, module, infer.fp32_model(job, module, image_set))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        made = Path(folder) / target.name
        (made / "1").mkdir(parents=True)
        for file in (graph, graph.with_name(graph.name + ".data")):  # weights above 2 GB lie beside the graph, which names the file
            if file.exists():
                shutil.copyfile(file, made / "1" / ("model.onnx" if file == graph else file.name))
        facts = {"precision": precision, "weights": job["knobs"]["weights"], "weights_sha256": job["weights_sha256"] or "none"}
        classes = list(image_set.classes)
        (made / "config.pbtxt").write_text(config(target.name, graph, settings=settings, engine=engine, device=device, facts=facts,
                                                  labels=classes), encoding="utf-8")
        if classes:
            (made / "labels.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        made.rename(target)
    return target


def config(name: str, graph: Path, *, settings, engine: str, device: str, facts: dict, labels: list[str]) -> str:
    """The text of config.pbtxt for an ONNX file. Raises HpmlError where its batch is fixed or Triton lacks a type."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False).graph
    weights = {tensor.name for tensor in model.initializer}
    parts = [f"name: {_text(name)}", 'backend: "onnxruntime"', f"max_batch_size: {settings.max_batch}"]
    for kind, values in (("input", model.input), ("output", model.output)):
        for value in values:
            if value.name in weights:
                continue
            tensor = value.type.tensor_type
            first, *rest = tensor.shape.dim
            if first.HasField("dim_value"):
                raise HpmlError(f"{graph.name}: the batch of {value.name} is fixed at {first.dim_value}, Triton cannot batch it")
            if tensor.elem_type not in TYPES:
                raise HpmlError(f"{graph.name}: Triton knows no type for {value.name} ({onnx.TensorProto.DataType.Name(tensor.elem_type)})")
            dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in rest]
            label = ' label_filename: "labels.txt"' if kind == "output" and labels and dims == [len(labels)] else ""
            parts.append(f"{kind} [{{ name: {_text(value.name)} data_type: {TYPES[tensor.elem_type]} dims: {dims}{label} }}]")
    place = "KIND_GPU" if device == "cuda" else "KIND_CPU"
    parts.append(f"instance_group [{{ count: {settings.streams or 1} kind: {place} }}]")
    if settings.max_batch > 1:
        deadline = f"default_timeout_microseconds: {round(settings.deadline_ms * 1e3)} " if settings.deadline_ms else ""
        parts.append(f"dynamic_batching {{ max_queue_delay_microseconds: {round(settings.max_wait_ms * 1e3)} default_queue_policy "
                     f"{{ timeout_action: REJECT {deadline}max_queue_size: {settings.queue} }} }}")
    if where := ACCELERATORS[engine]:
        parts.append(f"optimization {{ execution_accelerators {{ {where}_execution_accelerator [{{ name: {_text(engine)} }}] }} }}")
    if settings.threads:
        facts = {"intra_op_thread_count": settings.threads, **facts}
    parts += [f"parameters {{ key: {_text(key)} value {{ string_value: {_text(str(value))} }} }}" for key, value in facts.items()]
    return "\n".join(parts) + "\n"


def _text(value: str) -> str:
    """A string of protobuf's text format, which quotes as JSON does."""
    return json.dumps(value)
