"""What does JPEG's scaled decoding (Pillow's draft) save a request, and what does it change?

    HPML_DATA=FOLDER python benchmarks/decode.py [--image 224] [--count 60]

Takes test pictures of ImageNet (the stand-in where it is absent), and the same enlarged to a camera's 12 megapixels, through the served
preprocessing with and without it, in turns; prints the median seconds and the mean and largest difference of the inputs, as a share of
their range.
"""

import argparse
import io
import statistics
import time

import numpy as np
from PIL import Image

from hpml.serve.inputs import open_picture, reader_of
from hpml.workloads import resnet152

CAMERA_PX = (4000, 3000)


def enlarged(content: bytes) -> bytes:
    """The picture as a camera's file."""
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").resize(CAMERA_PX, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def compare(contents: list[bytes], read, side: int) -> str:
    """One line: seconds of both ways, and the difference."""
    seconds, means, largest = {0: [], side: []}, [], []
    for content in contents:
        inputs = {}
        for wanted in seconds:
            started = time.perf_counter()
            inputs[wanted] = read(open_picture(content, wanted=wanted)[0])
            seconds[wanted].append(time.perf_counter() - started)
        span = np.ptp(inputs[0])
        means.append(float(np.abs(inputs[0] - inputs[side]).mean() / span))
        largest.append(float(np.abs(inputs[0] - inputs[side]).max() / span))
    whole, scaled = (1e3 * statistics.median(seconds[wanted]) for wanted in (0, side))
    return (f"{whole:.1f} ms whole, {scaled:.1f} ms scaled ({whole / scaled:.2f}x); inputs differ by {100 * statistics.mean(means):.2f} % "
            f"of their range on average, {100 * max(largest):.1f} % at most (n={len(contents)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--count", type=int, default=60)
    asked = parser.parse_args()
    knobs = {"data": "auto", "workers": 0, "image": asked.image, "train_samples": 0, "test_samples": asked.count, "batch": 1}
    files = resnet152.data(knobs)
    read, side = reader_of(resnet152.dataset(knobs, files, train=False), whole=False)
    contents = [files.read(place) for place in files.test_images]
    print(f"{files.title} ({files.origin}), input of {asked.image} pixels")
    print(f"as they are: {compare(contents, read, side)}")
    print(f"{CAMERA_PX[0]}x{CAMERA_PX[1]}: {compare([enlarged(one) for one in contents[:max(8, asked.count // 8)]], read, side)}")


if __name__ == "__main__":
    main()
