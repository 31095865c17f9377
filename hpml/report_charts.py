"""The five charts that carry the study, chosen from a run's records: they open the report, and the page of a reference machine."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hpml import compare, ladder, plot, tables_serving
from hpml.compare import Row
from hpml.plot_step import Pair, timed
from hpml.records import Record
from hpml.report_results import Chart, Charts, slug

SIZES = ("batch", "image", "length", "threads", "variant", "part")  # alike in one chart of speed and quality


@dataclass(frozen=True)
class Carried:
    """One of the five: its title, the charts that show it, or why there is none."""

    title: str
    charts: list[Chart]
    missing: str


def five(found: Sequence[Record], rows: Sequence[Row], charts: Charts) -> list[Carried]:
    """What is worth it, the ladder, where a step goes, speed against quality, load: drawn from the records of one machine."""
    rows = compare.techniques(rows)
    others = [row for row in rows if not row.is_baseline]
    worth = [charts.draw("worth", repr(others), plot.worth, rows)] if any(row.ratio or row.status != "ok" for row in others) else []
    return [
        Carried("What is worth it", worth, "no technique stands beside its baseline yet (notebooks 20 to 33)"),
        Carried("The ladder", _ladders(found, rows, charts), "no stack was climbed step by step (notebook 27)"),
        Carried("Where a step goes", _steps(found, rows, charts), "no training beside its baseline was timed by phase (23 to 27)"),
        Carried("Speed against quality", _tradeoff(found, rows, charts), "no inference was measured with its quality (notebooks 31, 33)"),
        Carried("Load", _load(found, charts), "no service was put under load (notebook 35)"),
    ]


def _ladders(found: Sequence[Record], rows: Sequence[Row], charts: Charts) -> list[Chart]:
    """The ladder that gains most in training, and in inference; the workloads' sections have all."""
    climbed = [one for one in ladder.read(rows, found) if one.full.ratio]
    best = {one.base.phase: one for one in sorted(climbed, key=lambda one: one.full.ratio)}
    return [charts.draw(slug(one.base.workload, phase, "ladder"), repr(one), plot.ladder, one)
            for phase, one in sorted(best.items(), reverse=True)]


def _steps(found: Sequence[Record], rows: Sequence[Row], charts: Charts) -> list[Chart]:
    """Of each workload the fastest training case whose steps, and whose baseline's, were timed by phase."""
    cases: dict[tuple, list[Record]] = {}
    for r in timed(found):
        if r.case["phase"] == "train" and r.case["technique"] != compare.NOISE and not compare.is_quality_run(r):
            cases.setdefault((r.case["group"], r.case["label"], r.machine.get("id")), []).append(r)
    pairs: dict[str, Pair] = {}
    bases = {(row.group, row.machine): row for row in rows if row.is_baseline}
    for row in sorted((row for row in rows if row.phase == "train" and row.ratio and not row.is_baseline), key=lambda row: row.ratio):
        base = bases.get((row.group, row.machine))
        own = [cases.get((one.group, one.label, one.machine)) for one in (base, row) if one]
        if len(own) == 2 and all(own):
            pairs[row.workload] = Pair(base, row, *own)
    if not pairs:
        return []
    shown = [r.record_id for pair in pairs.values() for r in (*pair.base_records, *pair.best_records)]
    return [charts.draw("steps", shown, plot.steps, list(pairs.values()))]


def _tradeoff(found: Sequence[Record], rows: Sequence[Row], charts: Charts) -> list[Chart]:
    """Inference at the sizes that most cases with a known quality have, for each workload that has some."""
    chosen = []
    for name in dict.fromkeys(row.workload for row in rows):
        own = [row for row in rows if row.workload == name and row.phase == "infer" and row.per_s]
        sizes = Counter(_sizes(row) for row in own if row.quality_value is not None)
        if sizes:
            usual = sizes.most_common(1)[0][0]
            chosen += [row for row in own if _sizes(row) == usual]
    if len(chosen) < 2:
        return []
    margins = {r.case["workload"]: r.quality["margin"] for r in found if r.quality and r.quality.get("margin") is not None}
    return [charts.draw("speed-quality", repr((chosen, margins)), plot.speed_quality, chosen, margin=margins)]


def _sizes(row: Row) -> tuple:
    return tuple(row.knobs.get(name) for name in SIZES)


def _load(found: Sequence[Record], charts: Charts) -> list[Chart]:
    """The load test of the workload that was tested in most ways."""
    tests: dict[str, list] = {}
    for name in dict.fromkeys(r.case["workload"] for r in found if r.case["phase"] == "serve"):
        own = [load for load in tables_serving.loads([r for r in found if r.case["workload"] == name]) if load.confirmed()]
        if own:
            tests[name] = own
    if not tests:
        return []
    name = max(tests, key=lambda one: len(tests[one]))
    ids = [r.record_id for r in found if r.case["workload"] == name]
    return [charts.draw(slug(name, "load"), ids, plot.load, tests[name])]
