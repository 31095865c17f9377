"""Queueing theory as the bound of a server: Poisson arrivals, c servers with a fixed service time (M/D/c), and what cores that asks for.

It is the best first-come-first-served server that refuses nobody, and no bound of all servers: a P99 forgives one query in a hundred, and
a server that refuses those which would be late has a shorter queue for the rest. Refusing up to 1 % can so pass it slightly.

The waiting time's distribution is Franx's closed form (G. J. Franx, "A simple solution for the M/D/c waiting time distribution",
Operations Research Letters 29 (2001) 221-229): a sum of positive terms, so nothing cancels, unlike Erlang's and Crommelin's series. It
needs the number of customers in the system, solved from Crommelin's equations: what is there after one service time is what waited
before it plus what arrived meanwhile.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

QUANTILE, LIMIT_S = 0.99, 0.150
FULL = 0.995  # loads above it are not asked about: no server runs there, and the tail becomes too long to sum


def erlang_tail(load: float, c: int) -> float:
    """The factor by which the probability of one more customer falls, far out: the root z > 1 of c ln z = load * c (z - 1), inverted."""
    from scipy.optimize import brentq

    def excess(z: float) -> float:
        return c * math.log(z) - load * c * (z - 1)

    low = 1 / load  # the maximum of `excess`; it falls from there on
    return 1 / brentq(excess, low, 2 * low * max(1.0, -math.log(load)) / load + 10)


@functools.lru_cache(maxsize=512)
def _at_most(load: float, c: int):
    """P(number in the system <= n) for n = 0, 1, ..., up to where 1e-12 is left. `load` is per server, below 1."""
    import numpy as np
    from scipy.linalg import solve_banded
    from scipy.stats import poisson

    mean = load * c
    size = c + 40 + math.ceil(math.log(1e-12) / math.log(erlang_tail(load, c))) + math.ceil(8 * math.sqrt(mean))
    reach = min(size - 1, math.ceil(mean + 12 * math.sqrt(mean) + 20))  # arrivals in one service time, all but 1e-15
    arrivals = poisson.pmf(np.arange(size + c + 1), mean)
    # p[j] = sum over i of p[i] * arrivals[j - max(i - c, 0)]; with p[0] = 1 the equations 1 .. size-1 give the rest, up to a factor.
    upper, lower = c, reach
    bands = np.zeros((upper + lower + 1, size - 1))
    right = arrivals[1:size].copy()
    for i in range(1, size):
        left = max(i - c, 0)
        rows = np.arange(max(left, 1), min(size - 1, i + lower) + 1)
        bands[upper + rows - i, i - 1] = -arrivals[rows - left]
        bands[upper, i - 1] += 1
    p = np.concatenate([[1.0], solve_banded((lower, upper), bands, right)]).clip(0)
    return np.cumsum(p) / p.sum()


def waits_at_most(x_s: float, *, rate: float, service_s: float, c: int) -> float:
    """P(a customer waits at most x_s seconds for one of c servers). Arrivals are Poisson at `rate` per second, first come first served."""
    import numpy as np
    from scipy.stats import poisson

    if x_s < 0:
        return 0.0
    load = rate * service_s / c
    if load >= 1:
        return 0.0
    k = math.floor(x_s / service_s) + 1
    at_most = _at_most(load, c)
    waiting = np.minimum(np.arange(k * c - 1, -1, -1) + c, len(at_most) - 1)  # Q_j of the paper: at most j customers wait
    terms = poisson.pmf(np.arange(k * c), rate * (k * service_s - x_s))
    return float(min(1.0, at_most[waiting] @ terms))


def wait_quantile(*, rate: float, service_s: float, c: int, quantile: float = QUANTILE) -> float:
    """Seconds that at most a share 1 - quantile of the customers wait longer than; infinite from full load on."""
    if rate * service_s / c > FULL:
        return math.inf
    if waits_at_most(0.0, rate=rate, service_s=service_s, c=c) >= quantile:
        return 0.0
    high = service_s
    while waits_at_most(high, rate=rate, service_s=service_s, c=c) < quantile:
        high *= 2
    low = high / 2 if high > service_s else 0.0
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if waits_at_most(middle, rate=rate, service_s=service_s, c=c) >= quantile else (middle, high)
    return high


@dataclass(frozen=True)
class Server:
    """c streams on `cores` cores. `stream_s`: seconds of one request in one stream while all of them work, `other_s`: core seconds that a
    request costs beside the model, on the same cores (decode, HTTP, the client where it runs here)."""

    c: int
    cores: int
    stream_s: float
    other_s: float = 0.0

    @property
    def service_s(self) -> float:
        """The time for which a request keeps one of the c servers: a core second taken from the machine is c / cores of one of them."""
        return self.stream_s + self.other_s * self.c / self.cores

    @property
    def most_per_s(self) -> float:
        """Requests per second when all are busy."""
        return self.c / self.service_s

    def latency(self, rate: float, quantile: float = QUANTILE) -> float:
        """Seconds from arrival to answer that a share `quantile` of the requests stays within."""
        alone = max(self.service_s, self.stream_s + self.other_s)  # one core does what is beside the model of one request
        return wait_quantile(rate=rate, service_s=self.service_s, c=self.c, quantile=quantile) + alone

    def on(self, cores: int) -> "Server":
        """The same streams on more cores, as many more of them; that memory bandwidth would grow likewise is an assumption."""
        return Server(max(1, self.c * cores // self.cores), cores, self.stream_s, self.other_s)


def highest_rate(server: Server, *, limit_s: float = LIMIT_S, quantile: float = QUANTILE) -> float:
    """The most requests per second with a latency of at most `limit_s` at the quantile; 0 where one request alone takes longer."""
    if server.latency(1e-3 * server.most_per_s, quantile) > limit_s:
        return 0.0
    low, high = 1e-3, FULL
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if server.latency(middle * server.most_per_s, quantile) <= limit_s else (low, middle)
    return low * server.most_per_s


def bound(stream_s: Mapping[int, float], *, cores: int, other_s: float = 0.0, limit_s: float = LIMIT_S,
          quantile: float = QUANTILE) -> tuple[Server, float]:
    """The best number of streams and its highest rate, where nobody is refused. stream_s: measured seconds of a request by the number of
    streams at work."""
    found = [(highest_rate(server, limit_s=limit_s, quantile=quantile), server)
             for server in (Server(c, cores, seconds, other_s) for c, seconds in sorted(stream_s.items()))]
    rate, server = max(found, key=lambda pair: (pair[0], pair[1].most_per_s))
    return server, rate


def cores_needed(rate: float, server: Server, *, limit_s: float = LIMIT_S, quantile: float = QUANTILE, most: int = 4096) -> int | None:
    """The fewest cores that answer `rate` requests per second within limit_s at the quantile, all in one queue; None: no number does."""
    first = max(server.cores if server.c < server.cores else 1, math.ceil(rate * server.service_s * server.cores / server.c))
    for cores in range(first, most):
        larger = server.on(cores)
        if larger.most_per_s * FULL < rate:
            continue
        if larger.latency(rate, quantile) <= limit_s:
            return cores
        if larger.latency(1e-3, quantile) > limit_s:
            return None
    return None
