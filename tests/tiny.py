"""A small workload of the kind a reader writes: a three-layer net on generated points. The tests' stand-in for a real one."""

NAME = "tiny"
TITLE = "Tiny net"
METRIC = "accuracy"
MARGIN, MARGIN_REASON = 0.02, "a test's"
LEARNING_RATE = {"sgd": 0.1, "adam": 0.01}
INPUT_NAMES, OUTPUT_NAMES = ("points",), ("logits",)
PARITY = {name: {"atol": 0.5, "rtol": 0.1, "top1_agreement": 0.9} for name in ("fp32", "bf16", "fp16")}
PARITY["int8"] = {"range_share": 0.5, "rtol": 0.0, "top1_agreement": 0.9, "cosine": 0.95}
_SIZE = {"batch": 16, "image": 8, "train_samples": 320, "test_samples": 200}
SIZES = {tier: {"train": _SIZE, "fit": {**_SIZE, "epochs": 2}, "infer": {**_SIZE, "batch": 2}, "data": _SIZE,
                "protocol": {"warmup": 2, "min_iters": 5, "min_seconds": 0.0, "rounds": rounds}}
         for tier, rounds in (("smoke", 1), ("cpu", 3), ("gpu", 3), ("full", 3))}


def data(knobs):
    import numpy as np

    from hpml.data import ImageSet

    random = np.random.default_rng(0)

    def points(count):
        labels = random.integers(0, 3, count)
        bright = 60 * labels + 60 + random.normal(0, 25, count)  # single points overlap: no net answers them all
        return (random.normal(0, 40, (count, 8, 8, 3)) + bright[:, None, None, None]).clip(0, 255).astype("uint8"), labels

    (train_images, train_labels), (test_images, test_labels) = points(knobs["train_samples"]), points(knobs["test_samples"])
    return ImageSet("points", "points", "stand-in", ["a", "b", "c"], train_images, train_labels, test_images, test_labels, "0" * 64)


class Points:
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        import torch

        return torch.from_numpy(self.images[index].astype("float32") / 128 - 1).permute(2, 0, 1), int(self.labels[index])


def dataset(knobs, image_set, *, train):
    return Points(image_set.train_images, image_set.train_labels) if train else Points(image_set.test_images, image_set.test_labels)


def model(knobs, classes):
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes))


def loss(outputs, targets):
    import torch

    return torch.nn.functional.cross_entropy(outputs.float(), targets, reduction="sum")


def split(batch):
    return (batch[0],), batch[1]


def example_inputs(knobs, batch):
    import torch

    return (torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def evaluate(predict, knobs, image_set):
    import numpy as np

    inputs = np.stack([np.asarray(x) for x, _ in (dataset(knobs, image_set, train=False)[i] for i in range(len(image_set.test_labels)))])
    logits = predict((inputs,))
    return {"metric": METRIC, "value": float((logits.argmax(1) == image_set.test_labels).mean()), "n": len(logits), "chance": 1 / 3,
            "predictions": logits.argmax(1), "labels": image_set.test_labels, "confidence": logits.max(1)}


def _head(model):
    return model[4].eval()


def _features(knobs, image_set, *, train):
    import numpy as np

    rows = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
    return [(row,) for row in rows]


def _head_inputs(knobs, batch):
    import torch

    return (torch.randn(batch, 32, generator=torch.Generator().manual_seed(0)),)


PARTS = {"head": {"TITLE": "Tiny net, its head", "INPUT_NAMES": ("features",), "of": _head, "dataset": _features,
                  "example_inputs": _head_inputs}}
