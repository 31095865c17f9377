"""A model repository for Triton holds the measured graph, and its configuration is one that Triton's published schema knows."""

import base64
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from typer.testing import CliRunner

from hpml import cli
from hpml.env import HpmlError
from hpml.serve import triton
from hpml.serve.settings import Settings

HERE = Path(__file__).parent
TINY = str(HERE.parent / "tiny.py")


@pytest.fixture(scope="module")
def schema():
    """The message ModelConfig, from the schema's published form; its first line says where that is from."""
    lines = (HERE / "triton_model_config.txt").read_text().splitlines()
    file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode("".join(lines[1:])))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("triton")
    patch.setenv("HPML_RESULTS", str(root / "results"))
    yield triton.export(TINY, root / "models", tier="smoke", settings={"max_batch": 4, "max_wait_ms": 2, "queue": 9, "deadline_ms": 150})
    patch.undo()


def parsed(schema, text: str):
    """Raises text_format.ParseError for a name or a type that the schema has not."""
    return text_format.Parse(text, schema())


def test_the_configuration_is_tritons(schema, made):
    found = parsed(schema, (made / "config.pbtxt").read_text())
    assert (found.name, found.backend, found.max_batch_size) == ("tiny", "onnxruntime", 4)
    (taken,), (given,) = found.input, found.output
    kind = schema.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name["TYPE_FP32"].number
    assert (taken.name, taken.data_type, list(taken.dims)) == ("points", kind, [3, 8, 8])
    assert (given.name, given.data_type, list(given.dims), given.label_filename) == ("logits", kind, [3], "labels.txt")
    policy = found.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (9, 150_000)
    assert found.dynamic_batching.max_queue_delay_microseconds == 2000
    assert found.parameters["weights"].string_value == "random"
    assert (made / "labels.txt").read_text().split() == ["a", "b", "c"]


def test_the_graph_takes_any_batch(made):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(made / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        assert session.run(None, {"points": np.zeros((batch, 3, 8, 8), np.float32)})[0].shape == (batch, 3)


@pytest.mark.parametrize(("engine", "device", "words"), [("openvino", "cpu", ("cpu_execution_accelerator", "KIND_CPU")),
                                                         ("tensorrt", "cuda", ("gpu_execution_accelerator", "KIND_GPU"))])
def test_accelerators_are_named_as_triton_names_them(schema, made, engine, device, words):
    text = triton.config('a "name"', made / "1" / "model.onnx", settings=Settings(threads=2, streams=2), engine=engine, device=device,
                         facts={}, labels=[])
    found = parsed(schema, text)
    assert all(word in text for word in words) and found.name == 'a "name"'
    accelerators = found.optimization.execution_accelerators
    assert [one.name for one in (*accelerators.cpu_execution_accelerator, *accelerators.gpu_execution_accelerator)] == [engine]
    assert found.instance_group[0].count == 2 and found.parameters["intra_op_thread_count"].string_value == "2"
    assert not found.HasField("dynamic_batching"), "a batch of one needs no batching"


def test_what_cannot_be_is_one_line(made, tmp_path):
    with pytest.raises(HpmlError, match="is there already"):
        triton.export(TINY, made.parent, tier="smoke")
    with pytest.raises(HpmlError, match="engine 'eager': Triton runs the ONNX graph by onnxruntime, openvino, tensorrt"):
        triton.export(TINY, tmp_path, engine="eager")
    with pytest.raises(HpmlError, match="precision 'bf16': the exported graph computes in fp32, fp16 or int8"):
        triton.export(TINY, tmp_path, precision="bf16")
    with pytest.raises(HpmlError, match="tensorrt' runs on a GPU"):
        triton.export(TINY, tmp_path, engine="tensorrt")
    with pytest.raises(HpmlError, match="is a file: name a folder"):
        triton.export(TINY, made / "config.pbtxt")
    import onnx

    graph = onnx.load(str(made / "1" / "model.onnx"))
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(graph, str(tmp_path / "fixed.onnx"))
    with pytest.raises(HpmlError, match="fixed.onnx: the batch of points is fixed at 2"):
        triton.config("fixed", tmp_path / "fixed.onnx", settings=Settings(), engine="onnxruntime", device="cpu", facts={}, labels=[])


@pytest.mark.parametrize(("precision", "kinds"), [("int8", {"INT8"}), ("fp16", {"FLOAT16"})])
def test_the_graph_for_tensorrt_is_one_that_tensorrt_takes(made, tmp_path, precision, kinds):
    """In its own types; of INT8 no zero point but zero, which every model of signed bytes with ranges around zero has."""
    import onnx

    path = triton.export(TINY, tmp_path, engine="tensorrt", device="cuda", precision=precision, tier="smoke") / "1" / "model.onnx"
    graph = onnx.load(path).graph
    assert kinds <= {onnx.TensorProto.DataType.Name(one.data_type) for one in graph.initializer}
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    assert not any(values[node.input[2]].any() for node in graph.node if node.op_type.endswith("QuantizeLinear"))
    with pytest.raises(HpmlError, match="'fp16' is for a GPU"):
        triton.export(TINY, tmp_path, precision="fp16")


def test_the_command_says_what_it_wrote(made, tmp_path):
    done = CliRunner().invoke(cli.app, ["export-triton", TINY, str(tmp_path), "--tier", "smoke", "--precision", "int8"])
    assert done.exit_code == 0, done.output
    assert "tiny_int8" in done.output and "1/model.onnx, config.pbtxt, labels.txt" in done.output
    assert f"tritonserver --model-repository={tmp_path}" in done.output and "127.0.0.1" in done.output
