"""Charts of comparisons: a technique beside its baseline, what is worth it, the ladder, speed against quality, latency.

The charts of trainings are in plot_training, those of the machine in plot_machine; all of them are reached from here.
"""

import textwrap
from collections.abc import Sequence

from hpml import tables
from hpml.compare import Row, percent
from hpml.plot_look import (
    BAND,
    GLYPHS,
    INK,
    MARKS,
    SOFT,
    clean,
    colour,
    engine,
    figure_of,
    finish,
    headed,
    provenance,
    ratio_axis,
    show_alt,
    styled,
)
from hpml.plot_machine import limits, noise, warmup_curve
from hpml.plot_tradeoff import latency, speed_quality
from hpml.plot_training import confusion, curves, phases, pictures

__all__ = ["comparison", "confusion", "curves", "ladder", "latency", "limits", "noise", "phases", "pictures", "show_alt", "speed_quality",
           "warmup_curve", "worth"]

LANE_IN = 0.5  # height of one case: a line of text above its bar
FILLS = {"faster": "#A6CEE3", "slower": "#FDD0A2", "no difference": "#EEEEEE", "too few rounds": "#FFFFFF"}


@styled
def comparison(rows: Sequence[Row], *, guess: float | None = None, title: str | None = None):
    """Ratios to the baseline with 95 % intervals, the noise band, what was not measured (hatched, with its reason), and the reader's guess.

    A mark "limit" shows the ratio at 100 % of the machine's measured limit where it is near. Returns the Axes.
    """
    rows = list(rows)
    lanes = _lanes(rows)
    labels = {id(row): label for row, label in zip(rows, tables.names(rows), strict=True)}
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
        axes.vlines([guess] * len(bars), [y - 0.22 for y in bars], [y + 0.22 for y in bars], color=SOFT, linewidth=1.2, linestyle=":", zorder=4)
        axes.plot([guess], [bottom + 0.1], marker="D", color="white", markeredgecolor=INK, markersize=8, clip_on=False, zorder=5, label="guess")
        right = (guess / axes.get_xlim()[0]) > (axes.get_xlim()[1] / axes.get_xlim()[0]) ** 0.6
        axes.annotate(f"your guess {tables.ratio(guess)}", (guess, bottom + 0.1), (-9 if right else 9, 0), textcoords="offset points",
                      va="center", ha="right" if right else "left", fontsize=8.5)
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
        axes.text(0.01, bar, clean(f"not measured: {text}", 84), transform=across, va="center", fontsize=8.5, zorder=4,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
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
        axes.annotate("limit", (limit, bar), (-3, 0), textcoords="offset points", fontsize=8, color="#AA0000", va="center", ha="right", zorder=4)
    figures = [f"{GLYPHS.get(row.verdict, '')} {tables.ratio(row.ratio)}".strip() if not row.is_baseline else "baseline",
               tables.figure(row.per_s, "samples/s"),
               f"{tables.figure(row.limit_percent)} % of {row.limit_bound} limit" if row.limit_percent else ""]
    text = "   ".join(filter(None, figures)) if row.per_s else ""
    axes.text(0, y - 0.2, clean(label, max(24, 84 - len(text))), transform=across, va="center")
    axes.text(1, y - 0.2, text, transform=across, va="center", ha="right", fontsize=8.5)


def name(row: Row, rows: Sequence[Row]) -> str:
    """A case's name with what tells it apart from the other rows."""
    heading, label = _heading(row, rows), tables.names(rows)[next(i for i, other in enumerate(rows) if other is row)]
    return f"{heading}, {label}" if heading else label


def clean_lines(claim: str) -> str:
    return "\n".join(clean(line) for line in claim.split("\n"))


def claim_of(rows: Sequence[Row]) -> str:
    """What a comparison shows, computed from its verdicts."""
    others = [row for row in rows if not row.is_baseline]
    measured = [row for row in others if row.verdict in ("faster", "slower", "no difference", "too few rounds")]
    one = {(row.workload, row.phase) for row in rows}
    subject = f"{tables.title(rows[0].workload)} {tables.PHASES.get(rows[0].phase, rows[0].phase)}: " if len(one) == 1 else ""
    if any(row.tier == "smoke" for row in rows):
        return f"{subject}{len(measured)} of {len(others)} cases ran beside their baseline"
    if not measured:
        return f"{subject}nothing to compare yet" if not others else f"{subject}not measured here"
    if len(measured) == 1:
        row = measured[0]
        what = tables.settings(row, row.differs_in) or row.label
        if row.verdict in ("faster", "slower"):
            kept = {"kept": ", quality kept", "lost": ", but quality is lost"}.get(row.quality, "")
            return f"{subject}{what} is {row.verdict}, {tables.ratio(row.ratio)}{kept}"
        return f"{subject}{what}: {row.verdict_text.split(';')[0]}"
    count = {word: [row for row in measured if row.verdict == word] for word in ("faster", "slower", "no difference", "too few rounds")}
    if count["faster"]:
        best = max(count["faster"], key=lambda row: row.ratio)
        return f"{subject}{len(count['faster'])} of {len(measured)} measured cases are faster, most {name(best, rows)} ({tables.ratio(best.ratio)})"
    if count["slower"]:
        worst = min(count["slower"], key=lambda row: row.ratio)
        return f"{subject}no case is faster; {len(count['slower'])} of {len(measured)} slower, most {name(worst, rows)} ({tables.ratio(worst.ratio)})"
    if count["no difference"]:
        return f"{subject}no difference beyond the noise in {len(count['no difference'])} of {len(measured)} cases"
    return f"{subject}too few rounds for a verdict"


@styled
def worth(rows: Sequence[Row]):
    """What is worth it: techniques down, workloads across, one block a machine. Ratio, verdict, quality; hatched where not measured.

    Returns the first machine's Axes; the others are in `axes.figure.axes`.
    """
    others = [row for row in rows if not row.is_baseline]
    machines = list(dict.fromkeys(row.machine for row in others)) or ["no machine"]
    blocks = [_worth_cells([row for row in others if row.machine == machine]) for machine in machines]
    height = sum(0.34 * max(len(techniques), 1) + 0.55 for techniques, _, _ in blocks)
    figure, grid = figure_of(1.5 + height, rows=len(machines), height_ratios=[max(len(t), 1) + 1 for t, _, _ in blocks])
    for axes, machine, (techniques, workloads, cells) in zip(grid[:, 0], machines, blocks, strict=True):
        for (technique, workload), row in cells.items():
            _worth_cell(axes, techniques.index(technique), workloads.index(workload), row)
        axes.set_xlim(0, max(len(workloads), 1))
        axes.set_ylim(max(len(techniques), 1), 0)
        axes.set_xticks([i + 0.5 for i in range(len(workloads))], [clean(tables.title(w), 12) for w in workloads])
        axes.set_yticks([i + 0.5 for i in range(len(techniques))], [_two_lines(t) for t in techniques])
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        if len(machines) > 1:
            axes.set_xlabel(clean(machine), loc="left", color=SOFT)
    good = [row for row in others if row.verdict == "faster"]
    kept = [row for row in good if row.quality == "kept"]
    measured = [row for row in others if row.ratio is not None]
    best = max(kept or good, key=lambda row: row.ratio, default=None)
    claim = f"Faster in {len(good)} of {len(measured)} measured cases, quality shown to be kept in {len(kept)} of them"
    if best:
        claim += f"; {'best of these' if kept else 'most'}: {tables.title(best.workload)}, {tables.settings(best, best.differs_in) or best.label} ({tables.ratio(best.ratio)})"
    if any(row.tier == "smoke" for row in others):
        claim = f"{len(measured)} of {len(others)} cases ran"
    caption = ("▲\u00a0faster  ▼\u00a0slower  =\u00a0no difference  ?\u00a0too few rounds for a verdict; second mark, quality: ✓\u00a0kept  "
               "✗\u00a0lost  –\u00a0not measured  ?\u00a0not informative; bold: faster with quality kept; hatched: not measured here; blank: not asked.\n" f"{provenance(others)}.")
    alt = f"Grid of techniques and workloads. {claim}. " + "; ".join(
        f"{tables.title(w)}, {t}: {row.verdict_text}, quality {row.quality}" for _, _, cells in blocks for (t, w), row in cells.items()) + "."
    return finish(grid[0, 0], clean_lines(headed(claim, others)), caption, alt)


def _worth_cells(rows: Sequence[Row]) -> tuple[list[str], list[str], dict]:
    """(techniques, workloads, row by both). A case measured again counts by its last comparison with most rounds; comparisons with
    other settings of the remaining knobs are techniques of their own, named with what differs."""
    cells: dict[tuple[str, str], Row] = {}
    for row, label in zip(rows, tables.names(rows), strict=True):
        rest = label.removeprefix(row.label)  # what tells twins apart
        key = (f"{tables.PHASES.get(row.phase, row.phase)}: {tables.settings(row, row.differs_in, ', ') or row.label}{rest}", row.workload)
        if key not in cells or row.rounds >= cells[key].rounds:
            cells[key] = row
    return sorted({t for t, _ in cells}, key=_order(cells)), list(dict.fromkeys(w for _, w in cells)), cells


def _two_lines(technique: str) -> str:
    lines = textwrap.wrap(clean(technique), 36)
    return "\n".join([*lines[:1], clean(" ".join(lines[1:]), 36)] if len(lines) > 1 else lines)


def _order(cells: dict) -> object:
    """Techniques in the order in which they were measured, phases together."""
    phases = list(tables.PHASES.values())
    seen = list(dict.fromkeys(t for t, _ in cells))
    return lambda t: (phases.index(t.split(":")[0]) if t.split(":")[0] in phases else len(phases), seen.index(t))


def _worth_cell(axes, y: int, x: int, row: Row) -> None:
    from matplotlib.patches import Rectangle

    measured = row.ratio is not None
    axes.add_patch(Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=FILLS.get(row.verdict, "white"), edgecolor="#BBBBBB",
                             hatch=None if measured else "////", linewidth=0.8))
    if measured:
        mark = MARKS.get(row.quality, "")
        axes.text(x + 0.5, y + 0.52, f"{GLYPHS.get(row.verdict, '')} {tables.ratio(row.ratio)} {mark}", ha="center", va="center", fontsize=8.5,
                  weight="bold" if row.verdict == "faster" and row.quality == "kept" else "normal")


@styled
def ladder(rows: Sequence[Row]):
    """The ladder: samples/s of each step, in the given order, with intervals; the limit of each step as a mark. Returns the Axes.

    Rows are one group: the baseline, then stacks that each add one thing to the step before.
    """
    rows = list(rows)
    figure, grid = figure_of(1.4 + LANE_IN * max(len(rows), 1))
    axes = grid[0, 0]
    before: tuple[str, ...] = ()
    rates = [row.per_s for row in rows if row.per_s]
    top = max((row.per_s * (row.high / row.ratio if row.high else 1) for row in rows if row.per_s), default=1.0)
    across = axes.get_yaxis_transform()
    for y, row in enumerate(rows):
        added = [item for item in row.differs_in if item not in before]
        step = "+ " + tables.settings(row, added) if added and not row.is_baseline else row.label
        before = row.differs_in
        if row.per_s:
            axes.barh([y + 0.16], [row.per_s], height=0.3, color=colour(engine(row.knobs)))
            if row.low is not None:
                error = [[row.per_s * (1 - row.low / row.ratio)], [row.per_s * (row.high / row.ratio - 1)]]
                axes.errorbar([row.per_s], [y + 0.16], xerr=error, color=INK, capsize=3, linewidth=1.2)
            limit = row.limit_percent and row.per_s * 100 / row.limit_percent
            if limit and limit <= 2 * top:
                axes.plot([limit, limit], [y - 0.05, y + 0.4], color="#AA0000", linewidth=2, label="limit")
        else:
            axes.barh([y + 0.16], [top], height=0.3, facecolor="white", edgecolor="none", hatch="////")
        percents = f"   {tables.figure(row.limit_percent)} % of limit" if row.limit_percent else ""
        text = f"{tables.figure(row.per_s, 'samples/s')}   {tables.ratio(row.ratio)}{percents}" if row.per_s else "not measured here"
        axes.text(0, y - 0.2, clean(step, 50), transform=across, va="center")
        axes.text(1, y - 0.2, text, transform=across, va="center", ha="right", fontsize=8.5)
    axes.set_ylim(max(len(rows), 1) - 0.45, -0.62)
    axes.set_xlim(0, None)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("samples/s")
    last = next((row for row in reversed(rows) if row.ratio), None)
    where = f"{tables.title(rows[0].workload)} {tables.PHASES.get(rows[0].phase, '')}" if rows else "Ladder"
    claim = f"{where}: the whole stack gives {tables.ratio(last.ratio)}" if last else f"{where}: no step measured beside its baseline"
    if rates and last and last.floor is not None:
        claim += f" ({last.verdict})" if last.verdict != "faster" else f", beyond the noise floor of {percent(last.floor)}"
    alt = f"Bar chart of samples/s by step. {claim}. " + "; ".join(f"{r.label}: {tables.figure(r.per_s, 'samples/s') or 'not measured'}" for r in rows)
    return finish(axes, clean_lines(headed(claim, rows)), f"Line: 95 % interval of the ratio; red mark: the measured limit. {provenance(rows)}.", alt)
