"""What this machine can do at most: FLOP/s by data type, bytes/s of memory and copies, JPEG decodes/s of one core.

Arithmetic: the best of torch, ONNX Runtime and OpenVINO on a large MatMul and a 3x3 convolution. Operations are counted
as in the direct algorithm (2 per multiply-add), so a library that uses Winograd can exceed the hardware's arithmetic
peak on the convolution.
"""

import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hpml import env
from hpml.env import HpmlError, Unavailable

ARITHMETIC = ("matmul", "conv3x3")
COPIES = ("h2d_pinned", "h2d_pageable", "d2h_pinned", "d2h_pageable")
# Side of the square matrices; (batch, channels, side of the image). 1920 and not 2048: rows a power of two apart fall
# into the same cache sets, which cost ONNX Runtime and OpenVINO a third of the FP32 rate on a Zen 4 core.
SIZES = {
    "cpu": {"matmul": 1920, "conv3x3": (8, 256, 56)},
    "cuda": {"matmul": 8192, "conv3x3": (64, 256, 56)},
}
# What tells beforehand how long a call at the full size takes on a CPU: BF16 without AVX-512 can take a minute.
PROBES = {"matmul": 480, "conv3x3": (1, 256, 28)}
BUFFER_BYTES = {"cpu": 512 * 2**20, "cuda": 2**30}
SLOW_CALL_S = 2.0  # where a call at the full size would take longer, the limit is measured at the probe's size
JPEG_FILES, JPEG_WIDTH, JPEG_HEIGHT = 8, 500, 375
TORCH_DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def plan(device: str = "cpu") -> list[dict]:
    """What `measure` is to be asked on `device`: dicts of kind, dtype (None where it has none), engine.

    `cuda` lists only what concerns the GPU; memory and JPEG of the host are in `cpu`. Entries that turn out impossible
    raise `Unavailable` when measured, with the reason.
    """
    if device == "cpu":
        dtypes, engines = ("fp32", "bf16", "int8"), ("torch", "onnxruntime", "openvino")
        others = [("memory", None, "torch"), ("jpeg", None, "pil")]
    elif device == "cuda":
        dtypes, engines = ("fp32", "tf32", "bf16", "fp16", "int8"), ("torch", "onnxruntime")
        others = [("memory", None, "torch"), *((kind, None, "torch") for kind in COPIES)]
    else:
        raise HpmlError(f"limits: unknown device {device!r}; known: cpu, cuda")
    arithmetic = [(kind, dtype, engine) for kind in ARITHMETIC for dtype in dtypes for engine in engines]
    return [{"kind": kind, "dtype": dtype, "engine": engine} for kind, dtype, engine in [*arithmetic, *others]]


def measure(*, kind: str, dtype: str | None = None, engine: str = "torch", device: str = "cpu", threads: int = 0,
            seconds: float = 1.0, size: int | tuple[int, int, int] | None = None) -> dict:
    """The highest rate seen in `seconds` of repeated calls: {value, unit, values (every rate), ran (what executed it)}.

    Units: FLOP/s (matmul, conv3x3; integer operations count alike), B/s (memory: bytes read + written; copies: bytes
    moved), images/s (jpeg: one core). `threads=0` leaves the library's own number. `size`: matrix side; (batch,
    channels, side); bytes of a buffer; number of JPEG files. Sets torch's thread number for the process.
    Raises HpmlError for an unknown kind, Unavailable where the machine or the library cannot do it.
    """
    if device not in SIZES:
        raise HpmlError(f"limits: unknown device {device!r}; known: {', '.join(SIZES)}")
    if device == "cuda" and (reason := env.no_gpu()):
        raise Unavailable(reason)
    if kind == "jpeg":
        call, work, unit, ran = _jpeg(files=size or JPEG_FILES)
    elif kind == "memory" or kind in COPIES:
        call, work, unit, ran = _copy(kind=kind, device=device, threads=threads, nbytes=size or _buffer_bytes(device))
    elif kind in ARITHMETIC:
        builders = {"torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino}
        if engine not in builders:
            raise HpmlError(f"limits: unknown engine {engine!r}; known: {', '.join(builders)}")
        if reason := env.missing(engine):
            raise Unavailable(reason)
        if dtype not in (*TORCH_DTYPES, "int8"):
            raise HpmlError(f"limits: unknown dtype {dtype!r}; known: {', '.join((*TORCH_DTYPES, 'int8'))}")
        if device == "cpu" and dtype in ("fp16", "tf32"):
            raise Unavailable(f"{dtype} is measured on CUDA only")
        build = functools.partial(builders[engine], kind=kind, dtype=dtype, device=device, threads=threads)
        call, ran, work = _sized(build, kind, size or SIZES[device][kind]) if size or device == "cuda" else _bearable(build, kind)
        unit = "FLOP/s"
    else:
        raise HpmlError(f"limits: unknown kind {kind!r}; known: {', '.join((*ARITHMETIC, 'memory', *COPIES, 'jpeg'))}")
    values = _rates(call, work, seconds)
    return {"value": max(values), "unit": unit, "values": values, "ran": ran}


def floor(*, flops: float, nbytes: float, dtype: str, limits: dict[tuple[str, str | None], float]) -> dict | None:
    """The shortest time in which this machine could do `flops` operations and move `nbytes` (the roofline model).

    `limits`: best value by (kind, dtype), with ("memory", None) in B/s. Returns {bound: "compute" | "memory", floor_s},
    or None where the arithmetic limit for `dtype` or the memory limit was not measured.
    """
    compute = [value for (kind, name), value in limits.items() if kind in ARITHMETIC and name == dtype and value]
    memory = [value for (kind, _), value in limits.items() if kind == "memory" and value]
    if not compute or not memory:
        return None
    compute_s, memory_s = flops / max(compute), nbytes / max(memory)
    return {"bound": "compute" if compute_s >= memory_s else "memory", "floor_s": max(compute_s, memory_s)}


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


def _bearable(build: Callable, kind: str) -> tuple[Callable, str, float]:
    """_sized at the full size, or at the probe's where a call would take longer than SLOW_CALL_S; `ran` says so."""
    call, ran, work = _sized(build, kind, PROBES[kind])
    call()
    start = time.perf_counter()
    call()
    full_s = (time.perf_counter() - start) * operations(kind, SIZES["cpu"][kind]) / work
    if full_s <= SLOW_CALL_S:
        return _sized(build, kind, SIZES["cpu"][kind])
    return call, f"{ran}; size {PROBES[kind]}, as {SIZES['cpu'][kind]} would take {full_s:.0f} s a call", work


def _sized(build: Callable, kind: str, size) -> tuple[Callable, str, float]:
    return *build(size=size), operations(kind, size)


def operations(kind: str, size: int | tuple[int, int, int]) -> float:
    """Operations of one call, 2 for each multiply-add of the direct algorithm."""
    return 2 * size**3 if kind == "matmul" else 2 * 9 * size[0] * size[1] ** 2 * size[2] ** 2


def _rates(call: Callable[[], object], work: float, seconds: float) -> list[float]:
    """Rates of repeated calls: two to warm up, then at least three, until `seconds` have passed."""
    for _ in range(2):
        call()
    values, deadline = [], time.perf_counter() + seconds
    while len(values) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        call()
        values.append(work / (time.perf_counter() - start))
    return values


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


def _buffer_bytes(device: str) -> int:
    """Far more than the last-level cache holds, so that the copy comes from memory."""
    cache_bytes = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names else 0
    return BUFFER_BYTES[device] if device == "cuda" else max(BUFFER_BYTES[device], 4 * cache_bytes)


def _copy(*, kind: str, device: str, threads: int, nbytes: int) -> tuple[Callable, float, str, str]:
    if reason := env.missing("torch"):
        raise Unavailable(reason)
    if kind != "memory" and device != "cuda":
        raise Unavailable("copies between host and device are measured on CUDA only")
    import torch

    if threads:
        torch.set_num_threads(threads)
    host = {"device": "cpu", "pin_memory": kind.endswith("_pinned")}
    ends = {"memory": (device, device), "h2d": ("cpu", device), "d2h": (device, "cpu")}[kind.split("_")[0]]
    places = [host if end == "cpu" else {"device": end} for end in ends]
    source, target = (torch.empty(nbytes, dtype=torch.uint8, **place) for place in places)
    block = torch.randint(256, (2**20,), dtype=torch.uint8)
    for start in range(0, nbytes, len(block)):
        source[start:start + len(block)] = block[:nbytes - start]
    target.fill_(1)  # so that its pages exist

    def call() -> None:
        target.copy_(source, non_blocking=True)
        if device == "cuda":
            torch.cuda.synchronize()

    moved = 2 * nbytes if kind == "memory" else nbytes
    counted = ", read + written" if kind == "memory" else ""
    return call, moved, "B/s", f"torch copy of {nbytes / 2**20:.4g} MiB{counted}"


def _jpeg(*, files: int) -> tuple[Callable, float, str, str]:
    """Decoding of photograph-like JPEGs: smooth fields of colour with noise, quality 90, decoded by PIL to RGB."""
    if reason := env.missing("PIL"):
        raise Unavailable(reason)
    import io

    import numpy as np
    from PIL import Image

    rng, encoded = np.random.default_rng(2), []
    for _ in range(files):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = coarse.resize((JPEG_WIDTH, JPEG_HEIGHT), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth, np.float32) + rng.normal(0, 6, (JPEG_HEIGHT, JPEG_WIDTH, 1))
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())

    def call() -> None:
        for data in encoded:
            Image.open(io.BytesIO(data)).convert("RGB")

    kib = sum(map(len, encoded)) / len(encoded) / 1024
    return call, len(encoded), "images/s", f"PIL, one thread, {JPEG_WIDTH}x{JPEG_HEIGHT}, {kib:.0f} KiB a file"
