"""Negatives of all ranks and accumulation steps: the weights become those of one process with the large batch, and otherwise not."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hpml import env, launch, train, workloads
from hpml.cases import case
from hpml.env import HpmlError
from hpml.knobs import validate
from hpml.measure import Marks

CLIP = workloads.get("clip")
# CLIP on frames that are neither cut nor mirrored and whose captions are not drawn: what a sample is does not depend on the rank.
PLAIN = """
from runpy import run_path
globals().update(run_path({clip!r}))
_dataset = dataset

def data(knobs):
    from hpml.data import bpe, captions, road
    frames = road.load(36, 12)
    from dataclasses import replace
    return bpe.with_tokenizer(replace(frames, test_images=frames.train_images, test_labels=frames.train_labels), captions.every())

def dataset(knobs, frames, *, train):
    return _dataset(knobs, frames, train=False)
"""
SIZES = {"variant": "small", "image": 32, "length": 16}
two_cores = pytest.mark.skipif(env.cores() < 2, reason="two processes need two cores")


def weights(tmp_path, **knobs):
    """(weights, losses) after an epoch of three steps of 12 pairs."""
    name = "-".join(map(str, knobs.values()))
    (folder := tmp_path / name).mkdir()
    path = tmp_path / "plain.py"
    path.write_text(PLAIN.format(clip=CLIP.__file__))
    asked = {"batch": 12, "epochs": 1, "lr": 0.1, "optimizer": "sgd", "threads": knobs.get("ranks", 1), **SIZES, **knobs}
    full = {key: value for key, value in validate("train", asked).items() if key not in ("stem", "part")}
    job = {"case": {"workload": str(path), "phase": "train", "key": "k"}, "weights": None, "weights_sha256": None, "code": "c",
           "run_dir": str(folder), "knobs": full, "protocol": {"seed": 0, "round": 0, "warmup": 1, "min_iters": 3, "min_seconds": 0.0}}
    fields = launch.run(job, log=folder / "log", timeout_s=300)
    assert fields["status"] == "ok", fields["reason"]
    return load_file(folder / "models" / fields["actual"]["artefacts"]["weights"]), fields["quality"]["losses"]


def distance(one, other) -> float:
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


@two_cores
def test_two_ranks_with_gathered_negatives_and_accumulation_are_one_large_batch(tmp_path):
    large, losses = weights(tmp_path, negatives="micro")
    gathered, same_losses = weights(tmp_path, negatives="all", ranks=2, parallel="ddp", accum_steps=2)
    assert distance(large, gathered) < 2e-5 and same_losses == pytest.approx(losses, rel=1e-4)
    alone, easier = weights(tmp_path, negatives="micro", ranks=2, parallel="ddp")
    assert distance(large, alone) > 100 * distance(large, gathered)
    assert easier[0] < losses[0], "half the pairs: another, easier task"


def steps(precision="fp32", negatives="all", **knobs) -> dict:
    """Gradients of one step of 12 pairs by the library's own loop."""
    torch.manual_seed(0)
    asked = validate("train", {"batch": 12, "precision": precision, "negatives": negatives, **SIZES, "optimizer": "adam", **knobs})
    model, optimizer, scaler, _ = train.build(CLIP, asked, 36, None)
    frames, ids = CLIP.example_inputs(asked, 12)
    labels = torch.arange(12) % 7
    micro = 12 // asked["accum_steps"]
    batches = [(frames[i : i + micro], ids[i : i + micro], labels[i : i + micro]) for i in range(0, 12, micro)]
    found = {}
    optimizer.register_step_pre_hook(lambda *_: found.update({name: p.grad.clone() for name, p in model.named_parameters()}))
    marks = Marks("cpu")
    train.train_step(model, iter(batches), asked, workload=CLIP, optimizer=optimizer, scaler=scaler, marks=marks)
    assert len(train.phase_seconds(marks.spans())) == 5 and len(marks.spans()) == 5 * asked["accum_steps"]
    return found


def cosine(one: dict, other: dict) -> float:
    a, b = (torch.cat([found[name].flatten() for name in one]) for found in (one, other))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_two_passes_have_the_gradient_of_the_whole_and_plain_accumulation_has_not():
    whole = steps(negatives="micro")
    for accum_steps in (1, 4):
        found = steps(accum_steps=accum_steps)
        for name, gradient in whole.items():
            assert torch.allclose(gradient, found[name], atol=1e-6, rtol=1e-4), (accum_steps, name)
    assert cosine(whole, steps(negatives="micro", accum_steps=4)) < 0.9
    assert cosine(whole, steps(precision="bf16", accum_steps=4)) > 0.98


def test_only_a_workload_that_can_contrast_has_the_knob_and_what_hides_embeddings_is_refused(tmp_path):
    assert case("clip").knobs["negatives"] == "micro" and "negatives" not in case("resnet50").knobs
    with pytest.raises(HpmlError, match="negatives"):
        case("resnet50", negatives="all")
    job = {"knobs": case("clip", negatives="all", parallel="dp").knobs, "weights": None, "protocol": {"seed": 0}}
    with pytest.raises(HpmlError, match="needs the embeddings themselves"):
        train.prepare(json.loads(json.dumps(job)), CLIP)
