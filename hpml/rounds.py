"""The rounds of one comparison: which case is measured when, what its child's answer becomes, and what need not be measured again."""

import dataclasses
import os
import random
import statistics
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpml import compare, distributed, env, launch, records, roofline
from hpml.cases import Case, session
from hpml.env import HpmlError
from hpml.records import OUT_OF_TIME, PROTOCOL_VERSION, Record

TIMEOUT_S = {"smoke": 120, "cpu": 600, "gpu": 600, "full": 7 * 86_400}
COMPILE_LIMIT_S = {"smoke": 60, "cpu": 60, "gpu": 600, "full": 3600}  # a longer compilation is given up, and the record says so


@dataclass
class Plan:
    """A comparison before it is measured: its cases with the identity of their figures; the first one is the baseline."""

    cases: list[Case]
    keys: list[str]
    group: str
    run_id: str
    code: str
    weights: list[tuple[str | None, str | None]]  # path and sha256
    seconds: dict[str, float] = field(default_factory=dict)
    typical_s: float = 0.0  # what such a case took in this run so far
    unprepared: dict[int, tuple[str, str]] = field(default_factory=dict)  # status and reason of a build or INT8 graph that a case lacks


def measure(plan: Plan, least: int, done: dict, store: Path, known: list[Record], *, adaptive: bool, fresh: bool) -> None:
    """Breadth first: a round of everything, then the next, `least` of them and into `store`; `done` holds what is there already, by key
    and round. `adaptive`: what is still undecided then goes on, up to 6 rounds, with its baseline. `known` are the run's records."""
    plan.typical_s = _typical_s(plan.cases[0], known)
    known_limits, noise = roofline.best(of_this_machine(known)), [r for r in known if r.case["technique"] == compare.NOISE]
    # A whole training or a pass over the test images has no pairs by rounds: made once in a run, it serves every comparison.
    twins = {} if fresh else {(r.case["key"], r.protocol["round"]): r for r in known if r.status == "ok" and compare.is_quality_run(r)}
    found: dict[str, list[Record]] = {key: [] for key in plan.keys}
    for (key, _), record in done.items():
        found[key].append(record)
    lost: set[str] = set()
    for number in range(max(least, compare.MAX_ROUNDS if adaptive else 0)):
        wanted = set(plan.keys)
        if number >= least:
            wanted = _undecided(plan, found, noise) - lost
            if not wanted or _short_of_time():
                break
            wanted.add(plan.keys[0])
        order = list(range(len(plan.cases)))
        random.Random(f"{plan.group}{number // 2}").shuffle(order)
        if number % 2:
            order.reverse()  # of two rounds each case has each place once: what the first one meets favours nobody
        waiting = [i for i in order if plan.keys[i] in wanted - lost and (plan.keys[i], number) not in done]
        for group in _groups(plan, waiting, twins.keys(), number):
            if twin := twins.get((plan.keys[group[0]], number)):
                made = [dataclasses.replace(twin, case=_described(plan, group[0]), protocol={"made_as": twin.record_id, **twin.protocol},
                                            notebook=session().notebook, record_id=records.new_id())]  # of a copy, what that was made as
            else:
                made = _measured_again_if_busy(plan, group, number, order, known_limits, store, found)
            for record in made:
                records.append(store, record)
                found[record.case["key"]].append(record)
                _say(record, number, least)
                if record.status != "ok":
                    lost.add(record.case["key"])
        if len(lost) == len(plan.keys) or (half_the_batch(plan.cases) and ran_out(r for own in found.values() for r in own)):
            break


def _typical_s(one: Case, known: list[Record]) -> float:
    """Seconds that a case of this workload and phase took so far, the median of the run's records; 0 where there is none."""
    took = [r.protocol["took_s"] for r in known if r.status == "ok" and r.protocol.get("took_s")
            and (r.case["workload"], r.case["phase"], r.case["tier"], r.knobs.get("device")) ==
            (one.workload, one.phase, one.tier, one.knobs.get("device")) and compare.is_quality_run(r) == compare.is_quality_run(one)]
    return statistics.median(took) if took else 0.0


def _groups(plan: Plan, waiting: list[int], twins: Container, number: int) -> list[list[int]]:
    """Which cases are launched side by side and measured in turns: those that leave the machine alone while they wait. Loader workers are
    stopped with their case; a case with processes of its own or a GPU cannot be; many requests at once fill one long window; a training
    or a pass over the test images is no speed figure."""
    def waits_quietly(one: Case) -> bool:
        knobs = one.knobs
        return (one.phase in ("train", "infer") and knobs["device"] == "cpu" and not compare.is_quality_run(one)
                and knobs.get("hint") != "throughput" and knobs.get("parallel", "none") == "none"
                and distributed.place().size == knobs.get("ranks", 1) == knobs.get("replicas", 1) == 1)

    beside = [i for i in waiting if waits_quietly(plan.cases[i]) and (plan.keys[i], number) not in twins]
    return [group for group in (beside, *([i] for i in waiting if i not in beside)) if group]


def _measured_again_if_busy(plan: Plan, group: list[int], number: int, order: list[int], known_limits: dict, store: Path,
                            found: dict[str, list[Record]]) -> list[Record]:
    """The group's records of this round. Where something else kept the machine busy the round is set aside and measured once more, all
    cases together: pairs are made inside one attempt, so where the second one lacks a case that the first one has, the first one stands."""
    made = launch_together(plan, group, number, order, known_limits)
    # Nothing else becomes wrong by waiting; over a thin link, the link sets the pace.
    timed = made[0].case["tier"] != "smoke" and not compare.is_quality_run(made[0]) and made[0].case["phase"] != "transfer"
    if not timed or 2 * sum(r.status == "ok" and r.protocol["busy"] for r in made) < len(made):
        return made
    print("  the machine was busy with something else: this round is measured once more")
    again = launch_together(plan, group, number, order, known_limits)
    lost = any(first.status == "ok" and second.status != "ok" for first, second in zip(made, again, strict=True))
    kept, aside = (made, again) if lost else (again, made)
    for one in aside:
        one.protocol["set_aside"] = True
        records.append(store, one)
        found[one.case["key"]].append(one)
    return kept


def half_the_batch(cases: Sequence[Case]) -> list[Case]:
    """The comparison with half as many samples on the device at a time, where its tier's batches are made for a large GPU; [] where that
    is no way out.

    A whole training keeps its batch, in twice as many micro-batches. Where the batch is what is compared, running out is the result.
    """
    batches = {c.knobs.get("batch") or 1 for c in cases}
    if cases[0].tier not in ("gpu", "full") or cases[0].phase not in ("train", "infer", "profile") or len(batches) > 1:
        return []
    if any(c.knobs["batch"] < 2 * c.knobs.get("accum_steps", 1) for c in cases):
        return []
    less = [{"accum_steps": 2 * c.knobs["accum_steps"]} if c.knobs.get("epochs") else {"batch": c.knobs["batch"] // 2} for c in cases]
    return [dataclasses.replace(c, knobs={**c.knobs, **own}) for c, own in zip(cases, less, strict=True)]


def ran_out(found: Iterable[Record]) -> bool:
    """Whether a case's last record says that memory was not enough."""
    return "oom" in {r.case["key"]: r.status for r in found}.values()


def needs_floor(cases: Sequence[Case]) -> bool:
    """Whether the cases make a speed comparison whose verdict needs the noise floor. The smoke tier gives no verdicts."""
    first = cases[0]
    return (len(cases) > 1 and first.phase in ("train", "infer", "data", "pack") and first.tier != "smoke"
            and not compare.is_quality_run(first) and not first.arm)


def _undecided(plan: Plan, found: dict[str, list[Record]], noise: list[Record]) -> set[str]:
    """Keys of the cases of which nothing can be said yet."""
    base = compare.by_round(found[plan.keys[0]])
    aa = compare.noise_logs(noise, plan.cases[0].phase, plan.cases[0].knobs.get("device"))
    logs = {key: compare.log_ratios(base, compare.by_round(found[key])) for key in plan.keys[1:]}
    floors = {key: compare.noise_floor(aa, max(3, len(own))) if len(aa) >= 3 else None for key, own in logs.items()}
    return {key for key, own in logs.items() if not compare.decided(own, floors[key])}


def of_this_machine(known: list[Record]) -> list[Record]:
    """Those of `known` that were measured on this machine by today's protocol."""
    return [r for r in known if r.machine.get("id") == env.machine()["id"] and r.protocol_version == PROTOCOL_VERSION]


def _described(plan: Plan, index: int) -> dict:
    """The record's `case`: which case of the comparison it is, and in what it differs from the baseline."""
    one, base = plan.cases[index], plan.cases[0]
    return {"workload": one.workload, "phase": one.phase, "technique": one.technique, "tier": one.tier, "key": plan.keys[index],
            "group": plan.group, "label": one.label(plan.cases), "order": index, "baseline": plan.keys[0], "arm": one.arm,
            "differs_in": [name for name in one.knobs if one.knobs[name] != base.knobs[name]]}


def launch_together(plan: Plan, group: list[int], number: int, order: list[int], known_limits: dict) -> list[Record]:
    """Measure the cases of the group side by side in one round, and make their records."""
    folder = env.run_dir(plan.run_id)
    left, expected = seconds_left(), 0.0
    made: dict[int, Record] = {}
    asked: dict[int, tuple[dict, Path, float]] = {}
    shared: dict[int, dict] = {}
    for index in group:
        case, key, described = plan.cases[index], plan.keys[index], _described(plan, index)
        protocol = {**case.protocol, "round": number, "order": order.index(index), "isolation": "fresh process",
                    "timer": ("perf_counter" if case.knobs.get("device") != "cuda" else
                              "cuda events" if case.phase == "train" else "perf_counter between synchronizations"),
                    "seed": case.knobs.get("seed", 0) + number, "compile_limit_s": COMPILE_LIMIT_S[case.tier]}
        shared[index] = {"run_id": plan.run_id, "case": described, "knobs": case.knobs, "notebook": session().notebook,
                         "machine": env.machine(), "versions": env.versions(), "git": env.git()}
        path, digest = plan.weights[index]
        without = plan.unprepared.get(index)
        if not without:
            expected += plan.seconds.get(key) or max(plan.seconds.values(), default=plan.typical_s)
            if left is not None and left < max(expected, 1.0):
                without = "skipped", f"{OUT_OF_TIME}: no time was left"
        if without:
            made[index] = Record(status=without[0], reason=without[1], protocol={**protocol, "busy": False}, **shared[index])
            continue
        # A whole training takes as long as its epochs; only the budget ends it.
        timeout_s = TIMEOUT_S["full" if case.knobs.get("epochs") else case.tier]
        job = {"case": described, "knobs": case.knobs, "protocol": protocol, "run_dir": str(folder), "weights": path,
               "weights_sha256": digest, "code": plan.code, "notebook": session().notebook}
        log = folder / "logs" / f"{Path(case.workload).stem}-{case.phase}-{key}-r{number}.log"
        asked[index] = (job, log, timeout_s)
    answers = launch.side_by_side(list(asked.values()), left_s=left)
    for (index, (job, log, _)), fields in zip(asked.items(), answers, strict=True):
        plan.seconds[plan.keys[index]] = job["protocol"]["took_s"] = fields.pop("own_s")
        if fields["status"] == "timeout" and left is not None and seconds_left() <= 0:
            fields |= {"status": "skipped", "reason": f"{OUT_OF_TIME}: stopped when the time was up"}
        made[index] = _record(fields, shared[index], job["protocol"], log.relative_to(folder), known_limits, plan.weights[index][1])
    return [made[index] for index in group]


def _short_of_time() -> bool:
    """Whether rounds beyond the least should leave the time to what the notebook still has to measure."""
    left = seconds_left()
    return left is not None and left < time.time() - session().started


def seconds_left() -> float | None:
    """Until the deadline of the run or notebook, as the runner has set it; None without one."""
    deadline = os.environ.get("HPML_DEADLINE")
    return float(deadline) - time.time() if deadline else None


def _record(fields: dict, shared: dict, protocol: dict, log: Path, known_limits: dict, weights_sha256: str | None) -> Record:
    """The child's answer as a record: with its statistics and its distance from the machine's limit."""
    center, work = fields.pop("center", "median"), fields.pop("work", None)
    disturbed = fields.pop("disturbance", {"busy": False})
    spawn_s, beside = fields.pop("spawn_s", None), fields.pop("beside", 1)
    taken = fields.get("samples")
    protocol = {**protocol, **disturbed, "beside": beside}
    try:
        made = Record(**shared, **fields, log=str(log), protocol=protocol)
    except HpmlError as error:  # the other cases of the round are not lost with it
        made = Record(**shared, status="failed", reason=f"its figures are none: {error}", log=str(log), protocol=protocol)
    made.cold = {**made.cold, "spawn_s": spawn_s}
    if weights_sha256:
        made.actual = {**made.actual, "weights_sha256": weights_sha256}
    if made.status == "ok" and taken:
        made.stats = records.stats(taken["values"], items=taken["items"], center=center, wait=(taken.get("phases") or {}).get("wait"))
        for name in ("with_copies", "with_preprocessing"):
            if taken.get(name):
                made.stats[name] = records.stats(taken[name], items=taken["items"], center=center)
    if made.stats and work:
        made.limit = {**work, **roofline.distance(made, work, known_limits)}
    return made


def _say(record: Record, number: int, rounds: int) -> None:
    """One plain line for a finished case."""
    if record.status != "ok":
        text = f"{record.status}: {record.reason}"
    elif record.case["phase"] == "limit":
        text = f"{record.actual['value']:.3g} {record.actual['unit']}"
    elif record.case["phase"] == "serve":
        rate = record.stats["per_s"] if record.stats else record.actual["serving"]["per_s"]
        way = "the engine alone" if record.knobs["scenario"] == "bound" else record.knobs["transport"]
        text = f"{record.knobs['scenario']}, {way}: {rate:.4g} queries/s"
    elif record.quality:
        text = f"{record.quality['metric']} {record.quality['value']:.3f} (n={record.quality['n']})"
    elif record.case["phase"] == "transfer":
        text = f"{record.io['mbit_s']:.1f} Mbit/s, {100 * record.io['link_share']:.0f} % of the link"
    elif record.stats:
        text = f"{record.stats['per_s']:.4g} samples/s"
    elif record.case["phase"] == "build":
        text = f"built in {record.cold['build_s']:.1f} s, {record.cold['bytes'] / 2**20:.1f} MiB"
    elif record.case["phase"] == "quantize":
        text = (f"{record.cold['quantize_s']:.1f} s, {record.cold['bytes'] / 2**20:.1f} MiB of {record.cold['fp32_bytes'] / 2**20:.1f}, "
                f"{record.actual['int8_ops']} of {record.actual['heavy_ops_total']} heavy operators")
    elif record.case["phase"] == "infer":  # a quality pass of random weights
        text = "ran; quality is not informative with random weights"
    else:
        text = f"export {record.cold['export_s']:.1f} s, {record.cold['bytes'] / 2**20:.1f} MiB"
    label = record.case["label"] if record.case["label"] != "as it is" else f"{Path(record.case['workload']).stem} {record.case['phase']}"
    print(f"  round {number + 1} of {max(rounds, number + 1)}  {label:<40} {text}")
