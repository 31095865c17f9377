"""Load tests as tables and sentences: what a service stood, in how much memory, beside the queueing bound; the cores that a rate needs."""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpml import queueing
from hpml.compare import percent
from hpml.records import Record
from hpml.tables import SMOKE, figure, title
from hpml.wording import words

GOAL_PER_S = 100.0
TRANSPORTS = {"inprocess": "in process", "http": "over HTTP"}
CLOSE = 1.15  # missed over stood: a search whose ends lie further apart has found a range, and no rate
AT_ONCE_S = 0.05  # a refusal that takes longer was not at once
SIDE = ("engine", "precision", "image", "transport")


@dataclass(frozen=True)
class Load:
    """The load tests of one service: its latest record of each scenario."""

    machine: str
    workload: str
    knobs: dict
    by_scenario: dict[str, Record]

    @property
    def name(self) -> str:
        """Workload, precision, engine, input and transport in words."""
        return f"{title(self.workload)} {words(self.knobs, ('precision', 'engine'))}, {self.knobs['image']} px, " \
               f"{TRANSPORTS[self.knobs['transport']]}"

    @property
    def tier(self) -> str:
        """The tier that all scenarios were measured at."""
        return next(iter(self.by_scenario.values())).case["tier"]

    def serving(self, scenario: str) -> dict | None:
        """What the record of a scenario says of its windows; None where it was not measured."""
        record = self.by_scenario.get(scenario)
        return record and record.actual.get("serving")

    def confirmed(self) -> dict | None:
        """The window that confirms the sustainable rate."""
        serving = self.serving("server")
        return serving and serving["windows"][-1]

    def missed(self) -> dict | None:
        """The window of the lowest rate above the confirmed one that was not within the limit; None: the search met none."""
        above = [w for w in windows(self) if not w["within"] and w["asked_per_s"] > 1.0001 * self.confirmed()["asked_per_s"]]
        return min(above, key=lambda w: w["asked_per_s"], default=None)

    @property
    def settled(self) -> bool:
        """Whether the search's ends lie so near to each other that its rate is the highest one, and not only one that was stood."""
        missed = self.missed()
        return bool(missed) and missed["asked_per_s"] <= 1.0001 * CLOSE * self.confirmed()["asked_per_s"]

    def stood(self) -> str:
        """The rate within the limit: "43.0", or, where the search ended early, "at least 29.4 (48.8 missed)"."""
        rate, missed = figure(self.serving("server")["per_s"]), self.missed()
        beyond = f"{figure(sent(missed))} missed" if missed else "no rate missed"
        return rate if self.settled else f"at least {rate} ({beyond})"

    @functools.cached_property
    def bound(self) -> tuple[queueing.Server, float] | None:
        """What the best first-come-first-served server that refuses nobody could do with this service's times, and its highest rate; None
        where its parts were not measured."""
        record = self.by_scenario.get("bound")
        if not record:
            return None
        found = record.actual["bound"]
        parts = [found["decode_s"], found["client_s"], *([found["http_s"]] if self.knobs["transport"] == "http" else [])]
        if None in parts:
            return None
        stream_s = {int(c): seconds for c, seconds in found["stream_s"].items()}
        return queueing.bound(stream_s, cores=found["cores"], other_s=sum(parts), limit_s=found["limit_s"])

    def share(self) -> float | None:
        """The sustained rate as a share of the bound; of a search that is not `settled` it says too little."""
        serving = self.serving("server")
        return serving["per_s"] / self.bound[1] if serving and self.bound and self.bound[1] else None

    def per_core(self, scenario: str) -> float | None:
        """Queries/s of a scenario by core; None where it was not measured."""
        serving = self.serving(scenario)
        return serving and serving["per_s"] / serving["cores"]

    def cores_offline(self, rate: float) -> int | None:
        """Cores for `rate` queries per second without a deadline."""
        own = self.per_core("offline")
        return own and math.ceil(rate / own)

    def cores_within(self, rate: float) -> int | None:
        """The fewest cores for `rate` queries per second within the limit at P99, by the bound, but never fewer than Offline was measured
        to need; None also where no number is enough."""
        limit_s = self.bound and self.by_scenario["bound"].actual["bound"]["limit_s"]
        found = self.bound and queueing.cores_needed(rate, self.bound[0], limit_s=limit_s)
        return found and max(found, self.cores_offline(rate) or 0)


def loads(records: Iterable[Record]) -> list[Load]:
    """The services that `records` hold load tests of, in the order of measuring; of a scenario its last record counts."""
    found: dict[tuple, dict[str, Record]] = {}
    bounds: dict[tuple, Record] = {}
    for r in records:
        if r.case["phase"] == "serve" and r.status == "ok":
            key = (r.machine.get("id", "unknown"), r.case["workload"], *(r.knobs[name] for name in SIDE))
            if r.knobs["scenario"] != "bound":
                found.setdefault(key, {})[r.knobs["scenario"]] = r
            elif r.actual["bound"]["http_s"] is not None or key[:-1] not in bounds:  # one of them serves both transports
                bounds[key[:-1]] = r
    return [Load(machine, workload, dict(zip(SIDE, side, strict=True)),
                 {**own, **({"bound": bounds[machine, workload, *side[:-1]]} if (machine, workload, *side[:-1]) in bounds else {})})
            for (machine, workload, *side), own in found.items()]


def windows(load: Load) -> list[dict]:
    """Windows of the Server scenario by the rate that came, with the overload; of a rate that was asked for twice the longest."""
    serving = load.serving("server") or {"windows": []}
    every = [*serving["windows"], *([serving["overload"]] if serving.get("overload") else [])]
    longest = {round(window["asked_per_s"], 6): window for window in sorted(every, key=lambda w: w["seconds"])}
    return sorted(longest.values(), key=sent)


def sent(window: dict) -> float:
    """Queries/s that really came: arrivals are random, so a window has a few more or fewer than it asked for."""
    return window["n"] / window["seconds"]


def ms(seconds: float | None) -> str:
    """Seconds as milliseconds, three digits."""
    return figure(seconds and 1e3 * seconds, "ms")


def p99(window: dict | None) -> str:
    """"123 ms [118, 131], n=4,000": with its 95 % interval; an end that so few queries do not give stays open."""
    if not window:
        return ""
    if window["p99_s"] is None:
        return f"more than 1 % refused, n={window['n']:,}"
    low, high = (figure(end and 1e3 * end) or "?" for end in (window["p99_low_s"], window["p99_high_s"]))
    return f"{ms(window['p99_s'])} [{low}, {high}], n={window['n']:,}"


def _memory(load: Load) -> float | None:
    return max((r.memory.get("peak_rss_mib") or 0 for name, r in load.by_scenario.items() if name != "bound"), default=0) or None


def columns(load: Load) -> dict[str, str]:
    """What is known of a service, by name, as text; "" is not measured."""
    offline, server, alone = load.serving("offline"), load.serving("server"), load.serving("singlestream")
    best, at_best = load.bound or (None, None)
    window, quality = load.confirmed(), (load.by_scenario["accuracy"].quality if "accuracy" in load.by_scenario else None)
    overload, share = (server or {}).get("overload"), load.share() if load.settled else None
    single = alone and alone["windows"][-1]
    cores = next((s["cores"] for s in (offline, server, alone, load.serving("accuracy")) if s), None)
    return {
        "machine": load.machine, "service": load.name, "cores": str(cores or ""),
        "Offline, queries/s": figure(offline and offline["per_s"]),
        "engine alone, best streams, /s": figure(load.by_scenario["bound"].stats["per_s"]) if best else "",
        "SingleStream P50": ms(single and single["p50_s"]), "SingleStream P99": p99(single),
        "Server within the limit, queries/s": load.stood() if server else "", "its P50": ms(window and window["p50_s"]),
        "its P99": p99(window), "queueing bound, queries/s": figure(at_best),
        "streams of the bound": str(best.c) if best else "", "share of the bound": "" if share is None else f"{share:.0%}",
        "at twice that: goodput, queries/s": figure(overload and overload["goodput_per_s"]),
        "refusals, P99": ms(overload and overload["refusal_p99_s"]), "recovered after": figure(overload and overload["recovery_s"], "s"),
        "memory grew by": figure(_grown(overload), "MiB") if overload else "",
        "peak memory": figure(_memory(load), "MiB"), "CPU in use": _cpu(window, cores),
        "of it the client's": _client(window), "queries/s per core, Offline": figure(load.per_core("offline")),
        "queries/s per core, within the limit": figure(load.per_core("server")) if load.settled else "",
        f"cores for {GOAL_PER_S:.0f}/s, Offline": str(load.cores_offline(GOAL_PER_S) or ""),
        f"cores for {GOAL_PER_S:.0f}/s within the limit, at least": _within(load),
        "start to ready": figure(next((r.cold["ready_s"] for r in load.by_scenario.values() if r.cold.get("ready_s")), None), "s"),
        quality["metric"] if quality else "accuracy": "" if not quality else
            f"{percent(quality['value'])} (n={quality['n']:,}{'' if quality['informative'] else ', not informative'})",
    }


def _grown(overload: dict | None) -> float | None:
    if not overload or None in (overload["rss_before_mib"], overload["rss_after_mib"]):
        return None
    return max(0.0, overload["rss_after_mib"] - overload["rss_before_mib"])


def _cpu(window: dict | None, cores: int) -> str:
    return f"{sum(window['cpu_s'].values()) / window['seconds'] / cores:.0%}" if window and "server" in window["cpu_s"] else ""


def _client(window: dict | None) -> str:
    used = window and window["cpu_s"]
    return f"{used['client'] / sum(used.values()):.0%}" if used and "server" in used and sum(used.values()) else ""


def _within(load: Load) -> str:
    if not load.bound:
        return ""
    found = load.cores_within(GOAL_PER_S)
    return str(found) if found else "none would be enough: one query alone takes longer"


def text(records: Iterable[Record]) -> str:
    """One column for each service that was under load, one line for each figure; lines without any figure are left out."""
    import pandas as pd

    found = [load for load in loads(records) if load.by_scenario.keys() - {"bound", "accuracy"}]
    if not found:
        return "no load test was measured"
    frame = pd.DataFrame([columns(load) for load in found]).fillna("")
    frame = frame.loc[:, (frame != "").any()]
    head = f"{SMOKE}\n" if any(load.tier == "smoke" for load in found) else ""
    return head + frame.T.to_string(header=False)


# README's columns: a short heading, and the name in `columns`.
SHORT = {"service": "service", "Offline, queries/s": "Offline, queries/s",
         "in time, queries/s": "Server within the limit, queries/s", "its P99": "its P99", "queueing bound": "queueing bound, queries/s",
         "share of it": "share of the bound", "peak memory": "peak memory",
         f"cores for {GOAL_PER_S:.0f}/s, Offline": f"cores for {GOAL_PER_S:.0f}/s, Offline",
         f"cores for {GOAL_PER_S:.0f}/s in time, at least": f"cores for {GOAL_PER_S:.0f}/s within the limit, at least"}


def markdown(records: Iterable[Record]) -> str:
    """README's table of the services of one machine that stood a rate within the limit; "" where none did."""
    found = [columns(load) | {"its P99": f"{p99(load.confirmed())}; limit {ms(load.serving('server')['limit_s'])}"}
             for load in loads(records) if load.confirmed()]
    lines = [f"| {' | '.join(SHORT)} |", "|" + "---|" * len(SHORT)]
    return "\n".join([*lines, *(f"| {' | '.join(one[name] for name in SHORT.values())} |" for one in found)]) if found else ""


def frontier(found: Sequence[Load]) -> list[dict]:
    """Resolution against rate and accuracy: one entry for each service with an Offline figure, by falling size."""
    entries = []
    for load in sorted(found, key=lambda load: -load.knobs["image"]):
        accuracy = load.by_scenario.get("accuracy")
        if rate := load.serving("offline") or load.serving("accuracy"):  # an accuracy run sends all at once too
            entries.append({"load": load, "image": load.knobs["image"], "per_s": rate["per_s"],
                            "cores": math.ceil(GOAL_PER_S * rate["cores"] / rate["per_s"]),
                            "quality": accuracy.quality if accuracy else None})
    return entries


def frontier_text(found: Sequence[Load]) -> str:
    """The resolution frontier as a table."""
    import pandas as pd

    lines = []
    for entry in frontier(found):
        quality = entry["quality"]
        lines.append({"service": entry["load"].name, "pixels": entry["image"], "Offline, queries/s": figure(entry["per_s"]),
                      f"cores for {GOAL_PER_S:.0f}/s": entry["cores"],
                      quality["metric"] if quality else "accuracy": f"{100 * quality['value']:.2f} %" if quality else "not measured",
                      "n": f"{quality['n']:,}" if quality else "",
                      "informative": ("yes" if quality["informative"] else "no") if quality else ""})
    return pd.DataFrame(lines).fillna("").to_string(index=False) if lines else "no resolution was measured"


def sentences(found: Sequence[Load]) -> list[str]:
    """What each service stood, as sentences with all that they rest on."""
    said = []
    for load in found:
        server, window = load.serving("server"), load.confirmed()
        if not server:
            continue
        smoke = f"{SMOKE}. " if load.tier == "smoke" else ""
        bound = load.bound and figure(load.bound[1])
        beside = f", {load.share():.0%} of the queueing bound ({bound})" if load.settled and load.share() is not None else ""
        beyond = f"; the queueing bound is {bound} queries/s" if bound and not beside else ""
        line = (f"{smoke}{load.name} on {load.machine} ({server['cores']} cores): {load.stood()} queries/s within "
                f"{1e3 * server['limit_s']:.0f} ms at P99 ({p99(window)}){beside}, in {figure(_memory(load), 'MiB')}{beyond}.")
        offline, within = load.cores_offline(GOAL_PER_S), load.cores_within(GOAL_PER_S)
        if offline and load.bound:
            needs = f"at least {within}" if within else "more than any number of"
            line += f" {GOAL_PER_S:.0f} queries/s would need {offline} cores Offline and {needs} cores within the limit."
        if overload := server.get("overload"):
            line += (f" At twice the rate {figure(overload['goodput_per_s'], 'queries/s')} are still answered in time{_refusals(overload)}"
                     f", and it recovers within {figure(overload['recovery_s'], 's')}.")
        said.append(line)
    return said


def _refusals(window: dict) -> str:
    """How many of an overload are refused, and how soon they are told."""
    if window["refusal_p99_s"] is None:
        return ""
    told = f"within {ms(window['refusal_p99_s'])} at P99"
    late = f"not all of them at once ({told}; at once would be {1e3 * AT_ONCE_S:.0f} ms)"
    return f", {window['refused']:,} are refused, {late if window['refusal_p99_s'] > AT_ONCE_S else told}"
