"""One contract for every engine: equal results by run and run_bound, true reasons, one-line errors."""

import os
import subprocess
import sys

import numpy as np
import pytest

from hpml import engines, env
from hpml.env import HpmlError, Unavailable

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
FEATURES, CLASSES = 12, 5
RNG = np.random.default_rng(0)
WEIGHT, BIAS = (RNG.standard_normal(shape, dtype=np.float32) for shape in ((FEATURES, CLASSES), (CLASSES,)))

EXAMPLE = (torch.zeros(4, FEATURES),)


def module() -> torch.nn.Module:
    linear = torch.nn.Linear(FEATURES, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(WEIGHT.T.copy()))
        linear.bias.copy_(torch.from_numpy(BIAS))
    return torch.nn.Sequential(linear, torch.nn.ReLU(), torch.nn.Dropout(0.9))


def graph(batch="batch") -> "onnx.ModelProto":
    """The module as ONNX by hand: exporting belongs to test_export.py."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["s"]),
             helper.make_node("Relu", ["s"], ["y"])]
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in (("w", WEIGHT), ("b", BIAS))]
    body = helper.make_graph(nodes, "tiny", [helper.make_tensor_value_info("x", float32, [batch, FEATURES])],
                             [helper.make_tensor_value_info("y", float32, [batch, CLASSES])], weights)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("engines") / "tiny.onnx"
    onnx.save(graph(), path)
    return path


@pytest.fixture(params=["eager", "torchscript", "compile", "onnxruntime", "openvino"])
def name(request):
    if reason := engines.get(request.param).unavailable():
        pytest.skip(reason)
    return request.param


@pytest.fixture(params=["onnxruntime", "openvino"])
def graph_engine(request):
    if reason := engines.get(request.param).unavailable():
        pytest.skip(reason)
    return request.param


def loaded(name, onnx_file, **options):
    engine = engines.get(name)(threads=1, **options)
    engine.load(*((module(), EXAMPLE) if engine.WANTS == "module" else (onnx_file,)))
    return engine


def batch(size, seed=0):
    return (np.random.default_rng(seed).standard_normal((size, FEATURES), dtype=np.float32),)


def expected(inputs):
    return np.maximum(inputs[0] @ WEIGHT + BIAS, 0)


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


def test_names_and_unknown_names():
    assert {"eager", "torchscript", "compile", "onnxruntime", "openvino"} <= set(engines.names())
    with pytest.raises(HpmlError, match="known: .*onnxruntime"):
        engines.get("onxruntime")
    assert set(engines.availability("cpu")) == set(engines.names())


def test_run_takes_any_batch(name, onnx_file):
    engine = loaded(name, onnx_file)
    for size in (1, 3, 7):
        outputs = engine.run(batch(size))
        assert isinstance(outputs, tuple) and len(outputs) == 1
        np.testing.assert_allclose(outputs[0], expected(batch(size)), atol=1e-5)


def test_run_bound_rotates_through_the_batches(name, onnx_file):
    engine = loaded(name, onnx_file)
    batches = [batch(4, seed) for seed in range(3)]
    engine.bind(batches)
    for i in range(7):
        assert engine.run_bound(i) is None
    for i in range(3):
        np.testing.assert_allclose(engine.outputs(i)[0], expected(batches[i]), atol=1e-5)


def test_bound_inputs_outlive_the_callers_arrays(name, onnx_file):
    """Megabytes, made and dropped by the caller: OpenVINO's requests read freed memory unless the engine keeps them."""
    engine = loaded(name, onnx_file)
    engine.bind([(np.full((200_000, FEATURES), value, np.float32),) for value in (1.0, 2.0)])
    for i in range(4):
        engine.run_bound(i)
    last = expected((np.full((1, FEATURES), 2, np.float32),))[0]
    np.testing.assert_allclose(engine.outputs(1)[0][-1], last, atol=1e-4)


def test_arrays_that_are_not_contiguous_are_right_too(name, onnx_file):
    engine = loaded(name, onnx_file)
    inputs = (batch(8)[0][::-2],)
    np.testing.assert_allclose(engine.run(inputs)[0], expected(inputs), atol=1e-5)
    engine.bind([inputs])
    engine.run_bound(0)
    np.testing.assert_allclose(engine.outputs(0)[0], expected(inputs), atol=1e-5)


def test_actual_says_what_runs(name, onnx_file):
    actual = loaded(name, onnx_file).actual
    assert {"provider", "device", "threads", "precision", "hint", "streams", "ops"} <= set(actual)
    assert actual["threads"] == 1 and actual["precision"] == "fp32"


@pytest.mark.parametrize("option", [{"device": "tpu"}, {"precision": "fp8"}, {"hint": "fast"}])
def test_unknown_values_are_refused(name, option):
    with pytest.raises(HpmlError, match="known: "):
        engines.get(name)(**option)


def test_a_wrong_input_is_one_line(name, onnx_file):
    engine = loaded(name, onnx_file)
    for wrong in [(np.zeros((2, FEATURES + 1), np.float32),), (np.zeros((2, FEATURES), np.int64),), ()]:
        with pytest.raises(HpmlError) as caught:
            engine.run(wrong)
        one_line(caught)


def test_a_wrong_input_is_named(graph_engine, onnx_file):
    engine = loaded(graph_engine, onnx_file)
    with pytest.raises(HpmlError, match=r"tiny.onnx: input 'x' has shape .*12.*\[2, 13\]"):
        engine.bind([(np.zeros((2, FEATURES + 1), np.float32),)])
    with pytest.raises(HpmlError, match="input 'x' is float32, an array of float64"):
        engine.run((np.zeros((2, FEATURES)),))


@pytest.mark.parametrize("damage", ["truncated", "half", "text", "empty", "absent", "wrong operator"])
def test_a_damaged_file_is_one_line(graph_engine, tmp_path, damage):
    path, whole = tmp_path / "broken.onnx", graph().SerializeToString()
    if damage == "wrong operator":
        model = graph()
        model.graph.node[0].op_type = "NoSuchOperator"
        whole = model.SerializeToString()
    contents = {"truncated": whole[:-7], "half": whole[: len(whole) // 2], "text": b"hello, not a model\n",
                "empty": b"", "wrong operator": whole}
    if damage in contents:
        path.write_bytes(contents[damage])
    with pytest.raises(HpmlError, match="broken.onnx") as caught:
        engines.get(graph_engine)(threads=1).load(path)
    one_line(caught)


def test_eager_leaves_the_callers_module_as_it_is():
    model, inputs = module(), batch(3)
    engine = engines.get("eager")(threads=1, precision="bf16")
    engine.load(model)
    assert model[0].weight.dtype == torch.float32 and engine.actual["cast"] == ".to(bfloat16)"
    outputs = engine.run(inputs)
    assert outputs[0].dtype == np.float32
    np.testing.assert_allclose(outputs[0], expected(inputs), atol=0.2)
    assert not np.array_equal(outputs[0], expected(inputs)), "bf16 was really used"


def test_eager_channels_last_gives_the_same_result():
    conv, image = torch.nn.Conv2d(3, 4, 3), np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    results, formats = [], {"contiguous": "contiguous_format", "channels_last": "channels_last"}
    for memory_format in ("contiguous", "channels_last"):
        engine = engines.get("eager")(threads=1, memory_format=memory_format)
        engine.load(conv)
        assert engine.actual["memory_format"] == memory_format
        engine.bind([(image,)])
        assert engine.bound[0][0].is_contiguous(memory_format=getattr(torch, formats[memory_format]))
        results.append(engine.run((image,))[0])
    np.testing.assert_allclose(*results, atol=1e-5)


def test_eager_flattens_what_modules_return():
    class Several(torch.nn.Module):
        def forward(self, x):
            return {"out": x + 1, "aux": x * 2}

    engine = engines.get("eager")()
    engine.load(Several())
    out, aux = engine.run((np.ones((2, 2), np.float32),))
    assert out[0, 0] == 2 and aux[0, 0] == 2


class Branching(torch.nn.Module):
    """Torch's script compiler has no *args; a trace takes the branch that its example takes."""

    def forward(self, *args):
        return args[0] + 1 if args[0].sum() > 0 else args[0] - 1


def test_torchscript_captures_by_trace_and_by_script(onnx_file, recwarn):
    for capture in ("trace", "script"):
        engine = loaded("torchscript", onnx_file, capture=capture)
        assert engine.actual["capture"] == capture and isinstance(engine.module, torch.jit.ScriptModule)
        np.testing.assert_allclose(engine.run(batch(3))[0], expected(batch(3)), atol=1e-5)
    assert not [warning for warning in recwarn if "deprecated" in str(warning.message)]
    engine = engines.get("torchscript")(capture="script")
    with pytest.raises(Unavailable, match="torchscript: script refuses Branching: .*args") as caught:
        engine.load(Branching(), EXAMPLE)
    one_line(caught)
    with pytest.raises(HpmlError, match="known: trace, script"):
        engines.get("torchscript")(capture="export")


def test_compile_says_its_shapes_and_whether_it_compiled(onnx_file):
    if reason := engines.get("compile").unavailable():
        pytest.skip(reason)
    engine = loaded("compile", onnx_file)
    assert engine.actual["shapes"] == "static, batch 4" and engine.actual["graph_breaks"] == 0
    assert (engine.compile_s is not None) == (engine.actual["compiled"] == "here")
    frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for size in (1, 4, 9):
        np.testing.assert_allclose(engine.run(batch(size))[0], expected(batch(size)), atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == frames, "other batch sizes are not compiled"


def test_compiling_is_given_up_at_the_limit():
    from hpml.engines.compile import compile_limit

    with pytest.raises(engines.TooLong, match="compiling took more than 0.05 s at this tier"), compile_limit(0.05):
        try:
            while True:
                pass
        except TimeoutError as error:  # a compiler wraps what comes up in its middle
            raise RuntimeError("compiler error") from error
    with compile_limit(None), pytest.raises(ValueError), compile_limit(60):
        raise ValueError


@pytest.mark.parametrize("precision", ["fp16", "tf32", "int8"])
def test_eager_refuses_what_the_cpu_has_not(precision):
    with pytest.raises(Unavailable, match="eager: "):
        engines.get("eager")(precision=precision)


def test_onnxruntime_takes_the_precision_from_the_graph(onnx_file):
    if reason := engines.get("onnxruntime").unavailable():
        pytest.skip(reason)
    with pytest.raises(Unavailable, match="tiny.onnx holds fp32, bf16 was asked"):
        engines.get("onnxruntime")(precision="bf16").load(onnx_file)


def test_onnxruntime_counts_executed_operators(onnx_file):
    if reason := engines.get("onnxruntime").unavailable():
        pytest.skip(reason)
    engine = loaded("onnxruntime", onnx_file)
    assert engine.actual["ops"] is None
    assert sum(engine.executed_ops().values()) >= 1 and engine.actual["ops"] == engine.executed_ops()


def test_onnxruntime_falling_back_is_an_error(onnx_file):
    if reason := engines.get("onnxruntime").unavailable():
        pytest.skip(reason)
    if env.no_gpu() is None:
        pytest.skip("this machine has a GPU: nothing falls back")
    with pytest.raises(engines.ProviderFallback, match="got CPUExecutionProvider, CUDAExecutionProvider was asked"):
        engines.get("onnxruntime")(device="cuda").load(onnx_file)


def test_openvino_sets_and_reports_the_precision(onnx_file):
    if reason := engines.get("openvino").unavailable():
        pytest.skip(reason)
    assert loaded("openvino", onnx_file).actual["runtime_precision"] == "f32"
    try:
        engine = loaded("openvino", onnx_file, precision="bf16")
    except Unavailable as error:
        assert "this CPU runs f32 though bf16 was asked" in str(error)
    else:
        assert engine.actual["runtime_precision"] == "bf16"


def test_openvino_throughput(onnx_file):
    if reason := engines.get("openvino").unavailable():
        pytest.skip(reason)
    engine = loaded("openvino", onnx_file, hint="throughput")
    assert engine.actual["hint"] == "throughput" and engine.actual["streams"] >= 1
    samples, seconds = engine.throughput([batch(4), batch(6)], 0.05)
    assert samples >= 10 and seconds >= 0.05


def test_int8_graphs_are_known(graph_engine, tmp_path):
    from hpml.arithmetic import arithmetic_graph

    path = tmp_path / "int8.onnx"
    onnx.save(arithmetic_graph(kind="matmul", dtype="int8", size=64), path)
    assert engines.graph_precision(path) == "int8"
    with pytest.raises(Unavailable, match="int8.onnx holds int8, fp32 was asked"):
        engines.get(graph_engine)(threads=1).load(path)
    engine = engines.get(graph_engine)(threads=1, precision="int8")
    engine.load(path)
    assert engine.run((np.full((64, 64), 128, np.uint8),))[0].std() == 0


def test_unavailable_names_the_reason(monkeypatch):
    for package, name in (("openvino", "openvino"), ("onnxruntime", "onnxruntime"), ("torch", "eager")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert engines.get(name).unavailable() == f"{package} is not installed"
            with pytest.raises(Unavailable, match=f"{package} is not installed"):
                engines.get(name)()
    assert engines.get("openvino").unavailable("cuda") == "OpenVINO has no CUDA device"
    with pytest.raises(Unavailable, match="no CUDA device"):
        engines.get("openvino")(device="cuda")
    monkeypatch.setattr(env, "gpus", list)
    assert engines.get("eager").unavailable("cuda") == env.no_gpu()


def test_asking_imports_nothing_heavy_and_leaves_cuda_alone():
    code = ("import sys; from hpml import engines, limits, export; engines.availability('cuda'); "
            "print(sorted({'torch', 'onnxruntime', 'openvino', 'numpy', 'onnx'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=env.root())
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_openvino_survives_the_end_of_a_child(onnx_file):
    """Two engines, the earlier one released, then a child ends: with a Core each, its signal kills the process."""
    if reason := engines.get("openvino").unavailable():
        pytest.skip(reason)
    code = ("import gc, signal, subprocess, sys; from hpml import engines\n"
            "signal.signal(signal.SIGCHLD, lambda *_: None)\n"
            "pair = [engines.get('openvino')(threads=1) for _ in range(2)]\n"
            "for engine in pair: engine.load(sys.argv[1])\n"
            "while pair:\n"
            "    engine = pair.pop(0); del engine; gc.collect()\n"
            "    subprocess.run(['true'])\n")
    done = subprocess.run([sys.executable, "-c", code, str(onnx_file)], capture_output=True, text=True, cwd=env.root())
    assert done.returncode == 0, f"ended with code {done.returncode}: {done.stderr}"


def test_openvino_is_imported_without_its_telemetry(tmp_path):
    if reason := engines.get("openvino").unavailable():
        pytest.skip(reason)
    code = ("import sys; from hpml.arithmetic import import_openvino; import_openvino(); "
            "print([m for m in sys.modules if m.startswith('openvino_telemetry.')])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=env.root(),
                          env={**os.environ, "HOME": str(tmp_path)})
    assert done.stdout == "[]\n", done.stdout + done.stderr
    assert not list(tmp_path.iterdir()), "telemetry leaves a client id in the home folder"
