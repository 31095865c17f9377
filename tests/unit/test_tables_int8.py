"""INT8 from records: two ratios, the quality beside them, README's table that grows by itself, and the advice."""

import pytest
from test_tables import MACHINE, make, noise

from hpml import compare, tables_int8

FP32 = {"engine": "onnxruntime", "quantizer": "onnxruntime", "quantization": "static", "image": 224, "weights": "trained", "threads": 0,
        "calib_method": "minmax", "calib_samples": 128}


def case(workload="resnet50", *, per_s, rounds=6, quality=0.8, **changes):
    """The rounds of one case's speed, and the quality pass that vouches for it."""
    order = 1 if changes else 0
    actual = {"int8_ops": 40, "heavy_ops_total": 54, "quantized": {"fp32_bytes": 90 * 2**20}} if changes.get("precision") == "int8" else {}
    found = [make(workload, "infer", base=FP32, changes=changes, per_s=per_s, number=n, order=order, limit=None) for n in range(rounds)]
    for record in found:
        record.actual, record.cold = {**record.actual, **actual}, {**record.cold, "bytes": 23 * 2**20}
    passed = {"metric": "top-1 accuracy", "value": quality, "n": 1000, "chance": 0.1, "margin": 0.01, "informative": quality > 0.2}
    whole = {**FP32, "measure": "quality"}
    vouching = make(workload, "infer", group="quality", base=whole, changes=changes, order=order, quality=passed)
    vouching.stats = None
    return [*found, vouching]


def told(found, others=()):
    rows = [row for row in compare.rows([*noise(), *found]) if row.phase == "infer" and row.knobs.get("measure") != "quality"]
    return tables_int8.advice(rows, found, others)


INT8 = {"precision": "int8"}


def test_how_a_graph_was_made_is_said_in_a_few_words():
    assert tables_int8.maker({"quantizer": "nncf"}) == "nncf", "records of before these knobs are read too"
    assert tables_int8.maker({"quantizer": "onnxruntime", "quantization": "dynamic", "keep_fp": 0}) == "onnxruntime, dynamic"
    assert tables_int8.maker({"quantizer": "nncf", "quantization": "static", "keep_fp": 8}) == "nncf, 8 in FP32"


def test_int8_stands_beside_its_own_fp32_and_beside_the_fastest():
    found = case(per_s=50) + case(per_s=40, engine="openvino") + case(per_s=100, precision="int8", engine="openvino")
    (line,) = tables_int8.beside(found)
    assert line["over its own FP32"].startswith("2.50x") and line["over the fastest FP32"].startswith("2.00x")
    assert line["fastest"] == "onnxruntime" and line["INT8 in"] == "openvino"
    (inside,) = tables_int8.inside(found)
    assert inside["INT8 operators"] == "40 of 54 heavy" and inside["MiB"] == "23.0"


@pytest.mark.parametrize(("rate", "quality", "rounds", "say"), [
    (100, 0.8, 6, "quantize"), (100, 0.7, 6, "do not quantize"), (45, 0.8, 6, "do not quantize"), (100, 0.1, 6, "nothing can be said yet"),
    (100, 0.8, 1, "nothing can be said yet"),
])
def test_advice_asks_for_speed_and_for_quality(rate, quality, rounds, say):
    plain = case(per_s=50, quality=0.8 if quality > 0.2 else 0.1, rounds=rounds)
    (line,) = told(plain + case(per_s=rate, quality=quality, rounds=rounds, **INT8))
    assert line.startswith(f"**ResNet-50** on {MACHINE['id']} (no instructions for INT8): {say} (INT8 by onnxruntime in onnxruntime: ")


def test_advice_says_the_paired_ratio_and_asks_its_interval():
    """Medians of 50 and 60 are 1.2x; round by round it goes both ways, so nobody knows."""
    plain, int8 = case(per_s=50), case(per_s=60, **INT8)
    for record, rate in zip(int8, (60, 90, 20, 61, 95, 25), strict=False):
        record.stats = {**record.stats, "per_s": rate}
    (line,) = told(plain + int8)
    assert ": do not quantize (INT8 by onnxruntime in onnxruntime: 1.0" in line and " over the fastest FP32, onnxruntime; quality" in line
    (beside,) = tables_int8.beside(plain + int8)
    assert beside["over the fastest FP32"] in line and "[" in beside["over the fastest FP32"]


def test_the_fastest_in_floating_point_is_found_in_other_comparisons():
    found = case(per_s=50) + case(per_s=100, **INT8)
    other = [make("resnet50", "infer", base=FP32, changes={"precision": "bf16", "engine": "openvino", **more}, per_s=rate, number=n,
                  group=f"other {rate}") for more, rate in (({}, 80), ({"batch": 8}, 300), ({"threads": 1}, 300)) for n in range(3)]
    (line,) = tables_int8.beside(found, other)
    assert line["over the fastest in floats"] == "1.25x (bf16 in openvino, of another comparison)"
    assert "over the fastest in floating point 1.25x (bf16 in openvino, of another comparison)" in told(found, other)[0]
    assert "over the fastest in floats" not in tables_int8.beside(found)[0] and "floating" not in told(found)[0]
    for record in other:
        record.stats = {**record.stats, "per_s": 2 * record.stats["per_s"]}
    assert ": quantize (" in told(found)[0] and ": do not quantize (" in told(found, other)[0] and "0.6" in told(found, other)[0]
    (line,) = tables_int8.beside(found, found)
    assert line["over the fastest in floats"].startswith("2.00x [") and line["over the fastest in floats"].endswith("(fp32 in onnxruntime)")


def test_a_loss_beyond_the_margin_is_a_sentence_though_nothing_was_timed():
    found = []
    for quality, changes in ((0.8, {}), (0.795, INT8), (0.74, {**INT8, "calib_samples": 8}), (0.7, {**INT8, "engine": "openvino"})):
        record = case(per_s=50, quality=quality, **changes)[-1]
        record.actual = {**record.actual, "quantized": {"samples": record.knobs["calib_samples"]}}
        found.append(record)
    shown = [(line["engine"], line["samples"], line["points beside FP32"]) for line in tables_int8.qualities(found)]
    assert shown == [("onnxruntime", 8, "-6.00"), ("onnxruntime", 128, "-0.50"), ("openvino", 128, "-10.00")]
    first, second = tables_int8.losses(found)
    assert "ranges by minmax of 8 samples: lost 6.00 points (74.00 % beside 80.00 % in FP32, n=1,000, one pass; the margin is 1.0)" in first
    assert "in openvino" in second
    found[0].quality = {**found[0].quality, "value": 0.1}
    for record in found:
        record.quality = {**record.quality, "informative": False}
    assert tables_int8.losses(found) == []


def test_a_model_without_an_int8_figure_is_said_to_have_none():
    assert told(case(per_s=50)) == [f"**ResNet-50** on {MACHINE['id']} (no instructions for INT8): not measured."]


def test_readmes_table_shows_what_there_is_and_grows_by_itself():
    found = case(per_s=50) + case(per_s=100, **INT8)
    rows = compare.rows([*noise(), *found])
    text = tables_int8.markdown(found, rows, ["resnet50", "xlnet"])
    assert "| ResNet-50 | onnxruntime | onnxruntime | 40 of 54 | 2.00x" in text and "kept (+0.0 points" in text
    assert text.endswith("Not measured in INT8 on this machine yet: XLNet.")
    more = found + case("xlnet", per_s=50) + case("xlnet", per_s=60, precision="int8", quantization="dynamic")
    text = tables_int8.markdown(more, compare.rows([*noise(), *more]), ["resnet50", "xlnet"])
    assert "| XLNet | onnxruntime, dynamic | onnxruntime |" in text and "Not measured" not in text
    assert tables_int8.markdown(case(per_s=50), [], ["resnet50"]) == "No INT8 case is recorded on this machine yet."
