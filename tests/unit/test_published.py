"""Published figures stand beside the nearest of ours, and are called comparable only where model and kind of processor are alike."""

import pytest
from test_tables import MACHINE, fit, limit, make

from hpml import compare, published
from hpml.published import Published


def pairs(rates: dict[str, list[float]], *, machine=MACHINE) -> list:
    """Comparisons of INT8 with FP32 in ONNX Runtime: for each name one, with its two rates."""
    return [make(phase="infer", changes=changes, varying=("precision",), base={"engine": "onnxruntime", "image": 224}, group=name,
                 number=number, order=order, per_s=rate, spread=0.0, machine=machine)
            for name, both in rates.items() for number in range(3) for order, (changes, rate) in
            enumerate(zip(({}, {"precision": "int8"}), both, strict=True))]


RATIO = Published("2x", "somebody", "a Xeon", "ratio", knobs={"precision": "int8"}, over={"precision": "fp32"})


def test_of_several_ratios_the_middle_one_stands_beside():
    found = pairs({"a": [10, 20], "b": [10, 30], "c": [10, 90]})
    assert published.nearest(RATIO, compare.rows(found), found) == ("3.00x", f"{MACHINE['id']}, 3 rounds")
    assert published.nearest(RATIO, [], []) is None, "nothing alike was measured"
    smoke = [make(phase="infer", tier="smoke"), make(phase="infer", changes={"precision": "int8"}, tier="smoke")]
    assert published.nearest(RATIO, compare.rows(smoke), smoke) is None


@pytest.mark.parametrize(("isa", "own", "found"), [
    ("amx_int8", ["avx512_vnni", "amx_int8"], "15.0 images/s"), ("avx512_vnni", ["avx512_vnni"], "15.0 images/s"),
    ("avx512_vnni", ["avx512_vnni", "amx_int8"], None), ("amx_int8", ["avx2"], None)])
def test_rates_by_core_stand_beside_cores_with_the_same_instructions_only(isa, own, found):
    machine = {**MACHINE, "isa": own, "cores": 2}
    made = pairs({"a": [10, 30]}, machine=machine)
    one = Published("50 images/s", "somebody", "a Xeon", "core", knobs={"precision": "int8", "image": 224}, isa=isa)
    nearest = published.nearest(one, compare.rows(made), made)
    assert (nearest and nearest[0]) == found


def test_a_gpu_or_another_model_is_not_comparable_whatever_else_is_alike():
    assert published.comparable(RATIO) == (True, "")
    for changed, why in (({"device": "cuda"}, "a GPU against CPUs"), ({"model": "GPT-2"}, "GPT-2 against ResNet-50")):
        may, said = published.comparable(Published(**{**vars(RATIO), **changed, "unlike": ("batch",)}))
        assert not may and said == f"{why}, batch"


def test_the_table_has_every_figure_with_what_is_known_of_it():
    found = [*pairs({"a": [10, 30]}), limit("jpeg", "any", "pil", 812.0, "images/s"), fit(0.5)]
    lines = published.markdown(compare.rows(found), found).splitlines()
    assert len(lines) == 2 + len(published.FIGURES)
    by = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    assert "812 images/s" in by["326 JPEG images/s"] and "yes, but: decoder" in by["326 JPEG images/s"]
    assert "50.0%" in by["ResNet-50: 95.9 %, CIFAR-10 from random weights"] and "| no: epochs" in by[
        "ResNet-50: 95.9 %, CIFAR-10 from random weights"]
    assert "3.00x" in by["ResNet-50: 2.06x, ONNX Runtime INT8 over FP32"]
    assert by["XLNet: 1.18x, ONNX Runtime INT8 over FP32"].endswith("not measured here |")
