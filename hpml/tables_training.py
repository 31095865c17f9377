"""Tables of a workload's own notebook: what each part of the work costs, and what its trainings reached."""

import statistics
from collections.abc import Iterable, Sequence

from hpml import compare
from hpml.records import Record
from hpml.tables import figure

KNOB = {"data": "storage", "infer": "batch", "train": "device"}  # what tells the parts of one phase apart


def parts(records: Sequence[Record]) -> str:
    """One line for each measured part of the work: rate, ms, memory, bytes read, share of waiting, preprocessing; medians over rounds.
    Quality runs and A/A records are left out."""
    import pandas as pd

    lines, cases = [], {}
    for r in records:
        if r.case["phase"] in KNOB and not compare.is_quality_run(r) and r.case["technique"] != compare.NOISE:
            cases.setdefault((r.machine["id"], r.case["key"]), []).append(r)
    for own in filter(None, map(compare.calmest, cases.values())):
        r = own[0]
        knobs = [name for name in (KNOB[r.case["phase"]], "length") if name in r.knobs]
        knobs += ["part"] if r.knobs.get("part", "whole") != "whole" else []
        seconds = {"ms": _median(x.stats["center_s"] for x in own), "first ms": _median(x.cold.get("first_call_s") for x in own)}
        for key in ("with_copies", "with_preprocessing"):
            seconds[key.replace("_", " ") + " ms"] = _median(x.stats[key]["median"] for x in own if key in x.stats)
        read, wait = _median(x.io.get("bytes_read") for x in own), _median(x.io.get("wait_share") for x in own)
        lines.append({
            "case": ", ".join([r.case["phase"], *(f"{name}={r.knobs[name]}" for name in knobs)]), "rounds": len(own),
            "samples/s": figure(_median(x.stats["per_s"] for x in own)),
            **{key: figure(value and 1e3 * value) for key, value in seconds.items()},
            "memory MiB": figure(_median(x.memory.get("peak_rss_mib") for x in own)),
            "read MiB": "" if read is None else f"{read / 2**20:.1f}", "wait": "" if wait is None else f"{wait:.1%}",
            "preprocessing ms": _preprocessing(own)})
    return pd.DataFrame(lines).fillna("").to_string(index=False) if lines else "nothing measured"


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _preprocessing(records: Sequence[Record]) -> str:
    """What a call takes longer with preprocessing than without: where the rounds agree on it, or one round's calls scatter less."""
    pairs = [(r.stats["with_copies"], r.stats["with_preprocessing"]) for r in records if "with_preprocessing" in r.stats]
    if not pairs:
        return ""
    more = [longer["median"] - shorter["median"] for shorter, longer in pairs]
    if len(more) >= compare.MIN_ROUNDS:
        clear = compare.mean_interval(more)[1] > 0
    else:
        clear = min(more) > max(one["iqr"] for pair in pairs for one in pair)
    return figure(1e3 * statistics.median(more)) if clear and statistics.median(more) > 0 else "below the noise"


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
