"""The scaling model: the ring's formula, and fits that give back what made the figures."""

import pytest

from hpml.scaling import Link, allreduce_s, efficiency, fit_link, fit_step, step_s

LINK = Link(bytes_s=1e9, latency_s=50e-6)


def test_a_ring_sends_twice_the_bytes_at_most():
    assert allreduce_s(1e9, 1, LINK) == 0
    assert allreduce_s(1e9, 2, LINK) == pytest.approx(1 + 100e-6)
    assert allreduce_s(1e9, 8, LINK) == pytest.approx(1.75 + 700e-6)


def test_a_link_is_found_again_from_its_all_reduces():
    sizes = [1e3, 1e5, 1e7, 1e8]
    found = fit_link(sizes, [allreduce_s(size, 4, LINK) for size in sizes], 4)
    assert (found.bytes_s, found.latency_s) == pytest.approx((LINK.bytes_s, LINK.latency_s))
    assert fit_link([1e6, 1e7], [2e-3, 2e-2], 2).latency_s == pytest.approx(0, abs=1e-9), "no time a message"
    with pytest.raises(ValueError, match="two sizes"):
        fit_link([1e6, 1e6], [1, 2], 2)


def test_a_step_is_found_again_from_short_and_long_accumulation():
    sent = allreduce_s(1e8, 2, LINK)
    steps = {count: step_s(0.3, 0.4, 1e8, 2, LINK, micro_batches=count) for count in (1, 4)}
    assert fit_step(steps[1], steps[4], 4, sent) == pytest.approx((0.3, 0.4))


def test_efficiency_falls_with_what_is_exposed():
    assert efficiency(0.3, 0.0, 1e8, 64, LINK) == 1
    assert efficiency(0.3, 1.0, 1e8, 8, LINK) == pytest.approx(0.3 / (0.3 + allreduce_s(1e8, 8, LINK)))
    assert efficiency(0.3, 1.0, 1e8, 64, LINK, of=8) > efficiency(0.3, 1.0, 1e8, 64, LINK)
