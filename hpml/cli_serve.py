"""The commands that use a model: `hpml serve`, `export-triton`, `load-test` and `track`."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from hpml import env
from hpml.env import HpmlError

# Knobs of inference that a service settles itself: by its streams, its queue, and engines that it keeps.
# The batch of a recommendation was measured without a deadline: how many requests share a call is --max-batch, or what --search found.
OF_THE_SERVICE = ("batch", "hint", "shapes", "stored", "replicas", "measure")

WORKLOAD = "resnet50"
# What is served where neither a flag nor --config says it; image None: the tier's, or that of trained weights.
DEFAULTS = {"engine": "openvino", "precision": "fp32", "image": None, "weights": "auto", "data": "auto", "device": "cpu"}


def serve(
    workload: Annotated[str | None, typer.Option(help="a workload of the course by name, or a file of your own (default: the only one of "
                                                 "--config, else resnet50)")] = None,
    config: Annotated[Path | None, typer.Option(help="a recommended.yaml (hpml report writes it); flags override it")] = None,
    engine: Annotated[str | None, typer.Option(help="openvino (default), onnxruntime, eager, torchscript, compile or tensorrt")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 (default), bf16, fp16 or int8")] = None,
    host: Annotated[str, typer.Option(help="127.0.0.1 is this machine alone; 0.0.0.0 opens it to the network")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 = any free one")] = 8000,
    run_id: Annotated[str | None, typer.Option(help="the run whose trained weights are served and that keeps the engine")] = None,
    weights: Annotated[str | None, typer.Option(help="auto (default: the run's, else published ones, else random), random, trained, "
                                                "pretrained, a file")] = None,
    gallery: Annotated[str | None, typer.Option(help="clip: a folder of pictures to search (default: test frames)")] = None,
    image: Annotated[int | None, typer.Option(help="side of the model's input in pixels (default: the tier's)")] = None,
    tier: Annotated[str, typer.Option(help="sizes: smoke, cpu, gpu or full")] = "cpu",
    device: Annotated[str | None, typer.Option(help="cpu (default) or cuda")] = None,
    data: Annotated[str | None, typer.Option(help="auto (default), real, standin or one data set by name")] = None,
    streams: Annotated[int | None, typer.Option(help="model calls at the same time")] = None,
    threads: Annotated[int | None, typer.Option(help="compute threads of all streams together")] = None,
    max_batch: Annotated[int | None, typer.Option(help="requests in one model call, at most")] = None,
    max_wait_ms: Annotated[float | None, typer.Option(help="how long the first request of a batch waits for others")] = None,
    queue: Annotated[int | None, typer.Option(help="accepted requests that are not answered yet, at most")] = None,
    deadline_ms: Annotated[float | None, typer.Option(help="a request that would take longer is refused at once (503)")] = None,
    decoders: Annotated[int | None, typer.Option(help="threads that turn bytes into inputs")] = None,
    max_body_mb: Annotated[float | None, typer.Option(help="a larger body is refused (413)")] = None,
    max_bodies_mb: Annotated[float | None, typer.Option(help="beyond so much of all bodies under way a request is refused (503)")] = None,
    max_megapixels: Annotated[float | None, typer.Option(help="a larger picture is refused (413) before it is decoded")] = None,
    search: Annotated[bool, typer.Option("--search", help="find streams and batch by a short search, save them, and end")] = False,
) -> None:
    """Serve a workload over HTTP, with a page at /. Loopback only; a deadline kept by refusing what would miss it."""
    from hpml import cases, workloads
    from hpml.serve import server

    given = {"streams": streams, "threads": threads, "max_batch": max_batch, "max_wait_ms": max_wait_ms, "queue": queue,
             "deadline_ms": deadline_ms, "decoders": decoders, "max_body_mb": max_body_mb, "max_bodies_mb": max_bodies_mb,
             "max_megapixels": max_megapixels}
    given = {name: value for name, value in given.items() if value is not None}
    knobs = {}
    if config:
        from hpml import configfile

        found = configfile.read(config, phase="infer", workload=workload, default=WORKLOAD, without=OF_THE_SERVICE)
        print(found.note, file=sys.stderr)
        workload, knobs = found.workload, dict(found.knobs)
        if "threads" in knobs:
            given = {"threads": knobs.pop("threads"), **given}
    workload = workload or WORKLOAD
    flags = {"engine": engine, "precision": precision, "image": image, "weights": weights, "data": data, "device": device}
    chosen = {name: knobs.pop(name, default) for name, default in DEFAULTS.items()}
    chosen |= {name: flag for name, flag in flags.items() if flag is not None}
    asked = {**chosen, "tier": tier, "run_id": run_id, "knobs": knobs}
    cases.check_device(chosen["device"])
    if gallery is not None and (module := workloads.get(workload)).NAME != "clip":
        raise HpmlError(f"--gallery {gallery}: {module.TITLE} searches no pictures, only --workload clip does")
    if gallery is not None and not Path(gallery).expanduser().is_dir():
        raise HpmlError(f"--gallery {gallery}: no such folder")
    if search:
        print(server.search(workload, given, **asked))
    else:
        server.serve(workload, given, host=host, port=port, gallery=gallery, **asked)


def export_triton(
    workload: str,
    repository: Annotated[Path, typer.Argument(help="Triton's model repository; made where it is absent")],
    engine: Annotated[str, typer.Option(help="onnxruntime, or its accelerator openvino or tensorrt")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="fp32, fp16 (on a GPU) or int8")] = "fp32",
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
    asked = [name.strip() for name in scenario.split(",") if name.strip()]
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
    print(f"written to {out or env.results_dir() / 'track' / video.stem}: {', '.join(done['written'])}")
    if done["incomplete"]:
        raise typer.Exit(1)
