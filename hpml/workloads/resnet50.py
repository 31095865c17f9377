"""ResNet-50 (He et al., 2015, arXiv:1512.03385) as an image classifier: CIFAR-10 / CIFAR-100, handwritten digits, ImageNet, a stand-in."""

from hpml.workloads._classifier import METRIC, STORAGES, cut, dataset, evaluate, example_inputs, loss, split  # noqa: F401 the contract

NAME = "resnet50"
TITLE = "ResNet-50"
TASK = "image classification"
MARGIN = 0.01
MARGIN_REASON = "one point: the MLPerf image classification target allows 1 % relative to FP32"
PARAMETERS = 25_557_032  # with 1,000 classes (torchvision)
PRETRAINED = {"torchvision": "ResNet50_Weights.IMAGENET1K_V1", "heads": ("fc.",)}
LEARNING_RATE = {"sgd": 0.05, "adam": 0.001}
INPUT_NAMES, OUTPUT_NAMES = ("images",), ("logits",)
SOURCES = ("cifar10", "cifar100", "digits", "imagenet")
# Outputs of the same weights in another engine. FP32: only the order of additions differs, 50 layers deep; BF16 keeps 8 bits of
# mantissa, so logits move in the second digit and only the answers are compared. INT8 has 256 steps for the whole range of a tensor, an
# error that 50 layers add up: logits move by a share of their range, one beyond all that calibration saw is clipped, near ties fall to
# the other side. Asked is that their direction (each sample's cosine, also with random weights) and most answers stay, far
# more than a wrong graph would share by chance; whether accuracy is kept is the quality pass's to say.
PARITY = {
    "fp32": {"atol": 2e-3, "rtol": 1e-2, "top1_agreement": 0.99},
    "fp16": {"atol": 5e-2, "rtol": 5e-2, "top1_agreement": 0.98},
    "bf16": {"atol": 5e-1, "rtol": 2e-1, "top1_agreement": 0.95},
    "int8": {"range_share": 0.5, "rtol": 0.0, "top1_agreement": 0.6, "cosine": 0.9},
}
# Sizes by tier and phase: only here. `quality` is what the quality pass of inference takes instead;
# `protocol` is the warm-up, the minimum of iterations and the minimum of seconds of a round.
# The small tiers train with Adam: in a few hundred steps SGD hardly leaves chance.
SIZES = {
    "smoke": {
        "train": {"batch": 8, "image": 32, "train_samples": 64, "test_samples": 40, "optimizer": "adam"},
        "fit": {"batch": 32, "image": 32, "epochs": 1, "train_samples": 128, "test_samples": 80, "schedule": "onecycle",
                "optimizer": "adam"},
        "infer": {"batch": 1, "image": 32, "train_samples": 64, "test_samples": 40},
        "quality": {"batch": 32, "image": 32},
        "data": {"batch": 16, "image": 32, "train_samples": 256, "test_samples": 40},
        "protocol": {"warmup": 1, "min_iters": 3, "min_seconds": 0.0, "rounds": 1},
    },
    "cpu": {
        "train": {"batch": 16, "image": 32, "train_samples": 2_000, "test_samples": 360, "optimizer": "adam"},
        "fit": {"batch": 32, "image": 32, "epochs": 4, "train_samples": 2_000, "test_samples": 1_000, "schedule": "onecycle",
                "optimizer": "adam"},
        "infer": {"batch": 1, "image": 224, "train_samples": 2_000, "test_samples": 1_000},
        "quality": {"batch": 32, "image": 32},
        "data": {"batch": 32, "image": 32, "train_samples": 2_000, "test_samples": 360},
        "protocol": {"warmup": 3, "min_iters": 6, "min_seconds": 1.0, "rounds": 3},
        "train_protocol": {"min_iters": 12},  # a step is short and varies; a call at batch 8 is neither
    },
    "gpu": {
        "train": {"batch": 256, "image": 224, "train_samples": 20_000, "test_samples": 10_000},
        "fit": {"batch": 256, "image": 32, "epochs": 10, "stem": "cifar", "schedule": "onecycle"},
        "infer": {"batch": 1, "image": 224, "test_samples": 10_000},
        "quality": {"batch": 32, "image": 32},
        "data": {"batch": 256, "image": 224, "train_samples": 20_000},
        "protocol": {"warmup": 10, "min_iters": 20, "min_seconds": 2.0, "rounds": 3},
    },
    # The papers' recipe: CIFAR, 200 epochs (He et al., section 4.2, train 64k iterations of 128).
    "full": {
        "train": {"batch": 128, "image": 224},
        "fit": {"batch": 128, "image": 32, "epochs": 200, "stem": "cifar", "schedule": "cosine"},
        "infer": {"batch": 1, "image": 224},
        "quality": {"batch": 32, "image": 32},
        "data": {"batch": 128, "image": 224},
        "protocol": {"warmup": 10, "min_iters": 50, "min_seconds": 5.0, "rounds": 6},
    },
}


def data(knobs: dict):
    """The ImageSet that the knobs ask for, cut to train_samples and test_samples."""
    from hpml import data as sources

    return cut(sources.open_images(knobs["data"]), knobs)


def identity(knobs: dict) -> str:
    """What the knob `data` stands for on this machine: file, size and change time where it is a file."""
    from hpml import data as sources

    return sources.identity(knobs["data"])


def model(knobs: dict, classes: int):
    """torchvision's resnet50 with `classes` outputs, random weights. The zero-initialised last BatchNorm of each block (Goyal et al.,
    2017, section 5.1) lets short trainings start. knobs["stem"] = "cifar": 3x3 stride 1 and no pooling, for 32x32 images."""
    import torch
    from torchvision.models import resnet50

    net = resnet50(num_classes=classes, zero_init_residual=True)
    if knobs.get("stem") == "cifar":
        net.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        net.maxpool = torch.nn.Identity()
    return net
