"""The training loop, with every technique as a knob, and its measurement by steady steps."""

import contextlib
import math
import time
import warnings
from pathlib import Path
from types import ModuleType

from hpml import contrast, distributed, engines, pretrained, turns
from hpml import measure as m
from hpml.data.loader import endless, loader
from hpml.env import HpmlError, Unavailable
from hpml.work import known_work, step_work

PHASES = ("wait", "copy", "forward", "backward", "optimizer")


def train_step(model, micro_batches, knobs: dict, *, workload: ModuleType, optimizer, scaler, marks: m.Marks) -> float:
    """One optimizer step over accum_steps micro-batches of the iterator; five marks for each, one more at the end. Returns the mean loss.

    The gradient is that of the mean over all samples of the step: each micro-batch's summed loss is divided by the true count.
    """
    import torch

    device, total = knobs["device"], 0.0
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(knobs["precision"])
    batches = _arriving(micro_batches, knobs, workload, marks)
    if knobs.get("negatives") == "all":
        total = contrast.backward(model, batches, knobs, half=half, workload=workload, scaler=scaler, marks=marks)
    else:
        for micro, (inputs, targets) in enumerate(batches):
            last = micro == knobs["accum_steps"] - 1
            sync = contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()
            with sync:
                with torch.autocast(device, dtype=half, enabled=half is not None):
                    outputs = model(*inputs)
                loss = workload.loss(outputs, targets) / knobs["batch"]
                marks.mark()
                scaler.scale(loss).backward()
                marks.mark()
            total = total + loss.detach()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    marks.mark()
    return total


def _arriving(micro_batches, knobs: dict, workload: ModuleType, marks: m.Marks):
    """(inputs, targets) of each micro-batch of a step on the device, with the first three of its marks."""
    for _ in range(knobs["accum_steps"]):
        marks.mark()
        inputs, targets = workload.split(next(micro_batches))
        marks.mark()
        inputs = tuple(move(x, knobs["device"], knobs["non_blocking"], knobs.get("memory_format")) for x in inputs)
        targets = move(targets, knobs["device"], knobs["non_blocking"])
        marks.mark()
        yield inputs, targets


def move(x, device: str, non_blocking: bool, memory_format: str | None = None):
    """A tensor on the device; image tensors in the asked memory format, which other workloads do not know (None)."""
    import torch

    if memory_format == "channels_last" and x.dim() == 4:
        return x.to(device, non_blocking=non_blocking, memory_format=torch.channels_last)
    return x.to(device, non_blocking=non_blocking)


def phase_seconds(spans: list[float]) -> dict[str, float]:
    """Spans of one step's marks summed by phase. Each micro-batch gives wait, copy, forward, backward and the way to the next one,
    which is bookkeeping before the last and the optimizer after it."""
    sums = dict.fromkeys(PHASES, 0.0)
    for i, span in enumerate(spans):
        sums[PHASES[i % 5]] += span
    return sums


def build(workload: ModuleType, knobs: dict, classes: int, weights: Path | None):
    """(model ready to train, optimizer, scaler, actual). Raises Unavailable with the true reason for what cannot run here."""
    import torch

    device = knobs["device"]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if knobs["parallel"] == "ddp":
        distributed.join(knobs)
    model = workload.model(knobs, classes)
    if weights:
        load_weights(model, weights, workload)
    layout = torch.channels_last if knobs.get("memory_format") == "channels_last" else torch.contiguous_format
    model = model.to(device, memory_format=layout).train()
    lr = knobs["lr"] or workload.LEARNING_RATE[knobs["optimizer"]]
    if knobs["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    # FP16 gradients underflow without scaling; BF16 has FP32's range and needs none.
    scaler = torch.amp.GradScaler(device, enabled=knobs["precision"] == "fp16")
    actual = {"device": device, "threads": torch.get_num_threads(), "tf32": False, "cudnn_benchmark": torch.backends.cudnn.benchmark,
              "parameters": sum(p.numel() for p in model.parameters()), "lr": lr}
    if knobs["precision"] == "bf16" and device == "cpu":
        actual["bf16_native"] = bf16_native()
    return _parallel(_scripted(model, knobs["script"]), knobs, actual), optimizer, scaler, actual


def bf16_native() -> bool:
    """Whether this CPU has instructions for BF16."""
    from hpml.env import machine

    return any(flag in ("avx512_bf16", "amx_bf16") for flag in machine()["isa"])


def _scripted(model, script: str):
    import torch

    if script == "torchscript":
        with warnings.catch_warnings():
            for kind in (DeprecationWarning, FutureWarning):  # TorchScript is deprecated; the study measures it all the same
                warnings.simplefilter("ignore", kind)
            try:
                return torch.jit.script(model)
            except Exception as error:  # whatever a stray model provokes in a compiler of Python source
                raise Unavailable(f"torch.jit.script refuses {type(model).__name__}: {engines.one_line(error)}") from error
    if script == "compile":
        return torch.compile(model)
    return model


def _parallel(model, knobs: dict, actual: dict):
    import torch

    if knobs["parallel"] == "dp":
        if knobs["device"] != "cuda":
            raise Unavailable("DataParallel splits a batch over GPUs: no GPU here")
        actual["replicas"] = torch.cuda.device_count()
        return torch.nn.DataParallel(model)
    if knobs["parallel"] == "ddp":
        actual["replicas"] = distributed.place().size
        return torch.nn.parallel.DistributedDataParallel(model)
    return model


def load_weights(model, path: Path, workload: ModuleType) -> None:
    """Load a .safetensors file or published weights (.pth, .bin). Raises HpmlError for one that is damaged or of another model."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(pretrained.read(path, model, workload) if path.suffix in (".pth", ".bin") else load_file(path))
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError, AttributeError) as error:
        raise HpmlError(f"{path}: not weights of this model ({str(error).splitlines()[0]})") from None


def check_together(knobs: dict) -> None:
    """Raises HpmlError where knobs of a training exclude each other, Unavailable where this kind of device cannot do them."""
    if knobs["batch"] % knobs["accum_steps"]:
        raise HpmlError(f"batch={knobs['batch']} cannot be split into accum_steps={knobs['accum_steps']} equal micro-batches")
    if knobs.get("negatives") == "all" and (knobs["parallel"] == "dp" or knobs["script"] == "torchscript"):
        raise HpmlError("negatives='all' needs the embeddings themselves: neither parallel='dp' nor script='torchscript' gives them")
    if knobs["non_blocking"] and knobs["device"] == "cpu":
        raise Unavailable("non_blocking: no GPU in this case, so nothing is copied that could be waited for")
    if knobs["precision"] == "fp16" and knobs["device"] == "cpu":
        raise Unavailable("FP16 training on a CPU: no fast FP16 arithmetic here")


def prepare(job: dict, workload: ModuleType):
    """What measured steps and a whole training share, after the knobs were checked against each other: (image set, training data set,
    (model, optimizer, scaler, actual), seconds it took). Raises HpmlError, or Unavailable for what cannot run here."""
    import torch

    knobs = distributed.own(job["knobs"])
    check_together(knobs)
    if knobs["precision"] == "bf16" and knobs["device"] == "cpu" and knobs["epochs"] and job.get("notebook") and not bf16_native():
        raise Unavailable("whole epochs in BF16: this CPU has no instructions for it, and the notebook would not end; its steps show how "
                          "slow it is, and hpml train does it all the same")
    if knobs["script"] == "compile" and (reason := engines.get("compile").unavailable(knobs["device"])):
        raise Unavailable(reason)
    m.set_threads(knobs["threads"])
    torch.manual_seed(job["protocol"]["seed"])
    started = time.perf_counter()
    image_set = workload.data(knobs)
    dataset = workload.dataset(knobs, image_set, train=True)
    parts = build(workload, knobs, len(image_set.classes), job["weights"] and Path(job["weights"]))
    if rank := distributed.place().index:
        torch.manual_seed(job["protocol"]["seed"] + 7919 * rank)  # ranks start alike, but their crops and dropout differ
    return image_set, dataset, parts, time.perf_counter() - started


def measure(job: dict, workload: ModuleType) -> dict:
    """A training case in a fresh process, by steady steps after a warm-up. Returns the record's fields."""
    from hpml.data import skipped, stored_as, summary

    knobs, protocol = distributed.own(job["knobs"]), job["protocol"]
    image_set, dataset, (model, optimizer, scaler, actual), load_s = prepare(job, workload)
    micro = knobs["batch"] // knobs["accum_steps"]
    here = distributed.place()
    batches = loader(dataset, knobs, batch=micro, shuffle=True, seed=protocol["seed"], drop_last=True, share=(here.index, here.size))
    stream = endless(batches)
    marks = m.Marks(knobs["device"])
    before_mib = m.rss_mib()

    def step():
        marks.points.clear()
        loss = train_step(model, stream, knobs, workload=workload, optimizer=optimizer, scaler=scaler, marks=marks)
        planted_slowdown(knobs, marks)
        return loss

    started = time.perf_counter()
    with compiling(knobs, protocol, actual):
        losses = [step()]
    first_call_s = time.perf_counter() - started
    shortest_s = first_call_s
    for _ in range(1, protocol["warmup"]):
        losses.append(step())
        shortest_s = min(shortest_s, sum(marks.spans()))
        if distributed.agreed(shortest_s > m.LONG_S):
            break
    # Of the warm-up, with the round's seed: another technique whose losses are not alike does not take the same step.
    actual["losses"] = [loss if math.isfinite(loss) else None for loss in distributed.mean([float(x) for x in losses])]
    phases: dict[str, list[float]] = {name: [] for name in PHASES}
    values: list[float] = []  # seconds of each step
    minima = {name: protocol[name] for name in ("min_iters", "min_seconds")}
    disk, energy, mark = m.bytes_read(), m.energy_mj() if knobs["device"] == "cuda" else None, m.cpu_mark()

    def note(*, last: bool = False) -> None:
        for spans in marks.steps(last=last):
            for name, seconds in phase_seconds(spans).items():
                phases[name].append(seconds)
            values.append(sum(spans))

    while distributed.agreed(m.unfinished(values, shortest_s, **minima)):
        if turns.wait() and values and m.is_short(values[-1]):
            step()
        step()
        marks.end_step()
        note()
    note(last=True)
    # Workers compete with the step for the cores, so that its calls differ by nature; only without them are they alike.
    alike = None if knobs["workers"] else [value - wait for value, wait in zip(values, phases["wait"], strict=True)]
    flops = known_work(job, workload, len(image_set.classes))["flops"]
    return {
        "samples": {"unit": "s", "items": job["knobs"]["batch"], "values": values, "phases": phases},
        "center": "work median + wait mean",
        "cold": {"load_s": load_s, "first_call_s": first_call_s},
        # What the steps added to the model, the data and the libraries: gradients, the optimizer's state, activations.
        "memory": {"peak_rss_mib": m.peak_rss_mib(), "steps_mib": before_mib and m.peak_rss_mib() - before_mib,
                   "workers_peak_rss_mib": m.workers_peak_rss_mib(), **m.device_memory()},
        "io": {"bytes_read": m.bytes_read() - disk if disk is not None else None, "wait_share": sum(phases["wait"]) / sum(values)},
        "energy": None if energy is None else {"joules": (m.energy_mj() - energy) / 1e3, "seconds": sum(values)},
        "actual": {**actual, **skipped(dataset), **stored_as(dataset), "data": summary(image_set)},
        "disturbance": distributed.disturbance(mark, alike),
        "work": step_work(flops, knobs, actual),
    }


@contextlib.contextmanager
def compiling(knobs: dict, protocol: dict, actual: dict):
    """Around the first step: where it compiles, within the tier's limit (TooLong), and `actual` says what came out of it."""
    if knobs["script"] != "compile":
        yield
        return
    import torch

    from hpml.engines.compile import compile_limit

    counters = torch._dynamo.utils.counters
    with compile_limit(protocol.get("compile_limit_s")):
        yield
    actual |= {"compiled": "here" if counters["inductor"]["fxgraph_cache_miss"] else "from the cache",
               "graph_breaks": sum(counters["graph_break"].values())}


def planted_slowdown(knobs: dict, marks: m.Marks) -> None:
    """Lengthen the step by knobs["slowdown"] of its own time: a difference whose size is known, to test the protocol with."""
    if knobs["slowdown"]:
        until = time.perf_counter() + knobs["slowdown"] * sum(marks.spans())
        while time.perf_counter() < until:
            pass
        marks.points.pop()
        marks.mark()
