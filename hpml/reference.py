"""Reference records: a run is blessed into results/reference/<machine>/."""

import shutil
from pathlib import Path

from hpml import compare, env, records, report
from hpml.env import HpmlError


def bless(run_id: str) -> Path:
    """Copy a run's records, tables and charts to the reference of its machine; returns the folder.

    Raises HpmlError unless every comparison with figures has 6 rounds, its noise floor and a clean, known commit.
    """
    run = env.run_dir(run_id)
    found = records.read(run / "records.jsonl")
    if not found:
        raise HpmlError(f"no records in {run}")
    short = [f"{row.technique} {row.label} ({row.rounds})" for row in compare.rows(found)
             if not row.is_baseline and 0 < row.rounds < compare.MAX_ROUNDS and row.phase != "export"]
    if short:
        raise HpmlError(f"a reference has {compare.MAX_ROUNDS} rounds of everything; fewer here: {', '.join(short)}")
    unknown = [f"{row.technique} {row.label}" for row in compare.rows(found) if row.ratio and not row.is_baseline and row.floor is None]
    if unknown:
        raise HpmlError(f"a reference knows its noise floor; none is recorded for: {', '.join(unknown)}")
    if any(r.git.get("dirty") or not r.git.get("commit") for r in found):
        raise HpmlError("a reference is measured on a clean commit: these records come from changed or unknown sources")
    report.build(run)
    target = env.reference_dir() / found[0].machine["id"]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copyfile(run / "records.jsonl", target / "records.jsonl")
    for name in ("tables", "charts"):
        shutil.copytree(run / name, target / name)
    return target
