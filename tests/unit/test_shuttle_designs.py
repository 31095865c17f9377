"""Designs of the localizer: names, necks, decodings, history as channels, and each of them exported."""

import warnings

import numpy as np
import pytest
import torch

import hpml
from hpml import export, workloads
from hpml.data import frames as reader
from hpml.data import shuttle as frames_of
from hpml.env import HpmlError
from hpml.workloads import _decoding, _pyramids, _stages
from hpml.workloads._designs import Design, design
from hpml.workloads._localizer import build

NET = workloads.get("shuttle")
ALONE = {"pooled": Design("test_efficientnet", 1, "none", "regression", visible=False),
         "one level": Design("test_efficientnet", 1, "none", "argmax", visible=False),
         "one stage": Design("test_efficientnet", 1, "fpn", "soft-argmax")}


def test_a_name_is_a_backbone_with_options():
    assert design("base") == Design() and design("small").backbone == "test_efficientnet"
    whole = design("v2-b3+bifpn+offset+history+noise")
    assert whole == Design("tf_efficientnetv2_b3", 2, "bifpn", "offset", True, 3, "strong") and whole.channels == 15
    for wrong in ("large", "base+", "base+bifpn+bifpn", "bifpn", ""):
        with pytest.raises(HpmlError, match=r"base, small, v2-b0, v2-b3 is expected, with any of \+bifpn"):
            design(wrong)
    assert hpml.case("shuttle", tier="smoke", variant="small+bifpn").knobs["variant"] == "small+bifpn"
    with pytest.raises(HpmlError, match="variant='small\\+bifpn': choose from base, small"):
        hpml.case("xlnet", tier="smoke", variant="small+bifpn")


def test_bifpn_weighs_its_inputs_by_shares_that_are_learnt():
    torch.manual_seed(0)
    fusion = _pyramids.Fusion(3)
    fusion.weights.data = torch.tensor([3.0, 1.0, -5.0])
    assert fusion.shares().tolist() == pytest.approx([0.75, 0.25, 0.0], abs=1e-4)
    maps = [torch.randn(2, 64, 6, 6) for _ in range(3)]
    assert torch.equal(fusion.eval()(maps), fusion([maps[0], maps[1], 9 * maps[2]]))  # what counts nothing changes nothing
    levels = [torch.randn(2, channels, side, side + 1) for channels, side in ((8, 23), (16, 12), (24, 6), (32, 3))]
    levels = [level[..., :-1] for level in levels]
    neck = _pyramids.BiFpn([8, 16, 24, 32])
    neck(levels).sum().backward()
    used = [p.grad for name, p in neck.named_parameters() if name.endswith("weights")]
    # The last layer's way up feeds nothing: its finest level is the answer.
    assert neck(levels).shape == (2, 64, 23, 23) and sum(grad is not None for grad in used) == 6 + 3


def test_each_decoding_reads_the_place_that_its_loss_teaches():
    point = torch.tensor([[4.2, 3.1], [7.7, 6.4]])
    errors = {}
    for name, kind in _decoding.DECODINGS.items():
        torch.manual_seed(0)
        head, logits = kind(), torch.zeros(2, 8, 10, requires_grad=True)
        features = torch.randn(2, 64, 8, 10)
        optimizer = torch.optim.Adam([logits, *head.parameters()], lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            head.loss(logits, features, point).sum().backward()
            optimizer.step()
        errors[name] = float((head(logits.detach(), features) - point).abs().max().detach())
    assert errors["soft-argmax"] < 0.15 and errors["offset"] < 0.15 and 0.15 < errors["argmax"] <= 0.5


@pytest.mark.parametrize("name", ["small+bifpn", "small+offset+history", *ALONE])
def test_every_design_trains_and_scripts(name):
    wanted = ALONE.get(name) or design(name)
    torch.manual_seed(0)
    net, (frames,) = build(wanted), NET.example_inputs({"image": 128, "variant": wanted}, 5)
    truth = torch.tensor([[30.0, 40.0, 1], [100.0, 10.0, 1], [0, 0, 0], [64, 20, 1], [5, 5, 1]])
    losses = net(frames, truth)
    losses.sum().backward()
    assert losses.shape == (5, 3) and losses[2, :2].tolist() == [0, 0] and losses.isfinite().all() and (losses[:2, 0] > 0).all()
    stage = net.find if hasattr(net, "find") else net
    assert stage.backbone.conv_stem.weight.shape[1] == wanted.channels == frames.shape[1]
    net.eval()
    with torch.inference_mode(), warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated
        answers = net(frames)
        assert torch.allclose(torch.jit.script(net)(frames), answers, atol=1e-3)
    assert answers.shape == (5, 3) and bool((answers[:, 2] == 10).all()) == (not wanted.visible)


def test_all_options_together_are_one_graph_with_any_batch(tmp_path):
    from hpml.engines import get

    knobs = {"image": 128, "variant": "small+bifpn+offset+history+noise"}
    net, (frames,) = NET.model(knobs, 1).eval(), NET.example_inputs(knobs, 5)
    with torch.inference_mode():
        wanted = net(frames).numpy()
    export.export_onnx(net, NET.example_inputs(knobs, 2), tmp_path / "n.onnx", input_names=["frames"], output_names=["places"])
    for name in ("onnxruntime", "openvino"):
        if get(name).unavailable("cpu"):
            continue
        engine = get(name)(threads=1)
        engine.load(tmp_path / "n.onnx")
        for part in (slice(0, 1), slice(1, 5)):
            assert np.abs(engine.run((frames[part].numpy(),))[0] - wanted[part]).max() < NET.PARITY["fp32"]["atol"], name


def clips():
    """Two clips of four frames and one frame, in which pixel values are 10 x clip + frame and places move by 4 pixels."""
    names, numbers = ("a",) * 4 + ("b",) * 2, (0, 1, 2, 3, 5, 7)
    images = np.stack([np.full((18, 32, 3), 10 * (name == "b") + number, np.uint8) for name, number in zip(names, numbers, strict=True)])
    labels = np.float32([[4 + 4 * number, 9, number != 1] for number in numbers])
    return images, labels, names, numbers


def test_history_never_crosses_a_clip_or_a_missing_frame():
    images, labels, names, numbers = clips()
    previous = reader.preceding(names, numbers, 3)
    assert previous.tolist() == [[-1, -1, -1], [0, -1, -1], [1, 0, -1], [2, 1, 0], [-1, -1, -1], [-1, 4, -1]]
    data = reader.FrameDataset(images, labels, train=False, previous=previous)
    frame, truth = data[3]
    assert frame.shape == (15, 18, 32) and truth.tolist() == labels[3].tolist()
    plain = [reader.normalised(images[row]) for row in (3, 2, 1, 0)]
    assert np.array_equal(frame[:12].numpy(), np.concatenate(plain))
    assert np.unravel_index(frame[12].numpy().argmax(), (18, 32)) in {(8, 11), (8, 12), (9, 11), (9, 12)}  # frame 2 at 12, 9
    assert frame[13].max() == 0 and frame[14].max() > 0.02  # nothing was visible in frame 1
    assert np.array_equal(data[0][0][:12].numpy(), np.concatenate([reader.normalised(images[0])] * 4)) and data[0][0][12:].max() == 0
    data.past = np.zeros_like(labels)
    assert data[3][0][12:].max() == 0  # the answers so far, whatever the labels say


def test_a_window_is_mirrored_as_a_whole_and_its_past_is_uncertain_in_training():
    images, labels, names, numbers = clips()
    data = reader.FrameDataset(images, labels, train=True, previous=reader.preceding(names, numbers, 3))
    torch.manual_seed(0)
    drawn = [data[3] for _ in range(40)]
    assert {float(truth[0]) for _, truth in drawn} == {16.0, 32 - 16.0}
    wide = np.zeros((6, 18, 320, 3), np.uint8)
    data = reader.FrameDataset(wide, np.float32([[40, 9, 1]] * 6), train=True, previous=data.previous)
    for frame, truth in (data[3] for _ in range(10)):
        for past in frame[12:]:
            assert past.max() == 0 or abs(int(past.argmax()) % 320 - float(truth[0])) < 10
    lost = np.mean([float(frame[12].max() == 0) for frame, _ in (data[3] for _ in range(200))])
    assert 0.15 < lost < 0.45


def test_past_places_are_the_models_own_answers_in_an_evaluation():
    frames = frames_of.open_frames("standin", 128, 12, 12)
    seen = []

    def predict(inputs):
        seen.append(inputs[0][:, 12:].reshape(len(inputs[0]), -1).max(1))
        return np.tile(np.float32([64, 36, 5]), (len(inputs[0]), 1))

    found = _stages.answers(predict, {"variant": "small+history", "batch": 8}, frames)
    assert found.tolist() == [[64, 36, 5]] * 12
    first = sum(number == min(n for c, n in zip(frames.test_clips, frames.test_numbers, strict=True) if c == clip)
                for clip, number in zip(frames.test_clips, frames.test_numbers, strict=True))
    marks = np.concatenate(seen)
    assert (marks == 0).sum() == first and (marks > 0.8).sum() == 12 - first


def test_augmentation_changes_what_it_says():
    images, labels = np.full((2, 36, 64, 3), 128, np.uint8), np.float32([[10, 10, 1], [20, 20, 1]])

    def drawn(n=60, **settings):
        data = reader.FrameDataset(images, labels, train=True, augment=reader.Augment(mirror=False, **settings))
        torch.manual_seed(0)
        return [data[0][0].numpy() * np.array([0.229, 0.224, 0.225])[:, None, None] + np.array([0.485, 0.456, 0.406])[:, None, None]
                for _ in range(n)]

    still = drawn(3, gain=0.0)
    assert all(np.allclose(frame, 128 / 255, atol=1e-5) for frame in still)
    noisy = drawn(gain=0.0, noise=20.0)
    strengths = [frame.std() * 255 for frame in noisy]
    assert max(strengths) < 21 and min(strengths) < 4 and 8 < np.mean(strengths) < 12
    assert abs(np.mean([frame.mean() for frame in noisy]) - 128 / 255) < 0.002
    tinted = drawn(gain=0.0, colour=0.2)
    assert all(np.ptp(frame, axis=(1, 2)).max() < 1e-5 for frame in tinted)  # a channel's own factor, the same for all its pixels
    assert max(np.ptp(frame[:, 0, 0]) for frame in tinted) > 0.1
    assert np.ptp([frame.mean() for frame in drawn(gain=0.3)]) > 0.2
    frozen, fresh = drawn(2, noise=20.0, gain=0.0, frozen=True), drawn(2, noise=20.0, gain=0.0)
    assert np.array_equal(frozen[0], frozen[1]) and frozen[0].std() > 0 and not np.array_equal(fresh[0], fresh[1])
