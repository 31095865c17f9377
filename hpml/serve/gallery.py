"""Frames that can be searched by words: a folder's pictures, or the test frames of the data set, embedded once by the service's engine."""

import collections
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

from hpml.env import HpmlError
from hpml.serve import samples
from hpml.serve.inputs import open_picture
from hpml.serve.service import Service
from hpml.serve.settings import BadInput

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
MOST_FRAMES = 20_000
OWN_FRAMES = 200  # of the data set, where no folder was given
AT_ONCE = 16
THUMBNAIL_PX = 320


class Gallery:
    """`names` of the frames, their embeddings [N, dim] of length 1, and their bytes when they are shown."""

    def __init__(self, title: str, names: list[str], embeddings, read: Callable[[int], bytes], skipped: int) -> None:
        self.names, self.embeddings, self.read = names, embeddings, read
        self.facts = {"title": title, "frames": len(names), "skipped": skipped}

    def nearest(self, embedding: list[float], k: int) -> list[dict]:
        """The k frames nearest to an embedding."""
        import numpy as np

        scores = self.embeddings @ np.asarray(embedding, np.float32)
        return [{"index": int(i), "name": self.names[i], "score": round(float(scores[i]), 6), "url": f"/gallery/{i}"}
                for i in np.argsort(-scores, kind="stable")[:k]]

    def thumbnail(self, index: int) -> bytes:
        """A frame as a small JPEG. Raises BadInput where it can no longer be read."""
        try:
            picture, _ = open_picture(self.read(index), wanted=THUMBNAIL_PX)
        except OSError:
            raise BadInput(404, "the frame is gone") from None
        picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80)
        return file.getvalue()


def open_gallery(service: Service, folder: str | Path | None = None) -> Gallery:
    """The gallery of a folder (with the folders below it), or of the first test frames. Embeddings of the same files and weights are kept
    in the run. Raises HpmlError for a folder that is not there or holds no picture."""
    if folder is None:
        count = min(OWN_FRAMES, samples.count(service))
        read, names = (lambda i: service.sample(i)[0]), [f"test frame {i}: {service.sample(i)[2]}" for i in range(count)]
        title, stamp = service.facts["data"], [service.image_set.checksum, count]
    else:
        root = Path(folder).expanduser().resolve()
        if not root.is_dir():
            raise HpmlError(f"--gallery {folder}: no such folder")
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file() and not path.is_symlink())
        if not paths or len(paths) > MOST_FRAMES:
            raise HpmlError(f"--gallery {folder}: {len(paths):,} pictures; from 1 to {MOST_FRAMES:,} can be served")
        read, names, title = (lambda i: paths[i].read_bytes()), [path.relative_to(root).as_posix() for path in paths], root.name
        stamp = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    identity = json.dumps([stamp, service.job["weights_sha256"], service.knobs], sort_keys=True, default=str)
    kept = Path(service.job["run_dir"]) / "models" / f"gallery-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.npz"
    embeddings, good = _embedded(service, kept, len(names), read)
    return Gallery(title, [names[i] for i in good], embeddings, lambda i: read(good[i]), len(names) - len(good))


def _embedded(service: Service, kept: Path, count: int, read: Callable[[int], bytes]):
    """(embeddings [n, dim], which of the frames they belong to): frames that cannot be read are left out."""
    import numpy as np

    try:
        with np.load(kept, allow_pickle=False) as found:
            return found["embeddings"], [int(i) for i in found["good"]]
    except (OSError, ValueError, KeyError):
        pass
    rows, good, waiting = [], [], collections.deque()

    def take() -> None:
        index, future = waiting.popleft()
        try:
            rows.append(future.result().value["embeddings"][0])
            good.append(index)
        except BadInput:
            return

    for index in range(count):
        waiting.append((index, service.submit(read(index), deadline_s=3600.0)))
        if len(waiting) >= min(AT_ONCE, service.settings.queue):
            take()
    while waiting:
        take()
    if not good:
        raise HpmlError("none of the gallery's pictures can be read")
    embeddings = np.asarray(rows, np.float32)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}.npz")
    np.savez(partial, embeddings=embeddings, good=np.asarray(good))
    partial.replace(kept)
    return embeddings, good
