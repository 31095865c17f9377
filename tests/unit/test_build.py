"""Stored engines: built once, checked before they are taken, started in a fresh process."""

from pathlib import Path

import numpy as np
import pytest

import hpml
from hpml import engines, env, records, stored, workloads
from hpml.env import HpmlError

torch = pytest.importorskip("torch")
TINY = str(Path(__file__).parent.parent / "tiny.py")


pytestmark = pytest.mark.usefixtures("smoke_session")


def files():
    return [path for path in (env.run_dir("here") / "models").iterdir() if path.suffix in (".ort", ".blob", ".pt", ".pt2")]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torchscript", "compile"])
def test_a_stored_engine_is_built_once_and_gives_a_first_result(engine):
    if reason := engines.get(engine).unavailable():
        pytest.skip(reason)
    one = hpml.case(TINY, phase="infer", engine=engine, stored=True)
    first = hpml.run(one, rounds=1).records[0]
    assert first.status == "ok" and first.parity["passed"] and first.stats["n"] >= 3, first.reason
    cold = first.cold
    assert cold["first_result_s"] == pytest.approx(cold["load_s"] + cold["first_call_s"])
    assert cold["process_start_to_first_result_s"] > cold["first_result_s"]
    built = [r for r in records.read(env.run_dir("here") / "records.jsonl") if r.case["phase"] == "build"]
    assert [r.status for r in built] == ["ok"] and built[0].cold["build_s"] > 0
    assert [path.name for path in files()] == [built[0].actual["stored_file"]] == [first.actual["stored_file"]]
    assert files()[0].stat().st_size == built[0].cold["bytes"] == cold["bytes"]
    if engine != "onnxruntime":
        return
    hpml.run(one.but(stored=True), rounds=1, fresh=True)
    assert len([r for r in records.read(env.run_dir("here") / "records.jsonl") if r.case["phase"] == "build"]) == 1, "built once"
    damaged = bytearray(files()[0].read_bytes())
    damaged[len(damaged) // 2] ^= 255
    files()[0].write_bytes(damaged)
    job = {"case": first.case, "knobs": one.knobs, "run_dir": str(env.run_dir("here")), "weights_sha256": None}
    with pytest.raises(HpmlError, match="stored engine tiny-onnxruntime-.* is damaged"):
        stored.find(job, workloads.get(TINY))
    assert hpml.run(one, rounds=1, fresh=True).records[0].status == "ok", "a damaged one is built again"
    next((env.run_dir("here") / "models").glob("tiny-*.onnx")).write_bytes(b"another graph")
    with pytest.raises(HpmlError, match="is stale: tiny-.*onnx is another graph"):
        stored.find(job, workloads.get(TINY))


def test_what_stores_nothing_says_so(capsys):
    base = hpml.case(TINY, phase="build")
    record = hpml.run(base, rounds=1).records[0]
    assert record.status == "unsupported" and record.reason.startswith("eager executes the module as it is: it builds nothing")
    record = hpml.run(hpml.case(TINY, phase="infer", stored=True), rounds=1).records[0]
    assert record.status == "unsupported" and record.samples is None and "builds nothing" in record.reason


def test_a_build_beyond_the_limit_leaves_no_engine(monkeypatch):
    if reason := engines.get("compile").unavailable():
        pytest.skip(reason)
    from hpml import rounds

    monkeypatch.setitem(rounds.COMPILE_LIMIT_S, "smoke", 0.2)
    record = hpml.run(hpml.case(TINY, phase="infer", engine="compile", stored=True), rounds=1).records[0]
    assert record.status == "skipped" and "compiling took more than 0.2 s at this tier" in record.reason and not files()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torchscript"])
def test_a_file_that_is_no_engine_is_one_line(engine, tmp_path):
    """The digest guards the study; a file that is handed to an engine itself must not crash it either."""
    if reason := engines.get(engine).unavailable():
        pytest.skip(reason)
    path = tmp_path / f"stray{engines.get(engine).SUFFIX}"
    path.write_bytes(b"not an engine")
    with pytest.raises(HpmlError, match="stray") as caught:
        engines.get(engine)(threads=1).load_stored(path, (torch.zeros(2, 3),))
    assert "\n" not in str(caught.value)


def test_a_static_engine_serves_other_sizes_in_pieces_of_its_own():
    from hpml.engines.compile import in_pieces

    seen = []

    def call(inputs):
        seen.append(len(inputs[0]))
        return (inputs[0] * 2,)

    given = np.arange(7.0)
    np.testing.assert_array_equal(in_pieces(call, (given,), 3)[0], given * 2)
    assert seen == [3, 3, 3]
