"""Image sets: how they are found, checked, converted and read as samples."""

import dataclasses
import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from hpml import data
from hpml.data import cifar, digits, shapes
from hpml.data.images import ImageDataset, ImageSet, mean_std, read_stored, store, subset
from hpml.env import HpmlError, Unavailable

CLASSES = ("airplane", "automobile", "bird")
PER_CLASS = (4, 2)


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HPML_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HPML_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    return tmp_path


def toy_set(n=40, n_test=20, classes=4, side=8):
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.arange(n) % classes)
    test_labels = rng.permutation(np.arange(n_test) % classes)
    images = rng.integers(0, 256, (n, side, side, 3), np.uint8)
    return ImageSet("toy", "Toy", "stand-in", list("abcd")[:classes], images, labels,
                    rng.integers(0, 256, (n_test, side, side, 3), np.uint8), test_labels, "ab12")


# ---- CIFAR


def picture(part, label, number):
    return np.random.default_rng([part == "test", label, number]).integers(0, 256, (32, 32, 3), np.uint8)


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def jpeg_members():
    return {f"{part}/{name}/{number:04}.jpg": jpeg(np.full((32, 32, 3), 40 * label + 5 * number, np.uint8))
            for part, count in zip(("train", "test"), PER_CLASS, strict=True)
            for label, name in enumerate(CLASSES) for number in range(count)}


def write_tar(path, members, mode="w:xz"):
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def jpeg_files(path, **changes):
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return dataclasses.replace(cifar.SETS["cifar10"], n_classes=3, per_class=PER_CLASS,
                               **{"jpeg_sha256": sha256, **changes})


@pytest.fixture
def jpeg_tar(folders):
    return write_tar(folders / "data" / "cifar10" / "cifar10_jpg_60k.tar.xz", {"README.md": b"hi", **jpeg_members()})


def batch_contents():
    def batch(part, count):
        order = np.random.default_rng(0).permutation(count * 3)
        rows = [picture(part, i % 3, i // 3).transpose(2, 0, 1).reshape(-1) for i in order]
        return {"data": np.stack(rows), "labels": [int(i % 3) for i in order]}

    contents = {"data_batch_1": batch("train", 4), "test_batch": batch("test", 2),
                "batches.meta": {"label_names": list(CLASSES)}}
    return {name: pickle.dumps(value, protocol=2) for name, value in contents.items()}


def md5(content):
    return hashlib.md5(content).hexdigest()


def batch_files(contents, archive=None):
    return dataclasses.replace(
        cifar.SETS["cifar10"], n_classes=3, per_class=PER_CLASS,
        train=(("data_batch_1", md5(contents["data_batch_1"])),), test=(("test_batch", md5(contents["test_batch"])),),
        meta=("batches.meta", md5(contents["batches.meta"])), archive_md5=md5(archive.read_bytes()) if archive else "")


@pytest.fixture
def batch_folder(folders):
    folder = folders / "data" / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in batch_contents().items():
        (folder / name).write_bytes(content)
    return folder


def test_the_published_checksums_are_those_of_torchvision():
    torchvision = pytest.importorskip("torchvision.datasets")
    for name, theirs in (("cifar10", torchvision.CIFAR10), ("cifar100", torchvision.CIFAR100)):
        ours = cifar.SETS[name]
        assert (ours.folder, ours.archive, ours.archive_md5) == (theirs.base_folder, theirs.filename, theirs.tgz_md5)
        assert [*map(list, ours.train)] == theirs.train_list and [*map(list, ours.test)] == theirs.test_list
        assert ours.meta == (theirs.meta["filename"], theirs.meta["md5"]) and ours.names_key == theirs.meta["key"]


def test_a_jpeg_archive_is_converted_once_and_then_mapped(jpeg_tar, capsys):
    files = jpeg_files(jpeg_tar)
    first = cifar.load("cifar10", files=files)
    assert "converting CIFAR-10 once: " in capsys.readouterr().err
    assert first.train_images.shape == (12, 32, 32, 3) and first.test_images.shape == (6, 32, 32, 3)
    assert first.train_labels.tolist() == [0, 1, 2] * 4 and first.classes == list(CLASSES)
    for at, label in enumerate(first.train_labels):
        assert abs(int(first.train_images[at].mean()) - (40 * label + 5 * (at // 3))) <= 1
    assert first.checksum == files.jpeg_sha256 and first.note == "JPEG re-encoding"
    again = cifar.load("cifar10", files=files)
    assert capsys.readouterr().err == ""
    assert isinstance(again.train_images, np.memmap) and np.array_equal(first.train_images, again.train_images)


def test_the_archive_is_not_read_again_while_size_and_time_stay(jpeg_tar, capsys):
    files = jpeg_files(jpeg_tar)
    cifar.load("cifar10", files=files)
    facts = jpeg_tar.stat()
    jpeg_tar.write_bytes(bytes(facts.st_size))
    os.utime(jpeg_tar, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    cifar.load("cifar10", files=files)
    os.utime(jpeg_tar, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    with pytest.raises(HpmlError, match="is damaged or another file: sha256"):
        cifar.load("cifar10", files=files)


def test_a_touched_archive_is_hashed_but_not_converted_again(jpeg_tar, capsys):
    files = jpeg_files(jpeg_tar)
    cifar.load("cifar10", files=files)
    capsys.readouterr()
    os.utime(jpeg_tar, (1, 1))
    for _ in range(2):
        assert len(cifar.load("cifar10", files=files).train_labels) == 12
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["no meta", "cut", "bad meta", "empty"])
def test_a_cache_that_is_not_whole_is_made_anew(jpeg_tar, folders, capsys, damage):
    files = jpeg_files(jpeg_tar)
    good = np.array(cifar.load("cifar10", files=files).train_images)
    (folder,) = (folders / "cache").iterdir()
    if damage == "no meta":
        (folder / "meta.json").unlink()
    elif damage == "cut":
        os.truncate(folder / "train_images.npy", 1000)
    elif damage == "bad meta":
        (folder / "meta.json").write_text("[]")
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    assert np.array_equal(cifar.load("cifar10", files=files).train_images, good)
    assert "converting" in capsys.readouterr().err
    assert [path.name for path in (folders / "cache").iterdir()] == [folder.name]


def test_a_writer_that_was_killed_leaves_nothing_that_counts(folders):
    code = ("import os, numpy as np, hpml.data.images as m, sys; from pathlib import Path; save = np.save\n"
            "def dying(file, array): save(file, array); file.flush(); os._exit(9)\n"
            "np.save = dying; from hpml.data.images import store\n"
            "store(Path(sys.argv[1]), {'a': np.zeros(9), 'b': np.zeros(9)}, {})")
    target = folders / "cache" / "set-1"
    assert subprocess.run([sys.executable, "-c", code, str(target)]).returncode == 9
    assert not target.exists() and read_stored(target) is None
    (left,) = (folders / "cache").iterdir()
    os.utime(left, (1, 1))
    store(target, {"a": np.zeros(9)}, {"x": 1})
    assert read_stored(target)[0]["x"] == 1 and not left.exists()


def test_of_two_writers_the_first_stays(folders):
    target = folders / "set-1"
    store(target, {"a": np.zeros(9)}, {"by": "first"})
    store(target, {"a": np.zeros(9)}, {"by": "second"})
    assert read_stored(target)[0]["by"] == "first" and not [*folders.glob(".set-1*")]


def test_a_cache_that_cannot_be_written_is_one_line(jpeg_tar, folders):
    (folders / "cache").write_text("a file")
    with pytest.raises(HpmlError, match="cannot write the cache .*HPML_CACHE"):
        cifar.load("cifar10", files=jpeg_files(jpeg_tar))


def without(name):
    return {key: value for key, value in jpeg_members().items() if key != name}


@pytest.mark.parametrize(("members", "words"), [
    (jpeg_members() | {"train/bird/0003.jpg": b"\xff\xd8 nonsense"}, "train/bird/0003.jpg is no readable JPEG"),
    (jpeg_members() | {"train/bird/0003.jpg": jpeg(picture("train", 2, 3))[:700]}, "bird/0003.jpg is no readable JPEG"),
    (jpeg_members() | {"test/bird/0001.jpg": jpeg(np.zeros((16, 32, 3), np.uint8))}, "bird/0001.jpg has 32x16 pixels"),
    (jpeg_members() | {"train/bird/0004.jpg": b""}, "train/bird/0004.jpg has no place among 4"),
    (jpeg_members() | {"train/dodo/0001.jpg": b""}, "train/dodo/0001.jpg has no place"),
    (jpeg_members() | {"loose.jpg": b""}, "loose.jpg is not of the form"),
    (jpeg_members() | {"./train/bird/0001.jpg": jpeg(picture("train", 2, 1))}, "train/bird/0001.jpg is there twice"),
    (without("train/airplane/0002.jpg"), "train holds 11 images, 12 are expected"),
    (without("test/bird/0001.jpg"), "test holds 5 images, 6 are expected"),
])
def test_a_wrong_member_is_named(folders, members, words):
    path = write_tar(folders / "data" / "cifar10" / "cifar10_jpg_60k.tar.xz", members)
    with pytest.raises(HpmlError) as error:
        cifar.load("cifar10", files=jpeg_files(path))
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (folders / "cache").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "not xz", "empty"])
@pytest.mark.parametrize("published", [True, False])
def test_a_damaged_archive_is_named(jpeg_tar, damage, published):
    files = jpeg_files(jpeg_tar)
    content = jpeg_tar.read_bytes()
    middle = len(content) // 2
    jpeg_tar.write_bytes({"cut": content[:middle], "not xz": b"\0" * 4000, "empty": b"",
                          "flipped": content[:middle] + bytes(64) + content[middle + 64 :]}[damage])
    if not published:
        files = jpeg_files(jpeg_tar)
    with pytest.raises(HpmlError, match=str(jpeg_tar)) as error:
        cifar.load("cifar10", files=files)
    assert "\n" not in str(error.value)
    assert bool(cifar.problems("cifar10", jpeg_tar, files=files)) == published


def test_official_batches_give_the_pixels_and_the_order_of_the_files(batch_folder):
    contents = batch_contents()
    loaded = cifar.load("cifar10", files=batch_files(contents))
    order = np.random.default_rng(0).permutation(12)
    assert loaded.train_labels.tolist() == (order % 3).tolist() and loaded.classes == list(CLASSES)
    assert all(np.array_equal(loaded.train_images[at], picture("train", i % 3, i // 3)) for at, i in enumerate(order))
    assert loaded.train_labels.dtype == np.int64 and loaded.note == "" and loaded.origin == "real"


def test_the_official_archive_is_the_same_set_as_its_folder(batch_folder, folders, capsys):
    contents = batch_contents()
    unpacked = cifar.load("cifar10", files=batch_files(contents))
    shutil.rmtree(batch_folder)
    members = {f"cifar-10-batches-py/{name}": content for name, content in contents.items()}
    path = write_tar(folders / "data" / "cifar10" / "cifar-10-python.tar.gz", members, "w:gz")
    files = batch_files(contents, path)
    archived = cifar.load("cifar10", files=files)
    assert archived.checksum == unpacked.checksum and cifar.problems("cifar10", path, files=files) == []
    shutil.rmtree(folders / "cache")
    assert np.array_equal(cifar.load("cifar10", files=files).train_images, unpacked.train_images)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(HpmlError, match=f"{path} is damaged"):
        cifar.load("cifar10", files=files)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_was_not_published_is_not_opened(batch_folder, folders):
    files = batch_files(batch_contents())
    (batch_folder / "data_batch_1").write_bytes(pickle.dumps(Evil(folders / "opened")))
    with pytest.raises(HpmlError, match="data_batch_1 is damaged or another file: md5 .* it is not opened"):
        cifar.load("cifar10", files=files)
    assert not (folders / "opened").exists()
    assert len(cifar.problems("cifar10", batch_folder, files=files)) == 1


def test_a_missing_batch_is_named(batch_folder):
    files = batch_files(batch_contents())
    (batch_folder / "test_batch").unlink()
    with pytest.raises(HpmlError, match="test_batch is missing"):
        cifar.load("cifar10", files=files)
    assert "test_batch" in cifar.problems("cifar10", batch_folder, files=files)[0]


def test_wrong_counts_are_said(batch_folder):
    files = dataclasses.replace(batch_files(batch_contents()), per_class=(5, 2))
    with pytest.raises(HpmlError, match="train holds 12 images, 5 of each of 3 classes are expected"):
        cifar.load("cifar10", files=files)


# ---- which set a name means


def test_sources_without_files(folders):
    for name in ("cifar10", "cifar100"):
        with pytest.raises(Unavailable, match=f"hpml data fetch {name}") as error:
            data.open_images(name)
        assert "\n" not in str(error.value)
    assert data.open_images().name == data.open_images("real").name == data.open_images("digits").name == "digits"
    with pytest.raises(HpmlError, match="'cifar' is unknown; choose one of: auto, real"):
        data.open_images("cifar")


def test_sources_without_scikit_learn(monkeypatch):
    monkeypatch.setattr(digits, "find", lambda name="digits": None)
    assert data.open_images("auto").name == "standin"
    for source in ("real", "digits"):
        with pytest.raises(Unavailable, match="scikit-learn"):
            data.open_images(source)


def test_cifar_on_disk_comes_first_and_damage_is_never_passed_over(jpeg_tar, monkeypatch):
    monkeypatch.setitem(cifar.SETS, "cifar10", jpeg_files(jpeg_tar))
    assert data.open_images("auto").name == data.open_images("real").name == data.open_images("cifar10").name == "cifar10"
    assert data.describe(data.open_images()) == "CIFAR-10 (real, JPEG re-encoding), 12 + 6 images"
    jpeg_tar.write_bytes(b"something else")
    for source in ("auto", "real", "cifar10"):
        with pytest.raises(HpmlError, match="damaged"):
            data.open_images(source)


def test_the_package_is_light():
    code = ("import sys, hpml.data\nassert not {'torch', 'numpy', 'PIL', 'sklearn'} & set(sys.modules)\n"
            "assert hpml.data.open_images('digits').name == 'digits'\nassert 'torch' not in sys.modules\n")
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- digits and shapes


def test_digits_are_split_once_and_in_proportion():
    one, two = digits.load(), digits.load()
    assert one.train_images.shape == (1437, 32, 32, 3) and one.test_images.shape == (360, 32, 32, 3)
    assert one.train_images.dtype == np.uint8 and one.train_labels.dtype == np.int64 and not one.mirror_ok
    assert np.array_equal(one.test_images, two.test_images) and one.checksum == two.checksum
    train, test = np.bincount(one.train_labels), np.bincount(one.test_labels)
    assert np.abs(test / (train + test) - 360 / 1797).max() < 0.005
    assert data.describe(one) == "handwritten digits (embedded, 8x8 upsampled to 32x32), 1,437 + 360 images"


def test_digits_are_scikit_learns_upsampled():
    datasets, torch = pytest.importorskip("sklearn.datasets"), pytest.importorskip("torch")
    theirs = datasets.load_digits()
    ours = digits._upsampled(theirs.images[:5].astype(np.float32))
    expected = torch.nn.functional.interpolate(torch.tensor(theirs.images[:5])[:, None], size=32, mode="bilinear")
    assert np.allclose(ours, expected[:, 0].numpy(), atol=1e-4)
    both = np.concatenate([digits.load().train_labels, digits.load().test_labels])
    assert np.array_equal(np.bincount(both), np.bincount(theirs.target))


def test_damaged_digits_are_one_line(folders):
    for content in (b"", b"not gzip", digits.find().read_bytes()[:20_000]):
        (folders / "digits.csv.gz").write_bytes(content)
        with pytest.raises(HpmlError, match="digits.csv.gz") as error:
            digits.load(folders / "digits.csv.gz")
        assert "\n" not in str(error.value)


def test_the_stand_in_is_deterministic_balanced_and_cached(capsys):
    one = shapes.load(60, 20)
    assert "once" in capsys.readouterr().err
    two = shapes.load(60, 20)
    assert capsys.readouterr().err == "" and isinstance(two.train_images, np.memmap)
    images, labels = shapes.render(60, seed=0)
    assert np.array_equal(one.train_images, images) and np.array_equal(two.train_labels, labels)
    assert np.bincount(one.test_labels).tolist() == [2] * 10 and one.train_images.shape == (60, 32, 32, 3)
    other = shapes.load(60, 20, seed=1)
    assert other.checksum != one.checksum and not np.array_equal(other.train_images, one.train_images)
    assert not np.array_equal(one.train_images[:20], one.test_images)
    assert one.origin == "stand-in" and len(one.classes) == 10


def test_the_stand_ins_classes_differ_and_overlap():
    """The mean picture of a class tells more than chance and far less than all."""
    images, labels = shapes.render(2000, seed=0)
    test, test_labels = shapes.render(500, seed=0, stream=1)
    centres = np.stack([images[labels == c].reshape(-1, 3072).mean(0) for c in range(10)])
    nearest = ((test.reshape(-1, 1, 3072) - centres) ** 2).sum(2).argmin(1)
    assert 0.13 < (nearest == test_labels).mean() < 0.6


# ---- subset, statistics, pickling


def test_a_subset_is_balanced_deterministic_and_nested():
    whole = toy_set()
    part = subset(whole, 10, 6, seed=3)
    assert sorted(np.bincount(part.train_labels)) == [2, 2, 3, 3]
    assert sorted(np.bincount(part.test_labels)) == [1, 1, 2, 2]
    assert np.array_equal(part.train_images, subset(whole, 10, 6, seed=3).train_images)
    assert not np.array_equal(part.train_images, subset(whole, 10, 6, seed=4).train_images)
    assert np.array_equal(part.train_images, subset(whole, 20, 6, seed=3).train_images[:10])
    rows = dict(zip(map(np.ndarray.tobytes, whole.train_images), whole.train_labels, strict=True))
    assert [rows[image.tobytes()] for image in part.train_images] == part.train_labels.tolist()
    assert len({image.tobytes() for image in part.train_images}) == 10 and part.checksum == whole.checksum


def test_a_subset_of_everything_is_everything():
    whole = toy_set()
    for n in (0, -1, 40, 41):
        assert subset(whole, n, n, seed=0).train_images is whole.train_images


def test_a_subset_of_uneven_classes_uses_what_there_is():
    whole = dataclasses.replace(toy_set(), train_labels=np.array([0] * 37 + [1, 2, 3]))
    assert np.bincount(subset(whole, 12, 0, seed=0).train_labels).tolist() == [9, 1, 1, 1]


def test_mean_and_std_do_not_mistake_one_class_for_all():
    labels = np.arange(1000) % 10
    images = np.repeat(labels * 25, 12).reshape(1000, 2, 2, 3).astype(np.uint8)
    mean, std = mean_std(images, limit=100)
    assert mean == pytest.approx([112.5 / 255] * 3, abs=0.08) and std == pytest.approx([71.8 / 255] * 3, abs=0.05)
    assert mean_std(images)[0] == pytest.approx([112.5 / 255] * 3)


def test_memory_maps_are_pickled_by_path(folders):
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    store(folders / "set", {"images": images, "labels": np.arange(64)}, {})
    arrays = read_stored(folders / "set")[1]
    for images in (arrays["images"], arrays["images"][5:], np.asarray(arrays["images"])[5:9]):
        dataset = ImageDataset(images, arrays["labels"][: len(images)], train=False)
        sent = pickle.dumps(dataset)
        received = pickle.loads(sent)
        assert len(sent) < 4000 and np.array_equal(received.images, images)
        assert np.array_equal(received[3][0], dataset[3][0]) and received[3][1] == 3
    whole = dataclasses.replace(toy_set(), train_images=arrays["images"])
    sent = pickle.dumps(whole)
    assert len(sent) < 30_000 and np.array_equal(pickle.loads(sent).train_images, arrays["images"])
    gaps = pickle.loads(pickle.dumps(ImageDataset(arrays["images"][::2], np.arange(32), train=False)))
    assert np.array_equal(gaps.images, arrays["images"][::2])


# ---- samples


def gradient_images(n=6):
    ramp = np.arange(32, dtype=np.uint8)
    picture = np.stack([np.broadcast_to(ramp * 8, (32, 32)), np.broadcast_to(ramp[:, None] * 8, (32, 32)),
                        np.full((32, 32), 100, np.uint8)], axis=2)
    return np.stack([picture] * n)


def test_a_test_sample_is_the_normalised_image():
    images = gradient_images()
    sample, label = ImageDataset(images, np.arange(6), train=False, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))[4]
    expected = (images[4] / 255 - (0.4, 0.5, 0.6)) / (0.1, 0.2, 0.3)
    assert sample.shape == (3, 32, 32) and str(sample.dtype) == "torch.float32" and sample.is_contiguous()
    assert np.allclose(sample.permute(1, 2, 0).numpy(), expected, atol=1e-4) and label == 4 and type(label) is int


@pytest.mark.parametrize("storage", ["array", "jpeg"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("image", [16, 32, 48])
def test_every_output_size(storage, train, image):
    dataset = ImageDataset(gradient_images(2), np.arange(2), train=train, image=image, storage=storage, jpeg_side=64)
    sample, _ = dataset[-1]
    assert sample.shape == (3, image, image) and abs(float(sample[2].median()) - (100 / 255 - 0.5) / 0.25) < 0.1
    with pytest.raises(IndexError):
        dataset[2]


@pytest.mark.parametrize("storage", ["array", "jpeg"])
def test_training_crops_and_mirrors_by_torchs_generator(storage):
    import torch

    def drawn(flip, seed):
        torch.manual_seed(seed)
        dataset = ImageDataset(gradient_images(1), np.zeros(1, int), train=True, flip=flip, storage=storage)
        return torch.stack([dataset[0][0] for _ in range(40)])

    assert torch.equal(drawn(True, 1), drawn(True, 1)) and not torch.equal(drawn(True, 1), drawn(True, 2))

    def mirrored(samples):  # the first channel grows from left to right where nothing is mirrored
        return int((samples[:, 0, 16, 8] > samples[:, 0, 16, 24]).sum())

    assert mirrored(drawn(False, 1)) == 0 and 8 < mirrored(drawn(True, 1)) < 32
    assert len(drawn(False, 1).flatten(1).unique(dim=0)) > 20


def test_jpegs_are_encoded_once(capsys, folders):
    images = gradient_images(3)
    for _ in range(2):
        ImageDataset(images, np.arange(3), train=True, storage="jpeg", jpeg_side=40)
    assert capsys.readouterr().err.count("encoding 3 JPEGs of 40 pixels once") == 1
    ImageDataset(images[:2], np.arange(2), train=True, storage="jpeg", jpeg_side=40)
    assert len([*(folders / "cache").iterdir()]) == 2
    dataset = ImageDataset(images, np.arange(3), train=True, storage="jpeg", jpeg_side=256)
    assert len(pickle.dumps(dataset)) < 4000
    with Image.open(io.BytesIO(dataset.encoded[: dataset.offsets[1]].tobytes())) as picture:
        assert picture.format == "JPEG" and picture.size == (256, 256)


def test_the_loader_gives_equal_batches_under_every_start_method(folders):
    import torch
    from torch.utils.data import DataLoader

    store(folders / "set", {"images": shapes.render(16, seed=0)[0]}, {})
    dataset = ImageDataset(read_stored(folders / "set")[1]["images"], np.arange(16), train=True, image=40)

    def epoch(method, seed):
        loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=1, multiprocessing_context=method,
                            generator=torch.Generator().manual_seed(seed))
        samples, labels = zip(*loader, strict=True)
        return torch.cat(samples), torch.cat(labels)

    methods = multiprocessing.get_all_start_methods()
    samples, labels = epoch(methods[0], 5)
    assert sorted(labels.tolist()) == list(range(16)) and samples.shape == (16, 3, 40, 40)
    for method in methods:  # fork, spawn, forkserver
        again, again_labels = epoch(method, 5)
        assert torch.equal(samples, again) and torch.equal(labels, again_labels), method
    assert not torch.equal(samples, epoch(methods[0], 6)[0])


@pytest.mark.parametrize(("change", "words"), [
    ({"images": np.zeros((2, 32, 32), np.uint8)}, "uint8"), ({"images": np.zeros((2, 8, 8, 3))}, "float64"),
    ({"labels": np.zeros(3)}, "2 images but 3 labels"), ({"storage": "png"}, "'png': choose array or jpeg"),
    ({"image": 0}, "at least 1 pixel"), ({"std": (1, 0, 1)}, "std above 0"), ({"mean": (1, 2)}, "three of each"),
])
def test_arguments_that_do_not_fit_are_one_line(change, words):
    arguments = {"images": np.zeros((2, 8, 8, 3), np.uint8), "labels": np.zeros(2), "train": True} | change
    with pytest.raises(HpmlError, match=words):
        ImageDataset(arguments.pop("images"), arguments.pop("labels"), **arguments)
