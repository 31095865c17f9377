"""`hpml train`: every training knob is a flag, made from the one table of knobs."""

import contextlib
import enum
import inspect
import json
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from hpml import env
from hpml.env import HpmlError
from hpml.knobs import KNOBS, choices

ALIASES = {"workers": ("--num-workers",), "accum_steps": ("--gradient-accumulation",)}
SHORTHANDS = {"torch_script": ("script", "torchscript"), "compile": ("script", "compile"),
              "data_parallel": ("parallel", "dp"), "distributed": ("parallel", "ddp")}


def train(workload: str | None, tier: str, run_id: str | None, dry_run: bool, config: Path | None, **flags) -> None:
    """Train a workload for real; every knob is a flag. Quality after each epoch, weights, TensorBoard logs; what is not given is
    the file's of --config, else the tier's."""
    from hpml import cases, distributed, study
    from hpml import train as training

    chosen = {}
    for name, value in flags.items():
        if value is None or value is False and name in SHORTHANDS:
            continue
        knob, setting = SHORTHANDS.get(name, (name, value))
        if knob in chosen and chosen[knob] != setting:
            raise HpmlError(f"{knob}: {chosen[knob]!r} and {setting!r} exclude each other")
        chosen[knob] = str(setting) if isinstance(setting, enum.Enum) else setting
    if config:
        from hpml import configfile

        found = configfile.read(config, phase="train", workload=workload)
        workload, chosen = found.workload, {**found.knobs, **chosen}
        print(found.note, file=sys.stderr)
    if not workload:
        raise HpmlError("name a workload (hpml train resnet50), or give --config FILE")
    case = cases.case(workload, phase="train", tier=tier, fit=True, **chosen)
    if case.knobs["epochs"] == 0:
        raise HpmlError("epochs=0: give at least one epoch")
    # What no training can do, or none here, is said before anything starts, and to a dry run too.
    cases.check_device(case.knobs["device"])
    distributed.processes(case.phase, case.knobs)
    training.check_together(case.knobs)
    if dry_run:
        _describe(case)
        return
    here = distributed.place()
    if here.size > 1 and not run_id:
        raise HpmlError("under torchrun give --run-id, so that all ranks work in one folder")
    if not here.index and distributed.meets_the_dead():
        print("warning: after a restart a rank may be sent to the address of one that has ended, and fail for good: "
              "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun", file=sys.stderr)
    run_id = run_id or f"train-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        with contextlib.nullcontext() if here.index else _followed(env.run_dir(run_id) / "logs"):
            results = study.run(case, rounds=1, run_id=run_id)
    except KeyboardInterrupt:
        print(f"interrupted: the same command with --run-id {run_id} goes on from the last checkpoint", file=sys.stderr)
        raise
    record = results.records[-1]
    if record.status != "ok":
        raise HpmlError(f"{record.status}: {record.reason} (log: {env.run_dir(run_id) / record.log})")
    if here.index:
        return  # the first rank evaluated, and says so
    quality = record.quality
    print(f"{quality['metric']} {100 * quality['value']:.2f} % on {quality['n']:,} test samples, {record.actual['data']['title']} "
          f"({record.actual['data']['origin']}); weights: {env.run_dir(run_id) / 'models' / record.actual['artefacts']['weights']}")


def _describe(case) -> None:
    """What a training would do, without doing it."""
    from hpml import workloads

    workload = workloads.get(case.workload)
    image_set = workload.data(case.knobs)
    count = len(image_set.train_labels)
    steps = max(1, count // case.knobs["batch"])
    print(json.dumps(case.knobs, indent=1))
    unit = getattr(image_set, "unit", "images")
    print(f"{workload.TITLE}: {count:,} training and {len(image_set.test_labels):,} test {unit} of {image_set.title} "
          f"({image_set.origin}); {case.knobs['epochs']} epochs of {steps} steps; nothing was run")


@contextlib.contextmanager
def _followed(folder: Path):
    """Print what children write to their logs from now on, while the body runs."""
    stop = threading.Event()
    seen: dict[Path, int] = {path: path.stat().st_size for path in folder.glob("*.log")}

    def follow() -> None:
        last = False
        while not last:
            last = stop.wait(0.5)
            for path in folder.glob("*.log"):
                with path.open(errors="replace") as file:
                    file.seek(seen.get(path, 0))
                    sys.stdout.write(file.read())
                    seen[path] = file.tell()
            sys.stdout.flush()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _train_signature() -> inspect.Signature:
    """`hpml train`: every training knob is a flag, made from the one table of knobs."""
    def option(name: str, kind, default, *flags: str, text: str) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default,
                                 annotation=Annotated[kind, typer.Option(*flags, help=text)])

    options = [inspect.Parameter("workload", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None,
                                 annotation=Annotated[str | None, typer.Argument(help="a workload of the course by name, or a file")]),
               option("tier", str, "cpu", text="sizes: smoke, cpu, gpu or full"),
               option("run_id", str | None, None, text="name of the run's folder; the same name goes on with an interrupted training"),
               option("dry_run", bool, False, "--dry-run", text="say what would be done, and do nothing"),
               option("config", Path | None, None, text="a recommended.yaml (hpml report writes it); flags override it")]
    for name, knob in KNOBS.items():
        if "train" not in knob.phases:
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(knob.default, bool):
            options.append(option(name, bool | None, None, f"{flag}/--no-{flag[2:]}", text=knob.help))
        else:
            kind = enum.StrEnum(name, {c: c for c in choices("train", name)}) if knob.choices else type(knob.default)
            options.append(option(name, kind | None, None, flag, *ALIASES.get(name, ()), text=knob.help))
    options += [option(name, bool, False, "--" + name.replace("_", "-"), text=f"the same as --{knob} {value}")
                for name, (knob, value) in SHORTHANDS.items()]
    return inspect.Signature(options)


train.__signature__ = _train_signature()
train.__annotations__ = {name: p.annotation for name, p in train.__signature__.parameters.items()}
