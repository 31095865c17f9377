"""The command line: what a user types, each command a thin layer over the modules below."""

import contextlib
import enum
import inspect
import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from hpml import cli_clip, env
from hpml.env import HpmlError
from hpml.knobs import KNOBS

HELP = """What makes deep learning faster, measured: a study of six workloads.

\b
To begin:
  hpml env                            what this machine is
  hpml run                            the study here, 45 minutes at most
  hpml run --only 23 --tier smoke     one notebook, to see that it works
  hpml lab                            the course in JupyterLab
  hpml report RUN                     the report, and what to run here
  hpml COMMAND --help                 every option of a command
"""
app = typer.Typer(help=HELP,
                  no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data_app = typer.Typer(help="Data sets: what is here, fetch one, check one.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(cli_clip.app, name="clip")

ALIASES = {"workers": ("--num-workers",), "accum_steps": ("--gradient-accumulation",)}
SHORTHANDS = {"torch_script": ("script", "torchscript"), "compile": ("script", "compile"),
              "data_parallel": ("parallel", "dp"), "distributed": ("parallel", "ddp")}
# Knobs of inference that a service settles itself: by its streams, its queue, and engines that it keeps.
OF_THE_SERVICE = ("threads", "batch", "hint", "shapes", "stored", "replicas", "measure")


def seconds(budget: str) -> float | None:
    """'45m', '90s', '2h' or a number of minutes as seconds; 'none' as None. Raises HpmlError."""
    if budget == "none":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", budget)
    if not found or float(found[1]) <= 0:
        raise HpmlError(f"budget {budget!r}: give minutes (45m), hours (2h), seconds (90s) or none")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "": 60}[found[2]]


def _list(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


@app.command()
def run(
    tier: Annotated[str | None, typer.Option(help="smoke, cpu, gpu or full; default: gpu where there is one, else cpu")] = None,
    workloads: Annotated[str | None, typer.Option(help="a,b (default: resnet50 on the ladder, all in their own notebooks)")] = None,
    only: Annotated[str | None, typer.Option(help="notebook numbers, as 23,33")] = None,
    run_id: Annotated[str | None, typer.Option(help="name of the run's folder under results/runs")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run; nothing recorded is measured again")] = False,
    rounds: Annotated[int | None, typer.Option(help="rounds of each comparison (default: 3, up to 6 while undecided)")] = None,
    budget: Annotated[str, typer.Option(help="the run ends within this time: 45m, 2h or none")] = "45m",
    data: Annotated[str, typer.Option(help="auto, real, standin or one data set by name")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: what the tier says)")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say which notebooks would run and how long, and do nothing")] = False,
) -> None:
    """Run the study: every notebook, then a report.

    A budget that is short beside the work is a piece of it: --budget 8m, then --resume --run-id NAME --budget 8m, until all is done."""
    from hpml import runner

    tier = tier or ("cpu" if env.no_gpu() else "gpu")
    code = runner.run(tier=tier, workloads=_list(workloads), only=_list(only), run_id=run_id, resume=resume,
                      rounds=rounds, budget_s=seconds(budget), data=data, device=device, dry_run=dry_run)
    raise typer.Exit(code)


def _train(workload: str | None, tier: str, run_id: str | None, dry_run: bool, config: Path | None, **flags) -> None:
    """Train a workload for real; every knob is a flag. Quality after each epoch, weights, TensorBoard logs; what is not given is
    the file's of --config, else the tier's."""
    from hpml import cases, distributed, study

    chosen = {}
    for name, value in flags.items():
        if value is None or value is False and name in SHORTHANDS:
            continue
        knob, setting = SHORTHANDS.get(name, (name, value))
        if chosen.get(knob, setting) != setting:
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
    if case.knobs["device"] == "cuda" and env.no_gpu():
        raise HpmlError(f"device cuda: {env.no_gpu()}")
    if dry_run:
        _describe(case)
        return
    here = distributed.place()
    if here.size > 1 and not run_id:
        raise HpmlError("under torchrun give --run-id, so that all ranks work in one folder")
    run_id = run_id or f"train-{time.strftime('%Y%m%d-%H%M%S')}"
    with contextlib.nullcontext() if here.index else _followed(env.run_dir(run_id) / "logs"):
        results = study.run(case, rounds=1, run_id=run_id)
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
            kind = enum.StrEnum(name, {c: c for c in knob.choices}) if knob.choices else type(knob.default)
            options.append(option(name, kind | None, None, flag, *ALIASES.get(name, ()), text=knob.help))
    options += [option(name, bool, False, "--" + name.replace("_", "-"), text=f"the same as --{knob} {value}")
                for name, (knob, value) in SHORTHANDS.items()]
    return inspect.Signature(options)


_train.__signature__ = _train_signature()
_train.__annotations__ = {name: p.annotation for name, p in _train.__signature__.parameters.items()}
app.command("train")(_train)


@app.command()
def check(
    workload: Annotated[str, typer.Argument(help="a file of your own (my_model.py), or a workload of the course by name")],
    data: Annotated[str, typer.Option(help="the knob data: auto, real, standin or one data set by name")] = "auto",
    export: Annotated[bool, typer.Option("--export/--no-export", help="also export the graph and compare it")] = True,
) -> None:
    """Ask a workload for what it must hold. One line each; exit code 1 where something is missing or wrong."""
    from hpml import check as contract

    wrong = 0
    for finding in contract.findings(workload, data=data, export=export):
        print(finding, flush=True)
        wrong += finding.ok is False
    if wrong:
        print(f"{workload}: {wrong} line{'s' * (wrong > 1)} to mend (CONTRIBUTING.md, Adding a workload)")
        raise typer.Exit(1)
    print(f"{workload}: nothing is missing or wrong")


@app.command()
def report(
    run_id: Annotated[str | None, typer.Argument(help="a run's name")] = None,
    readme: Annotated[bool, typer.Option("--readme", help="write README.md's generated parts and each reference machine's page")] = False,
    bless: Annotated[bool, typer.Option("--bless", help="make this run the reference of its machine (6 rounds, clean commit)")] = False,
) -> None:
    """Build a run's report and recommended.yaml again. Or write README's results (--readme); or bless a run as reference (--bless)."""
    from hpml import recommend, reference, report_readme
    from hpml import report as site

    if readme:
        print(*report_readme.write(env.root() / "README.md"), sep="\n")
        return
    if not run_id:
        raise HpmlError("give a run's name, or --readme")
    if bless:
        print(reference.bless(run_id))
        return
    folder = env.run_dir(run_id)
    if not folder.is_dir():
        raise HpmlError(f"no run {run_id!r} in {folder.parent}")
    print(site.build(folder))
    print(*recommend.write(folder), sep="\n")


@app.command("compare")
def compare_runs(
    run_a: Annotated[str, typer.Argument(help="a run's id, reference, reference/<machine>, or a folder with records.jsonl")],
    run_b: Annotated[str, typer.Argument(help="the run that is judged, named likewise")],
    unlike_machines: Annotated[bool, typer.Option("--unlike-machines", help="compare although the machines differ")] = False,
    unlike_protocols: Annotated[bool, typer.Option("--unlike-protocols", help="compare although the ways of measuring differ")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="leave out the cases without a difference")] = False,
) -> None:
    """What became faster, slower or worse in RUN_B. Exit code 1 where something is worse than in RUN_A beyond the noise."""
    from hpml import agreement, sittings, tables_runs

    found = agreement.between(sittings.open_run(run_a), sittings.open_run(run_b), unlike_machines=unlike_machines,
                              unlike_protocols=unlike_protocols)
    print(tables_runs.text(found, every=not changed))
    if found.regressions:
        raise typer.Exit(1)


@app.command("load-test")
def load_test(
    workload: Annotated[str, typer.Option(help="a workload that answers images, by name or as a file")] = "resnet50",
    engine: Annotated[str, typer.Option(help="what executes the model")] = "openvino",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8")] = "fp32",
    tier: Annotated[str, typer.Option(help="lengths of the windows: smoke, cpu, gpu or full")] = "cpu",
    scenario: Annotated[str, typer.Option(help="a,b of bound, singlestream, offline, server, accuracy")] = "bound,offline,server",
    transport: Annotated[str, typer.Option(help="inprocess or http")] = "inprocess",
    image: Annotated[int | None, typer.Option(help="side of the model's input in pixels (default: the tier's)")] = None,
    limit_ms: Annotated[float, typer.Option(help="milliseconds within which 99 of 100 queries are to be answered")] = 150.0,
    seconds: Annotated[float, typer.Option(help="length of the window that counts (default: the tier's)")] = 0.0,
    weights: Annotated[str, typer.Option(help="trained, random, pretrained or a .safetensors file")] = "trained",
    data: Annotated[str, typer.Option(help="auto, real, standin or one data set by name")] = "auto",
    url: Annotated[str | None, typer.Option(help="test a server that runs already; nothing is recorded")] = None,
    run_id: Annotated[str | None, typer.Option(help="name of the run's folder under results/runs")] = None,
) -> None:
    """What a service stands, by MLPerf LoadGen. The highest rate within the limit at P99, beside the bound of queueing theory."""
    from hpml import cases, results, study, tables_serving

    known = ("bound", "singlestream", "offline", "server", "accuracy")
    asked = _list(scenario) or []
    if wrong := [name for name in asked if name not in known] or not asked:
        raise HpmlError(f"scenario {scenario!r}: choose from {', '.join(known)}" + (f", not {wrong[0]}" if asked else ""))
    sizes = {} if image is None else {"image": image}
    made = [cases.case(workload, phase="serve", tier=tier, engine=engine, precision=precision, scenario=name, transport=transport,
                       limit_ms=limit_ms, seconds=seconds, weights=weights, data=data, **sizes) for name in asked]
    if url:
        from hpml import loadtest, workloads

        for case in made:
            print(loadtest.against(url, workloads.get(case.workload), case.knobs, tier))
        return
    run_id = run_id or f"load-{time.strftime('%Y%m%d-%H%M%S')}"
    records = [record for case in made for record in study.run(case, rounds=1, run_id=run_id).records]
    print(tables_serving.text(results.load(run_id).records))
    if lost := [record for record in records if record.status != "ok"]:
        raise HpmlError(f"{lost[0].status}: {lost[0].reason}" + (f" (log: {env.run_dir(run_id) / lost[0].log})" if lost[0].log else ""))


@data_app.command("list")
def data_list() -> None:
    """Which data sets there are, where they lie or how to get them."""
    from hpml.data import fetch

    for entry in fetch.status():
        print(f"{entry['name']:<10} {entry['title']}: {entry['found'] or entry['how']} (licence: {entry['licence']})")


@data_app.command("fetch")
def data_fetch(name: str) -> None:
    """Download a data set from its publisher, with checksum; an interrupted download goes on."""
    from hpml.data import fetch

    print(f"{name}: {fetch.fetch(name)}")


@data_app.command("pull")
def data_pull(
    url: Annotated[str, typer.Argument(help="a folder with an index.json, on a web server with range requests")],
    dst: Annotated[Path, typer.Argument(help="folder to pull into; an interrupted pull into it goes on")],
    connections: Annotated[int, typer.Option(help="TCP connections at the same time")] = 8,
    limit_rate: Annotated[str, typer.Option(help="bytes a second over all connections, as 500K or 2M; 0 = no limit")] = "0",
) -> None:
    """Pull shards over several connections at once, each checked by its sha256. Exit code 1 where one did not come."""
    from hpml.data import pull

    done = pull.pull(url, dst, connections=connections, limit_rate=limit_rate)
    for name, reason in done.failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if done.failed:
        print(f"{dst}: {len(done.failed)} shards are missing; what came is kept, the same command goes on", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{dst}: {done.shards} shards, verified")


@data_app.command("check")
def data_check(
    name: str,
    fix: Annotated[bool, typer.Option("--fix", help="move bad files aside (into set_aside); nothing is deleted")] = False,
) -> None:
    """Say what is wrong with a data set on this machine, or with a folder of shards: file and reason."""
    from hpml.data import fetch, shards

    if (Path(name) / shards.INDEX).is_file():
        if fix:
            raise HpmlError(f"{name}: --fix moves single files; a shard that is wrong is packed or pulled again")
        wrong = shards.verify(Path(name))
    else:
        wrong = fetch.check(name, fix=fix)
    for line in wrong:
        print(line)
    if wrong:
        raise typer.Exit(1)
    print(f"{name}: nothing wrong")


@data_app.command("shard")
def data_shard(
    source: Annotated[str, typer.Argument(metavar="SRC", help="a folder (train/<class>/*.jpg or ImageNet's layouts), imagenet or standin")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="the folder of the shards")],
    shard_mib: Annotated[float, typer.Option(help="size of a shard")] = 64,
    quality: Annotated[int | None, typer.Option(help="encode each JPEG again at this quality (1 to 95)")] = None,
    max_side: Annotated[int | None, typer.Option(help="shrink the longer side to this many pixels, and encode again")] = None,
    threads: Annotated[int, typer.Option(help="shards packed at the same time; 0 = as many as there are cores")] = 0,
    seed: Annotated[int, typer.Option(help="of the order in which samples are packed")] = 0,
    with_test: Annotated[bool, typer.Option("--with-test", help="pack the test images too, into shards of their own")] = False,
    check: Annotated[bool, typer.Option("--check", help="decode every image first; else only those that look damaged")] = False,
) -> None:
    """Pack images into WebDataset shards with an index of sizes and checksums. Run again, it goes on where it stopped."""
    from hpml.data import imagefolder, packing, recode, shards

    files, began = imagefolder.source(source), time.perf_counter()
    asked = None
    if quality is not None or max_side is not None:
        asked = recode.Recode(recode.QUALITY if quality is None else quality, max_side or 0)
        step = max(1, len(files.train_images) // packing.SAMPLE)
        if some := recode.readable(files, files.train_images[::step][:packing.SAMPLE]):
            print(recode.text(recode.table(some, asked)))
    parts = shards.PARTS if with_test and files.informative else ("train",)
    index = packing.pack(files, target, shard_mib=shard_mib, recode=asked, threads=threads, seed=seed, parts=parts, check=check)
    for entry in index.skipped[:20]:
        print(f"left out: {entry['name']}: {entry['reason']}")
    took = time.perf_counter() - began
    left_out = f", {len(index.skipped)} left out" if index.skipped else ""
    print(f"{target}: {index.samples:,} samples in {len(index.shards)} shards, {index.bytes / 2**20:,.1f} MiB{left_out}; {took:.1f} s, "
          f"{index.bytes / 2**20 / took:,.0f} MiB/s")


@data_app.command("shuttle-label")
def data_shuttle_label(
    source: Annotated[Path, typer.Argument(metavar="VIDEO", help="a video file")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="the folder for Label Studio; several videos may share it")],
    start: Annotated[float, typer.Option(help="seconds from which on frames are labelled")] = 0,
    stop: Annotated[float | None, typer.Option(help="seconds up to which frames are labelled (default: all)")] = None,
    png: Annotated[bool, typer.Option("--png", help="frames as PNG, without loss and about six times as large")] = False,
) -> None:
    """Write a video's frames, a labelling config and tasks for Label Studio. Run again, it goes on; nothing is overwritten."""
    from hpml.data import labelling

    count = labelling.label(source, target, start_s=start, stop_s=stop, png=png)
    print(f"{target}: {count:,} frames of {source.name} to label")
    print(labelling.START.format(root=target.resolve(), tasks=f"tasks_{source.stem}.json"))


@data_app.command("shuttle-prepare")
def data_shuttle_prepare(
    export: Annotated[Path, typer.Argument(metavar="EXPORT", help="Label Studio's export (CSV, TSV, JSON, JSON-MIN), TrackNet's CSV or a "
                                           "folder of them")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="the folder of the set; as data/shuttle it is found by itself")],
    frames: Annotated[Path | None, typer.Option(help="folder of the pictures: one folder a clip, or one clip")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="a clip's video, named as the clip; may be given several times")] = None,
    png: Annotated[bool, typer.Option("--png", help="frames of videos as PNG, without loss")] = False,
) -> None:
    """Make a training set from labels and their frames; print what was found wrong and how it was decided."""
    from hpml.data import prepare

    print(prepare.text(prepare.prepare(export, target, frames=frames, videos=video or (), png=png)))


@data_app.command("shuttle-render")
def data_shuttle_render(
    target: Annotated[Path, typer.Argument(metavar="DST", help="the folder: video/clip0.mp4, csv/clip0_ball.csv and so on")],
    clips: Annotated[int, typer.Option(help="videos")] = 1,
    frames: Annotated[int, typer.Option(help="frames of each, 30 a second")] = 300,
    cuts: Annotated[int, typer.Option(help="cuts to another scene in each")] = 0,
    width: Annotated[int, typer.Option(help="pixels; the height is 9/16 of it")] = 1280,
    seed: Annotated[int, typer.Option(help="another one gives other scenes")] = 0,
) -> None:
    """Render badminton rallies as videos with the shuttle's exact places, in TrackNet's folders; `hpml track` reads the videos."""
    from hpml.data import film

    for path in film.film(target, clips=clips, frames=frames, cuts=cuts, width=width, seed=seed):
        print(path)


@data_app.command("publish")
def data_publish(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a set made by shuttle-prepare or shard")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hugging Face hub")],
    yes: Annotated[bool, typer.Option("--yes", help="send it; without this, only what would be sent is said")] = False,
    public: Annotated[bool, typer.Option("--public", help="a new data set is seen by everybody; default: by its owner")] = False,
) -> None:
    """Send a processed set to the Hugging Face hub as a data set. Nothing is sent without --yes."""
    from hpml.data import publish

    asked = publish.plan(folder, repo)
    print(asked)
    if yes:
        print(publish.send(asked, public=public))
    else:
        print("nothing was sent; --yes sends it, " + ("to be seen by everybody" if public else "private if it is new"))


@app.command("weights")
def fetch_weights(workload: str) -> None:
    """Download a workload's published weights. By checksum; `--weights pretrained` and weights="pretrained" use them."""
    from hpml import pretrained
    from hpml import workloads as known

    print(f"{workload}: {pretrained.fetch(known.get(workload))}")


@app.command()
def notebooks(
    store: Annotated[str | None, typer.Option(help="run at the smoke tier and keep the outputs: numbers as 23,30, or all")] = None,
    check: Annotated[bool, typer.Option("--check", help="fail when a stored notebook is not in normal form")] = False,
) -> None:
    """List the notebooks, store or check them. Stored are the outputs of the smoke tier, in normal form."""
    from hpml import notebooks as course

    if store:
        course.store([n.path for n in course.chosen(None if store == "all" else _list(store))])
    elif check:
        wrong = course.not_normalised()
        if wrong:
            raise HpmlError(f"not in normal form: {', '.join(wrong)}; run hpml notebooks --store NUMBER")
    else:
        for book in course.course():
            print(f"{book.name:<28} {book.question}")


@app.command()
def serve(
    workload: Annotated[str, typer.Option(help="a workload of the course by name, or a file of your own")] = "resnet50",
    config: Annotated[Path | None, typer.Option(help="a recommended.yaml (hpml report writes it); flags override it")] = None,
    engine: Annotated[str | None, typer.Option(help="openvino (default), onnxruntime, eager, torchscript, compile or tensorrt")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 (default), bf16, fp16 or int8")] = None,
    host: Annotated[str, typer.Option(help="127.0.0.1 is this machine alone; 0.0.0.0 opens it to the network")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 = any free one")] = 8000,
    run_id: Annotated[str | None, typer.Option(help="the run whose trained weights are served and that keeps the engine")] = None,
    weights: Annotated[str, typer.Option(help="auto (the run's, else published ones, else random), random, trained, pretrained, a file")
                       ] = "auto",
    gallery: Annotated[str | None, typer.Option(help="clip: a folder of pictures to search (default: test frames)")] = None,
    image: Annotated[int | None, typer.Option(help="side of the model's input in pixels (default: the tier's)")] = None,
    tier: Annotated[str, typer.Option(help="sizes: smoke, cpu, gpu or full")] = "cpu",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    data: Annotated[str, typer.Option(help="auto, real, standin or one data set by name")] = "auto",
    streams: Annotated[int | None, typer.Option(help="model calls at the same time")] = None,
    threads: Annotated[int | None, typer.Option(help="compute threads of all streams together")] = None,
    max_batch: Annotated[int | None, typer.Option(help="requests in one model call, at most")] = None,
    max_wait_ms: Annotated[float | None, typer.Option(help="how long the first request of a batch waits for others")] = None,
    queue: Annotated[int | None, typer.Option(help="accepted requests that are not answered yet, at most")] = None,
    deadline_ms: Annotated[float | None, typer.Option(help="a request that would take longer is refused at once (503)")] = None,
    decoders: Annotated[int | None, typer.Option(help="threads that turn bytes into inputs")] = None,
    max_body_mb: Annotated[float | None, typer.Option(help="a larger body is refused (413)")] = None,
    max_megapixels: Annotated[float | None, typer.Option(help="a larger picture is refused (413) before it is decoded")] = None,
    search: Annotated[bool, typer.Option("--search", help="find streams and batch by a short search, save them, and end")] = False,
) -> None:
    """Serve a workload over HTTP, with a page at /. Loopback only; a deadline kept by refusing what would miss it."""
    from hpml.serve import server

    given = {"streams": streams, "threads": threads, "max_batch": max_batch, "max_wait_ms": max_wait_ms, "queue": queue,
             "deadline_ms": deadline_ms, "decoders": decoders, "max_body_mb": max_body_mb, "max_megapixels": max_megapixels}
    given = {name: value for name, value in given.items() if value is not None}
    knobs = {}
    if config:
        from hpml import configfile

        found = configfile.read(config, phase="infer", workload=workload)
        print(found.note, file=sys.stderr)
        knobs = {name: value for name, value in found.knobs.items() if name not in OF_THE_SERVICE}
        given = {"threads": found.knobs["threads"]} | given if "threads" in found.knobs else given
    asked = {"engine": engine or knobs.pop("engine", "openvino"), "precision": precision or knobs.pop("precision", "fp32"), "tier": tier,
             "image": image, "run_id": run_id, "weights": weights, "data": data, "device": device,
             "knobs": {name: value for name, value in knobs.items() if name not in ("engine", "precision")}}
    if search:
        print(server.search(workload, given, **asked))
    else:
        server.serve(workload, given, host=host, port=port, gallery=gallery, **asked)


@app.command("export-triton")
def export_triton(
    workload: str,
    repository: Annotated[Path, typer.Argument(help="Triton's model repository; made where it is absent")],
    engine: Annotated[str, typer.Option(help="onnxruntime, or its accelerator openvino or tensorrt")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="fp32 or int8")] = "fp32",
    weights: Annotated[str, typer.Option(help="auto (the run's, else published ones, else random), random, trained, pretrained, a file")
                       ] = "auto",
    run_id: Annotated[str, typer.Option(help="the run whose trained weights are taken and that keeps the graphs")] = "serve",
    image: Annotated[int | None, typer.Option(help="side of the model's input in pixels (default: the tier's)")] = None,
    tier: Annotated[str, typer.Option(help="sizes: smoke, cpu, gpu or full")] = "cpu",
    device: Annotated[str, typer.Option(help="cpu or cuda: where Triton runs it")] = "cpu",
    data: Annotated[str, typer.Option(help="auto, real, standin or one data set by name")] = "auto",
    streams: Annotated[int, typer.Option(help="instances of the model; 0 = one")] = 0,
    threads: Annotated[int, typer.Option(help="compute threads of an instance; 0 = all cores")] = 0,
    max_batch: Annotated[int, typer.Option(help="requests in one model call, at most")] = 8,
    max_wait_ms: Annotated[float, typer.Option(help="how long the first request of a batch waits for others")] = 2.0,
    queue: Annotated[int, typer.Option(help="requests that wait, at most; Triton refuses more")] = 64,
    deadline_ms: Annotated[float, typer.Option(help="Triton refuses what has waited longer")] = 150.0,
) -> None:
    """Write a graph as a model of NVIDIA Triton. Configuration, labels, and how to start it."""
    from hpml.serve import triton

    made = triton.export(workload, repository, engine=engine, precision=precision, tier=tier, image=image, run_id=run_id, weights=weights,
                         data=data, device=device, settings={"streams": streams, "threads": threads, "max_batch": max_batch,
                                                             "max_wait_ms": max_wait_ms, "queue": queue, "deadline_ms": deadline_ms})
    print(f"{made}: {', '.join(sorted(str(path.relative_to(made)) for path in made.rglob('*') if path.is_file()))}")
    print(f"start it: {triton.START.format(root=repository.resolve())}")


@app.command("lab")
def open_lab(
    port: Annotated[int, typer.Option(help="0 = any free one; a busy one: the next free one")] = 8888,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open a browser at the first notebook")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be copied and started, and do nothing")] = False,
) -> None:
    """Open the course in JupyterLab. In copies of your own under lab/, of which none is overwritten; loopback only, with a token."""
    from hpml import lab

    lab.open_course(port=port, browser=browser, dry_run=dry_run)


@app.command()
def track(
    video: Annotated[Path, typer.Argument(help="a video file")],
    weights: Annotated[str | None, typer.Option(help="a run that has trained the shuttle localizer, or a .safetensors file (none: random)")
                       ] = None,
    engine: Annotated[str, typer.Option(help="openvino, onnxruntime, eager, torchscript, compile or tensorrt")] = "openvino",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8")] = "fp32",
    out: Annotated[Path | None, typer.Option(help="folder of the results (default: results/track/<name of the video>)")] = None,
    image: Annotated[int | None, typer.Option(help="width of the model's frame in pixels (default: that of the weights)")] = None,
    variant: Annotated[str | None, typer.Option(help="the model's design, as small+bifpn (default: that of the weights)")] = None,
    tier: Annotated[str, typer.Option(help="sizes where nothing else says them: smoke, cpu, gpu or full")] = "cpu",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    annotate: Annotated[bool, typer.Option("--annotate/--no-annotate", help="write a video with the places drawn in")] = True,
) -> None:
    """Find the shuttle in every frame of a video. Positions as CSV, an annotated video, a summary; engines are stored and used again."""
    from hpml.serve import tracking as application

    done = application.track(video, out=out, weights=weights, engine=engine, precision=precision, tier=tier, image=image, variant=variant,
                             device=device, annotate=annotate, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(application.text(done))
    print(f"written to {out or env.results_dir() / 'track' / video.stem}: {', '.join(application.FILES.values())}")


@app.command("env")
def show_env() -> None:
    """This machine, what is installed, which engines. Printed as JSON."""
    from hpml import engines

    reasons = engines.availability("cpu")
    print(json.dumps({"machine": env.machine(), "versions": env.versions(), "git": env.git(),
                      "engines": {name: reason or "available" for name, reason in reasons.items()}}, indent=1))


def main() -> None:
    """Entry point. What a user can mend is one line and exit code 2; a run in which something failed ends with 1."""
    try:
        app()
    except HpmlError as error:
        print(f"hpml: {error}", file=sys.stderr)
        sys.exit(2)
