"""A whole training that is killed goes on from its checkpoint and ends where an undisturbed one ends; gradient norms are in the record."""

import hashlib
from pathlib import Path

import pytest

import hpml
from hpml import env

TINY = str(Path(__file__).parent.parent / "tiny.py")


@pytest.fixture(scope="module")
def runs():
    """The records of an undisturbed training and of one that is killed after its first epoch, then asked for again."""
    hpml.use(tier="smoke", run_id="resume", data="standin")
    pair = hpml.case(TINY, phase="train", fit=True).sweep(interrupt=[0, 1])
    hpml.run(pair, rounds=1)
    return hpml.run(pair, rounds=1).records


def test_the_killed_training_is_a_record_and_the_next_run_goes_on(runs):
    by = {(r.knobs["interrupt"], r.status): r for r in runs}
    assert set(by) == {(0, "ok"), (1, "failed"), (1, "ok")}
    assert "signal 9" in by[1, "failed"].reason
    assert by[0, "ok"].actual["resumed_from"] == 0 and by[1, "ok"].actual["resumed_from"] == 1


def test_resume_is_bit_identical(runs):
    models = env.run_dir("resume") / "models"
    done = [r for r in runs if r.status == "ok"]
    assert len({hashlib.sha256((models / r.actual["artefacts"]["weights"]).read_bytes()).hexdigest() for r in done}) == 1
    assert len({tuple(r.quality["losses"]) for r in done}) == 1


def test_gradient_norms_of_the_first_and_last_step_by_layer(runs):
    for r in (r for r in runs if r.status == "ok"):
        first, last = r.actual["gradients"]
        assert [name for name, _ in first] == [name for name, _ in last] == ["0", "4"]
        assert all(norm > 0 for _, norm in first)
