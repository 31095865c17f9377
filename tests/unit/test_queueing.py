"""The queueing bound: known values of M/D/1, limits of M/D/c, a simulation, and what cores a rate needs."""

import math

import numpy as np
import pytest

from hpml import queueing
from hpml.queueing import Server


def erlang(x: float, load: float) -> float:
    """M/D/1, service time 1 (Erlang, 1909): P(wait <= x)."""
    terms = [(load * (i - x)) ** i / math.factorial(i) * math.exp(-load * (i - x)) for i in range(math.floor(x) + 1)]
    return (1 - load) * math.fsum(terms)


def simulated(load: float, c: int, n: int = 400_000) -> np.ndarray:
    """Waiting times of M/D/c, service time 1. With equal service times the servers take turns, so each is a queue of its own (Lindley)."""
    arrivals = np.cumsum(np.random.default_rng(7).exponential(1 / (load * c), n))
    waits = np.empty(n)
    for s in range(c):
        own = arrivals[s::c]
        steps = np.arange(len(own))
        waits[s::c] = np.maximum.accumulate(own - steps) + steps - own
    return waits


def late(rate: float, server: Server, *, limit_s: float, refuse: bool, n: int = 60_000) -> float:
    """The share of queries that are not answered within the limit, first come first served; `refuse`: those are not served at all."""
    free, missed = [0.0] * server.c, 0
    for arrival in np.cumsum(np.random.default_rng(7).exponential(1 / rate, n)):
        start = max(arrival, free[0])
        if start + server.service_s - arrival > limit_s:
            missed += 1
            if refuse:
                continue
        free[0] = start + server.service_s
        free.sort()
    return missed / n


def test_the_bound_is_of_servers_that_refuse_nobody():
    server = Server(c=2, cores=2, stream_s=0.0243)
    rate = queueing.highest_rate(server)
    assert late(rate, server, limit_s=0.150, refuse=False) == pytest.approx(0.01, abs=0.004)
    assert late(1.06 * rate, server, limit_s=0.150, refuse=False) > 0.02
    assert late(1.06 * rate, server, limit_s=0.150, refuse=True) < 0.01  # who refuses the late ones passes it


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("x", [0.0, 0.4, 1.0, 3.7, 8.0])
def test_one_server_is_erlangs_formula(load, x):
    assert queueing.waits_at_most(0.02 * x, rate=load / 0.02, service_s=0.02, c=1) == pytest.approx(erlang(x, load), abs=1e-9)


@pytest.mark.parametrize(("c", "load"), [(2, 0.5), (2, 0.8), (4, 0.7), (16, 0.9)])
def test_several_servers_are_what_a_simulation_shows(c, load):
    waits = simulated(load, c)
    for x in (0.0, 0.3, 1.0, 2.5):
        found = queueing.waits_at_most(x, rate=load * c, service_s=1.0, c=c)
        assert found == pytest.approx(float((waits <= x + 1e-9).mean()), abs=0.006)


def test_mean_wait_of_one_server_is_pollaczek_and_khinchine():
    load, step = 0.7, 0.01
    above = [1 - queueing.waits_at_most(step * (i + 0.5), rate=load, service_s=1.0, c=1) for i in range(4000)]
    assert step * sum(above) == pytest.approx(load / (2 * (1 - load)), rel=1e-3)


def test_limits():
    assert queueing.wait_quantile(rate=0.001, service_s=1.0, c=1) == 0.0  # an empty system lets nobody wait
    assert queueing.wait_quantile(rate=1.0, service_s=1.0, c=1) == math.inf  # a full one lets the queue grow without end
    assert queueing.waits_at_most(5.0, rate=2.0, service_s=1.0, c=2) == 0.0
    assert queueing.wait_quantile(rate=0.5 * 200, service_s=1.0, c=200) == 0.0  # many servers: hardly anybody waits
    waits = [queueing.wait_quantile(rate=0.9 * c, service_s=1.0, c=c) for c in (1, 2, 4, 8, 16)]
    assert waits == sorted(waits, reverse=True)  # one queue for more servers is shorter at equal load
    assert queueing.waits_at_most(queueing.wait_quantile(rate=1.8, service_s=1.0, c=2), rate=1.8, service_s=1.0, c=2) == pytest.approx(0.99,
                                                                                                                                  abs=1e-4)


def test_what_a_request_costs_beside_the_model_comes_out_of_the_same_cores():
    server = Server(c=2, cores=2, stream_s=0.050, other_s=0.010)
    assert server.service_s == pytest.approx(0.060) and server.most_per_s == pytest.approx(2 / 0.060)
    one = Server(c=1, cores=2, stream_s=0.025, other_s=0.010)  # both cores on one request: decoding takes half of them
    assert one.service_s == pytest.approx(0.030) and one.most_per_s == pytest.approx(2 / 0.060)
    assert one.latency(1e-6) == pytest.approx(0.035)  # but one core does it


def test_the_highest_rate_is_the_last_within_the_limit():
    server = Server(c=1, cores=2, stream_s=0.030, other_s=0.005)
    rate = queueing.highest_rate(server)
    assert server.latency(rate) <= 0.150 < server.latency(1.01 * rate)
    assert queueing.highest_rate(Server(c=1, cores=2, stream_s=0.2)) == 0.0  # one request alone takes longer


def test_the_best_number_of_streams_is_chosen():
    short, long = {1: 0.010, 2: 0.018}, {1: 0.060, 2: 0.118}
    assert queueing.bound(short, cores=2)[0].c == 2  # two streams do more, and the limit leaves room to wait
    assert queueing.bound(long, cores=2)[0].c == 1  # two streams do a little more, but one of them alone takes 118 of 150 ms
    assert queueing.bound(short, cores=2, other_s=0.004)[1] < queueing.bound(short, cores=2)[1]


def test_cores_for_a_rate_within_the_limit_are_more_than_without():
    server = Server(c=1, cores=2, stream_s=0.030, other_s=0.005)
    within, offline = queueing.cores_needed(100, server), math.ceil(100 * server.service_s * 2)
    assert within > offline
    assert server.on(within).latency(100) <= 0.150 < server.on(within - 1).latency(100)
    assert queueing.cores_needed(100, Server(c=1, cores=2, stream_s=0.2)) is None


def test_a_server_that_grows_keeps_its_streams_as_long():
    grown = Server(c=2, cores=2, stream_s=0.05).on(8)
    assert (grown.c, grown.cores, grown.stream_s) == (8, 8, 0.05)
