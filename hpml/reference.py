"""Reference records: a run is blessed into results/reference/<machine>/."""

import shutil
import tempfile
from pathlib import Path

from hpml import compare, env, records, report
from hpml.env import HpmlError


def bless(run_id: str) -> Path:
    """Put a run's records into the reference of its machine, with tables and charts of the whole; returns the folder.

    A reference may grow run by run: what it has of the same workloads from the same notebooks is replaced, as is all that another
    protocol measured. Of a limit of the machine the higher stays, as it is the most that any run reached. Raises HpmlError unless
    notebooks measured it, not at the smoke tier, and every comparison with figures has 6 rounds, its noise floor and a clean, known
    commit.
    """
    run = env.run_dir(run_id)
    found = records.read(run / "records.jsonl")
    if not found:
        raise HpmlError(f"no records in {run}")
    if any(r.notebook is None or r.case.get("tier") == "smoke" for r in found):
        raise HpmlError(f"{run_id}: a reference holds what the notebooks measured, at another tier than smoke")
    rows = compare.rows(found)
    short = [f"{row.technique} {row.label} ({row.rounds})" for row in rows
             if not row.is_baseline and 0 < row.rounds < compare.MAX_ROUNDS and row.phase != "export"]
    if short:
        raise HpmlError(f"a reference has {compare.MAX_ROUNDS} rounds of everything; fewer here: {', '.join(short)}")
    unknown = [f"{row.technique} {row.label}" for row in rows if row.ratio and not row.is_baseline and row.floor is None]
    if unknown:
        raise HpmlError(f"a reference knows its noise floor; none is recorded for: {', '.join(unknown)}")
    if any(r.git.get("dirty") or not r.git.get("commit") for r in found):
        raise HpmlError("a reference is measured on a clean commit: these records come from changed or unknown sources")
    target = env.reference_dir() / found[0].machine["id"]
    measured = {(r.case["workload"], r.notebook) for r in found}
    before = [r for r in records.read(target / "records.jsonl") if r.protocol_version == found[0].protocol_version]
    kept = [r for r in before if (r.case["workload"], r.notebook) not in measured]
    found = [max((r, *_same_limit(r, before)), key=lambda one: one.actual.get("value", 0)) for r in found]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".blessing-") as scratch:
        whole, old = Path(scratch) / "whole", Path(scratch) / "old"
        for record in kept + found:
            records.append(whole / "records.jsonl", record)
        report.build(whole)
        shutil.rmtree(whole / "report")
        if target.exists():
            target.rename(old)  # gone with the scratch folder, once the new one is in its place
        whole.rename(target)
    return target


def _same_limit(record: records.Record, known: list[records.Record]) -> list[records.Record]:
    """What `known` has of the limit that `record` measured; nothing where that is no limit."""
    return [r for r in known if record.case["phase"] == r.case["phase"] == "limit" and r.knobs == record.knobs]
