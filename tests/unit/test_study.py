"""Cases, sweeps and interleaved rounds, on a small workload given by its path."""

import json
import threading
import time
from pathlib import Path

import psutil
import pytest

import hpml
from hpml import compare, env, records, rounds, workloads
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


def test_rounds_are_interleaved_paired_and_kept(capsys):
    cases = hpml.case(TINY).sweep(precision=["fp32", "bf16"])
    results = hpml.run(cases, rounds=3)
    rounds = [r.protocol["round"] for r in stored()]
    assert rounds == [0, 0, 1, 1, 2, 2], "a round of everything, then the next"
    places = [{r.case["key"]: r.protocol["order"] for r in stored() if r.protocol["round"] == number} for number in (0, 1)]
    assert all(places[0][key] != places[1][key] for key in places[0]), "who begins in a round ends in the next"
    assert {r.status for r in results.records} == {"ok"}
    first = results.records[0]
    assert len(first.samples["values"]) >= 5 and set(first.samples["phases"]) == {"wait", "copy", "forward", "backward", "optimizer"}
    assert first.stats["per_s"] == pytest.approx(16 / first.stats["center_s"])
    assert first.protocol["isolation"] == "fresh process" and first.actual["data"]["n_train"] == 320
    row = results.rows()[1]
    assert row.rounds == 3 and row.low < row.ratio < row.high
    assert {"samples_per_s", "precision", "round"} <= set(results.frame().columns) and len(results.frame()) == 6
    assert "precision=bf16" in results.why(precision="bf16")

    before = len(stored())
    again = hpml.run(cases, rounds=3)
    assert len(stored()) == before and "6 records of this comparison loaded" in capsys.readouterr().out
    assert [r.record_id for r in again.records] == [r.record_id for r in results.records]
    assert len(hpml.run(cases, rounds=4).records) == 8, "a further round is added to those that are there"
    fresh = hpml.run(cases, rounds=1, fresh=True)
    assert len(fresh.records) == 2 and len(stored()) == before + 2 + 2


def test_quiet_cases_take_turns_and_the_others_are_measured_alone():
    one = hpml.case(TINY, batch=8)
    cases = [one, one.but(workers=1), one.but(accum_steps=2), one.but(parallel="ddp")]
    beside = {(r.knobs["workers"], r.knobs["accum_steps"], r.knobs["parallel"]): r.protocol["beside"]
              for r in hpml.run(cases, rounds=1).records}
    assert beside == {(0, 1, "none"): 3, (1, 1, "none"): 3, (0, 2, "none"): 3, (0, 1, "ddp"): 1}


def test_a_busy_round_is_set_aside_as_a_whole(monkeypatch, capsys):
    """Pairs are made inside one attempt: also the case that nothing disturbed counts from the second one."""
    real, attempts = rounds.launch.side_by_side, []

    def disturbed(asked, **more):
        answers = real(asked, **more)
        attempts.append(len(asked))
        for number, fields in enumerate(answers):
            fields["disturbance"] = {"busy": len(attempts) == 1 and number == 0}
        return answers

    hpml.noise_floor(TINY, tier="cpu", rounds=3)
    monkeypatch.setattr(rounds.launch, "side_by_side", disturbed)
    results = hpml.run(hpml.case(TINY, tier="cpu").sweep(accum_steps=[1, 2]), rounds=1)
    assert attempts == [2, 2] and "measured once more" in capsys.readouterr().out
    assert [r.protocol.get("set_aside", False) for r in results.records] == [True, True, False, False]
    for key in {r.case["key"] for r in results.records}:
        (counted,) = compare.calmest(r for r in results.records if r.case["key"] == key)
        assert counted in results.records[2:]


def test_where_the_second_attempt_fails_the_first_one_stands_whole_and_both_are_kept(monkeypatch):
    real, attempts = rounds.launch.side_by_side, []

    def disturbed(asked, **more):
        answers = real(asked, **more)
        attempts.append(len(asked))
        for fields in answers:
            fields["disturbance"] = {"busy": len(attempts) == 1}
        if len(attempts) == 2:
            answers[1] = {"status": "timeout", "reason": "stopped after 3 s", "own_s": 3.0}
        return answers

    hpml.noise_floor(TINY, tier="cpu", rounds=3)
    monkeypatch.setattr(rounds.launch, "side_by_side", disturbed)
    results = hpml.run(hpml.case(TINY, tier="cpu").sweep(accum_steps=[1, 2]), rounds=1)
    aside = [r.protocol.get("set_aside", False) for r in results.records]
    assert aside == [True, True, False, False] and [r.status for r in results.records[2:]] == ["ok", "ok"]
    assert {r.status for r in results.records[:2]} == {"ok", "timeout"}
    assert all(r.protocol["busy"] for r in results.records[2:]), "pairs are made inside one attempt: the first"


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


def test_beyond_the_least_rounds_only_what_is_undecided_goes_on(monkeypatch):
    """Of three cases one is undecided: it and the baseline get further rounds, the third one none."""
    real = rounds.launch.side_by_side

    def exact(asked, **more):  # the machine's own speed decides nothing here
        answers = real(asked, **more)
        for (job, _, _), fields in zip(asked, answers, strict=True):
            count = len(fields["samples"]["values"])
            fields["samples"]["values"], fields["samples"]["phases"]["wait"] = [1 + job["knobs"]["slowdown"]] * count, [0.0] * count
        return answers

    monkeypatch.setattr(rounds.launch, "side_by_side", exact)
    monkeypatch.setattr(compare, "MAX_ROUNDS", 5)
    monkeypatch.setattr(compare, "decided", lambda logs, floor: len(logs) >= 5)
    hpml.noise_floor(TINY, tier="cpu", rounds=3)
    cases = hpml.case(TINY, tier="cpu", train_samples=64).sweep(slowdown=[0.0, 3.0, 0.01])
    monkeypatch.setattr(compare, "decided", lambda logs, floor: len(logs) >= 5 or logs[0] < -0.7)
    results = hpml.run(cases)
    taken = {one.knobs["slowdown"]: sorted(r.protocol["round"] for r in compare.calmest(r for r in results.records if r.knobs == one.knobs))
             for one in cases}
    assert taken == {0.0: [0, 1, 2, 3, 4], 3.0: [0, 1, 2], 0.01: [0, 1, 2, 3, 4]}
    assert [row.rounds for row in results.rows()] == [5, 3, 5]
    before = len(stored())
    assert len(hpml.run(cases).records) == len(results.records) and len(stored()) == before, "a resumed run measures none of it again"


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


def test_what_cannot_run_is_a_record_with_its_reason():
    results = hpml.run(hpml.case(TINY).sweep(precision=["fp32", "fp16"]), rounds=2)
    statuses = {r.knobs["precision"]: (r.status, r.reason) for r in results.records}
    assert statuses["fp16"][0] == "unsupported" and "FP16" in statuses["fp16"][1]
    assert results.rows()[1].verdict_text.startswith("not measured here: FP16")
    assert len(results.records) == 3, "what cannot run is tried once"


def test_without_a_noise_floor_one_is_measured_first(capsys, monkeypatch):
    monkeypatch.setattr(compare, "MAX_ROUNDS", 3)
    results = hpml.run(hpml.case(TINY, tier="cpu").sweep(accum_steps=[1, 2]))
    assert "measuring one first" in capsys.readouterr().out
    assert len(compare.noise_logs(stored(), "train")) == 3
    assert results.rows()[1].floor is not None and results.rows()[1].verdict in ("slower", "faster", "no difference")
    assert all(r.case["technique"] != compare.NOISE for r in results.records)


def test_a_planted_slowdown_is_as_long_as_it_says():
    for record in hpml.run(hpml.case(TINY).sweep(slowdown=[0.0, 1.0])).records:
        phases = record.samples["phases"]
        for step, whole in enumerate(record.samples["values"]):
            before = sum(phases[name][step] for name in ("wait", "copy", "forward", "backward"))
            # The wait is as long as the step itself, so with the optimizer's own time it is at least half of the whole.
            assert record.knobs["slowdown"] == 0 or phases["optimizer"][step] >= 0.5 * whole >= before * 0.99


def test_the_budget_leaves_records_that_resume_measures(monkeypatch, capsys):
    cases = hpml.case(TINY).sweep(accum_steps=[1, 2])
    monkeypatch.setenv("HPML_DEADLINE", "1")
    with pytest.raises(env.BudgetSpent, match="budget: no time was left; 2 of 2 cases have no figure yet, --resume goes on"):
        hpml.run(cases)
    cut = hpml.load("here")
    assert [r.status for r in cut.records] == ["skipped", "skipped"] and "budget" in cut.records[0].reason
    assert cut.rows()[1].verdict_text == "not measured here: budget: no time was left"
    monkeypatch.delenv("HPML_DEADLINE")
    whole = hpml.run(cases)
    assert [r.status for r in whole.records] == ["skipped", "skipped", "ok", "ok"]
    assert whole.rows()[1].rounds == 1, "the skipped records do not hide the measured ones"


def test_a_whole_training_is_not_timed_out(monkeypatch):
    monkeypatch.setitem(rounds.TIMEOUT_S, "smoke", 0.01)
    assert hpml.run(hpml.case(TINY)).records[0].status == "timeout"
    assert hpml.run(hpml.case(TINY, fit=True)).records[0].status == "ok"


def test_what_does_not_fit_a_gpu_is_measured_at_half_the_batch_and_a_swept_batch_is_not(tmp_path, capsys):
    small = tmp_path / "small.py"
    small.write_text(Path(TINY).read_text().replace("def loss(outputs, targets):", """def loss(outputs, targets):
    if len(targets) > 4:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
"""))
    found = hpml.run(hpml.case(str(small), tier="gpu", device="cpu").sweep(memory_format=["contiguous", "channels_last"]), rounds=2)
    assert {(r.knobs["batch"], r.protocol["round"]) for r in found.records} == {(4, 0), (4, 1)}
    assert {r.status for r in found.records} == {"ok"}
    lost = [r for r in stored() if r.status == "oom" and r.case["technique"] != compare.NOISE]
    assert {(r.knobs["batch"], r.protocol["round"]) for r in lost} == {(16, 0), (8, 0)}, "no second round of what cannot fit"
    assert "at batch 16: the whole comparison is measured with batch=8" in capsys.readouterr().out
    swept = hpml.run(hpml.case(str(small), tier="gpu", device="cpu").sweep(batch=[4, 8]), rounds=1).records
    assert {r.knobs["batch"]: r.status for r in swept} == {4: "ok", 8: "oom"}, "here running out is the result"
    whole = rounds.half_the_batch([hpml.case(TINY, tier="gpu", fit=True, device="cpu")])[0].knobs
    assert (whole["batch"], whole["accum_steps"]) == (16, 2), "the optimizer's step stays the same"


def test_an_interrupted_cell_keeps_the_finished_cases(monkeypatch):
    real, calls = rounds.launch.side_by_side, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(rounds.launch, "side_by_side", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hpml.run(hpml.case(TINY).sweep(accum_steps=[1, 2]), rounds=2)
    assert [(r.protocol["round"], r.status) for r in stored()] == [(0, "ok"), (0, "ok")]


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
