"""CLIP's small variant on a few frames, as a file of the reader's own: what the tests serve instead of the published sizes."""

from hpml.workloads.clip import *  # noqa: F403 all of the contract
from hpml.workloads.clip import SIZES as PUBLISHED

SIZES = {tier: {**sizes, "infer": {**sizes["infer"], "variant": "small", "image": 64, "length": 24, "train_samples": 0,
                                   "test_samples": 0}} for tier, sizes in PUBLISHED.items()}


def data(knobs):
    from hpml.data import bpe, captions, road

    return bpe.with_tokenizer(road.load(36, 12), captions.every())
