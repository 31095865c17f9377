"""Charts of where a training step goes: the phases of each case in milliseconds; of the best stack beside its baseline, by workload."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hpml import tables
from hpml.compare import Row
from hpml.plot_look import INK, PHASES, clean, clean_lines, figure_of, finish, headed, legend_below, provenance, styled
from hpml.plot_training import names_of, origin, titled
from hpml.records import Record
from hpml.wording import words

HATCHES = {"wait": "xxxx", "optimizer": "////"}  # beside the colours, for who cannot tell these two


@dataclass(frozen=True)
class Pair:
    """The best stack of a workload beside its baseline, each with the records of its steps."""

    base: Row
    best: Row
    base_records: list[Record]
    best_records: list[Record]


def timed(records: Sequence[Record]) -> list[Record]:
    """The records whose steps were measured phase by phase."""
    return [r for r in records if r.status == "ok" and r.samples and r.samples.get("phases")]


def _means(records: Sequence[Record], *, per_sample: bool = False) -> dict[str, float]:
    """ms of each phase in a step (or for one of its samples), the mean over all rounds."""
    return {phase: 1e3 * statistics.fmean(v / (r.samples["items"] if per_sample else 1) for r in records
                                          for v in r.samples["phases"].get(phase) or [0.0]) for phase in PHASES}


def _bar(axes, y: float, parts: dict[str, float], name: str, figures: str) -> None:
    """One case: its name and figures on a line of text, its stacked bar below."""
    left, across = 0.0, axes.get_yaxis_transform()
    for phase, length in parts.items():
        axes.barh([y + 0.16], [length], left=[left], height=0.34, color=PHASES[phase], hatch=HATCHES.get(phase), edgecolor="white",
                  linewidth=0.6, label=phase if y == 0 else "_nolegend_")
        left += length
    axes.text(0, y - 0.2, name, transform=across, va="center")
    axes.text(1, y - 0.2, figures, transform=across, va="center", ha="right", fontsize=8.5)


def _framed(axes, lanes: int, label: str) -> None:
    axes.set_ylim(max(lanes, 1) - 0.5, -0.6)
    axes.set_xlim(0, None)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
    if lanes:
        legend_below(axes, axes.get_legend_handles_labels()[0], columns=5)


@styled
def phases(records: Sequence[Record]):
    """Where a step goes: ms of wait, copy, forward, backward, optimizer per step and case, the mean over all rounds. Returns the Axes."""
    found = timed(records)
    names = names_of(found)
    means = {key: _means([r for r in found if r.case["key"] == key]) for key in names}
    figure, grid = figure_of(1.6 + 0.5 * max(len(means), 1))
    axes = grid[0, 0]
    for y, (key, parts) in enumerate(means.items()):
        total, largest = sum(parts.values()), max(parts, key=parts.get)
        _bar(axes, y, parts, names[key], f"{tables.figure(total, 'ms')}, {largest} {100 * parts[largest] / total:.0f} %")
    _framed(axes, len(means), "ms per step")
    claim = "No phase times measured yet"
    if means:
        parts = next(iter(means.values()))
        total = sum(parts.values())
        first, second = sorted(parts, key=parts.get, reverse=True)[:2]
        claim = (
            f"{first.capitalize()} takes {100 * parts[first] / total:.0f} % of a step, {second} {100 * parts[second] / total:.0f} %, "
            f"waiting for data {100 * parts['wait'] / total:.0f} %" + (f" ({next(iter(names.values()))})" if len(means) > 1 else "")
        )
    alt = f"Stacked bars. {claim}. " + "; ".join(
        f"{names[key]}: " + ", ".join(f"{phase} {tables.figure(ms, 'ms')}" for phase, ms in parts.items()) for key, parts in means.items()
    )
    return finish(axes, titled(claim, found), f"Mean of all steps after the warm-up. {origin(found)}.", alt)


@styled
def steps(pairs: Sequence[Pair]):
    """Where a step goes in the best stack of each workload beside its baseline: the time of a sample by phase, in percent of the
    baseline's. The line is the baseline's whole time. Returns the Axes."""
    figure, grid = figure_of(1.6 + 0.5 * max(2 * len(pairs), 1))
    axes = grid[0, 0]
    said, saved = [], []
    for number, pair in enumerate(pairs):
        before, after = _means(pair.base_records, per_sample=True), _means(pair.best_records, per_sample=True)
        whole = sum(before.values())
        for y, row, parts in ((2 * number, pair.base, before), (2 * number + 1, pair.best, after)):
            shares = {phase: 100 * ms / whole for phase, ms in parts.items()}
            largest, total = max(parts, key=parts.get), sum(parts.values())
            name = f"{tables.title(row.workload)}: " if row is pair.base and len(pairs) > 1 else ""
            what = words(row.knobs, pair.best.differs_in) or row.label
            figures = f"{tables.figure(total, 'ms')} a sample, {largest} {100 * parts[largest] / total:.0f} %"
            _bar(axes, y, shares, clean(f"{name}{what}", 84 - len(figures)), figures)
            said.append(f"{tables.title(row.workload)} {what}: "
                        + ", ".join(f"{phase} {tables.figure(ms, 'ms')}" for phase, ms in parts.items()) + " a sample")
        saved.append((pair, sum(after.values()) / whole, max(PHASES, key=lambda phase: before[phase] - after[phase]),
                      max(before, key=before.get)))
    lanes = range(2 * len(pairs))
    axes.vlines([100] * len(lanes), [y - 0.06 for y in lanes], [y + 0.38 for y in lanes], color=INK, linewidth=1, linestyle=":")
    _framed(axes, 2 * len(pairs), "time of a sample, % of the baseline's")
    rows = [row for pair in pairs for row in (pair.base, pair.best)]
    claim = _claim(saved)
    caption = ("Upper bar: the baseline, lower bar: the fastest measured stack; mean of all steps after the warm-up; dotted: the "
               "baseline's time.")
    alt = f"Stacked bars. {claim}. " + "; ".join(said) + "."
    return finish(axes, clean_lines(headed(claim, rows)), f"{caption} {provenance(rows)}.", alt)


def _claim(saved: Sequence[tuple[Pair, float, str, str]]) -> str:
    if not saved:
        return "No phase times of a baseline and a faster stack measured yet"
    if len(saved) == 1:
        pair, share, most, largest = saved[0]
        gain = f"the most is saved in {most}" if share < 1 else "nothing is saved"
        return (f"{tables.title(pair.base.workload)} training is mostly {largest}; a step of the best stack takes {100 * share:.0f} % of "
                f"the baseline's time, {gain}")
    shares = [share for _, share, _, _ in saved]
    largest = statistics.mode(part for *_, part in saved)
    return (f"A step is mostly {largest} in {sum(part == largest for *_, part in saved)} of {len(saved)} workloads; the best stacks take "
            f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of their baselines' time")
