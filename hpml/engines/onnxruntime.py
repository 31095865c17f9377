"""ONNX Runtime with its CPU or CUDA provider; the precision is the graph's."""

import collections
import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hpml import env
from hpml.engines import ProviderFallback, check_inputs, check_request, graph_precision, one_line
from hpml.env import HpmlError, Unavailable

if TYPE_CHECKING:
    import numpy as np

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(bool)": "bool"}
# Where the arithmetic is, as the optimiser names it.
INT8_OPS = ("QLinearConv", "QLinearConvTranspose", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
            "DynamicQuantizeMatMul", "QAttention")
FLOAT_OPS = ("Conv", "FusedConv", "ConvTranspose", "Einsum", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Attention",
             "MultiHeadAttention")


class Engine:
    WANTS, HALF, OPTIONS = "onnx", ("fp16",), ()
    STORED, SUFFIX = "the optimized graph with its weights (ORT format)", ".ort"

    def __init__(self, *, device: str = "cpu", threads: int = 0, precision: str = "fp32",
                 hint: str = "latency") -> None:
        """`hint` changes nothing here: calls run one after another, each with all threads."""
        check_request(engine="onnxruntime", device=device, precision=precision, hint=hint)
        if reason := env.missing("onnxruntime") or env.missing("onnx"):
            raise Unavailable(f"onnxruntime: {reason}")
        if precision == "tf32" and device == "cpu":
            raise Unavailable("onnxruntime: tf32 is for CUDA")
        if precision == "fp16" and device == "cpu":
            raise Unavailable("onnxruntime: fp16 is for CUDA: its CPU provider would convert to fp32 before most operators, and back")
        self.device, self.threads, self.precision = device, threads, precision
        self.session, self.path, self.bound, self.load_s, self.actual = None, None, [], None, {}

    @staticmethod
    def unavailable(device: str = "cpu") -> str | None:
        reason = env.missing("onnxruntime") or env.missing("onnx")
        return reason or (env.no_gpu() if device == "cuda" else None)

    def load(self, artefact: str | Path, example: tuple = ()) -> None:
        """Makes the session. `load_s` is the session's own time, without the checks of the file.

        Raises HpmlError for a damaged file, Unavailable where the graph holds another precision than was asked,
        ProviderFallback where the session's first provider is not the one that was asked.
        """
        path = self._checked(artefact)
        start = time.perf_counter()
        self._take(path, self._session(path), start)

    def build(self, artefact: str | Path, path: Path, example: tuple) -> None:
        """Writes the graph as it is after ONNX Runtime's optimisation for this machine."""
        source = self._checked(artefact)
        self._take(source, self._session(source, optimized=path), time.perf_counter())

    def load_stored(self, path: Path, example: tuple) -> None:
        """Raises HpmlError for a damaged file."""
        _import(self.device)
        start = time.perf_counter()
        self._take(path, self._session(path, stored=True), start)

    def _checked(self, artefact: str | Path) -> Path:
        path, held = Path(artefact), graph_precision(artefact)
        if held != ("fp32" if self.precision == "tf32" else self.precision):
            raise Unavailable(f"onnxruntime takes its precision from the graph: {path.name} holds {held}, "
                              f"{self.precision} was asked")
        _import(self.device)
        return path

    def _take(self, path: Path, session, start: float) -> None:
        onnxruntime = _import(self.device)
        self.load_s = time.perf_counter() - start
        provider = session.get_providers()[0]
        if provider != PROVIDERS[self.device]:
            raise ProviderFallback(f"onnxruntime: the session for {path.name} got {provider}, "
                                   f"{PROVIDERS[self.device]} was asked")
        session.disable_fallback()
        self.session, self.path = session, path
        self.declared = [(entry.name, TYPES.get(entry.type, entry.type[len("tensor("):-1]), entry.shape)
                         for entry in session.get_inputs()]
        options = session.get_session_options()
        self.actual = {
            "provider": provider, "device": self.device, "threads": options.intra_op_num_threads or None,
            "precision": self.precision, "hint": None, "streams": 1, "spinning": True, "execution_mode": "sequential",
            "tf32": self.precision == "tf32", "providers": session.get_providers(), "ops": None,
            "version": onnxruntime.__version__,
        }

    def executed_ops(self) -> dict[str, int]:
        """Operators of the graph after ONNX Runtime's optimisation, by type. Loads it again: ask after measuring."""
        import onnx

        if self.session is None:
            raise HpmlError("onnxruntime: load a model first")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "optimized.onnx"
            self._session(self.path, optimized=target)
            nodes = onnx.load(target, load_external_data=False).graph.node
        self.actual["ops"] = dict(sorted(collections.Counter(node.op_type for node in nodes).items()))
        return self.actual["ops"]

    def int8_ops(self) -> tuple[int, int]:
        """(heavy operators that run in INT8, all heavy operators), after ONNX Runtime's optimisation. Loads the graph again."""
        ops = self.executed_ops()
        done, floats = (sum(ops.get(kind, 0) for kind in kinds) for kinds in (INT8_OPS, FLOAT_OPS))
        return done, done + floats

    def run(self, inputs: "tuple[np.ndarray, ...]") -> "tuple[np.ndarray, ...]":
        self._check(inputs)
        feed = {name: array for (name, *_), array in zip(self.declared, inputs, strict=True)}
        try:
            return tuple(self.session.run(None, feed))
        except Exception as error:
            raise HpmlError(f"onnxruntime: {self.path.name}: {one_line(error)}") from error

    def bind(self, batches: "list[tuple[np.ndarray, ...]]") -> None:
        import numpy as np
        import onnxruntime

        self.bound = []
        for inputs in batches:
            self._check(inputs)
            inputs = tuple(np.ascontiguousarray(array) for array in inputs)
            binding = self.session.io_binding()
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array, self.device, 0) for array in inputs]
            for (name, *_), value in zip(self.declared, values, strict=True):
                binding.bind_ortvalue_input(name, value)
            for entry in self.session.get_outputs():
                binding.bind_output(entry.name, self.device, 0)
            self.bound.append((binding, values, inputs))  # on the CPU the values are views of the arrays

    def run_bound(self, i: int) -> None:
        binding = self.bound[i % len(self.bound)][0]
        try:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise HpmlError(f"onnxruntime: {self.path.name}: {one_line(error)}") from error

    def outputs(self, i: int) -> "tuple[np.ndarray, ...]":
        return tuple(self.bound[i % len(self.bound)][0].copy_outputs_to_cpu())

    def _session(self, path: Path, optimized: Path | None = None, stored: bool = False):
        onnxruntime = _import(self.device)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")  # the default, stated
        if optimized:
            options.optimized_model_filepath = str(optimized)
        if stored:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimized already
        settings = {"use_tf32": "1" if self.precision == "tf32" else "0"} if self.device == "cuda" else {}
        try:
            # A provider that cannot start is announced by print(), pages long; the caller compares the providers.
            with contextlib.redirect_stdout(io.StringIO()):
                return onnxruntime.InferenceSession(path, options, providers=[(PROVIDERS[self.device], settings)])
        except Exception as error:
            raise HpmlError(f"{path}: ONNX Runtime cannot load it: {one_line(error)}") from error

    def _check(self, inputs: "tuple[np.ndarray, ...]") -> None:
        if self.session is None:
            raise HpmlError("onnxruntime: load a model first")
        check_inputs(model=self.path.name, declared=self.declared, inputs=inputs)


def _import(device: str):
    """onnxruntime; for CUDA after torch, so that it finds torch's CUDA libraries in the process."""
    if device == "cuda" and env.missing("torch") is None:
        import torch  # noqa: F401
    import onnxruntime

    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    return onnxruntime
