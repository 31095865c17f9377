"""Figures beyond one score, and studies that are left for notebooks."""

import numpy as np
import pytest

from hpml import env, scoring, studies
from hpml.env import HpmlError


def test_a_paired_difference_sees_what_seeds_hide():
    one = np.array([0.50, 0.60, 0.70, 0.80, 0.90])
    found = scoring.paired_difference(one, one + 0.02)
    assert found["mean"] == pytest.approx(0.02) and found["low"] == pytest.approx(0.02) and found["n"] == 5
    noise = scoring.paired_difference(one, one[::-1])
    assert noise["low"] < 0 < noise["high"]
    assert scoring.paired_difference([0.1], [0.4])["low"] == -np.inf


def test_confidence_that_holds_has_no_calibration_error():
    random = np.random.default_rng(0)
    sure = random.uniform(0.5, 1, 20_000)
    honest, boasting = random.random(20_000) < sure, random.random(20_000) < sure - 0.3
    assert scoring.by_confidence(honest, sure)["ece"] < 0.02
    found = scoring.by_confidence(boasting, sure)
    assert found["ece"] == pytest.approx(0.3, abs=0.02)
    assert sum(row["n"] for row in found["bins"]) == 20_000 and all(row["from"] <= row["confidence"] <= row["to"] for row in found["bins"])


def test_the_boundary_sees_a_shift_that_the_inside_hides():
    true = np.zeros((64, 64), bool)
    true[8:56, 8:56] = True
    said = np.roll(true, 2, axis=1)
    whole = scoring.mask_ious(true[None].astype(int), said[None].astype(int), 2)[0, 1]
    assert whole == pytest.approx(46 / 50) and scoring.boundary_iou(true, said, 2) < 0.7
    assert scoring.boundary_iou(true, true, 2) == 1.0 and scoring.boundary_iou(~true & true, ~true & true, 2) is None
    assert scoring.rim(true, 2).sum() == 48 * 48 - 44 * 44
    assert not scoring.rim(np.ones((9, 9), bool), 2).any(), "the picture's own edge is no outline"
    assert np.isnan(scoring.mask_ious(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), 2)[0, 1])


def test_a_study_is_read_where_it_was_written_and_a_damaged_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    assert studies.read("never") is None and "`make it` makes this study" in studies.text("never", "make it")
    facts = {"tier": "smoke", "data": "points (stand-in)", "n": 1200, "knobs": {"epochs": 1}, "rows": [{"way": "a", "value": "1 %"}],
             "says": ["a is not b"]}
    path = studies.write("mine", facts)
    assert studies.read("mine")["rows"] == facts["rows"] and str(tmp_path) in path
    shown = studies.text("mine", "make it")
    assert "points (stand-in), n=1,200, tier smoke; epochs=1 (smoke: not a result)" in shown and shown.endswith("a is not b")
    (tmp_path / "studies" / "mine.json").write_text('{"cut":')
    with pytest.raises(HpmlError, match="damaged"):
        studies.read("mine")


def test_trainings_of_a_study_go_where_results_are_kept_or_are_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    with studies.trainings_aside():
        assert env.results_dir() == tmp_path
    monkeypatch.delenv("HPML_RESULTS")
    before = env.results_dir()
    with pytest.raises(RuntimeError), studies.trainings_aside():
        (aside := env.results_dir()).joinpath("weights").touch()
        raise RuntimeError
    assert aside != before == env.results_dir() and not aside.exists(), "also where a training failed"
