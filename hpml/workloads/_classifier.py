"""What image classifiers share: the cut of the data, its reading, the loss, and top-1 and top-5 by one loader for all engines."""

METRIC = "top-1 accuracy"
STORAGES = ("array", "jpeg", "shards", "shards_http", "webdataset")  # of the knob `storage`: image files can be packed into shards


def cut(image_set, knobs: dict):
    """The ImageSet cut to train_samples and test_samples (class-balanced, seeded by 0: all cases share it)."""
    from hpml.data.images import subset

    return subset(image_set, knobs["train_samples"], knobs["test_samples"], 0)


def dataset(knobs: dict, image_set, *, train: bool):
    """Map-style data set of (float32 [3, image, image], class index)."""
    from hpml.data import jpegfiles, shardcase
    from hpml.data.images import ImageDataset

    storage = knobs.get("storage", "array")
    if train and storage in shardcase.STORAGES:
        return shardcase.dataset(image_set, image=knobs["image"], storage=storage)
    if isinstance(image_set, jpegfiles.FileSet):
        return jpegfiles.dataset(image_set, train=train, image=knobs["image"], storage=storage)
    images, labels = (image_set.train_images, image_set.train_labels) if train else (image_set.test_images, image_set.test_labels)
    storage = "array" if storage in shardcase.STORAGES else storage  # of test images
    return ImageDataset(images, labels, train=train, image=knobs["image"], storage=storage, flip=image_set.mirror_ok)


def loss(outputs, targets):
    """Summed cross-entropy over the micro-batch: the caller divides by the true count. outputs [N, classes], targets [N]."""
    import torch

    return torch.nn.functional.cross_entropy(outputs.float(), targets, reduction="sum")


def split(batch) -> tuple[tuple, object]:
    """A collated batch as (inputs of the model, targets)."""
    return (batch[0],), batch[1]


def example_inputs(knobs: dict, batch: int) -> tuple:
    """Seeded inputs of the right shape and scale for export: ([batch, 3, image, image],)."""
    import torch

    return (torch.randn(batch, 3, knobs["image"], knobs["image"], generator=torch.Generator().manual_seed(0)),)


def evaluate(predict, knobs: dict, image_set) -> dict:
    """Top-1 accuracy of `predict` (tuple of arrays -> logits [N, classes]) over the test images, by one loader for all engines.

    Images that cannot be read do not count. Returns metric, value, right (bool [n]), n, chance, details (top-5),
    and the predictions with their probabilities; informative is False where the test images cannot tell how good a model is.
    """
    import numpy as np

    from hpml.data.loader import loader

    samples = dataset(knobs, image_set, train=False)
    batches = loader(samples, {}, batch=max(knobs["batch"], 32), shuffle=False, seed=0)
    logits = np.concatenate([np.asarray(predict((images.numpy(),)), dtype=np.float32) for images, _ in batches])
    labels = np.asarray(image_set.test_labels)
    if hasattr(samples, "bad"):
        read = samples.bad.numpy() == 0
        logits, labels = logits[read], labels[read]
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    right = logits.argmax(axis=1) == labels
    best = np.argsort(-logits, axis=1)[:, :5]
    return {"metric": METRIC, "value": float(right.mean()), "right": right, "n": len(labels),
            "chance": float(np.bincount(labels).max() / len(labels)), "informative": getattr(image_set, "informative", True),
            "details": {"top-5 accuracy": float((best == labels[:, None]).any(axis=1).mean())},
            "predictions": logits.argmax(axis=1), "labels": labels, "confidence": (exponent / exponent.sum(1, keepdims=True)).max(axis=1)}
