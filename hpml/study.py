"""The study: cases measured in interleaved rounds inside a budget, with everything that was measured before loaded."""

import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpml import compare, distributed, engines, env, launch, limits, pretrained, records, stored, workloads
from hpml.cases import Case, case, session
from hpml.env import BudgetSpent, HpmlError, Unavailable
from hpml.knobs import KNOBS, defaults
from hpml.records import PROTOCOL_VERSION, Record
from hpml.results import Results

TIMEOUT_S = {"smoke": 120, "cpu": 600, "gpu": 600, "full": 7 * 86_400}
OUT_OF_TIME = "budget"  # how the reason of a record begins that the run's time did not reach
COMPILE_LIMIT_S = {"smoke": 60, "cpu": 60, "gpu": 600, "full": 3600}  # a longer compilation is given up, and the record says so
# Sources whose change makes an old figure another figure. How results are shown is not among them.
MEASURING = ("measure.py", "train.py", "distributed.py", "fit.py", "infer.py", "quantize.py", "loading.py", "profiling.py", "launch.py",
             "export.py", "limits.py", "stored.py", "build.py", "data/*.py", "engines/*.py", "workloads/_*.py")


def run(cases: Sequence[Case] | Case, *, fresh: bool = False, rounds: int | None = None, run_id: str | None = None) -> Results:
    """Measure the cases in interleaved rounds, each in a fresh process, and return their results.

    A case that was measured before in this run under the same protocol, code, data and machine is loaded, and said; `fresh=True`
    measures again. Without `rounds`, the tier's number of rounds is taken and, while a verdict is undecided, up to 6. The first case
    is the baseline of the others. Interrupting keeps what is finished. Raises HpmlError for an empty list or unlike workloads,
    and BudgetSpent where a case has no figure because the run's time was up: nothing could be said of it.
    """
    cases = [cases] if isinstance(cases, Case) else list(cases)
    if not cases:
        raise HpmlError("nothing to run: the list of cases is empty")
    if len({(c.workload, c.phase, c.tier) for c in cases}) > 1:
        raise HpmlError("one comparison has one workload, one phase and one tier")
    if len({(json.dumps(c.knobs, sort_keys=True), c.arm) for c in cases}) < len(cases):
        raise HpmlError("two cases of one comparison are the same: a case can be compared with itself only by hpml.noise_floor")
    run_id = run_id or session().run_id
    folder = env.run_dir(run_id)
    rank = distributed.place().index  # under torchrun each rank comes here; the first one's record is the run's
    store = folder / (f"records-rank{rank}.jsonl" if rank else "records.jsonl")
    rounds = rounds or int(os.environ.get("HPML_ROUNDS") or 0) or None
    known = records.read(store)
    if needs_floor(cases) and not compare.noise_logs(_of_this_machine(known), cases[0].phase):
        print("no noise floor is recorded for this machine and run: measuring one first (the same case against itself)")
        noise_floor(cases[0].workload, phase=cases[0].phase, tier=cases[0].tier, run_id=run_id)
        known = records.read(store)
    plan = _plan(cases, run_id, fresh)
    _build_missing(plan)
    done = {(r.case["key"], r.protocol.get("round")): r for r in known if r.case["group"] == plan.group and not _try_again(r)}
    if done:
        print(f"{len(done)} record{'s' * (len(done) > 1)} of this comparison loaded; fresh=True measures again")
    _rounds(plan, rounds, done, store, _limits(known), [r for r in known if r.case["technique"] == compare.NOISE])
    known = records.read(store)
    own = [r for r in known if r.case["group"] == plan.group]
    cut = [r for r in own if r.status == "skipped" and r.reason.startswith(OUT_OF_TIME) and r.case["key"] not in _measured_keys(own)]
    if cut:
        missing = len({r.case["key"] for r in cut})
        raise BudgetSpent(f"{cut[0].reason}; {missing} of {len(cases)} cases have no figure yet, --resume goes on from here")
    return Results(own, known)


def _measured_keys(found: list[Record]) -> set[str]:
    return {r.case["key"] for r in found if r.status == "ok"}


@dataclass
class _Plan:
    cases: list[Case]
    keys: list[str]
    group: str
    run_id: str
    weights: list[tuple[str | None, str | None]]
    seconds: dict[str, float] = field(default_factory=dict)
    unbuilt: dict[int, tuple[str, str]] = field(default_factory=dict)  # status and reason of the build that a stored engine lacks


def _plan(cases: list[Case], run_id: str, fresh: bool) -> _Plan:
    cases = [_with_weights_that_fit(c) for c in cases]
    weights = [_weights(c, run_id) for c in cases]
    keys = [_key(c, w[1]) for c, w in zip(cases, weights, strict=True)]
    # Comparisons are paired by rounds measured together, so the same case in another sweep is measured again.
    group = hashlib.sha256("".join([*keys, str(time.time_ns()) if fresh else ""]).encode()).hexdigest()[:16]
    return _Plan(cases, keys, group, run_id, weights)


def _key(case: Case, weights_sha256: str | None) -> str:
    """Identity of a figure: case, machine, protocol, code, data and weights."""
    facts = [case.workload, case.phase, case.tier, case.knobs, case.protocol, case.arm, env.machine()["id"], env.versions(),
             PROTOCOL_VERSION, _code(case.workload), _data_identity(case), weights_sha256]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.cache
def _code(workload: str) -> str:
    package = Path(__file__).parent
    files = [path for pattern in MEASURING for path in sorted(package.glob(pattern))]
    if workload != "machine":
        files.append(Path(workloads.get(workload).__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _data_identity(case: Case) -> str | None:
    return workloads.data_identity(workloads.get(case.workload), case.knobs) if "data" in case.knobs else None


def _with_weights_that_fit(case: Case) -> Case:
    """Trained weights exist of the variant that the tier's fit trains. A speed figure of another variant has random ones, and says so."""
    if case.knobs.get("weights") != "trained" or "variant" not in case.knobs:
        return case
    fitted = workloads.get(case.workload).SIZES[case.tier]["fit"].get("variant", KNOBS["variant"].default)
    return case if case.knobs["variant"] == fitted else dataclasses.replace(case, knobs={**case.knobs, "weights": "random"})


def _weights(case: Case, run_id: str) -> tuple[str | None, str | None]:
    """(path, sha256) of the weights that a case starts from; trained ones are made first where the run has none."""
    asked = case.knobs.get("weights", "random")
    if asked == "random":
        return None, None
    if asked == "trained":
        path = trained(case.workload, tier=case.tier, data=case.knobs["data"], run_id=run_id)
    else:
        path = pretrained.find(workloads.get(case.workload)) if asked == "pretrained" else Path(asked)
    if not path.is_file():
        raise HpmlError(f"weights={asked!r}: no such file; give random, trained, pretrained or a .safetensors file")
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


def _build_missing(plan: _Plan) -> None:
    """Build what the cases load stored and the run has not, or has damaged."""
    for index, one in enumerate(plan.cases):
        if not one.knobs.get("stored"):
            continue
        job = {"case": {"workload": one.workload}, "knobs": one.knobs, "run_dir": str(env.run_dir(plan.run_id)),
               "weights_sha256": plan.weights[index][1]}
        try:
            stored.find(job, workloads.get(one.workload))
        except Unavailable:
            continue  # the case says so itself
        except HpmlError as error:
            print(f"{error}: building it first")
            same = {name: one.knobs[name] for name in defaults("build") if name in one.knobs}
            made = run(case(one.workload, phase="build", tier=one.tier, **same), rounds=1, run_id=plan.run_id, fresh=True).records[-1]
            if made.status != "ok":
                plan.unbuilt[index] = (made.status, made.reason)


def needs_floor(cases: Sequence[Case]) -> bool:
    """Whether the cases make a speed comparison whose verdict needs the noise floor. The smoke tier gives no verdicts."""
    first = cases[0]
    quality = first.knobs.get("epochs") or first.knobs.get("measure") == "quality"
    return len(cases) > 1 and first.phase in ("train", "infer", "data") and first.tier != "smoke" and not quality and not first.arm


def _of_this_machine(known: list[Record]) -> list[Record]:
    return [r for r in known if r.machine.get("id") == env.machine()["id"] and r.protocol_version == PROTOCOL_VERSION]


def _try_again(record: Record) -> bool:
    """Records that a later run measures again: what the budget or a passing fault left out, and what cannot be here but may be now."""
    return record.status != "ok"


def _limits(known: list[Record]) -> dict[str, dict]:
    """Best measured rate by device and (kind, dtype) among the run's limit records of this machine."""
    best: dict[str, dict[tuple[str, str | None], float]] = {"cpu": {}, "cuda": {}}
    for record in _of_this_machine(known):
        if record.case["phase"] == "limit" and record.status == "ok":
            name = (record.knobs["kind"], record.knobs["dtype"] if record.knobs["dtype"] != "any" else None)
            rates = best[record.knobs["device"]]
            rates[name] = max(rates.get(name, 0.0), record.actual["value"])
    return best


def _rounds(plan: _Plan, asked: int | None, done: dict, store: Path, known_limits: dict, noise: list[Record]) -> None:
    """Breadth first: a round of everything, then the next, until the number is reached or every verdict is decided."""
    protocol = plan.cases[0].protocol
    least = asked or protocol.get("rounds", 1)
    adaptive = asked is None and needs_floor(plan.cases)
    found: dict[str, list[Record]] = {key: [] for key in plan.keys}
    for (key, _), record in done.items():
        found[key].append(record)
    lost: set[str] = set()
    for number in range(max(least, compare.MAX_ROUNDS if adaptive else 0)):
        if number >= least and (_all_decided(plan, found, noise, lost) or _short_of_time()):
            break
        order = list(range(len(plan.cases)))
        random.Random(f"{plan.group}{number}").shuffle(order)
        for index in order:
            key = plan.keys[index]
            if (key, number) in done or key in lost:
                continue
            record = _one(plan, index, number, order, known_limits)
            records.append(store, record)
            timed = record.case["tier"] != "smoke" and not compare.is_quality_run(record)  # nothing else becomes wrong by waiting
            if record.status == "ok" and record.protocol["busy"] and timed:
                print("  the machine was busy with something else: this round is measured once more")
                again = _one(plan, index, number, order, known_limits)
                records.append(store, again)
                found[key].append(record)
                record = again if again.status == "ok" else record
            found[key].append(record)
            _say(record, number, least)
            if record.status != "ok":
                lost.add(key)
        if len(lost) == len(plan.keys):
            break


def _all_decided(plan: _Plan, found: dict[str, list[Record]], noise: list[Record], lost: set[str]) -> bool:
    base = compare.by_round(found[plan.keys[0]])
    logs = [compare.log_ratios(base, compare.by_round(found[key])) for key in plan.keys[1:] if key not in lost]
    aa = compare.noise_logs(noise, plan.cases[0].phase)
    return all(compare.decided(one, compare.noise_floor(aa, max(3, len(one))) if len(aa) >= 3 else None) for one in logs)


def _one(plan: _Plan, index: int, number: int, order: list[int], known_limits: dict) -> Record:
    """Measure one case in one round and make its record."""
    one, key = plan.cases[index], plan.keys[index]
    folder = env.run_dir(plan.run_id)
    base = plan.cases[0]
    protocol = {**one.protocol, "round": number, "order": order.index(index), "timer": "perf_counter" if one.knobs.get("device") != "cuda"
                else "cuda events", "isolation": "fresh process", "seed": one.knobs.get("seed", 0) + number,
                "compile_limit_s": COMPILE_LIMIT_S[one.tier]}
    described = {
        "workload": one.workload, "phase": one.phase, "technique": one.technique, "tier": one.tier, "key": key, "group": plan.group,
        "label": one.label(plan.cases), "order": index, "baseline": plan.keys[0], "arm": one.arm,
        "differs_in": [name for name in one.knobs if one.knobs[name] != base.knobs[name]]}
    log = folder / "logs" / f"{Path(one.workload).stem}-{one.phase}-{key}-r{number}.log"
    shared = {"run_id": plan.run_id, "case": described, "knobs": one.knobs, "notebook": session().notebook, "machine": env.machine(),
              "versions": env.versions(), "git": env.git()}
    path, digest = plan.weights[index]
    job = {"case": described, "knobs": one.knobs, "protocol": protocol, "run_dir": str(folder), "weights": path, "weights_sha256": digest,
           "code": _code(one.workload)}
    if failed := _without_int8_graph(one, job, plan.run_id):
        return Record(**failed, protocol={**protocol, "busy": False}, **shared)
    left = _seconds_left()
    expected = plan.seconds.get(key) or max(plan.seconds.values(), default=0.0)
    if left is not None and left < max(expected, 1.0):
        return Record(status="skipped", reason=f"{OUT_OF_TIME}: no time was left", protocol={**protocol, "busy": False}, **shared)
    # A whole training takes as long as its epochs; only the budget ends it.
    timeout_s = TIMEOUT_S["full" if one.knobs.get("epochs") else one.tier]
    if index in plan.unbuilt:
        status, reason = plan.unbuilt[index]
        return Record(status=status, reason=f"nothing stored to start: {reason}", protocol={**protocol, "busy": False}, **shared)
    started = time.perf_counter()
    fields = launch.run(job, log=log, timeout_s=timeout_s if left is None else min(timeout_s, left))
    plan.seconds[key] = time.perf_counter() - started
    if fields["status"] == "timeout" and left is not None and left < timeout_s:
        fields |= {"status": "skipped", "reason": f"{OUT_OF_TIME}: stopped when the time was up"}
    return _record(fields, shared, protocol, log.relative_to(folder), known_limits, digest)


def _without_int8_graph(one: Case, job: dict, run_id: str) -> dict | None:
    """Sees to the INT8 graph that a case needs: where the run has none, a case of its own makes it, so that neither its time nor its
    memory counts here. Status and reason where it could not be made."""
    from hpml.infer import int8_note

    if one.knobs.get("precision") != "int8" or one.phase not in ("infer", "build"):
        return None
    kind = engines.get(one.knobs["engine"])
    if kind.WANTS != "onnx" or kind.unavailable(one.knobs["device"]) or int8_note(job).exists():
        return None
    print("  no INT8 graph of these weights in this run yet: quantizing first")
    knobs = {name: one.knobs[name] for name in defaults("quantize") if name in one.knobs}
    making = dataclasses.replace(one, phase="quantize", knobs={**knobs, "device": "cpu"}, technique="as it is", arm="")
    made = run(making, fresh=True, rounds=1, run_id=run_id).records[-1]
    return None if made.status == "ok" else {"status": made.status, "reason": f"no INT8 graph: {made.reason}"}


def _short_of_time() -> bool:
    """Whether rounds beyond the least should leave the time to what the notebook still has to measure."""
    left = _seconds_left()
    return left is not None and left < time.time() - session().started


def _seconds_left() -> float | None:
    deadline = os.environ.get("HPML_DEADLINE")
    return float(deadline) - time.time() if deadline else None


def _record(fields: dict, shared: dict, protocol: dict, log: Path, known_limits: dict, weights_sha256: str | None) -> Record:
    """The child's answer as a record: with its statistics and its distance from the machine's limit."""
    center, work = fields.pop("center", "median"), fields.pop("work", None)
    disturbed = fields.pop("disturbance", {"busy": False})
    spawn_s = fields.pop("spawn_s", None)
    taken = fields.get("samples")
    made = Record(**shared, **fields, log=str(log), protocol={**protocol, **disturbed})
    made.cold = {**made.cold, "spawn_s": spawn_s}
    if weights_sha256:
        made.actual = {**made.actual, "weights_sha256": weights_sha256}
    if made.status == "ok" and taken:
        made.stats = records.stats(taken["values"], items=taken["items"], center=center, wait=(taken.get("phases") or {}).get("wait"))
        for name in ("with_copies", "with_preprocessing"):
            if taken.get(name):
                made.stats[name] = records.stats(taken[name], items=taken["items"], center=center)
    if made.stats and work:
        bound = limits.floor(flops=work["flops"], nbytes=work["bytes"], dtype=work["dtype"], limits=known_limits[made.knobs["device"]])
        made.limit = {"flops": work["flops"], "bytes": work["bytes"], "bound": bound and bound["bound"],
                      "percent": 100 * bound["floor_s"] / made.stats["center_s"] if bound else None}
    return made


def _say(record: Record, number: int, rounds: int) -> None:
    """One plain line for a finished case."""
    if record.status != "ok":
        text = f"{record.status}: {record.reason}"
    elif record.case["phase"] == "limit":
        text = f"{record.actual['value']:.3g} {record.actual['unit']}"
    elif record.quality:
        text = f"{record.quality['metric']} {record.quality['value']:.3f} (n={record.quality['n']})"
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


def noise_floor(workload: str, *, phase: str = "train", tier: str | None = None, rounds: int | None = None, run_id: str | None = None,
                **knobs) -> Results:
    """The same case against itself, as two arms of a comparison: what differs between them is noise."""
    base = case(workload, phase=phase, tier=tier, **knobs)
    arms = [dataclasses.replace(base, arm=arm, technique=compare.NOISE) for arm in ("A", "A again")]
    run_id = run_id or session().run_id
    if base.tier != "smoke" and not compare.noise_logs(_of_this_machine(records.read(env.run_dir(run_id) / "records.jsonl")), phase):
        # The first launch on a machine at rest is slower than all others (caches, clocks): it would count as noise.
        _discarded(base, run_id)
    usual = compare.MAX_ROUNDS if base.tier != "smoke" else compare.MIN_ROUNDS
    return run(arms, rounds=rounds or int(os.environ.get("HPML_ROUNDS") or 0) or usual, run_id=run_id)


def _discarded(one: Case, run_id: str) -> None:
    """Launch a case once without keeping its figure."""
    plan = _plan([one], run_id, fresh=False)
    _one(plan, 0, 0, [0], _limits([]))


def measure_limits(*, tier: str | None = None, device: str | None = None) -> Results:
    """The machine's measured limits: peak FLOP/s by data type, memory and copy bandwidth, JPEG decodes/s. One round each."""
    tier = tier or session().tier
    device = device or session().device
    seconds = {"smoke": 0.05, "cpu": 1.0, "gpu": 1.0, "full": 3.0}[tier]
    cases = [dataclasses.replace(case("machine", phase="limit", tier=tier, device=device, **{**spec, "dtype": spec["dtype"] or "any",
             "engine": spec["engine"] or "torch"}), protocol={"min_seconds": seconds, "rounds": 1}) for spec in limits.plan(device)]
    return run(cases, rounds=1)


def trained(workload: str, *, tier: str | None = None, data: str | None = None, run_id: str | None = None) -> Path:
    """The run's trained weights of a workload: those that its training notebook left, else trained now by the same stop rule."""
    tier, data, run_id = tier or session().tier, data or session().data, run_id or session().run_id
    path = env.run_dir(run_id) / "models" / f"{Path(workload).stem}.safetensors"
    if not path.exists():
        print(f"no trained {workload} in this run yet: training it first")
        keep(run(case(workload, phase="train", tier=tier, fit=True, data=data), rounds=1, run_id=run_id))
    return path


def keep(results: Results, **knobs) -> Path:
    """Make the weights that a fit left (the one with these knobs) the run's trained weights of its workload, with their record."""
    fits = [r for r in results.records if r.status == "ok" and r.actual.get("artefacts")
            and all(r.knobs.get(name) == value for name, value in knobs.items())]
    if not fits:
        reasons = {r.reason for r in results.records if r.reason}
        raise HpmlError(f"no finished training to keep: {'; '.join(sorted(reasons)) or 'nothing was trained'}")
    folder = env.run_dir(fits[0].run_id) / "models"
    path = folder / f"{Path(fits[0].case['workload']).stem}.safetensors"
    shutil.copyfile(folder / fits[0].actual["artefacts"]["weights"], path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    path.with_suffix(".json").write_text(json.dumps(dataclasses.asdict(fits[0])))
    return path
