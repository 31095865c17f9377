"""How a training scales over n devices, by a model with few numbers: arithmetic, gradient bytes, a link, and what of it is hidden.

    step(n) = compute + exposed * allreduce(gradient bytes, n)

The all-reduce is the bandwidth-optimal ring (Patarasuk and Yuan, Journal of Parallel and Distributed Computing 69, 2009, pages
117-124): each device sends 2 (n - 1) / n of the bytes in 2 (n - 1) messages. `exposed` is the share that the backward pass does not
hide: 1 without any overlap, 0 with a perfect one, and above 1 where sending takes the cores that compute. Each device has a batch of
its own, so the ideal step is as long as that of one (weak scaling).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """Between neighbours: bytes a second, and seconds a message takes however short it is."""

    bytes_s: float
    latency_s: float


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
