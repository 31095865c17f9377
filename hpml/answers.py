"""Which test samples a model answered right, as a record keeps it, and how far two models differ on the same samples."""

from statistics import NormalDist


def packed(right) -> str:
    """One bit for each sample (bool [n], in the order of the test set), in hexadecimal digits."""
    import numpy as np

    return np.packbits(np.asarray(right, dtype=bool)).tobytes().hex()


def difference(one: dict, other: dict, confidence: float) -> tuple[float, float] | None:
    """Ends of the interval of value(one) - value(other), of two records' qualities that are shares of right answers to the same samples.

    Only the samples that one of the two alone has right tell them apart; one is added to either count (Bonett and Price, Adjusted Wald
    confidence interval for a difference of binomial proportions based on paired data, 2012). None where a record does not say which.
    """
    import numpy as np

    if not one.get("right") or not other.get("right") or one["n"] != other["n"]:
        return None
    n = one["n"]
    mine, theirs = (np.unpackbits(np.frombuffer(bytes.fromhex(quality["right"]), dtype=np.uint8), count=n) for quality in (one, other))
    gained, lost = ((1 + int((a > b).sum())) / (n + 2) for a, b in ((mine, theirs), (theirs, mine)))
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * ((gained + lost - (gained - lost) ** 2) / (n + 2)) ** 0.5
    return gained - lost - half, gained - lost + half
