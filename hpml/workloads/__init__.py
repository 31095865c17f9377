"""Workloads: one file each, found by file name or given as a path to a file of the reader's own."""

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

from hpml import env, reader
from hpml.env import HpmlError
from hpml.knobs import KNOBS

# What a workload file must hold; `hpml check FILE` reads this list.
CONTRACT = ("NAME", "TITLE", "METRIC", "MARGIN", "MARGIN_REASON", "SIZES", "LEARNING_RATE", "PARITY", "INPUT_NAMES", "OUTPUT_NAMES",
            "data", "dataset", "model", "loss", "example_inputs", "split", "evaluate")
# Knobs that mean nothing for a workload are named in its WITHOUT: they are refused when set and stand in none of its cases.
WITHOUT = ("length", "variant")  # of a workload that names none: an image classifier
STORAGES = ("array", "jpeg")  # what the knob `storage` may be, where a workload's own STORAGES does not say more
ANY_SOURCE = ("auto", "real", "standin")  # what every workload's knob `data` takes, beside the names of its own data sets


def names() -> list[str]:
    """Workloads that come with hpml, by their files."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def get(name: str) -> ModuleType:
    """The workload `name`, or the one in the file `name` (ends with .py). Raises HpmlError for an unknown or incomplete one."""
    module = load(name)
    if absent := missing(module):
        raise HpmlError(f"workload {name}: missing {', '.join(absent)} (see CONTRIBUTING.md)")
    return module


def load(name: str) -> ModuleType:
    """As `get`, whether the file holds all that it must or not; a file is loaded anew when it has changed."""
    if name.endswith(".py"):
        return reader.load(file(name))
    if name in names():
        return importlib.import_module(f"hpml.workloads.{name}")
    raise HpmlError(f"unknown workload {name!r}: choose from {', '.join(names())}, or give a file of your own (my_model.py)")


def missing(module: ModuleType) -> list[str]:
    """The names of CONTRACT that the module lacks."""
    return [item for item in CONTRACT if not hasattr(module, item)]


def file(name: str) -> Path:
    """Where a reader's file is; what is not in the working folder is looked up in the course's. Raises HpmlError for none."""
    path = Path(name).expanduser()
    path = path if path.is_file() else env.root() / path
    if not path.is_file():
        raise HpmlError(f"no such workload file: {name}")
    return path.resolve()


def canonical(name: str) -> str:
    """A workload as records name it: children may have another working folder, and a file of the course is the same in every checkout."""
    if not name.endswith(".py"):
        return name
    path = file(name)
    return path.relative_to(env.root()).as_posix() if path.is_relative_to(env.root()) else str(path)


def without(module: ModuleType) -> tuple[str, ...]:
    """Knobs that mean nothing for the workload."""
    return (*getattr(module, "WITHOUT", WITHOUT), *(() if hasattr(module, "PARTS") else ("part",)),
            *(() if hasattr(module, "contrast") else ("negatives",)))


def parts(module: ModuleType) -> tuple[str, ...]:
    """What of the workload's model can be exported and run: the whole, and what its PARTS names (CLIP's text tower)."""
    return ("whole", *getattr(module, "PARTS", ()))


def part(module: ModuleType, knobs: dict) -> ModuleType | SimpleNamespace:
    """The workload as the knob `part` means it: itself, or a view of it in which PARTS[part] stands in the place of what differs.

    PARTS: by name, a dict of names of the contract with other values, and "of": the whole module -> the module of the part.
    """
    name = knobs.get("part", "whole")
    if name == "whole":
        return module
    own = module.PARTS[name]
    return SimpleNamespace(**{**vars(module), **own, "model": lambda knobs, classes: own["of"](module.model(knobs, classes)),
                              "whole": module})


def knows(workload: str, knob: str) -> bool:
    """Whether a knob means something for the workload: what a notebook asks before it sweeps `storage` or `memory_format`."""
    return knob in KNOBS and knob not in without(get(workload))


def sources(module: ModuleType) -> tuple[str, ...]:
    """What a workload's knob `data` takes: the common words and the names in its SOURCES."""
    return (*ANY_SOURCE, *getattr(module, "SOURCES", ()))


def data_identity(module: ModuleType, knobs: dict) -> str:
    """What the workload's data stands for on this machine right now; a file of the reader's own may leave it to the knob's value."""
    return module.identity(knobs) if hasattr(module, "identity") else knobs["data"]
