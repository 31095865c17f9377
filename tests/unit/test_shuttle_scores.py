"""Figures of the localizer, against examples counted by hand."""

import numpy as np
import pytest

from hpml.workloads import _mining as mining
from hpml.workloads import _pixels as px

# x, y, visible; answers: x, y, logit. Distances: 3 (3, 0), 5 (3, 4), 0, none, none, 4 exactly.
LABELS = np.float32([[100, 50, 1], [200, 60, 1], [300, 70, 1], [0, 0, 0], [0, 0, 0], [400, 80, 1]])
ANSWERS = np.float32([[103, 50, 2], [203, 64, 2], [300, 70, -2], [9, 9, 2], [9, 9, -2], [400, 84, 0.1]])


def test_tracknets_five_outcomes():
    assert px.outcomes(ANSWERS, LABELS, 4.0) == {"TP": 2, "FP1": 1, "FP2": 1, "FN": 1, "TN": 1}
    assert px.outcomes(ANSWERS, LABELS, 3.5) == {"TP": 1, "FP1": 2, "FP2": 1, "FN": 1, "TN": 1}
    assert sum(px.outcomes(ANSWERS, LABELS, 0.0).values()) == len(LABELS)


def test_precision_counts_far_places_and_recall_does_not():
    found = px.rates({"TP": 2, "FP1": 1, "FP2": 1, "FN": 1, "TN": 1})
    assert found == {"precision": pytest.approx(2 / 4), "recall": pytest.approx(2 / 3), "F1": pytest.approx(4 / 7)}
    assert px.rates(dict.fromkeys(px.OUTCOMES, 0)) == {"precision": 0.0, "recall": 0.0, "F1": 0.0}


def test_four_pixels_are_those_of_1280():
    assert (px.limit(1280), px.limit(640), px.limit(1920)) == (4.0, 2.0, 6.0)
    whole = px.scores(ANSWERS, LABELS, 1280)
    assert whole["within 4 px at 1280"] == pytest.approx(3 / 4)  # 0, 3, 4 of 0, 3, 4, 5: the place alone, called visible or not
    half = px.scores(ANSWERS / [2, 2, 1], LABELS / [2, 2, 1], 640)
    assert (half["within 4 px at 1280"], half["F1"]) == (whole["within 4 px at 1280"], whole["F1"])
    assert whole["F1"] == pytest.approx(4 / 7) and px.scores(ANSWERS, LABELS, 640)["F1"] < whole["F1"]
    assert half["mean error px"] == pytest.approx(whole["mean error px"] / 2)


def test_errors_are_of_visible_frames_only():
    found = px.scores(ANSWERS, LABELS, 1280)
    assert found["mean error px"] == pytest.approx(3.0) and found["median error px"] == pytest.approx(3.5)
    assert found["P95 error px"] == pytest.approx(4.85)  # 0, 3, 4, 5: rank 2.85 of 0 to 3
    assert found["visible or not"] == pytest.approx(4 / 6) and found["always visible"] == pytest.approx(4 / 6)
    assert found["visibility F1"] == pytest.approx(2 * 3 / (4 + 4))
    nothing = px.scores(ANSWERS[3:5], LABELS[3:5], 1280)
    assert nothing["mean error px"] == 0 and nothing["within 4 px at 1280"] == 0 and nothing["F1"] == 0


def test_hard_examples_are_drawn_more_often_and_none_is_forgotten():
    errors = np.array([0.0, 1.0, 1.0, 2.0])
    found = mining.chances(errors)
    assert found.sum() == pytest.approx(1) and found.tolist() == pytest.approx([1 / 8, 1 / 4, 1 / 4, 3 / 8])
    assert mining.chances(np.full(5, 3.0)).tolist() == pytest.approx([0.2] * 5)
    assert mining.chances(np.zeros(4)).tolist() == mining.chances(np.full(4, np.nan)).tolist() == [0.25] * 4
    unknown = mining.chances(np.array([np.nan, 0.0, 2.0]))
    assert unknown[1] < unknown[0] < unknown[2]
    one = mining.chances(np.array([1e9, *np.ones(99)]))
    assert 0.1 < one[0] < 0.2 and one[1:].min() > 0.8 / 100
