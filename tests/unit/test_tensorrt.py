"""TensorRT without TensorRT: the names that the engine uses exist in the published bindings, and its absence is said truly.

tensorrt_names.txt was made from the wheel that its first line names (`pip download --no-deps tensorrt_cu13_bindings==10.16.*`, which
needs none of NVIDIA's libraries): of a list of API names, those that stand as whole words in the wheel's tensorrt.so or Python files,
or end a string of tensorrt.so (the linker merges a string with the tail of a longer one).
"""

import ast
import sys
from pathlib import Path

import pytest

import hpml
from hpml import engines, env, infer, study, workloads
from hpml.engines import tensorrt
from hpml.env import HpmlError, Unavailable
from hpml.serve import prepare

TINY = str(Path(__file__).parent.parent / "tiny.py")
NAMES = {line for line in (Path(__file__).parent / "tensorrt_names.txt").read_text().splitlines() if not line.startswith("#")}
# Variables of the engine's code that hold TensorRT objects; `engine` and `context` also as attributes of self.
OBJECTS = {"tensorrt", "logger", "builder", "network", "parser", "config", "profile", "engine", "context", "runtime"}


def used(source: str) -> set[str]:
    """Attributes taken from TensorRT's module and objects, also through calls and attributes of these."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            inner, trail = node, []
            while isinstance(inner, ast.Attribute | ast.Call):
                if isinstance(inner, ast.Attribute):
                    trail.append(inner.attr)
                inner = inner.value if isinstance(inner, ast.Attribute) else inner.func
            if isinstance(inner, ast.Name):
                chain = [inner.id, *reversed(trail)]
                if chain[0] == "self":
                    chain = chain[1:]
                if chain and chain[0] in OBJECTS:
                    found |= set(chain[1:])
    return found - {"__name__"}


def test_every_name_exists_in_the_published_bindings():
    names = used(Path(tensorrt.__file__).read_text())
    assert {"STRONGLY_TYPED", "build_serialized_network", "deserialize_cuda_engine", "execute_async_v3", "set_shape", "INPUT"} <= names
    assert names <= NAMES, f"not in TensorRT 10.16: {sorted(names - NAMES)}"


def test_a_misspelt_name_would_be_found():
    source = Path(tensorrt.__file__).read_text()
    for right, wrong in (("set_tensor_address", "set_tensor_adress"), ("parse_from_file", "parse_file"), ("TF32)", "TF_32)")):
        assert right in source and not used(source.replace(right, wrong)) <= NAMES


def test_no_calibrator_and_no_precision_flag():
    names = used(Path(tensorrt.__file__).read_text())
    assert not {"FP16", "INT8", "BF16", "IInt8Calibrator", "IInt8EntropyCalibrator2", "int8_calibrator"} & names


def test_reasons_come_in_order_and_nothing_is_constructed(monkeypatch):
    """Package, driver, import, device: each is asked only when the one before was there."""
    asked = []
    faults = {tensorrt.DRIVER: "OSError: libcuda.so.1: cannot open shared object file", "import tensorrt": "ImportError: libnvinfer.so.10"}
    monkeypatch.setattr(tensorrt, "_fault", lambda code: asked.append(code) or faults[code])
    monkeypatch.setattr(env, "missing", lambda package: f"{package} is not installed")
    assert tensorrt.Engine.unavailable("cuda") == "tensorrt is not installed" and not asked
    monkeypatch.setattr(env, "missing", lambda package: None)
    assert tensorrt.Engine.unavailable("cuda").startswith("no NVIDIA driver that starts: OSError: libcuda.so.1")
    assert asked == [tensorrt.DRIVER]
    faults[tensorrt.DRIVER] = None
    assert tensorrt.Engine.unavailable("cuda") == "tensorrt is installed but cannot be imported: ImportError: libnvinfer.so.10"
    faults["import tensorrt"] = None
    assert tensorrt.Engine.unavailable("cpu") == "TensorRT has no CPU device" and tensorrt.Engine.unavailable("cuda") is None
    faults[tensorrt.DRIVER] = "no driver"
    with pytest.raises(Unavailable, match="tensorrt: no NVIDIA driver that starts: no driver"):
        tensorrt.Engine(device="cuda")
    assert "tensorrt" not in sys.modules
    with pytest.raises(HpmlError, match="known: "):
        tensorrt.Engine(precision="fp8")


def test_int8_takes_symmetric_ranges_only():
    with pytest.raises(Unavailable, match="INT8 with scheme=affine has zero points, which it refuses: take scheme=symmetric"):
        tensorrt.Engine(device="cuda", precision="int8", scheme="affine")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_it_is_given_a_graph_in_the_precision_asked(tmp_path, monkeypatch, precision):
    """Of INT8 what is left in floating point is FP16. ONNX Runtime on the CPU stands for it: it converts where it has no FP16 operator."""
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    one = hpml.case(TINY, phase="infer", tier="smoke", engine="tensorrt", device="cuda", precision=precision)
    job, workload = study.job_of(one, "graphs"), workloads.get(TINY)
    prepare.quantize_once(job, print)
    image_set = workload.data(job["knobs"])
    model = infer.fp32_model(job, workload, image_set)
    infer.prepare(job, workload)  # in a process of its own, so that no case pays for the conversion
    path = infer.typed_file(job)
    assert engines.graph_precision(path) == precision
    import onnx

    kinds = {onnx.TensorProto.DataType.Name(one.data_type) for one in onnx.load(path).graph.initializer}
    assert ("FLOAT16" in kinds) == (precision != "fp32") and ("INT8" in kinds) == (precision == "int8")
    inputs = infer.input_batches(workload, job["knobs"], image_set)[0]
    got = onnxruntime.InferenceSession(str(path)).run(None, dict(zip(workload.INPUT_NAMES, inputs, strict=True)))[0]
    wanted = infer._outputs(model, inputs)
    apart = abs(got - wanted).max() / abs(wanted).max()
    assert got.dtype == wanted.dtype and apart < {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.1}[precision]
    assert precision == "fp32" or apart > 1e-6, "it really computes otherwise"


def test_heavy_layers_are_counted_from_what_the_inspector_says():
    """The form of TensorRT's developer guide, "Engine Inspector"."""
    def layer(kind, taken, **more):
        return {"LayerType": kind, "Inputs": [{"Name": "x", "Format/Datatype": taken}], "Outputs": [], **more}

    wide = "Thirty-two wide channel vectorized row major Int8 format"
    assert tensorrt.heavy_layers([
        layer("CaskConvolution", wide, ParameterType="Convolution"), layer("CaskGemmMatrixMultiply", wide), layer("gemm", "Half"),
        layer("Reformat", wide), layer("kgen", "Int8"), {"LayerType": "CaskDeconvolutionV2", "Inputs": [], "Outputs": []}]) == (2, 4)


def test_a_fault_is_the_last_line_of_a_process_of_its_own():
    assert tensorrt._fault("pass") is None
    assert tensorrt._fault("raise OSError('no library')") == "OSError: no library"
    assert tensorrt._fault("import os; os.abort()").startswith("exit code -6")


def test_it_stands_among_the_engines_with_its_reason():
    if env.missing("tensorrt"):
        assert engines.availability("cpu")["tensorrt"] == "tensorrt is not installed"
