"""Static INT8: both quantizers on small graphs, what the file and the engines then hold, and everything that is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import hpml
from hpml import engines, env, infer, quantize, records, sensitivity, workloads
from hpml.env import HpmlError, Unavailable
from hpml.knobs import validate

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
TINY = str(Path(__file__).parent.parent / "tiny.py")
RNG = np.random.default_rng(0)
SMALL = {"precision": "int8", "engine": "onnxruntime", "calib_samples": 16}
SAMPLES = {"x": RNG.standard_normal((16, 3, 8, 8), dtype=np.float32)}


def save(path, nodes, shape, out, weights, shapes=None):
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    body = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info(name, kind, dims) for name, dims in {"x": shape, **(shapes or {})}.items()],
        [helper.make_tensor_value_info("y", kind, out)], [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()])
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """Convolutions with a residual sum between them, a mean, a last layer. One channel's weights are a hundred times the others'."""
    make = onnx.helper.make_node
    scale = np.where(np.arange(8) == 3, 1.0, 0.01).astype(np.float32)
    weights = {"w1": RNG.standard_normal((8, 3, 3, 3), dtype=np.float32) * scale[:, None, None, None],
               "w2": RNG.standard_normal((8, 8, 3, 3), dtype=np.float32) * 0.1, "w3": RNG.standard_normal((8, 5), dtype=np.float32),
               "b3": np.zeros(5, np.float32)}
    nodes = [make("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1] * 4), make("Relu", ["c1"], ["r1"], name="relu1"),
             make("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1] * 4), make("Add", ["c2", "r1"], ["s"], name="sum"),
             make("Relu", ["s"], ["r2"], name="relu2"), make("GlobalAveragePool", ["r2"], ["g"], name="mean"),
             make("Flatten", ["g"], ["f"], name="flat"), make("Gemm", ["f", "w3", "b3"], ["y"], name="last")]
    return save(tmp_path_factory.mktemp("quantize") / "small.onnx", nodes, ["n", 3, 8, 8], ["n", 5], weights)


@pytest.fixture(params=["onnxruntime", "nncf"])
def quantizer(request):
    try:
        quantize.need(request.param, "minmax")
    except Unavailable as error:
        pytest.skip(str(error))
    return request.param


def run(path, inputs, name="onnxruntime", precision="int8"):
    engine = engines.get(name)(threads=1, precision=precision)
    engine.load(path)
    return engine, engine.run(inputs)[0]


def test_the_graph_is_quantized_per_channel_and_answers_alike(graph, tmp_path, quantizer):
    facts = quantize.quantize(graph, tmp_path / "int8.onnx", SAMPLES, quantizer=quantizer)
    assert engines.graph_precision(tmp_path / "int8.onnx") == "int8"
    assert facts["quantize_nodes"] > 0 and facts["heavy_ops_total"] == 3 and 2 <= facts["int8_ops"] <= 3
    assert facts["int8_share"] == facts["int8_ops"] / 3 and facts["quantized_ops"] >= facts["int8_ops"]
    assert facts["per_channel"] >= 2, "weights have a scale for each output channel"
    assert facts["quantize_s"] > 0 and facts["samples"] == 16 and facts["bytes"] == (tmp_path / "int8.onnx").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["int8.onnx"]
    inputs = (RNG.standard_normal((32, 3, 8, 8), dtype=np.float32),)
    wanted = run(graph, inputs, precision="fp32")[1]
    for name in ("onnxruntime", "openvino"):
        if engines.get(name).unavailable():
            continue
        engine, outputs = run(tmp_path / "int8.onnx", inputs, name)
        assert not np.array_equal(outputs, wanted), "INT8 was really used"
        assert np.abs(outputs - wanted).max() < 0.05 * np.abs(wanted).max()
        done, total = engine.int8_ops()
        assert total == 3 and 2 <= done <= 3


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_the_same_samples_give_the_same_graph(graph, tmp_path, quantizer, method):
    inputs = (SAMPLES["x"][:4],)
    if (quantizer, method) == ("nncf", "entropy"):
        with pytest.raises(Unavailable, match="entropy calibration is ONNX Runtime's"):
            quantize.quantize(graph, tmp_path / "a.onnx", SAMPLES, quantizer=quantizer, method=method)
        return
    outputs = []
    for name in ("a.onnx", "b.onnx"):
        assert quantize.quantize(graph, tmp_path / name, SAMPLES, quantizer=quantizer, method=method)["method"] == method
        outputs.append(run(tmp_path / name, inputs)[1])
    np.testing.assert_array_equal(*outputs)


def test_other_samples_give_other_ranges(graph, tmp_path):
    outputs = []
    for name, samples in (("a.onnx", SAMPLES), ("b.onnx", {"x": 3 * SAMPLES["x"]})):
        quantize.quantize(graph, tmp_path / name, samples)
        outputs.append(run(tmp_path / name, (SAMPLES["x"],))[1])
    assert not np.array_equal(*outputs)


@pytest.mark.parametrize(("isa", "bits", "largest"), [(["avx2"], 7, 64), (["avx2", "avx512_vnni"], 8, 127)])
def test_without_vnni_weights_have_seven_bits(graph, tmp_path, monkeypatch, isa, bits, largest):
    monkeypatch.setattr(env, "machine", lambda: {"arch": "x86_64", "isa": isa})
    assert quantize.quantize(graph, tmp_path / "int8.onnx", SAMPLES)["weight_bits"] == bits
    kept = [onnx.numpy_helper.to_array(item) for item in onnx.load(tmp_path / "int8.onnx").graph.initializer]
    assert max(np.abs(value.astype(int)).max() for value in kept if value.dtype == np.int8 and value.ndim > 1) == largest


@pytest.mark.parametrize(("isa", "done"), [(["avx2"], 3), (["avx2", "avx512_vnni"], 5)])
def test_without_vnni_a_product_of_two_activations_stays_in_floating_point(tmp_path, monkeypatch, isa, done):
    monkeypatch.setattr(env, "machine", lambda: {"arch": "x86_64", "isa": isa})
    samples = {"x": RNG.standard_normal((16, 4, 6), dtype=np.float32), "mask": np.zeros((16, 1, 4), np.float32)}
    facts = quantize.quantize(attention(tmp_path / "a.onnx"), tmp_path / "int8.onnx", samples, only=("MatMul", "Gemm"))
    assert facts["int8_ops"] == done and facts["heavy_ops_total"] == 5


@pytest.mark.parametrize("attend", [False, True])
def test_symmetric_graphs_are_what_tensorrt_takes(graph, tmp_path, monkeypatch, attend):
    """Its parser refuses a zero point that is not zero, unsigned pairs and integer biases; a GPU needs no weights of seven bits."""
    monkeypatch.setattr(env, "machine", lambda: {"arch": "x86_64", "isa": ["avx2"]})
    samples = {"x": RNG.standard_normal((16, 4, 6), dtype=np.float32), "mask": np.zeros((16, 1, 4), np.float32)} if attend else SAMPLES
    source, only = (attention(tmp_path / "a.onnx"), ("MatMul", "Gemm")) if attend else (graph, None)
    facts = quantize.quantize(source, tmp_path / "int8.onnx", samples, only=only, symmetric=True)
    assert (facts["scheme"], facts["weight_bits"]) == ("symmetric", 8) and facts["int8_ops"] >= 3
    body = onnx.load(tmp_path / "int8.onnx").graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in body.initializer}
    values |= {node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t) for node in body.node if node.op_type == "Constant"}
    pairs = [node for node in body.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [values[node.input[2]] for node in pairs]
    assert pairs and all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    inputs = tuple(samples.values())
    wanted = run(source, inputs, precision="fp32")[1]
    assert 0 < np.abs(run(tmp_path / "int8.onnx", inputs)[1] - wanted).max() < 0.1 * np.abs(wanted).max()


def test_symmetric_ranges_are_onnx_runtimes_and_static():
    with pytest.raises(Unavailable, match="have a zero point: symmetric ones are static"):
        quantize.need("onnxruntime", "minmax", "dynamic", "symmetric")
    if not env.missing("nncf"):
        with pytest.raises(Unavailable, match="symmetric ones are ONNX Runtime's"):
            quantize.need("nncf", "minmax", "static", "symmetric")


def attention(path):
    """Scores of queries and keys, a mask of -1e30 added where the last position is padding, softmax, values."""
    make = onnx.helper.make_node
    weights = {name: 0.4 * RNG.standard_normal((6, 6), dtype=np.float32) for name in ("wq", "wk", "wv")}
    weights["far"] = np.full(1, -1e30, np.float32)
    nodes = [make("MatMul", ["x", "wq"], ["q"], name="q"), make("MatMul", ["x", "wk"], ["k"], name="k"),
             make("MatMul", ["x", "wv"], ["v"], name="v"), make("Transpose", ["k"], ["kt"], name="t", perm=[0, 2, 1]),
             make("MatMul", ["q", "kt"], ["scores"], name="scores"), make("Mul", ["mask", "far"], ["away"], name="away"),
             make("Add", ["scores", "away"], ["masked"], name="masked"), make("Softmax", ["masked"], ["p"], name="p", axis=-1),
             make("MatMul", ["p", "v"], ["y"], name="out")]
    return save(path, nodes, ["n", 4, 6], ["n", 4, 6], weights, {"mask": ["n", 1, 4]})


def test_an_attention_mask_ruins_the_range_unless_only_products_are_quantized(tmp_path, quantizer):
    source = attention(tmp_path / "attention.onnx")
    mask = np.zeros((16, 1, 4), np.float32)
    mask[::2, :, 3] = 1
    samples = {"x": RNG.standard_normal((16, 4, 6), dtype=np.float32), "mask": mask}
    inputs = tuple(samples.values())
    wanted = run(source, inputs, precision="fp32")[1]
    facts = quantize.quantize(source, tmp_path / "products.onnx", samples, quantizer=quantizer, only=("MatMul", "Gemm"))
    assert facts["int8_ops"] >= 3 and facts["heavy_ops_total"] == 5
    error = np.abs(run(tmp_path / "products.onnx", inputs)[1] - wanted).max()
    assert error < 0.1 * np.abs(wanted).max()
    if quantizer == "onnxruntime":  # NNCF knows the pattern of attention by itself
        quantize.quantize(source, tmp_path / "all.onnx", samples)
        assert np.abs(run(tmp_path / "all.onnx", inputs)[1] - wanted).max() > 5 * error


def test_a_dynamic_graph_holds_integer_products_and_asks_for_no_ranges(tmp_path):
    source = attention(tmp_path / "attention.onnx")
    samples = {"x": RNG.standard_normal((16, 4, 6), dtype=np.float32), "mask": np.zeros((16, 1, 4), np.float32)}
    wanted = run(source, tuple(samples.values()), precision="fp32")[1]
    facts = quantize.quantize(source, tmp_path / "dynamic.onnx", samples, only=("MatMul", "Gemm"), dynamic=True)
    assert facts["quantization"] == "dynamic" and facts["samples"] == 0 and facts["int8_ops"] >= 3 and facts["heavy_ops_total"] == 5
    engine, outputs = run(tmp_path / "dynamic.onnx", tuple(samples.values()))
    assert engine.int8_ops()[0] >= 3 and not np.array_equal(outputs, wanted)
    assert np.abs(outputs - wanted).max() < 0.1 * np.abs(wanted).max()
    with pytest.raises(Unavailable, match="dynamic quantization is ONNX Runtime's"):
        quantize.quantize(source, tmp_path / "no.onnx", samples, quantizer="nncf", dynamic=True)


def harmful(path):
    """Three products; the numbers that the second one gets lie far apart, so that in 8 bits its small ones are lost, and they matter."""
    make = onnx.helper.make_node
    weights = {"w1": np.eye(6, dtype=np.float32), "far": np.array([1e4, 1, 1, 1, 1, 1], np.float32),
               "w2": np.diag([1e-6, 1, 1, 1, 1, 1]).astype(np.float32), "w3": np.eye(6, dtype=np.float32)}
    nodes = [make("MatMul", ["x", "w1"], ["a"], name="first"), make("Mul", ["a", "far"], ["b"], name="spread"),
             make("MatMul", ["b", "w2"], ["c"], name="second"), make("MatMul", ["c", "w3"], ["y"], name="third")]
    return save(path, nodes, ["n", 6], ["n", 6], weights)


def test_what_harms_most_stays_in_floating_point(tmp_path, quantizer):
    source = harmful(tmp_path / "harmful.onnx")
    samples = {"x": RNG.standard_normal((16, 6), dtype=np.float32)}
    wanted = run(source, tuple(samples.values()), precision="fp32")[1]
    errors = {}
    for keep in (0, 1):
        facts = quantize.quantize(source, tmp_path / "int8.onnx", samples, quantizer=quantizer, only=("MatMul", "Gemm"), keep_fp=keep)
        assert facts["int8_ops"] == 3 - keep and [one["name"] for one in facts["kept_fp"]] == ["second"][:keep]
        errors[keep] = np.abs(run(tmp_path / "int8.onnx", tuple(samples.values()))[1] - wanted).max()
    assert errors[1] < 0.2 * errors[0]
    worst = facts["kept_fp"][0]
    assert worst["op"] == "MatMul" and worst["error"] > 0.3 and worst["disagreement"] > 0 and facts["ranking_s"] > 0


def test_operators_are_ranked_by_the_workloads_own_agreement(tmp_path):
    source = harmful(tmp_path / "harmful.onnx")
    samples = {"x": RNG.standard_normal((16, 6), dtype=np.float32)}
    asked = {"kinds": ("MatMul",), "reader": quantize._reader}
    names = [one["name"] for one in sensitivity.ranked(source, samples, **asked)]
    assert names[0] == "second" and sorted(names) == ["first", "second", "third"]
    # An agreement that nothing can disturb leaves the order to the error.
    lenient = sensitivity.ranked(source, samples, **asked, agreement=lambda wanted, got: 1.0)
    assert all(one["disagreement"] == 0 for one in lenient) and lenient[0]["error"] >= lenient[-1]["error"]


@pytest.mark.parametrize(("samples", "said"), [
    ({"images": SAMPLES["x"]}, "small.onnx takes the inputs x, the calibration samples are images: another model"),
    ({"x": SAMPLES["x"][:, :2]}, r"input 'x' has shape .*an array of \[1, 2, 8, 8\]"),
    ({"x": SAMPLES["x"].astype(np.float64)}, "input 'x' is float32, an array of float64"),
])
def test_samples_of_another_model_are_refused_in_one_line(graph, tmp_path, samples, said):
    with pytest.raises(HpmlError, match=said) as caught:
        quantize.quantize(graph, tmp_path / "int8.onnx", samples)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_damaged_graph_and_one_without_arithmetic_are_refused(graph, tmp_path, quantizer):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(graph.read_bytes()[:-40])
    plain = save(tmp_path / "plain.onnx", [onnx.helper.make_node("Relu", ["x"], ["y"], name="r")], ["n", 3, 8, 8], ["n", 3, 8, 8], {})
    for source, said in ((broken, "broken.onnx: not an ONNX model, or damaged"), (plain, "plain.onnx: .* quantized none of its 0")):
        with pytest.raises(HpmlError, match=said) as caught:
            quantize.quantize(source, tmp_path / "int8.onnx", SAMPLES, quantizer=quantizer)
        assert "\n" not in str(caught.value) and not (tmp_path / "int8.onnx").exists()


def test_calibration_takes_training_samples_as_inference_would_see_them():
    module = workloads.get("resnet50")
    knobs = validate("quantize", {"image": 32, "data": "digits", "train_samples": 100, "test_samples": 20, "calib_samples": 24})
    image_set = module.data(knobs)
    (images,), indices = quantize.calibration(module, knobs, image_set)
    assert images.shape == (24, 3, 32, 32) and len(set(indices)) == 24 and max(indices) < len(image_set.train_labels)
    again, same = quantize.calibration(module, knobs, image_set)
    assert indices == same and np.array_equal(images, again[0]), "no augmentation: the same pixels each time"
    assert quantize.calibration(module, {**knobs, "seed": 1}, image_set)[1] != indices
    with pytest.raises(HpmlError, match=r"calibration on 1 sample \(calib_samples=1, 100 training samples\): ranges need at least 8"):
        quantize.calibration(module, {**knobs, "calib_samples": 1}, image_set)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """The results of a run that has one INT8 graph and a speed figure of it; the case is SMALL."""
    folder = tmp_path_factory.mktemp("quantized")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPML_RESULTS", str(folder))
        hpml.use(tier="smoke", run_id="here")
        (record,) = hpml.run(hpml.case(TINY, phase="infer", **SMALL)).records
    assert record.status == "ok", record.reason
    return folder


@pytest.fixture
def with_graph(smoke_session, quantized):
    """A run of the test's own that has it already."""
    shutil.copytree(quantized, env.run_dir("here").parents[1], dirs_exist_ok=True)
    return hpml.case(TINY, phase="infer", **SMALL)


def stored(phase):
    return [r for r in records.read(env.run_dir("here") / "records.jsonl") if r.case["phase"] == phase]


def test_inference_makes_the_graph_once_and_says_what_ran_in_int8(smoke_session):
    base = hpml.case(TINY, phase="infer", precision="int8", weights="trained", calib_samples=32)
    cases = base.sweep(engine=["onnxruntime", "openvino", "eager"], measure=["speed", "quality"])
    by_engine = {(r.knobs["engine"], r.knobs["measure"]): r for r in hpml.run(cases).records}
    for name in ("onnxruntime", "openvino"):
        record = by_engine[name, "speed"]
        assert record.status == "ok" and record.parity["passed"] and record.stats["n"] >= 3
        assert record.actual["heavy_ops_total"] == 2 and record.actual["int8_ops"] >= 1
        assert record.actual["int8_share"] == record.actual["int8_ops"] / 2 and record.actual["quantized"]["samples"] == 32
        assert by_engine[name, "quality"].quality["n"] == 200
    refused = by_engine["eager", "speed"]
    assert refused.status == "unsupported" and "no int8 kernels" in refused.reason and refused.stats is None
    (made,) = stored("quantize")
    assert made.cold["quantize_s"] > 0 and made.cold["bytes"] > 0 and made.cold["fp32_bytes"] > 0
    assert made.actual["int8_ops"] == 2 and len(made.actual["calibrated_on"]) == 32 and made.actual["weights_sha256"]


def test_a_network_of_convolutions_has_no_dynamic_graph_and_what_is_kept_is_recorded(smoke_session):
    case = hpml.case(TINY, phase="infer", precision="int8", engine="onnxruntime", calib_samples=16)
    (refused,) = hpml.run(case.but(quantization="dynamic")).records
    assert refused.status == "unsupported" and "convolutions are quantized statically" in refused.reason and refused.stats is None
    (record,) = hpml.run(case.but(keep_fp=1)).records
    assert record.status == "ok" and record.actual["int8_ops"] == 1 and record.actual["heavy_ops_total"] == 2
    (kept,) = record.actual["quantized"]["kept_fp"]
    assert kept["op"] in ("Conv", "Gemm") and kept["error"] > 0
    hpml.run(case.but(keep_fp=1, quantizer="nncf"))  # without VNNI, ONNX Runtime computes this graph in floating point and gives no figure
    first, second = (made for made in stored("quantize") if made.status == "ok")
    assert second.actual["kept_fp"] == [kept]
    assert first.actual["ranking_s"] == second.actual["ranking_s"] < second.cold["quantize_s"], "ranked once in a run, and counted in both"


def test_a_graph_whose_making_was_cut_short_is_made_again(with_graph):
    (note,) = (env.run_dir("here") / "models").glob("*int8-*.json")
    note.unlink()  # it is written last: a process killed before it leaves the graph alone
    assert hpml.run(with_graph, fresh=True).records[-1].status == "ok" and len(stored("quantize")) == 2 and note.exists()


def test_static_shapes_are_compiled_for_the_batch_that_is_measured(with_graph):
    case = with_graph.but(shapes="static")
    (record,) = hpml.run(case.but(engine="openvino")).records
    assert record.status == "ok" and record.actual["shapes"] == "static" and record.parity["n"] == 32
    for other in (case.but(engine="openvino", measure="quality"), case.but(engine="onnxruntime")):
        (refused,) = hpml.run(other).records
        assert refused.status == "unsupported" and "shapes=static is OpenVINO's" in refused.reason


def test_random_weights_prove_plumbing_only(with_graph):
    record = hpml.run(with_graph.but(measure="quality")).records[0]
    assert len(stored("quantize")) == 1 and record.status == "ok"
    assert record.quality is None and record.actual["quantized"]["weights"] == "random"


def test_too_few_samples_are_a_record_without_a_figure(smoke_session):
    record = hpml.run(hpml.case(TINY, phase="infer", precision="int8", engine="onnxruntime", calib_samples=1)).records[0]
    assert record.status == "failed" and record.stats is None and "\n" not in record.reason
    assert record.reason.startswith("no INT8 graph: calibration on 1 sample")
    assert [r.status for r in stored("quantize")] == ["failed"] and stored("quantize")[0].cold["spawn_s"] is not None


@pytest.mark.parametrize("other", ["another model", "truncated"])
def test_a_graph_that_is_not_this_models_gives_no_figure(with_graph, graph, other):
    (path,) = (env.run_dir("here") / "models").glob("*int8-*.onnx")
    if other == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        quantize.quantize(graph, path, SAMPLES)
    record = hpml.run(with_graph, fresh=True).records[0]
    assert record.status in ("failed", "parity_failed") and record.stats is None and "\n" not in record.reason


def test_inference_without_the_graph_says_who_makes_it(tmp_path):
    knobs = validate("infer", {"precision": "int8", "engine": "onnxruntime"})
    job = {"case": {"workload": TINY}, "weights_sha256": None, "run_dir": str(tmp_path), "knobs": knobs, "code": "x", "protocol": {}}
    with pytest.raises(HpmlError, match="phase quantize makes it"):
        infer._engine(job, workloads.get(TINY), None)
