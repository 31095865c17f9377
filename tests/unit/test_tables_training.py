"""The tables of a workload's own notebook, and masks painted over pictures."""

import dataclasses

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


def test_fits_are_one_column_each_with_the_other_figures_of_the_quality():
    first, second = fit(0.62, changes={"precision": "fp32"}), fit(0.71, changes={"precision": "bf16"}, order=1)
    for record, pet in ((first, 0.6), (second, 0.8)):
        record.quality = {**record.quality, "metric": "mean IoU", "details": {"IoU pet": pet}}
    table = tables_training.fits([first, make(), second])
    rows = {line[:20].strip(): line.split()[-2:] for line in table.splitlines()}
    assert rows["mean IoU"] == ["62.0%", "71.0%"] and rows["IoU pet"] == ["60.0%", "80.0%"] and rows["chance"] == ["10.0%", "10.0%"]
    assert tables_training.fits([make()]) == "no training finished"


def test_a_mask_is_painted_over_its_picture_and_the_ground_stays():
    image = np.full((2, 3, 3), 100, np.uint8)
    painted = plot.masked(image, np.array([[0, 1, 2], [1, 1, 1]], np.uint8))
    assert painted.dtype == np.uint8 and (painted[1] == 100).all() and (painted[0, 1] == 100).all()
    assert painted[0, 0].sum() < 300 < painted[0, 2].sum()  # dark and light
