"""The tables of a workload's own notebook, and masks painted over pictures."""

import dataclasses
import re

import numpy as np
from test_tables import fit, make

from hpml import plot, tables_training


def test_parts_are_one_line_each_and_leave_quality_runs_out():
    answer, step = make(phase="infer", per_s=800.0), make(per_s=50.0)
    lines = tables_training.parts([answer, step, make(status="oom", reason="no memory"), fit(0.9)]).splitlines()
    assert len(lines) == 3 and "samples/s" in lines[0]
    assert f"infer, batch={answer.knobs['batch']}" in lines[1] and "train, device=cpu" in lines[2]
    assert f"{step.stats['per_s']:.1f}" in lines[2] or f"{step.stats['per_s']:.0f}" in lines[2]
    again = dataclasses.replace(step, stats={**step.stats, "per_s": 123.0})  # the same round, measured once more
    assert len(tables_training.parts([step, again]).splitlines()) == 2 and "123" in tables_training.parts([step, again])
    assert tables_training.parts([]) == "nothing measured"
    itself = make(arm="A", technique="noise_floor")
    assert tables_training.parts([itself]) == "nothing measured", "a case against itself is no part of the work"


def test_rounds_of_a_part_are_one_line_and_preprocessing_is_shown_where_it_is_beyond_the_noise():
    def answers(more_s, iqr=0.001):
        found = [make(phase="infer", number=number) for number in range(len(more_s))]
        for record, more in zip(found, more_s, strict=True):
            record.stats = {**record.stats, "per_s": 100.0 + record.protocol["round"],
                            "with_copies": {"median": 0.02, "iqr": iqr}, "with_preprocessing": {"median": 0.02 + more, "iqr": iqr}}
        return tables_training.parts(found).splitlines()

    assert len(answers([0.005, 0.006, 0.007])) == 2
    titles, line = answers([0.005, 0.006, 0.007])
    assert titles.split()[:2] == ["case", "rounds"] and " 3 " in line and " 101 " in line, "the median of the rounds"
    assert line.split()[-1] == "6.00"
    assert answers([0.005])[1].split()[-1] == "5.00" and answers([0.005], iqr=0.01)[1].endswith("below the noise")
    for shares in ([-0.005], [-0.005, -0.006, -0.007], [0.02, -0.015, 0.003]):
        assert answers(shares)[1].endswith("below the noise")


def test_fits_are_one_column_each_with_the_other_figures_of_the_quality():
    first, second = fit(0.62, changes={"precision": "fp32"}), fit(0.71, changes={"precision": "bf16"}, order=1)
    for record, pet in ((first, 0.6), (second, 0.8)):
        record.quality = {**record.quality, "metric": "mean IoU", "details": {"IoU pet": pet}}
    table = tables_training.fits([first, make(), second])
    rows = {line[:20].strip(): line.split()[-2:] for line in table.splitlines()}
    first.quality["details"] = {"mean error px": 3.217}
    assert re.search(r"mean error px +3\.22", tables_training.fits([first]))
    assert rows["mean IoU"] == ["62.0%", "71.0%"] and rows["IoU pet"] == ["60.0%", "80.0%"] and rows["chance"] == ["10.0%", "10.0%"]
    assert tables_training.fits([make()]) == "no training finished"


def test_distances_say_how_many_are_near_enough():
    axes = plot.distances([0.5, 1.0, 3.0, 50.0], 4.0)
    assert "75 % are within 4 px; half are within 2.0 px, the mean is 13.6 px" in axes.figure.hpml_alt and axes.get_xscale() == "log"


def test_places_are_marked_around_the_first_one():
    image = np.full((40, 60, 3), 100, np.uint8)
    cut = plot.marked(image, [(55.0, 5.0), (50.0, 8.0)], 20)
    assert cut.shape == (80, 80, 3) and (cut[0, 0] == 100).all()
    for x, y in ((55, 5), (50, 8)):  # the cut begins at column 40 and row 0; rings have a radius of 14
        assert (cut[4 * y, 4 * (x - 40) - 14] != 100).any() and (cut[4 * y, 4 * (x - 40)] == 100).all()


def test_a_mask_is_painted_over_its_picture_and_the_ground_stays():
    image = np.full((2, 3, 3), 100, np.uint8)
    painted = plot.masked(image, np.array([[0, 1, 2], [1, 1, 1]], np.uint8))
    assert painted.dtype == np.uint8 and (painted[1] == 100).all() and (painted[0, 1] == 100).all()
    assert painted[0, 0].sum() < 300 < painted[0, 2].sum()  # dark and light
