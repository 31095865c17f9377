"""The study: cases measured in interleaved rounds inside a budget, with everything that was measured before loaded."""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from hpml import compare, distributed, engines, env, launch, limits, pretrained, records, stored, workloads
from hpml.cases import Case, case, session
from hpml.env import BudgetSpent, HpmlError, Unavailable
from hpml.knobs import KNOBS, defaults
from hpml.records import PROTOCOL_VERSION, Record
from hpml.results import Results
from hpml.rounds import (
    COMPILE_LIMIT_S,
    TIMEOUT_S,
    Plan,
    half_the_batch,
    launch_together,
    measure,
    needs_floor,
    of_this_machine,
    ran_out,
    seconds_left,
)

# Sources whose change makes an old figure another figure. How results are shown is not among them.
MEASURING = ("measure.py", "train.py", "contrast.py", "distributed.py", "fit.py", "checkpoint.py", "infer.py", "quantize.py", "loading.py",
             "pack.py", "profiling.py", "launch.py", "turns.py", "transfer.py", "link.py", "nginx.py", "work.py", "export.py", "limits.py",
             "arithmetic.py", "stored.py", "build.py", "sensitivity.py", "einsum.py", "data/*.py", "engines/*.py", "workloads/_*.py")
SERVING = ("load*.py", "streams.py", "serve/*.py")  # those of a load test beside them


def run(cases: Sequence[Case] | Case, *, fresh: bool = False, rounds: int | None = None, run_id: str | None = None) -> Results:
    """Measure the cases in interleaved rounds, each in a fresh process, and return their results.

    A case that was measured before in this run under the same protocol, code, data and machine is loaded, and said; `fresh=True`
    measures again. Without `rounds`, the tier's number of rounds is taken and, while a verdict is undecided, up to 6. A comparison
    whose batch does not fit a GPU's memory is measured at half of it. The first case is the baseline of the others. Interrupting keeps
    what is finished. Raises HpmlError for an empty list or unlike workloads, and BudgetSpent where a case has no figure because the
    run's time was up: nothing could be said of it.
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
    on = {"device": cases[0].knobs["device"]} if "device" in cases[0].knobs else {}
    if needs_floor(cases) and not compare.noise_logs(of_this_machine(known), cases[0].phase, **on):
        print("no noise floor is recorded for this machine and run: measuring one first (the same case against itself)")
        noise_floor(cases[0].workload, phase=cases[0].phase, tier=cases[0].tier, run_id=run_id, **on)
        known = records.read(store)
    plan = _plan(cases, run_id, fresh)
    done = {(r.case["key"], r.protocol.get("round")): r for r in known if r.case["group"] == plan.group and not _try_again(r)}
    if done:
        print(f"{len(done)} record{'s' * (len(done) > 1)} of this comparison loaded; fresh=True measures again")
    least = rounds or cases[0].protocol.get("rounds", 1)
    _prepare(plan, {key for key in plan.keys if all((key, number) in done for number in range(least))})
    measure(plan, least, done, store, records.read(store), adaptive=not rounds and needs_floor(cases), fresh=fresh)
    known = records.read(store)
    own = [r for r in known if r.case["group"] == plan.group]
    last = {r.case["key"]: r for r in own}  # what a later piece found, also that the case cannot be here, is no longer cut
    cut = [r for key, r in last.items() if records.out_of_time(r.status, r.reason) and key not in _measured_keys(own)]
    if cut:
        missing = len({r.case["key"] for r in cut})
        raise BudgetSpent(f"{cut[0].reason}; {missing} of {len(cases)} cases have no figure yet, --resume goes on from here")
    if (smaller := half_the_batch(cases)) and ran_out(own):
        fewer = "accum_steps" if smaller[0].knobs["batch"] == cases[0].knobs["batch"] else "batch"
        print(f"out of memory at batch {cases[0].knobs['batch']}: the whole comparison is measured with {fewer}={smaller[0].knobs[fewer]}")
        return run(smaller, fresh=fresh, rounds=rounds, run_id=run_id)
    return Results(own, known)


def _measured_keys(found: list[Record]) -> set[str]:
    return {r.case["key"] for r in found if r.status == "ok"}


def _plan(cases: list[Case], run_id: str, fresh: bool) -> Plan:
    cases = [_with_weights_that_fit(c) for c in cases]
    weights = [_weights(c, run_id) for c in cases]
    keys = [_key(c, w[1]) for c, w in zip(cases, weights, strict=True)]
    # Comparisons are paired by rounds measured together, so the same case in another sweep is measured again.
    group = hashlib.sha256("".join([*keys, str(time.time_ns()) if fresh else ""]).encode()).hexdigest()[:16]
    return Plan(cases, keys, group, run_id, _code(cases[0].workload), weights)


def job_of(case: Case, run_id: str) -> dict:
    """What a child is told of a case, for a use that makes no record: serving. Weights as `run` takes them, the tier's first round."""
    path, digest = _weights(case, run_id)
    return {"case": {"workload": case.workload, "phase": case.phase, "tier": case.tier, "key": _key(case, digest)}, "knobs": case.knobs,
            "protocol": {**case.protocol, "round": 0, "compile_limit_s": COMPILE_LIMIT_S[case.tier]}, "run_dir": str(env.run_dir(run_id)),
            "weights": path, "weights_sha256": digest, "code": _code(case.workload)}


def _key(case: Case, weights_sha256: str | None) -> str:
    """Identity of a figure: case, machine, protocol, code, data and weights."""
    facts = [case.workload, case.phase, case.tier, case.knobs, case.protocol, case.arm, env.machine()["id"], env.versions(),
             PROTOCOL_VERSION, _code(case.workload), _data_identity(case), weights_sha256,
             *([hashlib.sha256(_sources(SERVING)).hexdigest()] if case.phase == "serve" else [])]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _code(workload: str) -> str:
    own = b"" if workload == "machine" else Path(workloads.get(workload).__file__).read_bytes()  # now: a reader changes it between cells
    return hashlib.sha256(_sources(MEASURING) + own).hexdigest()[:16]


@functools.cache
def _sources(patterns: tuple[str, ...]) -> bytes:
    package = Path(__file__).parent
    return b"".join(path.read_bytes() for pattern in patterns for path in sorted(package.glob(pattern)))


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


def _prepare(plan: Plan, measured: set[str]) -> None:
    """See to what the cases load that the run has not: the engine that one starts stored, the INT8 graph, what the module itself has to
    say. Each is made by a process of its own, so that neither its time nor its memory counts here; an engine or INT8 graph that cannot be
    made is the reason of the case without a figure."""
    for index, one in enumerate(plan.cases):
        if plan.keys[index] in measured:
            continue
        job = {"case": {"workload": one.workload}, "knobs": one.knobs, "run_dir": str(env.run_dir(plan.run_id)), "code": plan.code,
               "weights": plan.weights[index][0], "weights_sha256": plan.weights[index][1]}
        for why_not in (_without_int8_graph(one, job, plan.run_id), _without_build(one, job, plan.run_id)):
            if why_not:
                plan.unprepared[index] = why_not
                break
        else:
            _with_expected(one, job)


def _with_expected(one: Case, job: dict) -> None:
    """Makes the graph and the outputs that inference cases share where the run has none. What fails here fails, with its reason, there."""
    from hpml.infer import expected_file, typed_file

    if one.phase != "infer" or (kind := engines.get(one.knobs["engine"])).unavailable(one.knobs["device"]):
        return
    if expected_file(job).exists() and (kind.WANTS != "onnx" or typed_file(job).exists()):
        return
    making = {**job, "case": {**job["case"], "phase": "prepare"}, "knobs": {**one.knobs, "replicas": 1, "device": "cpu"},
              "protocol": {"seed": 0}}
    log = Path(job["run_dir"], "logs", f"prepare-{expected_file(job).stem}.log")
    launch.side_by_side([(making, log, TIMEOUT_S[one.tier])], left_s=seconds_left())


def _without_build(one: Case, job: dict, run_id: str) -> tuple[str, str] | None:
    """Builds what a case loads stored and the run has not, or has damaged. Status and reason where it could not be built."""
    if not one.knobs.get("stored"):
        return None
    try:
        stored.find(job, workloads.get(one.workload))
    except Unavailable:
        return None  # the case says so itself
    except HpmlError as error:
        print(f"{error}: building it first")
        same = {name: one.knobs[name] for name in defaults("build") if name in one.knobs}
        made = run(case(one.workload, phase="build", tier=one.tier, **same), rounds=1, run_id=run_id, fresh=True).records[-1]
        if made.status != "ok":
            return made.status, f"nothing stored to start: {made.reason}"
    return None


def _without_int8_graph(one: Case, job: dict, run_id: str) -> tuple[str, str] | None:
    """Makes the INT8 graph that a case needs where the run has none. Status and reason where it could not be made."""
    from hpml.infer import int8_note

    if one.knobs.get("precision") != "int8" or one.phase not in ("infer", "build", "serve"):
        return None
    kind = engines.get(one.knobs["engine"])
    if kind.WANTS != "onnx" or kind.unavailable(one.knobs["device"]) or int8_note(job).exists():
        return None
    print("  no INT8 graph of these weights in this run yet: quantizing first")
    knobs = {name: one.knobs[name] for name in defaults("quantize") if name in one.knobs}
    making = dataclasses.replace(one, phase="quantize", knobs={**knobs, "device": "cpu"}, technique="as it is", arm="")
    made = run(making, fresh=True, rounds=1, run_id=run_id).records[-1]
    return None if made.status == "ok" else (made.status, f"no INT8 graph: {made.reason}")


def _try_again(record: Record) -> bool:
    """Records that a later run measures again: what the budget or a passing fault left out, and what cannot be here but may be now."""
    return record.status != "ok"


def noise_floor(workload: str, *, phase: str = "train", tier: str | None = None, rounds: int | None = None, run_id: str | None = None,
                **knobs) -> Results:
    """The same case against itself, as two arms of a comparison: what differs between them is noise."""
    base = case(workload, phase=phase, tier=tier, **knobs)
    arms = [dataclasses.replace(base, arm=arm, technique=compare.NOISE) for arm in ("A", "A again")]
    run_id = run_id or session().run_id
    if base.tier != "smoke" and not compare.noise_logs(of_this_machine(records.read(env.run_dir(run_id) / "records.jsonl")), phase):
        # The first launch on a machine at rest is slower than all others (caches, clocks): it would count as noise.
        _discarded(base, run_id)
    usual = compare.MAX_ROUNDS if base.tier != "smoke" else compare.MIN_ROUNDS
    return run(arms, rounds=rounds or int(os.environ.get("HPML_ROUNDS") or 0) or usual, run_id=run_id)


def _discarded(one: Case, run_id: str) -> None:
    """Launch a case once without keeping its figure."""
    plan = _plan([one], run_id, fresh=False)
    launch_together(plan, [0], 0, [0], {"cpu": {}, "cuda": {}})


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
    other = _trained_otherwise(path, tier, data)
    if other or not path.exists():
        print(f"the trained {workload} of this run is of {other}: training it again" if other else
              f"no trained {workload} in this run yet: training it first")
        keep(run(case(workload, phase="train", tier=tier, fit=True, data=data), rounds=1, run_id=run_id))
    return path


def _trained_otherwise(path: Path, tier: str, data: str) -> str:
    """The tier and data of weights that were trained at others than these; empty where they fit, or nothing is known of them."""
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        found = record["case"]["tier"], record["knobs"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "" if found == (tier, data) else f"tier {found[0]} and data {found[1]}"


def keep(results: Results, **knobs) -> Path:
    """Make the weights that a fit left (the one with these knobs) the run's trained weights of its workload, with their record."""
    fits = [r for r in results.records if r.status == "ok" and r.actual.get("artefacts")
            and all(r.knobs.get(name) == value for name, value in knobs.items())]
    if not fits:
        reasons = {r.reason for r in results.records if r.reason}
        raise HpmlError(f"no finished training to keep: {'; '.join(sorted(reasons)) or 'nothing was trained'}")
    folder = env.run_dir(fits[0].run_id) / "models"
    path = folder / f"{Path(fits[0].case['workload']).stem}.safetensors"
    # What they are comes first: who finds the weights finds it whole.
    path.with_suffix(".part").write_text(json.dumps(dataclasses.asdict(fits[0])))
    path.with_suffix(".part").replace(path.with_suffix(".json"))
    shutil.copyfile(folder / fits[0].actual["artefacts"]["weights"], path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    return path
