"""What this machine can do at most: FLOP/s by data type, bytes/s of memory and copies, JPEG decodes/s of one core.

Arithmetic: the best of torch, ONNX Runtime and OpenVINO on a large MatMul and a 3x3 convolution (arithmetic.py).
"""

import functools
import os
import time
from collections.abc import Callable

from hpml import env
from hpml.arithmetic import BUILDERS, TORCH_DTYPES, operations
from hpml.env import HpmlError, Unavailable
from hpml.roofline import ARITHMETIC

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
        if engine not in BUILDERS:
            raise HpmlError(f"limits: unknown engine {engine!r}; known: {', '.join(BUILDERS)}")
        if reason := env.missing(engine):
            raise Unavailable(reason)
        if dtype not in (*TORCH_DTYPES, "int8"):
            raise HpmlError(f"limits: unknown dtype {dtype!r}; known: {', '.join((*TORCH_DTYPES, 'int8'))}")
        if device == "cpu" and dtype in ("fp16", "tf32"):
            raise Unavailable(f"{dtype} is measured on CUDA only")
        build = functools.partial(BUILDERS[engine], kind=kind, dtype=dtype, device=device, threads=threads)
        call, ran, work = _sized(build, kind, size or SIZES[device][kind]) if size or device == "cuda" else _bearable(build, kind)
        unit = "FLOP/s"
    else:
        raise HpmlError(f"limits: unknown kind {kind!r}; known: {', '.join((*ARITHMETIC, 'memory', *COPIES, 'jpeg'))}")
    values = _rates(call, work, seconds)
    return {"value": max(values), "unit": unit, "values": values, "ran": ran}


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
