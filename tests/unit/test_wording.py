"""Settings in words."""

import pytest

from hpml import wording
from hpml.knobs import KNOBS


@pytest.mark.parametrize(("knobs", "names", "said"), [
    ({"precision": "int8", "engine": "openvino", "quantizer": "nncf", "quantization": "static"}, "precision engine quantizer",
     "INT8 by NNCF in OpenVINO"),
    ({"precision": "fp32", "engine": "onnxruntime", "quantizer": "onnxruntime", "quantization": "static"}, "precision engine quantizer",
     "FP32 in ONNX Runtime"),
    ({"precision": "int8", "engine": "onnxruntime", "quantizer": "onnxruntime", "quantization": "dynamic"}, "precision quantization",
     "dynamic INT8 by ONNX Runtime"),
    ({"precision": "int8", "quantizer": "onnxruntime"}, "precision", "INT8 by ONNX Runtime"),
    ({"precision": "int8", "engine": "tensorrt", "quantizer": "onnxruntime", "scheme": "symmetric"}, "precision engine scheme",
     "symmetric INT8 by ONNX Runtime in TensorRT"),
    ({"engine": "compile"}, "engine", "torch.compile"),
    ({"workers": 1, "precision": "bf16", "memory_format": "channels_last"}, "workers precision memory_format",
     "BF16 + channels-last + 1 loader worker"),
    ({"workers": 0}, "workers", "no loader workers"),
    ({"threads": 0}, "threads", "all threads"),
    ({"parallel": "ddp", "ranks": 2}, "parallel ranks", "DDP on 2 ranks"),
    ({"parallel": "none", "ranks": 1}, "parallel ranks", "one process"),
    ({"replicas": 2}, "replicas", "2 copies"),
    ({"pin_memory": True, "non_blocking": True}, "pin_memory non_blocking", "pinned memory + non-blocking copies"),
    ({"precision": "int8", "keep_fp": 8, "quantizer": "nncf"}, "precision keep_fp quantizer", "INT8 by NNCF + 8 operators in FP32"),
    ({"precision": "int8", "keep_fp": 1}, "precision keep_fp", "INT8 + 1 operator in FP32"),
    ({"precision": "fp32", "keep_fp": 0}, "precision keep_fp", "FP32"),
    ({"keep_fp": 0}, "keep_fp", "no operators in FP32"),
    ({"knob_of_a_reader": 3}, "knob_of_a_reader absent", "knob_of_a_reader=3"),
    ({"precision": "fp8"}, "precision", "precision=fp8"),
    ({}, "", ""),
])
def test_settings_in_the_fields_words(knobs, names, said):
    assert wording.words(knobs, names.split()) == said


def test_every_choice_of_a_said_knob_has_its_word():
    for name, known in wording.WORDS.items():
        if isinstance(known, dict):
            assert set(KNOBS[name].choices) <= set(known) or not KNOBS[name].choices, name
