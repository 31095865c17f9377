"""Reference records: a run is blessed into results/reference/<machine>/."""

import shutil
import tempfile
from pathlib import Path

from hpml import compare, env, records, report
from hpml.env import HpmlError


def bless(run_id: str) -> Path:
    """Put a run's records into the reference of its machine, with tables and charts of the whole; returns the folder.

    A reference may grow run by run: what it has of the same workloads from the same notebooks is replaced, as is all that another
    protocol measured. Raises HpmlError unless notebooks measured it, not at the smoke tier, and every comparison with figures has
    6 rounds, its noise floor and a clean, known commit.
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
    kept = [r for r in records.read(target / "records.jsonl")
            if (r.case["workload"], r.notebook) not in measured and r.protocol_version == found[0].protocol_version]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".blessing-") as scratch:
        whole, before = Path(scratch) / "whole", Path(scratch) / "before"
        for record in kept + found:
            records.append(whole / "records.jsonl", record)
        report.build(whole)
        shutil.rmtree(whole / "report")
        if target.exists():
            target.rename(before)  # gone with the scratch folder, once the new one is in its place
        whole.rename(target)
    return target
