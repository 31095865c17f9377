"""Workloads: one file each, found by file name or given as a path to a file of the reader's own."""

import functools
import hashlib
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from hpml.env import HpmlError
from hpml.knobs import KNOBS

# What a workload file must hold; `hpml check FILE` reads this list.
CONTRACT = ("NAME", "TITLE", "METRIC", "MARGIN", "MARGIN_REASON", "SIZES", "LEARNING_RATE", "PARITY", "INPUT_NAMES", "OUTPUT_NAMES",
            "data", "dataset", "model", "loss", "example_inputs", "split", "evaluate")
# Knobs that mean nothing for a workload are named in its WITHOUT: they are refused when set and stand in none of its cases.
WITHOUT = ("length", "variant")  # of a workload that names none: an image classifier
ANY_SOURCE = ("auto", "real", "standin")  # what every workload's knob `data` takes, beside the names of its own data sets


def names() -> list[str]:
    """Workloads that come with hpml, by their files."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


@functools.cache
def get(name: str) -> ModuleType:
    """The workload `name`, or the one in the file `name` (ends with .py). Raises HpmlError for an unknown or incomplete one."""
    if name.endswith(".py"):
        module = _from_file(Path(name).expanduser())
    elif name in names():
        module = importlib.import_module(f"hpml.workloads.{name}")
    else:
        raise HpmlError(f"unknown workload {name!r}: choose from {', '.join(names())}, or give a file of your own (my_model.py)")
    absent = [item for item in CONTRACT if not hasattr(module, item)]
    if absent:
        raise HpmlError(f"workload {name}: missing {', '.join(absent)} (see CONTRIBUTING.md)")
    return module


def without(module: ModuleType) -> tuple[str, ...]:
    """Knobs that mean nothing for the workload."""
    return getattr(module, "WITHOUT", WITHOUT)


def knows(workload: str, knob: str) -> bool:
    """Whether a knob means something for the workload: what a notebook asks before it sweeps `storage` or `memory_format`."""
    return knob in KNOBS and knob not in without(get(workload))


def sources(module: ModuleType) -> tuple[str, ...]:
    """What a workload's knob `data` takes: the common words and the names in its SOURCES."""
    return (*ANY_SOURCE, *getattr(module, "SOURCES", ()))


def data_identity(module: ModuleType, knobs: dict) -> str:
    """What the workload's data stands for on this machine right now; a file of the reader's own may leave it to the knob's value."""
    return module.identity(knobs) if hasattr(module, "identity") else knobs["data"]


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise HpmlError(f"no such workload file: {path}")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"hpml_reader_{path.stem}_{digest}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise HpmlError(f"workload file {path}: {type(error).__name__}: {error}") from None
    return module
