"""Tables and sentences from rows. The made-up records here also serve the tests of charts and report."""

import csv
import random

import pytest

from hpml import compare, records, tables
from hpml.records import Record

MACHINE = {
    "id": "xeon-platinum-8480c-2c-a1b2c3",
    "cpu": "Xeon Platinum 8480C",
    "cores": 2,
    "ram_gib": 24,
    "gpu": None,
    "isa": ["avx512f", "amx_bf16"],
}
DATA = {"name": "cifar10", "title": "CIFAR-10", "origin": "real", "n_train": 50_000, "n_test": 10_000, "checksum": "0" * 64}
BASE = {
    "train": {
        "precision": "fp32",
        "memory_format": "contiguous",
        "workers": 0,
        "script": "none",
        "batch": 32,
        "epochs": 0,
        "device": "cpu",
    },
    "infer": {"engine": "eager", "precision": "fp32", "batch": 1, "device": "cpu", "measure": "speed"},
    "limit": {"kind": "matmul", "dtype": "fp32", "engine": "torch", "device": "cpu"},
}
SHARES = {"wait": 0.08, "copy": 0.01, "forward": 0.3, "backward": 0.55, "optimizer": 0.06}


def make(
    workload="resnet50",
    phase="train",
    *,
    changes=None,
    varying=(),
    group="g",
    base=None,
    per_s=50.0,
    number=0,
    status="ok",
    reason=None,
    tier="cpu",
    technique=None,
    spread=0.01,
    limit=24.0,
    quality=None,
    order=0,
    machine=MACHINE,
    arm="",
    **fields,
) -> Record:
    """One record of the case that differs from the phase's defaults in `changes`."""
    knobs = {**BASE[phase], **(base or {}), **(changes or {})}
    first = {**BASE[phase], **(base or {})}
    key = f"{workload}-{phase}-{sorted(knobs.items())}-{arm}"
    label = ", ".join(f"{k}={knobs[k]}" for k in varying) or arm or "as it is"
    case = {
        "workload": workload,
        "phase": phase,
        "technique": technique or "+".join(changes or {}) or "as it is",
        "tier": tier,
        "key": key,
        "group": f"{workload}-{phase}-{group}",
        "label": label,
        "order": order,
        "arm": arm,
        "baseline": f"{workload}-{phase}-{sorted(first.items())}-{'A' if arm else ''}",
        "differs_in": [k for k in knobs if knobs[k] != first[k]],
    }
    rng = random.Random(f"{key}{number}")
    if status == "ok" and phase != "limit":
        items = knobs["batch"]
        values = [items / (per_s * rng.gauss(1, spread)) for _ in range(12)]
        phases = {name: [share * v for v in values] for name, share in SHARES.items()} if phase == "train" else None
        fields = {
            "samples": {"unit": "s", "items": items, "values": values, "phases": phases},
            "memory": {"peak_rss_mib": 1234.5},
            "stats": records.stats(values, items=items, center="mean" if phase == "train" else "median"),
            "cold": {"first_call_s": 5 * values[0]},
            "actual": {"device": "cpu", "data": DATA},
            # So much work that its own sitting's percentage is the lowest.
            "limit": {"flops": 1e15, "bytes": 1e6, "bound": "compute", "percent": limit} if limit else None,
            **fields,
        }
    return Record(
        run_id="made-up",
        status=status,
        reason=reason,
        case=case,
        knobs=knobs,
        quality=quality,
        machine=machine,
        protocol={"round": number, "warmup": 3, "seed": number, "busy": False},
        git={"commit": "0" * 40, "dirty": False},
        versions={"python": "3.11", "torch": "2.14.1"},
        **fields,
    )


def sweep(knob, values, *, workload="resnet50", phase="train", rounds=4, rates=(), base=None, lost=None, **options) -> list[Record]:
    """Interleaved rounds of one swept knob; `lost` maps values to (status, reason)."""
    found = []
    for number in range(rounds):
        for order, value in enumerate(values):
            changes = {} if order == 0 else {knob: value}
            status, reason = (lost or {}).get(value, ("ok", None))
            if status != "ok" and number:
                continue
            found.append(
                make(
                    workload,
                    phase,
                    changes=changes,
                    varying=(knob,),
                    base={**(base or {}), knob: values[0]},
                    number=number,
                    order=order,
                    group=f"{knob}{base}",
                    status=status,
                    reason=reason,
                    per_s=(rates[order] if rates else 50.0) * random.Random(f"{number}{knob}{workload}").gauss(1, 0.02),
                    **options,
                )
            )
    return found


def stack(changes, *, workload="resnet50", rounds=4, rates=(50, 90), **options) -> list[Record]:
    return [
        make(workload, changes=c, varying=tuple(changes), group="stack", number=n, order=o, per_s=rates[o], **options)
        for n in range(rounds)
        for o, c in enumerate(({}, changes))
    ]


def noise(phase="train", workload="resnet50", rounds=6, spread=0.01) -> list[Record]:
    """A/A records."""
    rng = random.Random(phase)
    return [
        make(workload, phase, number=n, order=o, arm=arm, technique=compare.NOISE, group="aa", per_s=50 * rng.gauss(1, spread))
        for n in range(rounds)
        for o, arm in enumerate(("A", "A again"))
    ]


def fit(value, *, changes=None, number=0, workload="resnet50", epochs=4, informative=True, **options) -> Record:
    """A whole training with its curve."""
    rng = random.Random(f"{value}{number}{changes}")
    curve = [[e + 1, 2.3 * 0.7 ** (e + 1) + rng.gauss(0, 0.02), value * (1 - 0.5 ** (e + 1)) / (1 - 0.5**epochs)] for e in range(epochs)]
    losses = [2.3 * 0.7 ** (i / 15) + rng.gauss(0, 0.1) for i in range(15 * epochs)]
    scores = {
        "metric": "top-1 accuracy",
        "value": value,
        "n": 1000,
        "chance": 0.1,
        "margin": 0.01,
        "informative": informative,
        "curve": curve,
        "losses": losses,
        "losses_every": 1,
    }
    return make(
        workload,
        changes={**(changes or {}), "epochs": epochs},
        varying=tuple(changes or {}) or ("epochs",),
        number=number,
        quality=scores,
        group="fit",
        **options,
    )


def limit(kind, dtype, engine, value, unit, **options) -> Record:
    if value is None:
        return make(
            "machine",
            "limit",
            changes={"kind": kind, "dtype": dtype, "engine": engine},
            status="unsupported",
            reason="bf16 is not in this library",
            technique="limit",
            **options,
        )
    return make(
        "machine",
        "limit",
        changes={"kind": kind, "dtype": dtype, "engine": engine},
        technique="limit",
        actual={"value": value, "unit": unit},
        **options,
    )


def study() -> list[Record]:
    """A small but whole study: two workloads, trainings, inference, what failed, noise and limits."""
    found = noise() + noise("infer")
    found += sweep(
        "precision",
        ["fp32", "bf16", "fp16"],
        rates=(50, 69, 0),
        lost={"fp16": ("unsupported", "FP16 training on a CPU: no fast FP16 here")},
    )
    found += sweep("memory_format", ["contiguous", "channels_last"], rates=(50, 50.2))
    found += sweep("workers", [0, 1, 2, 4], rates=(50, 56, 54, 41))
    found += stack({"precision": "bf16", "memory_format": "channels_last"}, rates=(50, 80))
    found += sweep("precision", ["fp32", "bf16"], workload="xlnet", rates=(8, 12.2), rounds=6)
    found += sweep("workers", [0, 2], workload="xlnet", rounds=2, rates=(8, 8.1))
    for batch in (1, 8, 32):
        found += sweep(
            "engine",
            ["eager", "onnxruntime", "openvino", "tensorrt"],
            phase="infer",
            base={"batch": batch},
            rounds=3,
            rates=[r * batch**0.4 for r in (33, 61, 74, 0)],
            lost={"tensorrt": ("unsupported", "no NVIDIA GPU or no driver")},
        )
    found += [fit(0.791 + 0.004 * n, number=n) for n in range(3)]
    found += [fit(0.794 + 0.004 * n, number=n, changes={"precision": "bf16"}) for n in range(3)]
    for kind, base in (("matmul", 1.9e11), ("conv3x3", 2.4e11)):
        for dtype, factor in (("fp32", 1), ("bf16", 5), ("int8", 9)):
            for engine, own in (("torch", 1), ("onnxruntime", 0.9), ("openvino", 1.1)):
                value = None if (dtype, engine) in (("bf16", "onnxruntime"), ("int8", "torch")) else base * factor * own
                found.append(limit(kind, dtype, engine, value, "FLOP/s"))
    found += [limit("memory", "any", "torch", 3.1e10, "B/s"), limit("jpeg", "any", "pil", 410.0, "images/s")]
    return found


def only(rows, **wanted):
    (row,) = [row for row in rows if all(row.knobs.get(k) == v for k, v in wanted.items()) and not row.is_baseline]
    return row


PRECISION = dict(
    knob="precision", values=["fp32", "bf16", "fp16"], rates=(50, 69, 0), lost={"fp16": ("unsupported", "no fast FP16 | <b>here</b>")}
)


def rows_of_precision(**options):
    fits = [fit(0.79, number=n) for n in range(3)] + [fit(0.793, number=n, changes={"precision": "bf16"}) for n in range(3)]
    return [row for row in compare.rows(noise() + sweep(**{**PRECISION, **options}) + fits)]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0, "0"),
        (52.34, "52.3"),
        (1234.5, "1,230"),
        (0.01234, "0.0123"),
        (5.0, "5.00"),
        (99.96, "100"),
        (9.999, "10.0"),
        (0.5, "0.500"),
        (123456, "123,000"),
        (1.5e9, "1.50e9"),
        (-3.14159, "-3.14"),
        (0.00012, "1.20e-4"),
    ],
)
def test_figures_have_three_significant_digits(value, shown):
    assert tables.figure(value) == shown


def test_si_prefixes():
    assert tables.si(1.234e12, "FLOP/s") == "1.23 TFLOP/s"
    assert tables.si(9.999e8, "B/s") == "1.00 GB/s"
    assert tables.si(410.0, "images/s") == "410 images/s"


def test_text_shows_every_case_with_its_figures_and_the_reason_of_what_is_missing():
    shown = tables.text(rows_of_precision())
    head, _, base, bf16, fp16, *remarks = shown.splitlines()
    assert head.split("  ")[0] == "case" and "samples/s" in head and "latency" not in head
    assert "baseline" in base and base.count("1.") == 0
    row = only(rows_of_precision(), precision="bf16")
    for part in (
        "precision=bf16",
        tables.figure(row.per_s),
        f"{row.ratio:.2f}x",
        f"[{row.low:.2f}, {row.high:.2f}]",
        "faster",
        "kept (+0.3 points",
        "1,230",
        "24.0 (compute)",
    ):
        assert part in bf16
    assert "not measured here" in fp16
    assert remarks == ["not measured here: precision=fp16: no fast FP16 | <b>here</b>"]
    assert all(len(line) <= 130 for line in shown.splitlines())
    assert not shown.startswith("smoke")


def test_text_names_what_differs_between_several_workloads_and_leaves_out_empty_columns():
    shown = tables.text(compare.rows(study()))
    assert "XLNet" in shown and "ResNet-50" in shown and "latency ms" in shown and "machine" not in shown.splitlines()[0]
    bare = tables.text(compare.rows([make(limit=None, number=n) for n in range(3)]))
    assert "ratio" not in bare and "% of limit" not in bare and "quality" not in bare


def test_smoke_tables_and_sentences_say_that_they_are_no_result():
    rows = compare.rows(sweep("precision", ["fp32", "bf16"], rounds=3, tier="smoke"))
    assert tables.text(rows).splitlines()[0] == "smoke: not a result"
    assert tables.markdown(rows).startswith("**smoke: not a result**")
    assert tables.sentence(rows[1]).startswith("smoke: not a result. ResNet-50 training with precision=bf16 ran")


def test_markdown_keeps_foreign_text_in_its_cell():
    evil = sweep("precision", ["fp32", "bf16"], lost={"bf16": ("failed", "a | b\n<script>alert(1)</script> $x$ [l](u)")})
    shown = tables.markdown(compare.rows(noise() + evil))
    lines = shown.splitlines()
    counts = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert len(counts) == 1
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "\\$x\\$" in shown and "\\[l\\]" in shown


def test_no_rows():
    assert tables.text([]) == tables.markdown([]) == "no cases"


def test_csv_holds_unrounded_figures(tmp_path):
    rows = rows_of_precision()
    path = tables.csv(rows, tmp_path / "new" / "table.csv")
    with path.open(newline="") as file:
        back = list(csv.DictReader(file))
    assert [line["label"] for line in back] == [row.label for row in rows]
    assert float(back[1]["ratio"]) == rows[1].ratio and back[0]["ratio"] == "" and back[1]["differs_in"] == "precision"


def test_sentence_of_a_faster_case():
    rows = rows_of_precision()
    row = only(rows, precision="bf16")
    assert tables.sentence(row, rows[0]) == (
        f"ResNet-50 training with precision=bf16 is faster than the baseline (precision=fp32): {row.ratio:.2f}x, "
        f"95 % interval {row.low:.2f} to "
        f"{row.high:.2f} over 4 rounds (noise floor {compare.percent(row.floor)}); quality kept (+0.3 points, n=1,000, 3 seeds); "
        f"24.0 % of the compute limit."
    )
    assert "than the baseline: " in tables.sentence(row)


def test_sentences_of_two_comparisons_of_the_same_engines_differ():
    """What is given in a comparison is said: its batch, its part of the model, its threads."""
    def said(**given):
        found = noise("infer") + sweep("engine", ["eager", "onnxruntime"], phase="infer", base=given, rounds=4, rates=(10, 20))
        return tables.sentences(compare.rows(found))[0].split(" with ")[0]

    assert said() == "ResNet-50 inference at batch 1"
    assert said(batch=8, threads=1) == "ResNet-50 inference at batch 8 and 1 thread"
    assert said(part="image", threads=2) == "ResNet-50 inference of its part image at batch 1 and 2 threads"


def test_sentences_of_the_other_verdicts():
    rows = compare.rows(study())
    said = {(row.workload, row.phase, row.label): tables.sentence(row, tables.baseline_of(row, rows)) for row in rows}
    assert " is slower than the baseline (workers=0): 0.8" in said["resnet50", "train", "workers=4"]
    assert "shows no difference above" in said["resnet50", "train", "memory_format=channels_last"]
    assert "No verdict on XLNet training with workers=2: too few rounds (2 of 3); so far 1.0" in said["xlnet", "train", "workers=2"]
    assert said["resnet50", "train", "precision=fp16"] == (
        "ResNet-50 training with precision=fp16 was not measured here: FP16 training on a CPU: no fast FP16 here."
    )
    assert (
        "(a stack of precision and memory_format) is faster than the baseline (precision=fp32 and memory_format=contiguous)"
        in said["resnet50", "train", "precision=bf16, memory_format=channels_last"]
    )
    assert "is the baseline: " in said["resnet50", "train", "workers=0"]
    assert len(tables.sentences(rows)) == sum(not row.is_baseline for row in rows)


def test_sentences_without_floor_with_noise_and_without_baseline():
    no_floor = compare.rows(sweep("precision", ["fp32", "bf16"], rates=(50, 69)))
    assert "no noise floor is recorded" in tables.sentence(no_floor[1]) and tables.verdict(no_floor[1]) == "no noise floor recorded"
    noisy = compare.rows(noise(spread=0.2) + sweep("precision", ["fp32", "bf16"], rates=(50, 169)))
    assert "machine too noisy" in tables.sentence(noisy[1]) and "machine too noisy" in tables.text(noisy)
    lost = compare.rows(sweep("precision", ["fp32", "bf16"], lost={"fp32": ("oom", "out of memory: 30 GiB asked")}))
    assert "its baseline has no figure" in tables.sentence(lost[1])
    assert tables.sentence(lost[0]).endswith("was not measured here: out of memory: 30 GiB asked (oom).")


@pytest.mark.parametrize(
    ("shown", "short"),
    [
        ("kept (+0.3 points, n=1,000, 3 seeds)", "kept (+0.3 points)"),
        ("lost by 1.2 points (margin 1.0, n=1,000, 1 seed)", "lost by 1.2 points"),
        ("not informative (12 %, n=80)", "not informative (12 %)"),
        ("80 % (n=1,000)", "80 %"),
        ("not measured", "not measured"),
        ("", ""),
        ("not informative (+0.3 points, interval wider than the margin, n=80, 3 seeds)", "not informative (+0.3 points)"),
        ("85 % (baseline's not measured)", "85 % (baseline's not measured)"),
    ],
)
def test_short_quality(shown, short):
    assert tables.short_quality(shown) == short


def test_a_case_without_a_rate_is_done_not_missing():
    records = [make(group="e", order=o, changes=c, varying=("precision",)) for o, c in enumerate(({}, {"precision": "bf16"}))]
    for record in records:
        record.stats = None
    rows = compare.rows(records)
    assert tables.text(rows).count("done") == 2 and "not measured here" not in tables.text(rows)
    assert tables.sentence(rows[1]) == "ResNet-50 training with precision=bf16 was done; it has no rate."


def test_a_limit_above_100_percent_is_flagged():
    rows = compare.rows(noise() + sweep("precision", ["fp32", "bf16"], limit=120.0))
    assert "(!)" in tables.text(rows) and "measured limit is too low" in tables.text(rows)
    assert "120 % of the compute limit (above 100 %" in tables.sentence(rows[1])


def test_the_strongest_are_counted_and_named_with_their_machine():
    rows = compare.rows(noise() + sweep("precision", ["fp32", "bf16"], rounds=6, rates=(50, 90)))
    compared = [row for row in rows if not row.is_baseline]
    counted, named, none = tables.strongest(compared, rows)
    assert counted == "1 of 1 comparisons are faster, the strongest:" and none == "0 of 1 comparisons are slower."
    assert "1.80x" in named and f"on {compared[0].machine}" in named and "the baseline (" in named
    assert tables.strongest([], rows) == []
