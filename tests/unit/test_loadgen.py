"""MLPerf LoadGen as the client: real LoadGen against small services in this process and over HTTP, and what is read from its logs."""

import dataclasses
import http.server
import math
import queue
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from hpml import loadfacts, loadgen, loadtest, queueing
from hpml.env import HpmlError
from hpml.loadgen import FAILED, OK, REFUSED, Window
from hpml.loadsite import Site
from hpml.loadtargets import InProcess, OverHttp, get

pytest.importorskip("mlperf_loadgen")
SERVICE_S = 0.004


class Busy(Exception):
    retry_after_s = 0.1


@dataclasses.dataclass
class Answer:
    value: dict
    decode_s: float = 0.001
    wait_s: float = 0.0
    model_s: float = SERVICE_S


class Service:
    """One server that takes SERVICE_S a query and refuses what would wait for more than `room` others."""

    def __init__(self, *, room: int = 10**6, classes: int = 4) -> None:
        self.tasks, self.room, self.classes = queue.SimpleQueue(), room, classes
        threading.Thread(target=self.work, daemon=True).start()

    def submit(self, payload: bytes, *, deadline_s: float | None = None) -> Future:
        if self.tasks.qsize() >= self.room:
            raise Busy
        future: Future = Future()
        self.tasks.put((payload, future))
        return future

    def work(self) -> None:
        while task := self.tasks.get():
            time.sleep(SERVICE_S)
            payload, future = task
            if payload == b"broken":
                future.set_exception(ValueError("no image"))
            else:
                future.set_result(Answer({"top": [{"index": payload[0] % self.classes}]}))

    def close(self) -> None:
        self.tasks.put(None)


@pytest.fixture
def service():
    one = Service()
    yield one
    one.close()


def payloads(count: int) -> list[bytes]:
    return [bytes([i]) for i in range(count)]


@pytest.mark.parametrize("scenario", ["singlestream", "offline", "server"])
def test_each_scenario_measures_what_the_service_takes(service, scenario):
    target = InProcess(service, payloads(8), patient=scenario == "offline")
    window = loadgen.drive(target, scenario=scenario, samples=8, seconds=0.4, rate=100, in_flight=4 if scenario == "offline" else None)
    assert set(window.outcomes) == {OK} and len(window.outcomes) > 10
    assert min(window.took_s) >= SERVICE_S
    assert window.per_s <= 1.05 / SERVICE_S
    assert window.due_s[0] == 0 and window.due_s == sorted(window.due_s)
    assert len(target.waits["decode_s"]) == len(window.outcomes) and target.client_s > 0


def test_percentiles_are_those_of_loadgens_own_summary(service):
    window = loadgen.drive(InProcess(service, payloads(8)), scenario="server", samples=8, seconds=0.5, rate=120)
    found = loadfacts.facts(window, limit_s=0.15)
    for name, key in (("p50_s", "50.00"), ("p90_s", "90.00"), ("p99_s", "99.00")):
        assert found[name] == pytest.approx(window.summary[f"{key} percentile latency (ns)"] / 1e9, abs=1e-8)


def test_arrivals_are_random_and_the_same_for_one_seed(service):
    target = InProcess(service, payloads(8))
    first, again, other = (loadgen.drive(target, scenario="server", samples=8, seconds=0.3, rate=100, seed=seed) for seed in (1, 1, 2))
    count = min(len(first.due_s), len(again.due_s))
    assert first.due_s[:count] == pytest.approx(again.due_s[:count], abs=1e-6)
    assert first.due_s[:10] != pytest.approx(other.due_s[:10], abs=1e-6)


def test_a_query_that_waits_for_the_client_counts_from_when_it_was_due():
    class Blocking:
        def send(self, index, done):
            time.sleep(0.02)  # a client that sends one after the other
            done(OK, None)

    window = loadgen.drive(Blocking(), scenario="server", samples=4, seconds=0.3, rate=100)
    assert max(window.took_s) > 0.06  # the wait is there, though each answer came at once


def test_a_refused_query_is_told_apart_and_is_a_miss():
    one = Service(room=1)
    window = loadgen.drive(InProcess(one, payloads(4)), scenario="server", samples=4, seconds=0.4, rate=2 / SERVICE_S)
    one.close()
    refused, answered = window.of(REFUSED), window.of(OK)
    assert len(refused) > 20 and len(answered) > 20 and not window.outcomes.count(FAILED)
    assert min(answered) >= SERVICE_S > loadfacts.quantile(refused, 0.5)  # each latency belongs to its own outcome
    assert not window.within(0.15) and len(window.missed(0.15)) == len(refused)
    found = loadfacts.facts(window, limit_s=0.15)
    assert found["p99_s"] is None and found["p50_s"] is None or found["p50_s"] > 0
    assert found["goodput_per_s"] == pytest.approx(len(answered) / window.seconds)


def test_a_patient_client_sends_again_until_it_is_answered():
    one = Service(room=1)
    window = loadgen.drive(InProcess(one, payloads(4), patient=True), scenario="offline", samples=4, seconds=0.2, rate=100, in_flight=8)
    one.close()
    assert set(window.outcomes) == {OK}


def test_a_query_that_fails_is_a_failure_and_only_failures_an_error(service):
    window = loadgen.drive(InProcess(service, [b"a", b"broken"]), scenario="singlestream", samples=2, seconds=0.2)
    assert {OK, FAILED} == set(window.outcomes)
    with pytest.raises(HpmlError, match="every one of"):
        loadgen.drive(InProcess(service, [b"broken"]), scenario="singlestream", samples=1, seconds=0.1)


def test_an_accuracy_run_sends_every_sample_once(service):
    window = loadgen.drive(InProcess(service, payloads(10)), scenario="offline", samples=10, seconds=0.1, rate=100, accuracy=True)
    assert sorted(window.answers) == list(range(10))
    assert [window.answers[i][0]["top"][0]["index"] for i in range(10)] == [i % 4 for i in range(10)]


def window(took: list[float], outcomes: list[str] | None = None, spacing: float = 0.1) -> Window:
    return Window("server", 10.0, [spacing * i for i in range(len(took))], took, outcomes or [OK] * len(took))


def test_the_margin_of_a_percentile():
    values = [i / 1000 for i in range(1, 1001)]
    low, high = loadfacts.margin(values, 0.99)
    assert low < loadfacts.quantile(values, 0.99) < high and 0.98 < low < 0.99 < high < 1.0
    random = __import__("random").Random(0)
    covered = 0
    for _ in range(300):
        drawn = [random.random() for _ in range(1000)]
        low, high = loadfacts.margin(drawn, 0.99)
        covered += low <= 0.99 <= (high or math.inf)
    assert covered >= 0.92 * 300
    assert loadfacts.margin(values[:50], 0.99)[1] is None  # fifty values say nothing about the upper end


def test_facts_of_a_window():
    found = loadfacts.facts(window([0.1] * 98 + [0.2, 0.1], [OK] * 99 + [REFUSED]), limit_s=0.15)
    assert (found["n"], found["answered"], found["refused"], found["missed"], found["within"]) == (100, 99, 1, 2, False)
    assert found["p90_s"] == 0.1 and found["p99_s"] is None and found["refusal_p99_s"] == 0.1
    assert loadfacts.facts(window([0.1] * 99 + [0.2]), limit_s=0.15)["within"] is True


def test_recovery_is_the_backlog_and_the_last_miss_after_it():
    over, calm = window([0.1] * 9 + [0.5]), window([0.2, 0.2, 0.1, 0.1])
    assert loadfacts.recovery(over, calm, limit_s=0.15) == pytest.approx(0.5 + 0.1)
    assert loadfacts.recovery(over, window([0.1] * 3), limit_s=0.15) == pytest.approx(0.5)


def test_latencies_are_thinned_over_all_of_the_time():
    kept = loadfacts.thinned(list(range(12_000)))
    assert len(kept) == 4_000 and kept[0] == 0 and kept[-1] > 11_990
    assert loadfacts.thinned([1.0, 2.0]) == [1.0, 2.0]


def test_a_summary_is_read_by_name():
    found = loadgen.summary("Scenario : Server\nCompleted samples per second    : 89.81\n  Min queries satisfied : Yes\n======\n"
                            "99.00 percentile latency (ns)   : 6378160\n")
    assert found == {"Scenario": "Server", "Completed samples per second": 89.81, "Min queries satisfied": "Yes",
                     "99.00 percentile latency (ns)": 6378160.0}


PLAN = loadtest.Plan(steady_s=0.3, probe_s=0.3, probes=2, confirm_s=0.5, overload_s=0.4, after_s=0.3, warm=4)


def test_the_search_ends_with_a_confirmed_rate_and_twice_of_it(service):
    service.room = 12
    site = Site(payloads(8), limit_s=0.05, service=service)
    warm = site.window("singlestream", 0.05)
    found = loadtest.server(site, PLAN, warm)
    serving, last = found["serving"], found["serving"]["windows"][-1]
    assert last["confirmation"] and last["within"] and last["p99_s"] <= 0.05
    assert 0.2 / SERVICE_S < serving["offered_per_s"] <= 1 / SERVICE_S
    assert len(found["latencies"]) == last["answered"]
    overload = serving["overload"]
    assert overload["asked_per_s"] == pytest.approx(2 * serving["offered_per_s"])
    assert overload["rss_after_mib"] and overload["recovery_s"] < 1


class Simulated:
    """A site of two servers that each take `service_s` and answer in order; its arrivals are Poisson's."""

    limit_s = 0.15

    def __init__(self, service_s: float, bursts: float = 1.0) -> None:
        self.service_s, self.bursts = service_s, bursts

    def window(self, scenario, seconds, *, rate=None, seed=0):
        rng, busy, due, took = np.random.default_rng(seed), [0.0, 0.0], [], []
        if scenario == "offline":
            count = int(2 / self.service_s * seconds)
            return loadgen.Window(scenario, None, [0.0] * count, [self.service_s * (i // 2 + 1) for i in range(count)], [OK] * count)
        at = rng.exponential(1 / rate)
        while at < seconds:
            server = busy.index(min(busy))
            busy[server] = max(busy[server], at) + self.service_s * self.bursts
            due.append(at)
            took.append(busy[server] - at)
            at += rng.exponential(1 / rate)
        return loadgen.Window(scenario, rate, due, took, [OK] * len(due))

    def rss_mib(self, peak=False):
        return 1.0


@pytest.mark.parametrize("bursts", [0.7, 1.0, 1.15, 1.3, 2.0])
def test_the_search_comes_near_what_is_stood(bursts):
    """A service that is slower under load than all at once, or faster: the first guess is too high or too low, by little or by much."""
    site, plan = Simulated(0.03, bursts), dataclasses.replace(loadtest.PLANS["cpu"], probes=2, confirm_s=100)
    found = loadtest.server(site, plan, site.window("offline", 1))["serving"]
    best = queueing.highest_rate(queueing.Server(2, 2, 0.03 * bursts), limit_s=site.limit_s)
    assert 0.84 * best < found["offered_per_s"] <= 1.05 * best
    probes = [window for window in found["windows"] if not window.get("confirmation")]
    assert 2 <= len(probes) <= 6
    assert min(w["asked_per_s"] for w in probes if not w["within"]) <= 1.16 * max(w["asked_per_s"] for w in probes if w["within"])


def test_the_confirmation_begins_where_one_in_a_hundred_would_miss():
    def probe(rate, missed, n=1000):
        return {"asked_per_s": rate, "missed": missed, "n": n}

    assert 54 < loadtest._edge([probe(50, 2), probe(60, 40)], 50, 60) < 56, "0.2 % and 4 % miss: 1 % lies a little beyond the middle"
    assert 59 < loadtest._edge([probe(50, 2), probe(60, 11)], 50, 60) < 60
    assert loadtest._edge([probe(50, 2)], 50, math.inf) == 50, "no rate has missed"
    assert loadtest._edge([probe(50, 2), probe(45, 40)], 50, 45) == 50, "a disturbed window below a rate that was stood"


def test_a_window_in_which_the_machine_stood_still_is_measured_once_more():
    class Still(Simulated):
        asked = 0

        def window(self, scenario, seconds, *, rate=None, seed=0):
            window = super().window(scenario, seconds, rate=rate, seed=seed)
            self.asked += scenario == "server"
            if scenario == "server" and self.asked == 2:  # the second probe, in its first try
                window.took_s = [took + 14 for took in window.took_s]
            return window

    plan = dataclasses.replace(loadtest.PLANS["cpu"], probes=2, confirm_s=100)
    plain, still = [loadtest.server(site, plan, site.window("offline", 1))["serving"] for site in (Simulated(0.03), Still(0.03))]
    assert still["offered_per_s"] == plain["offered_per_s"]
    assert [window["again"] for window in still["windows"]][:3] == [False, True, False]


@pytest.fixture
def server(service):
    """The same service over HTTP, with connections that are kept open."""
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(200, b'{"status": "ok"}')

        def do_POST(self):
            payload = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                value = service.submit(payload).result().value
                self.answer(200, str(value).replace("'", '"').encode())
            except Busy:
                self.answer(503, b"busy")
            except ValueError:
                self.answer(415, b"no image")

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http_server.server_port}"
    http_server.shutdown()
    http_server.server_close()
    thread.join()


def test_queries_over_http(server, service):
    target = OverHttp(server, [*payloads(4), b"broken"], connections=6)
    try:
        window = loadgen.drive(target, scenario="server", samples=5, seconds=0.5, rate=100)
        assert {OK, FAILED} == set(window.outcomes) and min(window.of(OK)) >= SERVICE_S
        service.room = 0
        window = loadgen.drive(OverHttp(server, payloads(4), connections=4), scenario="server", samples=4, seconds=0.2, rate=50)
        assert set(window.outcomes) == {REFUSED}
    finally:
        target.close()
    assert get(server, "/healthz") == (200, {"status": "ok"})


def test_a_server_that_is_not_there_fails_every_query():
    target = OverHttp("http://127.0.0.1:9", payloads(2), connections=2)
    with pytest.raises(HpmlError, match="every one of"):
        loadgen.drive(target, scenario="server", samples=2, seconds=0.1, rate=50)
    target.close()
    for nonsense in ("localhost:80", "nonsense", "http://127.0.0.1:port", "https://127.0.0.1"):
        with pytest.raises(HpmlError, match="give an address"):
            OverHttp(nonsense, [])
        with pytest.raises(HpmlError, match="give an address"):
            get(nonsense, "/readyz")
