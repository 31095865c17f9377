"""XLNet: its published size, what its knobs mean, its graph on other engines, and that a text goes through every phase."""

import numpy as np
import pytest
import torch

import hpml
from hpml import engines, export, workloads
from hpml.data import templates, tokens
from hpml.env import HpmlError

XLNET = workloads.get("xlnet")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path / "results"))
    hpml.use(tier="smoke", run_id="here", data="standin")
    yield
    hpml.use(tier="smoke")


@pytest.fixture
def tiny(monkeypatch):
    """XLNet with one small layer, under the name of its small variant."""
    monkeypatch.setitem(XLNET.VARIANTS, "small", {"n_layer": 1, "d_model": 32, "n_head": 2, "d_inner": 64})
    torch.manual_seed(0)
    return XLNET.model({"variant": "small"}, 2).eval()


def test_the_base_variant_has_the_published_number_of_parameters():
    with torch.device("meta"):
        net = XLNET.model({"variant": "base"}, 2)
    assert sum(p.numel() for p in net.parameters()) == XLNET.PARAMETERS == 117_310_466
    assert (net.config.n_layer, net.config.d_model) == (12, 768)


def test_padding_changes_no_answer_and_every_trained_parameter_has_a_gradient(tiny):
    ids, mask = XLNET.example_inputs({"length": 16}, 3)
    ids[:, -1] = XLNET.CLS
    other = ids.clone()
    other[:, :4] = 9  # only what the mask leaves out
    assert torch.equal(tiny(ids, mask), tiny(other, mask))
    assert not torch.allclose(tiny(ids, mask), tiny(ids, torch.ones_like(mask)))
    tiny(ids, mask).sum().backward()
    assert not [name for name, p in tiny.named_parameters() if p.requires_grad and p.grad is None]


def test_the_exported_graph_takes_any_batch_and_computes_the_same_on_real_samples(tiny, tmp_path):
    path, reviews = tmp_path / "tiny.onnx", tokens.with_tokenizer(templates.load(800, 200))
    export.export_onnx(tiny, XLNET.example_inputs({"length": 16}, 2), path, input_names=list(XLNET.INPUT_NAMES),
                       output_names=list(XLNET.OUTPUT_NAMES))
    ids, mask = tokens.encoded(reviews.test_texts[:9], reviews.tokenizer_file, 16)
    inputs = ids.astype(np.int64), mask.astype(np.float32)
    with torch.inference_mode():
        wanted = tiny(*map(torch.from_numpy, inputs)).numpy()
    for name in ("onnxruntime", "openvino"):
        if reason := engines.get(name).unavailable("cpu"):
            pytest.skip(reason)
        engine = engines.get(name)(device="cpu", threads=1, precision="fp32")
        engine.load(path)
        found = np.concatenate([engine.run(tuple(x[cut] for x in inputs))[0] for cut in (slice(0, 1), slice(1, 4), slice(4, 9))])
        assert export.parity(wanted, found, atol=XLNET.PARITY["fp32"]["atol"], rtol=XLNET.PARITY["fp32"]["rtol"])["passed"], name
        assert np.abs(wanted - found).max() < 1e-5, name


def test_knobs_of_images_are_refused():
    for knob, value in (("image", 64), ("memory_format", "channels_last"), ("storage", "jpeg"), ("stem", "cifar")):
        assert not workloads.knows("xlnet", knob)
        with pytest.raises(HpmlError, match=f"xlnet: the knob {knob} means nothing"):
            hpml.case("xlnet", **{knob: value})


def test_evaluation_counts_every_review_once_and_chance_is_the_larger_class():
    knobs = hpml.case("xlnet", phase="infer", measure="quality").knobs
    reviews, seen = XLNET.data(knobs), []

    def always_positive(inputs):
        seen.append(len(inputs[0]))
        return np.eye(2, dtype=np.float32)[np.ones(len(inputs[0]), int)]

    scores = XLNET.evaluate(always_positive, knobs, reviews)
    assert scores["n"] == sum(seen) == knobs["test_samples"] and scores["value"] == scores["chance"] == 0.5


def test_what_the_data_stands_for_changes_with_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_DATA", str(tmp_path))
    before = {name: XLNET.identity({"data": name}) for name in ("auto", "standin")}
    (tmp_path / "amazon").mkdir()
    (tmp_path / "amazon" / "amazon.csv").write_text("2,a,b\n")
    assert XLNET.identity({"data": "auto"}) != before["auto"] and XLNET.identity({"data": "standin"}) == before["standin"]
    (tmp_path / "tokenizers" / "xlnet-base-cased").mkdir(parents=True)
    (tmp_path / "tokenizers" / "xlnet-base-cased" / "tokenizer.json").write_text("{}")
    assert XLNET.identity({"data": "standin"}) != before["standin"]


def test_a_text_goes_through_every_phase(tmp_path):
    small = {"variant": "small", "length": 16}
    fit = hpml.run(hpml.case("xlnet", fit=True, train_samples=64, test_samples=40, length=16), rounds=1)
    assert fit.records[-1].status == "ok", fit.records[-1].reason
    assert "tokenizer" in fit.records[-1].actual["data"] and fit.records[-1].quality["n"] == 40
    hpml.keep(fit)
    cases = [hpml.case("xlnet", phase="data", workers=1), hpml.case("xlnet", precision="bf16", accum_steps=2, **small),
             hpml.case("xlnet", phase="infer", weights="trained", engine="onnxruntime", **small)]
    for case in cases:
        record = hpml.run(case, rounds=1).records[-1]
        assert record.status == "ok", record.reason
        assert not set(XLNET.WITHOUT) & set(record.knobs)
    assert hpml.case("xlnet").knobs["variant"] == hpml.case("xlnet", phase="infer").knobs["variant"] == "base"
