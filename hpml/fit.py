"""Training for real: epochs with the quality after each, checkpoints, weights, predictions and TensorBoard logs."""

import os
import signal
import time
from pathlib import Path
from types import ModuleType

from hpml import answers, checkpoint, distributed, env
from hpml import measure as m
from hpml.data.loader import loader
from hpml.env import HpmlError
from hpml.train import move, prepare, train_step


def fit(job: dict, workload: ModuleType) -> dict:
    """Train knobs["epochs"] epochs and evaluate after each; leaves weights, predictions, a checkpoint and TensorBoard logs.

    An interrupted fit of the same case goes on from its last checkpoint: of an epoch, or of a step where knobs["checkpoint_steps"] says
    so. Among ranks, the first one evaluates and writes.
    """
    import numpy as np

    from hpml.data import skipped, stored_as, summary

    knobs, protocol, folder = {**distributed.own(job["knobs"])}, job["protocol"], Path(job["run_dir"])
    here = distributed.place()
    image_set, dataset, (model, optimizer, scaler, actual), load_s = prepare(job, workload)
    micro = min(knobs["batch"], len(dataset) // here.size) // knobs["accum_steps"]
    if not micro:
        raise HpmlError(f"{len(dataset)} training samples are too few for {here.size} x {knobs['accum_steps']} micro-batches")
    knobs["batch"] = micro * knobs["accum_steps"]  # fewer samples than a batch: the loss is divided by what a step really has
    batches = loader(dataset, knobs, batch=micro, shuffle=True, seed=protocol["seed"], drop_last=True, share=(here.index, here.size))
    steps = max(1, len(batches) // knobs["accum_steps"])
    schedule = _schedule(optimizer, knobs, steps, actual["lr"])
    name = f"{Path(job['case']['workload']).stem}-{job['case']['key']}-r{protocol['round']}"
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    single = getattr(model, "module", model)  # without DP or DDP, whose forward pass waits for the other ranks
    plain = getattr(single, "_orig_mod", single)
    parts = {"model": plain, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    state = checkpoint.load(models, name, parts) or {"epoch": 0, "step": 0, "curve": [], "losses": [], "values": [], "gradients": []}
    at = [state["epoch"], state["step"]]
    actual |= {"resumed_from": state["epoch"], "resumed_step": state["step"]}
    if distributed.mean(at) != at:
        raise HpmlError(f"the ranks go on from different checkpoints: let all of them see {models}")

    def save(**more) -> None:
        checkpoint.save(models, name, {**state, **more, **{part: own.state_dict() for part, own in parts.items()}}, keep=knobs["keep"])

    writer = _curves(folder / "tensorboard" / name) if not here.index else None
    mark, best, marks = m.cpu_mark(), None, m.Marks(knobs["device"])
    saved = cost_s = 0.0
    for epoch in range(state["epoch"], knobs["epochs"]):
        # Order and augmentation of an epoch depend on its number alone; ranks share the order, their augmentation differs.
        epoch_seed, first, own = 1000 * protocol["seed"] + epoch, state["step"], {"losses": []}
        checkpoint.seed(epoch_seed + 7919 * here.index)
        model.train()
        stream = checkpoint.stream(batches, epoch=epoch, seed=epoch_seed, taken=first * knobs["accum_steps"])
        if first:
            own = state.pop("ranks")[here.index]
            checkpoint.restore_random(own["random"])
        losses = own["losses"]
        for step in range(first, steps):
            watched = (epoch, step) in {(0, 0), (knobs["epochs"] - 1, steps - 1)}
            hook = optimizer.register_step_pre_hook(lambda *_: state["gradients"].append(gradient_norms(plain))) if watched else None
            losses.append(train_step(model, stream, knobs, workload=workload, optimizer=optimizer, scaler=scaler, marks=marks))
            marks.end_step()
            if hook:
                hook.remove()
            schedule.step()
            state["step"], total = step + 1, epoch * steps + step + 1
            due = bool(knobs["checkpoint_steps"]) and total % knobs["checkpoint_steps"] == 0 and step + 1 < steps
            state["values"] += [sum(spans) for spans in marks.steps(last=due or step + 1 == steps)]
            if due:
                ranks = checkpoint.of_all_ranks({"random": checkpoint.random_state(), "losses": [float(loss) for loss in losses]})
                if not here.index:
                    save(ranks=ranks)
            if knobs["interrupt_step"] == total and here.index == here.size - 1 and at == [0, 0]:
                os.kill(os.getpid(), signal.SIGKILL)
        losses = distributed.mean([float(loss) for loss in losses])
        if not np.isfinite(losses).all():
            raise HpmlError(f"diverged: a loss of epoch {epoch + 1} is not a finite number, at a learning rate of {actual['lr']:g}")
        state["losses"] += losses
        state.update(epoch=epoch + 1, step=0)
        if here.index:
            continue
        best = judge(predictor(single, knobs), plain, workload, knobs, image_set)
        state["curve"].append([epoch + 1, float(np.mean(losses)), best["value"]])
        if writer:
            writer.add_scalar("loss/train", float(np.mean(losses)), epoch + 1)
            writer.add_scalar(f"{best['metric']}/test", best["value"], epoch + 1)
        # A checkpoint of a large net takes seconds: of many short epochs only some are saved, so that it costs at most a sixth.
        started = time.perf_counter()
        if cost_s < 0.1 or started - saved > 5 * cost_s or knobs["interrupt"] == epoch + 1:
            save()
            saved = time.perf_counter()
            cost_s = saved - started
        print(f"epoch {epoch + 1} of {knobs['epochs']}: loss {np.mean(losses):.3f}, {best['metric']} {best['value']:.3f}", flush=True)
        if knobs["interrupt"] == epoch + 1 and at == [0, 0]:
            os.kill(os.getpid(), signal.SIGKILL)
    samples = {"unit": "s", "items": micro * knobs["accum_steps"] * here.size, "values": state["values"]}
    if here.index:
        return {"samples": samples, "center": "mean", "memory": {"peak_rss_mib": m.peak_rss_mib(), **m.device_memory()}, "actual": actual,
                "disturbance": distributed.disturbance(mark)}
    if writer:
        writer.close()
    if best is None:  # the interruption came after the last epoch
        best = judge(predictor(single, knobs), plain, workload, knobs, image_set)
    artefacts = leave(models, name, plain, best)
    for path in checkpoint.found(models, name):
        path.unlink()
    thin = max(1, len(state["losses"]) // 200)
    return {
        "samples": samples, "center": "mean",
        "cold": {"load_s": load_s}, "memory": {"peak_rss_mib": m.peak_rss_mib(), **m.device_memory()},
        "quality": {**quality(best, workload), "curve": state["curve"], "losses": state["losses"][::thin], "losses_every": thin},
        "actual": {**actual, **skipped(dataset), **stored_as(dataset), "gradients": state["gradients"], "data": summary(image_set),
                   "classes": list(image_set.classes), "artefacts": artefacts},
        "disturbance": distributed.disturbance(mark),
    }


def _curves(folder: Path):
    """TensorBoard's writer; None on a machine without it: the record has the same curves."""
    if reason := env.missing("tensorboard"):
        print(f"no TensorBoard logs: {reason}")
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def judge(predict, model, workload: ModuleType, knobs: dict, image_set) -> dict:
    """The workload's evaluation of `predict`. What it is held against may come from the model itself, outside of what `predict` runs: the
    captions that a frame is compared with are embedded by the FP32 `model` (`texts` of the workload)."""
    beside = {"texts": workload.texts(model, knobs, image_set)} if hasattr(workload, "texts") else {}
    return workload.evaluate(predict, knobs, image_set, **beside)


def gradient_norms(model) -> list[tuple[str, float]]:
    """(layer, Euclidean norm of its weight's gradient) in the model's order, of parameters with at least two dimensions."""
    return [(name.removesuffix(".weight"), float(p.grad.norm())) for name, p in model.named_parameters()
            if p.grad is not None and p.dim() > 1]


def quality(scores: dict, workload: ModuleType) -> dict:
    """The record's quality from a workload's evaluation. At chance or at 100 % it informs about nothing and gates nothing."""
    margin = workload.MARGIN
    more = {"details": scores["details"]} if scores.get("details") else {}  # other figures of the same evaluation, by name
    if "right" in scores:
        more["right"] = answers.packed(scores["right"])
    return {"metric": scores["metric"], "value": scores["value"], "n": scores["n"], "chance": scores["chance"], "margin": margin,
            "informative": scores.get("informative", True) and scores["chance"] + 5 * margin < scores["value"] < 0.999, **more}


def predictor(model, knobs: dict):
    """`model` as a function from arrays to arrays, in the precision it is trained in; it stays in evaluation mode."""
    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(knobs["precision"])
    model.eval()

    def predict(inputs: tuple):
        with torch.inference_mode(), torch.autocast(knobs["device"], dtype=half, enabled=half is not None):
            moved = (move(torch.as_tensor(x), knobs["device"], False, knobs.get("memory_format")) for x in inputs)
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
