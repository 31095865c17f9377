"""A torch module as an ONNX file, and whether the file computes what the module computes."""

import collections
import contextlib
import io
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from hpml import env
from hpml.einsum import weights_as_matrices
from hpml.engines import one_line
from hpml.env import HpmlError, Unavailable

if TYPE_CHECKING:
    import numpy as np

LOG = logging.getLogger(__name__)
PROTOBUF_LIMIT_BYTES = 2**31 - 2**20  # a protobuf message ends at 2 GiB; the graph itself needs some room


def export_onnx(model, example_inputs: tuple, path: str | Path, *, input_names: list[str], output_names: list[str],
                dynamic_batch: bool = True) -> dict:
    """Writes `model` (used in eval mode) as one ONNX file by torch's dynamo exporter; it appears whole and checked.

    `example_inputs`: tensors; with `dynamic_batch` their first dimension is the batch, at least 2 (1 would be baked
    in), and the file takes any batch size. Weights of 2 GB and more go to `<path>.data` beside it.
    Returns {export_s, bytes, opset, ops {type: n}, exporter}; export_s is the exporter's time without the check.
    Raises HpmlError where the exporter or the checker refuses, Unavailable where a package is missing. What the
    exporter prints goes to the log at level DEBUG.
    """
    for package in ("torch", "onnx", "onnxscript"):
        if reason := env.missing(package):
            raise Unavailable(f"ONNX export: {reason}")
    import onnx
    import torch

    path = Path(path)
    shapes = [tuple(tensor.shape) for tensor in example_inputs]
    if len(input_names) != len(example_inputs):
        raise HpmlError(f"{path.name}: {len(input_names)} input names for {len(example_inputs)} example inputs")
    if dynamic_batch and any(not shape or shape[0] < 2 for shape in shapes):
        raise HpmlError(f"{path.name}: a dynamic batch needs an example batch of 2 or more, shapes given: {shapes}")
    batch = torch.export.Dim("batch")
    dynamic_shapes = tuple({0: batch} for _ in example_inputs) if dynamic_batch else None
    weight_bytes = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    external = weight_bytes >= PROTOBUF_LIMIT_BYTES
    path.parent.mkdir(parents=True, exist_ok=True)
    modes = {module: module.training for module in model.modules()}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        target = Path(folder) / path.name
        start = time.perf_counter()
        try:
            model.eval()
            with _quiet(), torch.no_grad():
                torch.onnx.export(model, tuple(example_inputs), str(target), input_names=list(input_names),
                                  output_names=list(output_names), dynamo=True, dynamic_shapes=dynamic_shapes,
                                  external_data=external, verbose=False)
            if not external:
                weights_as_matrices(target)
            export_s = time.perf_counter() - start
            onnx.checker.check_model(str(target))
        except Exception as error:
            LOG.debug("export of %s", path, exc_info=True)
            cause = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
            raise HpmlError(f"{path.name}: {type(model).__name__} cannot be exported: "
                            f"{type(error).__name__}: {cause}") from error
        finally:
            for module, training in modes.items():
                module.training = training
        info = _describe(target)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == target):  # the graph last
            os.replace(file, path.parent / file.name)
    return {"export_s": export_s, **info, "exporter": "dynamo"}


def to_fp16(source: Path, target: Path) -> None:
    """Writes the graph `source` with FP16 in the place of FP32 to `target`, whole or not at all; inputs and outputs stay FP32, INT8 stays.

    ONNX Runtime's converter leaves the operators in FP32 that have no FP16 form, and clips constants to what FP16 can hold. Raises
    HpmlError for a graph that it or ONNX's checker refuses, Unavailable where a package is missing.
    """
    for package in ("onnx", "onnxruntime"):
        if reason := env.missing(package):
            raise Unavailable(f"FP16 graph: {reason}")
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    partial = target.with_suffix(f".{os.getpid()}")
    try:
        with _quiet():
            made = OnnxModel(convert_float_to_float16(onnx.load(source), keep_io_types=True))
            made.topological_sort()  # the converter appends its casts
            onnx.save(made.model, partial)
        onnx.checker.check_model(str(partial))
        partial.replace(target)
    except MemoryError:
        raise
    except Exception as error:
        raise HpmlError(f"{source.name}: cannot be converted to FP16: {type(error).__name__}: {one_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def graph_ops(path: str | Path) -> dict[str, int]:
    """Operators of an ONNX file by type (inside model-local functions too). Raises HpmlError for a damaged file."""
    return _describe(Path(path))["ops"]


def parity(reference, outputs, *, atol: float, rtol: float) -> dict:
    """Whether `outputs` (an array, or a tuple of arrays) differ from `reference` by at most atol + rtol * |reference|.

    Returns max_abs; max_rel (over elements with |reference| > atol; None without such); cosine (the lowest of all
    samples, a sample being a row of the first dimension); top1_agreement (share of rows with the same arg max, over
    outputs [N, classes]; None without such); tolerance; passed. What is not finite on either side fails and leaves the
    other figures None. Raises HpmlError where numbers of outputs or their shapes differ.
    """
    import numpy as np

    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in _pairs(reference, outputs)]
    result = {"max_abs": None, "max_rel": None, "cosine": None, "top1_agreement": None,
              "tolerance": {"atol": atol, "rtol": rtol}, "passed": False}
    if not all(np.isfinite(array).all() for pair in pairs for array in pair):
        return result
    differences = [np.abs(a - b) for a, b in pairs]
    large = [np.abs(a) > atol for a, _ in pairs]
    relative = [d[k] / np.abs(a[k]) for d, k, (a, _) in zip(differences, large, pairs, strict=True)]
    same = [a.argmax(1) == b.argmax(1) for a, b in pairs if a.ndim == 2 and a.shape[1] > 1]
    return result | {
        "max_abs": max(float(d.max(initial=0)) for d in differences),
        "max_rel": max((float(r.max()) for r in relative if r.size), default=None),
        "cosine": min(_lowest_cosine(a, b) for a, b in pairs),
        "top1_agreement": float(np.concatenate(same).mean()) if same else None,
        "passed": all(bool((d <= atol + rtol * np.abs(a)).all()) for d, (a, _) in zip(differences, pairs, strict=True)),
    }


def _pairs(reference, outputs) -> "list[tuple[np.ndarray, np.ndarray]]":
    reference, outputs = (x if isinstance(x, tuple | list) else (x,) for x in (reference, outputs))
    shapes = [[tuple(array.shape) for array in arrays] for arrays in (reference, outputs)]
    if shapes[0] != shapes[1]:
        raise HpmlError(f"parity: outputs of shapes {shapes[1]} cannot be compared with {shapes[0]}")
    return list(zip(reference, outputs, strict=True))


def _lowest_cosine(a: "np.ndarray", b: "np.ndarray") -> float:
    import numpy as np

    a, b = (x.reshape(len(x), -1) if x.ndim > 1 else x.reshape(1, -1) for x in (a, b))
    dots, norms = (a * b).sum(1), np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.abs(a).sum(1) == 0) & (np.abs(b).sum(1) == 0)
    return float(np.where(both_zero, 1.0, dots / np.where(norms == 0, 1.0, norms)).min(initial=1.0))


def _describe(path: Path) -> dict:
    """Bytes (with external weights), opset of the standard operators, number of operators by type."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise HpmlError(f"{path}: not a readable ONNX model ({type(error).__name__}); export it again") from error
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    external = path.with_name(path.name + ".data")
    return {"bytes": path.stat().st_size + (external.stat().st_size if external.exists() else 0),
            "opset": next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None),
            "ops": dict(sorted(collections.Counter(node.op_type for node in nodes).items()))}


@contextlib.contextmanager
def _quiet():
    """Sends warnings, prints and log lines of the exporter to our log."""
    printed = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
            warnings.simplefilter("always")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    for warning in caught:
        LOG.debug("%s: %s", warning.category.__name__, warning.message)
    if printed.getvalue():
        LOG.debug("%s", printed.getvalue())
