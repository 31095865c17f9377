"""The engines that execute a model for inference: one file each, found by file name.

Every file has one class `Engine`:

    WANTS                         "module" (a torch nn.Module) or "onnx" (path of an ONNX file)
    HALF                          of "onnx": the precisions for which it takes a file whose floats are FP16
    OPTIONS                       knobs that it takes beyond the four below
    Engine(device=, threads=, precision=, hint=)   threads=0: the engine's own number; Unavailable for what cannot be
    unavailable(device)           why the engine cannot be used, or None; cheap, never initialises CUDA
    load(artefact[, example])     HpmlError for a damaged file; ProviderFallback. A module comes with example input tensors
    STORED, SUFFIX                what its stored form is, and its file's ending; None where it has none
    build(artefact, path, example)   writes the stored form; load_stored(path, example) takes it in another process
    run(inputs) -> outputs        tuples of arrays; host copies included
    bind(batches); run_bound(i)   inputs and outputs resident on the device; returns when the device is done
    outputs(i)                    what the last run_bound of that batch left, copied to the host
    actual                        what really runs: provider, device, threads, precision, hint, streams, ops, ...
"""

import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.env import HpmlError

if TYPE_CHECKING:
    import numpy as np

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")
INTEGER_OPS = ("QuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger")


class ProviderFallback(HpmlError):
    """The engine took another provider than the one that was asked for; its times would carry the wrong name."""


class TooLong(HpmlError):
    """Compiling was given up at the tier's limit."""


def names() -> list[str]:
    """Names of all engines: the files of this folder."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith("_"))


def get(name: str) -> type:
    """The `Engine` class of one engine. Raises HpmlError for a name that is not a file here."""
    if name not in names():
        raise HpmlError(f"engine {name!r} is unknown; known: {', '.join(names())}")
    return importlib.import_module(f"hpml.engines.{name}").Engine


def availability(device: str = "cpu") -> dict[str, str | None]:
    """Why each engine cannot be used on `device`; None where it can."""
    return {name: get(name).unavailable(device) for name in names()}


def check_request(*, engine: str, device: str, precision: str, hint: str) -> None:
    """Raises HpmlError for a value that no engine knows."""
    for what, value, known in (("device", device, ("cpu", "cuda")), ("precision", precision, PRECISIONS),
                               ("hint", hint, ("latency", "throughput"))):
        if value not in known:
            raise HpmlError(f"engine {engine}: {what} {value!r} is unknown; known: {', '.join(known)}")


def check_inputs(*, model: str, declared: list[tuple[str, str, list]], inputs: "tuple[np.ndarray, ...]") -> None:
    """Raises HpmlError where arrays do not fit what the model declares.

    `declared`: (name, numpy type name, dimensions) of each input; a dimension that is not an int is free.
    """
    if len(inputs) != len(declared):
        raise HpmlError(f"{model} takes {len(declared)} inputs ({', '.join(name for name, *_ in declared)}), "
                        f"{len(inputs)} were given")
    for (name, dtype, dims), array in zip(declared, inputs, strict=True):
        if str(array.dtype) != dtype:
            raise HpmlError(f"{model}: input {name!r} is {dtype}, an array of {array.dtype} was given")
        fits = len(dims) == array.ndim and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(dims, array.shape, strict=True))
        if not fits:
            shape = ", ".join(str(dim) for dim in dims)
            raise HpmlError(f"{model}: input {name!r} has shape [{shape}], an array of {list(array.shape)} was given")
    check_batch(model, inputs)


def check_batch(model: str, inputs: "tuple[np.ndarray, ...]") -> None:
    """Raises HpmlError for inputs that hold no sample, or not the same number of them: an engine would answer nothing, or repeat one."""
    counts = [len(array) if array.ndim else 0 for array in inputs]
    if len(set(counts)) > 1:
        raise HpmlError(f"{model}: the inputs hold {', '.join(map(str, counts))} samples: they must hold equally many")
    if counts and not counts[0]:
        raise HpmlError(f"{model}: the batch is empty: give at least one sample")


def graph_precision(path: str | Path) -> str:
    """What an ONNX file computes in: int8 where it has quantised operators, else its narrowest kind of float weights.

    The file is checked as well. Raises HpmlError, in one line, where it is absent or no sound ONNX model. It happens in
    a process of its own: it takes three times the file's size, which is not the engine's memory, and readers of ONNX
    files (OpenVINO's among them) can crash on a damaged one.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise HpmlError(f"{path}: no such ONNX file")
    stat = path.stat()
    precision, fault = _inspect(path, stat.st_mtime_ns, stat.st_size)
    if fault:
        raise HpmlError(f"{path}: not an ONNX model, or damaged ({fault}); export it again")
    return precision


@functools.lru_cache(maxsize=64)
def _inspect(path: Path, _mtime_ns: int, _size: int) -> tuple[str, str]:
    """(precision, "") or ("", fault) of a file in the state that the time and the size stand for."""
    code = "import sys; from hpml.engines import inspect_in_child; inspect_in_child(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=environment)
    try:
        return tuple(json.loads(done.stdout))
    except ValueError:
        return "", f"the reader ended with code {done.returncode}"


def inspect_in_child(path: str) -> None:
    """Prints (precision, fault) as JSON."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(path)
    except Exception as error:  # protobuf's DecodeError, the checker's, or whatever a stray file provokes
        print(json.dumps(["", one_line(error)]))
        return
    kinds = {weight.data_type for weight in model.graph.initializer}
    if any(node.op_type in INTEGER_OPS for node in model.graph.node):
        precision = "int8"
    elif onnx.TensorProto.BFLOAT16 in kinds:
        precision = "bf16"
    else:
        precision = "fp16" if onnx.TensorProto.FLOAT16 in kinds else "fp32"
    print(json.dumps([precision, "" if model.graph.node else "it has no graph"]))


def one_line(error: BaseException) -> str:
    """What an engine's error says, which can be pages, in at most 200 characters of one line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    saying = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    text = " ".join(saying)
    # ONNX Runtime names the node and its source's line first, and that memory was not enough after that.
    return text[max(0, text.find("Failed to allocate memory")):][:200] or type(error).__name__
