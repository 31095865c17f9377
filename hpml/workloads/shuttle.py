"""A shuttle in a badminton frame, found and then refined by two networks in turn; a rendered stand-in where no labelled frames are.

The first network looks at the whole frame at half its side, the second at a crop of full resolution around what the first one found
(_localizer.py). Every figure belongs to its frame size: errors are pixels of the frame as it was given in, `image` wide and 9/16 as high.
"""

from hpml.workloads import _designs, _pixels, _stages
from hpml.workloads._pixels import WITHIN_PX, pixel_errors

NAME = "shuttle"
TITLE = "Shuttle localizer"
TASK = "localization"
METRIC = "within 4 px"
MARGIN = 0.02
MARGIN_REASON = "two points: with some 200 visible test frames the standard error of a share near 85 % is 2.5 points"
# timm's EfficientNets with their classifiers, as published; the localizer takes their features only, once for each stage.
BACKBONES = {"efficientnet_b0": 5_288_548, "tf_efficientnetv2_b0": 7_139_704, "tf_efficientnetv2_b3": 14_358_406}
VARIANTS = _designs.BACKBONES  # with options behind the name; small: timm's least EfficientNet, which a CPU trains in a minute
design = _designs.design
LEARNING_RATE = {"sgd": 0.02, "adam": 0.004}
INPUT_NAMES, OUTPUT_NAMES = ("frames",), ("places",)
SOURCES = ("shuttle",)
WITHOUT = ("length", "stem")
LEAST_BATCH = 2  # where a training can normalise: the deepest features of a small crop are two by two
INT8_OPS = ("Conv",)  # the rest turns a heat map into pixels: 256 steps over a frame's width would be an error of pixels by themselves
KEEP_FP = 8  # of its convolutions stay in floating point in a case of their own: EfficientNet loses in INT8, depthwise first of all
# The same weights in another engine, in pixels of the frame (and units of the visibility's logit). FP32: places differ by the order of
# additions, 1/1000 of a pixel, but where the first stage's place rounds to the other side the crop moves by one pixel, and with it what
# the second stage sees: a pixel and a half is allowed. In fewer digits the first stage may look elsewhere in a frame where nothing is
# visible or two things look alike: there a place means nothing, so only the answers are compared (`agreement`): visible or not,
# and within two pixels, half of what the metric allows, where something is.
PARITY = {
    "fp32": {"atol": 1.5, "rtol": 0.0, "top1_agreement": 0.99},
    "fp16": {"range_share": 1.0, "rtol": 0.0, "top1_agreement": 0.97},
    "bf16": {"range_share": 1.0, "rtol": 0.0, "top1_agreement": 0.9},
    "int8": {"range_share": 1.0, "rtol": 0.0, "top1_agreement": 0.8},
}
AGREE_PX = 2.0
PARTS = _stages.PARTS  # each network alone; the whole is both, end to end
# Frames shrink at the small tiers, never the architecture of a speed row. On a CPU the quality rows carry the small variant.
_SMOKE = {"batch": 2, "image": 128, "train_samples": 24, "test_samples": 12, "optimizer": "adam"}
SIZES = {
    "smoke": {
        "train": _SMOKE,
        "fit": {**_SMOKE, "batch": 8, "variant": "small", "epochs": 2, "train_samples": 48, "test_samples": 24, "schedule": "onecycle"},
        "infer": {"batch": 1, "image": 128, "train_samples": 24, "test_samples": 12},
        "quality": {"batch": 8, "image": 128, "variant": "small", "test_samples": 24},
        "data": {"batch": 8, "image": 128, "train_samples": 48, "test_samples": 12},
        "protocol": {"warmup": 1, "min_iters": 2, "min_seconds": 0.0, "rounds": 1},
    },
    "cpu": {
        "train": {"batch": 4, "image": 320, "train_samples": 240, "test_samples": 60, "optimizer": "adam"},
        # Half as wide, a shuttle is about one pixel of what the first stage sees.
        "fit": {"batch": 16, "image": 640, "variant": "small", "epochs": 4, "train_samples": 1920, "test_samples": 240,
                "schedule": "onecycle", "optimizer": "adam"},
        "infer": {"batch": 1, "image": 640, "train_samples": 240, "test_samples": 60},
        "quality": {"batch": 16, "image": 640, "variant": "small", "train_samples": 1920, "test_samples": 240},
        "data": {"batch": 16, "image": 640, "train_samples": 240, "test_samples": 60},
        "protocol": {"warmup": 2, "min_iters": 4, "min_seconds": 1.0, "rounds": 3},
    },
    "gpu": {
        "train": {"batch": 16, "image": 1280, "train_samples": 960, "test_samples": 240, "optimizer": "adam"},
        "fit": {"batch": 16, "image": 1280, "epochs": 6, "train_samples": 4800, "test_samples": 480, "schedule": "onecycle",
                "optimizer": "adam", "lr": 0.002, "workers": 4},
        "infer": {"batch": 1, "image": 1280, "train_samples": 960, "test_samples": 240},
        "quality": {"batch": 16, "image": 1280, "train_samples": 4800, "test_samples": 480},
        "data": {"batch": 16, "image": 1280, "train_samples": 960, "test_samples": 240},
        "protocol": {"warmup": 10, "min_iters": 20, "min_seconds": 2.0, "rounds": 3},
    },
    # No paper gives a recipe for this design: TrackNet's frame, all frames that are there.
    "full": {
        "train": {"batch": 16, "image": 1280, "optimizer": "adam"},
        "fit": {"batch": 16, "image": 1280, "epochs": 60, "schedule": "onecycle", "optimizer": "adam", "lr": 0.002,
                "workers": 8},
        "infer": {"batch": 1, "image": 1280},
        "quality": {"batch": 16, "image": 1280},
        "data": {"batch": 16, "image": 1280},
        "protocol": {"warmup": 10, "min_iters": 50, "min_seconds": 5.0, "rounds": 6},
    },
}


def data(knobs: dict):
    """The FrameSet that the knobs ask for, at their width, cut to train_samples and test_samples (clips take turns; all cases share it).

    Raises HpmlError for a width of which 9/16 is no whole number or that leaves no room for the crop.
    """
    from hpml.data import shuttle
    from hpml.env import HpmlError

    if knobs["image"] % 16 or knobs["image"] < 128:
        raise HpmlError(f"image={knobs['image']}: a frame is a multiple of 16 and at least 128 pixels wide, 9/16 of it high")
    return shuttle.open_frames(knobs["data"], knobs["image"], knobs["train_samples"], knobs["test_samples"])


def identity(knobs: dict) -> str:
    """What the knob `data` stands for on this machine: sizes and change times of the files."""
    from hpml.data import shuttle

    return shuttle.identity(knobs["data"])


def dataset(knobs: dict, frames, *, train: bool):
    """Map-style data set of (float32 [channels, height, width], float32 [3]: x, y in the frame's pixels, visible).

    A design with history has more channels than the frame's three (FrameDataset). Raises Unavailable for a training whose micro-batch is
    smaller than BatchNorm can be trained with here.
    """
    from hpml.env import Unavailable

    micro = knobs["batch"] // knobs.get("accum_steps", 1)
    if train and "accum_steps" in knobs and micro < LEAST_BATCH:
        raise Unavailable(f"{TITLE}: a micro-batch of {micro} cannot be trained: the deepest features of a crop are too few for BatchNorm, "
                          f"at least {LEAST_BATCH} frames are needed")
    return _stages.samples(knobs, frames, train=train, storage=knobs.get("storage", "array"))


def model(knobs: dict, classes: int):
    """The localizer with random weights: frames [N, channels, H, W] -> x, y in pixels and the logit of being visible, [N, 3].

    In training it takes the truth [N, 3] as well and gives each sample's losses [N, 3]. knobs["variant"] names the design (_designs.py).
    """
    from hpml.workloads._localizer import build

    return build(_stages.design_of(knobs))


def loss(outputs, targets):
    """Both stages' heat maps and the visibility, summed over the micro-batch: the caller divides by the true count of samples.

    outputs [N, 3], the losses that the model gives in training.
    """
    return outputs.sum()


def split(batch) -> tuple[tuple, object]:
    """A collated batch as (inputs of the model in training, targets): the second stage's crops lie around the truth."""
    return (batch[0], batch[1]), batch[1]


def example_inputs(knobs: dict, batch: int) -> tuple:
    """Seeded inputs of the right shape and scale for export: ([batch, channels, image * 9 / 16, image],)."""
    import torch

    shape = batch, _stages.design_of(knobs).channels, knobs["image"] * 9 // 16, knobs["image"]
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)


def agreement(wanted, got) -> float:
    """Share of frames with the same answer: both not visible, or both visible and within AGREE_PX pixels."""
    import numpy as np

    near = np.hypot(*(wanted - got)[:, :2].T) <= AGREE_PX
    seen, also = wanted[:, 2] > 0, got[:, 2] > 0
    return float(((seen == also) & (near | ~seen)).mean())


def likeness(wanted, got) -> dict[str, float]:
    """The largest and the median distance of two lists of places in pixels, over all frames: also where nothing is visible."""
    return _stages.distance(wanted, got)


def evaluate(predict, knobs: dict, frames) -> dict:
    """Share of the visible test frames whose place is within WITHIN_PX pixels, of `predict` (tuple of arrays -> [N, 3]).

    One loader for all engines; a design with history gets its own answers as past places. Returns metric, value, right (bool [n]), n
    (visible frames), chance (the training frames' mean place everywhere), details (_pixels.scores: errors in pixels, precision, recall and
    F1 by TrackNet's rule, visible or not), predictions and labels [N, 3], confidence [N] (of the answer visible or not).
    """
    import numpy as np

    answers = _stages.answers(predict, {**knobs, "storage": "array"}, frames)
    labels = np.asarray(frames.test_labels)
    errors = pixel_errors(answers, labels)
    known = np.asarray(frames.train_labels)
    middle = np.broadcast_to(known[known[:, 2] > 0].mean(0) if known[:, 2].any() else np.zeros(3), labels.shape)
    certain = 1 / (1 + np.exp(-np.abs(answers[:, 2].clip(-30, 30))))
    return {"metric": METRIC, "value": float((errors <= WITHIN_PX).mean()) if errors.size else 0.0, "right": errors <= WITHIN_PX,
            "n": len(errors),
            "chance": float((pixel_errors(middle, labels) <= WITHIN_PX).mean()) if errors.size else 0.0,
            "details": _pixels.scores(answers, labels, knobs["image"]),
            "predictions": answers, "labels": labels, "confidence": certain}
