"""One large MatMul or 3x3 convolution on torch, ONNX Runtime or OpenVINO, as a call that can be timed.

Operations are counted as in the direct algorithm (2 per multiply-add), so a library that uses Winograd can exceed the hardware's
arithmetic peak on the convolution.
"""

import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hpml.env import Unavailable

TORCH_DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def operations(kind: str, size: int | tuple[int, int, int]) -> float:
    """Operations of one call, 2 for each multiply-add of the direct algorithm."""
    return 2 * size**3 if kind == "matmul" else 2 * 9 * size[0] * size[1] ** 2 * size[2] ** 2


def import_openvino():
    """The openvino module without telemetry: the import itself sends an event, and no environment variable stops it."""
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino


@functools.cache
def openvino_core():
    """The one Core of this process. With two, the CPU plugin of the earlier unmaps the signal stack that the later gives back when
    it goes, and the next signal (a child's end) kills the process."""
    return import_openvino().Core()


def arithmetic_graph(*, kind: str, dtype: str, size: int | tuple[int, int, int]):
    """An ONNX model of one MatMul or 3x3 Conv, `x` -> `y`, random weights; int8 is QDQ, u8 activations x s8 weights."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    shape = [size, size] if kind == "matmul" else [size[0], size[1], size[2], size[2]]
    weight_shape = (size, size) if kind == "matmul" else (size[1], size[1], 3, 3)
    op, attributes = ("MatMul", {}) if kind == "matmul" else ("Conv", {"pads": [1, 1, 1, 1]})
    if dtype == "int8":
        constants = {"x_scale": np.float32(0.02), "x_zero": np.uint8(128), "w_scale": np.float32(0.01),
                     "w_zero": np.int8(0), "y_scale": np.float32(0.5), "y_zero": np.uint8(128),
                     "w": rng.integers(-127, 128, weight_shape, dtype=np.int8)}
        nodes = [helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["x_float"]),
                 helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_float"]),
                 helper.make_node(op, ["x_float", "w_float"], ["y_float"], **attributes),
                 helper.make_node("QuantizeLinear", ["y_float", "y_scale", "y_zero"], ["y"])]
        initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        element = TensorProto.UINT8
    else:
        element = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16}.get(dtype, TensorProto.FLOAT)
        weights = rng.standard_normal(weight_shape, dtype=np.float32)
        if dtype == "bf16":  # numpy has no bf16; it is the upper half of a float32
            raw = (weights.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            raw = weights.astype(np.float16 if dtype == "fp16" else np.float32).tobytes()
        nodes = [helper.make_node(op, ["x", "w"], ["y"], **attributes)]
        initializers = [helper.make_tensor("w", element, weight_shape, raw, raw=True)]
    graph = helper.make_graph(nodes, kind, [helper.make_tensor_value_info("x", element, shape)],
                              [helper.make_tensor_value_info("y", element, shape)], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _input(kind: str, dtype: str, size: int | tuple[int, int, int]):
    import numpy as np

    rng = np.random.default_rng(1)
    shape = (size, size) if kind == "matmul" else (size[0], size[1], size[2], size[2])
    if dtype == "int8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape, dtype=np.float32)


def _torch(*, kind: str, dtype: str, device: str, threads: int, size) -> tuple[Callable, str]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    if dtype == "int8":
        return _torch_int8(kind=kind, device=device, size=size)
    layout = {} if kind == "matmul" else {"memory_format": torch.channels_last}
    weight_shape = (size, size) if kind == "matmul" else (size[1], size[1], 3, 3)
    x = torch.from_numpy(_input(kind, dtype, size)).to(device, getattr(torch, TORCH_DTYPES[dtype]), **layout)
    weight = torch.randn(weight_shape, device=device).to(x.dtype, **layout)
    conv = torch.nn.functional.conv2d

    def call() -> None:
        with torch.inference_mode():
            x @ weight if kind == "matmul" else conv(x, weight, padding=1)

    if device == "cpu":
        return call, f"torch {x.dtype}, {torch.get_num_threads()} threads"

    def call_cuda() -> None:
        # Set for each call and undone: these switches belong to the process, and another measurement may follow in it.
        matmul_before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, dtype == "tf32"
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=dtype == "tf32"):
            call()
        torch.cuda.synchronize()
        torch.backends.cuda.matmul.allow_tf32 = matmul_before

    return call_cuda, f"torch {x.dtype}, tf32 {'on' if dtype == 'tf32' else 'off'}, {torch.cuda.get_device_name()}"


def _torch_int8(*, kind: str, device: str, size) -> tuple[Callable, str]:
    import torch

    if kind != "matmul":
        raise Unavailable("torch has no public int8 convolution outside quantised modules")
    if not hasattr(torch, "_int_mm"):
        raise Unavailable(f"torch {torch.__version__} has no _int_mm")
    x, weight = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
    weight = weight.t()  # cuBLASLt takes the second matrix column by column

    def call() -> None:
        torch._int_mm(x, weight)
        if device == "cuda":
            torch.cuda.synchronize()

    try:
        call()
    except (RuntimeError, NotImplementedError) as error:
        raise Unavailable(f"torch._int_mm: {str(error).splitlines()[0]}") from error
    return call, "torch._int_mm s8 x s8 -> s32"


def _onnxruntime(*, kind: str, dtype: str, device: str, threads: int, size) -> tuple[Callable, str]:
    if device == "cpu" and dtype == "bf16":
        raise Unavailable("ONNX Runtime's CPU provider has no bf16 MatMul or Conv")
    if device == "cuda" and dtype == "int8":
        raise Unavailable("ONNX Runtime's CUDA provider computes a QDQ graph in floating point")
    if device == "cuda":
        import torch  # noqa: F401  loads the CUDA libraries that onnxruntime looks for
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    settings = {"use_tf32": "1" if dtype == "tf32" else "0"} if device == "cuda" else {}
    model = arithmetic_graph(kind=kind, dtype=dtype, size=size)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[(provider, settings)])
        except Exception as error:
            raise Unavailable(f"onnxruntime cannot run {kind} in {dtype}: {str(error).splitlines()[0][:99]}") from error
        ops = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    if session.get_providers()[0] != provider:
        raise Unavailable(f"onnxruntime: the session got {session.get_providers()[0]}, not {provider}")
    if dtype == "int8" and not {"QLinearMatMul", "QLinearConv"} & set(ops):
        raise Unavailable(f"onnxruntime did not fuse the QDQ graph into an integer operator; it runs {', '.join(ops)}")
    x, binding = _input(kind, dtype, size), session.io_binding()
    if device == "cuda":  # numpy has no bf16, so the buffer is torch's
        x = torch.from_numpy(x).to(device, getattr(torch, TORCH_DTYPES[dtype]))
        element = model.graph.input[0].type.tensor_type.elem_type
        binding.bind_input("x", device, 0, element, tuple(x.shape), x.data_ptr())
    else:
        binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x, device, 0))
    binding.bind_output("y", device, 0)

    def call(keep=x) -> None:  # the binding does not keep the buffer alive
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call, f"{provider}: {', '.join(ops)}"


def _openvino(*, kind: str, dtype: str, device: str, threads: int, size) -> tuple[Callable, str]:
    if device != "cpu":
        raise Unavailable("OpenVINO has no CUDA device")
    openvino = import_openvino()
    core, hint = openvino_core(), "bf16" if dtype == "bf16" else "f32"
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    # The plugin gets a float32 graph for bf16 and converts, which is how bf16 is used with it.
    graph = arithmetic_graph(kind=kind, dtype="fp32" if dtype == "bf16" else dtype, size=size)
    compiled = core.compile_model(core.read_model(graph.SerializeToString()), "CPU", config)
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    ran = [(info["layerType"].value, info["runtimePrecision"].value, info["primitiveType"].value) for info in infos
           if info["layerType"].value in ("MatMul", "FullyConnected", "Convolution")]
    wanted = {"fp32": ("f32",), "bf16": ("bf16",), "int8": ("u8", "i8")}[dtype]
    if not ran or any(precision not in wanted for _, precision, _ in ran):
        found = ", ".join(precision for _, precision, _ in ran) or "another form"
        raise Unavailable(f"OpenVINO runs {kind} in {found} here though {dtype} was asked")
    request = compiled.create_infer_request()
    tensor = openvino.Tensor(_input(kind, dtype, size), shared_memory=True)
    request.set_input_tensor(tensor)

    def call(keep=tensor) -> None:  # the request does not keep the shared array alive and would read freed memory
        request.infer(share_outputs=True)

    return call, "; ".join(" ".join(words) for words in ran)


BUILDERS = {"torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino}
