"""What a load test's windows say: percentiles with their margin, misses, goodput, cores; as numbers for a record."""

import math
from collections.abc import Sequence

from hpml.loadgen import FAILED, OK, REFUSED, Window

KEPT = 5_000  # raw latencies in a record; of more, every k-th in the order of arrival, and the percentiles come from all


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value that a share of them does not exceed, by LoadGen's rule: position n * share of the sorted ones; None: it is infinite."""
    found = sorted(values)[min(len(values) - 1, math.floor(len(values) * share))]
    return found if math.isfinite(found) else None


def margin(values: Sequence[float], share: float, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Ends of the interval of a quantile, without any assumption on the distribution: how many of n values lie below it is binomial
    (Conover, Practical Nonparametric Statistics, 3.2). None: n is too small for that end, or it is infinite."""
    from scipy.stats import binom

    n, ordered = len(values), sorted(values)
    low, high = int(binom.ppf((1 - confidence) / 2, n, share)) - 1, int(binom.ppf((1 + confidence) / 2, n, share))
    ends = ordered[low] if low >= 0 else math.inf, ordered[high] if high < n else math.inf
    return tuple(end if math.isfinite(end) else None for end in ends)


def facts(window: Window, *, limit_s: float) -> dict:
    """One window as numbers. A query that was refused or failed has no latency: it counts as infinite, so P99 is null where more than
    one of 100 were."""
    answered = window.of(OK)
    all_of_them = [took if own == OK else math.inf for took, own in zip(window.took_s, window.outcomes, strict=True)]
    refused = window.of(REFUSED)
    low, high = margin(all_of_them, 0.99)
    return {
        "scenario": window.scenario, "asked_per_s": window.asked_per_s, "seconds": window.seconds, "n": len(window.outcomes),
        "answered": len(answered), "refused": len(refused), "failed": window.outcomes.count(FAILED),
        "missed": len(window.missed(limit_s)), "within": window.within(limit_s), "per_s": window.per_s,
        "goodput_per_s": window.goodput(limit_s), "p50_s": quantile(all_of_them, 0.5), "p90_s": quantile(all_of_them, 0.9),
        "p99_s": quantile(all_of_them, 0.99), "p99_low_s": low, "p99_high_s": high,
        "refusal_p99_s": quantile(refused, 0.99) if refused else None, "cpu_s": window.cpu_s, "again": window.again,
    }


def thinned(values: Sequence[float]) -> list[float]:
    """At most KEPT of them, evenly over time."""
    step = math.ceil(len(values) / KEPT)
    return list(values[::step])


def recovery(overload: Window, after: Window, *, limit_s: float) -> float:
    """Seconds from the last query of an overload to the first one from which on all were answered in time again: until the backlog was
    gone, and then the moment of the last miss among what came after."""
    drained = overload.seconds - max(overload.due_s)
    return drained + max(after.missed(limit_s), default=0.0)
