"""Two runs beside each other: which cases became faster, slower, better, worse or broken, and which changed no more than chance does.

Rounds of different runs are not paired: nothing but the code, the data and the machine joins them. So the rates are compared by
Welch's interval of their logarithms (Welch, Biometrika 34, 1947), and a difference counts only beyond the spread that the same case
shows between sittings of one run (`spread_of_sittings`), which the interval of rounds cannot see. All cases are judged at once, so each at
1 - 0.05 / cases (Bonferroni): two runs of unchanged code show a difference anywhere in 1 of 20 comparisons, not in each.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpml import compare, env, records
from hpml.compare import CONFIDENCE, MIN_ROUNDS, percent
from hpml.env import HpmlError
from hpml.knobs import KNOBS, SIZE_KNOBS
from hpml.records import Record

LEAST_DEGREES = 5  # of freedom, that the spread between sittings must rest on: with fewer, its 95 % point is mostly ignorance
SAID_SECONDS, SAID_MEMORY = 1.5, 1.1  # figures that are said, not judged, are said from these factors on
RAN = ("provider", "device", "precision", "runtime_precision", "threads", "streams", "ops", "heavy_ops", "int8_ops", "opset", "exporter",
       "parameters", "tf32", "memory_format")  # of what really ran: what a reader wants to hear of when it changed


@dataclass(frozen=True)
class Run:
    """Records of one run on one machine, and how the user called it."""

    name: str
    records: list[Record]
    machine: dict
    protocol_version: int


@dataclass(frozen=True)
class Pair:
    """One case in run A and in run B. Rates in samples/s; ratio is B's rate over A's: above 1, B is faster."""

    workload: str
    phase: str
    tier: str
    label: str
    verdict: str  # faster, slower, no difference, no verdict, broken, works now, done, other data, in neither, only in A, only in B
    text: str
    quality: str = ""  # same, better, lost, not informative, or "" where there is none to compare
    quality_text: str = ""
    per_s: tuple[float | None, float | None] = (None, None)
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: tuple[int, int] = (0, 0)
    changes: tuple[str, ...] = ()

    @property
    def regression(self) -> bool:
        return self.verdict in ("slower", "broken") or self.quality == "lost"


@dataclass(frozen=True)
class Gain:
    """A technique's ratio to its baseline in both runs, each paired by rounds inside its run."""

    workload: str
    phase: str
    label: str
    ratios: tuple[float, float]
    words: tuple[str, str]  # the verdicts, in A and in B


@dataclass(frozen=True)
class Agreement:
    """What `between` found."""

    a: Run
    b: Run
    differs: list[str]
    pairs: list[Pair]
    gains: list[Gain]
    confidence: float  # of each interval
    floors: dict[str, tuple[float, str]]  # by phase: the floor of a case with one sitting in each run, and what it rests on
    limits_shift: float | None  # B's measured limits of the machine over A's, median: other than 1, the machine itself changed
    unlike: list[str] = field(default_factory=list)

    @property
    def regressions(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.regression]


def open_run(name: str) -> Run:
    """The records of a run: its id, `reference`, `reference/<machine>`, or a folder that holds records.jsonl.

    `reference` alone is this machine's, or the only one. Raises HpmlError for what is not there, has no records, cannot be read by this
    version or mixes machines or protocols.
    """
    path = _folder(name) / "records.jsonl"
    found = records.read(path)
    if not found:
        raise HpmlError(f"{name}: no records in {path.parent}")
    machines = {r.machine.get("id"): r.machine for r in found}
    protocols = sorted({r.protocol_version for r in found})
    for what, values in (("machines", machines), ("protocol versions", protocols)):
        if len(values) > 1:
            raise HpmlError(f"{name}: records of several {what} ({', '.join(map(str, values))}); one run is compared with one")
    return Run(name, found, next(iter(machines.values())), protocols[0])


def _folder(name: str) -> Path:
    kind, _, machine = name.partition("/")
    if kind == "reference":
        known = {path.parent.name: path.parent for path in sorted(env.reference_dir().glob("*/records.jsonl"))}
        here = env.machine()["id"]
        own = machine.rstrip("/") or (here if here in known else "".join(known) if len(known) == 1 else "")
        if own not in known:
            raise HpmlError(f"{name}: {'no such reference machine' if machine else 'which machine?'} known: {', '.join(known) or 'none'}")
        return known[own]
    is_id = bool(name) and not name.startswith(".") and all(c.isalnum() or c in "._-" for c in name)
    if is_id and env.run_dir(name).is_dir():
        return env.run_dir(name)
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    raise HpmlError(f"{name}: no such run and no such folder; name a run's id, reference, reference/<machine>, or a folder")


def between(a: Run, b: Run, *, unlike_machines: bool = False, unlike_protocols: bool = False) -> Agreement:
    """Run B beside run A. Raises HpmlError for unlike machines or protocols that were not asked for."""
    unlike = []
    for what, values, asked, flag in (
            ("machines", (a.machine.get("id"), b.machine.get("id")), unlike_machines, "--unlike-machines"),
            ("protocol versions", (a.protocol_version, b.protocol_version), unlike_protocols, "--unlike-protocols")):
        if values[0] != values[1]:
            if not asked:
                raise HpmlError(f"unlike {what}: {a.name} has {values[0]}, {b.name} has {values[1]}; rates would compare those. "
                                f"Ask for it with {flag}")
            unlike.append(f"unlike {what}, {values[0]} and {values[1]}")
    cases = [_cases(run.records) for run in (a, b)]
    keys = list(dict.fromkeys([*cases[0], *cases[1]]))
    judged = sum(_speeds(cases[0].get(key, [])) != {} != _speeds(cases[1].get(key, [])) for key in keys)
    confidence = 1 - (1 - CONFIDENCE) / max(judged, 1)
    spreads = {phase: spread_of_sittings([a, b], phase) for phase in {key[1] for key in keys}}
    labels = _labels(keys)
    pairs = [_pair(key, labels[key], cases[0].get(key, []), cases[1].get(key, []), spreads[key[1]], confidence) for key in keys]
    floors = {phase: (floor(spread, confidence=confidence), spread[2]) for phase, spread in spreads.items() if spread}
    gains = _gains(a, b, labels, alike=not unlike)
    return Agreement(a, b, differences(a, b), pairs, gains, confidence, floors, _limits_shift(a, b), unlike)


def identity(record: Record) -> tuple[str, str, str, str]:
    """What makes two records of different runs the same case: workload, phase, tier, and the knobs that are not at their default (so
    that a knob which only the newer version has does not part them). The data is compared apart: a failed record has none."""
    workload = record.case["workload"]
    settings = {name: value for name, value in record.knobs.items()
                if name != "data" and (name not in KNOBS or value != KNOBS[name].default)}
    return (Path(workload).stem if workload.endswith(".py") else workload, record.case["phase"], record.case.get("tier", ""),
            json.dumps(settings, sort_keys=True))


def _cases(found: Iterable[Record]) -> dict[tuple, list[Record]]:
    cases: dict[tuple, list[Record]] = {}
    for record in found:
        if record.case["phase"] != "limit":
            cases.setdefault(identity(record), []).append(record)
    return cases


def _speeds(case: Sequence[Record]) -> dict[str, list[float]]:
    """Log rates of a case's rounds by sitting: the comparison that it was measured in. Both arms of an A/A comparison are the case."""
    sittings: dict[str, list[float]] = {}
    for group in dict.fromkeys(r.case["group"] for r in case if not compare.is_quality_run(r)):
        for key in dict.fromkeys(r.case["key"] for r in case if r.case["group"] == group):
            own = compare.calmest(r for r in case if r.case["group"] == group and r.case["key"] == key)
            sittings.setdefault(group, []).extend(math.log(r.stats["per_s"]) for r in own)
    return {group: logs for group, logs in sittings.items() if logs}


def spread_of_sittings(runs: Sequence[Run], phase: str) -> tuple[float, int, str] | None:
    """(standard deviation of a sitting's mean log rate, degrees of freedom, what it rests on) for unchanged code.

    A run measures many cases more than once, in comparisons minutes apart (each notebook has the baseline). What those sittings of one
    case differ by is what two runs of unchanged code differ by at least; days apart it can be more. Of this phase where it
    has enough of them, else of all. Where no case was measured twice, the A/A rounds are all there is: minutes apart, so a lower bound.
    """
    def pooled(phases) -> tuple[float, int]:
        squares, degrees = 0.0, 0
        for run in runs:
            for key, case in _cases(run.records).items():
                means = [statistics.fmean(logs) for logs in _speeds(case).values() if len(logs) >= MIN_ROUNDS]
                if len(means) > 1 and (phases is None or key[1] in phases):
                    squares += statistics.variance(means) * (len(means) - 1)
                    degrees += len(means) - 1
        return squares, degrees

    for phases, words in (((phase,), f"sittings of the same case, {phase}"), (None, "sittings of the same case, all phases")):
        squares, degrees = pooled(phases)
        if degrees >= LEAST_DEGREES:
            return math.sqrt(squares / degrees), degrees, words
    logs = [log for run in runs for log in compare.noise_logs(run.records, phase)]
    if len(logs) < MIN_ROUNDS:
        return None
    one_mean = statistics.stdev(logs) / math.sqrt(2 * MIN_ROUNDS)  # a log-ratio is the difference of two rounds
    return one_mean, len(logs) - 1, "A/A rounds only, a lower bound"


def floor(spread: tuple[float, int, str] | None, sittings_a: int = 1, sittings_b: int = 1, *,
          confidence: float = CONFIDENCE) -> float | None:
    """|ratio - 1| that two runs of unchanged code exceed with probability 1 - confidence, from `spread_of_sittings`; None for None."""
    from scipy.stats import t

    if spread is None:
        return None
    return math.expm1(t.ppf(0.5 + confidence / 2, spread[1]) * spread[0] * math.sqrt(1 / sittings_a + 1 / sittings_b))


def welch(a: Sequence[float], b: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Ratio of b to a and the ends of Welch's interval, from the log rates of unpaired rounds; at least two of each."""
    from scipy.stats import t

    parts = [statistics.variance(logs) / len(logs) for logs in (a, b)]
    difference, squared = statistics.fmean(b) - statistics.fmean(a), sum(parts)
    half = 0.0
    if squared:
        degrees = squared**2 / sum(part**2 / (len(logs) - 1) for part, logs in zip(parts, (a, b), strict=True))
        half = t.ppf(0.5 + confidence / 2, degrees) * math.sqrt(squared)
    return math.exp(difference), math.exp(difference - half), math.exp(difference + half)


def _pair(key: tuple, label: str, a: list[Record], b: list[Record], spread: tuple | None, confidence: float) -> Pair:
    who = {"workload": key[0], "phase": key[1], "tier": key[2], "label": label}
    ok = [[r for r in case if r.status == "ok"] for case in (a, b)]
    if not a or not b:
        return Pair(**who, verdict="only in B" if b else "only in A", text="only in B" if b else "only in A")
    if not ok[0] or not ok[1]:
        return Pair(**who, **_status_change(ok, a, b))
    data = [_settings(case[-1]) for case in ok]
    if data[0] != data[1]:
        what = "; ".join(f"{name} {x} and {y}" for (name, x), y in zip(data[0].items(), data[1].values(), strict=True) if x != y)
        return Pair(**who, verdict="other data", text=f"not the same case: {what}")
    speeds = [_speeds(case) for case in ok]
    found: dict = {"verdict": "done", "text": "done in both"}
    if speeds[0] and speeds[1]:
        logs = [[log for sitting in speed.values() for log in sitting] for speed in speeds]
        found = _speed(*logs, floor(spread, len(speeds[0]), len(speeds[1]), confidence=confidence), confidence)
        found |= {"per_s": tuple(math.exp(statistics.median(own)) for own in logs), "rounds": (len(logs[0]), len(logs[1]))}
    return Pair(**who, **found, **_quality(*ok), changes=tuple(_changes(*ok, a, b)))


def _status_change(ok: list[list[Record]], a: list[Record], b: list[Record]) -> dict:
    """Of a case that has no figure in one of the runs. Time that ran out is no fault of the case."""
    last_a, last_b = a[-1], b[-1]
    if ok[0] and last_b.status == "skipped":
        return {"verdict": "only in A", "text": f"only in A; not reached in B: {last_b.reason}"}
    if ok[0]:
        return {"verdict": "broken", "text": f"ok in A, {last_b.status} in B: {last_b.reason}"}
    if ok[1]:
        return {"verdict": "works now", "text": f"{last_a.status} in A ({last_a.reason}), ok in B"}
    return {"verdict": "in neither", "text": f"in neither: {last_b.reason}"}


def _settings(record: Record) -> dict[str, object]:
    data = record.actual.get("data") or {}
    return {"data": compare.data_text(record), "checksum": str(data.get("checksum"))[:10],
            **{name: record.protocol.get(name) for name in ("warmup", "min_iters", "min_seconds")}}


def _speed(a: Sequence[float], b: Sequence[float], floor: float | None, confidence: float) -> dict:
    if min(len(a), len(b)) < MIN_ROUNDS:
        ratio = math.exp(statistics.fmean(b) - statistics.fmean(a))
        return {"verdict": "no verdict", "text": f"no verdict: too few rounds ({len(a)} and {len(b)})", "ratio": ratio}
    ratio, low, high = welch(a, b, confidence)
    figures = {"ratio": ratio, "low": low, "high": high}
    if floor is None:
        return {**figures, "verdict": "no verdict", "text": "no verdict: neither run says how much chance moves a case"}
    if (low > 1 or high < 1) and max(ratio, 1 / ratio) - 1 > floor:
        word = "faster" if ratio > 1 else "slower"
        return {**figures, "verdict": word, "text": f"{word} (beyond {percent(floor)})"}
    return {**figures, "verdict": "no difference", "text": f"no difference above {percent(max(floor, high - 1, 1 / low - 1))}"}


def _quality(a: list[Record], b: list[Record]) -> dict:
    """Quality of both against the workload's margin. With the same weights the same images give the same answers, so the margin alone
    decides; else, with fewer than three seeds, the difference must also exceed what the choice of test images can do."""
    values = [{r.protocol["round"]: r.quality for r in case if r.quality} for case in (a, b)]
    if not values[0] or not values[1]:
        return {"quality": "", "quality_text": "only in one run" if values[0] or values[1] else ""}
    first, last = next(iter(values[0].values())), next(iter(values[1].values()))
    means = [statistics.fmean(q["value"] for q in own.values()) for own in values]
    delta, margin = means[1] - means[0], last["margin"]
    shown = f"{100 * delta:+.1f} points ({percent(means[0])} to {percent(means[1])}, n={last['n']:,})"
    if not first["informative"] or not last["informative"]:
        return {"quality": "not informative", "quality_text": f"not informative: {shown}"}
    if len({r.actual.get("weights_sha256") for r in (*a, *b)} - {None}) == 1 and all(r.actual.get("weights_sha256") for r in (*a, *b)):
        chance = 0.0
    elif len(shared := sorted(values[0].keys() & values[1].keys())) >= MIN_ROUNDS:  # the same seeds
        from scipy.stats import t

        spread = statistics.stdev(values[1][i]["value"] - values[0][i]["value"] for i in shared)
        chance = t.ppf(0.5 + CONFIDENCE / 2, len(shared) - 1) * spread / math.sqrt(len(shared))
    else:
        share = min(max(statistics.fmean(means), 0.0), 1.0)
        chance = 1.96 * math.sqrt(share * (1 - share) * (1 / first["n"] + 1 / last["n"]))
    if abs(delta) <= max(margin, chance):
        return {"quality": "same", "quality_text": f"same within {100 * max(margin, chance):.1f} points ({100 * delta:+.1f})"}
    return {"quality": "better" if delta > 0 else "lost", "quality_text": f"{'better' if delta > 0 else 'lost'}: {shown}"}


def _changes(ok_a: list[Record], ok_b: list[Record], a: list[Record], b: list[Record]) -> list[str]:
    """What is said and not judged: sizes, operators, what ran, memory, seconds that are paid once, rounds that failed."""
    found = []
    last = {r.protocol.get("round"): r for r in b}
    lost = [r for r in last.values() if r.status not in ("ok", "skipped")]
    if lost and all(r.status == "ok" for r in a):
        found.append(f"{len(lost)} of {len(last)} rounds failed in B: {lost[-1].reason}")
    one, two = ok_a[-1], ok_b[-1]
    for name in RAN:
        x, y = one.actual.get(name), two.actual.get(name)
        if x != y and x is not None and y is not None:
            found.append(f"{name} {_difference(x, y)}")
    for name in sorted(one.cold.keys() & two.cold.keys() - {"spawn_s"}):
        x, y = (_middle(r.cold.get(name) for r in own) for own in (ok_a, ok_b))
        if x and y and name.endswith("bytes") and x != y:
            found.append(f"{name} {x:,.0f} to {y:,.0f}")
        elif x and y and name.endswith("_s") and max(x / y, y / x) >= SAID_SECONDS and max(x, y) >= 0.1:
            found.append(f"{name} {x:.2f} to {y:.2f}")
    x, y = (_middle(r.memory.get("peak_rss_mib") for r in own) for own in (ok_a, ok_b))
    if x and y and max(x / y, y / x) >= SAID_MEMORY:
        found.append(f"memory {x:,.0f} to {y:,.0f} MiB")
    return found


def _middle(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if isinstance(value, int | float)]
    return statistics.median(found) if found else None


def _difference(x: object, y: object) -> str:
    if not (isinstance(x, dict) and isinstance(y, dict)):
        return f"{x} to {y}"
    parts = [f"{name} {x.get(name, 0)} to {y.get(name, 0)}" for name in sorted(x.keys() | y.keys()) if x.get(name, 0) != y.get(name, 0)]
    return ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")


def _labels(keys: Sequence[tuple]) -> dict[tuple, str]:
    """The knobs in which a case differs from what most cases of its workload and phase have."""
    labels = {}
    for kind in dict.fromkeys(key[:3] for key in keys):
        knobs = {key: json.loads(key[3]) for key in keys if key[:3] == kind}
        names = sorted({name for own in knobs.values() for name in own})
        shown = {name: [own.get(name, KNOBS[name].default if name in KNOBS else None) for own in knobs.values()] for name in names}
        usual = {name: max(values, key=values.count) for name, values in shown.items()}
        for place, key in enumerate(knobs):
            labels[key] = ", ".join(f"{n}={shown[n][place]}" for n in names if shown[n][place] != usual[n]) or "usual knobs"
    return labels


def differences(a: Run, b: Run) -> list[str]:
    """Versions, commits, machine facts, tiers and data in which the runs differ, one line each; empty where they do not."""
    found = []
    for what, of in (("commit", lambda r: [f"{(r.git.get('commit') or 'unknown')[:10]}{' with changes' if r.git.get('dirty') else ''}"]),
                     ("versions", lambda r: [f"{name} {version}" for name, version in r.versions.items()]),
                     ("tier", lambda r: [r.case.get("tier")]),
                     ("data", lambda r: [compare.data_text(r).split(",")[0]] if r.actual.get("data") else [])):
        own = [list(dict.fromkeys(text for r in run.records for text in of(r))) for run in (a, b)]
        gone, new = ([text for text in own[i] if text not in own[1 - i]] for i in (0, 1))
        if gone or new:
            found.append(f"{what}: {', '.join(gone) or 'none more'} -> {', '.join(new) or 'none more'}")
    facts = [f"{name} {a.machine.get(name)} -> {b.machine.get(name)}" for name in ("id", "cpu", "cores", "isa", "ram_gib", "gpu", "gpus",
             "gpu_driver", "os") if a.machine.get(name) != b.machine.get(name)]
    return found + ([f"machine: {'; '.join(facts)}"] if facts else [])


def _limits_shift(a: Run, b: Run) -> float | None:
    best: list[dict[tuple, float]] = [{}, {}]
    for own, run in zip(best, (a, b), strict=True):
        for r in run.records:
            if r.case["phase"] == "limit" and r.status == "ok":
                name = tuple(r.knobs.get(knob) for knob in ("kind", "dtype", "engine", "device"))
                own[name] = max(own.get(name, 0.0), r.actual["value"])
    shared = [best[1][name] / best[0][name] for name in best[0].keys() & best[1].keys() if best[0][name]]
    return statistics.median(shared) if shared else None


def _gains(a: Run, b: Run, labels: dict[tuple, str], *, alike: bool) -> list[Gain]:
    """Techniques that both runs measured beside the same baseline. Paired inside each run, so that slow drift cancels out.

    Machines that are not `alike` have tiers, devices and sizes of their own: there a technique is what it turns, beside a baseline that is
    otherwise set the same.
    """
    sides: list[dict[tuple, Gain]] = []
    for run in (a, b):
        own: dict[tuple, Gain] = {}
        of = {(r.case["group"], r.case["label"]): r for r in run.records if r.case["phase"] != "limit"}
        rows = compare.techniques(compare.rows(run.records))
        bases = {row.group: of[row.group, row.label] for row in rows if row.is_baseline}
        for row in rows:
            if row.ratio and row.group in bases:
                base, turned = bases[row.group], ", ".join(f"{name}={row.knobs[name]}" for name in row.differs_in)
                beside = [text for text in labels[identity(base)].split(", ") if text.split("=")[0] not in row.differs_in and "=" in text]
                key = (identity(base) if alike else _kind(base, row.differs_in), turned)
                named = f"{turned} ({', '.join(beside)})" if beside and alike else turned
                own[key] = Gain(identity(base)[0], row.phase, named, (row.ratio, row.ratio), (row.verdict, row.verdict))
        sides.append(own)
    return [dataclasses.replace(one, ratios=(one.ratios[0], sides[1][key].ratios[1]), words=(one.words[0], sides[1][key].words[1]))
            for key, one in sides[0].items() if key in sides[1]]


def _kind(base: Record, turned: Sequence[str]) -> tuple:
    workload, phase, _, settings = identity(base)
    loose = {*SIZE_KNOBS, *turned, "device", "workers", "weights", "optimizer"}
    return workload, phase, tuple(sorted((name, value) for name, value in json.loads(settings).items() if name not in loose))
