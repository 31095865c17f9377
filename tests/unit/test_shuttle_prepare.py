"""A video made ready for labelling, and labels with their frames made into a set: what is kept, left out, listed, never replaced."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hpml.data import labelling, points, prepare, shuttle, video
from hpml.env import HpmlError

SIZE = (64, 36)


def film(path, n=6):
    pytest.importorskip("av")
    with video.writer(path, fps=10) as add:
        for i in range(n):
            add(np.full((SIZE[1], SIZE[0], 3), 30 * i + 20, np.uint8))
    return path


def pictures(folder, numbers, size=SIZE):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(np.full((size[1], size[0], 3), 10 * number, np.uint8)).save(folder / f"{number}.jpg")


def csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("Frame,Visibility,X,Y\n" + "\n".join(rows) + "\n")
    return path


def brightness(file):
    return np.asarray(Image.open(file)).mean()


def annotated(tasks, skip=()):
    """What Label Studio's full JSON says when each frame's point was put at a place that its number says, but for `skip`."""
    found = []
    for number, one in enumerate(tasks):
        point = {"original_width": SIZE[0], "original_height": SIZE[1], "value": {"x": 10 * number + 5, "y": 50, "width": 0.5,
                                                                                  "keypointlabels": ["shuttle"]}}
        found.append({"id": number, **one, "annotations": [{"result": [] if number in skip else [point]}]})
    return json.dumps(found)


def test_from_a_video_to_a_set_by_way_of_label_studio(tmp_path):
    for name in ("one", "two"):
        assert labelling.label(film(tmp_path / f"{name}.mp4"), tmp_path / "work") == 6
    work = tmp_path / "work"
    tasks = [json.loads((work / f"tasks_{name}.json").read_text()) for name in ("one", "two")]
    assert tasks[0][3] == {"data": {"img": "/data/local-files/?d=images/one/3.jpg"}}
    assert abs(brightness(work / "images/one/3.jpg") - 110) < 6 and "<KeyPointLabels" in (work / "labelling.xml").read_text()
    export = tmp_path / "export.json"
    export.write_text(annotated(tasks[0] + tasks[1], skip=(2,)))
    found = prepare.prepare(export, tmp_path / "set", frames=work / "images")
    assert found["clips"]["one"]["frames"] == 6 and found["clips"]["one"]["visible"] == 5 and found["clips"]["one"]["windows"] == 3
    assert {one["part"] for one in found["clips"].values()} == {"train", "test"}
    rows, wrong = shuttle.table(tmp_path / "set")
    assert wrong == [] and len(rows) == 10 and set(rows["image"].str.split("/").str[0]) == {"images"}
    first = rows[(rows["clip"] == "one") & (rows["frame"] == 3)].iloc[0]
    assert (first["x"], first["y"]) == pytest.approx((0.35 * 64, 18), abs=1e-3)
    frames = shuttle.load(path=tmp_path / "set", width=32)
    assert len(frames.train_labels) + len(frames.test_labels) == 10 and not set(frames.train_clips) & set(frames.test_clips)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HPML_CACHE", str(tmp_path / "cache"))


def test_labelling_goes_on_where_it_stopped_and_replaces_nothing(tmp_path):
    source, work = film(tmp_path / "a.mp4"), tmp_path / "work"
    labelling.label(source, work, start_s=0.15, stop_s=0.45)
    names = sorted(file.name for file in (work / "images/a").iterdir())
    assert names == ["2.jpg", "3.jpg", "4.jpg"], "frames keep their numbers"
    kept = (work / "images/a/3.jpg").stat().st_mtime_ns
    (work / "images/a/4.jpg").unlink()
    assert labelling.label(source, work, start_s=0.15, stop_s=0.45) == 3 and (work / "images/a/4.jpg").exists()
    assert (work / "images/a/3.jpg").stat().st_mtime_ns == kept
    with pytest.raises(HpmlError, match="tasks_a.json is there with other content"):
        labelling.label(source, work)
    (tmp_path / "other").mkdir()
    with pytest.raises(HpmlError, match="2.jpg is another picture than frame 2"):
        pictures(work / "images/a", [2])
        labelling.label(source, work, start_s=0.15, stop_s=0.45)
    with pytest.raises(HpmlError, match="no frame between 5 s and its end"):
        labelling.label(source, tmp_path / "new", start_s=5)


def test_a_video_beside_the_labels_gives_the_labelled_frames(tmp_path):
    film(tmp_path / "match/video/rally.mp4")
    film(tmp_path / "match/video/short.mp4", n=2)
    csv(tmp_path / "match/csv/rally_ball.csv", ["0,1,10,10", "1,1,12,10", "2,1,14,10", "3,0,0,0", "5,1,999,10"])
    csv(tmp_path / "match/csv/short_ball.csv", ["0,1,10,10", "1,1,12,10", "2,1,14,10"])
    (tmp_path / "match/csv/notes.csv").write_text("a,b\n1,2\n")
    found = prepare.prepare(tmp_path / "match", tmp_path / "set")
    # the folder of a clip's labels is named only where there are several matches
    assert found["clips"]["rally"]["frames"] == 4 and found["clips"]["short"]["frames"] == 2
    said = dict((file, line) for file, line in found["remarks"])
    assert said["csv/notes.csv"].startswith(points.FORMS) and "1 places lie outside the frame (frames 5)" in said["csv/rally_ball.csv"]
    assert "1 labels have no frame (2): left out" in said["short"]
    assert abs(brightness(tmp_path / "set/images/rally/2.jpg") - 80) < 6 and not (tmp_path / "set/images/rally/4.jpg").exists()
    printed = prepare.text(found)
    assert "remarks" in printed and "csv/notes.csv" in printed and "windows" in printed
    assert prepare.prepare(tmp_path / "match", tmp_path / "set") == found, "run again, the same set"
    with pytest.raises(HpmlError, match="rally.csv is there with other content"):
        csv(tmp_path / "match/csv/rally_ball.csv", ["0,1,10,10", "1,1,12,12"])
        prepare.prepare(tmp_path / "match", tmp_path / "set")


def test_pictures_and_labels_that_do_not_fit_are_left_out_and_listed(tmp_path):
    pictures(tmp_path / "in/images/a", range(6))
    pictures(tmp_path / "in/images/a", [2], size=(32, 18))
    (tmp_path / "in/images/a/3.jpg").write_bytes((tmp_path / "in/images/a/4.jpg").read_bytes()[:-20])
    (tmp_path / "in/images/a/4.jpg").write_bytes(b"<html>")
    pictures(tmp_path / "in/images/tall", range(3), size=(36, 36))
    for name in ("a", "b", "tall"):
        csv(tmp_path / f"in/labels/{name}.csv", [f"{n},1,{n},5" for n in (0, 1, 2, 3, 4)])
    found = prepare.prepare(tmp_path / "in", tmp_path / "set")
    assert set(found["clips"]) == {"a"} and found["clips"]["a"]["frames"] == 2
    said = [": ".join(one) for one in found["remarks"]]
    for text in ("a/2.jpg: 32x18 pixels, its clip has 64x36", "a/3.jpg: cannot be decoded", "a/4.jpg: not the picture",
                 "a: 3 labels have no frame (2, 3, 4)", "a: 1 frames have no label (5)", "b: 5 labels have neither pictures nor a video",
                 "tall: frames of 36x36 are not 16:9", "a: the only clip"):
        assert any(line.startswith(text) for line in said), (text, said)
    csv(tmp_path / "none/labels/x.csv", ["0,1,1,1"])
    with pytest.raises(HpmlError, match="no labelled frame has a picture .*neither pictures nor a video"):
        prepare.prepare(tmp_path / "none", tmp_path / "set2")
    with pytest.raises(HpmlError, match="no label file"):
        prepare.prepare(tmp_path / "absent", tmp_path / "set2")
    assert not (tmp_path / "set2").exists()


def test_two_matches_with_a_rally_of_one_name_stay_two_clips(tmp_path):
    for match in ("m1", "m2"):
        pictures(tmp_path / match / "frame/r", range(2))
        csv(tmp_path / match / "csv/r_ball.csv", ["0,1,5,5", "1,1,6,5"])
    found = prepare.prepare(tmp_path, tmp_path / "set")
    assert set(found["clips"]) == {"m1_r", "m2_r"} and len(shuttle.table(tmp_path / "set")[0]) == 4


def test_frames_of_one_clip_are_not_taken_for_two(tmp_path):
    pictures(tmp_path / "frames", range(3))
    for name in ("a", "b"):
        csv(tmp_path / f"labels/{name}.csv", ["0,1,5,5", "1,1,6,5"])
    found = prepare.prepare(tmp_path / "labels/a.csv", tmp_path / "one", frames=tmp_path / "frames")
    assert found["clips"]["a"]["frames"] == 2
    with pytest.raises(HpmlError, match="frames of one clip, but the labels name a and b"):
        prepare.prepare(tmp_path / "labels", tmp_path / "two", frames=tmp_path / "frames")


def test_a_set_below_its_own_source_is_not_read_again(tmp_path):
    pictures(tmp_path / "frame/r", range(2))
    csv(tmp_path / "csv/r_ball.csv", ["0,1,5,5", "1,1,6,5"])
    found = prepare.prepare(tmp_path, tmp_path / "set")
    assert prepare.prepare(tmp_path, tmp_path / "set") == found and set(found["clips"]) == {"r"}


def test_the_commands(tmp_path):
    film(tmp_path / "a.mp4", n=2)
    command = [sys.executable, "-c", "from hpml.cli import main; main()", "data"]
    done = subprocess.run([*command, "shuttle-label", str(tmp_path / "a.mp4"), str(tmp_path / "w")], capture_output=True, text=True)
    assert done.returncode == 0 and "2 frames of a.mp4" in done.stdout and "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT" in done.stdout
    csv(tmp_path / "a.csv", ["0,1,5,5", "0,1,9,5", "1,1,6,5"])
    done = subprocess.run([*command, "shuttle-prepare", str(tmp_path / "a.csv"), str(tmp_path / "s"), "--video", str(tmp_path / "a.mp4")],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "2 points share 1 frames" in done.stdout, done.stderr
    (tmp_path / "bad.mp4").write_bytes(b"none")
    done = subprocess.run([*command, "shuttle-label", str(tmp_path / "bad.mp4"), str(tmp_path / "w")], capture_output=True, text=True)
    assert done.returncode == 2 and "bad.mp4" in done.stderr and "Traceback" not in done.stderr
