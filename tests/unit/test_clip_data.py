"""Driving frames: the layouts of BDD100K and CamVid with their traps, splits that do not leak, captions, CLIP's tokenizer, the stand-in."""

import csv
import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from hpml.data import bdd100k, bpe, camvid, captions, fetch, jpegfiles, road
from hpml.env import HpmlError, Unavailable

DAY = {"weather": "clear", "scene": "highway", "timeofday": "daytime"}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    for name in ("data", "cache"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"HPML_{name.upper()}", str(tmp_path / name))
    monkeypatch.delenv("HPML_WEIGHTS", raising=False)
    return tmp_path / "data"


def picture(kind="JPEG", mode="RGB", size=(64, 36)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 90).save(file, kind)
    return file.getvalue()


def video(number: int) -> str:
    return f"{number:08x}-{number + 7:08x}.jpg"


def published(top, parts, *, form="labels/det_20/det_{}.json", wrap=False):
    """`parts`: {"train": [(name, attributes or None, file content or None)], ...} as the publisher's folders."""
    for part, listed in parts.items():
        folder = top / "images/100k" / part
        folder.mkdir(parents=True)
        entries = []
        for name, attributes, content in listed:
            if content is not None:
                (folder / name).write_bytes(content)
            entries.append({"name": name, "attributes": attributes, "labels": None})
        labels = top / form.format(part)
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text(json.dumps({"frames": entries, "config": {}} if wrap else entries))
    return top


def two_parts(n=3):
    return {part: [(video(100 * k + i), DAY, picture()) for i in range(n)] for k, part in enumerate(("train", "val"))}


def ten(top, rows, columns=("name", "source_repo", "weather", "scene", "timeofday", "note")):
    (top / "images").mkdir(parents=True)
    with (top / "attributes_eyeballed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return top


def test_both_label_forms_give_the_same_set(folders):
    first = bdd100k.load(path=published(folders / "a", two_parts()))
    for place, more in (("b", {"form": "labels/bdd100k_labels_images_{}.json"}), ("c", {"wrap": True})):
        other = bdd100k.load(path=published(folders / place, two_parts(), **more))
        assert other.checksum == first.checksum and other.classes == first.classes == ["clear, highway, daytime"]
    assert (len(first.train_labels), len(first.test_labels)) == (3, 3) and not first.informative and "too few" in first.note
    assert first.picture(first.train_images[0]).mode == "RGB"


def test_lists_state_the_split_of_a_part_of_the_frames(folders):
    top = published(folders / "a", two_parts(6))
    names = [f"{video(100 * k + i)}" for k in (0, 1) for i in range(6)]
    for file, listed in (("train.txt", names[:4]), ("val.txt", [f"some/folder/{names[4]}"]),
                         ("test.txt", [names[7][:-4], names[11], video(9)])):
        (top / file).write_text("\n".join(listed))
    found = bdd100k.load(path=top)
    assert (len(found.train_labels), len(found.test_labels)) == (5, 2) and "split by list, 4 train + 1 val + 3 test" in found.note
    assert sorted(place["name"].decode().rsplit("/")[-1] for place in found.test_images) == [names[7], names[11]]
    assert any("in a list and not here" in line for line in bdd100k.check("bdd100k", top))
    (top / "val.txt").write_text(names[0])  # the index is made again, because the lists changed
    with pytest.raises(HpmlError, match="val.txt: .* is in another list too"):
        bdd100k.load(path=top)


def test_a_large_label_file_is_read_in_pieces_and_a_cut_one_is_named(folders, monkeypatch):
    monkeypatch.setattr(bdd100k, "CHUNK", 50)
    path = folders / "labels.json"
    listed = [{"name": f"{i}.jpg", "labels": [{"box2d": {"x1": 1.5}}] * i} for i in range(9)]
    for text in (json.dumps(listed), json.dumps({"frames": listed}), json.dumps(listed, indent=1)):
        path.write_text(text)
        assert list(bdd100k.entries(path)) == listed
        path.write_text(text[: len(text) // 2])
        with pytest.raises(HpmlError, match=r"labels\.json: cut or damaged"):
            list(bdd100k.entries(path))
    for wrong, said in (('{"images": 1}', "another schema: a list"), ("[3]", "without a name")):
        path.write_text(wrong)
        with pytest.raises(HpmlError, match=said):
            list(bdd100k.entries(path))


def test_what_cannot_be_used_is_listed_with_its_reason_and_fix_moves_it_aside(folders):
    parts = two_parts()
    parts["train"] += [(video(10), None, picture()), (video(11), {**DAY, "weather": "sunny"}, picture()), (video(12), DAY, None),
                       (video(13), DAY, picture("GIF")), (video(14), DAY, picture("PNG", "RGBA")), (video(15), DAY, b""),
                       (video(16), DAY, b"no image"), (video(17), DAY, picture(size=(256, 144))[:-200]),
                       (video(18), DAY, picture(mode="L")), (video(19), {**DAY, "scene": "undefined", "weather": None}, picture())]
    top = published(folders / "bdd100k", parts)
    (top / "images/100k/train" / video(20)).write_bytes(picture())
    (top / "images/100k/train/Thumbs.db").write_bytes(b"x")
    wrong = fetch.check("bdd100k")
    for name, reason in ((video(10), "neither weather nor scene nor time"), (video(11), "weather 'sunny' is none of clear"),
                         ("det_train.json", f"1 of its frames are not here, the first {video(12)}"), (video(13), "GIF (P), not JPEG"),
                         (video(14), "PNG (RGBA), not JPEG"), (video(15), "empty file"), (video(16), "no image"),
                         (video(17), "truncated or damaged"), (video(20), "no entry in labels"), ("Thumbs.db", "not named as an image")):
        assert [line for line in wrong if name in line and reason in line], (name, reason, wrong)
    assert len(wrong) == 10
    frames = bdd100k.load()
    assert "undefined, undefined, daytime" in frames.classes
    before = {path.name for path in top.rglob("*.jpg")}
    left = fetch.check("bdd100k", fix=True)
    assert left == [line for line in wrong if line.startswith("labels")]
    assert {path.name for path in top.rglob("*.jpg")} == before and (top / "set_aside/images/100k/train" / video(13)).is_file()


def test_bad_frames_are_skipped_while_training(folders):
    parts = two_parts()
    parts["train"][1] = (parts["train"][1][0], DAY, b"no image")
    frames = bdd100k.load(path=published(folders / "bdd100k", parts))
    read = jpegfiles.dataset(frames, train=True, image=32, storage="jpeg", tall=True)
    assert [read[i][0].shape for i in range(3)] == [(3, 32, 32)] * 3 and read.skipped == [f"images/100k/train/{parts['train'][1][0]}"]


def test_a_video_is_on_one_side_only(folders):
    parts = two_parts()
    shared = parts["val"][0][0].removesuffix(".jpg")
    parts["train"].append((f"{shared}-0000001.jpg", DAY, picture()))
    frames = bdd100k.load(path=published(folders / "bdd100k", parts))
    sides = [{bdd100k._sequence(place["name"].decode().rpartition("/")[2]) for place in images}
             for images in (frames.train_images, frames.test_images)]
    assert not sides[0] & sides[1] and len(sides[0]) == 3 and "1 training frames of tested sequences left out" in frames.note


def test_missing_labels_and_a_missing_set_say_what_to_do(folders):
    with pytest.raises(Unavailable, match="hpml data fetch bdd100k"):
        bdd100k.load()
    top = published(folders / "bdd100k", two_parts())
    (top / "labels/det_20/det_val.json").unlink()
    assert fetch.check("bdd100k") == [f"{top}: the labels of images/100k/val are missing: put labels/det_20/det_val.json there"]
    said = []
    with pytest.raises(HpmlError, match="labels of images/100k/val are missing"):
        fetch.fetch("bdd100k", progress=said.append)
    assert said[0].startswith("1. ")


def test_single_frames_with_a_table_state_no_split(folders):
    rows = [{"name": video(i), **DAY, "timeofday": time} for i, time in enumerate(("daytime", "night", "dawn/dusk"))]
    top = ten(folders / "bdd100k_ten", [*rows, {"name": video(9), **DAY}])
    for row in rows:
        (top / "images" / row["name"]).write_bytes(picture())
    (top / "images" / video(8)).write_bytes(picture())
    (top / "example_annotation.json").write_text("[]")
    frames = bdd100k.load()
    assert len(frames.train_labels) == len(frames.test_labels) == 3 and not frames.informative
    assert "not the official labels" in frames.note and "split not stated" in frames.note
    assert sorted(fetch.check("bdd100k")) == [f"images/{video(8)}: not in attributes_eyeballed.csv",
                                              f"images/{video(9)}: listed in attributes_eyeballed.csv and not here"]
    ten(folders / "bdd100k", [{"name": "a"}], columns=("name", "label"))
    with pytest.raises(HpmlError, match=r"eyeballed\.csv: columns name, weather, scene, timeofday are expected, found name, label"):
        bdd100k.load()


def drives(top, rows, *, more=()):
    """CamVid's tar and index.csv; rows: (split, sequence, time)."""
    top.mkdir()
    with tarfile.open(top / "camvid_72.tar", "w") as tar, (top / "index.csv").open("w") as table:
        table.write("split,sequence,file,timeofday_by_sequence\n")
        for number, (split, sequence, time) in enumerate(rows):
            file = f"{sequence}_{number}.png"
            table.write(f"{split},{sequence},{file},{time}\n")
            for folder in (split, f"{split}annot"):  # masks lie beside the frames, under the same names
                content = picture("PNG", "RGB" if folder == split else "L", (48, 36))
                member = tarfile.TarInfo(f"CamVid/{folder}/{file}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        table.writelines(more)
    return top


ROWS = [("train", "0016E5", "day"), ("train", "0001TP", "dusk"), ("val", "0016E5", "day"), ("test", "0001TP", "dusk"),
        ("test", "Seq05VD", "day")]


def test_a_drive_that_is_tested_is_not_trained_on_though_the_published_split_does(folders):
    drives(folders / "camvid", ROWS, more=["train,0016E5,gone.png,day\n"])
    frames = camvid.load()
    names = [[place["name"].decode() for place in images] for images in (frames.train_images, frames.test_images)]
    assert names == [["CamVid/train/0016E5_0.png", "CamVid/val/0016E5_2.png"], ["CamVid/test/0001TP_3.png", "CamVid/test/Seq05VD_4.png"]]
    assert frames.classes == ["undefined, undefined, dawn/dusk", "undefined, undefined, daytime"] and not frames.informative
    assert frames.picture(frames.test_images[0]).size == (48, 36)
    wrong = fetch.check("camvid")
    assert wrong == ["train/gone.png: listed in index.csv and not in camvid_72.tar"]
    assert "1 training frames of tested sequences left out" in frames.note
    tar = folders / "camvid/camvid_72.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(HpmlError, match="camvid_72.tar is cut or damaged"):
        camvid.load()


def test_a_caption_says_what_is_known_and_nothing_else():
    assert captions.captions("rainy, city street, night")[0] == "a photo of a city street at night in rainy weather"
    assert captions.captions("undefined, undefined, dawn/dusk") == [
        "a photo of a road at dawn or dusk", "a dashcam picture of a road at dawn or dusk", "driving on a road at dawn or dusk,",
        "on a road at dawn or dusk"]
    assert captions.prompts("weather", "snowy")[0] == "a photo of a road in snowy weather"
    every = [captions.captions(one) for one in road.CLASSES]
    assert len({text for texts in every for text in texts}) == len(road.CLASSES) * len(captions.TEMPLATES)


def merges(path):
    """A file of the published form and length, with made-up merges."""
    letters = [chr(ord("a") + i) for i in range(26)]
    pairs = [(a, b) for a in letters for b in letters] + [(a, f"{b}</w>") for a in letters for b in letters]
    known = [a + b for a, b in pairs[:676]]
    pairs += [(a, b) for a in known for b in known][: bpe.MERGES - len(pairs)]
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(b'"version"\n' + "\n".join(" ".join(pair) for pair in pairs).encode() + b"\nmore lines\n"))
    return path


def test_the_published_vocabulary_is_taken_where_it_is_and_named(folders):
    without = bpe.with_tokenizer(road.load(36, 36), captions.every())
    assert "trained on the captions" in without.tokenizer
    path = merges(folders / "tokenizers" / bpe.FILE)
    found = bpe.with_tokenizer(road.load(36, 36), captions.every())
    assert "published" in found.tokenizer and found.tokenizer_file == str(path)
    reader = bpe.open_tokenizer(path, 8)
    assert reader.get_vocab_size() == bpe.SIZE
    ids = bpe.encode(reader, ["AB  ab", "x " * 30])
    assert ids[0].tolist() == [49406, ids[0, 1], ids[0, 1], 49407, 49407, 49407, 49407, 49407]  # lower case; padded with the end
    assert ids[1, 0] == 49406 and ids[1, -1] == 49407  # cut, and still ended
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(HpmlError, match="bpe_simple_vocab_16e6.txt.gz: not CLIP's tokenizer"):
        bpe.open_tokenizer(path, 8)


def test_the_fallback_tokenizer_knows_every_caption_and_any_other_word():
    frames = bpe.with_tokenizer(road.load(36, 36), captions.every())
    reader = bpe.open_tokenizer(frames.tokenizer_file, 32)
    ids = bpe.encode(reader, [captions.captions(one)[0] for one in road.CLASSES] + ["a zebra ükl"])
    end = reader.get_vocab_size() - 1
    assert ids.max() == end and (ids == end).any(1).all() and len({tuple(row) for row in ids}) == len(ids)
    assert (ids[:-1] == end).sum(1).min() > 10  # words of the captions are single pieces
    back = reader.decode(ids[-1].tolist(), skip_special_tokens=True).replace(" ", "").replace("</w>", "")
    assert back == "azebraükl"


def test_the_standin_is_deterministic_balanced_and_its_parts_differ():
    first, second = road.render(72, seed=0), road.render(72, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)) and first[0].shape == (72, 64, 64, 3)
    assert np.bincount(first[1]).tolist() == [2] * 36
    assert not np.array_equal(first[0], road.render(72, seed=0, stream=1)[0])
    light = {time: first[0][[time in road.CLASSES[label] for label in first[1]]].mean() for time in road.TIMES}
    assert light["daytime"] > light["dawn/dusk"] > light["night"]
