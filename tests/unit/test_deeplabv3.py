"""DeepLabV3: the published size, tensors instead of dictionaries, its loss, its figures and what it cannot do."""

import warnings

import numpy as np
import pytest
import torch

import hpml
from hpml import infer, workloads
from hpml.data.pets import PetSet
from hpml.env import Unavailable
from hpml.fit import quality
from hpml.knobs import validate

NET = workloads.get("deeplabv3")


def pet_set(n=4, side=32):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (n, side, side, 3), np.uint8)
    masks = np.ones((n, side, side), np.uint8)
    masks[:, 8:24, 8:24], masks[:, 10:22, 10:22] = 2, 0
    names = tuple(f"beagle_{i}" for i in range(n))
    return PetSet("x", "x", "stand-in", ["pet", "background", "boundary"], images, masks, images, masks, "0", "", True, names, names)


def test_it_has_the_published_number_of_parameters_and_torchvisions_names():
    from torchvision.models.segmentation import deeplabv3_resnet101

    with torch.device("meta"):
        published, own = deeplabv3_resnet101(weights=None, weights_backbone=None, aux_loss=True), NET.model({}, 21)
        pets, small = NET.model({}, 3), NET.model({"variant": "small"}, 3)
    assert sum(p.numel() for p in own.parameters()) == NET.PARAMETERS == 60_996_202
    assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in published.state_dict().items()}
    assert pets.classifier[-1].out_channels == pets.aux_classifier[-1].out_channels == 3
    assert sum(p.numel() for p in small.parameters()) < NET.PARAMETERS / 2


def test_it_gives_tensors_and_the_auxiliary_head_only_in_training():
    net = NET.model({"variant": "small"}, 3)
    x = torch.randn(2, 3, 40, 40)
    assert net.train()(x).shape == (2, 2, 3, 40, 40)
    called = []
    hook = net.aux_classifier.register_forward_hook(lambda *_: called.append(1))
    with torch.inference_mode():
        assert net.eval()(x).shape == (2, 3, 40, 40) and not called
    hook.remove()
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated
        scripted = torch.jit.script(net)
    with torch.inference_mode():
        assert torch.allclose(scripted.eval()(x), net(x), atol=1e-5) and scripted.train()(x).shape == (2, 2, 3, 40, 40)


def test_the_loss_is_a_samples_mean_summed_over_the_batch():
    outputs, targets = torch.randn(4, 2, 3, 8, 8), torch.randint(0, 3, (4, 8, 8), dtype=torch.uint8)
    cross = torch.nn.functional.cross_entropy
    wanted = cross(outputs[:, 0], targets.long()) + 0.5 * cross(outputs[:, 1], targets.long())
    assert torch.allclose(NET.loss(outputs, targets) / 4, wanted)
    halves = NET.loss(outputs[:2], targets[:2]) + NET.loss(outputs[2:], targets[2:])
    assert torch.allclose(NET.loss(outputs, targets), halves)
    assert torch.allclose(NET.loss(outputs[:, 0], targets) / 4, cross(outputs[:, 0], targets.long()))


def one_hot(masks):
    return np.eye(3, dtype=np.float32)[masks].transpose(0, 3, 1, 2)


def test_iou_by_class_is_torchmetrics_and_the_baseline_is_background_everywhere():
    from torchmetrics.functional.classification import multiclass_jaccard_index

    pets, knobs = pet_set(), validate("train", {"image": 32, "batch": 2})
    random = np.random.default_rng(1)
    drawn = random.random((4, 3, 32, 32), np.float32) + 0.5 * one_hot(pets.test_labels)
    at = iter(range(0, 4, 4))
    scores = NET.evaluate(lambda inputs: drawn[next(at):][: len(inputs[0])], knobs, pets)
    truth, answers = torch.as_tensor(pets.test_labels).long(), torch.as_tensor(drawn).argmax(1)
    by_class = multiclass_jaccard_index(answers, truth, 3, average="none")
    assert [scores["details"][f"IoU {name}"] for name in pets.classes] == pytest.approx(by_class.tolist())
    assert scores["value"] == pytest.approx(float(by_class.mean())) and scores["n"] == 4
    assert scores["details"]["pixel accuracy"] == pytest.approx(float((answers == truth).float().mean()))
    seen, said = truth != 2, answers
    inner = [float(((said == c) & (truth == c)).sum() / (((said == c) | (truth == c)) & seen).sum()) for c in (0, 1)]
    assert scores["details"]["mean IoU without boundary pixels"] == pytest.approx(np.mean(inner))
    assert scores["predictions"].shape == scores["labels"].shape == (4, 32, 32) and scores["confidence"].shape == (4,)

    background = NET.evaluate(lambda inputs: one_hot(np.ones((len(inputs[0]), 32, 32), int)), knobs, pets)
    assert background["value"] == pytest.approx(background["chance"]) == pytest.approx(0.75 / 3)
    perfect = NET.evaluate(lambda inputs: one_hot(pets.test_labels), knobs, pets)
    assert perfect["value"] == 1.0
    record = quality(scores, NET)
    assert record["details"] == scores["details"] and not quality(background, NET)["informative"]


def test_a_micro_batch_of_one_says_why_it_cannot_be_trained():
    pets = pet_set()
    with pytest.raises(Unavailable, match="micro-batch of 1 cannot be trained: the ASPP"):
        NET.dataset(validate("train", {"image": 32, "batch": 4, "accum_steps": 4}), pets, train=True)
    assert len(NET.dataset(validate("train", {"image": 32, "batch": 4, "accum_steps": 2}), pets, train=True)) == 4
    assert len(NET.dataset(validate("infer", {"image": 32, "batch": 1}), pets, train=False)) == 4


def test_parity_of_pixels_is_the_share_of_equal_answers():
    wanted = one_hot(pet_set().test_labels)
    got = wanted.copy()
    got[:, :, 0, :] = one_hot(np.zeros((4, 32), int)[:, None])[:, :, 0]  # one row of 32 becomes pet
    assert NET.agreement(wanted, got) == pytest.approx(31 / 32)

    class Engine:
        def run(self, inputs):
            return (-inputs[0],)

    knobs = validate("infer", {"image": 32, "batch": 1, "weights": "w.safetensors"})
    found = infer.check_parity(lambda inputs: inputs[0], Engine(), NET, knobs, pet_set())
    assert not found["passed"] and found["top1_agreement"] < 0.5


def test_inference_is_not_charged_for_the_auxiliary_head():
    from hpml.work import train_flops

    knobs = {"image": 64, "variant": "small"}
    assert train_flops(NET, knobs, 3, training=False) < train_flops(NET, knobs, 3)


def test_it_trains_and_infers_in_a_child(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    sizes = {"variant": "small", "image": 32, "train_samples": 4, "test_samples": 4, "data": "standin"}
    fit = hpml.run(hpml.case("deeplabv3", fit=True, tier="smoke", **sizes), rounds=1, run_id="x").records[-1]
    assert fit.status == "ok" and set(fit.quality["details"]) >= {"IoU pet", "IoU background", "IoU boundary", "pixel accuracy"}
    answers = np.load(tmp_path / "runs" / "x" / "models" / fit.actual["artefacts"]["predictions"])
    assert answers["predictions"].shape == answers["labels"].shape == (4, 32, 32)
    weights = str(tmp_path / "runs" / "x" / "models" / fit.actual["artefacts"]["weights"])
    case = hpml.case("deeplabv3", phase="infer", tier="smoke", engine="onnxruntime", weights=weights, **sizes)
    record = hpml.run(case, rounds=1, run_id="x").records[-1]
    assert (record.status, record.reason) == ("ok", None) and record.parity["passed"] and record.parity["top1_agreement"] > 0.99
