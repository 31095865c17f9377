"""Checkpoints: a training killed in the middle of an epoch ends bit by bit where an undisturbed one ends; damaged ones are named."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from hpml import checkpoint, env, launch
from hpml.env import HpmlError
from hpml.knobs import validate

TINY = Path(__file__).parent.parent / "tiny.py"
# The tiny workload with chance from all three generators in its samples and in its model; the samples it reads are noted by number.
CHANCY = """
import random
from pathlib import Path
from runpy import run_path

import numpy as np
from hpml import distributed
globals().update(run_path({tiny!r}))
_Points, _model = Points, model


class Points(_Points):
    def __getitem__(self, index):
        import torch

        with Path({folder!r}, f"{{distributed.place().index}}.ids").open("a") as file:
            file.write(f"{{index}}\\n")
        image, label = super().__getitem__(index)
        return image + 0.3 * (torch.randn(1) + np.random.randn() + random.random()).float(), label


def dataset(knobs, image_set, *, train):
    return Points(image_set.train_images, image_set.train_labels) if train else _Points(image_set.test_images, image_set.test_labels)


def model(knobs, classes):
    from torch import nn

    return nn.Sequential(nn.Dropout(0.2), _model(knobs, classes))
"""


def fit(folder: Path, **knobs) -> tuple[dict, list[list[int]]]:
    """The record's fields of a whole training of 2 epochs of 4 steps, and the samples that each rank read since the last call."""
    path = folder / "chancy.py"
    path.write_text(CHANCY.format(tiny=str(TINY), folder=str(folder)))
    job = {"case": {"workload": str(path), "phase": "train", "key": "k", "tier": "smoke"}, "weights": None, "weights_sha256": None,
           "run_dir": str(folder), "code": "c",
           "knobs": validate("train", {"batch": 16, "train_samples": 70, "test_samples": 40, "image": 8, "epochs": 2, "accum_steps": 2,
                                       "optimizer": "adam", "schedule": "onecycle", "checkpoint_steps": 3, **knobs}),
           "protocol": {"seed": 3, "round": 0}}
    fields = launch.run(job, log=folder / "log", timeout_s=300)
    logs = sorted(folder.glob("*.ids"))
    read = [[int(line) for line in log.read_text().split()] for log in logs]
    for log in logs:
        log.unlink()
    return fields, read


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.skipif(env.cores() < 2, reason="two ranks need two cores"))])
def test_resume_in_the_middle_of_an_epoch_is_bit_identical_and_loses_no_step(tmp_path, ranks):
    knobs, ends, each = {"ranks": ranks, "parallel": "none" if ranks == 1 else "ddp"}, {}, 16 // ranks
    for name, step in (("whole", 0), ("killed", 7)):
        (folder := tmp_path / name).mkdir()
        fields, read = fit(folder, interrupt_step=step, **knobs)
        if step:  # in the second epoch, after its third step: the last checkpoint is that of the step before
            assert fields["status"] == "failed" and "killed by signal 9" in fields["reason"]
            assert len(read) == ranks and all(len(ids) >= 7 * each for ids in read[-1:])
            assert [path.name for path in checkpoint.found(folder / "models", "chancy-k-r0")] == [
                "chancy-k-r0.checkpoint-00001-00000000.pt", "chancy-k-r0.checkpoint-00001-00000002.pt"], "the last two are kept"
            before = read
            fields, read = fit(folder, interrupt_step=step, **knobs)
            assert (fields["actual"]["resumed_from"], fields["actual"]["resumed_step"]) == (1, 2)
            read = [first[: 6 * each] + rest for first, rest in zip(before, read, strict=True)]
        assert fields["status"] == "ok", fields["reason"]
        assert not list((folder / "models").glob("*.checkpoint*"))
        weights = folder / "models" / fields["actual"]["artefacts"]["weights"]
        ends[name] = hashlib.sha256(weights.read_bytes()).hexdigest(), fields["quality"]["losses"], len(fields["samples"]["values"]), read
    assert ends["whole"] == ends["killed"]
    assert ends["whole"][2] == 8 and len(set(sum(ends["whole"][3], []))) > 60


def parts() -> dict:
    model = torch.nn.Linear(3, 2)
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}


def saved(folder: Path, *, step: int, keep: int = 3) -> dict:
    own = parts()
    checkpoint.save(folder, "tiny", {"epoch": 0, "step": step, **{name: part.state_dict() for name, part in own.items()}}, keep=keep)
    return own


def test_the_last_ones_are_kept_and_a_damaged_one_gives_way_to_the_one_before(tmp_path, capsys):
    assert checkpoint.load(tmp_path, "tiny", parts()) is None
    made = [saved(tmp_path, step=step) for step in (1, 2, 3, 10)]
    assert [path.name[-5:] for path in checkpoint.found(tmp_path, "tiny")] == ["02.pt", "03.pt", "10.pt"]
    last, before, _ = reversed(checkpoint.found(tmp_path, "tiny"))
    last.write_bytes(last.read_bytes()[:-100])
    assert checkpoint.load(tmp_path, "tiny", own := parts()) == {"epoch": 0, "step": 3}
    assert torch.equal(own["model"].weight, made[2]["model"].weight)
    said = capsys.readouterr().out
    assert said.startswith(f"{last}: a checkpoint that cannot be read") and said.count("\n") == 1
    for path, damage in zip(checkpoint.found(tmp_path, "tiny"), (b"", b"half", b"PK"), strict=True):
        path.write_bytes(damage)
    with pytest.raises(HpmlError, match=r"checkpoint-00000-00000010\.pt: a checkpoint that cannot be read.*remove it") as error:
        checkpoint.load(tmp_path, "tiny", parts())
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_model_is_named_and_kept(tmp_path):
    saved(tmp_path, step=1)
    with pytest.raises(HpmlError, match=r"00000001\.pt: not a checkpoint of this case"):
        checkpoint.load(tmp_path, "tiny", {**parts(), "model": torch.nn.Linear(5, 2)})
    with pytest.raises(HpmlError, match="not a checkpoint of this case"):
        checkpoint.load(tmp_path, "tiny", {**parts(), "scaler": torch.amp.GradScaler("cpu")})
    assert len(checkpoint.found(tmp_path, "tiny")) == 1


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    saved(tmp_path, step=1, keep=1)

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(HpmlError, match=r"00000002\.pt: the checkpoint cannot be written .*No space left on device"):
        saved(tmp_path, step=2, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.checkpoint-00000-00000001.pt"]


def test_random_states_go_on_through_a_file(tmp_path):
    checkpoint.seed(7)
    random.gauss(0, 1)
    torch.save(checkpoint.random_state(), tmp_path / "state")
    drawn = random.gauss(0, 1), float(np.random.randn()), float(torch.rand(1))
    checkpoint.restore_random(torch.load(tmp_path / "state", weights_only=True))
    assert drawn == (random.gauss(0, 1), float(np.random.randn()), float(torch.rand(1)))
