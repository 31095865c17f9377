"""A training step under its profilers, in a real child; and copies that a CPU does not make."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

import hpml
from hpml import compare, env, profiling, tables

TINY = str(Path(__file__).parent.parent / "tiny.py")


pytestmark = pytest.mark.usefixtures("smoke_session")


def test_a_profile_names_what_ran_and_is_no_comparison():
    results = hpml.run(hpml.case(TINY, phase="profile"))
    record = results.records[0]
    assert record.status == "ok", record.reason
    functions = {row["function"] for row in record.actual["functions"]}
    assert any("conv2d" in name for name in functions) and any("run_backward" in name for name in functions)
    assert not any(name.startswith("/") or " at 0x" in name for name in functions)
    assert any(row["function"].endswith("tiny.py:__getitem__") for row in record.actual["loading"])
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


@pytest.mark.parametrize("phase", ["profile", "train", "data"])
def test_too_few_samples_for_a_batch_is_one_line_and_no_endless_search(phase):
    record = hpml.run(hpml.case(TINY, phase=phase, train_samples=6, batch=8), rounds=1).records[0]
    assert (record.status, record.reason) == ("failed", "train_samples=6 is less than one batch of 8")


def _event(key, where, host_us, device_us, count=2):
    return SimpleNamespace(key=key, device_type=SimpleNamespace(name=where), count=count, self_cpu_time_total=host_us,
                           self_device_time_total=device_us)


def test_operators_of_a_gpu_are_ordered_by_their_time_there_and_its_kernels_are_not_counted_again():
    events = [_event("cudaLaunchKernel", "CPU", 9e4, 0), _event("aten::add_", "CPU", 100, 4e3), _event("aten::conv", "CPU", 50, 8e3),
              _event("sgemm_128x64", "CUDA", 0, 8e3), _event("aten::empty", "CPU", 3e3, 0)]
    rows = profiling._hottest(events, "cuda")
    assert [row["operator"] for row in rows] == ["aten::conv", "aten::add_", "cudaLaunchKernel", "aten::empty"]
    assert rows[0] == {"operator": "aten::conv", "calls": 1, "own_s": 25e-6, "own_device_s": 4e-3}
    assert [row["operator"] for row in profiling._hottest(events, "cpu")][0] == "cudaLaunchKernel"


def test_a_profile_is_of_steps_and_no_training_by_epochs():
    assert "epochs" not in hpml.case(TINY, phase="profile", fit=True).knobs
    with pytest.raises(hpml.HpmlError, match="unknown knob 'epochs' for phase 'profile'"):
        hpml.case(TINY, phase="profile", epochs=1)


def test_a_profile_of_ddp_runs_in_one_process():
    assert hpml.run(hpml.case(TINY, phase="profile", parallel="ddp")).records[0].status == "ok"
    record = hpml.run(hpml.case(TINY, phase="profile", parallel="ddp", ranks=2, batch=8)).records[0]
    assert record.status == "failed" and "measured in one process only" in record.reason


def test_of_a_disturbed_and_repeated_profile_the_calm_one_is_shown():
    record = hpml.run(hpml.case(TINY, phase="profile"), rounds=1).records[0]
    busy = dataclasses.replace(record, protocol={**record.protocol, "busy": True})
    calm = dataclasses.replace(record, protocol={**record.protocol, "busy": False})
    other = dataclasses.replace(calm, case={**record.case, "key": "other", "order": 1})
    absent = dataclasses.replace(calm, case={**record.case, "key": "absent", "order": 2}, status="unsupported", reason="no GPU", stats=None)
    training = dataclasses.replace(calm, case={**record.case, "phase": "train"})
    assert profiling.profiles([other, busy, calm, absent, training]) == [calm, other]
