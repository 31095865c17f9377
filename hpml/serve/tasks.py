"""What a workload answers: one task for each kind of output, from a request's bytes to the model's inputs and back to words."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpml.serve.inputs import open_picture, reader_of
from hpml.serve.settings import BadInput, Settings

TOP = 5
COLOURS = ((220, 60, 60), (40, 90, 160), (250, 200, 60), (60, 160, 90), (150, 90, 180))  # of a mask's classes, in turn


@dataclass(frozen=True)
class Task:
    """`takes`: image or text. `decode`: bytes -> (model's inputs [rows, ...], what the answer needs beside the outputs).
    `answer`: (the request's rows of the first output, that) -> a dictionary for JSON."""

    takes: str
    decode: Callable[[bytes], tuple[tuple, Any]]
    answer: Callable[[Any, Any], dict]
    path: str  # of its endpoint


def tasks_of(workload, knobs: dict, image_set, settings: Settings, classes: list[str]) -> dict[str, Task]:
    """The tasks of a workload by kind; the first one is the default. A file of the reader's own is taken for an image classifier."""
    if workload.NAME == "xlnet":
        return {"text": Task("text", _texts(workload, knobs, image_set, settings), _classes_answer(classes), "/v1/predict")}
    dataset = workload.dataset({**knobs, "storage": "array"}, image_set, train=False)
    answer, whole = {"deeplabv3": (_mask_answer(classes), True), "shuttle": (_place_answer(knobs), True),
                     "clip": (_embedding_answer, False)}.get(workload.NAME, (_classes_answer(classes), False))
    read, side = reader_of(dataset, whole=whole)

    def decode(content: bytes):
        picture, size = open_picture(content, max_megapixels=settings.max_megapixels, wanted=side)
        return (read(picture),), size

    image = Task("image", decode, answer, "/v1/embed/image" if workload.NAME == "clip" else "/v1/predict")
    if workload.NAME != "clip":
        return {"image": image}
    return {"image": image, "text": Task("text", _captions(knobs, image_set, settings), _embedding_answer, "/v1/embed/text")}


def text_of(content: bytes, settings: Settings) -> str:
    """The text in a request. Raises BadInput for none, too long a one, or bytes that are no UTF-8."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise BadInput(422, "not a text in UTF-8") from None
    if not text.strip():
        raise BadInput(422, "the text is empty")
    if len(text) > settings.max_text:
        raise BadInput(413, f"{len(text):,} characters: more than {settings.max_text:,}")
    return text


def _texts(workload, knobs: dict, reviews, settings: Settings) -> Callable:
    import numpy as np

    from hpml.data.tokens import encode, open_tokenizer

    tokenizer = open_tokenizer(reviews.tokenizer_file, knobs["length"])

    def decode(content: bytes):
        ids, mask = encode(tokenizer, [text_of(content, settings)])
        return (ids.astype(np.int64), mask.astype(np.float32)), None

    return decode


def _captions(knobs: dict, frames, settings: Settings) -> Callable:
    from hpml.data.bpe import encode, open_tokenizer

    tokenizer = open_tokenizer(frames.tokenizer_file, knobs["length"])
    return lambda content: ((encode(tokenizer, text_of(content, settings).split("\0")),), None)


def _classes_answer(classes: list[str]) -> Callable:
    """Logits [1, classes] -> the most probable ones with their names."""
    import numpy as np

    def answer(logits, _size) -> dict:
        row = np.asarray(logits[0], np.float64)
        share = np.exp(row - row.max())
        share /= share.sum()
        best = np.argsort(-row, kind="stable")[:TOP]
        return {"top": [{"label": classes[i], "index": int(i), "probability": round(float(share[i]), 6)} for i in best]}

    return answer


def _mask_answer(classes: list[str]) -> Callable:
    """Logits [1, classes, H, W] -> the mask as a PNG with a palette, of the picture's own size, and each class's share of its pixels."""
    import numpy as np
    from PIL import Image

    palette = [part for i in range(len(classes)) for part in COLOURS[i % len(COLOURS)]]

    def answer(logits, size) -> dict:
        found = np.asarray(logits[0]).argmax(0).astype(np.uint8)
        mask = Image.fromarray(found).resize(size, Image.Resampling.NEAREST)
        mask.putpalette(palette)
        file = io.BytesIO()
        mask.save(file, "PNG", compress_level=1)
        shares = np.bincount(found.ravel(), minlength=len(classes)) / found.size
        return {"classes": [{"label": name, "share": round(float(share), 6), "colour": COLOURS[i % len(COLOURS)]}
                            for i, (name, share) in enumerate(zip(classes, shares, strict=True))],
                "width": size[0], "height": size[1], "mask_png": base64.b64encode(file.getvalue()).decode()}

    return answer


def _place_answer(knobs: dict) -> Callable:
    """[1, 3] of x, y in the model's frame and the logit of being visible -> the place in the picture's own pixels."""
    import numpy as np

    frame = knobs["image"], knobs["image"] * 9 // 16

    def answer(places, size) -> dict:
        x, y, logit = (float(value) for value in places[0])
        return {"x": round(x * size[0] / frame[0], 2), "y": round(y * size[1] / frame[1], 2), "visible": logit > 0,
                "probability": round(float(1 / (1 + np.exp(-np.clip(logit, -30, 30)))), 6), "width": size[0], "height": size[1]}

    return answer


def _embedding_answer(embeddings, _size) -> dict:
    """Embeddings of length 1, one for each row."""
    return {"embeddings": [[round(float(value), 6) for value in row] for row in embeddings]}
