"""The knobs: every setting that can change a figure, with its default, its range and the phases it belongs to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpml.env import HpmlError

# profile: a training step under profilers; quantize, build and pack: an artefact is made, and its making is the
# figure; serve: a load test.
PHASES = ("train", "profile", "infer", "export", "quantize", "build", "serve", "data", "pack", "transfer", "limit")


@dataclass(frozen=True)
class Knob:
    """One setting. `choices` empty means any value of the default's type that is at least `least`."""

    default: Any
    phases: tuple[str, ...]
    help: str
    choices: tuple = ()
    least: float | None = 0


_TRAIN, _LOAD, _ENGINE = ("train", "profile"), ("train", "profile", "data"), ("infer", "build")
_MODEL = (*_TRAIN, *_ENGINE, "export", "quantize", "serve")
_ALL = (*_MODEL, "data")
_ANY = (*_ALL, "limit")
_PACKED = (*_ALL, "pack")
KNOBS: dict[str, Knob] = {
    "data": Knob("auto", _PACKED, "data set: auto, real, standin, or one by name", least=None),
    "device": Knob("cpu", (*_ANY, "pack"), "where the model runs", ("cpu", "cuda")),
    "threads": Knob(0, (*_ANY, "pack"), "compute threads; 0 = all cores"),
    "batch": Knob(32, _ALL, "samples in one step", least=1),
    "image": Knob(32, _ALL, "side of the input image in pixels", least=8),
    "length": Knob(64, _ALL, "tokens of a text; longer ones are cut, shorter ones padded", least=8),
    "variant": Knob("base", _MODEL, "base: the published architecture; small: a named smaller one for quality rows on a CPU; the shuttle "
                    "localizer has more, as small+bifpn+history", least=None),
    "part": Knob("whole", (*_ENGINE, "export", "quantize"), "what of the model: all that inference runs (whole), or a part by name",
                 least=None),
    "weights": Knob("random", _MODEL, "random, trained (left by notebook 10-15 of the run), pretrained (published) or a .safetensors file",
                    least=None),
    "workers": Knob(0, _LOAD, "loader worker processes; 0 = load in the training process"),
    "packer": Knob("shards", ("pack",), "who packs image files: tar, or hpml into shards", ("tar", "shards")),
    "pin_memory": Knob(False, _LOAD, "collate into page-locked memory"),
    "prefetch": Knob(2, _LOAD, "batches loaded ahead by each worker", least=1),
    "persistent_workers": Knob(True, _LOAD, "keep workers alive between epochs"),
    "start_method": Knob("forkserver", _LOAD, "how workers start", ("fork", "forkserver", "spawn")),
    "storage": Knob("array", _LOAD, "array: decoded pixels in memory; jpeg: decode a JPEG for each sample; shards: from tar files on disk; "
                    "shards_http: the same from a web server on this machine; webdataset: by WebDataset's own pipeline",
                    ("array", "jpeg", "shards", "shards_http", "webdataset")),
    "non_blocking": Knob(False, _TRAIN, "do not wait for the copy to the device"),
    "precision": Knob("fp32", (*_TRAIN, *_ENGINE, "export", "serve"), "arithmetic of the model", ("fp32", "bf16", "fp16", "int8")),
    "memory_format": Knob("contiguous", (*_TRAIN, *_ENGINE), "order of image tensors in memory", ("contiguous", "channels_last")),
    "accum_steps": Knob(1, _TRAIN, "micro-batches added up before one optimizer step", least=1),
    "script": Knob("none", _TRAIN, "none, torchscript or compile", ("none", "torchscript", "compile")),
    "parallel": Knob("none", _TRAIN, "none, dp (DataParallel) or ddp (DistributedDataParallel)", ("none", "dp", "ddp")),
    "ranks": Knob(1, _TRAIN, "processes of DistributedDataParallel; each takes its share of the batch and of the threads", least=1),
    "negatives": Knob("micro", _TRAIN, "of a contrastive loss: the pairs of a micro-batch on its rank (micro), or of all ranks and "
                      "accumulation steps (all)", ("micro", "all")),
    "optimizer": Knob("sgd", _TRAIN, "sgd (momentum 0.9, Nesterov) or adam (decoupled weight decay)", ("sgd", "adam")),
    "schedule": Knob("constant", _TRAIN, "learning rate over the training", ("constant", "cosine", "onecycle")),
    "lr": Knob(0.0, _TRAIN, "peak learning rate; 0 = the workload's for this optimizer"),
    "epochs": Knob(0, ("train",), "0 = measure steady steps; n = train n epochs and evaluate after each"),
    "train_samples": Knob(0, _PACKED, "training samples used; 0 = all"),
    "test_samples": Knob(0, _PACKED, "test samples used; 0 = all"),
    "stem": Knob("imagenet", _MODEL, "first layers: imagenet (7x7, stride 2, pool) or cifar (3x3, stride 1)",
                 ("imagenet", "cifar")),
    "engine": Knob("eager", (*_ENGINE, "serve", "limit"), "what executes the model: eager, onnxruntime, openvino, ...", least=None),
    "hint": Knob("latency", _ENGINE, "OpenVINO's performance hint", ("latency", "throughput")),
    "shapes": Knob("dynamic", _ENGINE, "OpenVINO: compiled for any batch (dynamic), or for the batch that is measured alone (static)",
                   ("dynamic", "static")),
    "capture": Knob("trace", _ENGINE, "how TorchScript gets its graph: trace (record one call) or script (compile the source)",
                    ("trace", "script")),
    "stored": Knob(False, ("infer",), "load the engine that phase build left in this run instead of building it"),
    "replicas": Knob(1, ("infer",), "copies of the model, each in a process of its own with its share of the threads", least=1),
    "quantizer": Knob("onnxruntime", (*_ENGINE, "quantize", "serve"), "who makes the INT8 graph", ("onnxruntime", "nncf")),
    "calib_samples": Knob(128, (*_ENGINE, "quantize", "serve"), "training samples that the ranges of INT8 are taken from", least=1),
    "calib_method": Knob("minmax", (*_ENGINE, "quantize", "serve"), "how a range is chosen from what was seen",
                         ("minmax", "entropy", "percentile")),
    "quantization": Knob("static", (*_ENGINE, "quantize", "serve"), "ranges of activations: seen beforehand, or at each call (dynamic)",
                         ("static", "dynamic")),
    "scheme": Knob("affine", (*_ENGINE, "quantize", "serve"), "INT8 ranges of activations: each with a zero point of its own (affine), or "
                   "around zero, which TensorRT asks for (symmetric)", ("affine", "symmetric")),
    "keep_fp": Knob(0, (*_ENGINE, "quantize", "serve"),
                    "so many heavy operators stay in floating point: those whose INT8 harms the output most"),
    "measure": Knob("speed", ("infer",), "speed, or quality over the test samples", ("speed", "quality")),
    "scenario": Knob("server", ("serve",), "MLPerf's server, singlestream or offline; accuracy: its accuracy run; bound: the best case by "
                     "queueing theory", ("server", "singlestream", "offline", "accuracy", "bound")),
    "transport": Knob("inprocess", ("serve",), "how queries reach the service: in its process, or over HTTP", ("inprocess", "http")),
    "limit_ms": Knob(150.0, ("serve",), "milliseconds within which 99 of 100 queries are to be answered", least=1),
    "streams": Knob(0, ("serve",), "model calls at the same time; 0 = as queueing theory finds best, where the run has measured its parts"),
    "probes": Knob(0, ("serve",), "probes of the search for the highest rate; 0 = the tier's"),
    "seconds": Knob(0.0, ("serve",), "length of the window that counts; 0 = the tier's"),
    "interrupt": Knob(0, ("train",), "kill a whole training once, after this epoch: a planted crash, for testing resume"),
    "interrupt_step": Knob(0, ("train",), "the same after this many steps of it; among ranks, the last one is killed"),
    "checkpoint_steps": Knob(0, ("train",), "a whole training also writes a checkpoint every so many steps; 0 = after epochs only"),
    "keep": Knob(2, ("train",), "checkpoints that are kept", least=1),
    "slowdown": Knob(0.0, ("train", "infer"), "extra time per step as a share of it: a planted difference, for testing the protocol"),
    "connections": Knob(8, ("transfer",), "TCP connections at the same time", least=1),
    "seed": Knob(0, (*_PACKED, "transfer"), "random seed; each round adds its number"),
    "kind": Knob("matmul", ("limit",), "which limit",
                 ("matmul", "conv3x3", "memory", "h2d_pinned", "h2d_pageable", "d2h_pinned", "d2h_pageable", "jpeg")),
    "dtype": Knob("fp32", ("limit",), "data type of the limit", least=None),
}
INT8_KNOBS = ("quantizer", "calib_samples", "calib_method", "quantization", "scheme", "keep_fp")  # for precision int8
INPUT_KNOBS = ("batch", "image", "length", "variant", "weights", "stem", "seed", "train_samples")  # what is worked on, not how
# What may differ between a speed figure and the quality run that vouches for it: the amount of training, the size of the
# input, the first layers fitted to it and the variant that was small enough to train are not what a technique is.
SIZE_KNOBS = ("epochs", "train_samples", "test_samples", "image", "batch", "threads", "schedule", "measure", "hint", "lr", "seed",
              "slowdown", "interrupt", "interrupt_step", "checkpoint_steps", "keep", "stem", "length", "variant", "weights", "shapes")


def defaults(phase: str) -> dict:
    """Every knob of a phase at its default. Raises HpmlError for an unknown phase."""
    if phase not in PHASES:
        raise HpmlError(f"unknown phase {phase!r}: choose from {', '.join(PHASES)}")
    return {name: knob.default for name, knob in KNOBS.items() if phase in knob.phases}


def turned(settings: Mapping[str, Any]) -> dict:
    """The settings that are not at their default: a knob that only a newer version has tells nothing apart."""
    return {name: value for name, value in settings.items() if name not in KNOBS or value != KNOBS[name].default}


def validate(phase: str, settings: Mapping[str, Any]) -> dict:
    """`settings` checked and complete with defaults. Raises HpmlError that names the knob, its value and what is allowed."""
    full = defaults(phase)
    for name, value in settings.items():
        if name not in full:
            known = ", ".join(sorted(full))
            raise HpmlError(f"unknown knob {name!r} for phase {phase!r}: choose from {known}")
        full[name] = _checked(phase, name, value)
    return full


def choices(phase: str, name: str) -> tuple:
    """What a knob can be set to in a phase; empty where any value of its type may stand."""
    # Gradients need floating point: INT8 is made from a trained model.
    return tuple(c for c in KNOBS[name].choices if not (phase in _TRAIN and name == "precision" and c == "int8"))


def _checked(phase: str, name: str, value: Any) -> Any:
    knob = KNOBS[name]
    if knob.choices:
        if value not in (known := choices(phase, name)):
            raise HpmlError(f"{name}={value!r}: choose from {', '.join(map(str, known))}")
        return value
    kind = type(knob.default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise HpmlError(f"{name}={value!r}: expected {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise HpmlError(f"{name}={value!r}: must be a finite number")
    if knob.least is not None and not isinstance(value, bool) and value < knob.least:
        raise HpmlError(f"{name}={value!r}: must be at least {knob.least}")
    return value
