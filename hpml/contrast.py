"""A contrastive loss over all pairs of a step: those of every rank (gathered) and of every accumulation step (two passes).

By itself each rank and each micro-batch would contrast its own pairs only. That is an easier task, and neither more ranks nor more
accumulation would make it harder: plain accumulation averages gradients of small tasks. Here they are those of one large batch.
"""

import contextlib
from collections.abc import Iterable
from types import ModuleType

from hpml import distributed
from hpml import measure as m


def backward(model, batches: Iterable[tuple], knobs: dict, *, half, workload: ModuleType, scaler, marks: m.Marks):
    """Add the gradient of the mean loss over all pairs of all ranks; returns this rank's part of it, detached.

    `batches`: accum_steps times (inputs, targets), on the device. model(*inputs, pairs=True) gives (frames [n, dim], texts [n, dim],
    scale). With several micro-batches the work is done twice (GradCache: Gao et al., 2021, arXiv:2101.06983): first all embeddings without
    a graph and the loss's gradient at each of them, then every micro-batch again, pulled back along its own gradient. Memory is that of
    one micro-batch and the embeddings. Both passes must compute the same, so the model has no dropout.
    """
    import torch

    several, kept, outputs = knobs["accum_steps"] > 1, [], []
    for inputs, targets in batches:
        with torch.set_grad_enabled(not several), torch.autocast(knobs["device"], dtype=half, enabled=half is not None):
            outputs.append(model(*inputs, pairs=True))
        kept.append((inputs, targets))
        marks.mark()
        if len(kept) < knobs["accum_steps"]:
            marks.mark()  # no backward pass yet
    whole = [*(torch.cat(parts).float() for parts in list(zip(*outputs, strict=True))[:2]), outputs[0][2].float()]
    if several:
        whole = [part.detach().requires_grad_() for part in whole]
    targets = torch.cat([targets for _, targets in kept])
    loss = workload.contrast(*whole, targets, everyone(whole[0]), everyone(whole[1]), everyone(targets)) / knobs["batch"]
    scaler.scale(loss).backward()
    if several:
        _again(model, kept, [part.grad for part in whole], knobs, half)
    marks.mark()
    return loss.detach()


def _again(model, kept: list[tuple], gradients: list, knobs: dict, half) -> None:
    """Each micro-batch forwards with a graph and backwards from the gradients of its embeddings; ranks talk once, at the last."""
    import torch

    start = 0
    for number, (inputs, targets) in enumerate(kept):
        rows, start = slice(start, start + len(targets)), start + len(targets)
        last = number == len(kept) - 1
        with contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
            with torch.autocast(knobs["device"], dtype=half, enabled=half is not None):
                frames, texts, scale = model(*inputs, pairs=True)
            pulled = (frames.float() * gradients[0][rows]).sum() + (texts.float() * gradients[1][rows]).sum()
            (pulled + scale.float() * gradients[2] / len(kept)).backward()


def everyone(x):
    """The rows of all ranks in their order; a gradient goes back to the rank that a row came from, summed over all that used it."""
    import torch

    if distributed.place().size == 1:
        return x
    if x.is_floating_point():
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(x.contiguous()))
    parts = [torch.empty_like(x) for _ in range(distributed.place().size)]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)
