"""Images encoded again before they are packed: smaller files, and what that costs in quality."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from hpml.data.jpegfiles import NOT_DECODED, FileSet, decoded
from hpml.env import HpmlError

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "BMP": "bmp"}
QUALITY = 90  # where only a side is asked for
TABLE = (75, 85, 90, 95)  # the qualities of the table, beside the one that is asked for


@dataclass(frozen=True)
class Recode:
    """JPEG of `quality` (1 to 95, as Pillow counts), the longer side at most `max_side` pixels (0: as it is)."""

    quality: int = QUALITY
    max_side: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise HpmlError(f"quality {self.quality}: choose 1 to 95 (above 95 a JPEG grows without a visible gain)")
        if self.max_side < 0 or 0 < self.max_side < 8:
            raise HpmlError(f"max-side {self.max_side}: at least 8 pixels, or 0 for the size as it is")

    def resized(self, content: bytes):
        """The decoded image with its longer side at most `max_side`."""
        from PIL import Image

        picture = decoded(content)
        if self.max_side:
            picture.thumbnail((self.max_side, self.max_side), Image.Resampling.LANCZOS)
        return picture

    def apply(self, content: bytes) -> tuple[bytes, str]:
        """(bytes, extension): encoded again, or as it was where that is not smaller. Raises one of NOT_DECODED for what is no image."""
        file = io.BytesIO()
        self.resized(content).save(file, "JPEG", quality=self.quality)
        return (file.getvalue(), "jpg") if file.tell() < len(content) else (content, extension(content))


def extension(content: bytes) -> str:
    """The extension that fits an image's format."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        return EXTENSIONS.get(picture.format, "img")


def readable(files: FileSet, places) -> list[bytes]:
    """The bytes of those of a few images that can be decoded."""
    found = []
    for place in places:
        with contextlib.suppress(*NOT_DECODED):
            content = files.read(place)
            decoded(content)
            found.append(content)
    return found


def share_of_bytes(contents: list[bytes], recode: Recode) -> float:
    """Bytes after over bytes before, from a few images."""
    before = sum(map(len, contents))
    return sum(len(recode.apply(content)[0]) for content in contents) / before if before else 1.0


def psnr(made, original) -> float:
    """Peak signal-to-noise ratio of two images of one size, in dB; infinite where they are equal."""
    import numpy as np

    error = np.mean((np.asarray(made, np.float32) - np.asarray(original, np.float32)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def table(contents: list[bytes], asked: Recode) -> list[dict]:
    """One row for each quality: bytes a sample, their share of the original's, and the mean PSNR in dB against the original's pixels at the
    same size (what JPEG loses, not what fewer pixels lose). The first row is the images as they are."""
    import statistics

    before = statistics.fmean(map(len, contents))
    rows = [{"quality": "as it is", "max_side": 0, "bytes": before, "share": 1.0, "psnr_db": float("inf")}]
    for quality in sorted({*TABLE, asked.quality}):
        recode = Recode(quality, asked.max_side)
        sizes, ratios = [], []
        for content in contents:
            made, _ = recode.apply(content)
            sizes.append(len(made))
            ratios.append(psnr(decoded(made), recode.resized(content)) if made is not content else float("inf"))
        finite = [ratio for ratio in ratios if ratio != float("inf")]
        rows.append({"quality": quality, "max_side": asked.max_side, "bytes": statistics.fmean(sizes),
                     "share": statistics.fmean(sizes) / before, "psnr_db": statistics.fmean(finite) if finite else float("inf")})
    return rows


def text(rows: list[dict]) -> str:
    """The table as text."""
    lines = [f"{'quality':>8}  {'max side':>8}  {'KiB/sample':>10}  {'of original':>11}  {'PSNR dB':>7}"]
    for row in rows:
        side = row["max_side"] or "as it is"
        loss = "-" if row["psnr_db"] == float("inf") else f"{row['psnr_db']:.1f}"
        lines.append(f"{row['quality']:>8}  {side:>8}  {row['bytes'] / 1024:>10.1f}  {row['share']:>10.1%}  {loss:>7}")
    return "\n".join(lines)
