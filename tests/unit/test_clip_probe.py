"""Attributes from embeddings: several prompts beside one, a classifier that looks at no test frame, and comparisons on the same frames."""

import dataclasses

import numpy as np
import pytest
import torch

from hpml import fit, workloads
from hpml.apps import clip_probe
from hpml.data import bpe, captions, road
from hpml.env import HpmlError

CLIP = workloads.get("clip")


def blobs(count, seed, noise=0.4):
    """Embeddings whose first numbers say day or night, and the words."""
    random = np.random.default_rng(seed)
    which = random.integers(0, 2, count)
    rows = noise * random.normal(size=(count, 6)).astype(np.float32)
    rows[:, 0] += 2 * which - 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), np.array(["day", "night"])[which]


def test_an_ensemble_outvotes_a_template_that_is_off():
    seen, true = blobs(400, 0)
    good = np.zeros((2, 3, 6), np.float32)
    good[:, :, 0] = [[-1], [1]]
    good[:, 0] = [[0.1, 1, 0, 0, 0, 0], [-0.1, -1, 0, 0, 0, 0]]  # the first template points elsewhere
    one, mean = (said == true for said in clip_probe.zero_shot(seen, good, ["day", "night"]))
    assert mean.mean() > 0.95 > 0.6 > one.mean()
    found = clip_probe.paired(one, mean)
    assert found["difference"] == pytest.approx(mean.mean() - one.mean()) and found["p"] < 1e-6
    assert found["only_other"] - found["only_one"] == round(400 * found["difference"])
    assert clip_probe.paired(one, one) == {"difference": 0.0, "only_one": 0, "only_other": 0, "p": 1.0}


def test_the_classifier_learns_and_chooses_its_penalty_without_the_test():
    seen, true = blobs(300, 1)
    tested, answers = blobs(300, 2)
    said, strength = clip_probe.probe(seen, true, tested)
    assert (said == answers).mean() > 0.95 and strength in clip_probe.STRENGTHS
    # Features without a word about the answer: more strength learns the training frames by heart, and the held-out ones see it.
    random = np.random.default_rng(3)
    said, strength = clip_probe.probe(random.normal(size=(80, 60)), true[:80], tested.repeat(10, axis=1))
    assert strength < max(clip_probe.STRENGTHS)
    with pytest.raises(HpmlError, match="two values with two training frames each"):
        clip_probe.probe(seen[:5], np.array(["day"] * 4 + ["night"]), tested)


def test_text_beside_the_image_never_says_the_attribute(monkeypatch):
    frames = bpe.with_tokenizer(road.load(72, 72), captions.every())
    knobs = {"variant": "small", "image": 32, "length": 16, "batch": 32}
    torch.manual_seed(0)
    net = CLIP.model(knobs, 36)
    predict = fit.predictor(net, {"precision": "fp32", "device": "cpu"})
    train = dataclasses.replace(frames, test_images=frames.train_images, test_labels=frames.train_labels)
    embedded = {"train": CLIP.frames_embedded(predict, knobs, train), "test": CLIP.frames_embedded(predict, knobs, frames)}
    said = []
    once = CLIP.lines_embedded
    monkeypatch.setattr(CLIP, "lines_embedded", lambda model, knobs, frames, lines: said.append(lines) or once(model, knobs, frames, lines))
    found = clip_probe.studies(embedded, CLIP, net, knobs, frames)
    beside = {key: lines for key, lines in zip(("weather", "scene", "timeofday"), [one for one in said if len(one) == 36], strict=True)}
    for key, words in (("weather", road.WEATHER), ("scene", road.SCENES), ("timeofday", ("night", "day", "dusk"))):
        assert not [line for line in beside[key] if any(word in line for word in words)], key
    assert [one["attribute"] for one in found] == ["weather", "scene", "timeofday"] and all(one["n"] == 72 for one in found)
    # All combinations are equally frequent on the stand-in, so the other attributes say nothing of the one in question.
    assert all(one["accuracy"]["probe: text"] <= one["accuracy"]["majority class"] + 0.1 for one in found)
    assert "probe: image + text" in clip_probe.text(found) and clip_probe.text(found).count("points") == 6


def test_the_table_of_searches_has_each_depth_in_order_and_its_chance():
    details = {f"recall@{k}, {way}": 0.1 * k for k in (1, 10, 5) for way in ("text to image", "image to image")}
    judged = {"metric": "recall@1, image to text", "value": 0.25, "chance": 0.03,
              "details": details | {f"chance of {name}": value / 2 for name, value in details.items()}}
    lines = clip_probe.recalls({"before": judged, "after": {**judged, "value": 0.5}}).splitlines()
    assert lines[0].split() == ["before", "after", "chance"] and lines[1].split()[-3:] == ["25.0%", "50.0%", "3.0%"]
    assert [line.split(",")[0] for line in lines[2:]] == 2 * ["recall@1", "recall@5", "recall@10"]
    assert lines[4].split()[-2:] == ["100.0%", "50.0%"]
