"""An index of pictures: made by the command, gone on with, searched, and refused in one line where it would answer with noise."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

from hpml import cli, pretrained, study, workloads
from hpml.apps import clip_index
from hpml.apps.clip_index import Index, Picture
from hpml.data import bpe, road
from hpml.env import HpmlError
from hpml.serve import indexing

CLIP = workloads.get("clip")
SMALL = {"variant": "small", "image": 64, "length": 24}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("HPML_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("HPML_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def run(tmp_path):
    """A run that has trained weights of the small variant, as far as a reader of them can tell."""
    return trained(tmp_path / "results" / "runs" / "mine" / "models", seed=0)


def trained(models, seed):
    from safetensors.torch import save_file as save

    models.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    save({name: value.contiguous() for name, value in CLIP.model(SMALL, 36).state_dict().items()}, models / "clip.safetensors")
    tokenizer = CLIP.data({"data": "standin", "train_samples": 36, "test_samples": 36}).tokenizer
    (models / "clip.json").write_text(json.dumps({"knobs": SMALL, "actual": {"data": {"tokenizer": tokenizer}}}))
    return models


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    frames, _ = road.render(5, seed=3)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / ("more" if i % 2 else ".") / f"{i}.png")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (folder / "notes.txt").write_text("no picture")
    (folder / "link.png").symlink_to(folder / "0.png")
    return folder


def hpml(*words):
    done = CliRunner().invoke(cli.app, ["clip", *map(str, words)])
    if done.exception and not isinstance(done.exception, HpmlError | SystemExit):
        raise done.exception
    return done


def index(folder, out):
    return hpml("index", folder, "--out", out, "--engine", "eager", "--run-id", "mine", "--tier", "smoke", "--data", "standin")


def refusal(*words) -> str:
    found = hpml(*words).exception
    assert isinstance(found, HpmlError) and "\n" not in str(found), found
    return str(found)


def test_a_folder_is_indexed_gone_on_with_and_searched(run, pictures, tmp_path, monkeypatch):
    out = tmp_path / "pictures.index"
    done = index(pictures, out)
    assert done.exit_code == 0 and "left out: cut.jpg: damaged picture" in done.stdout and "5 pictures, 128 numbers each" in done.stdout
    assert "weights trained in this run, eager fp32; byte-pair encoding" in done.stdout
    whole = clip_index.load(out)
    assert [p.name for p in whole.pictures] == ["0.png", "2.png", "4.png", "more/1.png", "more/3.png"]

    found = hpml("search", "a snowy street at night", "--index", out, "-k", "3")
    rows = [line.split() for line in found.stdout.splitlines()]
    net = CLIP.model(SMALL, 36).eval()
    study_file = run / "clip.safetensors"
    from safetensors.torch import load_file

    net.load_state_dict(load_file(study_file))
    frames = CLIP.data({"data": "standin", "train_samples": 36, "test_samples": 36})
    with torch.inference_mode():
        ids = bpe.encode(bpe.open_tokenizer(frames.tokenizer_file, 24), ["a snowy street at night"])
        scores = whole.embeddings @ net.embed_text(torch.as_tensor(ids))[0].numpy()
    assert [row[1] for row in rows] == [whole.pictures[i].name for i in np.argsort(-scores)[:3]]
    assert float(rows[0][0]) == pytest.approx(scores.max(), abs=1e-3)

    near = hpml("search", "--image", pictures / "0.png", "--index", out, "-k", "9").stdout.split()[1::2]
    assert len(near) == 4 and "0.png" not in near, "a picture is no answer to itself"

    # Two pictures are gone from the file, as after an interruption: they alone are embedded, and the file becomes the same.
    Index(whole.made, whole.folder, whole.pictures[:3], whole.embeddings[:3], complete=False).save(out)
    assert "not finished" in refusal("search", "a road", "--index", out)
    calls = []
    once = indexing.embedded
    monkeypatch.setattr(indexing, "embedded", lambda service, wanted, read: calls.extend(wanted) or once(service, wanted, read))
    assert index(pictures, out).exit_code == 0 and len(calls) == 3  # two pictures and the damaged one
    again = clip_index.load(out)
    assert np.allclose(again.embeddings, whole.embeddings, atol=1e-6) and again.pictures == whole.pictures and again.complete


def test_what_would_answer_with_noise_is_refused_in_one_line(run, pictures, tmp_path):
    out = tmp_path / "pictures.index"
    assert index(pictures, out).exit_code == 0
    search = ("search", "a road", "--index", out)
    assert "the text is empty" in refusal("search", " ", "--index", out)
    assert "one of them" in refusal("search", "--index", out)
    assert "no such index" in refusal("search", "a road", "--index", tmp_path / "other")

    content, whole = out.read_bytes(), clip_index.load(out)
    for cut in (content[:-7], content[:40], b"", b"\x10" * 64):
        out.write_bytes(cut)
        assert "cut, damaged or no index" in refusal(*search)
    Index(whole.made, whole.folder, whole.pictures, 3 * whole.embeddings).save(out)
    assert "not as many embeddings of length 1" in refusal(*search)
    save_file({"embeddings": whole.embeddings}, out, {clip_index.KEY: content[8:].decode(errors="ignore").split("\0")[0][:5]})
    assert "cut, damaged or no index" in refusal(*search)
    Index(whole.made, whole.folder, [Picture("../../secret.png", 1, 1), *whole.pictures[1:]], whole.embeddings).save(out)
    assert "is no name below the folder" in refusal(*search)
    out.write_bytes(content)

    times = (pictures / "2.png").stat()
    os.utime(pictures / "2.png", ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    (pictures / "0.png").rename(pictures / "9.png")
    assert "1 changed (2.png), 1 gone (0.png), 1 new (9.png)" in refusal(*search)
    assert index(pictures, out).exit_code == 0 and hpml(*search).exit_code == 0

    trained(run, seed=1)
    assert "made by other weights" in refusal(*search)
    assert index(pictures, out).exit_code == 0 and hpml(*search).exit_code == 0, "another model's rows are made again"
    (run / "clip.safetensors").unlink()
    assert "the weights of run mine, which are not here" in refusal(*search)


def test_nothing_but_an_index_is_overwritten(pictures, tmp_path):
    picture = tmp_path / "holiday.png"
    picture.write_bytes((pictures / "0.png").read_bytes())
    done = index(pictures, picture)
    assert done.exit_code != 0 and "no index of pictures" in str(done.exception) and "not overwritten" in str(done.exception)
    assert picture.read_bytes() == (pictures / "0.png").read_bytes()
    assert "is a folder" in str(index(pictures, tmp_path).exception)


def test_folder_and_index_move_together(run, pictures, tmp_path):
    assert index(pictures, tmp_path / "pictures.index").exit_code == 0
    (tmp_path / "moved").mkdir()
    for name in ("pictures", "pictures.index"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    assert hpml("search", "a road", "--index", tmp_path / "moved" / "pictures.index").exit_code == 0
    shutil.move(tmp_path / "moved" / "pictures.index", tmp_path / "alone.index")
    assert "no such folder" in refusal("search", "a road", "--index", tmp_path / "alone.index")
    assert hpml("search", "a road", "--index", tmp_path / "alone.index", "--folder", tmp_path / "moved" / "pictures").exit_code == 0


def test_published_weights_come_first_and_need_the_published_tokenizer(run, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "trained", lambda *_, **__: pytest.fail("nothing has to be trained"))
    path = tmp_path / "weights" / CLIP.PRETRAINED["file"]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    monkeypatch.setenv("HPML_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(pretrained, "find", lambda workload: path)
    assert indexing.weights_here("mine", "auto", tier="smoke", data="standin") == "pretrained"
    frames = CLIP.data({"data": "standin", "train_samples": 36, "test_samples": 36})
    with pytest.raises(HpmlError, match=r"published weights need the published tokenizer: put clip/bpe_simple_vocab_16e6.txt.gz"):
        indexing._fits_its_tokenizer({"knobs": {"weights": "pretrained"}}, frames)


def test_a_copy_in_the_hubs_cache_is_found(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--openai--clip-vit-base-patch32"
    for name, content in (("refs/main", "abc"), ("snapshots/abc/pytorch_model.bin", "weights")):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(content)
    with pytest.raises(HpmlError, match=r"snapshots/abc/pytorch_model.bin is damaged or another file"):
        pretrained.find(CLIP)


def test_the_nearest_are_those_of_a_full_sort_and_equals_keep_their_order():
    random = np.random.default_rng(0)
    rows = random.normal(size=(200, 8)).astype(np.float32)
    rows[50:60] = rows[50]
    for k in (1, 5, 12, 500):
        order = np.argsort(-(rows @ rows[50]), kind="stable")
        assert [row for row, _ in clip_index.nearest(rows, rows[50], k)] == list(order[:k])
        assert 50 not in dict(clip_index.nearest(rows, rows[50], k, without=50))
    assert clip_index.nearest(rows[:1], rows[0], 3, without=0) == []
