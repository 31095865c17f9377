"""What a measured process knows of itself and of its surroundings."""

import pytest

from hpml import measure


def test_a_window_with_long_bursts_is_disturbed_and_one_long_call_is_not():
    calm = [0.1] * 20
    assert measure.burst_share(calm) == 0
    assert measure.burst_share([*calm, 0.2]) == pytest.approx(0.2 / 2.2)
    mark = measure.cpu_mark()
    assert not measure.disturbance(mark, [*calm, 0.2])["busy"]
    held_up = measure.disturbance(mark, [0.1] * 12 + [0.2] * 5)
    assert held_up["busy"] and held_up["bursts"] == pytest.approx(1.0 / 2.2, abs=1e-3)
