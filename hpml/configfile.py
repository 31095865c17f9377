"""What `--config` reads: a `recommended.yaml`, of a run or a reference machine, or one written by hand in the same form."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpml import env, recommend
from hpml.env import HpmlError
from hpml.knobs import validate

TOP = {"format", "rule", "machine", "machines"}
MACHINE = {"chip", "cores", "measured", "workloads"}
ENTRY = {"knobs", "instead_of", "measured_at", "samples_per_s", "ratio", "interval", "rounds", "noise_floor", "warning", "reason",
         "trade_off", "notebook", "source", "records", "none", "faster_only"}


@dataclass(frozen=True)
class Config:
    """The knobs of one workload and phase; `note` says from which machine they are, and where that is another one."""

    workload: str
    knobs: dict[str, Any]
    note: str


def read(path: Path, *, phase: str, workload: str | None = None, default: str | None = None, without: tuple[str, ...] = ()) -> Config:
    """The recommendation for `workload` in the file at `path`; without a name for the only one of this phase, or for `default` where the
    file has several. Knobs of `without` are left out, and the note says so.

    The part of this machine is taken where the file has one, else the part that the file names by `machine`. Raises HpmlError, in one
    line, for what is no such file, for an unknown key, knob or workload, for a value of the wrong type, and where the file has no
    recommendation.
    """
    machines, theirs = _machines(path)
    here = env.machine()["id"]
    chosen = here if here in machines else theirs
    if chosen not in machines:
        raise HpmlError(f"{path}: nothing for this machine ({here}) and no `machine` that names one of {', '.join(machines)}")
    entries = _entries(path, machines[chosen], phase)
    if workload is None:
        named = [name for name, entry in entries.items() if "knobs" in entry]
        if len(named) != 1 and default not in named:
            raise HpmlError(f"{path}: recommends {phase} for {', '.join(named) or 'no workload'}: name the workload")
        workload = named[0] if len(named) == 1 else default
    key = workload if workload in entries else Path(workload).stem
    if key not in entries:
        raise HpmlError(f"{path}: no workload {workload!r} for {phase}: it has {', '.join(entries) or 'none'}")
    entry = entries[key]
    if "knobs" not in entry:
        raise HpmlError(f"{path}: no recommendation for {workload} {phase} on {chosen}: {entry.get('none', 'no knobs')}")
    knobs = _mapping(path, f"{key}.{phase}.knobs", entry["knobs"])
    try:
        validate(phase, knobs)
    except HpmlError as error:
        raise HpmlError(f"{path}: {key}.{phase}: {error}") from None
    where = "" if chosen == here else f"; measured on another machine than this one ({here})"
    taken = {name: value for name, value in knobs.items() if name not in without}
    note = f"{path}: {_turned(taken) or 'no knobs'}, as recommended for {chosen}{where}"
    left = {name: value for name, value in knobs.items() if name in without}
    return Config(workload, taken, note + (f"; not taken, as the service settles them: {_turned(left)}" if left else ""))


def _turned(knobs: dict) -> str:
    return ", ".join(f"{name}={value}" for name, value in knobs.items())


def _machines(path: Path) -> tuple[dict, str | None]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as error:
        raise HpmlError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise HpmlError(f"{path}: not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    content = _mapping(path, "the file", content, TOP)
    if content.get("format") != recommend.FORMAT:
        raise HpmlError(f"{path}: format: {content.get('format')!r}: this version reads format {recommend.FORMAT}")
    machines = _mapping(path, "machines", content.get("machines"))
    for name, part in machines.items():
        _mapping(path, f"machines.{name}", part, MACHINE)
    return machines, content.get("machine")


def _entries(path: Path, part: dict, phase: str) -> dict[str, dict]:
    found = {}
    for name, phases in _mapping(path, "workloads", part.get("workloads")).items():
        phases = _mapping(path, name, phases, set(recommend.PHASES))
        if phase in phases:
            found[name] = _mapping(path, f"{name}.{phase}", phases[phase], ENTRY)
    return found


def _mapping(path: Path, what: str, value: Any, known: set[str] | None = None) -> dict:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise HpmlError(f"{path}: {what}: a mapping of names is needed, not {'nothing' if value is None else type(value).__name__}")
    if known is not None and (unknown := sorted(set(value) - known)):
        raise HpmlError(f"{path}: {what}: unknown key {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    return value
