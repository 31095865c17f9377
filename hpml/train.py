"""Training: one loop, knobs only; measured by steps, or run for real by epochs with the quality after each."""

import contextlib
import os
import time
import warnings
from pathlib import Path
from types import ModuleType

from hpml import measure as m
from hpml.data.loader import endless, loader
from hpml.env import HpmlError, Unavailable
from hpml.env import missing as missing_package

PHASES = ("wait", "copy", "forward", "backward", "optimizer")


def train_step(model, micro_batches, knobs: dict, *, workload: ModuleType, optimizer, scaler, marks: m.Marks) -> float:
    """One optimizer step over accum_steps micro-batches of the iterator; five marks for each, one more at the end. Returns the mean loss.

    The gradient is that of the mean over all samples of the step: each micro-batch's summed loss is divided by the true count.
    """
    import torch

    device, total = knobs["device"], 0.0
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(knobs["precision"])
    for micro in range(knobs["accum_steps"]):
        marks.mark()
        inputs, targets = workload.split(next(micro_batches))
        marks.mark()
        inputs = tuple(_move(x, device, knobs["non_blocking"], knobs["memory_format"]) for x in inputs)
        targets = _move(targets, device, knobs["non_blocking"])
        marks.mark()
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
        if last:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
    marks.mark()
    return total


def _move(x, device: str, non_blocking: bool, memory_format: str = "contiguous"):
    import torch

    if memory_format == "channels_last" and x.dim() == 4:
        return x.to(device, non_blocking=non_blocking, memory_format=torch.channels_last)
    return x.to(device, non_blocking=non_blocking)


def phase_seconds(spans: list[float], accum_steps: int) -> dict[str, float]:
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
    model = workload.model(knobs, classes)
    if weights:
        load_weights(model, weights)
    layout = torch.channels_last if knobs["memory_format"] == "channels_last" else torch.contiguous_format
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
        actual["bf16_native"] = any(flag in ("avx512_bf16", "amx_bf16") for flag in _isa())
    return _parallel(_scripted(model, knobs["script"]), knobs, actual), optimizer, scaler, actual


def _isa() -> list[str]:
    from hpml.env import machine

    return machine()["isa"]


def _scripted(model, script: str):
    import torch

    if script == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated; the study measures it all the same
            return torch.jit.script(model)
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
        from torch import distributed

        backend = "nccl" if knobs["device"] == "cuda" else "gloo"
        if "RANK" in os.environ:
            distributed.init_process_group(backend)
        else:
            distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
        actual["replicas"] = distributed.get_world_size()
        return torch.nn.parallel.DistributedDataParallel(model)
    return model


def load_weights(model, path: Path) -> None:
    """Load a .safetensors file. Raises HpmlError with the file's name when it is damaged or of another model."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise HpmlError(f"{path}: not weights of this model ({str(error).splitlines()[0]})") from None


def _prepare(job: dict, workload: ModuleType):
    """What both ways of training share: checked knobs, threads, seeds, data, model."""
    import torch

    knobs = job["knobs"]
    if knobs["batch"] % knobs["accum_steps"]:
        raise HpmlError(f"batch={knobs['batch']} cannot be split into accum_steps={knobs['accum_steps']} equal micro-batches")
    if knobs["precision"] == "fp16" and knobs["device"] == "cpu":
        raise Unavailable("FP16 training on a CPU: no fast FP16 arithmetic here")
    if knobs["script"] == "compile" and missing_package("triton") and knobs["device"] == "cuda":
        raise Unavailable("torch.compile on CUDA: triton is not installed")
    m.set_threads(knobs["threads"])
    torch.manual_seed(job["protocol"]["seed"])
    started = time.perf_counter()
    image_set = workload.data(knobs)
    dataset = workload.dataset(knobs, image_set, train=True)
    parts = build(workload, knobs, len(image_set.classes), job["weights"] and Path(job["weights"]))
    return image_set, dataset, parts, time.perf_counter() - started


def measure(job: dict, workload: ModuleType) -> dict:
    """A training case in a fresh process: by steps, or by epochs where knobs["epochs"] is above 0. Returns the record's fields."""
    return fit(job, workload) if job["knobs"]["epochs"] else _measure_steps(job, workload)


def _measure_steps(job: dict, workload: ModuleType) -> dict:
    from hpml.data import summary

    knobs, protocol = job["knobs"], job["protocol"]
    image_set, dataset, (model, optimizer, scaler, actual), load_s = _prepare(job, workload)
    micro = knobs["batch"] // knobs["accum_steps"]
    batches = loader(dataset, knobs, batch=micro, shuffle=True, seed=protocol["seed"], drop_last=True)
    if len(dataset) < micro:
        raise HpmlError(f"train_samples={len(dataset)} is less than one batch of {micro}")
    stream = endless(batches)
    marks = m.Marks(knobs["device"])

    def step() -> None:
        marks.points.clear()
        train_step(model, stream, knobs, workload=workload, optimizer=optimizer, scaler=scaler, marks=marks)
        planted_slowdown(knobs, marks)

    started = time.perf_counter()
    step()
    first_call_s = time.perf_counter() - started
    for _ in range(1, protocol["warmup"]):
        step()
    phases: dict[str, list[float]] = {name: [] for name in PHASES}
    disk, energy, mark = m.bytes_read(), m.energy_mj() if knobs["device"] == "cuda" else None, m.cpu_mark()
    while len(phases["wait"]) < protocol["min_iters"] or sum(map(sum, phases.values())) < protocol["min_seconds"]:
        step()
        for name, seconds in phase_seconds(marks.spans(), knobs["accum_steps"]).items():
            phases[name].append(seconds)
    values = [sum(parts) for parts in zip(*phases.values(), strict=True)]
    flops = train_flops(workload, knobs, len(image_set.classes))
    return {
        "samples": {"unit": "s", "items": knobs["batch"], "values": values, "phases": phases}, "center": "mean",
        "cold": {"load_s": load_s, "first_call_s": first_call_s},
        "memory": {"peak_rss_mib": m.peak_rss_mib(), "workers_peak_rss_mib": m.workers_peak_rss_mib(), **m.device_memory()},
        "io": {"bytes_read": m.bytes_read() - disk if disk is not None else None, "wait_share": sum(phases["wait"]) / sum(values)},
        "energy": None if energy is None else {"joules": (m.energy_mj() - energy) / 1e3, "seconds": sum(values)},
        "actual": {**actual, "data": summary(image_set)}, "disturbance": m.disturbance(mark),
        # Bytes that a step cannot avoid: parameters read forwards and backwards, gradients written and read, momentum and
        # parameters read and written by the optimizer. Activations are left out: what of them leaves the caches is unknown.
        "work": {"flops": flops * knobs["batch"], "bytes": actual["parameters"] * 4 * 8, "dtype": knobs["precision"]},
    }


def planted_slowdown(knobs: dict, marks: m.Marks) -> None:
    """Lengthen the step by knobs["slowdown"] of its own time: a difference whose size is known, to test the protocol with."""
    if knobs["slowdown"]:
        until = time.perf_counter() + knobs["slowdown"] * sum(marks.spans())
        while time.perf_counter() < until:
            pass
        marks.points.pop()
        marks.mark()


def train_flops(workload: ModuleType, knobs: dict, classes: int) -> float:
    """Floating-point operations of forward and backward for one sample, counted by torch on meta tensors (2 per multiply-add)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = workload.model(knobs, classes)
        inputs = tuple(torch.empty_like(x, device="meta") for x in workload.example_inputs(knobs, 2))
    with FlopCounterMode(display=False) as counter:
        outputs = model(*inputs)
        outputs.sum().backward()
    return counter.get_total_flops() / 2


def fit(job: dict, workload: ModuleType) -> dict:
    """Train knobs["epochs"] epochs and evaluate after each; leaves weights, predictions, a checkpoint and TensorBoard logs.

    An interrupted fit of the same case goes on from its last epoch.
    """
    import numpy as np
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from hpml.data import summary

    knobs, protocol, folder = job["knobs"], job["protocol"], Path(job["run_dir"])
    image_set, dataset, (model, optimizer, scaler, actual), load_s = _prepare(job, workload)
    micro = min(knobs["batch"] // knobs["accum_steps"], len(dataset))
    batches = loader(dataset, knobs, batch=micro, shuffle=True, seed=protocol["seed"], drop_last=True)
    steps = max(1, len(batches) // knobs["accum_steps"])
    schedule = _schedule(optimizer, knobs, steps, actual["lr"])
    name = f"{job['case']['workload']}-{job['case']['key']}-r{protocol['round']}"
    checkpoint = folder / "models" / f"{name}.checkpoint.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    plain = getattr(model, "module", getattr(model, "_orig_mod", model))  # without the wrapper of DP, DDP or compile
    state = {"epoch": 0, "curve": [], "losses": [], "values": []}
    if checkpoint.exists():
        state = _resume(checkpoint, plain, optimizer, schedule, scaler)
    writer = SummaryWriter(str(folder / "tensorboard" / name))
    mark, best = m.cpu_mark(), None
    for epoch in range(state["epoch"], knobs["epochs"]):
        torch.manual_seed(1000 * protocol["seed"] + epoch)  # order and augmentation of an epoch depend on its number alone
        batches.generator.manual_seed(1000 * protocol["seed"] + epoch)
        model.train()
        stream, losses = iter(batches), []
        for _ in range(steps):
            marks = m.Marks(knobs["device"])
            losses.append(train_step(model, stream, knobs, workload=workload, optimizer=optimizer, scaler=scaler, marks=marks))
            schedule.step()
            state["values"].append(sum(marks.spans()))
        losses = [float(loss) for loss in losses]
        best = workload.evaluate(predictor(model, knobs), knobs, image_set)
        state["losses"] += losses
        state["epoch"] = epoch + 1
        state["curve"].append([epoch + 1, float(np.mean(losses)), best["value"]])
        writer.add_scalar("loss/train", float(np.mean(losses)), epoch + 1)
        writer.add_scalar(f"{best['metric']}/test", best["value"], epoch + 1)
        _save(checkpoint, {**state, "model": plain.state_dict(), "optimizer": optimizer.state_dict(),
                           "schedule": schedule.state_dict(), "scaler": scaler.state_dict()})
        print(f"epoch {epoch + 1} of {knobs['epochs']}: loss {np.mean(losses):.3f}, {best['metric']} {best['value']:.3f}", flush=True)
    writer.close()
    if best is None:  # the interruption came after the last epoch
        best = workload.evaluate(predictor(model, knobs), knobs, image_set)
    artefacts = leave(checkpoint.parent, name, plain, best)
    checkpoint.unlink()
    thin = max(1, len(state["losses"]) // 200)
    return {
        "samples": {"unit": "s", "items": micro * knobs["accum_steps"], "values": state["values"]}, "center": "mean",
        "cold": {"load_s": load_s}, "memory": {"peak_rss_mib": m.peak_rss_mib(), **m.device_memory()},
        "quality": {**quality(best, workload), "curve": state["curve"], "losses": state["losses"][::thin], "losses_every": thin},
        "actual": {**actual, "data": summary(image_set), "classes": list(image_set.classes), "artefacts": artefacts},
        "disturbance": m.disturbance(mark),
    }


def quality(scores: dict, workload: ModuleType) -> dict:
    """The record's quality from a workload's evaluation. At chance or at 100 % it informs about nothing and gates nothing."""
    margin = workload.MARGIN
    return {"metric": scores["metric"], "value": scores["value"], "n": scores["n"], "chance": scores["chance"], "margin": margin,
            "informative": scores["chance"] + 5 * margin < scores["value"] < 0.999}


def predictor(model, knobs: dict):
    """`model` as a function from arrays to arrays, in the precision it is trained in; it stays in evaluation mode."""
    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(knobs["precision"])
    model.eval()

    def predict(inputs: tuple):
        with torch.inference_mode(), torch.autocast(knobs["device"], dtype=half, enabled=half is not None):
            moved = (_move(torch.as_tensor(x), knobs["device"], False, knobs["memory_format"]) for x in inputs)
            return model(*moved).float().cpu().numpy()

    return predict


def leave(folder: Path, name: str, model, scores: dict) -> dict:
    """Write weights (.safetensors) and predictions (.npz); returns their file names in `folder`."""
    import numpy as np
    from safetensors.torch import save_file

    weights, predictions = folder / f"{name}.safetensors", folder / f"{name}-predictions.npz"
    partial = weights.with_suffix(".part")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, partial)
    partial.replace(weights)
    np.savez_compressed(predictions, **{key: np.asarray(scores[key]) for key in ("predictions", "labels", "confidence")})
    return {"weights": weights.name, "predictions": predictions.name}


def _schedule(optimizer, knobs: dict, steps: int, lr: float):
    from torch.optim import lr_scheduler

    total = steps * knobs["epochs"]
    if knobs["schedule"] == "onecycle":
        return lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=total + 1, pct_start=0.3)
    if knobs["schedule"] == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _save(path: Path, state: dict) -> None:
    import torch

    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, model, optimizer, schedule, scaler) -> dict:
    import torch

    try:
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state.pop("model"))
        optimizer.load_state_dict(state.pop("optimizer"))
        schedule.load_state_dict(state.pop("schedule"))
        scaler.load_state_dict(state.pop("scaler"))
    except (RuntimeError, KeyError, ValueError, EOFError, OSError) as error:
        raise HpmlError(f"{path}: not a checkpoint of this case ({str(error).splitlines()[0]}); remove it to start again") from None
    return state
