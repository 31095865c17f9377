"""Distance from the measured limits: the roofline, and limits that are measured after the figure."""

from dataclasses import replace

import pytest

from hpml import compare, roofline
from hpml.records import Record

RATES = {("matmul", "fp32"): 80e9, ("conv3x3", "fp32"): 100e9, ("memory", None): 20e9}


def limit_records():
    return [Record(run_id="r", status="ok", actual={"value": value}, machine={"id": "m"},
                   case={"workload": "machine", "phase": "limit", "key": kind, "group": "limits", "technique": "limit",
                         "label": kind}, protocol={"round": 0},
                   knobs={"kind": kind, "dtype": dtype or "any", "device": "cpu"}) for (kind, dtype), value in RATES.items()]


def step(limit):
    """A step of 0.1 s that has to do a billion operations: a tenth of the limit."""
    return Record(run_id="r", status="ok", machine={"id": "m"}, limit=limit, protocol={"round": 0},
                  case={"workload": "resnet50", "phase": "train", "key": "a", "group": "g", "technique": "precision", "tier": "cpu",
                        "label": "a", "order": 0, "baseline": "a", "differs_in": []},
                  knobs={"precision": "fp32", "device": "cpu"}, samples={"unit": "s", "items": 1, "values": [0.1]},
                  stats={"n": 1, "median": 0.1, "p99": 0.1, "per_s": 10.0, "center_s": 0.1})


def test_floor_is_the_larger_of_two_times():
    best = {("matmul", "fp32"): 80e9, ("conv3x3", "fp32"): 100e9, ("memory", None): 20e9, ("matmul", "int8"): 400e9}
    assert roofline.floor(flops=1e9, nbytes=1e6, dtype="fp32", limits=best) == {"bound": "compute", "floor_s": 0.01}
    assert roofline.floor(flops=1e6, nbytes=1e9, dtype="fp32", limits=best) == {"bound": "memory", "floor_s": 0.05}
    assert roofline.floor(flops=4e9, nbytes=1, dtype="int8", limits=best) == {"bound": "compute", "floor_s": 0.01}


def test_floor_of_what_was_not_measured_is_none():
    fp32 = {("matmul", "fp32"): 1.0, ("memory", None): 1.0}
    assert roofline.floor(flops=1, nbytes=1, dtype="bf16", limits=fp32) is None
    assert roofline.floor(flops=1, nbytes=1, dtype="fp32", limits={("matmul", "fp32"): 1.0}) is None
    assert roofline.floor(flops=1, nbytes=1, dtype="fp32", limits={}) is None


def test_the_best_rate_of_each_kind_stands_and_a_failed_one_is_none():
    slower = limit_records()[0]
    slower.actual = {"value": 1.0}
    failed = replace(limit_records()[1], status="unsupported", reason="no BF16", actual={})
    assert roofline.best([*limit_records(), slower, failed]) == {"cpu": RATES, "cuda": {}}


def test_limits_measured_after_a_figure_give_it_its_distance():
    work = {"flops": 1e9, "bytes": 1e6}
    unknown, known = step({**work, "bound": None, "percent": None}), step({**work, "bound": "memory", "percent": 42.0})
    [row] = compare.rows([unknown])
    assert row.limit_percent is None and row.limit_bound is None
    [row] = compare.rows([unknown, *limit_records()])
    assert (row.limit_percent, row.limit_bound) == (pytest.approx(10.0), "compute")
    [row] = compare.rows([known, *limit_records()])
    assert (row.limit_percent, row.limit_bound) == (pytest.approx(10.0), "compute"), "its own run did not reach these limits"
    [row] = compare.rows([step({**work, "bound": "memory", "percent": 4.0}), *limit_records()])
    assert (row.limit_percent, row.limit_bound) == (4.0, "memory"), "its own run reached further than these"
    [row] = compare.rows([step(None), *limit_records()])
    assert row.limit_percent is None
