"""INT8: an exported FP32 graph becomes a QDQ graph whose ranges come from real training samples, or one that takes them at each call.

A number x is kept as q = round(x / scale) + zero point in 8 bits. Weights give their own ranges, one for each output channel; those of
activations have to be seen. Both quantizers leave an ONNX file of QuantizeLinear and DequantizeLinear around float operators (Jacob et
al., 2018, arXiv:1712.05877, section 3); ONNX Runtime and OpenVINO fuse these into integer operators, where they can. A dynamic graph
needs no samples: it holds integer products of matrices and takes the range of each input when it sees it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from hpml import env, sensitivity
from hpml import measure as m
from hpml.arithmetic import import_openvino
from hpml.engines import one_line
from hpml.env import HpmlError, Unavailable
from hpml.infer import fp32_model, int8_file, int8_note, onnx_file, stacked
from hpml.workloads import part

if TYPE_CHECKING:
    import numpy as np

MOVING = ("Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")  # what leaves numbers as they are
HEAVY = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")  # where the arithmetic of a network is
# A range is an extreme of what was seen. Of fewer samples than this, the next one leaves the range more often than one time in nine
# (the chance that the largest of n + 1 like values is the last one is 1 / (n + 1)), and clips.
LEAST_SAMPLES = 8
# Two products of unsigned by signed bytes are added in 16 bits where a CPU has none of these; 7-bit weights keep that sum from
# overflowing (ONNX Runtime's documentation of quantize_static, "Choosing parameters for CPU inference").
WIDE_SUMS = ("avx512_vnni", "avx_vnni", "amx_int8")
INTEGER = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}  # of a dynamic graph, and what each was
CLIPPED_SHARE = 1e-5  # of the values, at each end: what calibration by percentile leaves out (ONNX Runtime's default)


def measure(job: dict, workload: ModuleType) -> dict:
    """A quantization case in a fresh process: the INT8 graph, left in the run for inference, and what making it took."""
    from hpml.data import summary

    knobs, workload = job["knobs"], part(workload, job["knobs"])
    dynamic = knobs["quantization"] == "dynamic"
    need(knobs["quantizer"], knobs["calib_method"], knobs["quantization"], knobs["scheme"])
    only = getattr(workload, "INT8_OPS", None)
    if dynamic and "MatMul" not in (only or ()):
        raise Unavailable(f"{workload.TITLE} is made of convolutions: dynamic quantization is for products of matrices, whose ranges are "
                          "quickly taken; convolutions are quantized statically")
    m.set_threads(knobs["threads"])
    image_set = workload.data(knobs)
    samples, indices = calibration(workload, knobs, image_set)
    source, exported = onnx_file(job, workload, fp32_model(job, workload, image_set))
    target = int8_file(job)
    for old in (int8_note(job), target.with_suffix(".fp16.onnx")):  # of a graph that is made anew
        old.unlink(missing_ok=True)
    facts = quantize(source, target, dict(zip(workload.INPUT_NAMES, samples, strict=True)), quantizer=knobs["quantizer"],
                     method=knobs["calib_method"], only=only, dynamic=dynamic, symmetric=knobs["scheme"] == "symmetric",
                     keep_fp=knobs["keep_fp"], agreement=getattr(workload, "agreement", None), ranking=_ranking_file(job, source))
    facts |= {"calibrated_on": indices, "weights": knobs["weights"]}
    partial = target.with_suffix(".part")
    partial.write_text(json.dumps(facts))
    partial.replace(int8_note(job))
    return {
        "cold": {"quantize_s": facts.pop("quantize_s"), "export_s": exported.get("export_s"), "bytes": facts["bytes"],
                 "fp32_bytes": facts["fp32_bytes"]},
        "actual": {**facts, "device": "cpu", "data": summary(image_set)}, "memory": {"peak_rss_mib": m.peak_rss_mib()},
    }


def _ranking_file(job: dict, source: Path) -> Path:
    """Where the run keeps which operators of a graph INT8 harms most: the same for every number of them that is kept."""
    facts = (source.name, job["code"], *(job["knobs"][name] for name in ("calib_samples", "train_samples", "seed")))
    return Path(job["run_dir"], "cache", "ranking", f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.json")


def need(quantizer: str, method: str, quantization: str = "static", scheme: str = "affine") -> None:
    """Raises Unavailable where the quantizer is not installed or does not know the method."""
    for package in {"onnxruntime": ("onnx", "onnxruntime"), "nncf": ("onnx", "onnxruntime", "openvino", "nncf")}[quantizer]:
        if reason := env.missing(package):
            raise Unavailable(f"INT8 by {quantizer}: {reason}")
    if (quantizer, method) == ("nncf", "entropy"):
        raise Unavailable("nncf chooses ranges by extremes or quantiles; entropy calibration is ONNX Runtime's")
    if (quantizer, quantization) == ("nncf", "dynamic"):
        raise Unavailable("nncf makes static graphs; dynamic quantization is ONNX Runtime's")
    if (quantizer, scheme) == ("nncf", "symmetric"):
        raise Unavailable("nncf makes graphs for OpenVINO, whose ranges may be unsigned; symmetric ones are ONNX Runtime's")
    if (quantization, scheme) == ("dynamic", "symmetric"):
        raise Unavailable("ranges that are taken at each call have a zero point: symmetric ones are static")


def calibration(workload: ModuleType, knobs: dict, image_set) -> "tuple[tuple[np.ndarray, ...], list[int]]":
    """(inputs of the calibration samples stacked, their indices among the training samples), chosen at random by the seed.

    They go through the transform of the evaluation: augmentation makes inputs that inference never sees. Raises HpmlError for fewer
    than LEAST_SAMPLES.
    """
    import numpy as np

    # The training samples in the place of the test samples: a data set for testing, over what the model was trained on.
    fields = {field.name for field in dataclasses.fields(image_set)}
    training = {name.replace("train_", "test_", 1): getattr(image_set, name) for name in fields if name.startswith("train_")}
    dataset = workload.dataset(knobs, dataclasses.replace(image_set, **training), train=False)
    count = min(knobs["calib_samples"], len(dataset))
    if count < LEAST_SAMPLES:
        raise HpmlError(f"calibration on {count} sample{'s' * (count != 1)} (calib_samples={knobs['calib_samples']}, "
                        f"{len(dataset)} training samples): ranges need at least {LEAST_SAMPLES}")
    indices = [int(i) for i in np.random.default_rng(knobs["seed"]).permutation(len(dataset))[:count]]
    return stacked(workload, dataset, indices), indices


def quantize(source: Path, target: Path, samples: "dict[str, np.ndarray]", *, quantizer: str = "onnxruntime", method: str = "minmax",
             only: tuple[str, ...] | None = None, dynamic: bool = False, keep_fp: int = 0, agreement: Callable | None = None,
             ranking: Path | None = None, symmetric: bool = False) -> dict:
    """Writes the INT8 form of the FP32 graph `source` to `target`, whole or not at all; returns what it is, with quantize_s.

    `samples`: arrays [N, ...] by input name; the graph sees them one by one. `only`: the operator types to quantize, None for all that
    the quantizer knows. Attention needs ("MatMul", "Gemm"): an additive mask of -1e30 would take the whole range of its sum, and every
    score would become the same number. `dynamic`: ranges of activations are taken at each call. `keep_fp`: so many heavy operators stay in
    floating point, those that harm the output most when they alone are quantized (sensitivity.py; `agreement` is the workload's). Where
    the file `ranking` is, it says which, and what finding that took counts as if it were done again; else it is written. `symmetric`:
    signed ranges around zero with all 8 bits, sums and biases in floating point, as TensorRT takes them.
    Raises HpmlError for a graph that takes other inputs, is damaged, or ends without any quantized operator; Unavailable for a quantizer
    or method that is not here.
    """
    need(quantizer, method, "dynamic" if dynamic else "static", "symmetric" if symmetric else "affine")
    maker = _dynamic if dynamic else {"onnxruntime": _by_onnxruntime, "nncf": _by_nncf}[quantizer]
    seven_bits = env.machine()["arch"] == "x86_64" and not set(WIDE_SUMS) & set(env.machine()["isa"]) and not symmetric
    _check(source, samples)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantize-") as folder:
        made = Path(folder) / target.name
        try:
            with _quiet():
                order = {"operators": [], "seconds": 0.0}
                if keep_fp:
                    kinds = tuple(kind for kind in HEAVY if not only or kind in only)
                    order = _ranked(ranking, functools.partial(sensitivity.ranked, source, samples, kinds=kinds, reader=_reader,
                                                               seven_bits=seven_bits, agreement=agreement))
                kept = order["operators"][:keep_fp]
                started = time.perf_counter()
                maker(source, made, samples, method=method, only=only, seven_bits=seven_bits, kept=[one["name"] for one in kept],
                      symmetric=symmetric)
        except (HpmlError, MemoryError):
            raise
        except Exception as error:
            raise HpmlError(f"{source.name}: {quantizer} cannot quantize it: {type(error).__name__}: {one_line(error)}") from error
        took_s = time.perf_counter() - started + order["seconds"]
        facts = describe(made)
        if not facts["int8_ops"]:
            raise HpmlError(f"{source.name}: {quantizer} quantized none of its {facts['heavy_ops_total']} Conv, Gemm and MatMul operators")
        os.replace(made, target)
    return {**facts, "quantize_s": took_s, "ranking_s": order["seconds"] if keep_fp else None, "kept_fp": kept,
            "quantization": "dynamic" if dynamic else "static", "scheme": "symmetric" if symmetric else "affine", "method": method,
            "quantizer": quantizer, "fp32_bytes": source.stat().st_size,
            "samples": 0 if dynamic else len(next(iter(samples.values()))), "only": only, "weight_bits": 7 if seven_bits else 8}


def _ranked(path: Path | None, make: Callable[[], list[dict]]) -> dict:
    """{"operators", "seconds"} of a ranking: what the file holds, or made and written there."""
    if path and path.exists():
        return json.loads(path.read_text())
    started = time.perf_counter()
    found = {"operators": make(), "seconds": time.perf_counter() - started}
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(found))
        partial.replace(path)
    return found


def describe(path: Path) -> dict:
    """Of an ONNX file: bytes, QuantizeLinear nodes, operators that compute on dequantized inputs, heavy operators whose two operands are
    both dequantized or integers, all heavy operators and the share, DequantizeLinear nodes with a scale for each channel."""
    import numpy as np
    import onnx

    graph = onnx.load(path).graph
    dequantized: set[str] = set()
    for node in graph.node:  # in the order of execution, as ONNX asks for
        if node.op_type == "DequantizeLinear" or (node.op_type in MOVING and node.input[0] in dequantized):
            dequantized |= set(node.output)
    constants = {item.name: int(np.prod(item.dims)) for item in graph.initializer}
    heavy = [node for node in graph.node if INTEGER.get(node.op_type, node.op_type) in HEAVY]
    quantized = [node for node in heavy if node.op_type in INTEGER or set(node.input[:2]) <= dequantized]
    others = [node for node in graph.node if node.op_type not in (*HEAVY, *INTEGER, "QuantizeLinear", "DequantizeLinear")
              and node.input and set(node.input[:1]) <= dequantized]
    makers = ("QuantizeLinear", "DynamicQuantizeLinear")
    return {"bytes": path.stat().st_size, "quantize_nodes": sum(node.op_type in makers for node in graph.node),
            "quantized_ops": len(quantized) + len(others), "int8_ops": len(quantized), "heavy_ops_total": len(heavy),
            "int8_share": len(quantized) / len(heavy) if heavy else None,
            "per_channel": sum(constants.get(node.input[1], 1) > 1 for node in graph.node if node.op_type == "DequantizeLinear")}


def _check(source: Path, samples: "dict[str, np.ndarray]") -> None:
    """Whether the graph takes these samples; ONNX Runtime says so before minutes of calibration."""
    from hpml.engines import check_inputs, get

    engine = get("onnxruntime")(threads=1)
    engine.load(source)
    names = [name for name, *_ in engine.declared]
    if names != list(samples):
        raise HpmlError(f"{source.name} takes the inputs {', '.join(names)}, the calibration samples are {', '.join(samples)}: "
                        "another model")
    check_inputs(model=source.name, declared=engine.declared, inputs=tuple(array[:1] for array in samples.values()))


def _reader(samples: "dict[str, np.ndarray]"):
    """The samples one by one, in the form in which ONNX Runtime asks for them."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.set_range(0, len(self))

        def __len__(self) -> int:
            return len(next(iter(samples.values())))

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(range(start_index, end_index))

        def get_next(self) -> dict | None:
            i = next(self.left, None)
            return None if i is None else {name: array[i:i + 1] for name, array in samples.items()}

    return Reader()


def _by_onnxruntime(source: Path, target: Path, samples, *, method: str, only, seven_bits: bool, kept: list[str], symmetric: bool) -> None:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name("prepared.onnx")
    # Shapes, and BatchNorm folded into the convolution before it, where the exporter has not done it.
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    # It joins a MatMul and the sum after it under the first one's name, with a word behind a stroke.
    graph = onnx.load(prepared, load_external_data=False).graph
    names = [node.name for node in graph.node if node.name.split("/MatMulAddFusion")[0] in kept]
    if seven_bits:  # only weights can be kept to 7 bits: the sums of two activations' product would overflow, so it stays as it is
        constants = {item.name for item in graph.initializer}
        names += [node.name for node in graph.node if node.op_type == "MatMul" and not constants & set(node.input)]
    # Without pairs behind each product, ONNX Runtime has nothing to join with one that stays as it is.
    kind, form = quantization.QuantType.QUInt8, {"OpTypesToExcludeOutputQuantization": ["MatMul"] if seven_bits else []}
    if symmetric:  # TensorRT joins a pair with the operator behind it: none is shared, and none stands between a product and a sum
        kind = quantization.QuantType.QInt8
        form = {"OpTypesToExcludeOutputQuantization": list(HEAVY), "ActivationSymmetric": True, "QuantizeBias": False,
                "DedicatedQDQPair": True}
    # One sample after the other: histograms would otherwise hold all activations of all samples at once.
    quantization.quantize_static(
        prepared, target, _reader(samples), quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=only and list(only),
        nodes_to_exclude=names, per_channel=True, reduce_range=seven_bits,
        activation_type=kind, weight_type=quantization.QuantType.QInt8,
        calibrate_method=getattr(quantization.CalibrationMethod, {"minmax": "MinMax"}.get(method, method.capitalize())),
        extra_options={"CalibStridedMinMax": 1, "CalibPercentile": 100 * (1 - CLIPPED_SHARE), **form})


def _dynamic(source: Path, target: Path, samples, *, seven_bits: bool, kept: list[str], **_) -> None:
    import onnx
    from onnxruntime import quantization

    model = onnx.load(source)
    del model.graph.value_info[:]  # the quantizer turns some weights round, and would then find the shapes that the file states wrong
    quantization.quantize_dynamic(model, target, op_types_to_quantize=["MatMul"], nodes_to_exclude=kept, per_channel=True,
                                  reduce_range=seven_bits, weight_type=quantization.QuantType.QInt8)


def _by_nncf(source: Path, target: Path, samples, *, method: str, only, seven_bits: bool, kept: list[str], **_) -> None:
    """NNCF's post-training quantization with its fast bias correction; signed activations are symmetric (its preset "performance")."""
    import onnx

    import_openvino()  # keeps the telemetry out that both bring
    import nncf
    from nncf.quantization import range_estimator as ranges
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    if method == "minmax":
        chosen = ranges.RangeEstimatorParametersSet.MINMAX
    else:
        ends = [ranges.StatisticsCollectorParameters(statistics_type=ranges.StatisticsType.QUANTILE, quantile_outlier_prob=CLIPPED_SHARE,
                                                     aggregator_type=ranges.AggregatorType.MEAN) for _ in range(2)]
        chosen = ranges.RangeEstimatorParameters(*ends)
    model = onnx.load(source)
    kinds = {node.op_type for node in model.graph.node}
    count = len(next(iter(samples.values())))
    rows = [{name: array[i:i + 1] for name, array in samples.items()} for i in range(count)]
    made = nncf.quantize(
        model, nncf.Dataset(rows), subset_size=count, model_type=nncf.ModelType.TRANSFORMER if "Softmax" in kinds else None,
        ignored_scope=nncf.IgnoredScope(names=kept, types=sorted(kinds - set(only)) if only else [], validate=False),
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if seven_bits else OverflowFix.DISABLE, activations_range_estimator_params=chosen))
    onnx.save(made, target)


@contextlib.contextmanager
def _quiet():
    """Progress and advice of the quantizers are not the case's output."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
