"""The record of one case in one round, and its append-only store (JSON lines)."""

import dataclasses
import fcntl
import json
import math
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from hpml.env import HpmlError, now

SCHEMA_VERSION = 1
PROTOCOL_VERSION = 4  # bump it with any change in the way of measuring: figures of different versions are not compared
OUT_OF_TIME = "budget"  # how the reason of a record, or of a notebook in status.json, begins that the run's time did not reach
STATUSES = ("ok", "skipped", "unsupported", "provider_fallback", "parity_failed", "oom", "timeout", "failed")


def out_of_time(status: str | None, reason: str | None) -> bool:
    """Whether a record, or a notebook in status.json, lacks its result because the run's time did not reach it."""
    return status == "skipped" and (reason or "").startswith(OUT_OF_TIME)


def new_id() -> str:
    """An id that no other record has."""
    return uuid.uuid4().hex


@dataclass(kw_only=True)
class Record:
    """What was asked, what really ran, the raw samples, the quality and the machine. Units stand in the fields; null is "not measured".

    `case` names the comparison (workload, phase, technique, tier, key, group, label, order, baseline, differs_in), `knobs` is
    everything that was set, `samples` keeps the raw seconds of each iteration, `actual` says what really ran.
    """

    run_id: str
    status: str
    case: dict
    knobs: dict
    reason: str | None = None
    log: str | None = None
    notebook: str | None = None
    protocol: dict = field(default_factory=dict)
    samples: dict | None = None
    stats: dict | None = None
    cold: dict = field(default_factory=dict)
    memory: dict = field(default_factory=dict)
    io: dict = field(default_factory=dict)
    energy: dict | None = None
    quality: dict | None = None
    parity: dict | None = None
    actual: dict = field(default_factory=dict)
    limit: dict | None = None
    machine: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    git: dict = field(default_factory=dict)
    created: str = field(default_factory=now)
    record_id: str = field(default_factory=new_id)
    schema_version: int = SCHEMA_VERSION
    protocol_version: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise HpmlError(f"record schema {self.schema_version} is not {SCHEMA_VERSION}: made by another version of hpml")
        if self.status not in STATUSES:
            raise HpmlError(f"record status {self.status!r}: choose from {', '.join(STATUSES)}")
        if self.status != "ok" and not self.reason:
            raise HpmlError(f"a record with status {self.status!r} needs a reason")
        for name in ("case", "knobs", "protocol", "cold", "memory", "io", "actual", "machine", "versions", "git"):
            if not isinstance(getattr(self, name), dict):
                raise HpmlError(f"record whose {name} is no mapping")
        for name in ("workload", "phase", "key", "technique", "group", "label"):
            if not isinstance(self.case.get(name), str) or not self.case[name]:
                raise HpmlError(f"record without case.{name}")
        if not isinstance(self.protocol.get("round"), int):
            raise HpmlError("record without protocol.round")
        _refuse_nan(dataclasses.asdict(self), "record")
        self._check_figures()

    def _check_figures(self) -> None:
        """Nonsense is refused here, so that no table has to guess: p99 under the median, negative seconds, no sample."""
        if self.samples is not None:
            values = self.samples["values"]
            if not values or min(values) <= 0:
                raise HpmlError("record with no sample or a sample that is not above 0")
        if self.stats is not None and self.stats["p99"] < self.stats["median"]:
            raise HpmlError(f"record with p99 {self.stats['p99']} below its median {self.stats['median']}")


def _refuse_nan(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise HpmlError(f"{where}: {value} is not a figure; use null for 'not measured'")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_nan(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_nan(item, where)


def stats(values: list[float], *, items: int, center: str, wait: list[float] | None = None) -> dict:
    """Figures of one round, recomputable from the raw values (seconds); per_s = items / center_s.

    `center` is "mean" where bursts belong to the figure (a loader alone), "median" where they are disturbance (a latency), and
    "work median + wait mean" for a training step: the wait for its loader comes in bursts by nature, which count, while a burst
    in the arithmetic is the machine's doing. `wait`: the seconds of each value that were spent waiting.
    """
    import numpy as np

    data = np.asarray(values, dtype=float)
    if center == "work median + wait mean":
        waited = np.asarray(wait, dtype=float)
        center_s = float(np.median(data - waited) + waited.mean())
    else:
        center_s = float({"mean": np.mean, "median": np.median}[center](data))
    q25, median, q75, p90, p99 = (float(q) for q in np.percentile(data, (25, 50, 75, 90, 99)))
    mean = float(data.mean())
    return {"n": len(values), "median": median, "mean": mean, "iqr": q75 - q25, "p90": p90, "p99": p99, "center": center,
            "center_s": center_s, "per_s": items / center_s}


def append(path: Path, record: Record) -> None:
    """Add one line, whole or not at all: the line is synced, and taken back when the disk is full. Raises HpmlError."""
    line = (json.dumps(dataclasses.asdict(record), separators=(",", ":"), allow_nan=False) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:  # unbuffered: nothing is left to be written after the line was taken back
            fcntl.flock(file, fcntl.LOCK_EX)
            whole = _whole_length(file)
            file.truncate(whole)
            try:
                rest = line
                while rest:
                    rest = rest[file.write(rest):]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise
    except OSError as error:
        raise HpmlError(f"{path}: cannot write the record: {error.strerror or error}; the records before it are safe") from None


def _whole_length(file) -> int:
    """Bytes up to and with the last newline: a process killed while writing leaves a torn last line, which is dropped."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        cut = file.read(end - start).rfind(b"\n")
        if cut >= 0:
            return start + cut + 1
        end = start
    return 0


def read(path: Path) -> list[Record]:
    """All whole records of a file, in order; an absent file is empty. Raises HpmlError with file and line for one that cannot be read."""
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise HpmlError(f"{path}: cannot be read: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines[:-1], 1):
        if line.strip():
            try:
                found.append(Record(**json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise HpmlError(f"{path}, line {number}: not a record of this version ({error})") from None
            except HpmlError as error:
                raise HpmlError(f"{path}, line {number}: {error}") from None
    return found
