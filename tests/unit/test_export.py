"""An exported file takes any batch, equals its module in both engines, and an altered weight is noticed."""

import numpy as np
import pytest

from hpml import engines
from hpml.env import HpmlError, Unavailable, missing
from hpml.export import export_onnx, graph_ops, parity, to_fp16

pytestmark = pytest.mark.skipif(bool(missing("onnx") or missing("onnxscript")), reason="onnx and onnxscript are needed")

torch = pytest.importorskip("torch")
SIDE = 16


class Block(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


def tiny_resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Block(8), nn.MaxPool2d(2), Block(8), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, 10))


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)


def export(model, path, **options) -> dict:
    return export_onnx(model, (torch.zeros(2, 3, SIDE, SIDE),), path, input_names=["image"], output_names=["logits"],
                       **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model, path = tiny_resnet(), tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    return model, path, export(model, path)


def test_export_is_one_described_file(exported):
    model, path, info = exported
    assert [file.name for file in path.parent.iterdir()] == ["tiny.onnx"]
    assert info["exporter"] == "dynamo" and info["opset"] >= 17 and info["export_s"] > 0
    assert info["bytes"] == path.stat().st_size
    assert info["ops"] == graph_ops(path) and info["ops"]["Conv"] == 3
    assert model.training, "the caller's module is left in the mode it was in"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_every_batch_size_agrees_with_the_module(exported, name):
    model, path, _ = exported
    if reason := engines.get(name).unavailable():
        pytest.skip(reason)
    reference = engines.get("eager")(threads=1)
    reference.load(tiny_resnet())
    engine = engines.get(name)(threads=1)
    engine.load(path)
    for batch in (1, 3, 7):
        found = parity(reference.run((images(batch),)), engine.run((images(batch),)), atol=1e-4, rtol=1e-3)
        assert found["passed"] and found["cosine"] > 0.9999 and found["top1_agreement"] == 1.0, (batch, found)


def test_an_altered_weight_fails_parity(exported):
    if reason := engines.get("onnxruntime").unavailable():
        pytest.skip(reason)
    _, path, _ = exported
    engine, altered = engines.get("onnxruntime")(threads=1), engines.get("eager")(threads=1)
    engine.load(path)
    model = tiny_resnet()
    with torch.no_grad():
        model[-1].weight[3] += 0.1
    altered.load(model)
    found = parity(altered.run((images(4),)), engine.run((images(4),)), atol=1e-4, rtol=1e-3)
    assert not found["passed"] and found["max_abs"] > 1e-3


def test_an_fp16_graph_has_weights_of_half_the_size_and_inputs_in_fp32(exported, tmp_path):
    import onnxruntime

    model, path, _ = exported
    to_fp16(path, tmp_path / "half.onnx")
    assert engines.graph_precision(tmp_path / "half.onnx") == "fp16" and engines.graph_precision(path) == "fp32"
    session = onnxruntime.InferenceSession(str(tmp_path / "half.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(None, {"image": images(5)})[0]
    wanted = model.eval()(torch.as_tensor(images(5))).detach().numpy()
    model.train()
    found = parity(wanted, got, atol=2e-2, rtol=2e-2)
    assert got.dtype == np.float32 and found["passed"] and found["max_abs"] > 0
    with pytest.raises(Unavailable, match="fp16 is for CUDA"):
        engines.get("onnxruntime")(precision="fp16")


def test_a_constant_beyond_fp16_stays_finite_and_a_damaged_file_leaves_nothing(tmp_path):
    class Masked(torch.nn.Module):
        def forward(self, x):
            return torch.softmax(x.flatten(1)[:, :4] + torch.tensor([0.0, 0.0, -1e30, 0.0]), 1)

    export(Masked(), tmp_path / "masked.onnx")
    to_fp16(tmp_path / "masked.onnx", tmp_path / "half.onnx")
    import onnxruntime

    got = onnxruntime.InferenceSession(str(tmp_path / "half.onnx")).run(None, {"image": images(2)})[0]
    assert np.isfinite(got).all() and not got[:, 2].any() and np.allclose(got.sum(1), 1, atol=1e-2)
    (tmp_path / "half.onnx").unlink()
    (tmp_path / "masked.onnx").write_bytes(b"no graph")
    with pytest.raises(HpmlError, match="masked.onnx: cannot be converted to FP16"):
        to_fp16(tmp_path / "masked.onnx", tmp_path / "half.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["masked.onnx"]


def test_static_batch_is_baked_in(tmp_path):
    if reason := engines.get("onnxruntime").unavailable():
        pytest.skip(reason)
    export(tiny_resnet(), tmp_path / "static.onnx", dynamic_batch=False)
    engine = engines.get("onnxruntime")(threads=1)
    engine.load(tmp_path / "static.onnx")
    assert engine.run((images(2),))[0].shape == (2, 10)
    with pytest.raises(HpmlError, match=r"\[2, 3, 16, 16\]"):
        engine.run((images(3),))


def test_a_failed_export_leaves_the_old_file_and_nothing_else(tmp_path):
    class Refuses(torch.nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(HpmlError, match="model.onnx: Refuses cannot be exported") as caught:
        export(Refuses(), path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_example_batch_of_one_is_refused(tmp_path):
    with pytest.raises(HpmlError, match="batch of 2 or more"):
        export_onnx(tiny_resnet(), (torch.zeros(1, 3, SIDE, SIDE),), tmp_path / "x.onnx", input_names=["image"],
                    output_names=["logits"])


def test_export_prints_nothing(tmp_path, capfd):
    export(tiny_resnet(), tmp_path / "quiet.onnx")
    assert capfd.readouterr() == ("", "")


def test_parity_figures():
    reference = np.array([[1.0, 2.0, -4.0], [3.0, 0.0, 1.0]])
    found = parity(reference, reference + [[0.0, 0.0, 0.4], [0.0, 0.0, 0.0]], atol=1e-3, rtol=0.2)
    assert found["max_abs"] == pytest.approx(0.4) and found["max_rel"] == pytest.approx(0.1)
    assert found["top1_agreement"] == 1.0 and found["cosine"] < 1.0 and found["passed"]
    assert found["tolerance"] == {"atol": 1e-3, "rtol": 0.2}
    assert not parity(reference, reference + 0.5, atol=1e-3, rtol=0.1)["passed"]
    assert parity(reference, reference[:, ::-1], atol=1, rtol=1)["top1_agreement"] == 0.5


def test_parity_of_nan_fails_without_a_nan_in_the_record():
    reference = np.ones((2, 3))
    found = parity(reference, np.full((2, 3), np.nan), atol=1, rtol=1)
    assert found["passed"] is False and found["max_abs"] is None and found["cosine"] is None


def test_parity_refuses_other_shapes():
    with pytest.raises(HpmlError, match=r"\(2, 4\)"):
        parity(np.ones((2, 3)), np.ones((2, 4)), atol=1, rtol=1)
    with pytest.raises(HpmlError):
        parity((np.ones(2), np.ones(2)), (np.ones(2),), atol=1, rtol=1)


def test_parity_of_several_outputs_takes_the_worst():
    embeddings = np.eye(4, 6)
    found = parity((embeddings, np.zeros(3)), (embeddings[[0, 1, 3, 2]], np.zeros(3)), atol=1e-5, rtol=1e-5)
    assert found["cosine"] == 0.0 and found["top1_agreement"] == 0.5 and not found["passed"]


def test_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "note.onnx"
    path.write_text("this is not a model")
    with pytest.raises(HpmlError, match="note.onnx") as caught:
        graph_ops(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("equation", "weight", "becomes"), [
    ("ibh,hnd->ibnd", (6, 2, 3), ["MatMul", "Reshape"]),  # XLNet's projections of queries, keys and values
    ("ibnd,hnd->ibh", (5, 2, 3), ["MatMul", "Reshape"]),  # and of what attention gives
    ("ab,bc->ac", (6, 4), ["MatMul"]),
    ("ibnd,snd->ibns", (2, 2, 3), ["Einsum"]),  # n stands on all sides: no product of two matrices
])
def test_a_product_with_a_weight_written_as_einsum_becomes_a_matmul(tmp_path, equation, weight, becomes):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from hpml.einsum import weights_as_matrices

    left = equation.split(",")[0]
    inputs = np.random.default_rng(0).standard_normal({"ibh": (4, 3, 6), "ibnd": (4, 3, 2, 3), "ab": (3, 6)}[left], dtype=np.float32)
    value = np.random.default_rng(1).standard_normal(weight, dtype=np.float32)
    wanted = np.einsum(equation, inputs, value)
    body = helper.make_graph(
        [helper.make_node("Einsum", ["x", "w"], ["y"], name="product", equation=equation)], "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *inputs.shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *wanted.shape[1:]])], [numpy_helper.from_array(value, "w")])
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    assert weights_as_matrices(path) == (becomes != ["Einsum"])
    onnx.checker.check_model(str(path))
    assert sorted({node.op_type for node in onnx.load(path).graph.node}) == becomes
    engine = engines.get("onnxruntime")(threads=1)
    engine.load(path)
    np.testing.assert_allclose(engine.run((inputs,))[0], wanted, rtol=1e-5, atol=1e-5)
