"""Parts of a model that are exported and run on their own: CLIP's text tower, the localizer's two stages, and what refuses one."""

from pathlib import Path

import numpy as np
import pytest

import hpml
from hpml import workloads
from hpml.env import HpmlError

torch = pytest.importorskip("torch")
TINY = str(Path(__file__).parent.parent / "tiny.py")


def made(name, **knobs):
    module = workloads.get(name)
    knobs = {**module.SIZES["smoke"]["infer"], "variant": "small", "data": "standin", **knobs}
    torch.manual_seed(0)
    return module, knobs, module.model(knobs, 10).eval()


def test_clips_text_tower_alone_gives_what_the_whole_gives():
    module, knobs, model = made("clip", part="text", length=24)
    view = workloads.part(module, knobs)
    ids, = view.example_inputs(knobs, 3)
    with torch.no_grad():
        torch.testing.assert_close(view.of(model)(ids), model.embed_text(ids))
    assert view.INPUT_NAMES == ("input_ids",) and view.PARITY is module.PARITY and view.whole is module
    assert workloads.part(module, {**knobs, "part": "whole"}) is module and workloads.parts(module) == ("whole", "text")


def test_the_localizers_stages_in_turn_give_what_both_give_end_to_end():
    from hpml.workloads._localizer import corner_of, crop_side, cut

    module, knobs, model = made("shuttle", part="find")
    find, refine = (workloads.part(module, {**knobs, "part": name}) for name in ("find", "refine"))
    (frames,), (crops,) = find.example_inputs(knobs, 2), refine.example_inputs(knobs, 2)
    with torch.no_grad():
        side = crop_side(frames.shape[-1])
        corner = corner_of(find.of(model)(frames), frames, side)
        assert crops.shape == (2, 3, side, side)
        got = refine.of(model)(cut(frames, corner, side))
        got[:, :2] += corner
        torch.testing.assert_close(got, model(frames))


def test_the_second_stage_is_tried_on_crops_around_the_truth():
    from hpml.data import shuttle

    module, knobs, _ = made("shuttle", part="refine", image=128, train_samples=4, test_samples=4)
    frames = shuttle.open_frames("standin", 128, 4, 4)
    crops = workloads.part(module, knobs).dataset(knobs, frames, train=False)
    assert len(crops) == 4 and crops[0][0].shape == (3, 64, 64) and crops[0][0].dtype == torch.float32


def test_how_alike_two_answers_are_is_said_in_the_workloads_own_words():
    random = np.random.default_rng(0)
    logits = random.standard_normal((2, 3, 4, 4), dtype=np.float32)
    other = logits.copy()
    other[0, :, 0, 0] = np.roll(other[0, :, 0, 0], 1)  # one pixel of 32 gets another class
    masks = workloads.get("deeplabv3").likeness(logits, other)
    assert masks["pixels with the same class"] == 31 / 32 and 0.8 < masks["mean IoU between the masks"] < 1
    assert workloads.get("deeplabv3").likeness(logits, logits) == {"mean IoU between the masks": 1.0, "pixels with the same class": 1.0}
    places = workloads.get("shuttle").likeness(np.array([[1.0, 2, 0], [5, 5, 0]]), np.array([[4.0, 6, 0], [5, 5, 0]]))
    assert places == {"largest distance px": 5.0, "median distance px": 2.5}
    seen = random.standard_normal((6, 4))
    assert workloads.get("clip").likeness(seen, 2 * seen)["lowest cosine"] == pytest.approx(1)


def test_a_part_has_a_graph_and_a_speed_but_no_quality_of_its_own(smoke_session):
    (exported,) = hpml.run(hpml.case(TINY, phase="export", part="head")).records
    assert exported.status == "ok" and exported.parity["passed"] and exported.actual["ops"].get("Conv", 0) == 0
    assert exported.parity["likeness"] == {"same class": 1.0}
    case = hpml.case(TINY, phase="infer", part="head", engine="onnxruntime")
    speed, quality = hpml.run([case, case.but(measure="quality")]).records
    assert speed.status == "ok" and speed.stats["n"] >= 5 and speed.limit["flops"] < 1e5
    assert quality.status == "unsupported"
    assert quality.reason == "Tiny net, its head has no quality of its own: accuracy is the whole model's"


@pytest.mark.parametrize(("name", "said"), [("clip", "part='nose': clip has the parts whole, text"),
                                            ("resnet50", "part='nose': resnet50 has the parts whole")])
def test_a_part_that_is_none_is_refused_in_one_line(name, said):
    with pytest.raises(HpmlError) as caught:
        hpml.case(name, phase="export", tier="smoke", part="nose")
    assert str(caught.value) == said or "part means nothing for this workload" in str(caught.value)
