"""Settings in the field's words: `precision=int8, engine=openvino, quantizer=nncf` is said "INT8 by NNCF in OpenVINO"."""

from collections.abc import Mapping, Sequence

# What is said of a value; {} stands for it. A value that is not here is said as name=value.
WORDS: dict[str, dict | str] = {
    "precision": {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"},
    "quantizer": {"onnxruntime": "by ONNX Runtime", "nncf": "by NNCF"},
    "engine": {"eager": "PyTorch", "torchscript": "TorchScript", "compile": "torch.compile", "onnxruntime": "ONNX Runtime",
               "openvino": "OpenVINO", "tensorrt": "TensorRT"},
    "memory_format": {"contiguous": "contiguous", "channels_last": "channels-last"},
    "script": {"none": "no script", "torchscript": "TorchScript", "compile": "torch.compile"},
    "parallel": {"none": "one process", "dp": "DP", "ddp": "DDP"},
    "ranks": "{} rank",
    "replicas": "{} copy",
    "threads": "{} thread",
    "workers": "{} loader worker",
    "accum_steps": "accumulation over {}",
    "pin_memory": {True: "pinned memory", False: "pageable memory"},
    "non_blocking": {True: "non-blocking copies", False: "blocking copies"},
    "start_method": "workers by {}",
    "prefetch": "{} batches ahead",
    "storage": {"array": "decoded pixels", "jpeg": "JPEG files", "shards": "shards", "shards_http": "shards over HTTP",
                "webdataset": "WebDataset"},
    "hint": "{} hint",
    "stored": {True: "stored", False: "built anew"},
    "batch": "batch {}",
    "length": "{} tokens",
    "scheme": {"affine": "zero points", "symmetric": "symmetric ranges"},
    "keep_fp": "{} operator in FP32",
}
PLAIN = {("threads", 0): "all threads", ("workers", 0): "no loader workers", ("accum_steps", 1): "no accumulation",
         ("keep_fp", 0): "no operators in FP32"}
MANY = {"rank": "ranks", "copy": "copies", "thread": "threads", "loader worker": "loader workers", "operator in FP32": "operators in FP32"}


def words(knobs: Mapping, names: Sequence[str]) -> str:
    """The named settings of a case, "" for none. Of INT8 it is always said who made it, and whether its ranges are taken at
    each call or lie around zero."""
    names = [name for name in names if name in knobs]
    int8 = "precision" in names and knobs["precision"] == "int8"
    ranked = "parallel" in names and "ranks" in names and knobs["parallel"] != "none"
    parts = []
    for name in sorted(names, key=lambda name: list(WORDS).index(name) if name in WORDS else len(WORDS)):
        said = _said(name, knobs[name])
        if name == "precision" and int8:
            kind = "dynamic " * (knobs.get("quantization") == "dynamic") + "symmetric " * (knobs.get("scheme") == "symmetric")
            said = " ".join(filter(None, (kind + said, _said("quantizer", knobs["quantizer"]) if "quantizer" in knobs else "")))
        if name in ("quantizer", "quantization", "scheme") and "precision" in names:
            continue  # said with INT8, and FP32 has none
        if name == "keep_fp" and not knobs[name] and "precision" in names:
            continue  # INT8 is all of INT8 where nothing else is said, and of FP32 nothing else could be
        if name == "engine" and "precision" in names:
            parts[-1] += f" in {said}"
        elif name == "ranks" and ranked:
            parts[-1] += f" on {said}"
        elif not (name == "ranks" and "parallel" in names):
            parts.append(said)
    return " + ".join(parts)


def _said(name: str, value) -> str:
    known = WORDS.get(name)
    if isinstance(known, dict):
        return known.get(value, f"{name}={value}")
    if known is None:
        return f"{name}={value}"
    if (name, value) in PLAIN:
        return PLAIN[name, value]
    said = known.format(value)
    one = known.removeprefix("{} ")
    return said if value == 1 or one not in MANY else f"{value} {MANY[one]}"
