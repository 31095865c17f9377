"""The study: cases, sweeps, interleaved rounds and their results. This is what notebooks call."""

import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpml import compare, env, launch, limits, records, workloads
from hpml.env import HpmlError
from hpml.knobs import validate
from hpml.records import PROTOCOL_VERSION, Record

TIERS = ("smoke", "cpu", "gpu", "full")
TIMEOUT_S = {"smoke": 120, "cpu": 600, "gpu": 600, "full": 7 * 86_400}
# Sources whose change makes an old figure another figure. How results are shown is not among them.
MEASURING = ("measure.py", "train.py", "infer.py", "loading.py", "launch.py", "export.py", "limits.py", "data/*.py", "engines/*.py")


@dataclass
class Session:
    """What the cases of one notebook share; set by `use`."""

    run_id: str = "lab"
    notebook: str | None = None
    tier: str = "smoke"
    data: str = "auto"
    device: str = "cpu"


_session = Session()


def use(*, notebook: str | None = None, tier: str = "smoke", workloads: Sequence[str] = (), data: str = "auto", device: str | None = None,
        run_id: str | None = None) -> Session:
    """Check a notebook's parameters and make them the defaults of what follows; `device` None = a GPU where there is one.

    Raises HpmlError for an unknown tier, workload, device or run id.
    """
    global _session
    check_tier(tier)
    for name in workloads:
        get_workload(name)
    if device not in (None, "cpu", "cuda"):
        raise HpmlError(f"device {device!r}: choose cpu or cuda")
    if device == "cuda" and env.no_gpu():
        raise HpmlError(f"device 'cuda': {env.no_gpu()}")
    run_id = run_id or os.environ.get("HPML_RUN_ID") or "lab"
    env.run_dir(run_id)
    _session = Session(run_id=run_id, notebook=notebook, tier=tier, data=data,
                       device=device or ("cuda" if tier in ("gpu", "full") and not env.no_gpu() else "cpu"))
    return _session


def check_tier(tier: str) -> None:
    if tier not in TIERS:
        raise HpmlError(f"unknown tier {tier!r}: choose from {', '.join(TIERS)}")


def get_workload(name: str):
    """The workload's module (see hpml/workloads). Raises HpmlError for an unknown one."""
    return workloads.get(name)


@dataclass(frozen=True)
class Case:
    """A workload with every knob fixed: the thing that is measured."""

    workload: str
    phase: str
    tier: str
    knobs: dict
    protocol: dict
    technique: str
    arm: str = ""  # tells the two sides of an A/A comparison apart

    def sweep(self, **values: Sequence) -> list["Case"]:
        """One case for each combination of the given values; the first is the baseline."""
        for name, options in values.items():
            if isinstance(options, str) or not isinstance(options, Sequence) or not options:
                raise HpmlError(f"sweep: {name} needs a list of values, not {options!r}")
        combinations = itertools.product(*values.values())
        return [self.but(**dict(zip(values, combination, strict=True))) for combination in combinations]

    def but(self, **knobs) -> "Case":
        """This case with some knobs set otherwise; several of them make a stack."""
        technique = "+".join(knobs) or self.technique
        return dataclasses.replace(self, knobs=validate(self.phase, {**self.knobs, **knobs}), technique=technique)

    def label(self, others: Sequence["Case"]) -> str:
        """The knobs in which the cases of a comparison differ, with this case's values."""
        varying = [name for name in self.knobs if any(case.knobs[name] != self.knobs[name] for case in others)]
        return ", ".join(f"{name}={self.knobs[name]}" for name in varying) or (self.arm or "as it is")


def case(workload: str, *, phase: str = "train", tier: str | None = None, fit: bool = False, **knobs) -> Case:
    """A case of `workload` with the sizes of the tier; further knobs by name. `fit=True`: train for real by the tier's stop rule.

    Raises HpmlError for an unknown workload, phase, tier or knob, or a value out of range.
    """
    tier = tier or _session.tier
    check_tier(tier)
    if workload == "machine":
        return Case(workload, phase, tier, validate(phase, knobs), {}, "limit")
    if workload.endswith(".py"):
        workload = str(Path(workload).expanduser().resolve())  # children may have another working folder
    sizes = get_workload(workload).SIZES[tier]
    # A reader may set a size; what the tier sets is only its default.
    defaults = {"data": _session.data, "device": _session.device, **sizes["fit" if fit else "infer" if phase == "export" else phase]}
    allowed = validate(phase, {})
    chosen = {name: value for name, value in defaults.items() if name in allowed}
    return Case(workload, phase, tier, validate(phase, {**chosen, **knobs}), dict(sizes["protocol"]), "as it is")


def run(cases: Sequence[Case] | Case, *, fresh: bool = False, rounds: int | None = None, run_id: str | None = None) -> "Results":
    """Measure the cases in interleaved rounds, each in a fresh process, and return their results.

    A case that was measured before in this run under the same protocol, code, data and machine is loaded, and said; `fresh=True`
    measures again. Without `rounds`, the tier's number of rounds is taken and, while a verdict is undecided, up to 6. The first case
    is the baseline of the others. Interrupting keeps what is finished. Raises HpmlError for an empty list or unlike workloads.
    """
    cases = [cases] if isinstance(cases, Case) else list(cases)
    if not cases:
        raise HpmlError("nothing to run: the list of cases is empty")
    if len({(c.workload, c.phase, c.tier) for c in cases}) > 1:
        raise HpmlError("one comparison has one workload, one phase and one tier")
    if len({(json.dumps(c.knobs, sort_keys=True), c.arm) for c in cases}) < len(cases):
        raise HpmlError("two cases of one comparison are the same: a case can be compared with itself only by hpml.noise_floor")
    run_id = run_id or _session.run_id
    folder = env.run_dir(run_id)
    store = folder / "records.jsonl"
    rounds = rounds or int(os.environ.get("HPML_ROUNDS") or 0) or None
    known = records.read(store)
    if needs_floor(cases) and not compare.noise_logs(_of_this_machine(known), cases[0].phase):
        print("no noise floor is recorded for this machine and run: measuring one first (the same case against itself)")
        noise_floor(cases[0].workload, phase=cases[0].phase, tier=cases[0].tier, run_id=run_id)
        known = records.read(store)
    plan = _plan(cases, run_id, fresh)
    done = {(r.case["key"], r.protocol.get("round")): r for r in known if r.case["group"] == plan.group and not _try_again(r)}
    if done:
        print(f"{len(done)} record{'s' * (len(done) > 1)} of this comparison loaded; fresh=True measures again")
    _rounds(plan, rounds, done, store, _limits(known), [r for r in known if r.case["technique"] == compare.NOISE])
    return Results([r for r in records.read(store) if r.case["group"] == plan.group], records.read(store))


@dataclass
class _Plan:
    cases: list[Case]
    keys: list[str]
    group: str
    run_id: str
    weights: list[tuple[str | None, str | None]]
    seconds: dict[str, float] = field(default_factory=dict)


def _plan(cases: list[Case], run_id: str, fresh: bool) -> _Plan:
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
        files.append(Path(get_workload(workload).__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _data_identity(case: Case) -> str | None:
    from hpml import data

    return data.identity(case.knobs["data"]) if "data" in case.knobs else None


def _weights(case: Case, run_id: str) -> tuple[str | None, str | None]:
    """(path, sha256) of the weights that a case starts from; trained ones are made first where the run has none."""
    asked = case.knobs.get("weights", "random")
    if asked == "random":
        return None, None
    path = trained(case.workload, tier=case.tier, data=case.knobs["data"], run_id=run_id) if asked == "trained" else Path(asked)
    if not path.is_file():
        raise HpmlError(f"weights={asked!r}: no such file; give random, trained or a .safetensors file")
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


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


def _limits(known: list[Record]) -> dict:
    """Best measured rate by (kind, dtype) among the run's limit records of this machine."""
    best: dict[tuple[str, str | None], float] = {}
    for record in _of_this_machine(known):
        if record.case["phase"] == "limit" and record.status == "ok":
            name = (record.knobs["kind"], record.knobs["dtype"] if record.knobs["dtype"] != "any" else None)
            best[name] = max(best.get(name, 0.0), record.actual["value"])
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
        if number >= least and _all_decided(plan, found, noise, lost):
            break
        order = list(range(len(plan.cases)))
        random.Random(f"{plan.group}{number}").shuffle(order)
        for index in order:
            key = plan.keys[index]
            if (key, number) in done or key in lost:
                continue
            record = _one(plan, index, number, order, known_limits)
            records.append(store, record)
            if record.status == "ok" and record.protocol["busy"] and record.case["tier"] != "smoke":
                print("  the machine was busy with something else: this round is measured once more")
                again = _one(plan, index, number, order, known_limits)
                records.append(store, again)
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
                else "cuda events", "isolation": "fresh process", "seed": one.knobs.get("seed", 0) + number}
    described = {
        "workload": one.workload, "phase": one.phase, "technique": one.technique, "tier": one.tier, "key": key, "group": plan.group,
        "label": one.label(plan.cases), "order": index, "baseline": plan.keys[0], "arm": one.arm,
        "differs_in": [name for name in one.knobs if one.knobs[name] != base.knobs[name]]}
    log = folder / "logs" / f"{Path(one.workload).stem}-{one.phase}-{key}-r{number}.log"
    shared = {"run_id": plan.run_id, "case": described, "knobs": one.knobs, "notebook": _session.notebook, "machine": env.machine(),
              "versions": env.versions(), "git": env.git()}
    left = _seconds_left()
    expected = plan.seconds.get(key) or max(plan.seconds.values(), default=0.0)
    if left is not None and left < max(expected, 1.0):
        return Record(status="skipped", reason="budget: no time was left", protocol={**protocol, "busy": False}, **shared)
    timeout_s = TIMEOUT_S[one.tier]
    path, digest = plan.weights[index]
    job = {"case": described, "knobs": one.knobs, "protocol": protocol, "run_dir": str(folder), "weights": path, "weights_sha256": digest}
    started = time.perf_counter()
    fields = launch.run(job, log=log, timeout_s=timeout_s if left is None else min(timeout_s, left))
    plan.seconds[key] = time.perf_counter() - started
    if fields["status"] == "timeout" and left is not None and left < timeout_s:
        fields |= {"status": "skipped", "reason": "budget: stopped when the time was up"}
    return _record(fields, shared, protocol, log.relative_to(folder), known_limits, digest)


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
        made.stats = records.stats(taken["values"], items=taken["items"], center=center)
        for name in ("with_copies", "with_preprocessing"):
            if taken.get(name):
                made.stats[name] = records.stats(taken[name], items=taken["items"], center=center)
    if made.stats and work:
        bound = limits.floor(flops=work["flops"], nbytes=work["bytes"], dtype=work["dtype"], limits=known_limits)
        made.limit = {"flops": work["flops"], "bytes": work["bytes"], "bound": bound and bound["bound"],
                      "percent": 100 * bound["floor_s"] / made.stats[center] if bound else None}
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
    else:
        text = f"export {record.cold['export_s']:.1f} s, {record.cold['bytes'] / 2**20:.1f} MiB"
    print(f"  round {number + 1} of {max(rounds, number + 1)}  {record.case['label']:<40} {text}")


def noise_floor(workload: str, *, phase: str = "train", tier: str | None = None, rounds: int | None = None, run_id: str | None = None,
                **knobs) -> "Results":
    """The same case against itself, as two arms of a comparison: what differs between them is noise."""
    base = case(workload, phase=phase, tier=tier, **knobs)
    arms = [dataclasses.replace(base, arm=arm, technique=compare.NOISE) for arm in ("A", "A again")]
    return run(arms, rounds=rounds or (compare.MAX_ROUNDS if base.tier != "smoke" else compare.MIN_ROUNDS), run_id=run_id)


def measure_limits(*, tier: str | None = None, device: str | None = None) -> "Results":
    """The machine's measured limits: peak FLOP/s by data type, memory and copy bandwidth, JPEG decodes/s. One round each."""
    tier = tier or _session.tier
    device = device or _session.device
    seconds = {"smoke": 0.05, "cpu": 1.0, "gpu": 1.0, "full": 3.0}[tier]
    cases = [dataclasses.replace(case("machine", phase="limit", tier=tier, device=device, **{**spec, "dtype": spec["dtype"] or "any",
             "engine": spec["engine"] or "torch"}), protocol={"min_seconds": seconds, "rounds": 1}) for spec in limits.plan(device)]
    return run(cases, rounds=1)


def trained(workload: str, *, tier: str | None = None, data: str | None = None, run_id: str | None = None) -> Path:
    """The run's trained weights of a workload: those that its training notebook left, else trained now by the same stop rule."""
    tier, data, run_id = tier or _session.tier, data or _session.data, run_id or _session.run_id
    path = env.run_dir(run_id) / "models" / f"{Path(workload).stem}.safetensors"
    if not path.exists():
        print(f"no trained {workload} in this run yet: training it first")
        keep(run(case(workload, phase="train", tier=tier, fit=True, data=data), rounds=1, run_id=run_id))
    return path


def keep(results: "Results", **knobs) -> Path:
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


class Results:
    """Records of one comparison (or of a whole run) with their rows, charts and sentences."""

    def __init__(self, own: list[Record], context: list[Record] | None = None) -> None:
        self.records = own
        self._context = own if context is None else context  # where quality runs and the noise floor are looked up

    def rows(self) -> list[compare.Row]:
        """Each case beside its baseline; machines apart."""
        found = []
        for machine in dict.fromkeys(r.machine.get("id") for r in self.records):
            around = [r for r in self._context if r.machine.get("id") == machine]
            groups = {r.case["group"] for r in self.records if r.machine.get("id") == machine}
            found += [row for row in compare.rows(around) if row.group in groups]
        return found

    def frame(self):
        """pandas: one row per case and round."""
        import pandas as pd

        flat = []
        for r in self.records:
            stats, quality = r.stats or {}, r.quality or {}
            flat.append({
                "workload": r.case["workload"], "phase": r.case["phase"], "case": r.case["label"], "round": r.protocol.get("round"),
                "status": r.status, "reason": r.reason, "samples_per_s": stats.get("per_s"), "median_s": stats.get("median"),
                "p99_s": stats.get("p99"), "n": stats.get("n"), "first_call_s": r.cold.get("first_call_s"),
                "load_s": r.cold.get("load_s"), "peak_rss_mib": r.memory.get("peak_rss_mib"), "wait_share": r.io.get("wait_share"),
                "quality": quality.get("value"), "limit_percent": (r.limit or {}).get("percent"), "busy": r.protocol.get("busy"),
                **r.knobs})
        return pd.DataFrame(flat)

    def plot(self, *, guess: float | None = None, **options):
        """The comparison as a chart: ratios with intervals, the noise band, the reader's guess as a diamond. Returns Axes."""
        from hpml import plot

        return plot.comparison(self.rows(), guess=guess, **options)

    def why(self, **knobs) -> str:
        """The verdict on the case with these knobs as one sentence. Raises HpmlError when no case has them."""
        from hpml import tables

        fitting = [row for row in self.rows() if all(row.knobs.get(name) == value for name, value in knobs.items())]
        if not fitting:
            raise HpmlError(f"no case with {', '.join(f'{k}={v}' for k, v in knobs.items())} in these results")
        return tables.sentence(fitting[0])

    def __repr__(self) -> str:
        from hpml import tables

        return tables.text(self.rows()) if self.rows() else f"{len(self.records)} records"


def load(name: str, *, workload: str | None = None, notebook: str | None = None, machine: str | None = None) -> Results:
    """Results of a run by its id, or of the committed reference machines ("reference"), as they were recorded.

    Only those of one workload, notebook or machine where these are given. Raises HpmlError for a run without records; the reference
    may be empty.
    """
    if name == "reference":
        paths = sorted(env.reference_dir().glob("*/records.jsonl"))
    else:
        paths = [env.run_dir(name) / "records.jsonl"]
    found = [r for path in paths for r in records.read(path)]
    if not found and name != "reference":
        raise HpmlError(f"no records in run {name!r} ({paths[0]}): run the study first (hpml run --run-id {name})")
    own = [r for r in found if workload in (None, r.case["workload"]) and notebook in (None, r.notebook)
           and machine in (None, r.machine.get("id"))]
    return Results(own, found)


def show(function) -> None:
    """Print the library's own source of a function without its docstring, so that no notebook holds a second copy of it."""
    lines, _ = inspect.getsourcelines(function)
    source = inspect.cleandoc("\n" + "".join(lines)) if lines[0].startswith(" ") else "".join(lines)
    doc = inspect.getdoc(function)
    if doc:
        start = source.index('"""')
        end = source.index('"""', start + 3) + 3
        source = source[:start].rstrip(" ") + source[end:].lstrip("\n")
    print(f"# {Path(inspect.getsourcefile(function)).name}\n{source.rstrip()}")
