"""The ladder: what each step adds to those before it, what the whole stack loses without it, and the product of the single gains."""

from hpml import tables
from hpml.ladder import Ladder, Step, ratio_text
from hpml.plot_look import GLYPHS, INK, LANE_IN, SOFT, clean, clean_lines, figure_of, finish, headed, provenance, styled
from hpml.wording import words

GAIN, LOSS, PLAIN, LIMIT = "#0072B2", "#D55E00", "#CCCCCC", "#AA0000"


@styled
def ladder(found: Ladder):
    """A waterfall of samples/s: grey is what was there before the step, blue what it adds, orange what it takes. Returns the Axes.

    Whisker: the 95 % interval of the ratio to the baseline. Diamond: the full stack without this step. Red mark: the measured limit.
    """
    rows = [found.base, *(step.row for step in found.steps)]
    figure, grid = figure_of(1.75 + LANE_IN * (len(rows) + 1))
    axes = grid[0, 0]
    top = max((row.per_s * (row.high or row.ratio or 1) / (row.ratio or 1) for row in rows if row.per_s), default=1.0)
    _bar(axes, 0, found.base, None, "baseline", top)
    before = found.base
    for y, step in enumerate(found.steps, 1):
        _bar(axes, y, step.row, before, "+ " + words(step.row.knobs, step.knobs), top, step)
        before = step.row if step.row.per_s else before
    _product(axes, len(rows), found)
    if found.full.per_s:
        lanes = range(len(rows) + 1)  # beside the bars, not through the words
        axes.vlines([found.full.per_s] * len(lanes), [y - 0.06 for y in lanes], [y + 0.38 for y in lanes], color=SOFT, linewidth=1,
                    linestyle=":", zorder=0)
    axes.set_ylim(len(rows) + 0.55, -0.62)
    axes.set_xlim(0, None)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("samples/s")
    claim = claim_of(found)
    caption = ("Blue: added by the step, orange: lost by it; whisker: 95 % interval of the ratio to the baseline; "
               "◇: the full stack without this step" + "; red: the measured limit" * any(_limit(row, top) for row in rows) + ". "
               + provenance(rows) + ".")
    alt = f"Waterfall of samples/s by step. {claim}. " + "; ".join(
        f"{words(row.knobs, row.differs_in) or 'baseline'}: {tables.figure(row.per_s, 'samples/s') or 'not measured'}" for row in rows
    ) + "; " + "; ".join(f"without {words(found.full.knobs, step.knobs)}: {tables.figure(step.without.per_s, 'samples/s')}"
                         for step in found.steps if step.without and step.without.per_s) + "."
    return finish(axes, clean_lines(headed(claim, rows)), caption, alt)


def _bar(axes, y: int, row, before, name: str, top: float, step: Step | None = None) -> None:
    across, at = axes.get_yaxis_transform(), y + 0.16
    if row.per_s:
        low, high = sorted((row.per_s, before.per_s)) if before is not None and before.per_s else (row.per_s, row.per_s)
        axes.barh([at], [low], height=0.3, color=PLAIN)
        if high > low:
            axes.barh([at], [high - low], left=[low], height=0.3, color=GAIN if row.per_s > before.per_s else LOSS)
        if row.low is not None:
            error = [[row.per_s * (1 - row.low / row.ratio)], [row.per_s * (row.high / row.ratio - 1)]]
            axes.errorbar([row.per_s], [at], xerr=error, color=INK, capsize=3, linewidth=1.2)
        limit = _limit(row, top)
        if limit:
            axes.plot([limit, limit], [y, y + 0.36], color=LIMIT, linewidth=2, label="limit")
        share = f"   {tables.figure(row.limit_percent)} % of limit" if row.limit_percent else ""
        mark = f"{GLYPHS.get(row.verdict, '')} {tables.ratio(row.ratio)}   " if row.ratio else ""
        text = f"{mark}{tables.figure(row.per_s, 'samples/s')}{share}"
    else:
        axes.barh([at], [top], height=0.3, facecolor="white", edgecolor="none", hatch="////")
        text = "not measured here"
    if step and step.without and step.without.per_s:
        axes.plot([step.without.per_s], [at], marker="D", color="white", markeredgecolor=INK, markersize=6, zorder=5, label="without")
    axes.text(0, y - 0.2, clean(name, max(24, 80 - len(text))), transform=across, va="center")
    axes.text(1, y - 0.2, text, transform=across, va="center", ha="right", fontsize=8.5)


def _limit(row, top: float) -> float | None:
    """The rate at the measured limit, where the picture holds it."""
    limit = row.per_s * 100 / row.limit_percent if row.per_s and row.limit_percent else None
    return limit if limit and limit <= 2 * top else None


def _product(axes, y: int, found: Ladder) -> None:
    """The rate that the baseline would have at the product of the single ratios."""
    across = axes.get_yaxis_transform()
    axes.text(0, y - 0.2, "product of the steps alone", transform=across, va="center", style="italic")
    axes.text(1, y - 0.2, ratio_text(found.product), transform=across, va="center", ha="right", fontsize=8.5)
    if found.product and found.base.per_s:
        rate = found.base.per_s * found.product[0]
        axes.barh([y + 0.16], [rate], height=0.3, facecolor="white", edgecolor=SOFT, label="product")
        if found.product[1] is not None:
            ends = [[found.base.per_s * (found.product[0] - found.product[1])], [found.base.per_s * (found.product[2] - found.product[0])]]
            axes.errorbar([rate], [y + 0.16], xerr=ends, color=SOFT, capsize=3, linewidth=1.2)


def claim_of(found: Ladder) -> str:
    """What the ladder shows, in one line."""
    full = found.full
    where = f"{tables.title(found.base.workload)} {tables.PHASES.get(found.base.phase, found.base.phase)}"
    if full.tier == "smoke":
        return f"{where}: {sum(bool(step.row.per_s) for step in found.steps)} of {len(found.steps)} steps ran"
    if full.ratio is None:
        return f"{where}: the whole stack was not measured here"
    words = {"faster": "more than", "slower": "less than", "no difference": "like"}
    word = words.get(found.excess_verdict)
    beside = f", {word} the product of its steps ({tables.ratio(found.product[0])})" if word else ""
    return f"{where}: the whole stack is {full.verdict if full.verdict in ('faster', 'slower') else 'not shown to be faster'}, " \
           f"{tables.ratio(full.ratio)}{beside}"
