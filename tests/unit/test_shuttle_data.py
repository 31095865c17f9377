"""Labels of shuttle frames: three schemas as one table, every trap by its rule, windows and splits by clip, the rendered court."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from hpml.data import court, fetch, frames, points, shuttle
from hpml.env import HpmlError, Unavailable

SIZE = (320, 180)


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HPML_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HPML_CACHE", str(tmp_path / "cache"))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def pictures(folder, numbers, size=SIZE, kind="JPEG", ending="jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(np.full((size[1], size[0], 3), 10 * number, np.uint8)).save(folder / f"{number}.{ending}", kind)


def read(tmp_path, text, name="rally.csv"):
    return points.read(write(tmp_path / name, text), clip="rally")


def places(table):
    return [(int(r.frame), None if np.isnan(r.x) else round(r.x, 3), None if np.isnan(r.y) else round(r.y, 3), bool(r.visible))
            for r in table.itertuples()]


# ---- the schemas


def test_shares_of_the_frame_in_any_order_of_columns_become_pixels(tmp_path):
    wanted = [(0, 640.0, 180.0, True), (1, None, None, False)]
    for text in ("frame_num,visible,x,y\n0,1,0.5,0.25\n1,0,0,0\n", "frame_num,x,y,visible\n0,0.5,0.25,1\n1,,,0\n"):
        table, wrong = read(tmp_path, text)
        assert list(table.columns) == points.COLUMNS and places(table) == wanted and wrong == []
    table, _ = points.read(tmp_path / "rally.csv", clip="rally", size=(1920, 1080))
    assert places(table)[0] == (0, 960.0, 270.0, True) and set(table["clip"]) == {"rally"}


def test_pixels_are_taken_as_they_are(tmp_path):
    table, wrong = read(tmp_path, "\ufeffFrame,Visibility,X,Y\n0,1,492,446\n1,0,0,0\n")
    assert places(table) == [(0, 492.0, 446.0, True), (1, None, None, False)] and wrong == []


def task(number, points_, name="img", size=(400, 200)):
    found = [{"x": x, "y": y, "width": 1, "keypointlabels": [label], "original_width": size[0], "original_height": size[1]}
             for x, y, label in points_]
    return {"img": f"/data/local-files/?d=match/rally7/{name}{number}.png", "id": 100 - number, "kp-1": found, "annotator": 1,
            "created_at": "2024-01-01T00:00:00Z", "lead_time": 3.5}


def as_table(tasks, separator):
    quote = lambda cell: '"' + (json.dumps(cell) if isinstance(cell, list) else str(cell)).replace('"', '""') + '"'  # noqa: E731
    lines = [separator.join(tasks[0]), *(separator.join(quote(cell or "") for cell in one.values()) for one in tasks)]
    return "\n".join(lines) + "\n"


def test_label_studio_in_three_forms_is_percent_and_a_task_without_a_point_is_not_visible(tmp_path):
    tasks = [task(9, [(50, 25, "shuttle")]), task(8, []), task(7, [(10, 50, "shuttle")])]
    bare = [{key: value for key, value in one.items() if key != "kp-1" or value} for one in tasks]
    for name, text in (("a.json", json.dumps(bare)), ("a.csv", as_table(tasks, ",")), ("a.tsv", as_table(tasks, "\t"))):
        table, wrong = read(tmp_path, text, name)
        assert places(table) == [(7, 40.0, 100.0, True), (8, None, None, False), (9, 200.0, 50.0, True)] and wrong == []
        assert set(table["clip"]) == {"rally7"} and list(table["image"]) == ["img7.png", "img8.png", "img9.png"]
        assert set(table["width"]) == {400} and set(table["height"]) == {200}


def full(one, annotations=1, cancelled=False):
    """A JSON-MIN task in the form of Label Studio's full JSON."""
    results = [{"type": "keypointlabels", "from_name": "kp-1", "to_name": "img", "original_width": p["original_width"],
                "original_height": p["original_height"], "image_rotation": 0,
                "value": {"x": p["x"], "y": p["y"], "width": 1, "keypointlabels": p["keypointlabels"]}} for p in one["kp-1"]]
    return {"id": one["id"], "data": {"img": one["img"]}, "predictions": [], "meta": {},
            "annotations": [{"id": 1, "was_cancelled": cancelled, "result": results}] * annotations}


def test_the_full_json_tells_a_frame_without_a_point_from_one_that_nobody_looked_at(tmp_path):
    tasks = [full(task(7, [(10, 50, "shuttle")])), full(task(8, [])), full(task(9, [(1, 1, "shuttle")]), annotations=0),
             full(task(10, [(1, 1, "shuttle")]), cancelled=True), full(task(11, [(50, 50, "shuttle")]), annotations=2)]
    tasks[0]["data"]["img"] = tasks[0]["data"]["img"].replace("rally7", "rally%207")
    tasks[0]["annotations"][0]["result"].append({"type": "choices", "value": {"choices": ["blurred"]}})
    table, wrong = read(tmp_path, json.dumps(tasks), "a.json")
    assert places(table) == [(7, 40.0, 100.0, True), (8, None, None, False), (11, 200.0, 100.0, True)]
    assert list(table["clip"]) == ["rally 7", "rally7", "rally7"]
    assert wrong[0] == "2 tasks have no annotation: left out" and wrong[1].startswith("1 rows repeat a frame with the same place")


def test_of_several_key_points_the_shuttle_counts(tmp_path):
    both = task(1, [(50, 50, "player"), (10, 20, "shuttle")])
    table, wrong = read(tmp_path, json.dumps([both, task(2, [(30, 30, "player")])]), "a.json")
    assert places(table) == [(1, 40.0, 40.0, True), (2, None, None, False)] and wrong == []
    strange = task(1, [(50, 50, "nose"), (10, 20, "paw")])
    table, wrong = read(tmp_path, json.dumps([strange, task(2, [(30, 30, "nose")])]), "a.json")
    assert places(table) == [(2, 120.0, 60.0, True)] and [line[:33] for line in wrong] == ["2 points share 1 frames (frames 1)"[:33]]


# ---- what is wrong


@pytest.mark.parametrize(("rows", "kept", "said"), [
    ("0,1,0.5,0.5\n0,1,0.5,0.5\n1,1,0.5,0.5", [0, 1], "1 rows repeat a frame with the same place (frames 0): taken once"),
    ("0,1,0.5,0.5\n0,1,0.6,0.5\n1,1,0.5,0.5", [1], "2 points share 1 frames (frames 0): left out, nobody can tell which is right"),
    ("0,1,1.5,0.5\n1,1,0.5,0.5", [1], "1 places lie outside the frame (frames 0): left out"),
    ("0,1,-0.1,0.5\n1,1,0.5,0.5", [1], "1 places lie outside the frame (frames 0): left out"),
    ("0,1,0.5,0.5\n4,1,0.5,0.5", [0, 4], "rally: 3 frames are missing between 0 and 4 (1, 2, 3)"),
    ("0,1,0.5,x\n1,1,0.5,0.5\n2,7,0.5,0.5", [1], "2 rows are no numbers (lines 2, 4): left out"),
    ("0,1,0,0\n1,1,0.5,0.5", [0, 1], "1 frames are visible at 0, 0 (frames 0): taken as not visible"),
    ("0,0,0.5,0.5\n1,0,0.5,0.4", [0, 1], "visible is 0 on all 2 rows, of which 2 have a place: these are taken as visible")])
def test_each_fault_is_listed_and_decided_by_its_rule(tmp_path, rows, kept, said):
    table, wrong = read(tmp_path, f"frame_num,visible,x,y\n{rows}\n")
    assert list(table["frame"]) == kept and wrong == [said]
    assert table[["x", "y"]].isna().any(axis=1).tolist() == (~table["visible"]).tolist()


def test_a_column_visible_that_was_filled_in_is_believed(tmp_path):
    table, wrong = read(tmp_path, "frame_num,x,y,visible\n0,0.5,0.5,0\n1,0.5,0.5,1\n")
    assert list(table["visible"]) == [False, True] and np.isnan(table["x"][0]) and wrong == []


def test_another_original_size_is_left_out(tmp_path):
    tasks = [task(1, [(50, 50, "shuttle")]), task(2, [(50, 50, "shuttle")]), task(3, [(50, 50, "shuttle")], size=(800, 400))]
    table, wrong = read(tmp_path, json.dumps(tasks), "a.json")
    assert list(table["frame"]) == [1, 2] and "1 points belong to another original size" in wrong[0]
    table, wrong = read(tmp_path, json.dumps([{**task(1, []), "img": "/data/x/cover.png"}, *tasks[:2]]), "a.json")
    assert list(table["frame"]) == [1, 2]
    assert wrong == ["1 tasks have no frame number in their picture's name (/data/x/cover.png): left out"]


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.csv", "time,left,top\n1,2,3\n", f"{points.FORMS} is expected, found time, left, top"),
    ("a.csv", "", "not a table"), ("a.json", "{", "not JSON"), ("a.json", '{"map": []}', "a list of tasks is expected"),
    ("a.json", '[{"id": 1, "annotations": []}]', "found nothing")])
def test_another_schema_is_refused_in_one_line(tmp_path, name, text, said):
    with pytest.raises(HpmlError) as caught:
        read(tmp_path, text, name)
    assert said in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


# ---- clips, windows, splits


def test_a_window_crosses_neither_a_clip_nor_a_gap(tmp_path):
    write(tmp_path / "data/shuttle/a.csv", "Frame,Visibility,X,Y\n" + "".join(f"{n},1,5,5\n" for n in (0, 1, 2, 3, 6, 7, 8)))
    write(tmp_path / "data/shuttle/b.csv", "Frame,Visibility,X,Y\n" + "".join(f"{n},1,5,5\n" for n in (4, 5, 9, 10, 11)))
    table, _ = shuttle.table(tmp_path / "data/shuttle")
    found = [[(table["clip"][row], int(table["frame"][row])) for row in rows] for rows in points.windows(table, 3)]
    assert found == [[("a", n), ("a", n + 1), ("a", n + 2)] for n in (0, 1, 6)] + [[("b", 9), ("b", 10), ("b", 11)]]


def test_parts_never_share_a_clip():
    clips = [f"match{i % 3}/{i}" for i in range(23)]
    parts = shuttle.split(clips * 2, seed=0)
    assert set(parts["train"]) | set(parts["test"]) == set(clips) and not set(parts["train"]) & set(parts["test"])
    assert len(parts["test"]) == 5 and parts == shuttle.split(clips[::-1], seed=0) != shuttle.split(clips, seed=1)
    with pytest.raises(HpmlError, match="1 clip with pictures: at least 2"):
        shuttle.split(["a", "a"])


def court_folder(root, clips=6, count=4):
    for number in range(clips):
        place = root / f"match{number % 2}"
        pictures(place / "frame" / f"rally{number // 2}", range(count))
        rows = "".join(f"{n},1,{16 * n + 8},{90}\n" for n in range(count))
        write(place / "csv" / f"rally{number // 2}_ball.csv", f"Frame,Visibility,X,Y\n{rows}")
    return root


def test_rallies_of_one_name_in_two_matches_are_two_clips_and_the_set_is_resized_with_its_labels(tmp_path, capsys):
    root = court_folder(tmp_path / "data/shuttle")
    table, wrong = shuttle.table(root)
    assert table["clip"].nunique() == 6 and wrong == [] and set(table["width"]) == {320}
    found = shuttle.open_frames("auto", 160)
    assert found.origin == "real" and found.train_images.shape[1:] == (90, 160, 3) and "converting" in capsys.readouterr().err
    assert not set(found.train_clips) & set(found.test_clips) and len(found.train_labels) + len(found.test_labels) == 24
    for n, label, image in zip(found.train_numbers, found.train_labels, found.train_images, strict=True):
        assert label.tolist() == [8 * n + 4, 45, 1] and abs(int(image.mean()) - 10 * n) <= 1
    again = pickle.loads(pickle.dumps(frames.FrameDataset(found.train_images, found.train_labels, train=False)))
    jpeg = frames.FrameDataset(found.train_images, found.train_labels, train=False, storage="jpeg")
    assert len(pickle.dumps(jpeg)) < 3000 and (jpeg[3][0] - again[3][0]).abs().max() < 0.1 and (jpeg[3][1] == again[3][1]).all()
    assert len(again) == len(found.train_labels) and shuttle.identity("auto").startswith("shuttle ")
    part = frames.subset(found, 3, 1, 0)
    assert len(set(part.train_clips)) == 3 and len(part.test_labels) == 1 and set(part.train_clips) <= set(found.train_clips)


def test_pictures_that_cannot_be_used_are_listed_and_moved_aside(tmp_path):
    root = court_folder(tmp_path / "data/shuttle")
    folder = root / "match0/frame/rally0"
    pictures(folder, [0], kind="GIF")
    (folder / "1.jpg").write_bytes(b"<html>404</html>")
    pictures(folder, [2], size=(160, 90))
    pictures(folder, [9])
    table, wrong = shuttle.table(root)
    assert wrong == [("match0/frame/rally0/0.jpg", "not the picture that its name says"),
                     ("match0/frame/rally0/1.jpg", "not the picture that its name says"),
                     ("match0/frame/rally0/2.jpg", "160x90 pixels, its clip has 320x180"),
                     ("match0/frame/rally0", "1 pictures have no label (9): left out")]
    assert list(table[table["clip"] == "match0/rally0"]["frame"]) == [3]
    count = sum(file.is_file() for file in root.rglob("*"))
    assert fetch.check("shuttle", fix=True) == ["match0/frame/rally0: 1 pictures have no label (9): left out"]
    assert sum(file.is_file() for file in root.rglob("*")) == count and (root / "set_aside/match0/frame/rally0/1.jpg").is_file()
    (folder / "9.jpg").unlink()
    assert shuttle.table(root)[1] == [("match0/frame/rally0", "3 labels have no picture (0, 1, 2): left out")]


def test_a_cut_picture_is_left_out_with_its_reason(tmp_path):
    root = court_folder(tmp_path / "data/shuttle")
    for file in (root / "match0/frame/rally0").iterdir():
        if file.stem != "3":
            file.write_bytes(file.read_bytes()[:-500])
    found = shuttle.load(path=root, width=160)
    assert len(found.skipped) == 3 and all("cannot be decoded" in why for _, why in found.skipped)
    assert len(found.train_labels) + len(found.test_labels) == 21 and len(fetch.check("shuttle")) == 3
    assert len(found.train_images) == len(found.train_clips) and len(found.test_images) == len(found.test_numbers)


def test_labels_of_another_size_than_the_pictures_and_other_shapes_are_left_out(tmp_path):
    root = court_folder(tmp_path / "data/shuttle")
    pictures(root / "rally7", [1, 2], ending="png", kind="PNG")
    write(root / "tasks.json", json.dumps([task(1, [(50, 50, "shuttle")]), task(2, [(50, 50, "shuttle")])]))
    table, wrong = shuttle.table(root)
    assert wrong == [("rally7", "labels for 400x200 pixels, pictures of 320x180: left out")] and table["clip"].nunique() == 6
    for number in range(3):
        pictures(root / "match0/frame" / f"rally{number}", range(4), size=(240, 180))
    found = shuttle.load(path=root, width=160)
    assert {clip.split("/")[0] for clip in (*found.train_clips, *found.test_clips)} == {"match1"}
    assert ("match0/rally0", "frames of 240x180 are not 16:9: left out") in found.skipped


def test_what_is_here_decides_what_the_sources_mean(tmp_path):
    with pytest.raises(Unavailable, match="put clips"):
        shuttle.open_frames("real", 64)
    with pytest.raises(HpmlError, match="'ball' is unknown"):
        shuttle.open_frames("ball", 64)
    assert fetch.check("shuttle")[0].startswith("shuttle is not on this machine")
    write(tmp_path / "data/shuttle/a.csv", "Frame,Visibility,X,Y\n0,1,5,5\n")
    write(tmp_path / "data/shuttle/notes.csv", "a,b\n1,2\n")
    assert shuttle.open_frames("auto", 64, 6, 6).origin == "stand-in" and shuttle.identity("auto") == "auto"
    with pytest.raises(HpmlError, match="0 clips with pictures"):
        shuttle.open_frames("real", 64)
    assert fetch.check("shuttle") == [f"notes.csv: {points.FORMS} is expected, found a, b"]


# ---- samples and the stand-in


def test_place_and_frame_are_mirrored_together():
    import torch

    images = np.zeros((1, 18, 32, 3), np.uint8)
    images[0, 5, 8] = 255
    dataset = frames.FrameDataset(images, np.float32([[8.5, 5.5, 1]]), train=True)
    torch.manual_seed(0)
    columns = set()
    for _ in range(20):
        frame, truth = dataset[0]
        assert frame.shape == (3, 18, 32) and frame.dtype == truth.dtype == torch.float32
        at = int(frame.sum((0, 1)).argmax())
        assert truth.tolist() == [at + 0.5, 5.5, 1]
        columns.add(at)
    assert columns == {8, 23}
    with pytest.raises(HpmlError, match="labels"):
        frames.FrameDataset(images, np.zeros((1, 2), np.float32), train=False)


def test_the_stand_in_is_rendered_once_and_says_honestly_what_is_not_visible(monkeypatch):
    arrays, checksum = court.load(64, 360, 60)
    visible = arrays["train_labels"][:, 2]
    assert 0.7 < visible.mean() < 0.97
    inside = (arrays["train_labels"][:, 0] < 64) & (arrays["train_labels"][:, 1] >= 0) & (arrays["train_labels"][:, 1] < 36)
    assert (inside[visible == 1]).all() and not inside.all()
    monkeypatch.setattr(court, "render", None)
    assert court.load(64, 360, 60)[1] == checksum
    found = shuttle.open_frames("standin", 64, 360, 60)
    assert not set(found.train_clips) & set(found.test_clips) and found.train_numbers[:5] == (0, 1, 2, 3, 0)
    assert found.test_numbers[:13] == (*range(12), 0) and len(set(found.train_clips)) == 90 and len(set(found.test_clips)) == 5
