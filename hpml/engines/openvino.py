"""OpenVINO on the CPU, with a latency or a throughput hint."""

import collections
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hpml import env
from hpml.arithmetic import import_openvino, openvino_core
from hpml.engines import check_inputs, check_request, graph_precision, one_line
from hpml.env import HpmlError, Unavailable

if TYPE_CHECKING:
    import numpy as np

# int8 lives in the graph; its float remainder stays FP32. Without a hint the plugin takes bf16 where the CPU has it.
HINTS = {"fp32": "f32", "int8": "f32", "bf16": "bf16", "fp16": "f16"}


class Engine:
    WANTS, HALF, OPTIONS = "onnx", (), ("shapes", "batch")
    STORED, SUFFIX = "the compiled model (what its cache keeps)", ".blob"

    def __init__(self, *, device: str = "cpu", threads: int = 0, precision: str = "fp32",
                 hint: str = "latency", shapes: str = "dynamic", batch: int | None = None) -> None:
        """`shapes`: dynamic takes any batch, as the file declares it; static is compiled for inputs of `batch` alone."""
        check_request(engine="openvino", device=device, precision=precision, hint=hint)
        if reason := self.unavailable(device):
            raise Unavailable(f"openvino: {reason}")
        if precision == "tf32":
            raise Unavailable("openvino: tf32 is for CUDA")
        self.device, self.threads, self.precision, self.hint = device, threads, precision, hint
        self.batch = batch if shapes == "static" else None
        self.streams = 0  # requests that are computed at the same time; 0: what the hint means
        self.compiled, self.path, self.bound, self.load_s, self.actual = None, None, [], None, {}

    @staticmethod
    def unavailable(device: str = "cpu") -> str | None:
        return "OpenVINO has no CUDA device" if device == "cuda" else env.missing("openvino") or env.missing("onnx")

    def load(self, artefact: str | Path, example: tuple = ()) -> None:
        """Compiles the file. `load_s` is reading and compiling, without the checks of the file.

        Raises HpmlError for a damaged file, Unavailable where the precision that was asked is not what would run.
        """
        path, held = Path(artefact), graph_precision(artefact)
        if (held == "int8") != (self.precision == "int8"):
            raise Unavailable(f"openvino: {path.name} holds {held}, {self.precision} was asked")
        def make(core, config):
            model = core.read_model(path)
            if self.batch:
                model.reshape({port: [self.batch, *list(port.get_partial_shape())[1:]] for port in model.inputs})
            return core.compile_model(model, "CPU", config)

        self._compile(path, make)

    def build(self, artefact: str | Path, path: Path, example: tuple) -> None:
        """Compiles the file and writes the compiled model."""
        self.load(artefact)
        path.write_bytes(self.compiled.export_model().getvalue())

    def load_stored(self, path: Path, example: tuple) -> None:
        """Raises HpmlError for a damaged file."""
        self._compile(path, lambda core, config: core.import_model(path.read_bytes(), "CPU", config))

    def _compile(self, path: Path, make: Callable) -> None:
        openvino = import_openvino()
        config = {"PERFORMANCE_HINT": self.hint.upper(), "INFERENCE_PRECISION_HINT": HINTS[self.precision]}
        if self.threads:
            config["INFERENCE_NUM_THREADS"] = self.threads
        if self.streams:
            config["NUM_STREAMS"] = self.streams
        start = time.perf_counter()
        try:
            compiled = make(openvino_core(), config)
        except Exception as error:
            raise HpmlError(f"{path}: OpenVINO cannot load it: {one_line(error)}") from error
        self.load_s = time.perf_counter() - start
        reported = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if reported != HINTS[self.precision]:
            raise Unavailable(f"openvino: this CPU runs {reported} though {self.precision} was asked")
        self.compiled, self.path, self.request = compiled, path, compiled.create_infer_request()
        self.declared = [(port.get_any_name(), port.get_element_type().to_dtype().name,
                          [dim.get_length() if dim.is_static else "?" for dim in port.get_partial_shape()])
                         for port in compiled.inputs]
        dynamic = any(not isinstance(dim, int) for _, _, dims in self.declared for dim in dims)
        infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        nodes = [(info["layerType"].value, info["runtimePrecision"].value) for info in infos]
        ops = collections.Counter(kind for kind, _ in nodes if kind not in ("Const", "Input", "Output"))
        heavy = collections.Counter(
            f"{kind} {precision}" for kind, precision in nodes if kind in ("Convolution", "MatMul", "FullyConnected"))
        self.actual = {
            "provider": "openvino", "device": "cpu", "shapes": "dynamic" if dynamic else "static",
            "threads": compiled.get_property("INFERENCE_NUM_THREADS"), "precision": self.precision,
            "runtime_precision": reported, "hint": str(compiled.get_property("PERFORMANCE_HINT")).lower(),
            "streams": compiled.get_property("NUM_STREAMS"), "cpu_pinning": compiled.get_property("ENABLE_CPU_PINNING"),
            "ops": dict(sorted(ops.items())), "heavy_ops": dict(sorted(heavy.items())), "version": openvino.__version__,
        }

    def int8_ops(self) -> tuple[int, int]:
        """(heavy operators that run in INT8, all heavy operators) of the compiled model."""
        heavy = self.actual["heavy_ops"]
        return sum(count for name, count in heavy.items() if name.endswith((" u8", " i8"))), sum(heavy.values())

    def run(self, inputs: "tuple[np.ndarray, ...]") -> "tuple[np.ndarray, ...]":
        return self._run(self.request, inputs)

    def lane(self) -> Callable:
        """`run` with a request of its own: lanes may be called from several threads at the same time."""
        return functools.partial(self._run, self.compiled.create_infer_request())

    def _run(self, request, inputs: "tuple[np.ndarray, ...]") -> "tuple[np.ndarray, ...]":
        self._check(inputs)
        try:
            results = request.infer(dict(enumerate(inputs)), share_inputs=False, share_outputs=False)
        except Exception as error:
            raise HpmlError(f"openvino: {self.path.name}: {one_line(error)}") from error
        return tuple(results[port] for port in self.compiled.outputs)

    def bind(self, batches: "list[tuple[np.ndarray, ...]]") -> None:
        import numpy as np

        openvino = import_openvino()
        # One request a batch, so that each has outputs of its own. The tensors are kept: a request does not keep the
        # shared arrays alive and would read freed memory.
        self.bound = []
        for inputs in batches:
            self._check(inputs)
            inputs = tuple(np.ascontiguousarray(array) for array in inputs)
            request = self.compiled.create_infer_request()
            tensors = [openvino.Tensor(array, shared_memory=True) for array in inputs]
            for position, tensor in enumerate(tensors):
                request.set_input_tensor(position, tensor)
            self.bound.append((request, tensors, inputs))

    def run_bound(self, i: int) -> None:
        try:
            self.bound[i % len(self.bound)][0].infer(share_outputs=True)
        except Exception as error:
            raise HpmlError(f"openvino: {self.path.name}: {one_line(error)}") from error

    def outputs(self, i: int) -> "tuple[np.ndarray, ...]":
        request = self.bound[i % len(self.bound)][0]
        return tuple(request.get_output_tensor(position).data.copy() for position in range(len(self.compiled.outputs)))

    def throughput(self, batches: "list[tuple[np.ndarray, ...]]", seconds: float) -> tuple[int, float]:
        """Keeps every stream busy for `seconds`: (samples done, seconds taken). What the throughput hint is made for.

        A sample is one row of the first input. Copies of the inputs into the requests are included.
        """
        openvino = import_openvino()
        for inputs in batches:
            self._check(inputs)
        queue, samples, position = openvino.AsyncInferQueue(self.compiled), 0, 0
        feeds = [dict(enumerate(inputs)) for inputs in batches]
        start = time.perf_counter()
        while time.perf_counter() < start + seconds:
            queue.start_async(feeds[position % len(feeds)])
            samples += len(batches[position % len(batches)][0])
            position += 1
        queue.wait_all()
        return samples, time.perf_counter() - start

    def _check(self, inputs: "tuple[np.ndarray, ...]") -> None:
        if self.compiled is None:
            raise HpmlError("openvino: load a model first")
        check_inputs(model=self.path.name, declared=self.declared, inputs=inputs)
