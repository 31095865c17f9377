"""TensorRT 10.16: a strongly typed engine, built for one GPU from an ONNX file whose own types are the precision.

No calibrator and no precision flag: FP16 and INT8 are the graph's (casts, Q/DQ). The batch is dynamic by one optimization profile.
Nothing is constructed before `unavailable` has found package, driver and import in order: without a driver a runtime can be made
and later crashes Python.
"""

import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hpml import env
from hpml.engines import check_inputs, check_request, graph_precision, one_line
from hpml.env import HpmlError, Unavailable

if TYPE_CHECKING:
    import numpy as np

HEAVY = ("convolution", "gemm", "matrixmultiply")  # in the names that its layers give their kind
LARGEST_BATCH = 256  # of the profile; the case's batch is what it is tuned for
DRIVER = "import ctypes, sys; sys.exit(ctypes.CDLL('libcuda.so.1').cuInit(0) != 0)"


class Engine:
    WANTS, HALF, OPTIONS = "onnx", ("fp16", "int8"), ("batch", "scheme")  # what is not in INT8 would be slow in FP32
    STORED, SUFFIX = "the serialized engine, for this GPU and this version", ".engine"

    def __init__(self, *, device: str = "cuda", threads: int = 0, precision: str = "fp32", hint: str = "latency", batch: int = 1,
                 scheme: str = "symmetric") -> None:
        """`batch`: what the profile is tuned for; 1 to LARGEST_BATCH are served. `threads` and `hint` change nothing here."""
        check_request(engine="tensorrt", device=device, precision=precision, hint=hint)
        if precision == "int8" and scheme != "symmetric":  # its ONNX parser refuses a zero point that is not zero
            raise Unavailable(f"tensorrt: INT8 with scheme={scheme} has zero points, which it refuses: take scheme=symmetric")
        if reason := self.unavailable(device):
            raise Unavailable(f"tensorrt: {reason}")
        self.device, self.precision, self.batch = device, precision, batch
        self.engine, self.path, self.bound, self.load_s, self.actual = None, None, [], None, {}

    @staticmethod
    def unavailable(device: str = "cpu") -> str | None:
        if reason := env.missing("tensorrt"):
            return reason
        if fault := _fault(DRIVER):
            return f"no NVIDIA driver that starts: {fault}"
        if fault := _fault("import tensorrt"):
            return f"tensorrt is installed but cannot be imported: {fault}"
        return env.missing("torch") or ("TensorRT has no CPU device" if device == "cpu" else None)

    def load(self, artefact: str | Path, example: tuple = ()) -> None:
        """Builds and takes the engine in memory. Raises HpmlError for a damaged file, Unavailable for what the parser or the builder
        refuses and for another precision than the graph holds."""
        start = time.perf_counter()
        plan = self._plan(Path(artefact), example)
        self._take(Path(artefact), plan, start)

    def build(self, artefact: str | Path, path: Path, example: tuple) -> None:
        path.write_bytes(self._plan(Path(artefact), example))

    def load_stored(self, path: Path, example: tuple) -> None:
        """Raises HpmlError where TensorRT refuses the file (damaged, another GPU, another version)."""
        start = time.perf_counter()
        self._take(path, path.read_bytes(), start)

    def _plan(self, path: Path, example: tuple) -> bytes:
        """The serialized engine of an ONNX file."""
        held = graph_precision(path)
        if held != ("fp32" if self.precision == "tf32" else self.precision):
            raise Unavailable(f"tensorrt takes its precision from the graph: {path.name} holds {held}, {self.precision} was asked")
        import tensorrt

        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = tensorrt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path)):
            said = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
            raise Unavailable(f"tensorrt: its parser refuses {path.name}: {one_line(ValueError(said))}")
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        if self.precision != "tf32":
            config.clear_flag(tensorrt.BuilderFlag.TF32)
        for i, tensor in enumerate(example):
            rest = tuple(tensor.shape)[1:]
            profile.set_shape(network.get_input(i).name, (1, *rest), (self.batch, *rest), (max(LARGEST_BATCH, self.batch), *rest))
        config.add_optimization_profile(profile)
        config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # what each layer computes in can be asked afterwards
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise Unavailable(f"tensorrt: its builder refuses {path.name}")
        self.actual = self._said(tensorrt)
        return bytes(plan)

    def _take(self, path: Path, plan: bytes, start: float) -> None:
        import tensorrt
        import torch

        self.runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise HpmlError(f"{path}: TensorRT {tensorrt.__version__} refuses it: damaged, or built for another GPU or version")
        self.context, self.stream = engine.create_execution_context(), torch.cuda.Stream()
        self.load_s = time.perf_counter() - start
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        self.outs = [name for name in names if name not in self.inputs]
        self.types = {name: str(tensorrt.nptype(engine.get_tensor_dtype(name)).__name__) for name in names}
        self.declared = [(name, self.types[name], [dim if dim >= 0 else "?" for dim in engine.get_tensor_shape(name)])
                         for name in self.inputs]
        self.engine, self.path, self.actual = engine, path, self._said(tensorrt)

    def _said(self, tensorrt) -> dict:
        return {"provider": "tensorrt", "device": "cuda", "threads": None, "precision": self.precision, "hint": None, "streams": 1,
                "ops": None, "shapes": f"dynamic, tuned for batch {self.batch}", "typing": "strong", "tf32": self.precision == "tf32",
                "version": tensorrt.__version__}

    def int8_ops(self) -> tuple[int, int]:
        """(heavy layers that take 8-bit integers, all heavy layers) of the engine as it was built, by TensorRT's inspector."""
        import tensorrt

        said = self.engine.create_engine_inspector().get_engine_information(tensorrt.LayerInformationFormat.JSON)
        return heavy_layers(json.loads(said)["Layers"])

    def run(self, inputs: "tuple[np.ndarray, ...]") -> "tuple[np.ndarray, ...]":
        slot = self._slot(inputs)
        self._execute(slot)
        return tuple(tensor.cpu().numpy() for tensor in slot[1].values())

    def bind(self, batches: "list[tuple[np.ndarray, ...]]") -> None:
        self.bound = [self._slot(inputs) for inputs in batches]

    def run_bound(self, i: int) -> None:
        self._execute(self.bound[i % len(self.bound)])

    def outputs(self, i: int) -> "tuple[np.ndarray, ...]":
        return tuple(tensor.cpu().numpy() for tensor in self.bound[i % len(self.bound)][1].values())

    def _slot(self, inputs: "tuple[np.ndarray, ...]") -> tuple[dict, dict]:
        """Inputs and outputs by name as tensors on the device."""
        import numpy as np
        import torch

        if self.engine is None:
            raise HpmlError("tensorrt: load a model first")
        check_inputs(model=self.path.name, declared=self.declared, inputs=inputs)
        given = {name: torch.from_numpy(np.ascontiguousarray(x)).to("cuda") for name, x in zip(self.inputs, inputs, strict=True)}
        for name, tensor in given.items():
            if not self.context.set_input_shape(name, tuple(tensor.shape)):
                raise HpmlError(f"{self.path.name}: input {name!r} of shape {list(tensor.shape)} is outside the profile (batch 1 to "
                                f"{max(LARGEST_BATCH, self.batch)})")
        made = {name: torch.empty(tuple(self.context.get_tensor_shape(name)), dtype=getattr(torch, self.types[name]), device="cuda")
                for name in self.outs}
        return given, made

    def _execute(self, slot: tuple[dict, dict]) -> None:
        import torch

        given, made = slot
        for name, tensor in given.items():
            self.context.set_input_shape(name, tuple(tensor.shape))
        for name, tensor in {**given, **made}.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        self.stream.wait_stream(torch.cuda.current_stream())
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise HpmlError(f"tensorrt: {self.path.name}: the engine did not run")
        self.stream.synchronize()


def heavy_layers(layers: list[dict]) -> tuple[int, int]:
    """(those that take 8-bit integers, all) of the inspector's layers that do a network's arithmetic; products inside a generated kernel
    ("kgen") have no layer of their own and are not counted."""
    heavy = [one for one in layers if any(kind in f"{one['LayerType']} {one.get('ParameterType')}".lower() for kind in HEAVY)]
    return sum(any("int8" in tensor["Format/Datatype"].lower() for tensor in one["Inputs"]) for one in heavy), len(heavy)


@functools.cache
def _fault(code: str) -> str | None:
    """Why `code` fails in a process of its own, in one line, or None: the driver is never started and nothing imported in the caller's."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return None if done.returncode == 0 else last[:200]
