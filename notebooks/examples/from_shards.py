"""A small net that is trained from shards: a folder, also while they still arrive in it, or a web server.

    HPML_SHARDS=data/shards hpml train notebooks/examples/from_shards.py

Test images are those of the shards' part "test" (`hpml data shard --with-test`).
"""

import os
from types import SimpleNamespace

from hpml.env import HpmlError
from hpml.workloads.resnet50 import INPUT_NAMES, LEARNING_RATE, METRIC, OUTPUT_NAMES, PARITY, SIZES, example_inputs, loss, split  # noqa: F401

NAME, TITLE = "from_shards", "Small net on shards"
MARGIN, MARGIN_REASON = 0.02, "an example's"


def _store():
    from hpml.data.shardstore import open_store

    place = os.environ.get("HPML_SHARDS")
    if not place:
        raise HpmlError("HPML_SHARDS is not set: give the folder or the address of the shards")
    return open_store(place)


def data(knobs: dict):
    """What the index says; no shard is opened."""
    import numpy as np

    store = _store()
    count = {part: sum(shard.samples for shard in store.index.part(part)) for part in ("train", "test")}
    if not count["test"]:
        raise HpmlError(f"{store.folder}: no test images in the shards; pack them with --with-test")
    origin = store.index.origin
    return SimpleNamespace(name="shards", title=str(origin.get("title", "shards")), origin=str(origin.get("origin", "real")), note="",
                           classes=list(store.index.classes), checksum=store.index.recipe, store=store,
                           train_labels=np.zeros(count["train"], np.int64), test_labels=np.zeros(count["test"], np.int64))


def identity(knobs: dict) -> str:
    return _store().index.recipe


def dataset(knobs: dict, image_set, *, train: bool):
    """(float32 [3, image, image], class number) in the shards' own order."""
    from hpml.data.stream import ShardDataset

    return ShardDataset(image_set.store, part="train" if train else "test", train=train, image=knobs["image"])


def model(knobs: dict, classes: int):
    """Images [N, 3, image, image] -> logits [N, classes]."""
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, classes))


def evaluate(predict, knobs: dict, image_set) -> dict:
    """Top-1 accuracy over the test images."""
    import numpy as np

    from hpml.data.loader import loader

    batches = loader(dataset(knobs, image_set, train=False), {}, batch=32, shuffle=False, seed=0)
    logits, labels = zip(*((np.asarray(predict((images.numpy(),))), targets.numpy()) for images, targets in batches), strict=True)
    logits, labels = np.concatenate(logits), np.concatenate(labels)
    return {"metric": METRIC, "value": float((logits.argmax(1) == labels).mean()), "n": len(labels), "chance": 1 / len(image_set.classes),
            "predictions": logits.argmax(1), "labels": labels, "confidence": logits.max(1)}
