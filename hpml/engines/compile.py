"""torch.compile (TorchDynamo + Inductor) for inference, with static shapes: one graph for one batch size.

Compiling happens in `load`, by one call with the example; its seconds are `compile_s`. Other batch sizes than the example's
are served by `run` in pieces of that size, the last one filled up, as a static deployment does; they are never compiled.
"""

import contextlib
import os
import shutil
import signal
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hpml import env
from hpml.engines import TooLong, check_inputs, eager, one_line
from hpml.env import HpmlError, Unavailable

if TYPE_CHECKING:
    import numpy as np


class Engine(eager.Engine):
    NAME = "compile"
    STORED, SUFFIX = "a package of compiled code with its weights (AOTInductor)", ".pt2"

    def __init__(self, *, limit_s: float | None = None, **options) -> None:
        """`limit_s`: longer compiling is given up by TooLong."""
        super().__init__(**options)
        self.limit_s, self.batch, self.compile_s, self.declared = limit_s, None, None, None

    @staticmethod
    def unavailable(device: str = "cpu") -> str | None:
        if reason := eager.Engine.unavailable(device):
            return reason
        if device == "cuda" and (reason := env.missing("triton")):
            return reason
        if device == "cuda":  # Triton builds what starts its kernels
            language, compiler = "C", os.environ.get("CC") or shutil.which("gcc") or "clang"
        else:
            language, compiler = "C++", os.environ.get("CXX", "g++")
        if not shutil.which(compiler):
            return f"torch.compile needs a {language} compiler: {compiler} is not installed"
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            return "torch.compile needs Python.h: install Python's development files"
        return None

    def _captured(self, module, example: tuple):
        import torch

        if not example:
            raise HpmlError("compile: example inputs of the batch that will be served are needed")
        counters = torch._dynamo.utils.counters
        breaks, misses = sum(counters["graph_break"].values()), counters["inductor"]["fxgraph_cache_miss"]
        compiled = torch.compile(module, dynamic=False)
        self.batch = len(example[0])
        started = time.perf_counter()
        try:
            with compile_limit(self.limit_s), torch.inference_mode():
                compiled(*example)
        except (torch.OutOfMemoryError, TooLong):
            raise
        except Exception as error:  # a compiler's errors have many types
            raise Unavailable(f"compile: torch.compile refuses {self.name}: {one_line(error)}") from error
        spent_s = time.perf_counter() - started
        fresh = counters["inductor"]["fxgraph_cache_miss"] > misses
        self.compile_s = spent_s if fresh else None
        self.actual |= {"backend": "inductor", "shapes": f"static, batch {self.batch}", "compiled": "here" if fresh else "from the cache",
                        "graph_breaks": sum(counters["graph_break"].values()) - breaks}
        return compiled

    def build(self, artefact, path: Path, example: tuple) -> None:
        """Exports with the example's shapes and compiles ahead of time. Raises Unavailable for a refused model, TooLong."""
        import torch

        module, example = self._prepared(artefact, example)
        try:
            with compile_limit(self.limit_s), torch.no_grad():
                torch._inductor.aoti_compile_and_package(torch.export.export(module, example), package_path=str(path))
        except (torch.OutOfMemoryError, TooLong):
            raise
        except Exception as error:  # a compiler's errors have many types
            raise Unavailable(f"compile: torch.export or AOTInductor refuses {self.name}: {one_line(error)}") from error
        self.actual |= {"backend": "aot_inductor", "shapes": f"static, batch {len(example[0])}", "compiled": "ahead of time"}

    def load_stored(self, path: Path, example: tuple) -> None:
        """Raises HpmlError for a damaged package. `example` has the shapes that it was built for."""
        import torch

        self._settle()
        self.name, self.batch = path.name, len(example[0])
        # The package itself does not look at shapes and types: another one would be computed as if it were right.
        self.declared = [(f"input {i}", str(x.dtype).removeprefix("torch."), list(x.shape)) for i, x in enumerate(example)]
        self.actual |= {"backend": "aot_inductor", "shapes": f"static, batch {self.batch}", "compiled": "ahead of time"}
        try:
            self.module = torch._inductor.aoti_load_package(str(path))
        except Exception as error:
            raise HpmlError(f"{path}: AOTInductor cannot load it: {one_line(error)}") from error

    def run(self, inputs: "tuple[np.ndarray, ...]") -> "tuple[np.ndarray, ...]":
        return in_pieces(super().run, inputs, self.batch)

    def _to_device(self, inputs: "tuple[np.ndarray, ...]") -> tuple:
        if self.declared:
            check_inputs(model=self.name, declared=self.declared, inputs=inputs)
        return super()._to_device(inputs)


def in_pieces(call, inputs: "tuple[np.ndarray, ...]", batch: int) -> "tuple[np.ndarray, ...]":
    """`call` for any number of samples though it takes exactly `batch`: in pieces, the last one filled up with its last sample."""
    import numpy as np

    count = len(inputs[0]) if inputs else 0
    if count == batch or not count:
        return call(inputs)
    parts = []
    for start in range(0, count, batch):
        piece = tuple(x[start:start + batch] for x in inputs)
        short = batch - len(piece[0])
        full = tuple(np.concatenate([x, np.repeat(x[-1:], short, axis=0)]) for x in piece) if short else piece
        parts.append(tuple(y[:batch - short] for y in call(full)))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


@contextlib.contextmanager
def compile_limit(seconds: float | None) -> Iterator[None]:
    """Give up what runs inside after `seconds` (None: never) by raising TooLong. Works in the main thread."""
    if seconds is None:
        yield
        return
    fired = []

    def stop(*_) -> None:
        fired.append(True)
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again each second: a compiler may catch what is raised in its middle
    try:
        yield
    except BaseException as error:
        if fired:
            raise TooLong(f"compiling took more than {seconds:g} s at this tier") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
