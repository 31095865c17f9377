"""Workloads: the contract, and ResNet-50's published size."""

import pytest

import hpml
from hpml import check, workloads
from hpml.data import ImageSet
from hpml.env import HpmlError
from hpml.knobs import validate


@pytest.mark.parametrize("name", workloads.names())
def test_it_keeps_the_contract(name):
    """What `hpml check NAME` says. The graphs, which take long, have tests of their own."""
    assert [str(one) for one in check.findings(name, export=False) if not one.ok] == []


def test_a_training_step_has_minima_of_its_own():
    of = {phase: hpml.case("resnet50", phase=phase, tier="cpu").protocol for phase in ("train", "profile", "infer", "build")}
    assert of["train"] == of["profile"] == {**of["infer"], "min_iters": 12} and of["infer"] == of["build"]


def test_resnet50_has_the_published_number_of_parameters():
    import torch

    module = workloads.get("resnet50")
    with torch.device("meta"):
        net = module.model({"stem": "imagenet"}, 1000)
        small = module.model({"stem": "cifar"}, 10)
    assert sum(p.numel() for p in net.parameters()) == module.PARAMETERS == 25_557_032
    assert small(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_resnet50_evaluates_any_predictor():
    import numpy as np

    module = workloads.get("resnet50")
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8), np.repeat(np.arange(10), 4)
    image_set = ImageSet("x", "x", "stand-in", [str(i) for i in range(10)], images, labels, images, labels, "0")
    knobs = validate("train", {"image": 32})
    seen = []

    def always_three(inputs):
        seen.append(len(inputs[0]))
        return np.eye(10, dtype=np.float32)[np.full(len(inputs[0]), 3)]

    scores = module.evaluate(always_three, knobs, image_set)
    assert scores["value"] == pytest.approx(0.1) and scores["n"] == sum(seen) == 40 and scores["chance"] == pytest.approx(0.1)


@pytest.mark.parametrize(("text", "said"), [
    ("NAME = 'x'", "missing TITLE"), ("1 / 0", "ZeroDivisionError"), ("import nothing_there", "No module")])
def test_a_readers_file_that_is_wrong_is_named(tmp_path, text, said):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(HpmlError, match=said) as caught:
        workloads.get(str(path))
    assert "mine.py" in str(caught.value) and "\n" not in str(caught.value)
