"""Stacked techniques: the cases of a ladder, what its records say, and its chart."""

import dataclasses

import pytest
from matplotlib import pyplot
from test_plot import inside, texts
from test_tables import make, noise

from hpml import cases, compare, ladder, plot

STEPS = [{"workers": 1}, {"memory_format": "channels_last"}, {"precision": "bf16"}]
GAINS = {"workers": 1.2, "memory_format": 1.1, "precision": 1.5}
NAMES = tuple(GAINS)


@pytest.fixture(autouse=True)
def close():
    yield
    pyplot.close("all")


def subsets():
    every = [STEPS[:n] for n in range(4)] + [STEPS[1:], [STEPS[0], STEPS[2]]] + [[STEPS[1]], [STEPS[2]]]
    return [{name: value for step in chosen for name, value in step.items()} for chosen in every]


def climbed(*, together=1.0, rounds=4, lost=(), **options):
    """Rounds of the whole ladder; the gains multiply, times `together` where all steps are on. `lost`: knob sets that have no figure."""
    found = []
    for number in range(rounds):
        for order, changes in enumerate(subsets()):
            rate = 50.0
            for name in changes:
                rate *= GAINS[name]
            failed = set(changes) in lost
            if failed and number:
                continue
            found.append(make(changes=changes, varying=NAMES, group="ladder", number=number, order=order, limit=60.0,
                              per_s=rate * (together if len(changes) == 3 else 1), status="oom" if failed else "ok",
                              reason="out of memory" if failed else None, **options))
    return found


def read(records):
    (found,) = ladder.read(compare.rows(noise() + records), records)
    return found


def test_climb_makes_each_case_once_and_the_baseline_first():
    base = cases.case("resnet50", phase="train", tier="smoke")
    made = ladder.climb(base, STEPS)
    assert [{n: v for n, v in case.knobs.items() if base.knobs[n] != v} for case in made] == subsets()
    assert made[0] == base and len(ladder.climb(base, STEPS[:1])) == 2
    both = ladder.climb(base, [{"pin_memory": True, "non_blocking": True}, {"precision": "bf16"}])
    assert [case.technique for case in both[1:]] == ["pin_memory+non_blocking", "pin_memory+non_blocking+precision", "precision"]


def test_steps_that_were_not_measured_are_no_ladder():
    records = climbed(lost=[set(changes) for changes in subsets()[1:]])
    assert ladder.read(compare.rows(noise() + records), records) == []


def test_gains_that_multiply():
    found = read(climbed())
    assert [step.knobs for step in found.steps] == [("workers",), ("memory_format",), ("precision",)]
    assert found.product[0] == pytest.approx(1.98, rel=0.03) and found.full.ratio == pytest.approx(1.98, rel=0.03)
    assert found.excess_verdict == "no difference"
    for step, gain in zip(found.steps, GAINS.values(), strict=True):
        assert step.added[0] == pytest.approx(gain, rel=0.03) == pytest.approx(step.alone[0], rel=0.03)
        assert step.last[0] == pytest.approx(gain, rel=0.03) and step.last[1] < step.last[0] < step.last[2]
    said = ladder.sentences(found)
    assert "as much, within the noise, as the product of its steps" in said[0] and said[3].endswith(": the stack needs it.")


def test_gains_that_do_not_multiply():
    less = read(climbed(together=0.6))
    assert less.excess_verdict == "slower" and less.excess[0] == pytest.approx(0.6, rel=0.03)
    assert "less than the product" in ladder.sentences(less)[0] and "the stack is faster without it" in ladder.sentences(less)[1]
    assert read(climbed(together=1.5)).excess_verdict == "faster"


def test_what_is_missing_is_said():
    alone = read(climbed(lost=[{"precision"}]))
    assert alone.product is None and "precision=bf16 alone has no figure" in ladder.sentences(alone)[0]
    assert alone.steps[2].alone is None and alone.steps[2].last is not None
    whole = read(climbed(lost=[set(NAMES)]))
    assert whole.excess is None and "the stack has no figure" in ladder.sentences(whole)[0]
    assert "not measured here" in texts(plot.ladder(whole)) and "the whole stack was not measured here" in texts(plot.ladder(whole))


def test_few_rounds_give_no_verdict_and_the_smoke_tier_none_at_all():
    one = read(climbed(rounds=1))
    assert one.excess_verdict == "too few rounds" and one.product[1] is None and "no verdict (few rounds" in ladder.sentences(one)[0]
    smoke = read(climbed(rounds=1, tier="smoke"))
    assert ladder.sentences(smoke)[0].startswith("smoke: not a result. ResNet-50 training")
    assert "3 of 3 steps ran" in texts(plot.ladder(smoke))


def test_machines_are_kept_apart():
    here, there = climbed(), climbed(together=0.6, machine={"id": "other"})
    rows = [*compare.rows(noise() + here), *compare.rows(there)]
    one, two = ladder.read(rows, here + there)
    assert (one.excess[0], two.excess[0]) == (pytest.approx(1, rel=0.03), pytest.approx(0.6, rel=0.03))


def test_other_comparisons_are_no_ladders():
    records = noise() + [make(changes=c, group="one", number=n, order=o, varying=("workers",))
                         for n in range(3) for o, c in enumerate(({}, {"workers": 1}, {"workers": 2}))]
    assert ladder.read(compare.rows(records), records) == []
    sets = ({}, {"precision": "bf16"}, {"precision": "bf16", "workers": 1})  # workers alone are missing
    records = [make(changes=c, group="two", number=n, order=o, varying=NAMES) for n in range(3) for o, c in enumerate(sets)]
    assert ladder.read(compare.rows(records), records) == []


def test_the_chart_shows_steps_diamonds_limits_and_the_product():
    axes = plot.ladder(read(climbed()))
    shown = texts(axes)
    for words in ("+ 1 loader worker", "+ BF16", "product of the steps alone",
                  "like the product of its steps", "the whole stack is faster, 1.9"):
        assert words in shown, words
    labels = [line.get_label() for line in axes.lines]
    assert labels.count("without") == 3 and labels.count("limit") >= 1
    assert "without BF16" in axes.figure.hpml_alt
    inside(axes)
    slower = [dataclasses.replace(r) for r in climbed(together=0.4)]
    assert "the whole stack is slower" in texts(plot.ladder(read(slower))) and "less than the product" in texts(plot.ladder(read(slower)))
