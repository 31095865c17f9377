"""CLIP: its published size, its loss, recall with repeated captions, its graph on other engines, and that it goes through every phase."""

import hashlib

import numpy as np
import pytest
import torch

import hpml
from hpml import engines, export, fit, pretrained, train, work, workloads
from hpml.data import bpe, captions, road
from hpml.env import HpmlError
from hpml.workloads import _retrieval

CLIP = workloads.get("clip")
SMALL = {"variant": "small", "image": 32, "length": 16}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("HPML_DATA", str(tmp_path / "data"))
    hpml.use(tier="smoke", run_id="here", data="standin")
    yield
    hpml.use(tier="smoke")


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return CLIP.model(SMALL, 36).eval()


def test_the_base_variant_has_the_published_number_of_parameters_and_its_temperature():
    with torch.device("meta"):
        net = CLIP.model({"variant": "base", "image": 224}, 36)
    assert sum(p.numel() for p in net.parameters()) == CLIP.PARAMETERS == 151_277_313
    assert (net.vision_model.config.patch_size, net.config.projection_dim) == (32, 512) and net.logit_scale.requires_grad
    assert CLIP.model(SMALL, 36).logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_a_text_that_is_too_long_and_a_frame_below_one_patch_are_refused():
    for knobs, said in (({"length": 78}, "length=78: CLIP ViT-B/32 has 77 positions"), ({"image": 16}, "image=16: .* patches of 32")):
        with pytest.raises(HpmlError, match=said), torch.device("meta"):
            CLIP.model(knobs, 36)


def test_what_stands_behind_the_end_of_a_text_changes_nothing_and_every_parameter_learns(tiny):
    frames, ids = CLIP.example_inputs({**SMALL, "optimizer": "adam"}, 3)
    ids[:, 9] = 49_407
    other = ids.clone()
    other[:, 10:15] = 7
    assert torch.equal(tiny(frames, ids), tiny(frames, other))
    assert torch.allclose(tiny(frames).norm(dim=1), torch.ones(3), atol=1e-5) and tiny(frames, ids).shape == (3, 3)
    CLIP.loss(tiny.train()(frames, ids), torch.arange(3)).backward()
    assert not [name for name, p in tiny.named_parameters() if p.grad is None] and tiny.logit_scale.grad != 0


def test_the_temperature_is_bounded(tiny):
    frames, ids = CLIP.example_inputs({**SMALL, "optimizer": "adam"}, 2)
    tiny.logit_scale.data.fill_(20.0)
    assert tiny(frames, ids).abs().max() <= CLIP.MOST_SCALE * (1 + 1e-5)


def test_the_loss_is_the_papers_without_repeats_and_shares_the_target_with_them():
    torch.manual_seed(0)
    logits, cross = torch.randn(5, 5), torch.nn.functional.cross_entropy
    own = torch.arange(5)
    wanted = (cross(logits, own, reduction="sum") + cross(logits.T, own, reduction="sum")) / 2
    assert torch.allclose(CLIP.loss(logits, own + 7), wanted)
    twice = torch.tensor([1, 0, 1])
    ideal = 50.0 * (twice[:, None] == twice[None])
    assert float(CLIP.loss(ideal, twice)) == pytest.approx(2 * np.log(2), abs=1e-4) and float(CLIP.loss(50 * torch.eye(3), twice)) > 10
    replicas = torch.cat([logits[:2, :2], logits[2:4, 2:4]])  # DataParallel: two pairs in each of two replicas
    assert torch.allclose(CLIP.loss(replicas, own[:4]), CLIP.loss(replicas[:2], own[:2]) + CLIP.loss(replicas[2:], own[2:4]))


def embedded(labels, classes, noise=0.0):
    """Frames whose embedding is that of their class's caption, and the captions' embeddings."""
    random = np.random.default_rng(0)
    captions = np.eye(len(classes), 40, dtype=np.float32)
    seen = captions[labels] + noise * random.normal(size=(len(labels), 40))
    values = {"timeofday": sorted({one.split(", ")[2] for one in classes} - {"undefined"})}
    prompts = {key: np.stack([captions[[v in one for one in classes]].mean(0) for v in found]) for key, found in values.items()}
    return seen, {"captions": captions, **{key: (found, prompts[key]) for key, found in values.items()}}


def test_recall_counts_repeats_as_right_and_never_the_query_itself():
    classes = list(road.CLASSES)
    labels = np.array([0, 0, 1, 2, 2, 2])
    seen, texts = embedded(labels, classes)
    found = _retrieval.scores(seen, labels, classes, texts)
    assert (found["value"], found["n"], found["chance"]) == (1.0, 6, 0.5)
    assert found["details"]["recall@1, text to image"] == found["details"]["recall@1, image to image"] == 1.0
    assert found["details"]["chance of recall@1, text to image"] == pytest.approx((2 + 1 + 3) / 18)
    assert found["details"]["chance of recall@1, image to image"] == pytest.approx((2 * 1 / 5 + 3 * 2 / 5) / 5)  # one frame asks nothing
    assert found["details"]["zero-shot timeofday"] == 1.0
    # Each frame is most like itself. If it could answer its own query, this would be a recall of 100 %.
    alone = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    other = _retrieval.scores(alone, np.array([0, 1, 0, 1]), classes[:2], {"captions": np.eye(2, dtype=np.float32)})
    assert other["details"]["recall@1, image to image"] == 0.0


def test_chance_is_what_a_random_order_reaches():
    random = np.random.default_rng(0)
    right = random.random((400, 30)) < 0.1
    scores = random.random((400, 30))
    for k in (1, 5):
        value, chance = _retrieval.recall(scores, right, k)
        assert value == pytest.approx(chance, abs=0.06) and 0 < chance < 1


def test_unknown_attributes_do_not_count():
    classes = ["undefined, undefined, daytime", "undefined, undefined, night", "clear, highway, undefined"]
    labels = np.array([0, 1, 1, 2, 2, 2])
    seen, texts = embedded(labels, classes)
    details = _retrieval.scores(seen, labels, classes, texts)["details"]
    assert details["zero-shot timeofday"] == 1.0 and details["chance of zero-shot timeofday"] == pytest.approx(2 / 3)


def test_the_image_tower_as_a_graph_takes_any_batch_and_ranks_alike(tiny, tmp_path):
    path = tmp_path / "tower.onnx"
    export.export_onnx(tiny, CLIP.example_inputs(SMALL, 2), path, input_names=list(CLIP.INPUT_NAMES), output_names=list(CLIP.OUTPUT_NAMES))
    frames = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(1)).numpy()
    with torch.inference_mode():
        wanted = tiny(torch.from_numpy(frames)).numpy()
    for name in ("onnxruntime", "openvino"):
        if reason := engines.get(name).unavailable("cpu"):
            pytest.skip(reason)
        engine = engines.get(name)(device="cpu", threads=1, precision="fp32")
        engine.load(path)
        got = np.concatenate([engine.run((frames[cut],))[0] for cut in (slice(0, 1), slice(1, 4), slice(4, 9))])
        found = export.parity(wanted, got, atol=CLIP.PARITY["fp32"]["atol"], rtol=CLIP.PARITY["fp32"]["rtol"])
        assert found["passed"] and found["cosine"] > CLIP.PARITY["fp32"]["cosine"] and CLIP.agreement(wanted, got) > 0.99, name


def test_agreement_is_about_order_and_not_about_size():
    random = np.random.default_rng(0)
    a = random.normal(size=(8, 16)).astype(np.float32)
    assert CLIP.agreement(a, 3 * a) == 1.0 and CLIP.agreement(a, random.normal(size=(8, 16))) < 0.8
    assert CLIP.agreement(a[:2], a[:2]) == 1.0


def test_evaluation_asks_for_the_captions_and_takes_them_from_the_models_text_tower(tiny):
    knobs = hpml.case("clip", phase="infer", measure="quality", **SMALL).knobs
    frames = CLIP.data(knobs)
    predict = fit.predictor(tiny, {**knobs, "precision": "fp32"})
    with pytest.raises(HpmlError, match="give evaluate the captions'"):
        CLIP.evaluate(predict, knobs, frames)
    scores = fit.judge(predict, tiny, CLIP, knobs, frames)
    assert scores["n"] == len(frames.test_labels) == 108 and scores["chance"] == pytest.approx(1 / 36)
    assert {"zero-shot weather", "recall@5, image to text", "chance of recall@1, image to image"} <= set(scores["details"])
    texts = CLIP.texts(tiny, knobs, frames)
    assert texts["captions"].shape == (36, 128) and texts["scene"][0] == sorted(road.SCENES)
    assert np.allclose(np.linalg.norm(texts["weather"][1], axis=1), 1, atol=1e-5)


def test_a_sample_is_a_frame_a_caption_of_its_class_and_the_class():
    frames = bpe.with_tokenizer(road.load(36, 36), captions.every())
    knobs = {"image": 64, "length": 24}
    training, testing = (CLIP.dataset(knobs, frames, train=train) for train in (True, False))
    reader = bpe.open_tokenizer(frames.tokenizer_file, 24)
    written = [bpe.encode(reader, captions.captions(one)) for one in frames.classes]
    pixels, ids, label = testing[5]
    assert pixels.shape == (3, 64, 64) and np.array_equal(ids, written[label][0]) and label == frames.test_labels[5]
    drawn = {tuple(training[5][1].tolist()) for _ in range(40)}
    assert drawn == {tuple(row) for row in written[frames.train_labels[5]].tolist()}


def test_published_weights_are_read_by_transformers_names_and_positions_are_left_out(tiny, tmp_path, monkeypatch):
    path = tmp_path / CLIP.PRETRAINED["file"]
    path.parent.mkdir()
    torch.save({**tiny.state_dict(), "text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    monkeypatch.setenv("HPML_WEIGHTS", str(tmp_path))
    with pytest.raises(HpmlError, match=r"pytorch_model.bin is damaged or another file: sha256 .* published is a63082132"):
        pretrained.find(CLIP)
    monkeypatch.setitem(CLIP.PRETRAINED, "sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    other = CLIP.model(SMALL, 36)
    train.load_weights(other, pretrained.find(CLIP), CLIP)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(tiny.parameters(), other.parameters(), strict=True))
    with pytest.raises(HpmlError, match="not weights of this model"):  # another side needs other positions
        train.load_weights(CLIP.model({**SMALL, "image": 64}, 36), path, CLIP)


def test_training_is_counted_with_both_towers_and_inference_with_one():
    knobs = hpml.case("clip", **SMALL).knobs
    assert work.train_flops(CLIP, knobs, 36) > work.train_flops(CLIP, SMALL, 36, training=False) > 0


def test_what_the_data_stands_for_changes_with_the_files(tmp_path):
    before = {name: CLIP.identity({"data": name}) for name in ("auto", "standin")}
    folder = tmp_path / "data" / "bdd100k_ten"
    (folder / "images").mkdir(parents=True)
    (folder / "attributes.csv").write_text("name,weather,scene,timeofday\n")
    for number in range(10):
        (folder / "images" / f"{number}.jpg").touch()
    # Ten frames serve the loader and steady steps of up to ten; what is judged takes the stand-in.
    assert CLIP.identity({"data": "auto", "workers": 0, "batch": 10}) != before["auto"] == CLIP.identity({"data": "auto"})
    assert CLIP.identity({"data": "auto", "workers": 0, "batch": 11}) == before["auto"]
    assert CLIP.identity({"data": "standin"}) == before["standin"]
    (tmp_path / "data" / "tokenizers" / "clip").mkdir(parents=True)
    (tmp_path / "data" / "tokenizers" / bpe.FILE).write_bytes(b"")
    assert CLIP.identity({"data": "standin"}) != before["standin"]
    with pytest.raises(HpmlError, match="data source 'amazon' is unknown"):
        CLIP.data({"data": "amazon"})


def test_it_goes_through_every_phase():
    sizes = {"train_samples": 72, "test_samples": 36}
    training = hpml.run(hpml.case("clip", fit=True, epochs=1, batch=36, **SMALL, **sizes), rounds=1)
    record = training.records[-1]
    assert record.status == "ok", record.reason
    assert "trained on the captions" in record.actual["data"]["tokenizer"] and record.quality["n"] == 36
    assert "zero-shot timeofday" in record.quality["details"]
    hpml.keep(training)
    cases = [hpml.case("clip", phase="data", workers=1, **sizes),
             hpml.case("clip", precision="bf16", accum_steps=2, batch=4, **SMALL, **sizes),
             hpml.case("clip", phase="infer", weights="trained", engine="onnxruntime", **SMALL, **sizes),
             hpml.case("clip", phase="infer", weights="trained", measure="quality", **SMALL, **sizes)]
    for case in cases:
        record = hpml.run(case, rounds=1).records[-1]
        assert record.status == "ok", record.reason
        assert not set(CLIP.WITHOUT) & set(record.knobs)
    assert record.quality["n"] == 36 and record.parity["top1_agreement"] > 0.99
    assert hpml.case("clip").knobs["variant"] == hpml.case("clip", phase="infer").knobs["variant"] == "base"
