"""Where a training step spends its time: phases without a profiler, functions by cProfile, operators by torch.profiler."""

import cProfile
import pstats
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from hpml import compare
from hpml import measure as m
from hpml.data.loader import endless, loader
from hpml.records import Record
from hpml.train import PHASES, compiling, phase_seconds, prepare, train_step
from hpml.work import counted_flops, step_work

SHOWN = 15  # lines of a table
TRACED_STEPS = 2  # a trace grows by megabytes a step


def measure(job: dict, workload: ModuleType) -> dict:
    """Some training steps in a fresh process, plain and then under each profiler. Returns the record's fields.

    The plain steps are the sample. `actual` holds "functions" of a step and of its "loading" alone (cProfile), "operators"
    (torch.profiler), "flops" by operator for one sample, "trace" (a Chrome trace in the run's folder) and "overhead" (a profiled step
    over a plain one: its times are no figures).
    """
    from hpml.data import summary

    knobs, protocol = job["knobs"], job["protocol"]
    image_set, dataset, (model, optimizer, scaler, actual), load_s = prepare(job, workload)
    micro = knobs["batch"] // knobs["accum_steps"]
    stream = endless(loader(dataset, knobs, batch=micro, shuffle=True, seed=protocol["seed"], drop_last=True))
    marks = m.Marks(knobs["device"])

    def steps(count: int) -> tuple[list[float], dict[str, list[float]]]:
        phases: dict[str, list[float]] = {name: [] for name in PHASES}
        for _ in range(count):
            train_step(model, stream, knobs, workload=workload, optimizer=optimizer, scaler=scaler, marks=marks)
            marks.end_step()
        for spans in marks.steps(last=True):
            for name, seconds in phase_seconds(spans).items():
                phases[name].append(seconds)
        return [sum(parts) for parts in zip(*phases.values(), strict=True)], phases

    with compiling(knobs, protocol, actual):
        steps(protocol["warmup"])
    disk, mark, count = m.bytes_read(), m.cpu_mark(), protocol["min_iters"]
    plain, phases = steps(count)
    disturbed = m.disturbance(mark)
    read = m.bytes_read() - disk if disk is not None else None
    memory = {"peak_rss_mib": m.peak_rss_mib(), "workers_peak_rss_mib": m.workers_peak_rss_mib(), **m.device_memory()}
    profile, loading = cProfile.Profile(), cProfile.Profile()
    with profile:
        by_cprofile, _ = steps(count)
    with loading:  # alone: in the step's table the arithmetic crowds it out
        for _ in range(count * knobs["accum_steps"]):
            next(stream)
    trace = Path(job["run_dir"]) / "profiles" / f"{job['case']['key']}-r{protocol['round']}.trace.json.gz"
    operators, by_torch = _operators(lambda: steps(TRACED_STEPS)[0], knobs["device"], trace)
    usual, flops = sum(plain) / len(plain), counted_flops(workload, knobs, len(image_set.classes))
    return {
        "samples": {"unit": "s", "items": knobs["batch"], "values": plain, "phases": phases}, "center": "work median + wait mean",
        "cold": {"load_s": load_s}, "memory": memory, "io": {"bytes_read": read, "wait_share": sum(phases["wait"]) / sum(plain)},
        "actual": {**actual, "data": summary(image_set), "functions": _functions(profile, count), "loading": _functions(loading, count),
                   "operators": operators, "flops": flops, "trace": f"profiles/{trace.name}",
                   "overhead": {"cProfile": sum(by_cprofile) / count / usual, "torch.profiler": sum(by_torch) / TRACED_STEPS / usual}},
        "disturbance": disturbed, "work": step_work(sum(flops.values()), knobs, actual),
    }


def _functions(profile: cProfile.Profile, steps: int) -> list[dict]:
    """The functions with the most time of their own, in seconds a step."""
    found = pstats.Stats(profile).stats.items()
    rows = [{"function": _short(file, name), "calls": calls / steps, "own_s": own / steps, "total_s": total / steps}
            for (file, _, name), (_, calls, own, total, _) in found]
    return sorted(rows, key=lambda row: -row["own_s"])[:SHOWN]


def _short(file: str, name: str) -> str:
    """torch/nn/functional.py:conv2d; what is written in C has no file, and the address of an object says nothing."""
    if file == "~":
        return name.strip("<>").removeprefix("built-in method ").split(" at 0x")[0]
    return "/".join(Path(file).parts[-3:]) + f":{name}"


def _operators(run, device: str, trace: Path) -> tuple[list[dict], list[float]]:
    """(operators with the most time of their own, in seconds a step, the seconds of the steps); writes the trace."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with torch_profile(activities=kinds) as profiled:
        values = run()
    trace.parent.mkdir(parents=True, exist_ok=True)
    profiled.export_chrome_trace(str(trace))
    return _hottest(profiled.key_averages(), device), values


def _hottest(averages, device: str) -> list[dict]:
    """The operators by their own time on the device, and by their host time among those without any.

    A GPU's kernels stand beside the operators that started them and are left out: their time is the operator's device time already.
    """
    rows = [{"operator": one.key, "calls": one.count / TRACED_STEPS, "own_s": one.self_cpu_time_total / 1e6 / TRACED_STEPS,
             "own_device_s": one.self_device_time_total / 1e6 / TRACED_STEPS if device == "cuda" else None}
            for one in averages if one.device_type.name == "CPU"]
    return sorted(rows, key=lambda row: (row["own_device_s"] or 0.0, row["own_s"]), reverse=True)[:SHOWN]


def profiles(records: Iterable[Record]) -> list[Record]:
    """The finished profiles among `records`, one for each case and round: of a round that was repeated the undisturbed one."""
    cases: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r.case["order"]):
        if record.case["phase"] == "profile":
            cases.setdefault(record.case["key"], []).append(record)
    return [calm for found in cases.values() for calm in compare.calmest(found)]
