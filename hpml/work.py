"""The least work of a step or a call, in FLOPs and bytes: what its time is held against the machine's measured limits by."""

import hashlib
import json
import math
import os
from pathlib import Path
from types import ModuleType

SHAPING = ("image", "length", "variant", "stem", "part")  # knobs that make another graph of a workload


def known_work(job: dict, workload: ModuleType, classes: int, *, training: bool = True) -> dict:
    """{"flops": of `train_flops`, "parameters": their number}, counted once in a run: it takes up to a second, and every child asks."""
    import torch

    graph = {name: job["knobs"][name] for name in SHAPING if name in job["knobs"]}
    identity = json.dumps([job["case"]["workload"], job["code"], graph, classes, training], sort_keys=True)
    path = Path(job["run_dir"], "cache", "work", f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json")
    if path.exists():
        return json.loads(path.read_text())
    with torch.device("meta"):
        parameters = sum(p.numel() for p in workload.model(job["knobs"], classes).parameters())
    found = {"flops": train_flops(workload, job["knobs"], classes, training=training), "parameters": parameters}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(found))
    partial.replace(path)
    return found


def train_flops(workload: ModuleType, knobs: dict, classes: int, *, training: bool = True) -> float:
    """Floating-point operations of forward and backward for one sample (2 per multiply-add).

    `training=False`: of the graph that inference runs, which may lack a head that only training has."""
    return sum(counted_flops(workload, knobs, classes, training=training).values())


def counted_flops(workload: ModuleType, knobs: dict, classes: int, *, training: bool = True, backward: bool = True) -> dict[str, float]:
    """The operations of forward and, unless not wanted, backward for one sample by operator, counted by torch on meta tensors."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = workload.model(knobs, classes).to("meta").train(training)  # some modules make parameters that ask for no device
        inputs = tuple(torch.empty_like(x, device="meta") for x in workload.example_inputs(knobs, 2))
    ours = {torch.ops.aten.convolution: _conv_flops, torch.ops.aten.convolution_backward: _conv_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=ours) as counter:
        outputs = model(*inputs)
        if backward:
            outputs.sum().backward()
    return {str(operator).removeprefix("aten."): count / 2 for operator, count in counter.get_flop_counts()["Global"].items()}


def _conv_flops(x_shape, w_shape, bias, stride, padding, dilation, transposed, *_, out_shape, **__) -> int:
    places = _places(x_shape, w_shape, out_shape, stride, padding, dilation, transposed)
    return 2 * x_shape[0] * math.prod(w_shape[:2]) * places


def _conv_backward_flops(grad_shape, x_shape, w_shape, bias, stride, padding, dilation, transposed, out_padding, groups, mask, **_) -> int:
    """Each gradient of a convolution, of its input and of its weight, costs what the convolution does. torch's own formula forgets the
    groups in the weight's, and a depthwise convolution counts as many times too much as it has channels."""
    places = _places(x_shape, w_shape, grad_shape, stride, padding, dilation, transposed)
    return 2 * x_shape[0] * math.prod(w_shape[:2]) * places * sum(mask[:2])


def _places(x_shape, w_shape, out_shape, stride, padding, dilation, transposed) -> int:
    """How often a kernel's weights are applied in one channel. Of a dilated kernel those beside the picture are left out: engines skip
    these zeros, and DeepLabV3's rates of 12 to 36 mostly read such on a small map. Of other kernels they count, as in published figures."""
    if transposed or max(dilation) == 1:
        return math.prod((x_shape if transposed else out_shape)[2:]) * math.prod(w_shape[2:])
    sides = zip(x_shape[2:], w_shape[2:], out_shape[2:], stride, padding, dilation, strict=True)
    return math.prod(sum(0 <= place * step - pad + tap * rate < size for place in range(places) for tap in range(taps))
                     for size, taps, places, step, pad, rate in sides)


def step_work(flops: float, knobs: dict, actual: dict) -> dict:
    """What a step has to do at least; `flops` are those of one sample. Bytes that it cannot avoid: parameters read forwards and
    backwards, gradients written and read, momentum and parameters read and written by the optimizer. Activations are left out: what of
    them leaves the caches is unknown. Of DataParallel it is one replica's share, as the limit is one device's."""
    replicas = actual["replicas"] if knobs.get("parallel") == "dp" else 1
    return {"flops": flops * knobs["batch"] / replicas, "bytes": actual["parameters"] * 4 * 8}
