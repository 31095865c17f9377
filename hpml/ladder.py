"""Stacked techniques: the cases that a ladder needs, and what its records say: do the gains multiply, and which step could be left out."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpml import compare, tables
from hpml.compare import Row
from hpml.records import Record

Ratio = tuple[float, float | None, float | None]  # with the ends of its 95 % interval, where there are rounds enough


def climb(base, steps: Sequence[dict]) -> list:
    """The cases of a ladder: each step (a dict of knobs) on top of those before, then the full stack without each step, then each alone."""
    steps = list(steps)
    wanted = [steps[:number] for number in range(len(steps) + 1)]
    wanted += [steps[:left_out] + steps[left_out + 1:] for left_out in range(len(steps))]
    wanted += [[step] for step in steps]
    cases = []
    for chosen in wanted:
        knobs = {name: value for step in chosen for name, value in step.items()}
        case = base.but(**knobs) if knobs else base
        if all(case.knobs != other.knobs for other in cases):
            cases.append(case)
    return cases


@dataclass(frozen=True)
class Step:
    """One rung: `row` has it on top of those before. Each ratio is paired by rounds; None where a case has no figure."""

    knobs: tuple[str, ...]
    row: Row
    added: Ratio | None  # to the rung before
    alone: Ratio | None  # to the baseline, without any other step
    last: Ratio | None  # the full stack over the full stack without this step
    single: Row | None
    without: Row | None


@dataclass(frozen=True)
class Ladder:
    """The full stack beside the product of what its steps give alone; `excess` is the one over the other, with its verdict."""

    base: Row
    steps: tuple[Step, ...]
    product: Ratio | None
    excess: Ratio | None
    excess_verdict: str  # as of a comparison: faster (more than the product), slower (less), no difference, too few rounds

    @property
    def full(self) -> Row:
        """The row of all steps together."""
        return self.steps[-1].row


def read(rows: Sequence[Row], records: Iterable[Record]) -> list[Ladder]:
    """The ladders among `rows` (comparisons in which at least two steps stand on each other), with their paired ratios from `records`."""
    records = list(records)
    found = []
    for machine, group in dict.fromkeys((row.machine, row.group) for row in rows):
        own = [row for row in rows if (row.machine, row.group) == (machine, group)]
        base = next((row for row in own if row.is_baseline), None)
        rungs = _rungs(own)
        if base is None or len(rungs) < 2 or not any(row.ratio for row in rungs):
            continue  # no steps on each other, or none that was measured
        one = _ladder(base, rungs, own, _rates([r for r in records if r.case["group"] == group and r.machine.get("id") == machine]))
        if all(step.single and step.without for step in one.steps):  # else they only happen to include each other
            found.append(one)
    return found


def _rungs(rows: Sequence[Row]) -> list[Row]:
    """Each rung turns all that the one before turned, and more."""
    rungs: list[Row] = []
    for row in rows:
        before = rungs[-1] if rungs else None
        more = before is None or (set(row.differs_in) > set(before.differs_in) and _same(row, before, before.differs_in))
        if more and not row.is_baseline:
            rungs.append(row)
    return rungs


def _same(a: Row, b: Row, names: Iterable[str]) -> bool:
    return all(a.knobs[name] == b.knobs[name] for name in names)


def _rates(records: Sequence[Record]) -> dict[tuple, dict[int, float]]:
    """Rate by round of each case, by the label that its row has."""
    return {label: compare.by_round(r for r in records if r.case["label"] == label) for label in {r.case["label"] for r in records}}


def _ladder(base: Row, rungs: list[Row], rows: Sequence[Row], rates: dict) -> Ladder:
    full = rungs[-1]
    steps, singles = [], []
    for before, row in zip([base, *rungs], rungs, strict=False):
        turned = tuple(name for name in row.differs_in if name not in before.differs_in)
        rest = set(full.differs_in) - set(turned)
        alone = next((o for o in rows if set(o.differs_in) == set(turned) and _same(o, full, turned)), None)
        without = next((o for o in rows if set(o.differs_in) == rest and _same(o, full, rest)), None)
        logs = {name: _logs(rates, x, y) for name, x, y in (("added", before, row), ("alone", base, alone), ("last", without, full))}
        singles.append(logs["alone"])
        steps.append(Step(turned, row, **{name: _ratio(list(own.values())) for name, own in logs.items()}, single=alone, without=without))
    whole = _logs(rates, base, full)
    shared = sorted(set(whole).intersection(*singles))
    product = {number: sum(own[number] for own in singles) for number in shared}
    excess = [whole[number] - product[number] for number in shared]
    return Ladder(base, tuple(steps), _ratio(list(product.values())), _ratio(excess), compare.speed_verdict(excess, full.floor)[0])


def _logs(rates: dict, base: Row | None, other: Row | None) -> dict[int, float]:
    """Log-ratio by round of two cases of one comparison."""
    if base is None or other is None:
        return {}
    one, two = rates.get(base.label, {}), rates.get(other.label, {})
    shared = sorted(one.keys() & two.keys())
    return dict(zip(shared, compare.log_ratios(one, two), strict=True))


def _ratio(logs: list[float]) -> Ratio | None:
    if len(logs) >= 2:
        return compare.interval(logs)
    return (math.exp(logs[0]), None, None) if logs else None


def ratio_text(found: Ratio | None) -> str:
    """ "1.26x [1.14, 1.40]", "not measured" for None."""
    if found is None:
        return "not measured"
    return tables.ratio(found[0]) + (f" [{found[1]:.2f}, {found[2]:.2f}]" if found[1] is not None else "")


def sentences(found: Ladder) -> list[str]:
    """What the ladder says: the stack beside the product, then each step: added in its place, alone, and what is lost without it."""
    base, full = found.base, found.full
    turned = tables.settings(full, full.differs_in, ", ")
    stack = f"{tables.title(base.workload)} {tables.PHASES.get(base.phase, base.phase)}, {base.machine}: the stack of {turned}"
    if full.tier == "smoke":
        lines = [f"{tables.SMOKE}. {stack} {'ran' if full.per_s else 'did not run'}."]
    elif found.excess is None:
        lines = [f"{stack} cannot be held against the product of its steps: {_missing(found)}."]
    else:
        words = {"faster": "more than", "slower": "less than", "no difference": "as much, within the noise, as"}
        verdict = words.get(found.excess_verdict)
        against = f"{verdict} the product of its steps" if verdict else "no verdict (few rounds or no noise floor) against the product"
        lines = [f"{stack} gives {ratio_text((full.ratio, full.low, full.high))}, {against}, {ratio_text(found.product)} "
                 f"(stack over product: {ratio_text(found.excess)})."]
    return lines + [f"{tables.settings(full, step.knobs)}: added in its place {ratio_text(step.added)}, alone {ratio_text(step.alone)}, "
                    f"as the last one {ratio_text(step.last)}{_dispensable(step, full)}." for step in found.steps]


def _missing(found: Ladder) -> str:
    lost = [tables.settings(found.full, step.knobs) for step in found.steps if step.alone is None]
    return f"{' and '.join(lost)} alone has no figure" if lost else "the stack has no figure"


def _dispensable(step: Step, full: Row) -> str:
    """Whether the stack is as fast without the step."""
    if step.last is None or step.last[1] is None or full.rounds < compare.MIN_ROUNDS or full.tier == "smoke" or full.floor is None:
        return ""
    ratio, low, high = step.last
    if low > 1 and ratio - 1 > full.floor:
        return ": the stack needs it"
    return ": the stack is faster without it" if high < 1 and 1 / ratio - 1 > full.floor else ": the stack can do without it"
