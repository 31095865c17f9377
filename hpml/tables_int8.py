"""INT8 from records: beside its own engine's FP32 and beside the fastest FP32, with its quality; and which models to quantize where."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hpml import compare, tables
from hpml.compare import Row
from hpml.records import Record

# What a CPU shows for 8-bit integers, by the flags of its instruction set.
INSTRUCTIONS = {"amx_int8": "AMX", "avx512_vnni": "VNNI", "avx_vnni": "VNNI of AVX2"}
# Of equal work: what two cases must share, and what a record that does not name it means. Weights may differ, the arithmetic is the same.
SIZES = {"image": None, "length": None, "variant": None, "batch": None, "threads": 0, "device": "cpu"}


def maker(knobs: dict) -> str:
    """How an INT8 graph was made, in a few words: the quantizer, dynamic or symmetric, how many operators stayed in floating point."""
    more = [knobs.get(name) for name, said in (("quantization", "dynamic"), ("scheme", "symmetric")) if knobs.get(name) == said]
    more += [f"{n} in FP32" for n in (knobs.get("keep_fp"),) if n]
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
    knobs = ("image", "length", "variant", "quantizer", "calib_samples", "calib_method", "quantization", "scheme", "keep_fp")
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


def qualities(records: Sequence[Record]) -> list[dict]:
    """A line for each INT8 case that a quality pass judged, beside FP32 of the same comparison: by machine, workload, engine, maker."""
    return [{"machine": machine, "workload": tables.title(workload), "engine": engine, "INT8 by": how, "method": method, "samples": samples,
             "metric": q["metric"], "INT8": f"{100 * q['value']:.2f} %", "n": f"{q['n']:,}",
             "points beside FP32": "" if base is None else
             f"{100 * (q['value'] - base):+.2f}" + ("" if q["informative"] else " (not informative)")}
            for (machine, workload, engine, how, method, samples), (q, base) in _judged(records)]


def losses(records: Sequence[Record]) -> list[str]:
    """A sentence for each quality pass in which INT8 lost more than the workload's margin, timed or not."""
    return [f"{tables.title(workload)} on {machine}, INT8 by {how} in {engine}, ranges by {method} of {samples} samples: lost "
            f"{100 * (base - q['value']):.2f} points ({100 * q['value']:.2f} % beside {100 * base:.2f} % in FP32, n={q['n']:,}, one pass; "
            f"the margin is {100 * q['margin']:.1f})."
            for (machine, workload, engine, how, method, samples), (q, base) in _judged(records)
            if base is not None and q["informative"] and base - q["value"] > q["margin"]]


def _judged(records: Sequence[Record]) -> list[tuple[tuple, tuple[dict, float | None]]]:
    """(machine, workload, engine, maker, method, samples) and (quality, FP32's value in the same comparison) of the last pass of each."""
    passes = [r for r in records if r.case["phase"] == "infer" and r.quality]
    plain = {(r.case["group"], r.machine["id"]): r.quality["value"] for r in passes if r.case["key"] == r.case["baseline"]}
    return sorted({(r.machine["id"], r.case["workload"], r.knobs["engine"], maker(r.knobs), r.knobs["calib_method"],
                    r.actual["quantized"]["samples"]): (r.quality, plain.get((r.case["group"], r.machine["id"])))
                   for r in passes if r.knobs["precision"] == "int8"}.items(), key=lambda pair: pair[0])


@dataclass(frozen=True)
class Pair:
    """An INT8 case with its log-ratios, paired by rounds, over its own engine's FP32 and over the fastest FP32 of its comparison."""

    last: Record
    per_s: float
    own: list[float]
    over_fastest: list[float]
    fastest: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it apart: comparison, engine, maker."""
        return self.last.case["group"], self.last.knobs["engine"], maker(self.last.knobs)


def pairs(records: Sequence[Record]) -> list[Pair]:
    """The INT8 cases of comparisons that hold FP32 too."""
    found, groups = [], {}
    for r in sorted((r for r in records if _is_speed(r)), key=lambda r: r.case["order"]):
        kind = (r.knobs["engine"], r.knobs["precision"], maker(r.knobs))
        groups.setdefault((r.case["group"], r.case["workload"], r.machine["id"]), {}).setdefault(kind, []).append(r)
    for cases in groups.values():
        rates = {kind: compare.by_round(own) for kind, own in cases.items()}
        plain = {engine: own for (engine, precision, _), own in rates.items() if precision == "fp32"}
        best = max(plain, key=lambda engine: statistics.median(plain[engine].values()), default=None)
        found += [Pair(cases[kind][-1], statistics.median(own.values()), compare.log_ratios(plain.get(kind[0], {}), own),
                       compare.log_ratios(plain[best], own), best) for kind, own in rates.items() if kind[1] == "int8" and plain]
    return found


def beside(records: Sequence[Record], others: Sequence[Record] = ()) -> list[dict]:
    """A line for each INT8 case: its ratio over the same engine's FP32, which says what INT8 gives, and over the fastest FP32 of the
    comparison, which says whether it is worth having; both paired by rounds. `others`: more records, in which a faster case in floating
    point is looked for."""
    return [{"machine": pair.last.machine["id"], "workload": tables.title(pair.last.case["workload"]), "INT8 in": pair.key[1],
             "INT8 by": pair.key[2], "over its own FP32": _ratio(pair.own), "over the fastest FP32": _ratio(pair.over_fastest),
             "fastest": pair.fastest, **({"over the fastest in floats": over_floats(pair, [*records, *others])} if others else {}),
             "weights": pair.last.knobs["weights"] + (f" ({pair.last.knobs['variant']})" if "variant" in pair.last.knobs else "")}
            for pair in pairs(records)]


def over_floats(pair: Pair, records: Sequence[Record]) -> str:
    """"1.65x (bf16 in openvino, of another comparison)": over the fastest case in any floating point that the machine's `records` have on
    inputs of this size. Of another comparison it is a ratio of two medians, neither paired nor with an interval."""
    rival, per_s = _rival(pair, records)
    name = f"{rival.knobs['precision']} in {rival.knobs['engine']}"
    if rival.case["group"] == pair.last.case["group"]:
        return f"{_ratio(pair.over_fastest)} ({name})"
    return f"{pair.per_s / per_s:.2f}x ({name}, of another comparison)"


def _rival(pair: Pair, records: Sequence[Record]) -> tuple[Record, float]:
    """The fastest floating-point case beside an INT8 case, and its samples/s."""
    cases: dict[tuple, list[Record]] = {}
    for r in records:
        if r.case["workload"] == pair.last.case["workload"] and r.machine["id"] == pair.last.machine["id"] and _is_rival(r, pair.last):
            cases.setdefault((r.case["group"], r.case["key"]), []).append(r)
    rates = {key: statistics.median(compare.by_round(own).values()) for key, own in cases.items()}
    best = max(rates, key=rates.get)
    return cases[best][-1], rates[best]


def _is_rival(r: Record, int8: Record) -> bool:
    alike = all(r.knobs.get(name, unset) == int8.knobs.get(name, unset) for name, unset in SIZES.items())
    plain = not r.case["arm"] and r.knobs.get("hint", "latency") == "latency" and r.knobs.get("part", "whole") == "whole"
    return r.case["phase"] == "infer" and r.status == "ok" and bool(r.stats) and plain and alike and r.knobs["precision"] != "int8"


def _ratio(logs: Sequence[float]) -> str:
    if len(logs) < 2:
        return tables.ratio(math.exp(logs[0])) if logs else "not measured"
    middle, low, high = compare.interval(logs)
    return f"{middle:.2f}x [{low:.2f}, {high:.2f}]"


def advice(rows: Sequence[Row], records: Sequence[Record], others: Sequence[Record] = ()) -> list[str]:
    """For each machine and workload of `rows` one sentence: quantize, do not, or nothing can be said, with the figures that say so.

    "Quantize" asks for both: faster than the fastest FP32 case of its comparison, paired by rounds, by interval and noise floor, and not
    slower than what `others` (as in `beside`) hold in floating point; and quality kept within the workload's margin. `records`: what the
    rows come from.
    """
    lines, paired = [], {(pair.last.machine["id"], *pair.key): pair for pair in pairs(records)}
    machines = {r.machine["id"]: r.machine for r in records}
    for machine, workload in dict.fromkeys((row.machine, row.workload) for row in rows):
        where = f"**{tables.title(workload)}** on {machine} ({instructions(machines.get(machine, {}))})"
        own = [row for row in rows if (row.machine, row.workload) == (machine, workload) and row.per_s and row.knobs["precision"] == "int8"]
        done = [(row, paired.get((machine, row.group, row.knobs["engine"], maker(row.knobs)))) for row in own]
        done = [(row, pair) for row, pair in done if pair]
        if not done:
            lines.append(f"{where}: not measured.")
            continue
        best, pair = max(done, key=lambda one: (one[0].quality == "kept", one[0].per_s))
        speed, _ = compare.speed_verdict(pair.over_fastest, best.floor)
        rival, per_s = _rival(pair, [*records, *others])
        elsewhere = rival.case["group"] != pair.last.case["group"]
        beyond = f"; over the fastest in floating point {over_floats(pair, [*records, *others])}" if elsewhere else ""
        how = (f"INT8 by {maker(best.knobs)} in {best.knobs['engine']}: {_ratio(pair.over_fastest)} over the fastest FP32, {pair.fastest}"
               f"{beyond}; quality {best.quality_text}")
        if speed == "too few rounds" or (best.quality not in ("kept", "lost") and speed == "faster"):
            say = "nothing can be said yet"
        else:
            beaten = elsewhere and pair.per_s <= per_s
            say = "quantize" if speed == "faster" and best.quality == "kept" and not beaten else "do not quantize"
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
