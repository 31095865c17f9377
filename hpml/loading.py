"""Loading measured alone: batches per second without a model, the start of the workers apart."""

import time
from types import ModuleType

from hpml import measure as m
from hpml.data.loader import endless, loader


def measure(job: dict, workload: ModuleType) -> dict:
    """A data case in a fresh process. One iteration is one batch; `first_call_s` is the way to the first batch with the workers' start."""
    import torch

    from hpml.data import skipped, stored_as, summary

    knobs, protocol = job["knobs"], job["protocol"]
    m.set_threads(knobs["threads"])
    torch.manual_seed(protocol["seed"])
    image_set = workload.data(knobs)
    dataset = workload.dataset(knobs, image_set, train=True)
    batches = endless(loader(dataset, knobs, batch=knobs["batch"], shuffle=True, seed=protocol["seed"], drop_last=True))
    mark, disk = m.cpu_mark(), m.bytes_read()
    limits = {name: protocol[name] for name in ("warmup", "min_iters", "min_seconds")}
    # What the workers had ready before the window began would flatter it: as many batches are taken first.
    limits["warmup"] = max(limits["warmup"], knobs["workers"] * knobs["prefetch"])
    taken = m.steady(lambda _: next(batches), clock=time.perf_counter, **limits)
    return {
        "samples": {"unit": "s", "items": knobs["batch"], "values": taken["values"]}, "center": "mean",
        "cold": {"first_call_s": taken["first_call_s"]},
        "memory": {"peak_rss_mib": m.peak_rss_mib(), "workers_peak_rss_mib": m.workers_peak_rss_mib()},
        "io": {"bytes_read": m.bytes_read() - disk if disk is not None else None},
        "actual": {"device": "cpu", "data": summary(image_set), "storage": knobs.get("storage"), **skipped(dataset), **stored_as(dataset)},
        "disturbance": m.disturbance(mark),
    }
