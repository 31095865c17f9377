"""A Python file of the reader's own: loaded again when it has changed, its faults said with their line, its objects sent on."""

import functools
import hashlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from hpml.env import HpmlError

PREFIX = "hpml_reader_"  # of the names under which such files are modules


def load(path: Path) -> ModuleType:
    """The file as a module; one that has not changed is loaded once. Raises HpmlError, with the line, for what it does wrong on the way."""
    return _loaded(path, path.read_bytes())


@functools.cache
def _loaded(path: Path, source: bytes) -> ModuleType:
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    module = ModuleType(f"{PREFIX}{path.stem}_{digest}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # pickle and dataclasses look there for what a class belongs to
    try:
        # Not by importlib: its bytecode files would lie beside the reader's, and miss a change within the same second.
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise HpmlError(f"workload file {path}: {blame(error, path)}") from None
    return module


def blame(error: BaseException, path: str | Path) -> str:
    """An exception as one line: its kind, its message, and the last line of the file `path` that had a part in it."""
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
    number = None
    if isinstance(error, SyntaxError):
        message, number = error.msg, error.lineno
    cause: BaseException | None = error
    while cause and number is None:
        number = next((frame.lineno for frame in reversed(traceback.extract_tb(cause.__traceback__)) if frame.filename == str(path)), None)
        cause = cause.__cause__ or cause.__context__
    text = message if isinstance(error, HpmlError) else f"{type(error).__name__}: {message}".removesuffix(": ")
    return text + (f" ({Path(path).name}, line {number})" if number else "")


class Sent:
    """A data set on its way to a worker process that is not a fork: the reader's files are loaded there before it is unpacked."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __reduce__(self):
        return _received, (_Files(), self.dataset)


class _Files:
    """All files loaded so far. It stands before the data set in the pickle, so it is unpacked first."""

    def __reduce__(self):
        return _load_all, ([module.__file__ for name, module in list(sys.modules.items()) if name.startswith(PREFIX)],)


def _load_all(paths: list[str]) -> None:
    for path in paths:
        load(Path(path))


def _received(_, dataset):
    return dataset
