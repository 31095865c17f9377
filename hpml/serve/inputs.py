"""From bytes that anybody may send to a picture and to a model's input: bounded before it is decoded, then as in the evaluation."""

import io
import struct
import warnings
from collections.abc import Callable

from hpml.serve.settings import BadInput

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # Pillow knows dozens more, some of which start other programs
MOST_ASPECT = 40  # a line of pixels would become a huge picture when its shorter side is enlarged
NOT_DECODED = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error)
DRAFT_SHARE = 2  # a JPEG is decoded at the least scale at which it is still so many times larger than wanted, on both sides


def open_picture(content: bytes, *, max_megapixels: float = 50.0, wanted: int = 0):
    """(PIL picture in RGB, upright, (width, height) as it would be in full). Of an animation the first frame.

    `wanted`: the side that will be needed, 0 for all pixels; JPEG's own scaled decoding (Pillow's draft) then saves most of the work of
    a large picture. Raises BadInput: 400 empty, 415 another format, 413 too many pixels, 422 damaged.
    """
    from PIL import Image, ImageOps

    if not content:
        raise BadInput(400, "the body is empty: send the bytes of a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadInput(413, f"more than {max_megapixels:g} million pixels") from None
    except Image.UnidentifiedImageError:
        raise BadInput(415, f"not a picture: {', '.join(FORMATS)} are read") from None
    except NOT_DECODED as error:
        raise BadInput(422, f"damaged picture: {_line(error)}") from None
    width, height = picture.size
    if width * height > max_megapixels * 1e6:
        raise BadInput(413, f"{width} x {height} pixels: more than {max_megapixels:g} million")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise BadInput(422, f"{width} x {height} pixels: one side is more than {MOST_ASPECT} times the other")
    try:
        turned = picture.getexif().get(0x0112, 1) if picture.format in ("JPEG", "PNG", "WEBP") else 1
        if wanted:
            picture.draft(None, (DRAFT_SHARE * wanted, DRAFT_SHARE * wanted))
        picture.load()
        upright = ImageOps.exif_transpose(picture) if turned != 1 else picture
        return upright.convert("RGB"), ((height, width) if turned in (5, 6, 7, 8) else (width, height))
    except Image.DecompressionBombError:
        raise BadInput(413, f"more than {max_megapixels:g} million pixels") from None
    except NOT_DECODED as error:
        raise BadInput(422, f"damaged picture: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:100]


def reader_of(dataset, *, whole: bool) -> tuple[Callable, int]:
    """(picture -> the model's input float32 [1, 3, height, width], side in pixels that it needs of a picture).

    A picture takes the way of the evaluation: that of the data set's test samples. Where those are stored as arrays of one size it is
    brought to this size first: stretched (`whole`), as data sets with places and masks are, or cut to the shape around its centre.
    """
    import numpy as np
    from PIL import Image, ImageOps

    inner = getattr(dataset, "frames", dataset)  # a data set of frames with captions
    if hasattr(inner, "transform"):
        side = max(getattr(step, "size", [0])[0] for step in inner.transform.transforms)
        return (lambda picture: np.asarray(inner.transform(picture))[None]), side
    height, width = inner.images.shape[1:3]

    def read(picture):
        if picture.size != (width, height):
            resized = picture.resize if whole else (lambda size, way: ImageOps.fit(picture, size, way))
            picture = resized((width, height), Image.Resampling.BILINEAR)
        return np.asarray(_one(inner, np.asarray(picture))[0][0])[None]

    return read, max(height, width)


def _one(dataset, pixels):
    """The data set with one sample, of these pixels. Not copy.copy: it would open memory maps again."""
    import numpy as np

    one = object.__new__(type(dataset))
    one.__dict__.update(dataset.__dict__)
    one.images = pixels[None]
    if hasattr(one, "masks"):
        one.masks = np.zeros((1, 1, 1), np.uint8)
    one.labels = np.zeros((1, 3), np.float32) if getattr(dataset, "labels", np.zeros(1)).ndim == 2 else np.zeros(1, np.int64)
    return one
