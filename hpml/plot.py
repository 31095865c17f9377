"""The chart of a comparison: a technique beside its baseline. All other charts are reached from here too (plot.worth, plot.curves, ...)."""

from collections.abc import Sequence

from hpml import tables
from hpml.compare import Row
from hpml.plot_look import (
    BAND,
    GLYPHS,
    INK,
    LANE_IN,
    SOFT,
    clean,
    clean_lines,
    colour,
    engine,
    figure_of,
    finish,
    halo,
    headed,
    provenance,
    ratio_axis,
    show_alt,
    styled,
)
from hpml.plot_machine import limits, noise, warmup_curve
from hpml.plot_runs import gains, runs
from hpml.plot_serving import load, resolution
from hpml.plot_soundness import gradients, memorised, reliability
from hpml.plot_stack import ladder
from hpml.plot_step import Pair, phases, steps
from hpml.plot_summary import charted, worth
from hpml.plot_tradeoff import latency, speed_quality
from hpml.plot_training import confusion, curves, distances, marked, masked, pictures
from hpml.plot_versions import versions
from hpml.wording import words

LIMIT_WORD = 0.06  # share of the axis that the word at a limit's mark takes
__all__ = [
    "Pair",
    "charted",
    "comparison",
    "confusion",
    "curves",
    "distances",
    "gains",
    "gradients",
    "ladder",
    "latency",
    "limits",
    "load",
    "marked",
    "masked",
    "memorised",
    "noise",
    "phases",
    "pictures",
    "reliability",
    "resolution",
    "runs",
    "show_alt",
    "speed_quality",
    "steps",
    "versions",
    "warmup_curve",
    "worth",
]


@styled
def comparison(rows: Sequence[Row], *, guess: float | None = None, title: str | None = None):
    """Ratios to the baseline with 95 % intervals, the noise band, what was not measured (hatched, with its reason), and the reader's guess.

    A mark "limit" shows the ratio at 100 % of the machine's measured limit where it is near. Returns the Axes.
    """
    rows = list(rows)
    lanes = _lanes(rows)
    labels = {id(row): label for row, label in zip(rows, labelled(rows), strict=True)}
    shown = [value for row in rows for value in (row.ratio, row.low, row.high) if value]
    low, high = min([1.0, *shown, *([guess] if guess else [])]), max([1.0, *shown, *([guess] if guess else [])])
    limits_at = {id(row): _at_limit(row) for row in rows}
    near = [at for at in limits_at.values() if at and low / 1.3 <= at <= high * 1.3]
    low, high = min([low, *near]), max([high, *near])
    figure, grid = figure_of(1.5 + LANE_IN * max(len(lanes), 1) + (0.3 if guess else 0))
    axes = grid[0, 0]
    ratio_axis(axes, low, high)
    for y, lane in enumerate(lanes):
        if isinstance(lane, str):
            axes.text(0, y + 0.15, lane, transform=axes.get_yaxis_transform(), weight="bold", va="center")
        else:
            _lane(axes, y, lane, labels[id(lane)], limits_at[id(lane)], near)
    bottom = len(lanes) - 0.45
    if guess:
        bars = [y + 0.16 for y, lane in enumerate(lanes) if not isinstance(lane, str)]
        axes.vlines(
            [guess] * len(bars), [y - 0.22 for y in bars], [y + 0.22 for y in bars], color=SOFT, linewidth=1.2, linestyle=":", zorder=4
        )
        axes.plot(
            [guess], [bottom + 0.1], marker="D", color="white", markeredgecolor=INK, markersize=8, clip_on=False, zorder=5, label="guess"
        )
        right = (guess / axes.get_xlim()[0]) > (axes.get_xlim()[1] / axes.get_xlim()[0]) ** 0.6
        axes.annotate(
            f"your guess {tables.ratio(guess)}",
            (guess, bottom + 0.1),
            (-9 if right else 9, 0),
            textcoords="offset points",
            va="center",
            ha="right" if right else "left",
            fontsize=8.5,
        )
        bottom += 0.55
    axes.set_ylim(bottom, -0.62)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ratio to the baseline (right of 1 is faster)")
    words = "Bar: ratio; line: 95 % interval; grey: noise floor" + ("; |: the measured limit" if near else "")
    claim = title or headed(claim_of(rows), rows)
    alt = f"Bar chart of ratios to the baseline. {claim}. " + "; ".join(f"{name(row, rows)}: {row.verdict_text}" for row in rows) + "."
    return finish(axes, clean_lines(claim), f"{words}. {provenance(rows)}.", alt)


def _at_limit(row: Row) -> float | None:
    """The ratio that the row would have at 100 % of its limit."""
    return row.limit_percent and (row.ratio or 1.0) * 100 / row.limit_percent


def _lanes(rows: Sequence[Row]) -> list[Row | str]:
    """Rows from top to bottom, with a heading where workload, phase or machine change."""
    lanes: list[Row | str] = []
    last = None
    for row in rows:
        heading = _heading(row, rows)
        if heading and heading != last:
            lanes.append(clean(heading, 80))
        last = heading
        lanes.append(row)
    return lanes


def _heading(row: Row, rows: Sequence[Row]) -> str:
    parts = {"workload": tables.title(row.workload), "phase": tables.PHASES.get(row.phase, row.phase), "machine": row.machine}
    return ", ".join(text for field, text in parts.items() if len({getattr(other, field) for other in rows}) > 1)


def _lane(axes, y: float, row: Row, label: str, limit: float | None, near: Sequence[float]) -> None:
    """One case: its name and figures on a line of text, its bar below."""
    across = axes.get_yaxis_transform()
    bar, height = y + 0.16, 0.3
    left, right = axes.get_xlim()
    if row.verdict == "not measured here" and row.ratio is None:
        reason = tables.notes([row])
        text = reason[0].removeprefix(f"not measured here: {row.label}: ") if reason else row.verdict_text
        axes.barh([bar], [right - left], left=[left], height=height, facecolor="white", edgecolor="none", hatch="////", zorder=1)
        axes.text(
            0.01,
            bar,
            clean(f"not measured: {text}", 84),
            transform=across,
            va="center",
            fontsize=8.5,
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
    else:
        if row.floor and not row.is_baseline:
            ends = 1 / (1 + row.floor), 1 + row.floor
            axes.barh([bar], [ends[1] - ends[0]], left=[ends[0]], height=0.44, color=BAND, zorder=0)
        axes.vlines([1], [bar - 0.22], [bar + 0.22], color=INK, linewidth=1, zorder=2.5)
        ratio = row.ratio or 1.0
        if row.is_baseline:
            axes.plot([1], [bar], marker="o", color=colour(engine(row.knobs)), zorder=3)
        else:
            axes.barh([bar], [ratio - 1], left=[1], height=height, color=colour(engine(row.knobs)), zorder=2)
        if row.low is not None:
            axes.errorbar([ratio], [bar], xerr=[[ratio - row.low], [row.high - ratio]], color=INK, capsize=3, linewidth=1.2, zorder=3)
    if limit in near and limit:
        axes.plot([limit, limit], [bar - 0.2, bar + 0.2], color="#AA0000", linewidth=2, zorder=3)
        # Left of its mark, where the edge of the chart is far; right of it where the bar or its interval reaches to the mark.
        before, behind = limit / max(1.0, row.ratio or 1.0, row.high or 1.0), right / limit
        side = (3, "left") if before < (right / left) ** LIMIT_WORD < behind else (-3, "right")
        axes.annotate("limit", (limit, bar), (side[0], 0), textcoords="offset points", fontsize=8, color="#AA0000", va="center", ha=side[1],
                      zorder=4, path_effects=halo())
    figures = [
        f"{GLYPHS.get(row.verdict, '')} {tables.ratio(row.ratio)}".strip() if not row.is_baseline else "baseline",
        tables.figure(row.per_s, "samples/s"),
        f"{tables.figure(row.limit_percent)} % of {row.limit_bound} limit" if row.limit_percent else "",
    ]
    while len("   ".join(figures)) + len(label) > 84 and len(figures) > 2:
        figures.pop()  # a long name leaves no room for the limit; tables have it
    text = "   ".join(filter(None, figures)) if row.per_s else ""
    axes.text(0, y - 0.2, clean(label, max(24, 84 - len(text))), transform=across, va="center")
    axes.text(1, y - 0.2, text, transform=across, va="center", ha="right", fontsize=8.5)


def name(row: Row, rows: Sequence[Row]) -> str:
    """A case's name with what tells it apart from the other rows."""
    heading, label = _heading(row, rows), labelled(rows)[next(i for i, other in enumerate(rows) if other is row)]
    return f"{heading}, {label}" if heading else label


def labelled(rows: Sequence[Row]) -> list[str]:
    """Each row in words: the settings in which its comparison differs, and where another comparison has the same, what tells them apart."""
    def apart(row: Row, others: Sequence[Row]) -> str:
        return words(row.knobs, [knob for knob, value in row.knobs.items() if any(other.knobs.get(knob) != value for other in others)])

    own = [apart(row, [other for other in rows if other.group == row.group]) or row.label for row in rows]
    of = [(row.workload, row.phase, row.machine, label) for row, label in zip(rows, own, strict=True)]
    return [", ".join(filter(None, (label, apart(row, [other for other, theirs in zip(rows, of, strict=True) if theirs == mine]))))
            for row, label, mine in zip(rows, own, of, strict=True)]


def claim_of(rows: Sequence[Row]) -> str:
    """What a comparison shows, computed from its verdicts."""
    others = [row for row in rows if not row.is_baseline]
    measured = [row for row in others if row.verdict in ("faster", "slower", "no difference", "too few rounds")]
    one = {(row.workload, row.phase) for row in rows}
    batches = {row.knobs.get("batch") for row in rows if row.phase == "infer"} - {None}
    size = f" at batch {batches.pop()}" if len(batches) == 1 else ""
    subject = f"{tables.title(rows[0].workload)} {tables.PHASES.get(rows[0].phase, rows[0].phase)}{size}: " if len(one) == 1 else ""
    if any(row.tier == "smoke" for row in rows):
        return f"{subject}{len(measured)} of {len(others)} cases ran beside their baseline"
    if not measured:
        return f"{subject}nothing to compare yet" if not others else f"{subject}not measured here"
    if len(measured) == 1:
        row = measured[0]
        what = words(row.knobs, row.differs_in) or row.label
        if row.verdict in ("faster", "slower"):
            kept = {"kept": ", quality kept", "lost": ", but quality is lost"}.get(row.quality, "")
            return f"{subject}{what} is {row.verdict}, {tables.ratio(row.ratio)}{kept}"
        return f"{subject}{what}: {row.verdict_text.split(';')[0]}"
    count = {word: [row for row in measured if row.verdict == word] for word in ("faster", "slower", "no difference", "too few rounds")}
    if count["faster"]:
        best = max(count["faster"], key=lambda row: row.ratio)
        most = f"{name(best, rows)} ({tables.ratio(best.ratio)})"
        return f"{subject}{len(count['faster'])} of {len(measured)} measured cases are faster; fastest: {most}"
    if count["slower"]:
        worst = min(count["slower"], key=lambda row: row.ratio)
        most = f"{name(worst, rows)} ({tables.ratio(worst.ratio)})"
        return f"{subject}no case is faster; {len(count['slower'])} of {len(measured)} slower; slowest: {most}"
    if count["no difference"]:
        return f"{subject}no difference beyond the noise in {len(count['no difference'])} of {len(measured)} cases"
    return f"{subject}too few rounds for a verdict"
