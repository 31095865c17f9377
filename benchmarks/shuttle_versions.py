"""Eleven versions of the shuttle localizer, one change each, trained by one stop rule on the rendered court.

    python benchmarks/shuttle_versions.py [--quick] [--only 1,2] [--file FILE] [--table] [--trap] [--halls]

Each version is trained on the same clips for at most a number of epochs (one-cycle learning rate) and stops when the loss on validation
clips has not fallen for some epochs; the weights of its least validation loss are tried on test clips that nothing else has seen. One JSON
file holds a record for each version, TensorBoard the losses of training and validation. Interrupted, it goes on with the next version, and
two processes with --threads 1 may share the file, each with its --only. What there is becomes the study that notebook 15 reads.
--quick: the small backbone and less training, some hours on two cores, one seed: differences between neighbours are then within its
noise. Its frames are no narrower: at half the width a shuttle is about one pixel of what the first stage sees.
--trap: instead, the same training twice with noise, once the same for a sample in every epoch and once fresh (notebook 15).
--halls: instead, as many frames from few halls and from many, beside halls that neither training has seen.
"""

import argparse
import copy
import fcntl
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler
from torch.utils.tensorboard import SummaryWriter

from hpml import env, measure, studies, work, workloads
from hpml.data import court, shuttle
from hpml.data import frames as reader
from hpml.fit import predictor
from hpml.workloads import _mining, _pixels, _stages
from hpml.workloads._designs import Design
from hpml.workloads._localizer import build

NET = workloads.get("shuttle")
FIRST = Design(stages=1, neck="none", decode="regression", visible=False, augment="none")
# (name, what changes, the version that it changes, what is set). Mining changes the training alone.
STEPS = [("pooling", "global pooling and regression", None, {}),
         ("heat map", "one level's heat map, its largest cell", 1, {"decode": "argmax"}),
         ("soft-argmax", "the mean of the map's softmax", 2, {"decode": "soft-argmax"}),
         ("FPN", "a feature pyramid: cells of 8 instead of 32 pixels", 3, {"neck": "fpn"}),
         ("two stages", "a second network in a crop of full resolution", 4, {"stages": 2}),
         ("visibility", "a head that may say: not visible", 5, {"visible": True}),
         ("augmentation", "mirrored frames, light, colour, noise", 6, {"augment": "strong"}),
         ("V2 backbone", "EfficientNetV2-B0", 7, {"backbone": "tf_efficientnetv2_b0"}),
         ("BiFPN", "a weighted pyramid, repeated", 8, {"neck": "bifpn"}),
         ("history", "three preceding frames and their places", 9, {"history": 3}),
         ("hard mining", "badly answered frames are drawn more often", 10, {})]
SIZES = {"quick": {"backbone": "test_efficientnet", "image": 640, "train": 2880, "test": 240, "batch": 16, "epochs": 4, "patience": 3,
                   "lr": 0.004},
         "whole": {"backbone": "efficientnet_b0", "image": 640, "train": 4800, "test": 480, "batch": 16, "epochs": 8, "patience": 3,
                   "lr": 0.002}}
VALIDATION = 6  # every so many of the training clips
TIMED = 12  # frames of each version, for frames per second
QUANTILES = (10, 25, 50, 75, 90, 95, 99)


def versions(size: dict, quick: bool) -> list[dict]:
    """Every version with its design. With --quick the V2 backbone, far larger than the small one, is a step aside: what follows builds
    on the version before it."""
    found = []
    for number, (name, change, after, settings) in enumerate(STEPS, 1):
        after = 7 if quick and after == 8 else after
        design = replace(found[after - 1]["design"], **settings) if after else replace(FIRST, backbone=size["backbone"])
        found.append({"number": number, "name": name, "change": change, "after": after, "design": design, "mining": name == "hard mining"})
    return found


def split(size: dict) -> dict[str, reader.FrameSet]:
    """Training, validation and test frames as three sets; no clip stands in two of them."""
    whole = shuttle.open_frames("standin", size["image"], size["train"], size["test"])
    clips = sorted(set(whole.train_clips))
    held = set(clips[::VALIDATION])

    def rows(chosen: list[int]) -> reader.FrameSet:
        parts = {f"test_{what}": tuple(getattr(whole, f"train_{what}")[i] for i in chosen) for what in ("clips", "numbers")}
        return replace(whole, **parts, test_images=whole.train_images[chosen], test_labels=whole.train_labels[chosen])

    at = {name: [i for i, clip in enumerate(whole.train_clips) if (clip in held) == (name == "validation")] for name in
          ("train", "validation")}
    return {name: rows(chosen) for name, chosen in at.items()} | {"test": whole}


class Numbered:
    """A data set whose samples say their number."""

    def __init__(self, samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple:
        return (*self.samples[index], index)


def train(design: Design, size: dict, sets: dict, writer: SummaryWriter, *, mining: bool = False, augment: reader.Augment | None = None,
          patience: int | None = None) -> tuple:
    """(model with the weights of its least validation loss, {epochs, curves, seconds, steps})."""
    torch.manual_seed(0)
    knobs, patience = {"variant": design}, size["patience"] if patience is None else patience
    data = _stages.samples(knobs, sets["train"], train=True, part="test")
    data.augment = augment or data.augment
    held = DataLoader(_stages.samples(knobs, sets["validation"], train=False, part="test"), batch_size=size["batch"])
    model, errors = build(design).to(memory_format=torch.channels_last), np.full(len(data), np.nan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size["lr"], weight_decay=0.01)
    steps = len(data) // size["batch"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=size["lr"], total_steps=steps * size["epochs"] + 1, pct_start=0.3)
    curves, best, began = {"train": [], "validation": []}, (np.inf, None, 0), time.perf_counter()
    for epoch in range(1, size["epochs"] + 1):
        chances = _mining.chances(errors) if mining else np.full(len(data), 1 / len(data))
        order = WeightedRandomSampler(chances, len(data)) if mining and epoch > 1 else None
        batches = DataLoader(Numbered(data), batch_size=size["batch"], sampler=order, shuffle=order is None, drop_last=True)
        model.train()
        losses = []
        for frames, truth, numbers in batches:
            parts = model(frames.to(memory_format=torch.channels_last), truth)
            loss = parts.sum() / len(truth)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            errors[numbers.numpy()] = parts[:, 1:].sum(1).detach().numpy()  # of the second stage and of the visibility
        curves["train"].append(float(np.mean(losses)))
        curves["validation"].append(validation_loss(model, held))
        for name, values in curves.items():
            writer.add_scalar(f"loss/{name}", values[-1], epoch)
        if curves["validation"][-1] < best[0]:
            best = curves["validation"][-1], copy.deepcopy(model.state_dict()), epoch
        print(f"  epoch {epoch}: train {curves['train'][-1]:.3f}, validation {curves['validation'][-1]:.3f}", flush=True)
        if epoch - best[2] >= patience:
            break
    model.load_state_dict(best[1])
    return model.eval(), {"epochs": len(curves["train"]), "best_epoch": best[2], "steps_per_epoch": steps, "curves": curves,
                          "train_s": time.perf_counter() - began}


def validation_loss(model, batches) -> float:
    """The mean of a sample's loss, with the same crops in every epoch."""
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        losses = [model(frames.to(memory_format=torch.channels_last), truth).sum(1) for frames, truth in batches]
    return float(torch.cat(losses).mean())


def judged(model, design: Design, size: dict, frames: reader.FrameSet) -> dict:
    """Figures on the test clips: errors and counts (_pixels.scores), quantiles of the error, operations of a frame."""
    knobs = {"variant": design, "image": size["image"], "batch": size["batch"], "device": "cpu", "precision": "fp32",
             "memory_format": "channels_last"}
    answers, labels = _stages.answers(predictor(model, knobs), knobs, frames), np.asarray(frames.test_labels)
    errors = _pixels.pixel_errors(answers, labels)
    flops = work.counted_flops(NET, knobs, 1, training=False, backward=False)  # the largest cell of a map has no gradient
    return {"scores": _pixels.scores(answers, labels, size["image"]), "n": len(errors), "within 4 px": float((errors <= 4).mean()),
            "quantiles": {str(q): float(np.percentile(errors, q)) for q in QUANTILES}, "gflop": sum(flops.values()) / 1e9,
            "parameters": sum(p.numel() for p in model.parameters())}


def time_frames(versions: list[dict], size: dict) -> None:
    """Gives each version its frames per second in eager, one frame a call. They take turns, so that what else runs meets all alike."""
    models = [build(Design(**one["design"])).to(memory_format=torch.channels_last).eval() for one in versions]
    inputs = [NET.example_inputs({"variant": Design(**one["design"]), "image": size["image"]}, 1)[0] for one in versions]
    spent = np.zeros((TIMED + 1, len(versions)))
    with torch.inference_mode():
        for turn in range(TIMED + 1):  # the first warms up
            for number in range(len(versions))[::1 if turn % 2 else -1]:
                started = time.perf_counter()
                models[number](inputs[number].to(memory_format=torch.channels_last))
                spent[turn, number] = time.perf_counter() - started
    for one, seconds in zip(versions, np.median(spent[1:], axis=0), strict=True):
        one |= {"fps": 1 / float(seconds), "load": os.getloadavg()[0], "threads": torch.get_num_threads()}


def table(found: dict) -> str:
    """One line for each version."""
    size = found["size"]
    lines = [f"{found['machine']}, {size['image']} pixels wide, {size['train']} training frames less the validation's, {size['test']} test "
             f"frames, at most {size['epochs']} epochs, {found['commit'][:9]}",
             f"{'':2} {'version':<13} {'median':>7} {'mean':>7} {'P95':>7} {'<=4px':>6} {'F1':>6} {'seen F1':>7} {'GFLOP':>6} {'FPS':>6} "
             f"{'epochs':>6}  what changed"]
    for one in found["versions"]:
        s, fps = one["scores"], one.get("fps", float("nan"))  # timed when all are trained
        errors = " ".join(f"{s[f'{name} error px']:>7.1f}" for name in ("median", "mean", "P95"))
        lines.append(f"{one['number']:>2} {one['name']:<13} {errors} {one['within 4 px']:>6.1%} {s['F1']:>6.1%} {s['visibility F1']:>7.1%} "
                     f"{one['gflop']:>6.2f} {fps:>6.1f} {one['best_epoch']:>2} of {one['epochs']:<2} {one['change']} "
                     f"(after {one['after'] or '-'})")
    hard = {one["name"]: one for one in found["versions"]}
    if {"history", "hard mining"} <= set(hard):
        lines.append("error in pixels before and after mining, by share of the visible frames below it:")
        lines += [f"  {name:<12} " + ", ".join(f"{q} %: {value:.1f}" for q, value in hard[name]["quantiles"].items())
                  for name in ("history", "hard mining")]
    return "\n".join(lines)


def study(found: dict, name: str) -> dict:
    """What notebook 15 reads: the size, a row for each version, what was learnt, and the curves."""
    size, versions = found["size"], found["versions"]
    rows = [{"version": f"{one['number']} {one['name']}", "after": one["after"] or "-", "what changed": one["change"],
             **{f"{kind} px": round(one["scores"][f"{kind} error px"], 1) for kind in ("median", "mean", "P95")},
             "within 4 px": f"{one['within 4 px']:.1%}", "visible F1": f"{one['scores']['visibility F1']:.1%}",
             "GFLOP": round(one["gflop"], 2), "FPS": round(one["fps"], 1)} for one in versions]
    by_number = {one["number"]: one for one in versions}
    missing = [f"{number} {step[0]}" for number, step in enumerate(STEPS, 1) if number not in by_number]
    medians = {number: one["scores"]["median error px"] for number, one in by_number.items()}
    pairs = sorted(((medians[one["after"]] - medians[one["number"]], one) for one in versions if one["after"] in medians),
                   key=lambda pair: -pair[0])
    ends = {"largest step forward": pairs[0], "least": pairs[-1]} if pairs else {}
    gap = max(versions, key=lambda one: one["curves"]["validation"][-1] - one["curves"]["train"][-1])
    load = max(one["load"] for one in versions)
    says = [f"{len(versions)} of {len(STEPS)} versions" + (f"; not trained yet: {', '.join(missing)}" if missing else ""),
            *(f"{which} in the median: {one['name']}, {abs(less):.1f} px {'more' if less < 0 else 'less'} than {one['after']} "
              f"{by_number[one['after']]['name']}" for which, (less, one) in ends.items()),
            f"widest gap between the losses at the end: {gap['name']}, {gap['curves']['train'][-1]:.2f} in training, "
            f"{gap['curves']['validation'][-1]:.2f} in validation; the weights of epoch {gap['best_epoch']} were kept",
            *(["error before and after mining, below which so many of the visible frames lie: " + ", ".join(
                f"{q} %: {by_number[10]['quantiles'][q]:.1f} and {by_number[11]['quantiles'][q]:.1f} px" for q in ("50", "75", "90", "95"))]
              if {10, 11} <= set(by_number) else []),
            f"one seed, {versions[0]['threads']} compute thread{'s' * (versions[0]['threads'] != 1)}"
            + f"; frames per second are of a busy machine (load {load:.0f})" * (load > 2)]
    return {"data": f"rendered badminton, {size['image']} pixels wide", "n": versions[0]["n"], "tier": name,
            "knobs": {key: size[key] for key in ("backbone", "train", "epochs", "patience", "batch")}, "rows": rows, "says": says,
            "curves": {one["name"]: one["curves"] for one in versions}, "quantiles": {one["name"]: one["quantiles"] for one in versions}}


def trap(size: dict, sets: dict, folder: Path) -> str:
    """The same few frames, the same noise, frozen for each sample or drawn anew: the losses of both at their last epoch."""
    design, lines = Design(size["backbone"]), []
    few = replace(sets["train"], **{f"test_{what}": getattr(sets["train"], f"test_{what}")[:96] for what in
                                    ("images", "labels", "clips", "numbers")})
    for name, frozen in (("frozen", True), ("fresh", False)):
        print(f"{name} noise", flush=True)
        with SummaryWriter(str(folder / f"trap-{name}")) as writer:
            _, facts = train(design, {**size, "epochs": 3 * size["epochs"]}, {**sets, "train": few}, writer, patience=10**6,
                             augment=reader.Augment(mirror=False, gain=0.0, noise=60.0, frozen=frozen))
        last = {part: values[-1] for part, values in facts["curves"].items()}
        lines.append(f"{name} noise: training {last['train']:.2f}, validation {last['validation']:.2f} "
                     f"(least {min(facts['curves']['validation']):.2f} at epoch {facts['best_epoch']} of {facts['epochs']})")
    return "\n".join(lines)


def halls(size: dict, sets: dict, folder: Path) -> str:
    """As many frames, twelve or four of a hall: the losses in training and on the validation's halls, which are others."""
    design, count, lines = versions(size, quick=True)[3]["design"], range(size["train"] // 2), []
    for clip in (12, 4):
        print(f"{clip} frames of a hall", flush=True)
        images, labels = court.render(len(count), width=size["image"], seed=1, clip=clip)
        frames = replace(sets["train"], test_images=images, test_labels=labels, test_clips=tuple(f"{i // clip}" for i in count),
                         test_numbers=tuple(i % clip for i in count))
        with SummaryWriter(str(folder / f"halls-{clip}")) as writer:
            _, facts = train(design, size, {**sets, "train": frames}, writer, patience=10**6)
        last = {part: values[-1] for part, values in facts["curves"].items()}
        lines.append(f"{len(count)} frames, {clip} of a hall: training {last['train']:.2f}, validation {last['validation']:.2f} "
                     f"after {facts['epochs']} epochs (least {min(facts['curves']['validation']):.2f})")
    return "\n".join(lines)


def keep(file: Path, size: dict, made: list[dict], **about) -> dict:
    """Put versions into the file, beside those that another process has put there; returns all that it holds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = json.loads(file.read_text()) if file.is_file() else {"size": size, "versions": []}
        whole = {one["number"]: one for one in [*found["versions"], *made]}
        found |= about | {"versions": [whole[number] for number in sorted(whole)]}
        file.with_suffix(".part").write_text(json.dumps(found, indent=1))
        file.with_suffix(".part").replace(file)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small backbone and less training")
    parser.add_argument("--only", help="numbers of versions, as 1,2,5 (default: all that the file lacks)")
    parser.add_argument("--file", type=Path, help="the JSON file (default: results/shuttle_versions-<size>.json)")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0 = all cores")
    parser.add_argument("--table", action="store_true", help="print what the file holds, and train nothing")
    parser.add_argument("--trap", action="store_true", help="train with frozen and with fresh noise instead")
    parser.add_argument("--halls", action="store_true", help="train on few and on many halls instead")
    asked = parser.parse_args()
    name = "quick" if asked.quick else "whole"
    size, file = SIZES[name], asked.file or env.results_dir() / f"shuttle_versions-{name}.json"
    logs = env.results_dir() / "tensorboard" / f"shuttle_versions-{name}"
    measure.set_threads(asked.threads)
    found = json.loads(file.read_text()) if file.is_file() else {"size": size, "versions": []}
    if found["size"] != size:
        raise SystemExit(f"{file} holds versions of another size; give another --file")
    if not asked.table:
        sets = split(size)
        if asked.trap or asked.halls:
            print((trap if asked.trap else halls)(size, sets, logs))
            return
        wanted = {int(number) for number in asked.only.split(",")} if asked.only else set(range(1, len(STEPS) + 1))
        done = {one["number"] for one in found["versions"]}
        for one in versions(size, asked.quick):
            if one["number"] not in wanted - done:
                continue
            print(f"{one['number']} {one['name']}: {one['change']}", flush=True)
            with SummaryWriter(str(logs / f"{one['number']:02}-{one['name'].replace(' ', '-')}")) as writer:
                model, facts = train(one["design"], size, sets, writer, mining=one["mining"])
            record = {**one, "design": asdict(one["design"]), **facts, **judged(model, one["design"], size, sets["test"])}
            found = keep(file, size, [record], machine=env.machine()["id"], commit=env.git()["commit"], torch=torch.__version__,
                         data=sets["test"].checksum)
        time_frames(found["versions"], size)
        found = keep(file, size, found["versions"])
    if not found["versions"]:
        raise SystemExit(f"{file} holds no version yet")
    print(table(found))
    if len(found["versions"]) > 1:
        print(f"study: {studies.write('shuttle_versions', study(found, name))}")
    print(f"records: {file}; curves: tensorboard --logdir {logs}")


if __name__ == "__main__":
    main()
