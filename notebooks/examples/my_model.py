"""A workload of the reader's own: a small convolutional net on the handwritten digits that come with scikit-learn."""

import numpy as np
import torch
from torch import nn

from hpml.data import digits, subset

NAME, TITLE, METRIC = "my_model", "My model", "top-1 accuracy"
MARGIN, MARGIN_REASON = 0.02, "two points: one standard error of an accuracy near 90 % of 360 images is 1.6"
LEARNING_RATE = {"sgd": 0.02, "adam": 0.003}
INPUT_NAMES, OUTPUT_NAMES = ("images",), ("logits",)
WITHOUT = ("image", "length", "variant", "stem", "storage")  # knobs that mean nothing for this model
# FP32: only the order of additions differs between engines. BF16 keeps 8 bits of mantissa: logits move in the second digit.
PARITY = {"fp32": {"atol": 1e-3, "rtol": 1e-2, "top1_agreement": 0.99}, "bf16": {"atol": 2e-1, "rtol": 2e-1, "top1_agreement": 0.95}}
_PART = {"batch": 32, "train_samples": 256, "test_samples": 80, "optimizer": "adam"}
_ALL = {"batch": 64, "optimizer": "adam"}  # sizes that are not named stay at their default: all samples
_CPU = {"warmup": 3, "min_iters": 10, "min_seconds": 1.0, "rounds": 3}
SIZES = {tier: {"train": size, "fit": {**size, "epochs": epochs, "schedule": "onecycle"}, "infer": {**size, "batch": 1}, "data": size,
                "protocol": protocol}
         for tier, size, epochs, protocol in (
             ("smoke", _PART, 2, {"warmup": 1, "min_iters": 3, "min_seconds": 0.0, "rounds": 1}),
             ("cpu", _ALL, 6, _CPU), ("gpu", _ALL, 6, _CPU), ("full", _ALL, 20, {**_CPU, "rounds": 6}))}


def data(knobs):
    return subset(digits.load(), knobs["train_samples"], knobs["test_samples"], 0)


def dataset(knobs, image_set, *, train):
    images, labels = (image_set.train_images, image_set.train_labels) if train else (image_set.test_images, image_set.test_labels)
    grey = torch.from_numpy(images[..., :1].astype(np.float32) / 128 - 1).permute(0, 3, 1, 2).contiguous()
    return torch.utils.data.TensorDataset(grey, torch.from_numpy(labels))


def model(knobs, classes):
    return nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
                         nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 16, classes))


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs.float(), targets, reduction="sum")  # the loop divides by the batch


def split(batch):
    return (batch[0],), batch[1]


def example_inputs(knobs, batch):
    return (torch.randn(batch, 1, 32, 32, generator=torch.Generator().manual_seed(0)),)


def evaluate(predict, knobs, image_set):
    images, labels = (part.numpy() for part in dataset(knobs, image_set, train=False).tensors)
    logits = np.concatenate([predict((images[i:i + 32],)) for i in range(0, len(labels), 32)])
    share = torch.from_numpy(logits).softmax(1).amax(1).numpy()
    return {"metric": METRIC, "value": float((logits.argmax(1) == labels).mean()), "n": len(labels), "chance": 0.1,
            "predictions": logits.argmax(1), "labels": labels, "confidence": share}
