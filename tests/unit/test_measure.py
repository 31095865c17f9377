"""What a measured process knows of itself and of its surroundings."""

import subprocess
import sys

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


def test_where_every_call_is_long_one_is_enough_and_a_burst_among_short_ones_ends_nothing():
    """On a clock of the test's own: nothing waits."""
    def taken(seconds, **minima) -> dict:
        now, calls = [0.0], iter(seconds)

        def step(i: int) -> None:
            now[0] += next(calls)

        return measure.steady(step, clock=lambda: now[0], warmup=3, **minima)

    assert taken([12.0] * 3, min_iters=9, min_seconds=60.0) == {"first_call_s": 12.0, "values": [12.0]}
    assert taken([12.0, 0.5, 0.5, 12.0, 0.5, 0.5], min_iters=3, min_seconds=1.0)["values"] == [12.0, 0.5, 0.5]
    assert taken([0.5, 12.0, 0.5, 0.5, 0.5], min_iters=2, min_seconds=1.0)["values"] == [0.5, 0.5], "nor one in the warm-up"


def test_a_helper_that_has_ended_is_our_own():
    """What a subprocess computed stays in the books of the process that waited for it."""
    mark = measure.cpu_mark()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert measure.cpu_mark()["own"] - mark["own"] >= 0.5
