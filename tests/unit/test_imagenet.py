"""ImageNet's layouts and the traps in its files, on small files made here; the loader that skips what cannot be read."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from hpml import data as sources
from hpml import workloads
from hpml.data import fetch, imagenet, jpegfiles, rendered
from hpml.data.loader import loader
from hpml.env import HpmlError, Unavailable
from hpml.knobs import validate

WNIDS, NAMES = imagenet.classes()
KNOBS = validate("train", {"image": 32, "batch": 4, "storage": "jpeg"})


def jpeg(value=0, mode="RGB", kind="JPEG", size=(60, 40)):
    file = io.BytesIO()
    noise = np.random.default_rng(value).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file, kind)
    return file.getvalue()


def folders(top, train=2, val=1, wnids=WNIDS[:3]):
    for part, count in (("train", train), ("val", val)):
        for label, wnid in enumerate(wnids if count else ()):
            (top / part / wnid).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                (top / part / wnid / f"{wnid}_{i}.JPEG").write_bytes(jpeg(10 * label + i))
    return top


def packed(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def archives(top):
    top.mkdir()
    train = {f"{wnid}.tar": packed(top / "inner", {f"{wnid}_{i}.JPEG": jpeg(10 * label + i) for i in range(2)})
             for label, wnid in enumerate(WNIDS[:3])}
    (top / "inner").unlink()
    packed(top / imagenet.TRAIN_TAR, train)
    packed(top / imagenet.VAL_TAR, {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(100 + i) for i in (2, 1)})
    return top


def devkit(top, order=(2, 0, 1)):
    """A devkit whose own numbering of classes is not the wnids' order."""
    from scipy.io import savemat

    folder = top / imagenet.DEVKIT / "data"
    folder.mkdir(parents=True)
    synsets = np.array([(number, WNIDS[c]) for number, c in enumerate(order, 1)], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    savemat(folder / "meta.mat", {"synsets": synsets})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n3\n")


def test_folders_have_all_classes_in_torchvisions_order(tmp_path):
    wnids = (WNIDS[7], WNIDS[0], WNIDS[999])
    files = imagenet.load(path=folders(tmp_path, wnids=wnids))
    assert len(files.classes) == 1000 and files.classes[0] == "tench" and files.informative
    assert sorted(set(files.train_labels)) == [0, 7, 999] and len(files.train_labels) == 6 and len(files.test_labels) == 3
    assert files.picture(files.test_images[0]).size == (60, 40)
    assert jpegfiles.dataset(files, train=False, image=32, storage="array")[2][1] == 999
    assert files.checksum == imagenet.load(path=tmp_path).checksum


def test_archives_are_read_without_unpacking(tmp_path):
    top = archives(tmp_path / "set")
    with pytest.raises(HpmlError, match=r"classes of the validation images are missing: put ILSVRC2012_devkit_t12\.tar\.gz"):
        imagenet.load(path=top)
    devkit(top)
    files = imagenet.load(path=top)
    assert list(files.train_labels) == [0, 0, 1, 1, 2, 2]
    assert files.read(files.train_images[3]) == jpeg(11)
    assert list(files.test_labels) == [2, 1] and files.read(files.test_images[0]) == jpeg(101)  # by the devkit's numbers, in name order
    assert {path.name for path in top.iterdir()} == {imagenet.TRAIN_TAR, imagenet.VAL_TAR, imagenet.DEVKIT}


def test_a_cut_archive_is_named(tmp_path):
    top = archives(tmp_path / "set")
    devkit(top)
    content = (top / imagenet.TRAIN_TAR).read_bytes()
    (top / imagenet.TRAIN_TAR).write_bytes(content[: len(content) // 2])
    with pytest.raises(HpmlError, match=r"ILSVRC2012_img_train\.tar.* is cut or damaged"):
        imagenet.load(path=top)


def test_a_flat_val_takes_kaggles_list_and_misses_are_named(tmp_path):
    folders(tmp_path, val=0)
    (tmp_path / "val").mkdir()
    for i in (1, 2):
        (tmp_path / "val" / f"ILSVRC2012_val_{i:08d}.JPEG").write_bytes(jpeg(i))
    (tmp_path / imagenet.SOLUTION).write_text(f"ImageId,PredictionString\nILSVRC2012_val_00000001,{WNIDS[2]} 1 2 3 4\n")
    with pytest.raises(HpmlError, match="no class is listed for the validation image val/ILSVRC2012_val_00000002"):
        imagenet.load(path=tmp_path)
    with (tmp_path / imagenet.SOLUTION).open("a") as file:
        file.write(f"ILSVRC2012_val_00000002,{WNIDS[1]} 1 2 3 4\n")
    assert list(imagenet.load(path=tmp_path).test_labels) == [2, 1]


def test_one_image_a_class_cannot_test(tmp_path):
    members = {f"sample/{wnid}_x.JPEG": jpeg(i, "L" if i else "RGB") for i, wnid in enumerate(WNIDS[:4])}
    packed(tmp_path / "imagenet_sample_few.tar", members)
    (tmp_path / "labels.csv").write_text("file,wnid\n" + "".join(f"{wnid}_x.JPEG,{wnid}\n" for wnid in WNIDS[:9]))
    files = imagenet.load(path=tmp_path)
    assert imagenet.one_a_class(tmp_path) and not files.informative and "say nothing about quality" in files.note
    assert list(files.test_labels) == list(files.train_labels) == [0, 1, 2, 3]
    images, _ = jpegfiles.dataset(files, train=False, image=32, storage="jpeg")[3]
    assert images.shape == (3, 32, 32)  # grey became RGB
    scores = workloads.get("resnet152").evaluate(lambda inputs: np.eye(1000)[:len(inputs[0])], KNOBS, files)
    assert scores["informative"] is False and scores["n"] == 4


def test_without_val_every_fifth_image_tests(tmp_path):
    files = imagenet.load(path=folders(tmp_path, train=5, val=0))
    assert files.informative and len(files.test_labels) == 3 and len(files.train_labels) == 12
    assert not {*files.train_images["name"]} & {*files.test_images["name"]}


def spoiled(top):
    """Every trap of the real files in one small set."""
    folders(top, train=3)
    first, second = (top / "train" / wnid for wnid in WNIDS[:2])
    (first / "a_gif.JPEG").write_bytes(jpeg(kind="GIF"))
    (first / "b_png.JPEG").write_bytes(jpeg(mode="RGBA", kind="PNG"))
    (first / "c_page.JPEG").write_text("<html>not found</html>")
    (first / "d_empty.JPEG").write_bytes(b"")
    (second / "e_cut.JPEG").write_bytes(jpeg(size=(400, 300))[:20_000])
    (second / "f_cmyk.JPEG").write_bytes(jpeg(mode="CMYK"))
    (second / "g_grey.JPEG").write_bytes(jpeg(mode="L"))
    (second / "Thumbs.db").write_bytes(b"x")
    (top / "train" / "n00000000").mkdir()
    return top


def test_check_lists_each_fault_and_moves_aside(tmp_path, capsys):
    wrong = dict(line.split(": ", 1) for line in imagenet.check("imagenet", spoiled(tmp_path)))
    reasons = {name.rsplit("/", 1)[1]: reason for name, reason in wrong.items()}
    assert reasons["a_gif.JPEG"] == "GIF (P), not JPEG" and reasons["b_png.JPEG"] == "PNG (RGBA), not JPEG"
    assert reasons["c_page.JPEG"] == "no image" and reasons["d_empty.JPEG"] == "empty file"
    assert reasons["e_cut.JPEG"].startswith("truncated or damaged") and reasons["Thumbs.db"] == "not named as an image"
    assert reasons["n00000000"].startswith("no class of ImageNet-1k") and len(reasons) == 7
    said = capsys.readouterr().err
    assert "1 CMYK" in said and "1 grey" in said
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    left = imagenet.check("imagenet", tmp_path, fix=True)
    assert [line.split(":")[0] for line in left] == ["train/n00000000"]  # a folder stays
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert (tmp_path / "set_aside" / "train" / WNIDS[0] / "a_gif.JPEG").is_file()
    assert imagenet.check("imagenet", tmp_path) == left


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_skipped_and_listed(tmp_path, workers):
    files = imagenet.load(path=spoiled(tmp_path))
    samples = jpegfiles.dataset(files, train=True, image=32, storage="jpeg")
    batches = loader(samples, {**KNOBS, "workers": workers}, batch=4, shuffle=False, seed=0)
    labels = [int(label) for _, batch in batches for label in batch]
    assert len(labels) == len(files.train_labels)
    assert {name.rsplit("/", 1)[1] for name in samples.skipped} == {"c_page.JPEG", "d_empty.JPEG", "e_cut.JPEG"}
    assert sources.skipped(samples)["skipped"]["count"] == 3


def test_nothing_readable_is_one_line(tmp_path):
    folders(tmp_path, train=1, wnids=WNIDS[:1])
    (tmp_path / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").write_bytes(b"x")
    files = imagenet.load(path=tmp_path)
    with pytest.raises(HpmlError, match="none of the 1 images can be read"):
        jpegfiles.dataset(files, train=True, image=32, storage="jpeg")[0]
    with pytest.raises(HpmlError, match="none of the 1 images can be read"):
        jpegfiles.squares(files, 36)


def test_arrays_keep_what_the_files_show(tmp_path):
    files = imagenet.load(path=spoiled(tmp_path))
    pixels, labels = jpegfiles.squares(files, 36)
    assert pixels.shape == (13, 36, 36, 3) and len(labels) == 13  # 16 files, three cannot be read
    assert jpegfiles.dataset(files, train=True, image=32, storage="array")[0][0].shape == (3, 32, 32)


def test_the_gated_set_prints_its_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_DATA", str(tmp_path))
    said = []
    with pytest.raises(HpmlError, match="imagenet is not here yet"):
        fetch.fetch("imagenet", progress=said.append)
    assert len(said) == 3 and "image-net.org" in said[0]
    with pytest.raises(Unavailable, match="ImageNet is not on this machine"):
        sources.open_images("imagenet")
    folders(tmp_path / "imagenet")
    assert fetch.fetch("imagenet", progress=said.append) == tmp_path / "imagenet"
    assert fetch.check("imagenet") == [] and sources.open_images("imagenet").name == "imagenet"


def test_auto_judges_quality_on_what_can_test(tmp_path, monkeypatch):
    net = workloads.get("resnet152")
    monkeypatch.setenv("HPML_DATA", str(tmp_path))
    packed(tmp_path / "imagenet_sample.tar", {f"{WNIDS[0]}_x.JPEG": jpeg()})
    (tmp_path / "labels.csv").write_text(f"file,wnid\n{WNIDS[0]}_x.JPEG,{WNIDS[0]}\n")
    steps, fit, infer = validate("train", {}), validate("train", {"epochs": 1}), validate("infer", {})
    assert net.identity(steps).startswith(tmp_path.name)
    assert net.identity(fit) == net.identity(infer) == "auto"
    assert net.identity({**fit, "data": "imagenet"}) == net.identity(steps)


def test_the_stand_in_is_files_in_imagenets_folders():
    files = rendered.load(20, 10)
    again = rendered.load(20, 10)
    assert files.origin == "stand-in" and files.checksum == again.checksum and len(files.classes) == 1000
    assert sorted(set(files.train_labels)) == rendered.labels() and len(files.test_labels) == 10
    assert files.classes[50] == "disc" and files.picture(files.train_images[0]).width >= 375
    assert all(files.read(place).startswith(b"\xff\xd8") for place in files.train_images)


def test_resnet152_has_the_published_size():
    import torch

    net = workloads.get("resnet152")
    with torch.device("meta"):
        model = net.model({}, net.CLASSES)
    assert sum(p.numel() for p in model.parameters()) == net.PARAMETERS == 60_192_808
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 1000)


def test_top5_stands_beside_top1():
    files = rendered.load(20, 10)
    second = np.zeros((10, 1000), np.float32)
    for row, label in enumerate(files.test_labels):
        second[row, (label + 1) % 1000], second[row, label] = 2, 1
    scores = workloads.get("resnet152").evaluate(lambda inputs: second[:len(inputs[0])], KNOBS, files)
    assert scores["value"] == 0 and scores["details"]["top-5 accuracy"] == 1
