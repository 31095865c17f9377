"""A training step under its profilers, in a real child; and copies that a CPU does not make."""

from pathlib import Path

import pytest

import hpml
from hpml import compare, env, tables

TINY = str(Path(__file__).parent.parent / "tiny.py")


@pytest.fixture(autouse=True)
def session(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path / "results"))
    hpml.use(tier="smoke", run_id="here")
    yield
    hpml.use(tier="smoke")


def test_a_profile_names_what_ran_and_is_no_comparison():
    results = hpml.run(hpml.case(TINY, phase="profile"))
    record = results.records[0]
    assert record.status == "ok", record.reason
    functions = {row["function"] for row in record.actual["functions"]}
    assert any("conv2d" in name for name in functions) and any("run_backward" in name for name in functions)
    assert not any(name.startswith("/") or " at 0x" in name for name in functions)
    operators = [row["operator"] for row in record.actual["operators"]]
    assert any("conv" in name for name in operators)
    own = [row["own_s"] for row in record.actual["operators"]]
    assert own == sorted(own, reverse=True) and min(own) >= 0
    assert set(record.actual["overhead"]) == {"cProfile", "torch.profiler"}
    assert sum(record.actual["flops"].values()) > 0 and any("convolution" in name for name in record.actual["flops"])
    trace = env.run_dir("here") / record.actual["trace"]
    assert 1000 < trace.stat().st_size < 5e6
    assert results.rows() == [] and compare.rows(results.records) == []
    assert tables.text(results.rows()) == "no cases"


@pytest.mark.parametrize(("knobs", "said"), [
    ({"pin_memory": True}, "pin_memory: no GPU in this case"), ({"non_blocking": True}, "non_blocking: no GPU in this case")])
def test_copies_that_a_cpu_does_not_make_are_not_measured(knobs, said):
    results = hpml.run([hpml.case(TINY), hpml.case(TINY, **knobs)])
    plain, asked = sorted(results.records, key=lambda r: r.case["order"])
    assert plain.status == "ok" and asked.status == "unsupported" and said in asked.reason and asked.stats is None
    assert plain.memory["steps_mib"] >= 0
