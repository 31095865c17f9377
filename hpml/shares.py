"""How a run's time is divided among its notebooks: whole results of the ladder first, a look at everything else, the rest to --resume."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

RESERVE_S = 30  # what every later notebook keeps, so that each is reached: its data, where a step's time goes
SLACK = 1.5  # a notebook may take so many times its need: what nobody has decided goes on to more rounds
FOUNDATIONS = 2.0  # and the limits and the noise floor this much more, before the machine's pace is known: every verdict rests on them
SUMMARIES = ("40", "41")  # their subject is what the others have recorded
PIECES = 0.5  # where the reserves would take more than this part of a budget, it is a piece: notebooks one after another


class Need(NamedTuple):
    """A notebook that is still to do: its number, its minutes by the estimate, and whether it belongs to the ladder that is climbed."""

    number: str
    minutes: float
    climbs: bool


def in_pieces(left: Iterable[Need], budget_s: float | None) -> bool:
    """Whether the budget holds a few of the notebooks left only, one after another: a reserve for each would leave too little."""
    return budget_s is not None and PIECES * budget_s < sum(min(60 * need.minutes, RESERVE_S) for need in left)


def share(left: Sequence[Need], left_s: float, *, pace: float = 1.0, pieces: bool = False) -> float:
    """Seconds of `left_s` for the first of the notebooks left.

    One of the ladder takes what it needs as long as every later one keeps a reserve; one of another workload takes what the ladder
    will not need, at least its reserve. Where there is time for more than that, each has its part of it. In pieces the first takes all but
    what the summaries need. `pace`: how many times the estimate this machine needs.
    """
    def seconds(need: Need) -> float:
        return 60 * need.minutes * (max(pace, FOUNDATIONS) if need.number < "10" else pace)

    def kept(need: Need) -> float:
        whole = need.number in SUMMARIES or (need.climbs and not left[0].climbs)
        return 0.0 if pieces and need.number not in SUMMARIES else seconds(need) if whole else min(seconds(need), RESERVE_S)

    free_s = left_s - sum(map(kept, left[1:]))
    if pieces:
        return max(free_s, 0.0)
    own_s, total_s = seconds(left[0]), sum(map(seconds, left))
    if left_s > SLACK * total_s:
        return left_s * own_s / total_s if total_s else left_s
    return min(left_s, max(min(free_s, SLACK * own_s), min(own_s, RESERVE_S)))


def pace_of(done: Iterable[tuple[float, float, bool]]) -> float:
    """How many times the estimate this machine needs, from (seconds, estimated seconds, whether whole) of the notebooks that ran; one
    that was cut tells only that it is slower. 1 before anything ran."""
    told = [(took, expected) for took, expected, whole in done if expected and (whole or took > expected)]
    return max(0.5, sum(took for took, _ in told) / sum(expected for _, expected in told)) if told else 1.0
