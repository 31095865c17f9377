"""Knobs: one table, checked before anything runs."""

import pytest

from hpml import knobs
from hpml.env import HpmlError


def test_defaults_are_complete_and_valid():
    for phase in knobs.PHASES:
        assert knobs.validate(phase, {}) == knobs.defaults(phase)


@pytest.mark.parametrize(("settings", "said"), [
    ({"wrokers": 2}, "unknown knob 'wrokers'"), ({"precision": "fp8"}, "choose from fp32"), ({"batch": 0}, "at least 1"),
    ({"precision": "int8"}, "choose from fp32, bf16, fp16$"), ({"lr": float("nan")}, "finite"),
    ({"batch": "8"}, "expected int"), ({"workers": -1}, "at least 0"), ({"pin_memory": 1}, "expected bool"), ({"hint": "latency"}, "phase"),
])
def test_a_wrong_setting_is_named(settings, said):
    with pytest.raises(HpmlError, match=said):
        knobs.validate("train", settings)


def test_whole_numbers_are_fine_for_rates():
    assert knobs.validate("train", {"lr": 1})["lr"] == 1.0
