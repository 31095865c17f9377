"""The ladder of versions: one change each, no clip in two parts of its split, and a run that goes on where it stopped."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hpml import plot

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ladder(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path))
    import shuttle_versions

    tiny = {**shuttle_versions.SIZES["quick"], "image": 128, "train": 48, "test": 12, "batch": 8, "epochs": 1}
    monkeypatch.setitem(shuttle_versions.SIZES, "quick", tiny)
    return shuttle_versions


def test_each_version_changes_one_thing_of_the_one_before(ladder):
    found = ladder.versions(ladder.SIZES["whole"], quick=False)
    assert [one["number"] for one in found] == list(range(1, 12)) and [one["after"] for one in found] == [None, *range(1, 11)]
    for one in found[1:]:
        before = found[one["after"] - 1]
        changed = [field.name for field in dataclasses.fields(one["design"])
                   if getattr(one["design"], field.name) != getattr(before["design"], field.name)]
        assert len(changed) + (one["mining"] and not before["mining"]) == 1, one["name"]
    assert found[-1]["design"].neck == "bifpn" and found[-1]["design"].channels == 15
    small = ladder.versions(ladder.SIZES["quick"], quick=True)
    assert {one["design"].backbone for one in small if one["number"] != 8} == {"test_efficientnet"} and small[8]["after"] == 7


def test_no_clip_stands_in_two_parts(ladder):
    sets = ladder.split(ladder.SIZES["quick"])
    clips = {name: set(frames.test_clips) for name, frames in sets.items()}
    assert not clips["train"] & clips["validation"] and not clips["test"] & (clips["train"] | clips["validation"])
    assert len(sets["train"].test_labels) + len(sets["validation"].test_labels) == 48
    assert all(len(frames.test_images) == len(frames.test_clips) == len(frames.test_numbers) for frames in sets.values())


def test_it_goes_on_where_it_stopped_and_leaves_a_study_of_what_there_is(ladder, monkeypatch, capsys, tmp_path):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["shuttle_versions.py", "--quick", "--threads", "1", *arguments])
        ladder.main()
        return capsys.readouterr().out

    first = run("--only", "1,2")  # the largest cell of a map has no gradient
    assert "1 pooling" in first and "2 heat map" in first and "study:" in first
    said = json.loads((tmp_path / "studies/shuttle_versions.json").read_text())["says"]
    assert said[0].startswith("2 of 11 versions; not trained yet: 3 soft-argmax, ")
    again = run("--only", "1,2,11")
    assert "  epoch" in again and again.count("epoch 1:") == 1  # only 11 was trained
    file = tmp_path / "shuttle_versions-quick.json"
    found = json.loads(file.read_text())
    assert [one["number"] for one in found["versions"]] == [1, 2, 11]
    one = found["versions"][1]
    assert one["n"] > 0 and np.isfinite(one["curves"]["validation"]).all() and one["gflop"] > 0 and len(one["quantiles"]) == 7
    assert list((tmp_path / "tensorboard/shuttle_versions-quick").iterdir())
    found["versions"] = [{**one, "number": number, "name": name, "after": after, "change": change}
                         for number, (name, change, after, _) in enumerate(ladder.STEPS, 1)]
    file.write_text(json.dumps(found))
    assert "study:" in run("--table")
    made = json.loads((tmp_path / "studies/shuttle_versions.json").read_text())
    assert len(made["rows"]) == 11 and made["n"] == one["n"] and made["says"][0] == "11 of 11 versions"
    assert any(line.startswith("error before and after mining") for line in made["says"])
    axes = plot.versions(made)
    assert axes.get_title(loc="left").startswith("Median error") and len(axes.get_yticks()) == 11
    assert "most learnt by heart in" in axes.get_title(loc="left").replace("\n", " ") and "history: median" in axes.figure.hpml_alt
    found["size"] = {**found["size"], "epochs": 99}
    file.write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="versions of another size"):
        run("--table")


def test_few_halls_and_many_are_trained_on_as_many_frames(ladder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["shuttle_versions.py", "--quick", "--threads", "1", "--halls"])
    ladder.main()
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split(":")[0] for line in lines] == ["24 frames, 12 of a hall", "24 frames, 4 of a hall"]
    assert all("validation" in line for line in lines)
