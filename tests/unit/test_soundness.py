"""Charts of whether a training is sound: what they claim of made-up records."""

import pytest
from matplotlib import pyplot
from test_tables import fit as fit_record

from hpml import plot


@pytest.fixture(autouse=True)
def close():
    yield
    pyplot.close("all")


def with_gradients(first, last):
    record = fit_record(0.5)
    record.actual = {**record.actual, "gradients": [[[f"layer{i}", x] for i, x in enumerate(step)] for step in (first, last)]}
    return record


def test_gradients_name_what_vanished():
    axes = plot.gradients(with_gradients([0.5, 0.0, 0.0, 2.0], [0.5, 0.1, 0.2, 200.0]))
    assert "4 of 4 layers have a gradient, within a factor of 2,000" in " ".join(axes.get_title(loc="left").split())
    assert "first step: 0.5 at the first layer, 2 at the last, 2 without gradient" in axes.figure.hpml_alt
    assert axes.get_yscale() == "log" and min(axes.lines[0].get_ydata()) > 0


def test_a_net_without_gradient_is_said():
    assert "No layer has a gradient" in plot.gradients(with_gradients([0.0, 0.0], [0.0, 0.0])).figure.hpml_alt


def test_reliability_measures_the_distance_from_the_diagonal():
    axes = plot.reliability([0] * 10, [0] * 5 + [1] * 5, [0.95] * 10)
    assert "45 points more sure than right; expected calibration error 45" in axes.get_title(loc="left").replace("\n", " ")
    assert "95 % sure: 50 % right (n=10)" in axes.figure.hpml_alt


@pytest.mark.parametrize(("losses", "word"), [([6.9, 3.0, 0.4], "falls, from 6.90 to 0.40"), ([6.9, 7.1], "does not fall, from")])
def test_one_batch_is_judged_by_its_loss(losses, word):
    record = fit_record(0.5)
    record.quality["losses"] = losses
    axes = plot.memorised(record)
    assert word in axes.get_title(loc="left") and word in axes.figure.hpml_alt
    assert list(axes.lines[0].get_ydata()) == losses and "top-1" not in axes.figure.hpml_alt
