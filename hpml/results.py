"""Results: records with their rows, charts and sentences, as notebooks show them."""

import inspect
from pathlib import Path

from hpml import compare, env, records
from hpml.env import HpmlError
from hpml.records import Record


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

        rows = self.rows()
        fitting = [row for row in rows if all(row.knobs.get(name) == value for name, value in knobs.items())]
        if not fitting:
            raise HpmlError(f"no case with {', '.join(f'{k}={v}' for k, v in knobs.items())} in these results")
        return tables.sentence(fitting[0], tables.baseline_of(fitting[0], rows))

    def __repr__(self) -> str:
        from hpml import tables

        if rows := self.rows():
            return tables.text(rows)
        logs = compare.noise_logs(self.records, self.records[0].case["phase"]) if self.records else []
        if len(logs) >= compare.MIN_ROUNDS:
            return (f"the same case against itself, {len(logs)} rounds: noise floor "
                    f"{compare.percent(compare.noise_floor(logs, len(logs)))} at as many rounds")
        return f"{len(self.records)} records"


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
