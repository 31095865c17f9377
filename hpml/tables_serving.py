"""Load tests as tables and sentences: what a service stood, in how much memory, beside the queueing bound; the cores that a rate needs."""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpml import queueing
from hpml.compare import percent
from hpml.records import Record
from hpml.tables import SMOKE, figure, title

GOAL_PER_S = 100.0
TRANSPORTS = {"inprocess": "in process", "http": "over HTTP"}
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
        return f"{title(self.workload)} {self.knobs['precision']} in {self.knobs['engine']}, {self.knobs['image']} px, " \
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

    @functools.cached_property
    def bound(self) -> tuple[queueing.Server, float] | None:
        """The best case of this service by queueing theory, and its highest rate; None where its parts were not measured."""
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
        """The sustained rate as a share of the bound."""
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
        """The fewest cores for `rate` queries per second within the limit at P99, by the bound; None also where no number is enough."""
        limit_s = self.bound and self.by_scenario["bound"].actual["bound"]["limit_s"]
        return self.bound and queueing.cores_needed(rate, self.bound[0], limit_s=limit_s)


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
    overload, share = (server or {}).get("overload"), load.share()
    single = alone and alone["windows"][-1]
    cores = next((s["cores"] for s in (offline, server, alone, load.serving("accuracy")) if s), None)
    return {
        "machine": load.machine, "service": load.name, "cores": str(cores or ""),
        "Offline, queries/s": figure(offline and offline["per_s"]),
        "engine alone, best streams, /s": figure(load.by_scenario["bound"].stats["per_s"]) if best else "",
        "SingleStream P50": ms(single and single["p50_s"]), "SingleStream P99": p99(single),
        "Server within the limit, queries/s": figure(server and server["per_s"]), "its P50": ms(window and window["p50_s"]),
        "its P99": p99(window), "queueing bound, queries/s": figure(at_best),
        "streams of the bound": str(best.c) if best else "", "share of the bound": "" if share is None else f"{share:.0%}",
        "at twice that: goodput, queries/s": figure(overload and overload["goodput_per_s"]),
        "refusals, P99": ms(overload and overload["refusal_p99_s"]), "recovered after": figure(overload and overload["recovery_s"], "s"),
        "memory grew by": figure(_grown(overload), "MiB") if overload else "",
        "peak memory": figure(_memory(load), "MiB"), "CPU in use": _cpu(window, cores),
        "of it the client's": _client(window), "queries/s per core, Offline": figure(load.per_core("offline")),
        "queries/s per core, within the limit": figure(load.per_core("server")),
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
        share = load.share()
        beside = f", {share:.0%} of the queueing bound ({figure(load.bound[1])})" if share is not None else ""
        line = (f"{smoke}{load.name} on {load.machine} ({server['cores']} cores): {figure(server['per_s'], 'queries/s')} within "
                f"{1e3 * server['limit_s']:.0f} ms at P99 ({p99(window)}){beside}, in {figure(_memory(load), 'MiB')}.")
        offline, within = load.cores_offline(GOAL_PER_S), load.cores_within(GOAL_PER_S)
        if offline and load.bound:
            needs = f"at least {within}" if within else "more than any number of"
            line += f" {GOAL_PER_S:.0f} queries/s would need {offline} cores Offline and {needs} cores within the limit."
        if overload := server.get("overload"):
            refusals = f", refusals come within {ms(overload['refusal_p99_s'])} at P99" if overload["refusal_p99_s"] is not None else ""
            line += (f" At twice the rate {figure(overload['goodput_per_s'], 'queries/s')} are still answered in time{refusals}, and it "
                     f"recovers within {figure(overload['recovery_s'], 's')}.")
        said.append(line)
    return said
