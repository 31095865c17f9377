"""Two runs beside each other: what counts as a regression, what chance may do, what is refused, and the exit codes."""

import dataclasses
import json
import math
import os
import random
import subprocess
import sys

import pytest
from matplotlib import pyplot
from test_plot import inside, texts
from test_tables import DATA, MACHINE, fit, make, noise, stack, sweep

from hpml import agreement, compare, env, plot, records, sittings, tables_runs
from hpml.env import HpmlError

SCORE = {"metric": "top-1 accuracy", "n": 1000, "chance": 0.1, "margin": 0.01, "informative": True}


def run(found, name="run"):
    return sittings.Run(name, found, found[0].machine, found[0].protocol_version)


def sitting(group, per_s, *, seed, changes=None, rounds=6, spread=0.01, drift=0.0, **options):
    """Rounds of one case in one comparison; `drift` is the log shift of the whole sitting."""
    rng = random.Random(f"{seed}{group}{changes}")
    shift = rng.gauss(0, drift)
    return [make(changes=changes, group=group, number=n, per_s=per_s * math.exp(shift + rng.gauss(0, spread)), **options)
            for n in range(rounds)]


def study(seed, *, factor=1.0, cases=6, drift=0.02):
    """The baseline in as many comparisons as there are cases; one of the cases at `factor` of its rate."""
    found = []
    for number in range(cases):
        found += sitting(f"g{number}", 50, seed=seed, drift=drift)
        per_s = 60 * (factor if number == 0 else 1)
        found += sitting(f"g{number}", per_s, seed=f"{seed}b", drift=drift, changes={"workers": number + 1}, order=1)
    return found


def between(a, b, **options):
    return agreement.between(run(a, "A"), run(b, "B"), **options)


def only(found, **knobs):
    label = ", ".join(f"{name}={value}" for name, value in knobs.items())
    (pair,) = [pair for pair in found.pairs if label in pair.label]
    return pair


def test_a_slower_case_is_a_regression_and_a_faster_one_is_not():
    slower = between(study(1), study(2, factor=0.5))
    assert [pair.verdict for pair in slower.regressions] == ["slower"] and only(slower, workers=1).ratio == pytest.approx(0.5, rel=0.1)
    faster = between(study(1), study(2, factor=2.0))
    assert only(faster, workers=1).verdict == "faster" and not faster.regressions
    assert only(faster, workers=2).verdict == "no difference"


def test_two_runs_of_unchanged_code_rarely_differ():
    """Sittings drift by 3 %, rounds by 1 %: an alarm in at most 1 of 20 comparisons of 7 cases."""
    alarms = sum(bool({p.verdict for p in between(study(f"a{i}", drift=0.03), study(f"b{i}", drift=0.03)).pairs} & {"slower", "faster"})
                 for i in range(40))
    assert alarms <= 2


def test_the_floor_is_what_sittings_of_one_case_differ_by():
    spread, degrees, words = sittings.spread([run(study(1, cases=12, drift=0.05))], "train")
    assert degrees == 11 and spread == pytest.approx(0.05, rel=0.5) and "sittings" in words
    pair = only(between(study(1, drift=0.3), study(2, factor=0.8, drift=0.3)), workers=1)
    assert pair.verdict == "no difference", "a machine that moves by 30 % between sittings shows no 20 %"
    once = sweep("precision", ["fp32", "bf16"])
    assert sittings.spread([run(once)], "train") is None
    assert "lower bound" in sittings.spread([run(once + noise())], "train")[2]


def test_no_verdict_without_a_floor_or_with_few_rounds():
    once = sweep("precision", ["fp32", "bf16"], rounds=4)
    assert only(between(once, once), precision="bf16").text.startswith("no verdict: neither run says")
    few = [r for r in once if r.protocol["round"] < 2]
    assert only(between(few, once), precision="bf16").text == "no verdict: too few rounds (2 and 4)"


def test_welch_by_its_textbook_example():
    """Against scipy's own test, and exact where nothing varies."""
    from scipy import stats

    a, b = [1.0, 1.1, 0.9, 1.05], [1.4, 1.2, 1.6]
    wanted = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    ratio, low, high = sittings.welch(a, b, 0.95)
    assert math.log(low) == pytest.approx(wanted.low) and math.log(high) == pytest.approx(wanted.high)
    assert ratio == pytest.approx(math.exp(sum(b) / 3 - sum(a) / 4))
    assert sittings.welch([0.0, 0.0], [0.0, 0.0], 0.95) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("status", "verdict", "worse"), [
    ("failed", "broken", True), ("oom", "broken", True), ("unsupported", "broken", True), ("provider_fallback", "broken", True),
    ("skipped", "only in A", False)])
def test_a_case_that_no_longer_runs(status, verdict, worse):
    good, bad = sweep("precision", ["fp32", "bf16"]), sweep("precision", ["fp32", "bf16"], lost={"bf16": (status, "out of memory")})
    pair = only(between(good, bad), precision="bf16")
    assert (pair.verdict, pair.regression) == (verdict, worse) and "out of memory" in pair.text
    back = only(between(bad, good), precision="bf16")
    assert back.verdict in ("works now", "only in B") and not back.regression
    assert only(between(bad, bad), precision="bf16").verdict == "in neither"


def test_cases_of_one_run_only_are_named():
    found = between(sweep("precision", ["fp32", "bf16"]), sweep("precision", ["fp32", "fp16"]))
    assert {p.verdict for p in found.pairs if "precision" in p.label} == {"only in A", "only in B"}
    text = tables_runs.text(found)
    assert "only in A (1): ResNet-50 training, precision=bf16" in text and "only in B (1)" in text and not found.regressions


def test_a_knob_that_only_the_newer_version_has_does_not_part_a_case():
    old, new = sweep("precision", ["fp32", "bf16"]), sweep("precision", ["fp32", "bf16"])
    for record in new:
        record.knobs = {**record.knobs, "ranks": 1, "accum_steps": 1}
    assert all(pair.verdict == "no verdict" for pair in between(old, new).pairs)  # compared, though without a floor
    for record in new:
        record.knobs = {**record.knobs, "ranks": 2}
    assert {pair.verdict for pair in between(old, new).pairs} == {"only in A", "only in B"}


def test_limits_and_profiles_are_no_cases():
    watched = [dataclasses.replace(r, case={**r.case, "phase": "profile"}) for r in sweep("precision", ["fp32", "bf16"])]
    assert between(watched, watched).pairs == [] and "no case is in both runs" in tables_runs.text(between(watched, watched))


def test_other_data_is_not_the_same_case():
    mine, theirs = sweep("precision", ["fp32", "bf16"]), sweep("precision", ["fp32", "bf16"])
    for record in theirs:
        record.actual = {**record.actual, "data": {**DATA, "title": "digits", "origin": "embedded"}}
    pair = only(between(mine, theirs), precision="bf16")
    assert pair.verdict == "other data" and pair.ratio is None and "digits" in pair.text


def scored(value, *, weights=None, phase="infer", **options):
    quality = {**SCORE, "value": value, **options}
    record = make(phase=phase, changes={"measure": "quality"} if phase == "infer" else {"epochs": 2}, quality=quality)
    record.actual = {**record.actual, "weights_sha256": weights}
    return record


@pytest.mark.parametrize(("values", "weights", "word"), [
    ((0.90, 0.88), ("w", "w"), "lost"), ((0.90, 0.895), ("w", "w"), "same"), ((0.88, 0.90), ("w", "w"), "better"),
    ((0.90, 0.88), ("w", "v"), "same"), ((0.90, 0.80), ("w", "v"), "lost")])
def test_quality_is_judged_by_the_margin_and_by_what_chance_can_do(values, weights, word):
    a, b = (scored(value, weights=sha) for value, sha in zip(values, weights, strict=True))
    (pair,) = between([a], [b]).pairs
    assert pair.quality == word and pair.regression == (word == "lost"), pair.quality_text


def test_quality_over_seeds_and_uninformative_quality():
    many = [[fit(value, number=n) for n, value in enumerate(own)] for own in ([0.90, 0.91, 0.89], [0.86, 0.87, 0.85])]
    assert between(*many).pairs[0].quality == "lost"
    apart = [[fit(value, number=n) for n, value in enumerate(own)] for own in ([0.90, 0.80, 0.70], [0.70, 0.80, 0.85])]
    assert between(*apart).pairs[0].quality == "same", "seeds that differ by more than the margin prove no loss"
    assert between([scored(0.9, informative=False)], [scored(0.1, informative=False)]).pairs[0].quality == "not informative"


def export(ops, *, status="ok", size=94_000_000, **actual):
    record = make(limit=None) if status == "ok" else make(status=status, reason="the graph is another function")
    record.case = {**record.case, "phase": "export"}
    record.stats = record.samples = None
    record.cold, record.actual = {"export_s": 6.0, "bytes": size}, {**record.actual, "ops": ops, **actual}
    return record


def test_a_broken_export_is_a_regression_and_changed_graphs_are_said():
    good = export({"Conv": 53, "Relu": 49})
    (broken,) = between([good], [export({"Conv": 53}, status="parity_failed")]).pairs
    assert broken.regression and broken.text == "ok in A, parity_failed in B: the graph is another function"
    (pair,) = between([good], [export({"Conv": 53, "Relu": 40, "Cast": 2}, size=47_000_000)]).pairs
    assert not pair.regression and pair.verdict == "done"
    assert pair.changes == ("ops Cast 0 to 2, Relu 49 to 40", "bytes 94,000,000 to 47,000,000")
    assert not between([good], [export({"Conv": 53, "Relu": 49})]).pairs[0].changes


def test_what_differs_is_named_and_nothing_is_said_to():
    mine, theirs = sweep("precision", ["fp32", "bf16"]), sweep("precision", ["fp32", "bf16"])
    assert between(mine, theirs).differs == [] and "differs in nothing" in tables_runs.text(between(mine, theirs))
    for record in theirs:
        record.versions, record.git = {**record.versions, "torch": "2.15.0"}, {"commit": "1" * 40, "dirty": True}
    assert between(mine, theirs).differs == ["commit: 0000000000 -> 1111111111 with changes", "versions: torch 2.14.1 -> torch 2.15.0"]


def test_techniques_are_compared_by_their_paired_ratios():
    a, b = noise() + stack({"precision": "bf16"}), noise() + stack({"precision": "bf16"}, rates=(50, 50))
    (gain,) = between(a, b).gains
    assert gain.words == ("faster", "no difference") and gain.ratios[0] == pytest.approx(1.8, rel=0.05)
    text = tables_runs.text(between(a, b))
    assert "the same verdict in 0 of 1" in text and "faster, then no difference" in text


def test_between_machines_a_technique_is_what_it_turns():
    a = noise() + stack({"precision": "bf16"})
    b = [dataclasses.replace(r, machine={**MACHINE, "id": "gpu"}, knobs={**r.knobs, "device": "cuda", "batch": 256},
                             case={**r.case, "tier": "gpu"}) for r in noise() + stack({"precision": "bf16"}, rates=(50, 40))]
    found = between(a, b, unlike_machines=True)
    assert {pair.verdict for pair in found.pairs} == {"only in A", "only in B"} and not found.regressions
    assert [(gain.label, gain.words) for gain in found.gains] == [("precision=bf16 (batch=32 and 256)", ("faster", "slower"))]


def test_between_machines_each_batch_is_its_own_comparison():
    """A technique that gains at one batch and loses at another is not paired across them."""
    def at(batch, rate, name):
        return [dataclasses.replace(r, knobs={**r.knobs, "batch": batch}, machine={**MACHINE, "id": name}, notebook="31_onnxruntime",
                                    case={**r.case, "group": f"batch {batch}"}) for r in stack({"precision": "bf16"}, rates=(50, rate))]

    def run(name, *rates):
        return [dataclasses.replace(r, machine={**MACHINE, "id": name}) for r in noise()] + [
            r for batch, rate in zip((1, 8), rates, strict=True) for r in at(batch, rate, name)]

    found = between(run("one", 40, 70), run("two", 60, 70), unlike_machines=True)
    assert {gain.label: gain.words for gain in found.gains} == {
        "precision=bf16 (batch=1, notebook 31)": ("slower", "faster"), "precision=bf16 (batch=8, notebook 31)": ("faster", "faster")}


def other_machine():
    return sweep("precision", ["fp32", "bf16"], machine={**MACHINE, "id": "other-4c", "cores": 4})


def test_unlike_machines_and_protocols_are_refused_unless_asked_for():
    mine, theirs = sweep("precision", ["fp32", "bf16"]), other_machine()
    with pytest.raises(HpmlError, match="unlike machines: A has xeon.* B has other-4c.*--unlike-machines"):
        between(mine, theirs)
    text = tables_runs.text(between(mine, theirs, unlike_machines=True))
    assert text.splitlines()[0].startswith("unlike machines, xeon-platinum-8480c-2c-a1b2c3 and other-4c")
    older = [dataclasses.replace(r, protocol_version=r.protocol_version - 1) for r in mine]
    with pytest.raises(HpmlError, match="--unlike-protocols"):
        between(mine, older)
    assert tables_runs.text(between(mine, older, unlike_protocols=True)).startswith("unlike protocol versions")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("HPML_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("HPML_REFERENCE", str(tmp_path / "reference"))

    def write(folder, found):
        for record in found:
            records.append(folder / "records.jsonl", record)
        return folder

    write(tmp_path / "results" / "runs" / "old", noise() + study(1, cases=3))
    write(tmp_path / "results" / "runs" / "same", noise() + study(2, cases=3))
    write(tmp_path / "folder", noise() + study(3, factor=0.3, cases=3))
    write(tmp_path / "reference" / MACHINE["id"], noise() + study(4, cases=3))
    write(tmp_path / "elsewhere", other_machine())
    (tmp_path / "empty").mkdir()
    newer = dataclasses.asdict(study(1)[0]) | {"schema_version": records.SCHEMA_VERSION + 1}
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "records.jsonl").write_text(json.dumps(newer) + "\n")
    return tmp_path


def hpml(*words, **settings):
    return subprocess.run([sys.executable, "-c", "from hpml.cli import main; main()", "compare", *words], capture_output=True, text=True,
                          env={**os.environ, **settings})


def test_exit_codes_of_a_real_process(place):
    same = hpml("old", "same")
    assert same.returncode == 0, same.stdout + same.stderr
    assert "Nothing is worse in B beyond the noise." in same.stdout and same.stdout.startswith("A = old (")
    worse = hpml("reference", str(place / "folder"), "--changed")
    assert worse.returncode == 1 and "Worse in B: ResNet-50 training, workers=1 (slower)" in worse.stdout
    assert "no difference above" not in worse.stdout, "--changed leaves those out"
    assert hpml(f"reference/{MACHINE['id']}", "old").returncode == 0
    asked = hpml("old", str(place / "elsewhere"), "--unlike-machines")
    assert asked.stdout.startswith("unlike machines, ")


def test_a_mistake_is_one_line_and_exit_code_2(place):
    for words, said in [
            (("old", "never"), "never: no such run"), (("old", str(place / "empty")), "no records in"),
            (("old", str(place / "newer")), "record schema"), (("reference/nowhere", "old"), "no such reference machine"),
            (("old", str(place / "elsewhere")), "unlike machines")]:
        done = hpml(*words)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr and not done.stdout
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_which_reference_is_meant(place, monkeypatch):
    assert sittings.open_run("reference").machine["id"] == MACHINE["id"], "the only one"
    for record in other_machine():
        records.append(place / "reference" / "other-4c" / "records.jsonl", record)
    with pytest.raises(HpmlError, match="which machine\\? known: other-4c, xeon"):
        sittings.open_run("reference")
    monkeypatch.setattr(env, "machine", lambda: {"id": "other-4c"})
    assert sittings.open_run("reference").machine["id"] == "other-4c", "this machine's"
    for record in study(1):
        records.append(place / "elsewhere" / "records.jsonl", record)
    with pytest.raises(HpmlError, match="records of several machines"):
        sittings.open_run(str(place / "elsewhere"))


def test_planted_regressions_are_seen_in_the_committed_shape_of_records():
    """A/A arms are rounds of the same case; a planted slowdown is no technique."""
    found = noise() + study(1, cases=3)
    case = next(pair for pair in between(found, found).pairs if pair.label == "usual knobs")
    assert case.rounds == (30, 30)
    assert all(gain.ratios[0] == gain.ratios[1] for gain in between(found, found).gains)
    assert compare.techniques(compare.rows(found))


def test_the_charts_say_what_the_comparison_says():
    found = between(noise() + study(1), noise() + study(2, factor=0.5))
    axes = plot.runs(found)
    assert "1 of 7 cases slower in B, 0 faster" in texts(axes) and "floor between runs" in texts(axes)
    inside(axes)
    axes = plot.gains(found)
    assert "The same verdict in 5 of 6 techniques" in texts(axes)
    assert "workers=1" in axes.figure.hpml_alt
    inside(axes)
    pyplot.close("all")
    empty = between(sweep("precision", ["fp32", "bf16"]), sweep("workers", [0, 2]))
    assert "0 of" in texts(plot.runs(empty)) and "0 of 0" in texts(plot.gains(empty))
    pyplot.close("all")
