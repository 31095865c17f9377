"""ImageNet's stand-in: rendered shapes as JPEG files of ImageNet's usual sizes, in ImageNet's folders, ten of its 1,000 labels.

The colour of the ground hints at the class: neighbouring colours overlap, so an answer by colour alone is right three times in four,
and the shape decides the rest. A very deep net finds the colour in a hundred steps. It serves the code path of real files
(decode, crop, resize at each read) and a quality that means something; it says nothing about photographs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from hpml.data import imagenet, shapes
from hpml.data.images import say
from hpml.data.jpegfiles import FileSet
from hpml.env import HpmlError, cache_dir, cores

RECIPE = 1  # raised whenever other pixels come out
SIZES = ((500, 375), (375, 500), (500, 333), (400, 300))  # width, height: what most of ImageNet's files have
HUE_SPREAD_RAD = 0.27  # around a class's hue; neighbours are 2 pi / 10 apart, so hue alone answers 76 % rightly
TINT, GRAIN = 0.45, 9  # share of the ground's colour; standard deviation of the grain, of 255, which makes files of a photograph's size
JPEG_QUALITY = 90


def load(n_train: int = 1_200, n_test: int = 300, seed: int = 0) -> FileSet:
    """`n_train` + `n_test` JPEG files, equal for equal arguments; written once (seconds), then read where they are.

    Raises HpmlError when the cache cannot be written.
    """
    digest = hashlib.sha256(f"rendered recipe {RECIPE}, shapes {shapes.RECIPE}, {n_train} + {n_test}, seed {seed}".encode()).hexdigest()
    folder = cache_dir() / f"rendered-{digest[:12]}"
    used = labels()
    if not folder.is_dir():
        began = time.perf_counter()
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".tmp", dir=folder.parent))
            try:
                _write(temporary, {"train": n_train, "val": n_test}, seed, used)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            if not folder.is_dir():  # else another process was first
                raise HpmlError(f"cannot write the cache {folder}: {error.strerror or error}") from None
        say(f"rendering ImageNet's stand-in once: {time.perf_counter() - began:.1f} s")
    files = imagenet.load(path=folder)
    names = list(files.classes)
    for shape, number in zip(shapes.CLASSES, used, strict=True):
        names[number] = shape
    return replace(files, name="standin", title="rendered shapes as JPEG files", origin="stand-in", classes=names, checksum=digest,
                   note=f"generated, not photographs; {len(used)} of 1,000 labels")


def labels() -> list[int]:
    """The class number that each shape takes among ImageNet's 1,000."""
    return [100 * number + 50 for number in range(len(shapes.CLASSES))]


def _write(folder: Path, counts: dict[str, int], seed: int, used: list[int]) -> None:
    import numpy as np

    wnids, _ = imagenet.classes()
    grain = np.random.default_rng(seed).normal(0, GRAIN, (512, 512, 1)).astype(np.float32)
    for stream, (part, count) in enumerate(counts.items()):
        pictures, shape_of = shapes.render(count, seed=seed, stream=stream)
        rng = np.random.default_rng([seed, stream, 1])
        hues = shape_of * (2 * np.pi / len(used)) + rng.normal(0, HUE_SPREAD_RAD, count)
        places = rng.integers(0, 512, (count, 2))
        kinds = rng.integers(0, len(SIZES), count)
        for number in used:
            (folder / part / wnids[number]).mkdir(parents=True)
        jobs = [(pictures[i], hues[i], places[i], SIZES[kinds[i]],
                 folder / part / wnids[used[shape_of[i]]] / f"{part}_{i:06d}.JPEG") for i in range(count)]
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(partial(_picture, grain=grain), jobs))


def _picture(job: tuple, grain) -> None:
    """Write one file: the small picture enlarged, mirrored outwards to the wanted shape, tinted, with grain."""
    import numpy as np
    from PIL import Image

    small, hue, shift, (width, height), path = job
    side = min(width, height)
    large = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), np.float32)
    across, down = width - side, height - side
    large = np.pad(large, ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)), mode="reflect")
    tint = 127.5 + 110 * np.cos(hue - np.array([0, 2, 4]) * np.pi / 3)
    noise = np.roll(grain, tuple(shift), axis=(0, 1))[:height, :width]
    pixels = (1 - TINT) * large + TINT * tint.astype(np.float32) + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=JPEG_QUALITY)
