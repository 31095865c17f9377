"""Rendered rallies as videos: the truth is the scenes', a cut changes the scene, nothing is made twice, and the folder becomes a set."""

import numpy as np
import pytest

from hpml.data import court, film, points, prepare, video
from hpml.env import HpmlError

pytest.importorskip("av")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("film")
    film.film(root, clips=2, frames=9, cuts=1, width=128, seed=4)
    return root


def test_video_and_truth_belong_together(folder):
    assert video.facts(folder / "video/clip1.mp4") == video.Facts(128, 72, 30.0, 9)
    table, wrong = points.read(folder / "csv/clip1_ball.csv", clip="clip1", size=(128, 72))
    assert list(table["frame"]) == list(range(9)) and wrong == []
    scene = court.Scene(np.random.default_rng([4, film.STREAM, 1, 0]), 128, 5)
    shown = [frame for _, _, frame in video.frames(folder / "video/clip1.mp4")]
    for i in range(5):
        frame, (x, y, visible) = scene.frame(i)
        assert bool(table["visible"][i]) == bool(visible)
        assert not visible or (table["x"][i], table["y"][i]) == pytest.approx((x, y), abs=1e-3)
        assert np.abs(frame.astype(int) - shown[i]).mean() < 8
    steps = [np.abs(a.astype(int) - b).mean() for a, b in zip(shown, shown[1:], strict=False)]
    assert int(np.argmax(steps)) == 4, "the cut lies before frame 5"


def test_what_is_there_is_kept_and_numbers_are_checked(folder, capsys):
    before = (folder / "video/clip0.mp4").stat().st_mtime_ns
    film.film(folder, clips=1, frames=9, cuts=1, width=128, seed=4)
    assert (folder / "video/clip0.mp4").stat().st_mtime_ns == before and "is there" in capsys.readouterr().err
    for wrong in ({"clips": 0}, {"frames": 3, "cuts": 1}, {"width": 32}, {"cuts": -1}):
        with pytest.raises(HpmlError, match="give at least 1 clip"):
            film.film(folder, **wrong)


def test_the_folder_becomes_a_training_set(folder, tmp_path):
    found = prepare.prepare(folder, tmp_path / "set")
    clips = list(found["clips"].values())
    assert [one["frames"] for one in clips] == [9, 9] and {one["part"] for one in clips} == {"train", "test"}
    assert (tmp_path / "set/images/clip0/8.jpg").is_file() and found["remarks"] == []


@pytest.mark.parametrize("other", [{"cuts": 0}, {"cuts": 2}, {"frames": 10}, {"width": 64}, {"seed": 5}])
def test_a_film_of_other_settings_is_not_taken_for_the_one_that_is_asked_for(folder, other):
    before = (folder / "video/clip0.mp4").read_bytes()
    with pytest.raises(HpmlError, match="clip0.mp4 is there, made with other settings .*: give another folder"):
        film.film(folder, **{"clips": 1, "frames": 9, "cuts": 1, "width": 128, "seed": 4, **other})
    assert (folder / "video/clip0.mp4").read_bytes() == before
    film.film(folder.parent / "odd", frames=2, width=65)
    film.film(folder.parent / "odd", frames=2, width=65)  # the file's width is the next even one
    with pytest.raises(HpmlError, match="seed -1: must be 0 or more"):
        film.film(folder, seed=-1)
