"""Two runs beside each other: which cases became faster, slower, better, worse or broken, and which changed no more than chance does.

Rounds of different runs are not paired: nothing but the code, the data and the machine joins them. So the rates are compared by
Welch's interval of their logarithms (Welch, Biometrika 34, 1947), and a difference counts only beyond the spread that the same case
shows between sittings of one run (sittings.py), which the interval of rounds cannot see. All cases are judged at once, so each at
1 - 0.05 / cases (Bonferroni): two runs of unchanged code show a difference anywhere in 1 of 20 comparisons, not in each.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hpml import compare, sittings
from hpml.compare import CONFIDENCE, MIN_ROUNDS, Row, percent
from hpml.env import HpmlError
from hpml.knobs import KNOBS, SIZE_KNOBS
from hpml.records import Record
from hpml.sittings import Run

SAID_SECONDS, SAID_MEMORY = 1.5, 1.1  # figures that are said, not judged, are said from these factors on
RAN = ("provider", "device", "precision", "runtime_precision", "threads", "streams", "ops", "heavy_ops", "int8_ops", "opset", "exporter",
       "parameters", "tf32", "memory_format")  # of what really ran: what a reader wants to hear of when it changed


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
        """Whether run B is worse here: slower, broken, or of lost quality."""
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
        """The pairs in which run B is worse."""
        return [pair for pair in self.pairs if pair.regression]


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
    cases = [sittings.cases(run.records) for run in (a, b)]
    keys = list(dict.fromkeys([*cases[0], *cases[1]]))
    judged = sum(sittings.speeds(cases[0].get(key, [])) != {} != sittings.speeds(cases[1].get(key, [])) for key in keys)
    confidence = 1 - (1 - CONFIDENCE) / max(judged, 1)
    spreads = {phase: sittings.spread([a, b], phase) for phase in {key[1] for key in keys}}
    labels = _labels(keys)
    pairs = [_pair(key, labels[key], cases[0].get(key, []), cases[1].get(key, []), spreads[key[1]], confidence) for key in keys]
    floors = {phase: (sittings.floor(spread, confidence=confidence), spread[2]) for phase, spread in spreads.items() if spread}
    gains = _gains(a, b, labels, alike=not unlike)
    return Agreement(a, b, differences(a, b), pairs, gains, confidence, floors, _limits_shift(a, b), unlike)


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
    speeds = [sittings.speeds(case) for case in ok]
    found: dict = {"verdict": "done", "text": "done in both"}
    if speeds[0] and speeds[1]:
        logs = [[log for sitting in speed.values() for log in sitting] for speed in speeds]
        found = _speed(*logs, sittings.floor(spread, len(speeds[0]), len(speeds[1]), confidence=confidence), confidence)
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
    ratio, low, high = sittings.welch(a, b, confidence)
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

    Machines that are not `alike` have tiers, devices and sizes of their own: there a technique is what it turns in one notebook, beside a
    baseline that is otherwise set the same. What a notebook measured at several sizes is paired at each that both sides have; what it
    measured once on each side is the same technique at their own sizes, and its label names both.
    """
    one, two = (_turned(run, labels, alike=alike) for run in (a, b))
    found = []
    for kind, mine in one.items():
        theirs = two.get(kind, {})
        pairs = [(mine[size], theirs[size]) for size in mine if size in theirs]
        if not pairs and len(mine) == len(theirs) == 1:
            pairs = [(*mine.values(), *theirs.values())]
        for (row, at), (other, there) in pairs:
            words = [x if x == y else f"{x} and {y.split('=')[-1]}" for x, y in zip(at, there, strict=True)
                     if not x == y == "threads=0"]  # all of them: the usual
            found.append(Gain(kind[0][0], row.phase, f"{kind[1]} ({', '.join(words)})" if words else kind[1],
                              (row.ratio, other.ratio), (row.verdict, other.verdict)))
    return found


def _turned(run: Run, labels: dict[tuple, str], *, alike: bool) -> dict[tuple, dict[tuple, tuple[Row, list[str]]]]:
    """The rows that turn a technique with the words that tell what it was measured at: by (baseline, what is turned, notebook), by size."""
    found: dict[tuple, dict[tuple, tuple[Row, list[str]]]] = {}
    of = {(r.case["group"], r.case["label"]): r for r in run.records if r.case["phase"] != "limit"}
    rows = compare.techniques(compare.rows(run.records))
    bases = {row.group: of[row.group, row.label] for row in rows if row.is_baseline}
    for row in rows:
        if not row.ratio or row.group not in bases:
            continue
        base, turned = bases[row.group], ", ".join(f"{name}={row.knobs[name]}" for name in row.differs_in)
        if alike:
            kind, size = (sittings.identity(base), turned, None), ()
            words = [text for text in labels[kind[0]].split(", ") if text.split("=")[0] not in row.differs_in and "=" in text]
        else:
            kind, size = (_kind(base, row.differs_in), turned, base.notebook), _size(base, row.differs_in)
            words = [f"{name}={base.knobs[name]}" for name in ("batch", "threads") if name not in row.differs_in and name in base.knobs]
            words += [f"notebook {base.notebook[:2]}"] if base.notebook else []
        found.setdefault(kind, {})[size] = row, words
    return found


def _kind(base: Record, turned: Sequence[str]) -> tuple:
    workload, phase, _, settings = sittings.identity(base)
    loose = {*SIZE_KNOBS, *turned, "device", "workers", "weights", "optimizer"}
    return workload, phase, tuple(sorted((name, value) for name, value in json.loads(settings).items() if name not in loose))


def _size(base: Record, turned: Sequence[str]) -> tuple:
    """What decides how much a technique can gain, and differs between the comparisons of one run."""
    return tuple(base.knobs.get(name) for name in ("batch", "threads", "image", "length", "variant") if name not in turned)
