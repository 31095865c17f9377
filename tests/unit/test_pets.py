"""Oxford-IIIT Pet: found in each form, every trap of the real files skipped with its reason, the official split, the stand-in."""

import io
import pickle
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from hpml.data import creatures, fetch, pets
from hpml.data.masks import MaskDataset
from hpml.env import HpmlError, Unavailable

TRAIN = ["Abyssinian_1", "Abyssinian_2", "Bengal_1", "beagle_1"]
TEST = ["Abyssinian_9", "Bengal_9", "beagle_9"]


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HPML_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HPML_CACHE", str(tmp_path / "cache"))


def picture(kind="JPEG", mode="RGB", size=(60, 40), shade=90):
    file = io.BytesIO()
    noise = np.random.default_rng(shade).integers(0, 60, (size[1], size[0], 3), np.uint8) + shade
    Image.fromarray(noise.astype(np.uint8)).convert(mode).save(file, kind)
    return file.getvalue()


def trimap(size=(60, 40), values=(1, 2, 3)):
    file = io.BytesIO()
    mask = np.full((size[1], size[0]), values[1], np.uint8)
    mask[10:30, 15:45] = values[2]
    mask[12:28, 18:42] = values[0]
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def lines(names, class_id=1):
    return "".join(f"{name} {class_id} 1 1\n" for name in names).encode()


def good():
    """The files of a small set without a fault, by their names."""
    files = {"annotations/trainval.txt": lines(TRAIN), "annotations/test.txt": lines(TEST),
             "annotations/list.txt": b"#Image CLASS-ID SPECIES BREED ID\n" + lines(TRAIN + TEST), "annotations/README": b"read me"}
    for number, name in enumerate(TRAIN + TEST):
        files |= {f"images/{name}.jpg": picture(shade=20 * number), f"annotations/trimaps/{name}.png": trimap()}
    return files


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def pack(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


# ---- where it is found


def test_folder_archives_and_one_tar_hold_the_same_set(tmp_path):
    files = good()
    write(tmp_path / "data" / "pets", files)
    folder = pets.load()
    shutil.rmtree(tmp_path / "data")
    for part in ("images", "annotations"):
        pack(tmp_path / "data" / f"{part}.tar.gz", {k: v for k, v in files.items() if k.startswith(part)}, "w:gz")
    archives = pets.load()
    shutil.rmtree(tmp_path / "data")
    images_first = dict(sorted(files.items(), reverse=True))
    pack(tmp_path / "data" / "oxford_pets_3breeds" / "oxford_pets_9.tar", {f"./{k}": v for k, v in images_first.items()})
    tar = pets.load()
    assert folder.checksum == archives.checksum == tar.checksum and folder.skipped == archives.skipped == tar.skipped == ()
    for other in (archives, tar):
        assert np.array_equal(folder.train_images, other.train_images) and np.array_equal(folder.test_labels, other.test_labels)
    assert folder.train_images.shape == (4, 256, 256, 3) and folder.test_labels.shape == (3, 256, 256)
    assert folder.note == "7 of 7 listed images, 0 files skipped, resized to 256x256"


def test_classes_are_pet_background_boundary_and_masks_are_not_blurred(tmp_path):
    write(tmp_path / "data" / "pets", good())
    found = pets.load()
    assert found.classes == ["pet", "background", "boundary"] and set(np.unique(found.train_labels)) == {0, 1, 2}
    assert found.train_labels[0, 128, 128] == 0 and found.train_labels[0, 0, 0] == 1
    assert np.isin(found.train_labels[0, 128, 64:77], 2).all()  # x from 15 to 18 of 60


def test_converted_once_and_again_when_a_file_changes(tmp_path, capsys):
    folder = write(tmp_path / "data" / "pets", good())
    first = pets.load()
    assert isinstance(first.train_images, np.memmap) and "converting" in capsys.readouterr().err
    assert pets.load().checksum == first.checksum and "converting" not in capsys.readouterr().err
    before = pets.identity("auto")
    (folder / "images" / "beagle_1.jpg").write_bytes(picture(shade=250 - 70))
    assert pets.load().checksum != first.checksum and pets.identity("auto") != before
    assert not [path.name for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]
    assert pets.load(side=512).train_images.shape[1] == 512


def test_sources_mean_what_they_say(tmp_path):
    with pytest.raises(Unavailable, match="hpml data fetch pets"):
        pets.open_pets("real", 64)
    assert pets.find() is None and pets.identity("auto") == "auto"
    with pytest.raises(HpmlError, match="'cats' is unknown"):
        pets.open_pets("cats", 64)
    write(tmp_path / "data" / "pets", good())
    assert pets.open_pets("auto", 64).origin == "real" and pets.open_pets("pets", 300).train_images.shape[1] == 512


# ---- the split


def test_the_official_split_has_no_image_twice(tmp_path):
    write(tmp_path / "data" / "pets", good())
    found = pets.load()
    assert list(found.train_names) == TRAIN and list(found.test_names) == TEST
    part = pets.subset(found, 3, 2, 0)
    assert {name.rpartition("_")[0] for name in part.train_names} == {"Abyssinian", "Bengal", "beagle"}  # breeds take turns
    assert set(part.train_names) <= set(TRAIN) and set(part.test_names) <= set(TEST) and len(part.test_labels) == 2
    at = found.train_names.index(part.train_names[1])
    assert np.array_equal(part.train_images[1], found.train_images[at])
    assert pets.subset(found, 0, 99, 0).train_names == found.train_names


def test_a_name_in_both_lists_is_refused(tmp_path):
    write(tmp_path / "data" / "pets", good() | {"annotations/test.txt": lines([*TEST, "Bengal_1"])})
    with pytest.raises(HpmlError, match="Bengal_1 stands in trainval.txt and in test.txt"):
        pets.load()


def test_the_same_picture_under_two_names_is_not_trained_with(tmp_path):
    files = good()
    files["images/beagle_1.jpg"] = files["images/Bengal_9.jpg"]
    write(tmp_path / "data" / "pets", files)
    found = pets.load()
    assert "beagle_1" not in found.train_names and "Bengal_9" in found.test_names
    assert ("images/beagle_1.jpg", "the same picture as Bengal_9 of test.txt") in found.skipped


@pytest.mark.parametrize(("change", "said"), [
    ({"annotations/trainval.txt": None}, "annotations/trainval.txt is missing"),
    ({"annotations/test.txt": None}, "annotations/test.txt is missing"),
    ({"annotations/test.txt": b"Bengal_9;6;1;2\n"}, "test.txt, line 1: NAME CLASS SPECIES BREED is expected, not 'Bengal_9;6;1;2'"),
    ({"annotations/test.txt": lines(["nowhere_1"])}, "no usable image of annotations/test.txt")])
def test_lists_that_cannot_be_used_are_one_line(tmp_path, change, said):
    files = good() | change
    write(tmp_path / "data" / "pets", {name: content for name, content in files.items() if content is not None})
    with pytest.raises(HpmlError) as caught:
        pets.load()
    assert said in str(caught.value) and "\n" not in str(caught.value)


# ---- bad files

TRAPS = {
    "a GIF (P) named .jpg": {"images/Abyssinian_2.jpg": picture("GIF", "P")},
    "a PNG (RGBA) named .jpg": {"images/Abyssinian_2.jpg": picture("PNG", "RGBA")},
    "not an image": {"images/Abyssinian_2.jpg": b"<html>404</html>"},
    "unreadable image": {"images/Abyssinian_2.jpg": picture(size=(600, 400))[:2000]},
    "its trimap has 30x40 pixels, the image 60x40": {"annotations/trimaps/Abyssinian_2.png": trimap(size=(30, 40))},
    "its trimap has no pet": {"annotations/trimaps/Abyssinian_2.png": trimap(values=(2, 2, 2))},
    "its trimap has other values than 1, 2 and 3": {"annotations/trimaps/Abyssinian_2.png": trimap(values=(1, 2, 7))},
    "its trimap is unreadable": {"annotations/trimaps/Abyssinian_2.png": b"PNG"},
    "has no trimap": {"annotations/trimaps/Abyssinian_2.png": None},
}


@pytest.mark.parametrize("reason", TRAPS)
def test_a_bad_pair_is_left_out_with_its_reason(tmp_path, reason):
    files = {name: content for name, content in (good() | TRAPS[reason]).items() if content is not None}
    write(tmp_path / "data" / "pets", files)
    found = pets.load()
    assert [file for file, _ in found.skipped] == ["images/Abyssinian_2.jpg"] and reason in found.skipped[0][1]
    assert "Abyssinian_2" not in found.train_names and len(found.train_names) == 3
    assert found.note.startswith("6 of 7 listed images, 1 files skipped")
    assert fetch.check("pets") == [f"images/Abyssinian_2.jpg: {found.skipped[0][1]}"]


def test_files_that_are_no_part_of_the_set_are_named(tmp_path):
    extra = {"images/Abyssinian_1.mat": b"MATLAB", "images/Bengal_77.jpg": picture(shade=3), "images/._Bengal_1.jpg": b"mac",
             "annotations/._trimaps": b"mac", "annotations/trimaps/._Bengal_1.png": b"mac",
             "annotations/trimaps/Bengal_77.png": trimap(), "annotations/trainval.txt": lines(TRAIN) + lines(["mouse_1"], 38)}
    write(tmp_path / "data" / "pets", good() | extra)
    found = pets.load()
    assert dict(found.skipped) == {
        "images/Abyssinian_1.mat": "a .mat file, not a .jpg image", "images/Bengal_77.jpg": "in neither trainval.txt nor test.txt",
        "images/._Bengal_1.jpg": pets.APPLE, "annotations/._trimaps": pets.APPLE, "annotations/trimaps/._Bengal_1.png": pets.APPLE,
        "annotations/trainval.txt, line 5": "class id 38 of mouse_1 is not within 1 to 37"}
    assert len(found.train_names) == 4
    told = fetch.check("pets")
    assert len(told) == 4 and any(line.startswith("3 files are an AppleDouble") for line in told)


def test_grey_and_cmyk_photographs_become_rgb(tmp_path):
    files = good() | {"images/Bengal_1.jpg": picture(mode="L", shade=200), "images/Bengal_9.jpg": picture(mode="CMYK", shade=7)}
    write(tmp_path / "data" / "pets", files)
    found = pets.load()
    assert found.skipped == () and "2 grey or CMYK ones made RGB" in found.note
    grey = np.asarray(found.train_images[2])
    assert (grey[..., 0] == grey[..., 1]).all()


def test_fix_moves_aside_and_deletes_nothing(tmp_path):
    folder = write(tmp_path / "data" / "pets", good() | TRAPS["a GIF (P) named .jpg"] | {"images/x.mat": b"MATLAB"})
    count = sum(path.is_file() for path in folder.rglob("*"))
    before = pets.load()
    assert fetch.check("pets", fix=True) == []
    assert sum(path.is_file() for path in folder.rglob("*")) == count
    assert sorted(path.name for path in (folder / "set_aside").rglob("*.*")) == ["Abyssinian_2.jpg", "Abyssinian_2.png", "x.mat"]
    after = pets.load()
    assert after.skipped == () and after.checksum == before.checksum and fetch.check("pets") == []


def test_fix_leaves_archives_alone_and_says_what_is_in_them(tmp_path):
    files = good() | TRAPS["not an image"]
    path = pack(tmp_path / "data" / "oxford_pets_9.tar", files)
    content = path.read_bytes()
    assert fetch.check("pets", fix=True) == ["images/Abyssinian_2.jpg: not an image"] and path.read_bytes() == content
    for part in ("images", "annotations"):
        pack(tmp_path / "data" / "pets" / f"{part}.tar.gz", {k: v for k, v in files.items() if k.startswith(part)}, "w:gz")
    told = fetch.check("pets")
    assert [line for line in told if "published is 5c4f3ee8e5d25df40f4fd59a7f44e54c" in line] and len(told) == 3


def test_a_cut_archive_is_one_line(tmp_path):
    path = pack(tmp_path / "data" / "oxford_pets_9.tar", good())
    path.write_bytes(path.read_bytes()[:15_000])
    with pytest.raises(HpmlError, match=r"oxford_pets_9.tar (cannot be unpacked|: annotations)"):
        pets.load()
    assert len(fetch.check("pets")) == 1
    assert not list((tmp_path / "cache").glob("*"))


def test_data_commands_show_and_check_it(tmp_path):
    write(tmp_path / "data" / "pets", good() | TRAPS["not an image"])

    def hpml(*arguments):
        code = f"import sys; sys.argv = ['hpml', *{arguments!r}]; from hpml.cli import main; main()"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert "Oxford-IIIT Pet: " + str(tmp_path / "data" / "pets") in hpml("data", "list").stdout
    told = hpml("data", "check", "pets")
    assert told.returncode == 1 and told.stdout == "images/Abyssinian_2.jpg: not an image\n"
    assert hpml("data", "check", "pets", "--fix").returncode == 0
    assert "nothing wrong" in hpml("data", "check", "pets").stdout
    refused = hpml("data", "check", "digits", "--fix")
    assert refused.returncode == 2 and "no single files to move" in refused.stderr


# ---- samples


def test_image_and_mask_are_cut_and_mirrored_alike():
    import torch

    column = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    images, masks = np.repeat(column[None, ..., None], 3, axis=3), (column > 127).astype(np.uint8)[None]
    dataset = MaskDataset(images, masks, train=True, image=32)
    torch.manual_seed(0)
    mirrored = 0
    for _ in range(20):
        image, mask = dataset[0]
        assert image.shape == (3, 32, 32) and image.dtype == torch.float32 and mask.shape == (32, 32) and mask.dtype == torch.uint8
        bright = image[0] * 0.229 + 0.485 > 0.5
        assert (bright == mask.bool()).float().mean() > 0.9 and set(mask.unique().tolist()) <= {0, 1}
        mirrored += int(mask[16, 0]) > int(mask[16, -1])
    assert 0 < mirrored < 20
    plain = MaskDataset(images, masks, train=False, image=64)[0]
    assert np.array_equal(plain[1].numpy(), masks[0])


def test_a_jpeg_is_decoded_for_each_sample_and_maps_travel_by_path(tmp_path):
    write(tmp_path / "data" / "pets", good())
    found = pets.load()
    array = MaskDataset(found.test_images, found.test_labels, train=False, image=64)
    jpeg = MaskDataset(found.test_images, found.test_labels, train=False, image=64, storage="jpeg")
    assert len(pickle.dumps(array)) < 2000 and len(pickle.dumps(jpeg)) < 2000
    again = pickle.loads(pickle.dumps(jpeg))
    assert (again[1][0] - array[1][0]).abs().mean() < 0.2 and (again[1][1] == array[1][1]).all()
    with pytest.raises(HpmlError, match="masks: uint8"):
        MaskDataset(found.test_images, found.train_labels, train=False, image=64)


# ---- the stand-in


def test_rendered_animals_are_deterministic_and_have_all_classes():
    images, masks = creatures.render(6, seed=0)
    again, same = creatures.render(3, seed=0)
    assert np.array_equal(images[:3], again) and np.array_equal(masks[:3], same)
    assert not np.array_equal(images, creatures.render(6, seed=0, stream=1)[0])
    shares = np.bincount(masks.ravel(), minlength=3) / masks.size
    assert (shares > 0.05).all() and shares[1] > shares[0]
    assert all((mask == 0).any() and (mask == 2).any() for mask in masks)


def test_the_stand_in_is_rendered_once(monkeypatch):
    arrays, checksum = creatures.load(4, 2)
    monkeypatch.setattr(creatures, "render", None)
    again, same = creatures.load(4, 2)
    assert same == checksum and np.array_equal(arrays["train_images"], again["train_images"])


def test_the_stand_in_serves_where_the_real_one_is_absent(monkeypatch):
    monkeypatch.setattr(creatures, "render", lambda n, **_: (np.zeros((n, 8, 8, 3), np.uint8), np.zeros((n, 8, 8), np.uint8)))
    found = pets.open_pets("auto", 64)
    assert found.origin == "stand-in" and not set(found.train_names) & set(found.test_names)
    assert len(pets.subset(found, 5, 3, 0).train_names) == 5
