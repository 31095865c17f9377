"""What to run on which machine, chosen from records by one rule, and written as `recommended.yaml`.

The rule stands in RULE, and in the file. A recommendation is a case that was measured as it is, with every knob that differs; nothing is
put together from parts. Where records are missing there is no recommendation, and the file says so.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hpml import compare, env, records, tables, workloads
from hpml.compare import Row
from hpml.env import HpmlError
from hpml.knobs import INT8_KNOBS
from hpml.records import Record

NAME, FORMAT = "recommended.yaml", 1
PHASES = ("train", "infer")
RULE = ("of the cases that are faster than their baseline beyond the noise (95 % interval without 1, ratio above the noise floor) and "
        "whose quality is kept within the workload's margin, the one with the most samples/s; all at the sizes that most cases were "
        "measured at, one call at a time, never at the smoke tier")
SIZES = ("part", "variant", "batch", "image", "length", "threads", "hint", "replicas")  # alike in the cases of one choice
MISSING = "not measured"
NEXT = 4  # cases named that lack only their quality
HEAD = f"""\
# What to run, for each workload and machine. Made by `hpml report`; format {FORMAT}.
#   hpml train --config {NAME} resnet50
#   hpml serve --config {NAME} --workload resnet50
# take the part of this machine, or else of the one named by `machine`; a flag of the command line overrides the file.
"""


def choose(found: Sequence[Record], *, source: str) -> dict:
    """The recommendations of one machine from its records: {workload: {phase: entry}}, every workload of the course in it.

    An entry has `knobs` with what they rest on, or `none` with the reason. `source` says where the records lie.
    """
    rows, problem = _rows(found)
    named = dict.fromkeys([*workloads.names(), *(row.workload for row in rows if not row.workload.endswith(".py"))])
    return {name: {phase: _entry([row for row in rows if (row.workload, row.phase) == (name, phase)], found, source, problem)
                   for phase in PHASES} for name in named}


def _rows(found: Sequence[Record]) -> tuple[list[Row], str | None]:
    """Rows of today's comparisons without the smoke tier; of several protocols the newest one's."""
    if not found:
        return [], None
    newest = max(r.protocol_version for r in found)
    try:
        rows = compare.techniques(compare.rows([r for r in found if r.protocol_version == newest]))
    except HpmlError as error:
        return [], str(error)
    return [row for row in rows if row.tier != "smoke"], None


def _sizes(row: Row) -> dict:
    return {name: row.knobs[name] for name in SIZES if name in row.knobs}


def _entry(rows: list[Row], found: Sequence[Record], source: str, problem: str | None) -> dict:
    rated = [row for row in rows if row.ratio and not row.is_baseline]
    if not rated:
        return {"none": f"{MISSING}: {problem}" if problem else MISSING}
    groups: dict[tuple, list[Row]] = {}
    for row in rated:
        groups.setdefault(tuple(_sizes(row).items()), []).append(row)
    alike = max(groups.values(), key=len)
    faster = sorted((row for row in alike if row.verdict == "faster"), key=lambda row: -row.per_s)
    kept = [row for row in faster if row.quality == "kept"]
    if kept:
        return _recommended(kept[0], tables.baseline_of(kept[0], rows), found, source)
    verdicts = ", ".join(f"{count} {word}" for word, count in Counter(row.verdict for row in alike).items())
    entry = {"none": f"nothing is shown to be both faster and of kept quality ({verdicts})"}
    lacking: dict[str, str] = {}  # the same settings may have been measured in several comparisons
    for row in faster:
        lacking.setdefault(tables.settings(row, row.differs_in, ", "), f"{_ratio(row)}, quality {row.quality}")
    return entry | ({"faster_only": [f"{knobs}: {why}" for knobs, why in lacking.items()][:NEXT]} if lacking else {})


def _ratio(row: Row) -> str:
    return f"{row.ratio:.2f}x [{row.low:.2f}, {row.high:.2f}]"


def _recommended(row: Row, base: Row, found: Sequence[Record], source: str) -> dict:
    one, other = (_records_of(which, found) for which in (row, base))
    vouching = [r.record_id for case in (one, other) for r in compare.vouching(case[-1], found) if compare.is_quality_run(r)]
    always = ("engine", "precision") if row.phase == "infer" else ()
    knobs = {name: row.knobs[name] for name in dict.fromkeys((*always, *row.differs_in))}
    noisy = {"warning": f"machine too noisy: its floor is {compare.percent(row.floor)}"} if row.floor > compare.TOO_NOISY else {}
    return {
        "knobs": knobs,
        "instead_of": {name: base.knobs[name] for name in knobs if name not in INT8_KNOBS or base.knobs["precision"] == "int8"},
        "measured_at": {"tier": row.tier, "data": row.data} | _sizes(row),
        "samples_per_s": float(f"{row.per_s:.3g}"), "ratio": round(row.ratio, 3), "interval": [round(row.low, 3), round(row.high, 3)],
        "rounds": row.rounds, "noise_floor": round(row.floor, 4), **noisy,
        "reason": tables.sentence(row, base),
        "trade_off": _trade_off(row, base, one, other, found),
        "notebook": row.notebook, "source": source,
        "records": [r.record_id for r in (*other, *one)] + list(dict.fromkeys(vouching)),
    }


def _records_of(row: Row, found: Sequence[Record]) -> list[Record]:
    """The records that a row's figures were made from, by rounds."""
    wanted = row.group, row.label, row.machine
    return compare.calmest(r for r in found if (r.case["group"], r.case["label"], r.machine.get("id")) == wanted)


def _trade_off(row: Row, base: Row, one: list[Record], other: list[Record], found: Sequence[Record]) -> dict:
    """What it costs: quality, peak memory, and the seconds before the first answer, each beside the baseline's."""
    def seconds(case: list[Record], name: str) -> float | None:
        values = [r.cold[name] for r in case if r.cold.get(name) is not None]
        return float(f"{statistics.median(values):.3g}") if values else None

    cost = {"quality": tables.quality(row)}
    if row.memory_mib and base.memory_mib:
        cost["memory_mib"] = {"here": round(row.memory_mib), "instead_of": round(base.memory_mib)}
    for name in ("export_s", "build_s", "load_s", "first_call_s"):
        here, before = seconds(one, name), seconds(other, name)
        if here is not None:
            cost[name] = {"here": here, "instead_of": before}
    made = [r for r in found if r.case["phase"] == "quantize" and r.case["workload"] == row.workload and r.status == "ok"
            and all(r.knobs.get(name) == row.knobs.get(name) for name in (*INT8_KNOBS, "variant", "image", "length", "weights"))]
    if row.knobs.get("precision") == "int8" and made:
        cost["quantize_s"] = seconds(made, "quantize_s")
    return cost


def of_reference(folder: Path) -> dict:
    """The file of one reference machine, as a dictionary."""
    found = records.read(folder / "records.jsonl")
    return _file({folder.name: (found, choose(found, source=_place(folder)))}, folder.name)


def of_run(run_dir: Path, *, references: bool = True) -> dict:
    """The file of a run: its machine, then each reference machine. What the run did not measure on one of these is the reference's.
    Without `references`, what the run alone has shown."""
    found = records.read(run_dir / "records.jsonl")
    here = (found[-1].machine if found else env.machine())["id"]
    own = [r for r in found if r.machine.get("id") == here]
    machines = {here: (own, choose(own, source=f"run {run_dir.name}"))}
    for path in sorted(env.reference_dir().glob("*/records.jsonl")) if references else ():
        known = records.read(path)
        chosen = choose(known, source=_place(path.parent))
        if path.parent.name != here:
            machines[path.parent.name] = (known, chosen)
            continue
        for name, phases in chosen.items():
            mine = machines[here][1].setdefault(name, {})
            for phase, entry in phases.items():
                if mine.get(phase, {"none": MISSING}).get("none", "").startswith(MISSING):
                    mine[phase] = entry
        machines[here] = (own or known, machines[here][1])
    return _file(machines, here)


def _place(folder: Path) -> str:
    return f"results/reference/{folder.name}"


def _file(machines: dict[str, tuple[Sequence[Record], dict]], default: str) -> dict:
    described = {}
    for name, (found, chosen) in machines.items():
        facts = found[-1].machine if found else env.machine()
        described[name] = {"chip": facts.get("gpu") or facts.get("cpu"), "cores": facts.get("cores"),
                           "measured": found[-1].created[:10] if found else None, "workloads": chosen}
    return {"format": FORMAT, "rule": RULE, "machine": default, "machines": described}


def text(content: dict) -> str:
    """The file as YAML, with its head."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data) -> bool:
            return True

    return HEAD + yaml.dump(content, Dumper=Plain, sort_keys=False, allow_unicode=True, width=140, default_flow_style=None)


def write(run_dir: Path) -> list[str]:
    """Write the run's file; returns its recommendations, a line each, and last where it lies."""
    path, content = Path(run_dir) / NAME, of_run(Path(run_dir))
    path.write_text(text(content), encoding="utf-8")
    return [*summary(content), f"recommendations: {path}"]


def markdown(content: dict) -> str:
    """The file as Markdown, machine by machine: a table of what is recommended and what that costs, then what is not, and why."""
    parts = []
    for machine, part in content["machines"].items():
        entries = [(f"{tables.title(name)} {tables.PHASES[phase]}", entry) for name, phases in part["workloads"].items()
                   for phase, entry in phases.items()]
        parts.append(f"**{machine}**")
        if rows := [_cells(what, entry) for what, entry in entries if "knobs" in entry]:
            titles = ("workload", "recommended", "instead of", "at", "ratio", "quality", "peak MiB", "ready after s", "from")
            parts.append("\n".join(["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles),
                                    *("| " + " | ".join(map(tables.escape, cells)) + " |" for cells in rows)]))
        lines = [f"No recommendation for {what}: {entry['none']}." + (
            f" Faster, but: {'; '.join(entry['faster_only'])}." if "faster_only" in entry else "")
            for what, entry in entries if "none" in entry and not entry["none"].startswith(MISSING)]
        if missing := [what for what, entry in entries if entry.get("none", "").startswith(MISSING)]:
            lines.append(f"No recommendation, not measured here: {', '.join(missing)}.")
        parts.append("\n".join(f"- {tables.escape(line)}" for line in lines))
    return "\n\n".join(filter(None, parts))


def _cells(what: str, entry: dict) -> tuple[str, ...]:
    """One recommendation as cells. Ready after: loading and the first call; an INT8 graph is made once before."""
    cost, at, (low, high) = entry["trade_off"], entry["measured_at"], entry["interval"]
    waits = [cost[name] for name in ("load_s", "first_call_s") if name in cost]
    ready = [tables.figure(sum(one[side] or 0.0 for one in waits)) for side in ("here", "instead_of")]
    made = f" (INT8 graph: {tables.figure(cost['quantize_s'])} once)" if "quantize_s" in cost else ""
    return (what, _settings(entry["knobs"]), _settings(entry["instead_of"]),
            ", ".join(f"{name} {at[name]}" for name in ("batch", "image", "length") if name in at),
            f"{entry['ratio']:.2f}x [{low:.2f}, {high:.2f}]" + (f"; {entry['warning']}" if "warning" in entry else ""), cost["quality"],
            " / ".join(f"{cost['memory_mib'][side]:,}" for side in ("here", "instead_of")) if "memory_mib" in cost else "",
            " / ".join(ready) + made, f"{(entry['notebook'] or '')[:2]}, {len(entry['records'])} records")


def _settings(knobs: dict) -> str:
    return ", ".join(f"{name}={value}" for name, value in knobs.items())


def summary(content: dict) -> list[str]:
    """Each recommendation of the file in one line, machine by machine; what was not measured at all is counted."""
    lines = []
    for machine, part in content["machines"].items():
        missing = []
        for name, phases in part["workloads"].items():
            for phase, entry in phases.items():
                what = f"{tables.title(name)} {tables.PHASES[phase]}"
                if "knobs" in entry:
                    low, high = entry["interval"]
                    lines.append(f"{machine}: {what}: {_settings(entry['knobs'])} ({entry['ratio']:.2f}x [{low:.2f}, {high:.2f}], "
                                 f"quality {entry['trade_off']['quality']})")
                elif entry["none"].startswith(MISSING):
                    missing.append(what)
                else:
                    lines.append(f"{machine}: {what}: no recommendation: {entry['none']}")
        if missing:
            lines.append(f"{machine}: no recommendation, not measured: {', '.join(missing)}")
    return lines
