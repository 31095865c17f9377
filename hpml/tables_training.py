"""Tables of a workload's own notebook: what each part of the work costs, and what its trainings reached."""

import statistics
from collections.abc import Sequence

from hpml import compare
from hpml.records import Record
from hpml.tables import figure

KNOB = {"data": "storage", "infer": "batch", "train": "device"}  # what tells the parts of one phase apart


def parts(records: Sequence[Record]) -> str:
    """One line for each measured part of the work: rate, ms, memory, bytes read, share of waiting. Quality runs are left out."""
    import pandas as pd

    lines = []
    measured = [r for r in records if r.status == "ok" and r.stats and not compare.is_quality_run(r) and r.case["phase"] in KNOB]
    for r in {(r.machine["id"], r.case["key"], r.protocol.get("round")): r for r in measured}.values():  # of a repeated round the last one
        knobs = [name for name in (KNOB[r.case["phase"]], "length") if name in r.knobs]
        knobs += ["part"] if r.knobs.get("part", "whole") != "whole" else []
        seconds = {"ms": r.stats["center_s"], "first ms": r.cold.get("first_call_s")}
        for key in ("with_copies", "with_preprocessing"):
            seconds[key.replace("_", " ") + " ms"] = r.stats[key]["median"] if key in r.stats else None
        read, wait = r.io.get("bytes_read"), r.io.get("wait_share")
        lines.append({
            "case": ", ".join([r.case["phase"], *(f"{name}={r.knobs[name]}" for name in knobs)]), "samples/s": figure(r.stats["per_s"]),
            **{key: figure(value and 1e3 * value) for key, value in seconds.items()}, "memory MiB": figure(r.memory.get("peak_rss_mib")),
            "read MiB": "" if read is None else f"{read / 2**20:.1f}", "wait": "" if wait is None else f"{wait:.1%}"})
    return pd.DataFrame(lines).fillna("").to_string(index=False) if lines else "nothing measured"


def fits(records: Sequence[Record]) -> str:
    """One column for each training: data, quality with its other figures, seconds, memory, and its verdict beside the first one."""
    import pandas as pd

    groups: dict[tuple, dict[int, Record]] = {}
    for r in records:
        if r.status == "ok" and r.quality and r.knobs.get("epochs"):
            groups.setdefault((r.machine["id"], r.case["group"], r.case["order"]), {})[r.protocol["round"]] = r
    lines = []
    for (*where, order), by_round in sorted(groups.items()):
        own = list(by_round.values())
        r, first = own[0], next(iter(groups.get((*where, 0), by_round).values()))
        verdict = compare.quality_verdict(r, first if order else None, records)["quality_text"]
        details = {name: statistics.fmean(x.quality["details"][name] for x in own) for name in r.quality.get("details") or {}}
        lines.append({
            "data": f"{r.actual['data']['title']} ({r.actual['data']['origin']})", "case": r.case["label"], "epochs": r.knobs["epochs"],
            "seeds": len(own), r.quality["metric"]: f"{statistics.fmean(x.quality['value'] for x in own):.1%}",
            **{name: figure(value) if name.endswith(" px") else f"{value:.1%}" for name, value in details.items()},
            "chance": f"{r.quality['chance']:.1%}",
            "s/epoch": figure(sum(r.samples["values"]) / r.knobs["epochs"]), "memory MiB": figure(r.memory.get("peak_rss_mib")),
            "verdict": verdict})
    return pd.DataFrame(lines).T.to_string(header=False) if lines else "no training finished"
