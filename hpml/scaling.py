"""How a training scales over n devices, by a model with few numbers: arithmetic, gradient bytes, a link, and what of it is hidden.

    step(n) = compute + exposed * allreduce(gradient bytes, n)

The all-reduce is the bandwidth-optimal ring (Patarasuk and Yuan, Journal of Parallel and Distributed Computing 69, 2009, pages
117-124): each device sends 2 (n - 1) / n of the bytes in 2 (n - 1) messages. `exposed` is the share that the backward pass does not
hide: 1 without any overlap, 0 with a perfect one, and above 1 where sending takes the cores that compute. What a step does once besides
(the optimizer's update) is counted in it too: efficiencies are lower bounds. Each device has a batch of its own, so the ideal step is as
long as that of one (weak scaling).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """Between neighbours: bytes a second, and seconds a message takes however short it is."""

    bytes_s: float
    latency_s: float


DEVICES = (1, 2, 4, 8)
WAYS = ("one process, one thread", "one process, two threads", "two ranks, one thread each")  # that a global batch is gone through
ASSUMED = {"10 Gbit/s Ethernet (assumed)": Link(1.25e9, 30e-6)}  # between machines with CPUs; the links of GPUs belong to steps of GPUs


def allreduce_s(nbytes: float, n: int, link: Link) -> float:
    """Seconds of a ring all-reduce of `nbytes` over n devices; 0 for one."""
    return 2 * (n - 1) / n * nbytes / link.bytes_s + 2 * (n - 1) * link.latency_s


def fit_link(nbytes: Sequence[float], seconds: Sequence[float], n: int) -> Link:
    """The link that explains measured all-reduces over n devices, by least squares of relative errors; nothing in it is negative.

    Raises ValueError for fewer than two sizes.
    """
    import numpy as np
    from scipy.optimize import nnls

    if len(set(nbytes)) < 2:
        raise ValueError("a link needs all-reduces of at least two sizes")
    taken = np.asarray(seconds, float)
    terms = np.stack([2 * (n - 1) / n * np.asarray(nbytes, float), np.full(len(taken), 2.0 * (n - 1))], axis=1)
    per_byte, latency = nnls(terms / taken[:, None], np.ones(len(taken)))[0]
    return Link(1 / max(per_byte, 1e-15), latency)


def fit_step(short_s: float, long_s: float, count: int, allreduce: float) -> tuple[float, float]:
    """(compute of one micro-batch, exposed) from the steps of 1 and of `count` micro-batches, which send their gradients once alike."""
    compute = (long_s - short_s) / (count - 1)
    return compute, (short_s - compute) / allreduce


def step_s(compute: float, exposed: float, nbytes: float, n: int, link: Link, *, micro_batches: int = 1) -> float:
    """Seconds of one step on each of n devices."""
    return micro_batches * compute + exposed * allreduce_s(nbytes, n, link)


def efficiency(compute: float, exposed: float, nbytes: float, n: int, link: Link, *, of: int = 1) -> float:
    """Samples/s of n devices over n / `of` times those of `of` devices."""
    return step_s(compute, exposed, nbytes, of, link) / step_s(compute, exposed, nbytes, n, link)


def parity_devices(step_s: float, nbytes: float, bytes_s: float) -> float:
    """n* = 1 + T B / (2 nbytes): where sending takes as long as the arithmetic of one step of T seconds divided over n devices."""
    return 1 + step_s * bytes_s / (2 * nbytes)


def table(facts: dict) -> list[dict]:
    """A line for each number of devices: efficiency by link, from the figures of `benchmarks/scaling.py`."""
    link = Link(facts["link"]["bytes_s"], facts["link"]["latency_s"])
    links = {f"loopback there, {link.bytes_s / 1e9:.2f} GB/s": link, **ASSUMED}
    step = facts["compute_s"], facts["exposed"], facts["gradient_bytes"]
    return [{"devices": n, **{name: f"{efficiency(*step, n, one):.0%}" for name, one in links.items()}} for n in DEVICES]


def said(facts: dict) -> list[str]:
    """What those figures say: the link and the fit's errors, the step, the step held back, and what is a model's."""
    ranks, exposed, nbytes = facts["knobs"]["ranks"], facts["exposed"], facts["gradient_bytes"]
    link = Link(facts["link"]["bytes_s"], facts["link"]["latency_s"])
    off = {int(size): allreduce_s(int(size), ranks, link) / seconds - 1 for size, seconds in facts["allreduce"].items()}
    worst, largest = max(off, key=lambda size: abs(off[size])), max(off)
    small, large = (choose(step["micro_batch"] for step in facts["steps"]) for choose in (min, max))
    sent, held = allreduce_s(nbytes, ranks, link), facts["held_back"]
    above = " Above 1 because of that, or because sending takes cores from computing: the study cannot tell." if exposed > 1 else ""
    return [
        f"Link: {link.bytes_s / 1e9:.2f} GB/s and {1e6 * link.latency_s:.0f} us a message, fitted to all-reduces of {len(off)} sizes. "
        f"The fit is {off[largest]:+.0%} off at the largest ({largest / 2**20:,.0f} MiB) and at worst {off[worst]:+.0%} "
        f"(at {worst / 2**10:,.0f} KiB).",
        f"A step of {small} samples a rank: {1e3 * facts['compute_s']:.0f} ms forwards and backwards, and {1e3 * exposed * sent:.0f} ms "
        f"more. That is {exposed:.2f} times the {1e3 * sent:.0f} ms that an all-reduce of {nbytes / 1e6:.0f} MB of gradients takes alone. "
        f"What a step does once besides, such as the optimizer's update, is in it, so the efficiencies are lower bounds.{above}",
        f"Held back, {large} samples a rank: predicted {1e3 * held['predicted_s']:.0f} ms, measured {1e3 * held['measured_s']:.0f} ms, "
        f"an error of {held['predicted_s'] / held['measured_s'] - 1:+.1%}.",
        f"Measured were steps of {ranks} ranks; the efficiencies are the model's.",
    ]


def divided(facts: dict) -> list[dict]:
    """A line for each global batch that was divided: samples/s of one thread, and how many times that two threads and two ranks reach."""
    alone, *others = WAYS
    return [{"global batch": one["batch"], alone: f"{one[alone]['per_s']:.1f} samples/s",
             **{way: f"{one[way]['ratio']:.2f}x [{one[way]['low']:.2f}, {one[way]['high']:.2f}]" for way in others}}
            for one in facts["divided"]]


def text(facts: dict) -> str:
    """The study as its notebook prints it, below the line that says where it comes from."""
    import pandas as pd

    small = min(step["micro_batch"] for step in facts["steps"])
    smoke = " (smoke: not a result)" if facts["tier"] == "smoke" else ""
    strong = [
        f"Strong scaling, measured (one global batch divided; ratio to one thread, 95 % interval, {facts['knobs']['rounds']} rounds)",
        pd.DataFrame(divided(facts)).to_string(index=False)] if "divided" in facts else []  # an older study has none
    return "\n".join([
        f"{facts['data']}, n={facts['n']:,}, tier {facts['tier']}{smoke}",
        f"Weak-scaling efficiency (each device keeps {small} samples, so the batch grows): samples/s over n times those of one device",
        pd.DataFrame(table(facts)).to_string(index=False), *said(facts), *strong])
