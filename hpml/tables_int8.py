"""INT8 from records: beside its own engine's FP32 and beside the fastest FP32, with its quality; and which models to quantize where."""

from collections.abc import Sequence

from hpml import compare, tables
from hpml.compare import Row
from hpml.records import Record

# What a CPU shows for 8-bit integers, by the flags of its instruction set.
INSTRUCTIONS = {"amx_int8": "AMX", "avx512_vnni": "VNNI", "avx_vnni": "VNNI of AVX2"}


def maker(knobs: dict) -> str:
    """How an INT8 graph was made, in a few words: the quantizer, dynamic or not, how many operators stayed in floating point."""
    more = ["dynamic"] * (knobs.get("quantization") == "dynamic") + [f"{n} in FP32" for n in (knobs.get("keep_fp"),) if n]
    return ", ".join([knobs["quantizer"], *more])


def instructions(machine: dict) -> str:
    """What the machine of a record brings for INT8."""
    return " and ".join(name for flag, name in INSTRUCTIONS.items() if flag in machine.get("isa", ())) or "no instructions for INT8"


def timed(records: Sequence[Record]) -> dict[tuple, Record]:
    """The speed cases in INT8, the last round of each, by (machine, workload, engine, maker)."""
    return {(r.machine["id"], r.case["workload"], r.knobs["engine"], maker(r.knobs)): r
            for r in sorted(records, key=lambda r: r.case["order"]) if _is_speed(r) and r.knobs["precision"] == "int8"}


def _is_speed(r: Record) -> bool:
    return r.case["phase"] == "infer" and bool(r.stats) and not r.case["arm"] and "quantizer" in r.knobs


def inside(records: Sequence[Record]) -> list[dict]:
    """A line for each timed INT8 case: how many heavy operators compute in INT8, the file beside the FP32 one, the seconds to make it."""
    knobs = ("image", "length", "variant", "quantizer", "calib_samples", "calib_method", "quantization", "keep_fp")
    making = {(r.machine["id"], r.case["workload"], *map(r.knobs.get, knobs)): r.cold["quantize_s"]
              for r in records if r.case["phase"] == "quantize" and r.status == "ok"}
    return [{"machine": machine, "workload": tables.title(workload), "engine": engine, "INT8 by": how,
             "INT8 operators": f"{r.actual['int8_ops']} of {r.actual['heavy_ops_total']} heavy",
             "MiB": tables.figure(r.cold["bytes"] / 2**20), "MiB in FP32": tables.figure(r.actual["quantized"]["fp32_bytes"] / 2**20),
             "made in s": tables.figure(making.get((machine, workload, *map(r.knobs.get, knobs))))}
            for (machine, workload, engine, how), r in timed(records).items()]


def left_in_floats(records: Sequence[Record]) -> list[dict]:
    """A line for each operator that stayed in floating point in a graph of trained weights, with the harm that was measured."""
    lines = {}
    for r in records:
        if r.case["phase"] == "quantize" and r.status == "ok" and r.knobs["weights"] != "random":
            lines |= {(r.machine["id"], r.case["workload"], r.knobs["keep_fp"], one["name"]): {
                "machine": r.machine["id"], "workload": tables.title(r.case["workload"]), "kept": r.knobs["keep_fp"],
                "operator": one["name"], "type": one["op"], "answers changed": f"{one['disagreement']:.1%}", "error": f"{one['error']:.2%}"}
                for one in r.actual.get("kept_fp", [])}
    return list(lines.values())


def beside(records: Sequence[Record]) -> list[dict]:
    """A line for each INT8 case: its ratio over the same engine's FP32, which says what INT8 gives, and over the fastest FP32 of the
    comparison, which says whether it is worth having; both paired by rounds. Only comparisons that hold FP32 beside INT8."""
    lines, groups = [], {}
    for r in sorted((r for r in records if _is_speed(r)), key=lambda r: r.case["order"]):
        kind = (r.knobs["engine"], r.knobs["precision"], maker(r.knobs))
        groups.setdefault((r.case["group"], r.case["workload"], r.machine["id"]), {}).setdefault(kind, []).append(r)
    for (_, workload, machine), cases in groups.items():
        rates = {kind: compare.by_round(found) for kind, found in cases.items()}
        plain = {engine: found for (engine, precision, _), found in rates.items() if precision == "fp32"}
        best = max(plain, key=lambda engine: _median(plain[engine].values()), default=None)
        lines += [{"machine": machine, "workload": tables.title(workload), "INT8 in": engine, "INT8 by": how,
                   "over its own FP32": _ratio(plain.get(engine, {}), found), "over the fastest FP32": _ratio(plain.get(best, {}), found),
                   "fastest": best} for (engine, precision, how), found in rates.items() if precision == "int8" and plain]
    return lines


def _median(values) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _ratio(base: dict, other: dict) -> str:
    import math

    logs = compare.log_ratios(base, other)
    if len(logs) < 2:
        return tables.ratio(math.exp(logs[0])) if logs else "not measured"
    middle, low, high = compare.interval(logs)
    return f"{middle:.2f}x [{low:.2f}, {high:.2f}]"


def advice(rows: Sequence[Row], machines: dict[str, dict]) -> list[str]:
    """For each machine and workload one sentence: quantize, do not, or nothing can be said, with the figures that say so.

    "Quantize" asks for both: over the fastest FP32 case beyond the noise floor, and quality kept within the workload's margin. `machines`:
    the records' `machine` by its id.
    """
    lines = []
    for machine, workload in dict.fromkeys((row.machine, row.workload) for row in rows):
        own = [row for row in rows if (row.machine, row.workload) == (machine, workload) and row.per_s]
        done = [row for row in own if row.knobs["precision"] == "int8"]
        fastest = max((row for row in own if row.knobs["precision"] == "fp32"), key=lambda row: row.per_s, default=None)
        where = f"**{tables.title(workload)}** on {machine} ({instructions(machines.get(machine, {}))})"
        if not done or not fastest:
            lines.append(f"{where}: not measured.")
            continue
        best = max(done, key=lambda row: (row.quality == "kept", row.per_s))
        gain = best.per_s / fastest.per_s
        how = (f"INT8 by {maker(best.knobs)} in {best.knobs['engine']}: {gain:.2f}x the fastest FP32, {fastest.knobs['engine']}; "
               f"quality {best.quality_text}")
        slow = gain <= 1 + (best.floor or 0)
        if best.rounds < compare.MIN_ROUNDS or (best.quality not in ("kept", "lost") and not slow):
            say = "nothing can be said yet"
        else:
            say = "do not quantize" if slow or best.quality == "lost" else "quantize"
        lines.append(f"{where}: {say} ({how}).")
    return lines


def markdown(records: Sequence[Record], rows: Sequence[Row], workloads: Sequence[str]) -> str:
    """README's table of INT8 on one machine: what ran in INT8, the two ratios, the quality; then which of `workloads` have no row yet."""
    quality = {(row.workload, row.knobs["engine"], maker(row.knobs)): row.quality_text for row in rows
               if row.phase == "infer" and row.knobs.get("precision") == "int8" and row.per_s}
    last = {(tables.title(workload), engine, how): (workload, r) for (_, workload, engine, how), r in timed(records).items()}
    lines = ["| model | INT8 by | engine | INT8 operators | over its own FP32 | over the fastest FP32 | quality |", "|" + "---|" * 7]
    seen = set()
    for line in beside(records):
        workload, r = last[line["workload"], line["INT8 in"], line["INT8 by"]]
        seen.add(workload)
        inside = f"{r.actual['int8_ops']} of {r.actual['heavy_ops_total']}"
        lines.append(f"| {line['workload']} | {line['INT8 by']} | {line['INT8 in']} | {inside} | {line['over its own FP32']} | "
                     f"{line['over the fastest FP32']} ({line['fastest']}) | "
                     f"{quality.get((workload, line['INT8 in'], line['INT8 by']), 'not measured')} |")
    absent = [tables.title(name) for name in workloads if name not in seen]
    if not seen:
        return "No INT8 case is recorded on this machine yet."
    return "\n".join(lines) + (f"\n\nNot measured in INT8 on this machine yet: {', '.join(absent)}." if absent else "")
