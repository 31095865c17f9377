"""Frames that can be searched by words: a folder's pictures, or the test frames of the data set, embedded once by the service's engine."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

from hpml.apps import clip_index
from hpml.apps.clip_index import Picture
from hpml.env import HpmlError
from hpml.serve import indexing, samples
from hpml.serve.inputs import open_picture
from hpml.serve.service import Service
from hpml.serve.settings import BadInput

MOST_FRAMES = 20_000
OWN_FRAMES = 200  # of the data set, where no folder was given
THUMBNAIL_PX = 320


class Gallery:
    """`names` of the frames, their embeddings [N, dim] of length 1, and their bytes when they are shown."""

    def __init__(self, title: str, names: list[str], embeddings, read: Callable[[int], bytes], skipped: int) -> None:
        self.names, self.embeddings, self.read = names, embeddings, read
        self.facts = {"title": title, "frames": len(names), "skipped": skipped}

    def nearest(self, embedding: list[float], k: int) -> list[dict]:
        """The k frames nearest to an embedding."""
        return [{"index": row, "name": self.names[row], "score": round(score, 6), "url": f"/gallery/{row}"}
                for row, score in clip_index.nearest(self.embeddings, embedding, k)]

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
        read, title, root = (lambda i: service.sample(i)[0]), service.facts["data"], Path(service.job["run_dir"])
        pictures = [Picture(f"test frame {i}: {service.sample(i)[2]}", 0, 0) for i in range(count)]
        stamp = service.image_set.checksum
    else:
        root = Path(folder).expanduser().resolve()
        pictures, title, stamp = clip_index.listed(folder), root.name, str(root)
        if len(pictures) > MOST_FRAMES:
            raise HpmlError(f"--gallery {folder}: {len(pictures):,} pictures; from 1 to {MOST_FRAMES:,} can be served")
        read = lambda i: (root / pictures[i].name).read_bytes()  # noqa: E731 one of two ways to read
    made = indexing.made_by(service) | {"stamp": stamp}
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]
    kept = Path(service.job["run_dir"]) / "models" / f"gallery-{digest}.safetensors"
    index = indexing.fill(service, root, pictures, read, kept, made=made)
    number = {picture: i for i, picture in enumerate(pictures)}
    good = [number[picture] for picture in index.pictures]
    return Gallery(title, [picture.name for picture in index.pictures], index.embeddings, lambda i: read(good[i]), len(index.skipped))
