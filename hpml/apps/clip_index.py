"""An index of pictures: their embeddings with names, sizes and times in one safetensors file, and the search in it.

The file is data alone: a float32 array [N, dim] of rows of length 1 and a JSON text in safetensors' metadata. It names pictures relative
to their folder and the folder relative to itself, so both can be moved together. It is written whole or not at all, while an index is
made again and again: what is in it need not be embedded again.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hpml.env import HpmlError

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
KEY = "hpml_index"  # of the JSON text in the file's metadata
LENGTH_ATOL = 1e-2  # of an embedding, whose length is 1 but for rounding


@dataclass(frozen=True)
class Picture:
    """A file as it was seen: name relative to the folder, size in bytes, time of change in ns."""

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Index:
    """`made`: by which model (weights_sha256, ...), compared as a whole. Rows of `embeddings` belong to `pictures`; `skipped` could not be
    read, for the reason beside it. complete: whether everything that was listed is in it."""

    made: dict
    folder: Path
    pictures: list[Picture]
    embeddings: "np.ndarray"
    skipped: list[tuple[Picture, str]] = field(default_factory=list)
    complete: bool = True

    def save(self, path: Path) -> None:
        """Write the file, all or nothing. Raises HpmlError where it cannot be written."""
        import numpy as np
        from safetensors.numpy import save_file

        facts = {"format": FORMAT, "made": self.made, "folder": Path(os.path.relpath(self.folder, path.resolve().parent)).as_posix(),
                 "pictures": [[p.name, p.size, p.mtime_ns] for p in self.pictures], "complete": self.complete,
                 "skipped": [[p.name, p.size, p.mtime_ns, reason] for p, reason in self.skipped]}
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"embeddings": np.ascontiguousarray(self.embeddings, np.float32)}, partial, {KEY: json.dumps(facts)})
            partial.replace(path)
        except OSError as error:
            raise HpmlError(f"{path}: cannot be written: {error.strerror or error}") from None
        finally:
            partial.unlink(missing_ok=True)


def load(path: str | Path) -> Index:
    """The index in a file. Raises HpmlError, in one line, for a file that is absent, cut, damaged, or no index of this format."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise HpmlError(f"{path}: no such index: make it with `hpml clip index FOLDER --out {path}`")
    try:
        with safe_open(path, "np") as file:
            facts, embeddings = json.loads((file.metadata() or {})[KEY]), file.get_tensor("embeddings")
        if facts["format"] != FORMAT:
            raise HpmlError(f"{path}: an index of format {facts['format']}, this is {FORMAT}: make it again")
        pictures = [_picture(*row) for row in facts["pictures"]]
        skipped = [(_picture(*row[:3]), str(row[3])) for row in facts["skipped"]]
        found = Index(dict(facts["made"]), Path(os.path.normpath(path.resolve().parent / facts["folder"])), pictures, embeddings, skipped,
                      bool(facts["complete"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise HpmlError(f"{path}: cut, damaged or no index of pictures ({_line(error)})") from None
    lengths = np.linalg.norm(embeddings, axis=1) if embeddings.ndim == 2 else np.zeros(1)
    if embeddings.dtype != np.float32 or len(embeddings) != len(pictures) or not np.all(np.abs(lengths - 1) < LENGTH_ATOL):
        raise HpmlError(f"{path}: damaged: {len(pictures):,} pictures, but not as many embeddings of length 1")
    return found


def _picture(name: str, size: int, mtime_ns: int) -> Picture:
    """An entry of a file that anybody may have written: it must stay inside the folder."""
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"{name!r} is no name below the folder")
    return Picture(name, int(size), int(mtime_ns))


def _line(error: BaseException) -> str:
    return (f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__).splitlines()[0][:100]


def listed(folder: str | Path) -> list[Picture]:
    """The pictures in a folder and below it, by their endings, sorted; links are not followed. Raises HpmlError where there are none."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise HpmlError(f"{folder}: no such folder")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file() and not path.is_symlink())
    if not paths:
        raise HpmlError(f"{folder}: no picture in it ({', '.join(ENDINGS)})")
    return [Picture(path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def known(index: Index | None, made: dict, pictures: Iterable[Picture]) -> tuple[dict[Picture, "np.ndarray"], dict[Picture, str]]:
    """(rows, reasons) of the pictures that an earlier index of the same model holds, unchanged since: they are not embedded again."""
    if index is None or index.made != made:
        return {}, {}
    asked = set(pictures)
    rows = {picture: row for picture, row in zip(index.pictures, index.embeddings, strict=True) if picture in asked}
    return rows, {picture: reason for picture, reason in index.skipped if picture in asked}


def stale(index: Index, pictures: list[Picture]) -> str | None:
    """In words, how the folder differs from what was indexed; None where it does not."""
    there, then = {p.name: p for p in pictures}, {p.name: p for p in [*index.pictures, *(p for p, _ in index.skipped)]}
    groups = {"changed": [name for name in then.keys() & there.keys() if then[name] != there[name]],
              "gone": list(then.keys() - there.keys()), "new": list(there.keys() - then.keys())}
    said = [f"{len(names):,} {word} ({min(names)}{', ...' if len(names) > 1 else ''})" for word, names in groups.items() if names]
    return ", ".join(said) or None


def nearest(embeddings: "np.ndarray", query: "np.ndarray", k: int, *, without: int | None = None) -> list[tuple[int, float]]:
    """(row, score) of the k rows nearest to a query of length 1, best first; equal scores in the order of the rows. `without`: a row that
    is no candidate, where the query is itself in the index.

    A plain matrix product over all rows: exact, nothing to build or to keep in step, and `benchmarks/clip_index.py` measures up to which
    size it is not what a reader waits for.
    """
    import numpy as np

    scores = embeddings @ np.asarray(query, np.float32)
    if without is not None:
        scores[without] = -np.inf
    k = min(k, len(scores) - (without is not None))
    if k <= 0:
        return []
    best = np.flatnonzero(scores >= np.partition(scores, -k)[-k])  # more than k where the last of them has equals
    order = best[np.argsort(-scores[best], kind="stable")][:k]
    return [(int(row), float(scores[row])) for row in order]


def finished(index: Index) -> Index:
    """The index with its pictures in the order of their names, complete."""
    order = sorted(range(len(index.pictures)), key=lambda i: index.pictures[i].name)
    return replace(index, pictures=[index.pictures[i] for i in order], embeddings=index.embeddings[order], complete=True)
