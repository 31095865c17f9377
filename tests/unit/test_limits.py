"""Limits with tiny sizes: units, honest refusals, and the roofline's arithmetic."""

import sys

import pytest

from hpml import env, limits
from hpml.env import HpmlError, Unavailable

SIZES = {"matmul": 128, "conv3x3": (1, 32, 16), "memory": 2**20, "jpeg": 2}
UNITS = {"matmul": "FLOP/s", "conv3x3": "FLOP/s", "memory": "B/s", "jpeg": "images/s"}


@pytest.mark.parametrize("entry", limits.plan("cpu"), ids=lambda entry: "-".join(map(str, entry.values())))
def test_every_entry_of_the_plan_measures_or_says_why(entry):
    try:
        found = limits.measure(**entry, device="cpu", threads=1, seconds=0.02, size=SIZES[entry["kind"]])
    except Unavailable as reason:
        assert str(reason) and "\n" not in str(reason)
        assert entry["dtype"] in ("bf16", "int8") or env.missing(entry["engine"])
        return
    assert found["unit"] == UNITS[entry["kind"]] and found["ran"]
    assert len(found["values"]) >= 3 and all(value > 0 for value in found["values"])
    assert found["value"] == max(found["values"])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["matmul", "conv3x3"])
def test_int8_is_really_int8(engine, kind):
    pytest.importorskip(engine)
    found = limits.measure(kind=kind, dtype="int8", engine=engine, threads=1, seconds=0.01, size=SIZES[kind])
    assert "QLinear" in found["ran"] or "u8" in found["ran"] or "i8" in found["ran"]


def test_plans():
    assert {"kind": "matmul", "dtype": "int8", "engine": "openvino"} in limits.plan("cpu")
    cuda = limits.plan("cuda")
    assert {"kind": "h2d_pinned", "dtype": None, "engine": "torch"} in cuda
    assert {entry["dtype"] for entry in cuda} == {"fp32", "tf32", "bf16", "fp16", "int8", None}
    with pytest.raises(HpmlError, match="tpu"):
        limits.plan("tpu")


@pytest.mark.parametrize("wrong", [{"kind": "sort"}, {"kind": "matmul", "dtype": "fp12"},
                                   {"kind": "matmul", "engine": "jax"}, {"kind": "memory", "device": "tpu"}])
def test_unknown_values_are_refused(wrong):
    with pytest.raises(HpmlError, match="known: "):
        limits.measure(**{"dtype": "fp32", "seconds": 0.01, **wrong})


def test_true_reasons(monkeypatch):
    with pytest.raises(Unavailable, match="bf16"):
        limits.measure(kind="matmul", dtype="bf16", engine="onnxruntime", seconds=0.01, size=64)
    with pytest.raises(Unavailable, match="CUDA only"):
        limits.measure(kind="h2d_pinned", seconds=0.01, size=1024)
    with pytest.raises(Unavailable, match="CUDA only"):
        limits.measure(kind="matmul", dtype="fp16", seconds=0.01, size=64)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Unavailable, match="openvino is not installed"):
        limits.measure(kind="matmul", dtype="fp32", engine="openvino", seconds=0.01, size=64)
    monkeypatch.setattr(env, "gpus", list)
    with pytest.raises(Unavailable, match="no NVIDIA GPU"):
        limits.measure(kind="matmul", dtype="fp32", device="cuda", seconds=0.01, size=64)


@pytest.mark.gpu
@pytest.mark.skipif(bool(env.no_gpu()), reason=str(env.no_gpu()))
@pytest.mark.parametrize("entry", limits.plan("cuda"), ids=lambda entry: "-".join(map(str, entry.values())))
def test_every_entry_of_the_cuda_plan_measures_or_says_why(entry):
    try:
        found = limits.measure(**entry, device="cuda", seconds=0.02, size=SIZES.get(entry["kind"], 2**20))
    except Unavailable as reason:
        assert str(reason) and "\n" not in str(reason)
    else:
        assert found["value"] > 0


@pytest.mark.parametrize("kind, size, work", [("matmul", 10, 2_000), ("conv3x3", (2, 4, 5), 2 * 9 * 2 * 4 * 4 * 5 * 5),
                                              ("memory", 4096, 8192), ("jpeg", 3, 3)])
def test_what_a_call_counts_as(monkeypatch, kind, size, work):
    pytest.importorskip("torch")
    monkeypatch.setattr(limits, "_rates", lambda call, work, seconds: [work])
    assert limits.measure(kind=kind, dtype="fp32", size=size)["value"] == work


def test_a_limit_that_would_take_too_long_is_measured_smaller_and_says_so(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(limits, "PROBES", {"matmul": 16})
    monkeypatch.setattr(limits, "SIZES", {"cpu": {"matmul": 32}})
    assert "size" not in limits.measure(kind="matmul", dtype="fp32", seconds=0.0)["ran"]
    monkeypatch.setattr(limits, "SIZES", {"cpu": {"matmul": 10**7}})
    found = limits.measure(kind="matmul", dtype="fp32", seconds=0.0)
    assert found["value"] > 0 and "size 16, as 10000000 would take" in found["ran"]
