"""Interleaved rounds: their order, what is measured again and what is not, on a small workload given by its path."""

from pathlib import Path

import pytest

import hpml
from hpml import compare, env, records, rounds

TINY = str(Path(__file__).parent.parent / "tiny.py")


pytestmark = pytest.mark.usefixtures("smoke_session")


def stored():
    return records.read(env.run_dir("here") / "records.jsonl")


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
