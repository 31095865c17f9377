"""The cases of a run by sitting, and what sittings of one unchanged case differ by: the floor between runs.

Rounds of different runs are not paired, so their rates are compared by Welch's interval of the logarithms (Biometrika 34, 1947). It
knows the scatter of rounds and not that of sittings, which is why a floor stands beside it.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpml import compare, env, records
from hpml.compare import CONFIDENCE, MIN_ROUNDS
from hpml.env import HpmlError
from hpml.knobs import turned
from hpml.records import Record

LEAST_DEGREES = 5  # of freedom, that the spread between sittings must rest on: with fewer, its 95 % point is mostly ignorance


@dataclass(frozen=True)
class Run:
    """Records of one run on one machine, and how the user called it."""

    name: str
    records: list[Record]
    machine: dict
    protocol_version: int


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


def identity(record: Record) -> tuple[str, str, str, str]:
    """What makes two records of different runs the same case: workload, phase, tier, and the knobs that are turned. The data is compared
    apart: a failed record has none."""
    workload = record.case["workload"]
    settings = {name: value for name, value in turned(record.knobs).items() if name != "data"}
    return (Path(workload).stem if workload.endswith(".py") else workload, record.case["phase"], record.case.get("tier", ""),
            json.dumps(settings, sort_keys=True))


def cases(found: Iterable[Record]) -> dict[tuple, list[Record]]:
    """The records that can be compared, by case."""
    by_identity: dict[tuple, list[Record]] = {}
    for record in found:
        if record.case["phase"] not in compare.NOT_COMPARED:
            by_identity.setdefault(identity(record), []).append(record)
    return by_identity


def speeds(case: Sequence[Record]) -> dict[str, list[float]]:
    """Log rates of a case's rounds by sitting: the comparison that it was measured in. Both arms of an A/A comparison are the case."""
    sittings: dict[str, list[float]] = {}
    for group in dict.fromkeys(r.case["group"] for r in case if not compare.is_quality_run(r)):
        for key in dict.fromkeys(r.case["key"] for r in case if r.case["group"] == group):
            own = compare.calmest(r for r in case if r.case["group"] == group and r.case["key"] == key)
            sittings.setdefault(group, []).extend(math.log(r.stats["per_s"]) for r in own)
    return {group: logs for group, logs in sittings.items() if logs}


def spread(runs: Sequence[Run], phase: str) -> tuple[float, int, str] | None:
    """(standard deviation of a sitting's mean log rate, degrees of freedom, what it rests on) for unchanged code.

    A run measures many cases more than once, in comparisons minutes apart (each notebook has the baseline). What those sittings of one
    case differ by is what two runs of unchanged code differ by at least; days apart it can be more. Of this phase where it
    has enough of them, else of all. Where no case was measured twice, the A/A rounds are all there is: minutes apart, so a lower bound.
    """
    def pooled(phases) -> tuple[float, int]:
        squares, degrees = 0.0, 0
        for run in runs:
            for key, case in cases(run.records).items():
                means = [statistics.fmean(logs) for logs in speeds(case).values() if len(logs) >= MIN_ROUNDS]
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
    """|ratio - 1| that two runs of unchanged code exceed with probability 1 - confidence, from `spread`; None for None."""
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
