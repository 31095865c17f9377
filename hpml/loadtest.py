"""Phase serve: a load test as a measured case. A service is started, driven by MLPerf LoadGen, and what it stood becomes the record."""

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass
from types import ModuleType

from hpml import env, loadfacts, loadgen, queueing, streams
from hpml import measure as m
from hpml.env import HpmlError, Unavailable
from hpml.loadgen import Window
from hpml.loadsite import Site, opened, pictures
from hpml.loadtargets import get

STEP = 1.15  # up from a rate that was stood, while none is known that was not
CLOSE = 1.15  # between a rate that was stood and one that was not: a probe of some seconds cannot tell nearer ones apart
DOWN = ((0.02, 1.08), (0.1, 1.2), (1.0, 1.5))  # (share of queries that missed the limit, at most; step down from that rate)
CONFIRM_AT = (1.0, 0.96, 0.9, 0.8, 0.6, 0.4)  # of the rate that the probes point to: a longer window finds what they are too short for
OVERLOAD = 2.0  # times the sustainable rate
STILL = 10.0  # times the limit: who refuses what cannot be in time answers nobody so late, so the machine itself stood still


@dataclass(frozen=True)
class Plan:
    """Seconds of each window, and how many probes the search has."""

    steady_s: float
    probe_s: float
    probes: int
    confirm_s: float
    overload_s: float
    after_s: float
    warm: int


PLANS = {"smoke": Plan(0.4, 0.4, 2, 1.0, 0.6, 0.4, 4), "cpu": Plan(8, 20, 4, 200, 10, 5, 20),
         "gpu": Plan(8, 20, 4, 200, 10, 5, 50), "full": Plan(20, 20, 8, 600, 20, 10, 100)}


def measure(job: dict, workload: ModuleType) -> dict:
    """A serve case in a fresh process. per_s of its figures is what the scenario asks for: answers a second (singlestream, offline), or the
    highest offered rate at which 99 of 100 queries were answered within the limit (server). Returns the record's fields."""
    from hpml.data import summary

    knobs = job["knobs"]
    if reason := loadgen.unavailable():
        raise Unavailable(reason)
    scenario = knobs["scenario"]
    plan = plan_of(knobs, job["case"]["tier"])
    image_set, payloads = pictures(workload, knobs, most=1_000_000 if scenario == "accuracy" else 256)
    if scenario == "bound":
        mark = m.cpu_mark()
        return {**streams.measure(job, workload, image_set, payloads, seconds=plan.steady_s / 4), "disturbance": m.disturbance(mark)}
    with opened(job, payloads) as site:
        for _ in range(2):
            warm = site.window("singlestream", plan.warm * 1e-3)
        mark = m.cpu_mark()
        if scenario == "server":
            found = server(site, plan, warm)
        elif scenario == "accuracy":
            found = accuracy(site, workload, image_set)
        else:
            found = steady(site, plan, warm, scenario)
        serving = found["serving"]
        serving |= {"scenario": scenario, "transport": knobs["transport"], "limit_s": site.limit_s, "cores": env.cores(),
                    "streams": site.streams, "split": _split(site)}
        taken = found.pop("latencies", None)
        return {
            "samples": taken and {"unit": "s", "items": 1, "values": [1 / serving["per_s"]], "latencies": loadfacts.thinned(taken)},
            "center": "mean", "cold": {"ready_s": site.ready_s}, "quality": found.get("quality") if knobs["weights"] != "random" else None,
            "memory": {"peak_rss_mib": site.rss_mib(peak=True)},
            "actual": {"provider": knobs["engine"], "device": "cpu", "data": summary(image_set), "serving": serving,
                       "settings": getattr(site.service, "facts", {}).get("settings")},
            "disturbance": m.disturbance(mark),
        }


def _split(site: Site) -> dict | None:
    """Median seconds of decoding, waiting and the model, as the service tells them with each answer."""
    waits = [client.waits for client in site.clients]
    values = {name: [value for wait in waits for value in wait[name] if value is not None] for name in (waits[0] if waits else ())}
    return {name: statistics.median(own) for name, own in values.items() if own} or None


def steady(site: Site, plan: Plan, warm: Window, scenario: str) -> dict:
    """One window of queries one after the other, or of all at once."""
    rate = _offline_rate(site, plan, warm) if scenario == "offline" else None
    window = site.window(scenario, plan.steady_s, rate=rate)
    shown = loadfacts.facts(window, limit_s=site.limit_s)
    if not shown["answered"]:
        raise HpmlError("the service answered no query")
    return {"serving": {"per_s": window.per_s, "windows": [shown]}, "latencies": window.of(loadgen.OK)}


def _offline_rate(site: Site, plan: Plan, warm: Window) -> float:
    """Queries per second with work for all streams, from a short window: LoadGen asks beforehand how many it should send."""
    alone = max(warm.per_s, 1e-3)
    return site.window("offline", max(0.25, plan.steady_s / 5), rate=alone).per_s


def server(site: Site, plan: Plan, warm: Window) -> dict:
    """The search for the highest rate within the limit, its confirmation, and twice that rate."""
    limit_s, whole = site.limit_s, _offline_rate(site, plan, warm)
    least = 3 / plan.probe_s  # fewer queries in a window would say nothing, and LoadGen would wait for the first one
    guess = max(queueing.highest_rate(queueing.Server(1, env.cores(), 1 / whole), limit_s=limit_s), whole / 4, least)
    windows, low, high = [], 0.0, math.inf
    rate = guess
    for number in range(plan.probes + 4):  # more than planned only while an end is missing, or the two lie far apart
        if (number >= plan.probes and low and high / low <= 1.0001 * CLOSE) or rate < least:
            break
        window = _arrivals(site, plan.probe_s, rate=rate, seed=number)
        windows.append(loadfacts.facts(window, limit_s=limit_s))
        if window.within(limit_s):
            low = max(low, rate)
        else:
            high = min(high, rate)
        rate = math.sqrt(low * high) if low and high < math.inf else low * STEP if low else high / _down(windows)
        if low and high / low < 1.03:
            break
    if not low:
        raise HpmlError(f"no rate down to {rate:.3g} queries/s was answered within {1e3 * limit_s:.0f} ms at P99")
    confirmed, window, edge = None, None, _edge(windows, low, high)
    for number, share in enumerate(CONFIRM_AT):
        seconds = max(plan.confirm_s / (1 + number), min(plan.confirm_s, plan.probe_s))
        window = _arrivals(site, seconds, rate=edge * share, seed=100 + number)
        windows.append({**loadfacts.facts(window, limit_s=limit_s), "confirmation": True})
        if window.within(limit_s):
            confirmed = edge * share
            break
    if confirmed is None:
        raise HpmlError(f"{low:.3g} queries/s were within {1e3 * limit_s:.0f} ms at P99 in a probe of {plan.probe_s:g} s, and not even "
                        f"{edge * CONFIRM_AT[-1]:.3g} in a longer window")
    per_s = (len(window.outcomes) - len(window.missed(limit_s))) / window.seconds
    serving = {"per_s": per_s, "offered_per_s": confirmed, "windows": windows, "overload": _overload(site, plan, confirmed)}
    return {"serving": serving, "latencies": window.of(loadgen.OK)}


def _arrivals(site: Site, seconds: float, *, rate: float, seed: int) -> Window:
    """A window of the Server scenario; measured once more where the machine stood still meanwhile."""
    window = site.window("server", seconds, rate=rate, seed=seed)
    if max(window.took_s) > STILL * site.limit_s:
        window = site.window("server", seconds, rate=rate, seed=seed)
        window.again = True
    return window


def _edge(windows: list[dict], low: float, high: float) -> float:
    """The rate at which one query in a hundred would miss the limit: between the highest rate that was stood and the lowest above it that
    was not, with the logarithm of the share that missed in proportion to the rate."""
    missed = {found["asked_per_s"]: (found["missed"] + 0.5) / (found["n"] + 1) for found in windows}
    if not low < high < math.inf or not missed[low] < 0.01 < missed[high]:
        return low
    return low + (high - low) * math.log(0.01 / missed[low]) / math.log(missed[high] / missed[low])


def _down(windows: list[dict]) -> float:
    """The step down after probes of which none was within the limit: small where the last one nearly was, longer with each of them."""
    missed = windows[-1]["missed"] / max(windows[-1]["n"], 1)
    return next(step for most, step in DOWN if missed <= most) ** ((1 + len(windows)) / 2)


def _overload(site: Site, plan: Plan, sustained: float) -> dict:
    """At twice the sustainable rate: what is still answered in time, how fast the rest is refused, memory, and the time to recover."""
    before = site.rss_mib()
    overload = _arrivals(site, plan.overload_s, rate=OVERLOAD * sustained, seed=200)
    after_mib = site.rss_mib()
    after = site.window("server", plan.after_s, rate=sustained / 2, seed=201)
    return {**loadfacts.facts(overload, limit_s=site.limit_s), "rss_before_mib": before, "rss_after_mib": after_mib,
            "recovery_s": loadfacts.recovery(overload, after, limit_s=site.limit_s)}


def against(url: str, workload: ModuleType, knobs: dict, tier: str) -> str:
    """Test a server that runs already; one line of JSON. Raises HpmlError where none answers, or where its address is not enough."""
    if reason := loadgen.unavailable():
        raise HpmlError(reason)
    if knobs["scenario"] in ("bound", "accuracy"):
        raise HpmlError(f"scenario {knobs['scenario']} needs the model itself, not the address of a server: leave out --url")
    try:
        get(url, "/readyz")
    except OSError as error:
        raise HpmlError(f"{url}: no server answers ({error})") from None
    _, payloads = pictures(workload, knobs, most=256)
    site = Site(payloads, knobs["limit_ms"] / 1e3, url=url)
    plan = plan_of(knobs, tier)
    warm = site.window("singlestream", plan.warm * 1e-3)
    found = server(site, plan, warm) if knobs["scenario"] == "server" else steady(site, plan, warm, knobs["scenario"])
    return json.dumps({"scenario": knobs["scenario"], **found["serving"]})


def plan_of(knobs: dict, tier: str) -> Plan:
    """The tier's plan with what the knobs set otherwise."""
    plan, seconds = PLANS[tier], knobs["seconds"]
    asked = {**({"steady_s": seconds, "confirm_s": seconds} if seconds else {}), **({"probes": knobs["probes"]} if knobs["probes"] else {})}
    return dataclasses.replace(plan, **asked)


def accuracy(site: Site, workload: ModuleType, image_set) -> dict:
    """LoadGen's accuracy run: every test image once through the service, as the file that a client would send. Raises Unavailable where
    the answers are not classes."""
    from hpml.fit import quality

    window = site.window("offline", 0.1, rate=1.0, accuracy=True)
    answer = next(iter(window.answers.values()))[0]
    if "top" not in (json.loads(answer) if isinstance(answer, bytes) else answer or {"top": None}):
        raise Unavailable(f"{workload.NAME}: the accuracy run is for classes; phase infer with measure=quality judges this workload")
    labels = [int(label) for label in image_set.test_labels]
    right = [bool(_best(window.answers[index][0]) == labels[index]) for index in sorted(window.answers)]
    chance = max(labels.count(label) for label in set(labels)) / len(labels)
    scores = {"metric": workload.METRIC, "value": sum(right) / len(right), "n": len(right), "chance": chance,
              "informative": bool(getattr(image_set, "informative", True))}
    return {"serving": {"per_s": window.per_s, "windows": [loadfacts.facts(window, limit_s=site.limit_s)]},
            "quality": quality(scores, workload)}


def _best(answer: dict | bytes | None) -> int | None:
    """The class that an answer, or its JSON, puts first; None where there is no answer."""
    if isinstance(answer, bytes):
        answer = json.loads(answer)
    return answer["top"][0]["index"] if answer else None
