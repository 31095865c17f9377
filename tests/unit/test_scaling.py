"""The scaling model: the ring's formula, and fits that give back what made the figures."""

import pytest

from hpml.scaling import WAYS, Link, allreduce_s, divided, efficiency, fit_link, fit_step, parity_devices, said, step_s, table, text

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


def test_sending_takes_as_long_as_the_divided_arithmetic_where_the_formula_says():
    n = parity_devices(0.3, 1e8, 1e9)
    assert n == pytest.approx(2.5) and 0.3 / n == pytest.approx(2 * (n - 1) / n * 1e8 / 1e9)


def facts(exposed: float) -> dict:
    off = {size: allreduce_s(size, 2, LINK) for size in (1024, 2**20)}
    return {"tier": "cpu", "data": "CIFAR-10", "n": 12, "knobs": {"ranks": 2, "rounds": 6}, "gradient_bytes": 1e8,
            "compute_s": 0.3, "exposed": exposed,
            "link": {"bytes_s": LINK.bytes_s, "latency_s": LINK.latency_s}, "allreduce": {"1024": off[1024] * 2, str(2**20): off[2**20]},
            "steps": [{"micro_batch": micro} for micro in (8, 4)], "held_back": {"predicted_s": 0.7, "measured_s": 0.8},
            "divided": [{"batch": 128, **{way: {"per_s": 40.0 * ratio, "ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1}
                                          for way, ratio in zip(WAYS, (1.0, 1.5, 1.7), strict=True)}}]}


def test_the_study_in_words_says_what_its_percentages_are():
    told = text(facts(0.5))
    assert "Weak-scaling efficiency (each device keeps 4 samples" in told and "efficiencies are lower bounds" in told
    assert "+0% off at the largest (1 MiB) and at worst -50% (at 1 KiB)" in told and "an error of -12.5%" in told
    assert "300 ms forwards and backwards, and 50 ms more. That is 0.50 times the 100 ms" in told
    assert "Above 1" not in told and "Above 1" in " ".join(said(facts(2.5)))
    assert divided(facts(0.5)) == [{"global batch": 128, WAYS[0]: "40.0 samples/s", WAYS[1]: "1.50x [1.40, 1.60]",
                                    WAYS[2]: "1.70x [1.60, 1.80]"}] and "ratio to one thread, 95 % interval, 6 rounds" in told
    one, two, *_ = table(facts(0.5))
    assert one == {"devices": 1, "loopback there, 1.00 GB/s": "100%", "10 Gbit/s Ethernet (assumed)": "100%"}
    assert two["loopback there, 1.00 GB/s"] == f"{0.3 / (0.3 + 0.5 * allreduce_s(1e8, 2, LINK)):.0%}" and "NVLink" not in told
