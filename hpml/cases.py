"""Cases: a workload with every knob fixed, sweeps of them, and what the cases of one notebook share."""

import dataclasses
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpml import env
from hpml.env import HpmlError
from hpml.knobs import INT8_KNOBS, validate
from hpml.workloads import STORAGES, canonical, parts, without
from hpml.workloads import get as get_workload

TIERS = ("smoke", "cpu", "gpu", "full")
# Phases that share another one's sizes.
SIZES_OF = {"export": "infer", "quantize": "infer", "build": "infer", "serve": "infer", "profile": "train", "transfer": "data",
            "pack": "data"}


@dataclass
class Session:
    """What the cases of one notebook share; set by `use`."""

    run_id: str = "lab"
    notebook: str | None = None
    tier: str = "smoke"
    data: str = "auto"
    device: str = "cpu"
    started: float = field(default_factory=time.time)


_session = Session()


def session() -> Session:
    """What `use` set last."""
    return _session


def use(*, notebook: str | None = None, tier: str = "smoke", workloads: Sequence[str] = (), data: str = "auto", device: str | None = None,
        run_id: str | None = None) -> Session:
    """Check a notebook's parameters and make them the defaults of what follows; `device` None = a GPU where there is one.

    Raises HpmlError for an unknown tier, workload, device or run id.
    """
    global _session
    check_tier(tier)
    for name in workloads:
        get_workload(name)
    check_device(device or "cpu")
    run_id = run_id or os.environ.get("HPML_RUN_ID") or "lab"
    env.run_dir(run_id)
    _session = Session(run_id=run_id, notebook=notebook, tier=tier, data=data,
                       device=device or ("cuda" if tier in ("gpu", "full") and not env.no_gpu() else "cpu"))
    return _session


def check_tier(tier: str) -> None:
    """Raises HpmlError for a tier that there is not."""
    if tier not in TIERS:
        raise HpmlError(f"unknown tier {tier!r}: choose from {', '.join(TIERS)}")


def check_device(device: str) -> None:
    """Raises HpmlError for a device that there is not, at all or here."""
    if device not in ("cpu", "cuda"):
        raise HpmlError(f"device {device!r}: choose cpu or cuda")
    if device == "cuda" and (reason := env.no_gpu()):
        raise HpmlError(f"device {device!r}: {reason}")


@dataclass(frozen=True)
class Case:
    """A workload with every knob fixed: the thing that is measured."""

    workload: str
    phase: str
    tier: str
    knobs: dict
    protocol: dict
    technique: str
    arm: str = ""  # tells the two sides of an A/A comparison apart

    def sweep(self, **values: Sequence) -> list["Case"]:
        """One case for each combination of the given values; the first is the baseline."""
        for name, options in values.items():
            if isinstance(options, str) or not isinstance(options, Sequence) or not options:
                raise HpmlError(f"sweep: {name} needs a list of values, not {options!r}")
        combinations = itertools.product(*values.values())
        return [self.but(**dict(zip(values, combination, strict=True))) for combination in combinations]

    def but(self, **knobs) -> "Case":
        """This case with some knobs set otherwise; several of them make a stack."""
        technique = "+".join(knobs) or self.technique
        knobs = {**_quality_sizes(self.workload, self.tier, knobs), **knobs}
        return dataclasses.replace(self, knobs=_settled(self.workload, self.phase, {**self.knobs, **knobs}), technique=technique)

    def label(self, others: Sequence["Case"]) -> str:
        """The knobs in which the cases of a comparison differ, with this case's values."""
        idle = () if self.knobs.get("precision", "int8") == "int8" else INT8_KNOBS
        varying = [name for name in self.knobs if name not in idle and any(case.knobs[name] != self.knobs[name] for case in others)]
        return ", ".join(f"{name}={self.knobs[name]}" for name in varying) or (self.arm or "as it is")


def case(workload: str, *, phase: str = "train", tier: str | None = None, fit: bool = False, **knobs) -> Case:
    """A case of `workload` with the sizes of the tier; further knobs by name. `fit=True`: train for real by the tier's stop rule.

    Raises HpmlError for an unknown workload, phase, tier or knob, or a value out of range.
    """
    tier = tier or _session.tier
    check_tier(tier)
    if workload == "machine":
        return Case(workload, phase, tier, validate(phase, knobs), {}, "limit")
    workload = canonical(workload)
    sizes = get_workload(workload).SIZES[tier]
    allowed = validate(phase, {})
    like = SIZES_OF.get(phase, phase)  # whose sizes it has, and whose changes of the protocol
    # A reader may set a size; what the tier sets is only its default.
    defaults = {"data": _session.data, "device": _session.device, **sizes["fit" if fit else like],
                **_quality_sizes(workload, tier, knobs)}
    chosen = {name: value for name, value in defaults.items() if name in allowed}
    if (knobs.get("engine"), knobs.get("precision")) == ("tensorrt", "int8"):
        chosen["scheme"] = "symmetric"  # it takes no other
    return Case(workload, phase, tier, _settled(workload, phase, {**chosen, **knobs}),
                {**sizes["protocol"], **sizes.get(f"{like}_protocol", {})}, "as it is")


def _quality_sizes(workload: str, tier: str, knobs: dict) -> dict:
    """The tier's sizes of a quality pass, where the knobs ask for one: its inputs may be smaller than those of the speed figure."""
    return get_workload(workload).SIZES[tier].get("quality", {}) if knobs.get("measure") == "quality" else {}


def _settled(workload: str, phase: str, knobs: dict) -> dict:
    """The knobs checked and complete, without those that mean nothing for this workload. Raises HpmlError where one of these is set."""
    idle = without(get_workload(workload)) if workload != "machine" else ()
    refused = [name for name in knobs if name in idle]
    if refused:
        raise HpmlError(f"{Path(workload).stem}: the knob{'s' * (len(refused) > 1)} {', '.join(refused)} "
                        f"mean{'s' * (len(refused) == 1)} nothing for this workload")
    known = () if workload == "machine" else parts(get_workload(workload))
    if knobs.get("part", "whole") not in ("whole", *known):
        raise HpmlError(f"part={knobs['part']!r}: {Path(workload).stem} has the parts {', '.join(known)}")
    full = {name: value for name, value in validate(phase, knobs).items() if name not in idle}
    if full.get("variant", "base") not in ("base", "small"):
        if not hasattr(get_workload(workload), "design"):
            raise HpmlError(f"variant={full['variant']!r}: choose from base, small")
        get_workload(workload).design(full["variant"])  # it says what is wrong with a name
    known = getattr(get_workload(workload), "STORAGES", STORAGES) if "storage" in full else ()
    if full.get("storage") not in (None, *known):
        raise HpmlError(f"{Path(workload).stem}: storage={full['storage']!r} is not made for this workload: choose from {', '.join(known)}")
    return full
