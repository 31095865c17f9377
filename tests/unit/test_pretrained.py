"""Published weights: only when asked for, from a local copy, checked, with heads of another size replaced."""

import hashlib
import subprocess
import sys

import pytest
import torch

import hpml
from hpml import pretrained, train, workloads
from hpml.env import HpmlError, Unavailable

NET = workloads.get("deeplabv3")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file as torchvision publishes one: a state dictionary of 21 classes, of the small variant."""
    monkeypatch.setenv("HPML_WEIGHTS", str(tmp_path))
    torch.manual_seed(5)
    model = NET.model({"variant": "small"}, 21)
    torch.save(model.state_dict(), tmp_path / "new.pth")
    digest = hashlib.sha256((tmp_path / "new.pth").read_bytes()).hexdigest()
    path = (tmp_path / "new.pth").rename(tmp_path / f"deeplabv3_small-{digest[:8]}.pth")
    monkeypatch.setattr(NET, "PRETRAINED", {"url": f"http://127.0.0.1:9/{path.name}", "heads": NET.PRETRAINED["heads"]})
    return path, model.state_dict()


def test_the_heads_of_another_number_of_classes_stay_the_models_own(published):
    path, state = published
    model = NET.model({"variant": "small"}, 3)
    head = model.classifier[4].weight.clone()
    train.load_weights(model, pretrained.find(NET), NET)
    assert torch.equal(model.state_dict()["backbone.conv1.weight"], state["backbone.conv1.weight"])
    assert torch.equal(model.state_dict()["classifier.1.weight"], state["classifier.1.weight"])
    assert torch.equal(model.classifier[4].weight, head)
    same = NET.model({"variant": "small"}, 21)
    train.load_weights(same, path, NET)
    assert torch.equal(same.classifier[4].weight, state["classifier.4.weight"])


def test_another_architecture_is_refused_by_its_shapes_in_one_line(published):
    with pytest.raises(HpmlError, match=r"deeplabv3_small-\w+.pth: not weights of this model \(Error") as caught:
        train.load_weights(NET.model({}, 3), published[0], NET)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused_by_its_checksum(published):
    path, _ = published
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(HpmlError, match="damaged or another file: sha256"):
        pretrained.find(NET)


def test_a_pickle_that_runs_code_is_not_opened(published):
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, ("/nonexistent/evil",)

    path, _ = published
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(HpmlError, match="not weights of this model"):
        train.load_weights(NET.model({"variant": "small"}, 3), path, NET)


def test_what_is_not_here_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_WEIGHTS", str(tmp_path))
    with pytest.raises(Unavailable, match="deeplabv3_resnet101_coco-586e9e4e.pth is not here; `hpml weights deeplabv3` downloads it"):
        hpml.run(hpml.case("deeplabv3", tier="smoke", weights="pretrained", data="standin"), rounds=1, run_id="p")
    tiny = workloads.get(str(hpml.env.root() / "tests" / "tiny.py"))
    with pytest.raises(Unavailable, match="Tiny net names no published weights"):
        pretrained.find(tiny)


def test_a_download_that_fails_is_one_line(published):
    path, _ = published
    path.unlink()
    with pytest.raises(HpmlError, match=r"cannot be fetched: .*; download it yourself from http://127.0.0.1:9/") as caught:
        pretrained.fetch(NET)
    assert "\n" not in str(caught.value) and not path.exists()
    code = "import sys; sys.argv = ['hpml', 'weights', 'nobody']; from hpml.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "unknown workload 'nobody'" in done.stderr


def test_a_local_copy_is_what_a_case_starts_from(published, tmp_path, monkeypatch):
    from hpml import study

    one = hpml.case("deeplabv3", tier="smoke", weights="pretrained", variant="small", data="standin")
    path, digest = study._weights(one, "x")
    assert path == str(published[0]) and digest == hashlib.sha256(published[0].read_bytes()).hexdigest()
    assert pretrained.fetch(NET) == published[0]  # nothing is downloaded that is here
