"""A net without BatchNorm and data without random crops: what two processes must compute alike, notebook 26 compares on it."""

from hpml.workloads import resnet50
from hpml.workloads.resnet50 import *  # noqa: F403  data, loss, metric and sizes are ResNet-50's

NAME, TITLE = "small_net", "Small net"


def model(knobs: dict, classes: int):
    """Images [N, 3, image, image] -> logits [N, classes]."""
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, classes))


def dataset(knobs: dict, image_set, *, train: bool):
    """The images as they are: random crops would differ between one process and two."""
    from hpml.data.images import ImageDataset

    if not train:
        return resnet50.dataset(knobs, image_set, train=False)
    return ImageDataset(image_set.train_images, image_set.train_labels, train=False, image=knobs["image"])
