"""TorchScript: the module as a graph of its own, frozen, run by torch's interpreter.

Deprecated: torch 2.14 warns at every call of its makers and names torch.compile and torch.export as successors. The warnings
are silenced here because the study asks what it still gives; nothing else of the project depends on it.
"""

import warnings

from hpml.engines import eager, one_line
from hpml.env import HpmlError, Unavailable


class Engine(eager.Engine):
    NAME, OPTIONS = "torchscript", ("memory_format", "capture")
    STORED, SUFFIX = "the frozen graph with its weights", ".pt"

    def __init__(self, *, capture: str = "trace", **options) -> None:
        """`capture`: trace (records one call; branches become what that call took) or script (compiles the Python source)."""
        super().__init__(**options)
        if capture not in ("trace", "script"):
            raise HpmlError(f"torchscript: capture {capture!r} is unknown; known: trace, script")
        self.capture = capture

    def _captured(self, module, example: tuple):
        """The frozen graph: parameters are constants, and BatchNorm is folded where it can be. Raises Unavailable where the model
        is refused, with torch's reason."""
        import torch

        if self.capture == "trace" and not example:
            raise HpmlError("torchscript: a trace needs example inputs")
        self.actual |= {"capture": self.capture, "frozen": True, "shapes": "dynamic", "status": "deprecated in torch"}
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                graph = torch.jit.trace(module, example, check_trace=False) if self.capture == "trace" else torch.jit.script(module)
                return torch.jit.freeze(graph.eval())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a stray model provokes in a compiler of Python source
            raise Unavailable(f"torchscript: {self.capture} refuses {self.name}: {one_line(error)}") from error

    def build(self, artefact, path, example: tuple) -> None:
        import torch

        graph = self._captured(*self._prepared(artefact, example))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(graph, str(path))

    def load_stored(self, path, example: tuple) -> None:
        """Raises HpmlError for a damaged file."""
        import torch

        self._settle()
        self.name = path.name
        self.actual |= {"capture": self.capture, "frozen": True, "shapes": "dynamic", "status": "deprecated in torch"}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.module = torch.jit.load(str(path), map_location=self.device)
        except RuntimeError as error:
            raise HpmlError(f"{path}: torchscript cannot load it: {one_line(error)}") from error
