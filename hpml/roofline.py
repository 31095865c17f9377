"""How near a step or a call came to what its machine was measured to reach (the roofline model: Williams, Waterman and Patterson, 2009)."""

from collections.abc import Iterable

from hpml.records import Record

ARITHMETIC = ("matmul", "conv3x3")  # the kinds of limit that are operations a second

Rates = dict[tuple[str, str | None], float]


def floor(*, flops: float, nbytes: float, dtype: str, limits: Rates) -> dict | None:
    """The shortest time in which this machine could do `flops` operations and move `nbytes`.

    `limits`: best value by (kind, dtype), with ("memory", None) in B/s. Returns {bound: "compute" | "memory", floor_s},
    or None where the arithmetic limit for `dtype` or the memory limit was not measured.
    """
    compute = [value for (kind, name), value in limits.items() if kind in ARITHMETIC and name == dtype and value]
    memory = [value for (kind, _), value in limits.items() if kind == "memory" and value]
    if not compute or not memory:
        return None
    compute_s, memory_s = flops / max(compute), nbytes / max(memory)
    return {"bound": "compute" if compute_s >= memory_s else "memory", "floor_s": max(compute_s, memory_s)}


def best(records: Iterable[Record]) -> dict[str, Rates]:
    """The best measured rate by device and (kind, dtype) among the limit records of one machine."""
    found: dict[str, Rates] = {"cpu": {}, "cuda": {}}
    for record in records:
        if record.case["phase"] == "limit" and record.status == "ok":
            name = (record.knobs["kind"], record.knobs["dtype"] if record.knobs["dtype"] != "any" else None)
            rates = found[record.knobs["device"]]
            rates[name] = max(rates.get(name, 0.0), record.actual["value"])
    return found


def distance(record: Record, work: dict, limits: dict[str, Rates]) -> dict:
    """{bound, percent} of a measured record with its least work {flops, bytes}: 100 % is the limit. Both None where that is not known."""
    found = floor(flops=work["flops"], nbytes=work["bytes"], dtype=record.knobs["precision"], limits=limits[record.knobs["device"]])
    return {"bound": found and found["bound"], "percent": 100 * found["floor_s"] / record.stats["center_s"] if found else None}


def nearest(record: Record, limits: dict[str, Rates]) -> dict | None:
    """{bound, percent} by the highest limits known: those beside which the record was made, or `limits`, which others of its machine's
    sittings reached. None where neither tells."""
    found = [one for one in (record.limit, distance(record, record.limit, limits)) if one["percent"]]
    return min(found, key=lambda one: one["percent"], default=None)
