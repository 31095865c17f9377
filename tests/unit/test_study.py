"""Cases, sweeps, trainings and engines of a study, on a small workload given by its path."""

import json
import threading
import time
from pathlib import Path

import psutil
import pytest

import hpml
from hpml import env, records, rounds, workloads
from hpml.env import HpmlError

TINY = str(Path(__file__).parent.parent / "tiny.py")


pytestmark = pytest.mark.usefixtures("smoke_session")


def stored():
    return records.read(env.run_dir("here") / "records.jsonl")


def test_a_sweep_is_every_combination_and_the_first_is_the_baseline():
    cases = hpml.case(TINY).sweep(precision=["fp32", "bf16"], memory_format=["contiguous", "channels_last"])
    assert [(c.knobs["precision"], c.knobs["memory_format"]) for c in cases] == [
        ("fp32", "contiguous"), ("fp32", "channels_last"), ("bf16", "contiguous"), ("bf16", "channels_last")]
    assert cases[3].label(cases) == "precision=bf16, memory_format=channels_last"


def test_knobs_that_mean_nothing_are_refused_and_stand_in_no_case(tmp_path):
    text = tmp_path / "text.py"
    text.write_text(Path(TINY).read_text() + 'WITHOUT = ("image", "storage", "memory_format")\n_SIZE.pop("image")\n'
                    'for sizes in SIZES.values():\n    for size in sizes.values():\n        size.pop("image", None)\n'
                    '    sizes["quality"] = {"batch": 64, "variant": "small"}\n    sizes["fit"]["variant"] = "small"\n')
    one = hpml.case(str(text))
    assert not {"image", "storage", "memory_format"} & set(one.knobs) and one.knobs["length"] == 64
    for refused in (lambda: hpml.case(str(text), image=64), lambda: one.but(memory_format="channels_last"),
                    lambda: hpml.case(TINY, length=32)):
        with pytest.raises(HpmlError, match=r"(image|memory_format|length) means nothing"):
            refused()
    assert workloads.knows(str(text), "length") and not workloads.knows(str(text), "storage")
    assert workloads.knows(TINY, "storage") and not workloads.knows(TINY, "variant") and not workloads.knows(TINY, "nonsense")
    for phase in ("data", "train", "infer"):  # and the children miss nothing
        assert hpml.run(hpml.case(str(text), phase=phase), rounds=1).records[-1].status == "ok"

    speed = hpml.case(str(text), phase="infer", weights="trained")
    quality = speed.but(measure="quality")
    assert (quality.knobs["batch"], quality.knobs["variant"]) == (64, "small") and speed.but(measure="quality", batch=8).knobs["batch"] == 8
    assert quality.knobs == hpml.case(str(text), phase="infer", weights="trained", measure="quality").knobs
    assert quality.technique == "measure"
    vouched = hpml.run(quality, rounds=1).records[-1]
    row = hpml.run(speed, rounds=1).rows()[0]
    assert row.knobs["weights"] == "random", "trained weights are those of the small variant"
    assert row.quality_value == vouched.quality["value"], "and yet the small variant vouches for the technique"


@pytest.mark.parametrize(("call", "said"), [
    (lambda: hpml.case("resnet51"), "unknown workload 'resnet51'"), (lambda: hpml.case("resnet50", tier="tiny"), "unknown tier"),
    (lambda: hpml.case("resnet50", phase="traning"), "unknown phase|traning"), (lambda: hpml.case("resnet50", wrokers=1), "wrokers"),
    (lambda: hpml.case("resnet50").sweep(workers=[]), "needs a list"),
    (lambda: hpml.case("resnet50").sweep(precision="bf16"), "needs a list"),
    (lambda: hpml.case("nothing.py"), "no such workload file"), (lambda: hpml.run([]), "empty"),
    (lambda: hpml.run([hpml.case(TINY), hpml.case(TINY, phase="infer")]), "one phase"),
    (lambda: hpml.run([hpml.case(TINY), hpml.case(TINY)]), "the same"), (lambda: hpml.load("nowhere"), "no records in run 'nowhere'"),
    (lambda: hpml.use(run_id="../up"), "run id"), (lambda: hpml.run(hpml.case(TINY, weights="gone.safetensors")), "no such file"),
])
def test_a_mistake_is_one_line_and_runs_nothing(call, said):
    with pytest.raises(HpmlError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert stored() == []


def test_a_training_that_diverges_is_a_record_and_its_sibling_has_its_own():
    fits = hpml.run(hpml.case(TINY, fit=True, train_samples=64).sweep(lr=[0.1, 1e30]), rounds=1)
    found = {r.knobs["lr"]: r for r in fits.records}
    assert found[0.1].status == "ok" and found[1e30].status == "failed"
    assert "diverged: a loss of epoch 1 is not a finite number, at a learning rate of 1e+30" in found[1e30].reason


def test_weights_of_another_tier_or_data_are_trained_again(capsys):
    hpml.keep(hpml.run(hpml.case(TINY, fit=True, tier="smoke"), rounds=1))
    first = hpml.study.trained(TINY, tier="smoke", data="auto")
    before = first.read_bytes()
    assert hpml.study.trained(TINY, tier="smoke", data="auto").read_bytes() == before
    capsys.readouterr()
    hpml.study.trained(TINY, tier="cpu", data="auto")
    assert "is of tier smoke and data auto: training it again" in capsys.readouterr().out
    assert json.loads(first.with_suffix(".json").read_text())["case"]["tier"] == "cpu"


def test_a_training_made_once_serves_every_comparison(monkeypatch):
    fit = hpml.case(TINY, fit=True, epochs=1)
    first = hpml.run(fit.sweep(optimizer=["sgd", "adam"]))
    real, launched = rounds.launch.side_by_side, []
    monkeypatch.setattr(rounds.launch, "side_by_side",
                        lambda asked, **more: launched.extend(job["knobs"]["precision"] for job, _, _ in asked) or real(asked, **more))
    second = hpml.run(fit.sweep(precision=["fp32", "bf16"]))
    assert launched == ["bf16"], "the baseline is the training that the first comparison made"
    ours = next(r for r in second.records if r.knobs["precision"] == "fp32")
    theirs = next(r for r in first.records if r.knobs == ours.knobs)
    assert ours.quality == theirs.quality and ours.case["baseline"] == ours.case["key"] and ours.case["group"] != theirs.case["group"]
    assert ours.protocol["made_as"] == theirs.record_id != ours.record_id
    hpml.run(fit.sweep(precision=["fp32", "bf16"]), fresh=True)
    assert sorted(launched[1:]) == ["bf16", "fp32"], "fresh measures again"


def test_fit_keeps_weights_that_inference_uses():
    fits = hpml.run(hpml.case(TINY, fit=True, epochs=3).sweep(optimizer=["sgd", "adam"]))
    record = next(r for r in fits.records if r.knobs["optimizer"] == "sgd")
    assert record.quality["n"] == 200 and len(record.quality["curve"]) == 3
    assert record.quality["curve"][-1][1] < record.quality["curve"][0][1], "the loss falls"
    assert record.quality["value"] > 0.6
    folder = env.run_dir("here") / "models"
    assert all((folder / name).exists() for name in record.actual["artefacts"].values())
    assert not list(folder.glob("*.checkpoint*")) and list((env.run_dir("here") / "tensorboard").glob("*/events*"))
    path = hpml.keep(fits, optimizer="sgd")
    assert json.loads(path.with_suffix(".json").read_text())["knobs"]["optimizer"] == "sgd"
    with pytest.raises(HpmlError, match="no finished training"):
        hpml.keep(fits, optimizer="lion")

    base = hpml.case(TINY, phase="infer", weights="trained")
    speed = hpml.run(base.sweep(engine=["eager", "onnxruntime", "openvino"]))
    assert {r.status for r in speed.records} == {"ok"}
    for one in speed.records:
        assert one.parity["passed"] and one.actual["weights_sha256"]
        assert one.stats["with_copies"]["n"] >= 3 and one.stats["with_preprocessing"]["n"] >= 3
    assert speed.rows()[1].quality == "not measured"
    hpml.run(base.but(measure="quality").sweep(engine=["eager", "onnxruntime", "openvino"]))
    vouched = hpml.run(base.sweep(engine=["eager", "onnxruntime", "openvino"])).rows()
    assert [row.quality for row in vouched[1:]] == ["kept", "kept"]
    assert vouched[1].quality_value == pytest.approx(record.quality["value"], abs=0.01)


def test_a_batch_beyond_the_data_trains_as_one_of_all_the_data():
    """The loss is divided by the samples that a step has, not by those that were asked for: else gradients shrink and the loss is small."""
    fits = hpml.run(hpml.case(TINY, fit=True, train_samples=40, epochs=2).sweep(batch=[40, 4000]), rounds=1)
    whole, beyond = (record.quality["losses"] for record in fits.records)
    assert beyond == pytest.approx(whole) and whole[0] > 0.5
    few = hpml.run(hpml.case(TINY, fit=True, train_samples=3, epochs=1, accum_steps=4), rounds=1).records[-1]
    assert few.status == "failed" and "too few" in few.reason


def test_torchscript_and_compile_in_a_study(monkeypatch):
    """Parity with eager FP32; a compilation that takes too long is a record without a figure."""
    base = hpml.case(TINY, phase="infer", batch=3)
    with monkeypatch.context() as patch:
        patch.setitem(rounds.COMPILE_LIMIT_S, "smoke", 0.2)
        limited = hpml.run(base.but(engine="compile")).records[0]
    assert limited.status == "skipped" and limited.reason == "compiling took more than 0.2 s at this tier" and limited.samples is None
    cases = [*base.but(engine="torchscript").sweep(capture=["trace", "script"]), base.but(engine="compile")]
    traced, scripted, compiled = sorted(hpml.run(cases, fresh=True).records, key=lambda r: r.case["order"])
    assert [r.status for r in (traced, scripted, compiled)] == ["ok"] * 3 and all(r.parity["passed"] for r in (traced, scripted, compiled))
    assert (traced.actual["capture"], scripted.actual["capture"]) == ("trace", "script")
    assert compiled.actual["shapes"] == "static, batch 3" and compiled.cold["compile_s"] > 0
    assert list((env.run_dir(compiled.run_id) / "cache" / "inductor").iterdir())


def test_another_models_weights_are_refused_with_their_name():
    from safetensors.torch import save_file
    from torch import zeros

    path = env.run_dir("here") / "other.safetensors"
    path.parent.mkdir(parents=True)
    save_file({"a": zeros(3)}, path)
    record = hpml.run(hpml.case(TINY, weights=str(path))).records[0]
    assert record.status == "failed" and "other.safetensors: not weights of this model" in record.reason
    path.write_bytes(b"short")
    assert "not weights of this model" in hpml.run(hpml.case(TINY, weights=str(path))).records[0].reason


def test_an_interrupted_fit_goes_on_from_its_last_epoch(tmp_path):
    """Killed after the second epoch, then run again: the same curve as a fit that ran through."""
    through = hpml.run(hpml.case(TINY, fit=True, epochs=3), rounds=1).records[0]
    case = hpml.case(TINY, fit=True, epochs=3)
    log_folder = env.run_dir("cut") / "logs"
    def kill() -> None:
        while True:
            for log in log_folder.glob("*.log"):
                if "epoch 2 of 3" in log.read_text():
                    for child in psutil.Process().children(recursive=True):
                        if child.name() and any(str(f.path).endswith(log.name) for f in _open_files(child)):
                            child.kill()
                            return
            time.sleep(0.01)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    cut = hpml.run(case, rounds=1, run_id="cut").records[0]
    if cut.status == "ok":
        pytest.fail("the fit ended before it could be killed")
    whole = hpml.run(case, rounds=1, run_id="cut").records[-1]
    assert whole.status == "ok" and len(whole.quality["curve"]) == 3
    assert [c[1] for c in whole.quality["curve"]] == pytest.approx([c[1] for c in through.quality["curve"]], rel=1e-4)


def _open_files(process):
    try:
        return process.open_files()
    except psutil.Error:
        return []


def test_show_prints_the_library_without_docstring(capsys):
    from hpml import train

    hpml.show(train.train_step)
    out = capsys.readouterr().out
    assert "scaler.scale(loss).backward()" in out and '"""' not in out and out.startswith("# train.py")


def test_engines_share_what_the_module_says(tmp_path):
    """The graph and the outputs for parity are made once, so that no engine's time and memory hold the module's."""
    text = tmp_path / "counted.py"
    text.write_text(Path(TINY).read_text() + "_model = model\ndef model(knobs, classes):\n    import torch\n"
                    "    made = _model(knobs, classes)\n    if next(made.parameters()).device.type != 'meta':\n"
                    f"        with open({str(tmp_path / 'made')!r}, 'a') as file:\n            print(knobs['engine'], file=file)\n"
                    "    return made\n")
    base = hpml.case(str(text), phase="infer")
    run = hpml.run(base.sweep(engine=["eager", "onnxruntime", "openvino"]), rounds=2)
    assert {(r.status, r.parity["passed"]) for r in run.records} == {("ok", True)} and len(run.records) == 6
    made = (tmp_path / "made").read_text().split()
    assert sorted(made) == ["eager"] * 3 + ["onnxruntime"], "one for the outputs, one for the graph, and eager runs it in both rounds"
    assert sum(r.cold.get("export_s") is not None for r in run.records) == 0, "an export is no case's cold start"

    text.write_text(text.read_text() + "def data(knobs):\n    raise ValueError('no points today')\n")
    assert "no points today" in hpml.run(base, rounds=1).records[-1].reason, "what cannot be prepared says so where it is measured"
