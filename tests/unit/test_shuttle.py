"""The shuttle localizer: published backbones, places in the frame's own pixels, crops, losses, its figures, export and a child's run."""

import warnings

import numpy as np
import pytest
import torch

import hpml
from hpml import export, workloads
from hpml.data import shuttle as frames_of
from hpml.env import HpmlError, Unavailable
from hpml.fit import quality
from hpml.knobs import validate
from hpml.workloads import _localizer as parts

NET = workloads.get("shuttle")


def test_the_backbones_have_the_published_numbers_of_parameters():
    from timm import create_model

    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in create_model(name).parameters()) for name in NET.BACKBONES}
        base, small = NET.model({}, 1), NET.model({"variant": "small"}, 1)
    assert counts == NET.BACKBONES and set(NET.VARIANTS.values()) == {*NET.BACKBONES, "test_efficientnet"}
    assert base.find.backbone.feature_info.reduction() == [4, 8, 16, 32]
    both = [sum(p.numel() for p in net.parameters()) for net in (base, small)]
    assert both[1] < both[0] / 4


def test_soft_argmax_gives_the_place_of_a_peak_between_cells():
    place = torch.tensor([[3.3, 5.6], [0.5, 0.5], [9.5, 7.5]])
    down, across = torch.arange(8.0) + 0.5, torch.arange(10.0) + 0.5
    maps = -((down[None, :, None] - place[:, 1, None, None]) ** 2 + (across[None, None, :] - place[:, 0, None, None]) ** 2) / 2
    assert torch.allclose(parts.expected(maps)[0], place[0], atol=0.05)
    assert torch.allclose(parts.expected(maps), place, atol=0.35)  # at the edge half of the peak is missing
    two = maps[:1] + 0
    two[0, 1, 8] = maps[0].max() - 1.5
    assert (parts.expected(two) - place[:1]).abs().max() < 0.1  # a weaker second peak hardly pulls


def test_the_losses_are_least_at_the_truth():
    logits = torch.zeros(2, 8, 10, requires_grad=True)
    point = torch.tensor([[4.2, 3.1], [8.0, 6.5]])
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        parts.map_loss(logits, point).sum().backward()
        optimizer.step()
    assert torch.allclose(parts.expected(logits.detach()), point, atol=0.15)


def test_crops_are_the_frames_own_pixels_and_stay_inside():
    frames = torch.arange(2 * 3 * 80 * 128, dtype=torch.float32).view(2, 3, 80, 128)
    corner = parts.corner_of(torch.tensor([[60.7, 40.2], [-5.0, 300.0]]), frames, 64)
    assert corner.tolist() == [[28, 8], [0, 16]]
    crops = parts.cut(frames, corner, 64)
    assert torch.equal(crops[0], frames[0, :, 8:72, 28:92]) and torch.equal(crops[1], frames[1, :, 16:80, 0:64])
    assert [parts.crop_side(width) for width in (128, 320, 640, 1280)] == [64, 64, 128, 224]


def test_it_answers_in_pixels_and_trains_on_both_stages():
    torch.manual_seed(0)
    net = NET.model({"variant": "small"}, 1)
    frames, truth = torch.randn(3, 3, 72, 128), torch.tensor([[30.0, 40.0, 1], [100.0, 10.0, 1], [0.0, 0.0, 0]])
    losses = net.train()(frames, truth)
    assert losses.shape == (3, 3) and losses[2, :2].tolist() == [0, 0] and (losses[:2, 0] > 0).all()
    NET.loss(losses, truth).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    halves = NET.loss(losses[:1], truth[:1]) + NET.loss(losses[1:], truth[1:])
    assert torch.allclose(NET.loss(losses, truth), halves)
    with torch.inference_mode():
        answers = net.eval()(frames)
    assert answers.shape == (3, 3) and (answers[:, 0] >= 0).all() and (answers[:, 0] <= 128).all() and (answers[:, 1] <= 72).all()


def test_the_whole_of_it_is_one_graph_with_any_batch(tmp_path):
    from hpml.engines import get

    net = NET.model({"variant": "small"}, 1).eval()
    inputs = NET.example_inputs({"image": 128}, 2)
    export.export_onnx(net, inputs, tmp_path / "n.onnx", input_names=["frames"], output_names=["places"])
    frames = torch.randn(5, 3, 72, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = net(frames).numpy()
    for name in ("onnxruntime", "openvino"):
        if get(name).unavailable("cpu"):
            continue
        engine = get(name)(threads=1)
        engine.load(tmp_path / "n.onnx")
        for part in (slice(0, 1), slice(1, 5)):
            assert np.abs(engine.run((frames[part].numpy(),))[0] - wanted[part]).max() < NET.PARITY["fp32"]["atol"], name
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated
        scripted = torch.jit.script(net)
    with torch.inference_mode():
        assert np.abs(scripted(frames).numpy() - wanted).max() < NET.PARITY["fp32"]["atol"]


def frame_set(n=24):
    return frames_of.open_frames("standin", 128, n, n)


def test_the_figure_is_the_share_within_four_pixels_of_visible_frames():
    frames, knobs = frame_set(), validate("train", {"image": 128, "batch": 4})
    labels, at = np.asarray(frames.test_labels), iter(range(0, 24, 8))
    seen = labels[:, 2] > 0
    off = labels.copy()
    off[:, 2] = np.where(seen, 3.0, -3.0)
    off[: len(off) // 2, 0] += 3.9
    off[len(off) // 2:, 0] += 4.2
    off[~seen, 0] += 500  # where nothing is visible, a place means nothing
    scores = NET.evaluate(lambda inputs: off[(i := next(at)): i + len(inputs[0])], knobs, frames)
    assert scores["n"] == seen.sum() and scores["value"] == pytest.approx(seen[: len(off) // 2].sum() / seen.sum())
    assert scores["details"]["visible or not"] == 1 and 3.8 < scores["details"]["mean error px"] < 4.3
    assert scores["predictions"].shape == scores["labels"].shape == (24, 3) and scores["confidence"].min() > 0.9
    assert quality(scores, NET)["metric"] == "within 4 px"

    middle = np.asarray(frames.train_labels)
    middle = middle[middle[:, 2] > 0].mean(0)
    always = NET.evaluate(lambda inputs: np.tile(middle, (len(inputs[0]), 1)), knobs, frames)
    assert always["value"] == pytest.approx(always["chance"]) and always["chance"] < 0.2 and not quality(always, NET)["informative"]
    assert always["details"]["visible or not"] == always["details"]["always visible"] == pytest.approx(seen.mean())


def test_agreement_compares_answers_and_not_places_of_nothing():
    wanted = np.float32([[10, 10, 5], [20, 20, 5], [30, 30, -5], [40, 40, 5]])
    got = wanted + np.float32([[1, 1, 0], [3, 0, 0], [99, 0, 0], [0, 0, -9]])
    assert NET.agreement(wanted, got) == 0.5


def test_what_cannot_be_used_is_one_line():
    for image in (100, 120, 64):
        with pytest.raises(HpmlError, match=f"image={image}: a frame is a multiple of 16"):
            NET.data({"image": image, "data": "standin", "train_samples": 6, "test_samples": 6})
    with pytest.raises(Unavailable, match="micro-batch of 1 cannot be trained"):
        NET.dataset(validate("train", {"image": 128, "batch": 4, "accum_steps": 4}), frame_set(), train=True)
    with pytest.raises(HpmlError, match="the knob stem means nothing"):
        hpml.case("shuttle", phase="train", tier="smoke", stem="cifar")


def test_it_trains_and_infers_in_a_child(smoke_session):
    sizes = {"variant": "small", "train_samples": 18, "test_samples": 12, "data": "standin"}
    run = hpml.run(hpml.case("shuttle", fit=True, **sizes, epochs=1), rounds=1)
    fit = run.records[-1]
    assert (fit.status, fit.reason) == ("ok", None) and set(fit.quality["details"]) >= {"mean error px", "visible or not"}
    hpml.keep(run)
    case = hpml.case("shuttle", phase="infer", engine="onnxruntime", weights="trained", **sizes)
    record = hpml.run(case, rounds=1).records[-1]
    assert (record.status, record.reason) == ("ok", None) and record.parity["passed"] and record.parity["top1_agreement"] > 0.98
