"""The verdict: what may be said of a comparison, and what is refused."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from hpml import answers, compare, tables
from hpml.env import HpmlError
from hpml.records import Record

MACHINE = {"id": "m"}


def record(rate, *, key="a", number=0, group="g", technique="precision", knobs=None, quality=None, status="ok", machine=MACHINE, order=0,
           phase="train", baseline="a", differs=()):
    return Record(
        run_id="r", status=status, reason=None if status == "ok" else "no GPU", protocol={"round": number},
        case={"workload": "resnet50", "phase": phase, "key": key, "group": group, "technique": technique, "tier": "cpu", "label": key,
              "order": order, "baseline": baseline, "differs_in": list(differs)},
        knobs=knobs or {"precision": key}, machine=machine, quality=quality,
        samples={"unit": "s", "items": 1, "values": [1 / rate]} if rate else None,
        stats={"n": 1, "median": 1 / rate, "p99": 1 / rate, "per_s": rate} if rate else None)


def noise(spread=0.005, rounds=6):
    rng = random.Random(1)
    return [record(100 * math.exp(rng.gauss(0, spread)), key=key, number=i, group="aa", technique=compare.NOISE)
            for i in range(rounds) for key in ("n1", "n2")]


def pair(ratio, rounds=6, spread=0.004):
    rng = random.Random(2)
    found = []
    for i in range(rounds):
        drift = math.exp(rng.gauss(0, 0.2))  # the machine's speed changes from round to round; pairs do not mind
        found.append(record(100 * drift, number=i))
        found.append(record(100 * drift * ratio * math.exp(rng.gauss(0, spread)), key="b", number=i, order=1, differs=["precision"]))
    return found


def other(records):
    return next(row for row in compare.rows(records) if not row.is_baseline)


def test_faster_slower_and_no_difference():
    assert other(pair(1.5) + noise()).verdict == "faster"
    assert other(pair(1 / 1.5) + noise()).verdict == "slower"
    same = other(pair(1.0) + noise())
    assert same.verdict == "no difference"
    assert same.verdict_text.startswith("no difference above ")
    assert other(pair(1.5) + noise()).ratio == pytest.approx(1.5, rel=0.02)


def test_a_difference_inside_the_noise_floor_is_none():
    row = other(pair(1.03) + noise(spread=0.10))
    assert row.low > 1 and row.verdict == "no difference" and "too noisy" in row.verdict_text


def test_too_few_rounds_and_no_floor_give_no_verdict():
    assert other(pair(1.5, rounds=2) + noise()).verdict == "too few rounds"
    without = other(pair(1.5))
    assert without.verdict == "too few rounds" and "no noise floor" in without.verdict_text


def test_what_could_not_run_says_why():
    row = other([*pair(1.0)[::2], record(None, key="b", status="unsupported", order=1)])
    assert row.verdict_text == "not measured here: no GPU" and row.per_s is None


def test_the_last_of_a_repeated_round_counts():
    records = [record(10, number=0), record(99, number=0), record(100, number=1)]
    assert compare.by_round(records) == {0: 99, 1: 100}


def test_of_a_repeated_round_the_one_that_nothing_disturbed_counts():
    calm, busy = record(100), record(50)
    calm.protocol["busy"], busy.protocol["busy"] = False, True
    assert compare.by_round([busy, calm]) == compare.by_round([calm, busy]) == {0: 100}
    assert compare.by_round([busy, busy]) == {0: 50}
    others = [record(70, key="b", order=1, number=i, differs=["precision"]) for i in range(2)]
    others[1].protocol["busy"] = True
    assert other([calm, *others]).busy_rounds == 1


def test_machines_and_protocols_are_never_mixed():
    with pytest.raises(HpmlError, match="different machines"):
        compare.rows([record(1), record(1, machine={"id": "n"})])
    newer = record(1)
    newer.protocol_version += 1
    with pytest.raises(HpmlError, match="protocol versions"):
        compare.rows([record(1), newer])


def test_the_floor_shrinks_with_rounds_and_needs_three():
    logs = compare.noise_logs(noise(spread=0.03), "train")
    assert compare.noise_floor(logs, 6) < compare.noise_floor(logs, 3)
    with pytest.raises(HpmlError, match="too few"):
        compare.noise_floor(logs[:2], 3)


def test_early_stop_wants_more_confidence():
    clear, doubtful = [0.40, 0.41, 0.42], [0.02, 0.06, 0.10]
    assert compare.decided(clear, 0.02)
    assert compare.interval(doubtful)[1] < 1 and not compare.decided(doubtful, 0.02)
    assert not compare.decided(clear, None) and not compare.decided(clear[:2], 0.02)
    assert compare.decided([0.001, -0.001, 0.0], 0.05), "clearly inside the floor"


def test_false_alarms_of_the_whole_rule_stay_rare():
    """Gaussian rounds, looks at 3, 4, 5 and 6: at most 5 % of A/A comparisons may end as a difference."""
    rng = random.Random(3)
    alarms = 0
    for _ in range(300):
        floor = compare.noise_floor([rng.gauss(0, 0.02) for _ in range(6)], 6)
        logs = [rng.gauss(0, 0.02) for _ in range(3)]
        while not compare.decided(logs, floor):
            logs.append(rng.gauss(0, 0.02))
        alarms += compare.speed_verdict(logs, floor)[0] != "no difference"
    assert alarms / 300 <= 0.05


def quality_runs(values, base_values, margin=0.01, informative=True):
    def score(value):
        return {"metric": "top-1", "value": value, "n": 1000, "chance": 0.1, "margin": margin, "informative": informative}

    return [record(50, key=f"fit{key}", number=i, group="q", baseline="fita", knobs={"precision": key, "epochs": 2}, quality=score(v))
            for key, found in (("a", base_values), ("b", values)) for i, v in enumerate(found)]


@pytest.mark.parametrize(("values", "word"), [
    ([0.90], "kept"), ([0.85], "lost"), ([0.899, 0.90, 0.901], "kept"), ([0.80, 0.81, 0.80], "lost"),
    ([0.80, 0.99, 0.92], "not informative")])
def test_quality_is_judged_against_the_margin(values, word):
    row = other(pair(1.5) + noise() + quality_runs(values, [0.90] * len(values)))
    assert row.quality == word, row.quality_text


def test_quality_of_another_technique_or_group_does_not_vouch():
    runs = quality_runs([0.9], [0.9])
    for one in runs[1:]:
        one.case = {**one.case, "group": "elsewhere"}
    assert other(pair(1.5) + noise() + runs).quality == "not measured"
    assert other(pair(1.5) + noise()).quality == "not measured"
    assert other(pair(1.5) + noise() + quality_runs([0.1], [0.1], informative=False)).quality == "not informative"


def test_quality_of_other_weights_vouches_only_for_a_variant_that_is_not_trained():
    def row(speed, vouching, variant="base"):
        timed, runs = pair(1.5), quality_runs([0.9], [0.9])
        for one, weights in [(r, speed) for r in timed] + [(r, vouching) for r in runs]:
            one.actual = {"weights_sha256": weights} if weights else {}
            one.knobs = {**one.knobs, "weights": "trained" if weights else "random", "variant": variant if one.quality else "base"}
        return other(timed + noise() + runs)

    assert row("a", "a").quality == row(None, "a", variant="small").quality == "kept"
    assert "small, n=1000" in row(None, "a", variant="small").quality_text and "base" not in row("a", "a").quality_text
    assert row("a", "b").quality == row(None, "a").quality == "not measured"


def test_the_scatter_of_another_device_is_no_floor():
    gpu = noise(spread=0.0001)
    for one in gpu:
        one.knobs = {**one.knobs, "device": "cuda"}
    timed = pair(1.02, spread=0.001)
    for one in timed:
        one.knobs = {**one.knobs, "device": "cpu"}
    assert other(timed + gpu).verdict == "too few rounds"
    assert compare.noise_logs(gpu, "train", "cpu") == [] and len(compare.noise_logs(gpu, "train", "cuda")) == 6


def test_a_skipped_round_of_the_baseline_takes_no_quality_away():
    timed = pair(1.5)
    timed.append(record(None, key="a", number=6, baseline="a", knobs={"precision": "a"}, status="skipped"))
    assert other(timed + noise() + quality_runs([0.9], [0.9])).quality == "kept"


def test_answers_that_fail_the_parity_check_keep_no_quality():
    timed = pair(1.5)
    for one in timed:
        if one.knobs["precision"] == "b":
            one.status, one.reason, one.stats = "parity_failed", "cosine 0.83", None
    assert other(timed + noise() + quality_runs([0.9], [0.9])).quality == "not measured"


def test_a_planted_slowdown_is_no_technique():
    records = pair(1.5) + noise() + [record(100, key=key, group="p", knobs={"slowdown": slow}, baseline="s", order=slow > 0)
                                     for key, slow in (("s", 0.0), ("t", 0.1))]
    rows = compare.rows(records)
    assert len(rows) == 4 and {row.group for row in compare.techniques(rows)} == {"g"}


def test_a_quality_run_whose_answers_differ_says_so():
    timed, runs = pair(1.5), quality_runs([0.9], [0.9])
    for one in runs:
        if one.case["key"] == "fitb":
            one.status, one.reason, one.quality, one.parity = "parity_failed", "outputs differ", None, {"top1_agreement": 0.625, "n": 8}
    row = other(timed + noise() + runs)
    assert row.quality == "not measured" and row.quality_text == "not measured: parity failed (agreement 0.62, n=8)"
    assert tables.short_quality(row.quality_text) == "not measured: parity failed (agreement 0.62)"


def test_an_inference_says_what_its_test_samples_leave_open():
    """The interval of the difference by sample: 20 of 1,000 lost and 10 gained are less sure than 10 lost and none gained."""
    def row(gained, lost, n=1000):
        base = [i >= lost and i < 900 + lost for i in range(n)]
        mine = [base[i] and i >= 2 * lost or i >= n - gained for i in range(n)]
        runs = quality_runs([sum(mine) / n], [sum(base) / n], margin=0.02)
        for one, right in zip(runs, (base, mine), strict=True):
            one.case["phase"], one.quality["right"] = "infer", answers.packed(right)
        timed = pair(1.5)
        for one in timed:
            one.case["phase"] = "infer"
        return other(timed + noise() + runs).quality_text

    assert row(0, 10) == "kept (-1.0 points [-1.7, -0.3], n=1000)"
    assert row(10, 20) == "kept (-1.0 points [-2.1, +0.1], n=1000)"
    assert row(0, 0) == "kept (+0.0 points [-0.3, +0.3], n=1000)"
    assert row(0, 30) == "lost by 3.0 points [-4.1, -1.9] (margin 2.0, n=1000)"
    assert tables.short_quality(row(10, 20)) == "kept (-1.0 points)"


def test_the_interval_of_answers_covers_the_true_difference():
    """Paired answers that are drawn with a known difference: 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        drawn = rng.random(400)
        base, mine = (drawn < 0.85) | (drawn > 0.98), drawn < 0.89  # alone right: 2 % and 4 %
        ends = answers.difference({"n": 400, "right": answers.packed(mine)}, {"n": 400, "right": answers.packed(base)}, 0.95)
        held += ends[0] <= 0.02 <= ends[1]
    assert 930 <= held <= 980
    assert answers.difference({"n": 400}, {"n": 400, "right": answers.packed(base)}, 0.95) is None


def test_a_knob_that_only_a_newer_version_has_parts_no_quality_from_its_speed():
    def key(**knobs):
        return compare.technique_key(SimpleNamespace(case={"workload": "w", "phase": "infer", "tier": "cpu"}, knobs=knobs))

    assert key(precision="int8") == key(precision="int8", scheme="affine") != key(precision="int8", scheme="symmetric")
