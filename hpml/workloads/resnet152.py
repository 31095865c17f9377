"""ResNet-152 (He et al., 2015, arXiv:1512.03385) on ImageNet's layouts: always 1,000 classes, JPEG files decoded at each read."""

from hpml.workloads._classifier import METRIC, STORAGES, cut, dataset, evaluate, example_inputs, loss, split  # noqa: F401 the contract

NAME = "resnet152"
TITLE = "ResNet-152"
TASK = "image classification"
MARGIN = 0.01
MARGIN_REASON = "one point: the MLPerf image classification target allows 1 % relative to FP32"
PARAMETERS = 60_192_808  # with 1,000 classes (torchvision)
CLASSES = 1_000
FULL_IMAGES, FULL_EPOCHS = 1_281_167, 90  # ImageNet's training images, and the paper's recipe
PRETRAINED = {"torchvision": "ResNet152_Weights.IMAGENET1K_V1", "heads": ("fc.",)}
LEARNING_RATE = {"sgd": 0.1, "adam": 0.001}
INPUT_NAMES, OUTPUT_NAMES = ("images",), ("logits",)
WITHOUT = ("length", "variant", "stem")
SOURCES = ("imagenet",)
# As ResNet-50's, with three times the layers for the order of additions to differ in; BF16 keeps 8 bits of mantissa, so logits move in
# the second digit and only the answers are compared. INT8 as ResNet-50's, for the same reasons.
PARITY = {
    "fp32": {"atol": 5e-3, "rtol": 1e-2, "top1_agreement": 0.99},
    "fp16": {"atol": 1e-1, "rtol": 5e-2, "top1_agreement": 0.98},
    "bf16": {"atol": 1.0, "rtol": 2e-1, "top1_agreement": 0.95},
    "int8": {"range_share": 0.5, "rtol": 0.0, "top1_agreement": 0.6, "cosine": 0.9},
}
# The small tiers shrink the picture, never the net: at 224 pixels one step of 8 takes 0.55 TFLOP. JPEG is this workload's nature.
_SMOKE = {"batch": 2, "image": 32, "train_samples": 16, "test_samples": 10, "optimizer": "adam", "storage": "jpeg"}
SIZES = {
    "smoke": {
        "train": _SMOKE,
        "fit": {**_SMOKE, "batch": 8, "epochs": 2, "train_samples": 16, "schedule": "onecycle"},
        "infer": {"batch": 1, "image": 32, "train_samples": 16, "test_samples": 10},
        "quality": {"batch": 16, "image": 32},
        "data": {"batch": 8, "image": 224, "train_samples": 64, "test_samples": 10, "storage": "jpeg"},
        "protocol": {"warmup": 1, "min_iters": 2, "min_seconds": 0.0, "rounds": 1},
    },
    "cpu": {
        "train": {"batch": 8, "image": 64, "train_samples": 400, "test_samples": 100, "optimizer": "adam", "storage": "jpeg"},
        "fit": {"batch": 32, "image": 32, "epochs": 4, "train_samples": 1_000, "test_samples": 300, "schedule": "onecycle",
                "optimizer": "adam", "storage": "jpeg"},
        "infer": {"batch": 1, "image": 224, "train_samples": 400, "test_samples": 300},
        "quality": {"batch": 32, "image": 32},
        "data": {"batch": 16, "image": 224, "train_samples": 400, "test_samples": 100, "storage": "jpeg"},
        "protocol": {"warmup": 2, "min_iters": 4, "min_seconds": 1.0, "rounds": 3},
    },
    "gpu": {
        "train": {"batch": 64, "image": 224, "train_samples": 20_000, "workers": 8, "storage": "jpeg"},
        "fit": {"batch": 64, "image": 64, "epochs": 10, "train_samples": 20_000, "schedule": "onecycle", "optimizer": "adam",
                "workers": 8, "storage": "jpeg"},
        "infer": {"batch": 1, "image": 224, "test_samples": 5_000},
        "quality": {"batch": 64, "image": 64},
        "data": {"batch": 64, "image": 224, "train_samples": 20_000, "storage": "jpeg"},
        "protocol": {"warmup": 5, "min_iters": 20, "min_seconds": 2.0, "rounds": 3},
    },
    # The paper's recipe: batches of 256, SGD from 0.1, 90 epochs (section 3.4), with a cosine instead of its steps.
    "full": {
        "train": {"batch": 256, "image": 224, "workers": 8, "storage": "jpeg"},
        "fit": {"batch": 256, "image": 224, "epochs": FULL_EPOCHS, "schedule": "cosine", "workers": 8, "storage": "jpeg"},
        "infer": {"batch": 1, "image": 224},
        "quality": {"batch": 64, "image": 224},
        "data": {"batch": 256, "image": 224, "storage": "jpeg"},
        "protocol": {"warmup": 10, "min_iters": 50, "min_seconds": 5.0, "rounds": 6},
    },
}


def _place(knobs: dict):
    """Where the images lie that the knobs mean; None for the stand-in.

    `auto` takes ImageNet where it is. A sample of one image a class serves steady steps, the loader and packing; what needs a quality
    (whole trainings, and inference with what they left) then takes the stand-in, because such a sample cannot test.
    """
    from hpml.data import imagenet

    path = None if knobs["data"] == "standin" else imagenet.find()
    judged = bool(knobs.get("epochs")) or not {"workers", "packer"} & knobs.keys()
    return None if path and knobs["data"] == "auto" and judged and imagenet.one_a_class(path) else path


def data(knobs: dict):
    """The FileSet that the knobs ask for, cut to train_samples and test_samples; 1,000 classes whatever part of them is there."""
    from hpml.data import imagenet, rendered

    path = _place(knobs)
    if path is None and knobs["data"] in ("auto", "standin"):
        return cut(rendered.load(), knobs)
    return cut(imagenet.load(path=path), knobs)


def identity(knobs: dict) -> str:
    """What the knob `data` stands for on this machine: the layout's files, sizes and change times."""
    from hpml.data import imagenet

    path = _place(knobs)
    return imagenet.identity(path) if path else knobs["data"]


def model(knobs: dict, classes: int):
    """torchvision's resnet152 with `classes` outputs, random weights. The last BatchNorm of each block starts at zero (Goyal et al.,
    2017, section 5.1): every block begins as the identity, and short trainings start."""
    from torchvision.models import resnet152

    return resnet152(num_classes=classes, zero_init_residual=True)
