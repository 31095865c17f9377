"""The verdict: paired comparison of cases from their records, with interval, noise floor and quality."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpml import answers, roofline
from hpml.env import HpmlError
from hpml.knobs import INPUT_KNOBS, SIZE_KNOBS, turned
from hpml.records import Record

MIN_ROUNDS, MAX_ROUNDS = 3, 6
CONFIDENCE = 0.95
# A look before the last round stops the measurement only at this confidence: four looks at 95 % would find a difference in
# about one of eight A/A comparisons (Haybittle and Peto's rule for interim looks).
EARLY_CONFIDENCE = 0.99
TOO_NOISY = 0.05
NOISE = "noise_floor"  # the technique of A/A records
NOT_COMPARED = ("limit", "profile", "serve")  # phases whose records stand for themselves


@dataclass(frozen=True)
class Row:
    """One case beside its baseline, as tables and charts show it. Rates are samples/s, medians over rounds; ratio > 1 is faster."""

    workload: str
    phase: str
    technique: str
    label: str
    knobs: dict
    differs_in: tuple[str, ...]
    is_baseline: bool
    status: str
    reason: str | None
    per_s: float | None
    latency_ms: float | None
    ratio: float | None
    low: float | None
    high: float | None
    rounds: int
    busy_rounds: int
    floor: float | None
    verdict: str
    verdict_text: str
    quality: str
    quality_text: str
    quality_value: float | None
    quality_metric: str | None
    quality_n: int | None
    memory_mib: float | None
    limit_percent: float | None
    limit_bound: str | None
    machine: str
    tier: str
    data: str
    stack: bool
    group: str
    notebook: str | None


def interval(logs: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Ratio and the ends of its Student interval from per-round log-ratios; needs at least two."""
    return tuple(map(math.exp, mean_interval(logs, confidence)))


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean and the ends of its Student interval; needs at least two values."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = t.ppf(0.5 + confidence / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def log_ratios(base: dict[int, float], other: dict[int, float]) -> list[float]:
    """Paired by round: log(rate of other / rate of base) for each round that both have."""
    return [math.log(other[i] / base[i]) for i in sorted(base.keys() & other.keys())]


def noise_floor(logs: Sequence[float], rounds: int) -> float:
    """95th percentile of |ratio - 1| that A/A comparisons of `rounds` rounds give on this machine.

    The A/A log-ratios are symmetric by design (the two arms are the same case), so means of `rounds` of them with random signs
    are drawn (seeded). Raises HpmlError with fewer than 3 log-ratios.
    """
    import numpy as np

    if len(logs) < MIN_ROUNDS:
        raise HpmlError(f"noise floor: {len(logs)} A/A rounds are too few, {MIN_ROUNDS} are needed")
    random = np.random.default_rng(0)
    # A mean has fewer degrees of freedom than its draws: without the factor, the few rounds would flatter the machine.
    spread = np.asarray(logs) * math.sqrt(len(logs) / (len(logs) - 1))
    draws = random.choice(spread, size=(20_000, rounds)) * random.choice((-1.0, 1.0), size=(20_000, rounds))
    return float(np.expm1(np.percentile(np.abs(draws.mean(axis=1)), 95)))


def speed_verdict(logs: Sequence[float], floor: float | None) -> tuple[str, str]:
    """(word, text) for per-round log-ratios: faster and slower need an interval without 1 and a ratio beyond the noise floor."""
    if len(logs) < MIN_ROUNDS:
        return "too few rounds", f"too few rounds ({len(logs)} of {MIN_ROUNDS})"
    ratio, low, high = interval(logs)
    if floor is None:
        return "too few rounds", f"{ratio:.2f}x, but no noise floor is recorded for this machine"
    excess = max(ratio, 1 / ratio) - 1
    if (low > 1 or high < 1) and excess > floor:
        word = "faster" if ratio > 1 else "slower"
        noisy = "; machine too noisy" if floor > TOO_NOISY else ""
        return word, f"{word} {ratio:.2f}x [{low:.2f}, {high:.2f}]{noisy}"
    above = max(floor, high - 1, 1 / low - 1)
    noisy = "; machine too noisy" if floor > TOO_NOISY else ""
    return "no difference", f"no difference above {percent(above)}{noisy}"


def percent(share: float) -> str:
    """A share as percent, with one digit below ten."""
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


def decided(logs: Sequence[float], floor: float | None) -> bool:
    """Whether an interim look may stop the rounds: clearly different, or clearly inside the noise floor."""
    if len(logs) < MIN_ROUNDS:
        return False
    if len(logs) >= MAX_ROUNDS:
        return True
    if floor is None:
        return False
    ratio, low, high = interval(logs, EARLY_CONFIDENCE)
    return ((low > 1 or high < 1) and max(ratio, 1 / ratio) - 1 > floor) or max(high, 1 / low) - 1 < floor


def by_round(records: Iterable[Record]) -> dict[int, float]:
    """Rate by round of the ok records of one case; a round that was repeated because the machine was busy counts once."""
    return {r.protocol["round"]: r.stats["per_s"] for r in calmest(records)}


def calmest(records: Iterable[Record]) -> list[Record]:
    """The ok records with figures, one for each round: of a round that was repeated the one that was not set aside and that nothing
    disturbed, else the last."""
    def standing(record: Record) -> tuple[bool, bool]:
        return not record.protocol.get("set_aside"), not record.protocol.get("busy")

    chosen: dict[int, Record] = {}
    for record in records:
        before = chosen.get(record.protocol["round"])
        if record.status == "ok" and record.stats and (before is None or standing(record) >= standing(before)):
            chosen[record.protocol["round"]] = record
    return list(chosen.values())


def _cases(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.case["key"], []).append(record)
    return found


def noise_logs(records: Iterable[Record], phase: str, device: str | None = None) -> list[float]:
    """A/A log-ratios among `records`, of this phase where there are some, else of any phase; `device` leaves those of others out, as a
    GPU's scatter says nothing of the CPU beside it. Empty when none was measured."""
    aa = [r for r in records if r.case["technique"] == NOISE and r.status == "ok"
          and (device is None or r.knobs.get("device", device) == device)]
    chosen = [r for r in aa if r.case["phase"] == phase] or aa
    logs = []
    groups: dict[str, list[Record]] = {}
    for record in chosen:
        groups.setdefault(record.case["group"], []).append(record)
    for group in groups.values():
        first, *others = _cases(group).values()
        for other in others:
            logs += log_ratios(by_round(first), by_round(other))
    return logs


def refuse_unlike(records: Sequence[Record]) -> None:
    """Raises HpmlError unless all records are of one machine and one protocol: their figures cannot stand in one comparison."""
    measured = [r for r in records if r.status == "ok"]
    for what, values in (("machines", {r.machine.get("id") for r in measured}),
                         ("protocol versions", {r.protocol_version for r in measured})):
        if len(values) > 1:
            raise HpmlError(f"records of different {what} cannot be compared: {', '.join(map(str, sorted(values)))}")


def rows(records: Sequence[Record], noise: Sequence[Record] | None = None) -> list[Row]:
    """All cases beside their baselines, in measuring order. `noise` holds A/A records where `records` has none.

    Raises HpmlError for records of several machines or protocols.
    """
    refuse_unlike(records)
    noise = records if noise is None else noise
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.case["phase"] not in NOT_COMPARED and record.case["technique"] != NOISE and not is_quality_run(record):
            groups.setdefault(record.case["group"], {}).setdefault(record.case["key"], []).append(record)
    found, known_limits = [], roofline.best(records)
    for cases in groups.values():
        base = next((c for c in cases.values() if c[0].case["key"] == c[0].case["baseline"]), None)
        ordered = sorted(cases.values(), key=lambda c: c[0].case["order"])
        logs = noise_logs(noise, ordered[0][0].case["phase"], ordered[0][0].knobs.get("device"))
        found += [_row(case, base, logs, records, known_limits) for case in ordered]
    return found


def techniques(rows: Sequence[Row]) -> list[Row]:
    """The rows without comparisons that test the protocol itself by a planted slowdown: those say nothing about a workload."""
    planted = {row.group for row in rows if row.knobs.get("slowdown")}
    return [row for row in rows if row.group not in planted]


def on_other_input(row: Row) -> bool:
    """Whether nothing but what is worked on differs from the baseline (batch, length): a comparison, and no technique."""
    return bool(row.differs_in) and set(row.differs_in) <= set(INPUT_KNOBS)


def is_quality_run(record) -> bool:
    """Whether a record, or a case, is a run that vouches for quality (a whole training, a pass over the test images): its time is no speed
    figure."""
    return bool(record.knobs.get("epochs")) or record.knobs.get("measure") == "quality"


def _row(case: list[Record], base: list[Record] | None, noise: list[float], records: Sequence[Record],
         known_limits: dict[str, roofline.Rates]) -> Row:
    ok = [r for r in case if r.status == "ok"]
    last = (ok or case)[-1]
    rates = by_round(ok)
    is_baseline = last.case["key"] == last.case["baseline"]
    logs = log_ratios(by_round(base), rates) if base and ok and not is_baseline else []
    floor = noise_floor(noise, max(len(logs), MIN_ROUNDS)) if len(noise) >= MIN_ROUNDS else None
    ratio, low, high = interval(logs) if len(logs) >= 2 else (math.exp(logs[0]) if logs else None, None, None)
    if not ok:
        word, text = "not measured here", f"not measured here: {last.reason}"
    elif is_baseline:
        word, text = "baseline", "baseline"
    elif base is None or not by_round(base):
        word, text = "not measured here", "not measured here: its baseline has no figure"
    else:
        word, text = speed_verdict(logs, floor)
    against = ([r for r in base if r.status == "ok"] or base)[-1] if base and not is_baseline else None
    quality = quality_verdict(last, against, records)
    per_s = statistics.median(rates.values()) if rates else None
    near = [one for r in ok if r.limit and (one := roofline.nearest(r, known_limits))]
    memory = [r.memory["peak_rss_mib"] + (r.memory.get("workers_peak_rss_mib") or 0) for r in ok if r.memory.get("peak_rss_mib")]
    return Row(
        workload=last.case["workload"], phase=last.case["phase"], technique=last.case["technique"], label=last.case["label"],
        knobs=last.knobs, differs_in=tuple(last.case["differs_in"]), is_baseline=is_baseline, status=last.status, reason=last.reason,
        per_s=per_s, latency_ms=1e3 * last.samples["items"] / per_s if per_s else None, ratio=ratio, low=low, high=high,
        rounds=len(rates), busy_rounds=sum(bool(r.protocol.get("busy")) for r in calmest(ok)), floor=floor, verdict=word,
        verdict_text=text, **quality,
        memory_mib=max(memory) if memory else None, limit_percent=statistics.median(one["percent"] for one in near) if near else None,
        limit_bound=near[-1]["bound"] if near else None, machine=last.machine.get("id", "unknown"), tier=last.case["tier"],
        data=data_text(last), stack=len(last.case["differs_in"]) > 1, group=last.case["group"], notebook=last.notebook)


def data_text(record: Record) -> str:
    """Which data a figure comes from, as captions say it."""
    data = record.actual.get("data")
    if not data:
        return "data not opened"
    return f"{data['title']} ({data['origin']}), {data['n_train']:,} + {data['n_test']:,} {data.get('unit', 'images')}"


def technique_key(record: Record) -> tuple:
    """What a quality run must share with a speed figure to vouch for it: all turned knobs but the sizes."""
    return (record.case["workload"], record.case["phase"], record.case["tier"],
            *sorted((k, v) for k, v in turned(record.knobs).items() if k not in SIZE_KNOBS))


def quality_verdict(record: Record, base: Record | None, records: Sequence[Record]) -> dict:
    """Quality columns of a row: kept, lost, not measured or not informative, against the workload's margin fixed beforehand. The text
    names the variant and the sizes that it was shown at, where these are others than the row's.

    With three or more paired rounds the lower end of the interval of the difference decides, else the difference itself. In inference the
    weights are the same, so the text then gives the interval that the test samples alone leave (answers.difference).
    """
    runs = vouching(record, records)
    own = _qualities(runs)
    nothing = {"quality": "not measured", "quality_text": "not measured", "quality_value": None, "quality_metric": None, "quality_n": None}
    # Answers that fail the parity check keep nothing, whatever another variant's did.
    if record.status == "parity_failed":
        return nothing
    if not own:
        failed = _of_technique(record, [r for r in records if r.status == "parity_failed" and r.parity and is_quality_run(r)])
        return {**nothing, "quality_text": _unlike(failed[-1].parity)} if failed else nothing
    theirs = _qualities(vouching(base, records)) if base else {}
    # Only runs of one group share the amount of training and the test images: pairs are made inside the latest such group.
    shared = [group for group, _ in own if group in {other for other, _ in theirs}]
    group = shared[-1] if shared else list(own)[-1][0]
    own = {key: q for key, q in own.items() if key[0] == group}
    chosen = {key: q for key, q in own.items() if key in theirs} or own
    any_own = next(iter(chosen.values()))
    value = statistics.fmean(q["value"] for q in chosen.values())
    shown = {"quality_value": value, "quality_metric": any_own["metric"], "quality_n": any_own["n"]}
    size = f"{_shown_at(record, next(r for r in runs if r.case['group'] == group))}n={any_own['n']}"
    if not any_own["informative"]:
        text = f"not informative ({percent(value)}, {size})"
        return {**shown, "quality": "not informative", "quality_text": text}
    if base is None:
        return {**shown, "quality": "not measured", "quality_text": f"{percent(value)} ({size})"}
    if not theirs.keys() & own.keys():
        return {**shown, "quality": "not measured", "quality_text": f"{percent(value)} (baseline's not measured)"}
    deltas = [own[i]["value"] - theirs[i]["value"] for i in sorted(own.keys() & theirs.keys())]
    delta, margin = statistics.fmean(deltas), any_own["margin"]
    worst = delta
    if len(deltas) >= MIN_ROUNDS:
        from scipy.stats import t

        worst = delta - t.ppf(0.5 + CONFIDENCE / 2, len(deltas) - 1) * statistics.stdev(deltas) / math.sqrt(len(deltas))
    ends, latest = None, max(own.keys() & theirs.keys())
    if record.case["phase"] != "train" and len(deltas) < MIN_ROUNDS:
        ends = answers.difference(own[latest], theirs[latest], CONFIDENCE)
    spread = f" [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]" if ends else ""
    word = "kept" if worst >= -margin else "lost" if delta < -margin else "not informative"
    text = {"kept": f"kept ({100 * delta:+.1f} points{spread}",
            "lost": f"lost by {-100 * delta:.1f} points{spread} (margin {100 * margin:.1f}",
            "not informative": f"not informative ({100 * delta:+.1f} points, interval wider than the margin"}[word]
    seeds = f", {len(deltas)} seed{'s' * (len(deltas) > 1)}" if record.case["phase"] == "train" else ""
    return {**shown, "quality": word, "quality_text": f"{text}, {size}{seeds})"}


def _unlike(parity: dict) -> str:
    """Why a quality run has no quality: its answers were others than eager FP32's."""
    share = parity.get("top1_agreement")
    agreement = f" (agreement {share:.2f}, n={parity['n']})" if share is not None else ""
    return f"not measured: parity failed{agreement}"


def _shown_at(record: Record, run: Record) -> str:
    """Where the quality was shown on another graph than the one that was timed: its variant and the size of its inputs."""
    return "".join(f"{run.knobs[name]}, " if name == "variant" else f"{name} {run.knobs[name]}, " for name in ("variant", "image", "length")
                   if name in run.knobs and run.knobs[name] != record.knobs.get(name))


def _qualities(runs: Sequence[Record]) -> dict[tuple[str, int], dict]:
    return {(r.case["group"], r.protocol["round"]): r.quality for r in runs}


def vouching(record: Record, records: Sequence[Record]) -> list[Record]:
    """The runs that show the quality of `record`'s technique: of the same weights, or of the variant that was trained instead."""
    return _of_technique(record, [r for r in records if r.status == "ok" and r.quality])


def _of_technique(record: Record, runs: Sequence[Record]) -> list[Record]:
    wanted = technique_key(record)
    return [r for r in runs if technique_key(r) == wanted and (r.actual.get("weights_sha256") == record.actual.get("weights_sha256")
                                                               or r.knobs.get("variant") != record.knobs.get("variant"))]
