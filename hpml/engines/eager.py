"""PyTorch as it is: the module is called, operator by operator."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hpml import env
from hpml.engines import check_batch, check_request, one_line
from hpml.env import HpmlError, Unavailable

if TYPE_CHECKING:
    import numpy as np

DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Engine:
    NAME, WANTS, OPTIONS = "eager", "module", ("memory_format",)
    STORED, SUFFIX = None, None

    def __init__(self, *, device: str = "cpu", threads: int = 0, precision: str = "fp32", hint: str = "latency",
                 memory_format: str = "contiguous") -> None:
        """`hint` changes nothing here. `memory_format`: contiguous (NCHW) or channels_last (NHWC), for 4-D inputs."""
        check_request(engine=self.NAME, device=device, precision=precision, hint=hint)
        if memory_format not in ("contiguous", "channels_last"):
            raise HpmlError(f"{self.NAME}: memory_format {memory_format!r} is unknown; known: contiguous, channels_last")
        if reason := self.unavailable(device):
            raise Unavailable(f"{self.NAME}: {reason}")
        if precision == "int8":
            raise Unavailable(f"{self.NAME}: a float module has no int8 kernels; quantise it for onnxruntime or openvino")
        if device == "cpu" and precision in ("fp16", "tf32"):
            raise Unavailable(f"{self.NAME}: {precision} is for CUDA; on the CPU use bf16 or fp32")
        self.device, self.threads, self.precision, self.memory_format = device, threads, precision, memory_format
        self.module, self.bound, self.results, self.load_s, self.actual = None, [], {}, None, {}
        self.floats: list[bool] = []  # whether each input is a float, where an example told

    @staticmethod
    def unavailable(device: str = "cpu") -> str | None:
        return env.missing("torch") or (env.no_gpu() if device == "cuda" else None)

    def load(self, artefact, example: tuple = ()) -> None:
        """Takes the module in eval mode. It is used itself in FP32 contiguous on its own device, else copied first.

        `example`: input tensors of the batch that will be served, for the engines that capture a graph by a call.

        Sets the process's thread number and TF32 switches. Weights and float inputs are cast once (no autocast, which
        would cast the weights again in each call).
        """
        self.module = self._captured(*self._prepared(artefact, example))

    def _settle(self) -> None:
        """The process's threads and switches, and what `actual` says of them."""
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        tf32 = self.precision == "tf32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        self.dtype, self.layout = getattr(torch, DTYPES[self.precision]), {}
        if self.memory_format == "channels_last":
            self.layout = {"memory_format": torch.channels_last}
        self.actual = {
            "provider": "torch" if self.NAME == "eager" else self.NAME, "device": self.device,
            "threads": torch.get_num_threads(), "precision": self.precision, "hint": None, "streams": 1,
            "cast": None if self.dtype == torch.float32 else f".to({DTYPES[self.precision]})", "tf32": tf32,
            "memory_format": self.memory_format, "cudnn_benchmark": torch.backends.cudnn.benchmark, "ops": None,
        }

    def _prepared(self, artefact, example: tuple) -> tuple:
        """(the module, the example) on the device in the precision and the memory format that were asked."""
        import torch

        if not isinstance(artefact, torch.nn.Module):
            raise HpmlError(f"{self.NAME}: a torch nn.Module is needed, not {type(artefact).__name__}")
        self._settle()
        changes = any(tensor.device.type != self.device or (tensor.is_floating_point() and tensor.dtype != self.dtype)
                      for tensor in [*artefact.parameters(), *artefact.buffers()])
        module = copy.deepcopy(artefact) if changes or self.layout else artefact
        module = module.eval().to(self.device, self.dtype, **self.layout)
        self.name, self.floats = type(module).__name__, [tensor.is_floating_point() for tensor in example]
        return module, tuple(self._moved(tensor) for tensor in example)

    def _captured(self, module, example: tuple):
        """What is called instead of the module: here itself."""
        return module

    def run(self, inputs: "tuple[np.ndarray, ...]") -> "tuple[np.ndarray, ...]":
        return _to_host(self._call(self._to_device(inputs)))

    def bind(self, batches: "list[tuple[np.ndarray, ...]]") -> None:
        self.bound, self.results = [self._to_device(inputs) for inputs in batches], {}

    def run_bound(self, i: int) -> None:
        index = i % len(self.bound)
        self.results[index] = self._call(self.bound[index])
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def outputs(self, i: int) -> "tuple[np.ndarray, ...]":
        return _to_host(self.results[i % len(self.bound)])

    def _to_device(self, inputs: "tuple[np.ndarray, ...]") -> tuple:
        import numpy as np
        import torch

        if self.module is None:
            raise HpmlError(f"{self.NAME}: load a module first")
        check_batch(self.name, inputs)
        for i, (array, is_float) in enumerate(zip(inputs, self.floats, strict=False)):
            if (array.dtype.kind == "f") != is_float:  # some modules cast, and would take bytes for normalised pixels
                wanted = "floats" if is_float else "integers"
                raise HpmlError(f"{self.NAME}: {self.name} refused input {i} of {array.dtype}: {wanted} belong there")
        return tuple(self._moved(torch.from_numpy(np.ascontiguousarray(array))) for array in inputs)

    def _moved(self, tensor):
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.device, dtype, **(self.layout if tensor.ndim == 4 else {}))

    def _call(self, inputs: tuple):
        import torch

        try:
            with torch.inference_mode():
                return self.module(*inputs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            given = ", ".join(f"{list(tensor.shape)} {tensor.dtype}" for tensor in inputs)
            raise HpmlError(f"{self.NAME}: {self.name} refused {given}: {one_line(error)}") from error


def _to_host(outputs) -> "tuple[np.ndarray, ...]":
    """A tensor, a sequence or a mapping of tensors as a tuple of arrays; half-precision floats become float32."""
    import torch

    if isinstance(outputs, torch.Tensor):
        outputs = (outputs,)
    elif isinstance(outputs, Mapping):
        outputs = tuple(outputs.values())
    return tuple((t.float() if t.dtype in (torch.bfloat16, torch.float16) else t).cpu().numpy() for t in outputs)
