"""Two runs beside each other: each case's rate in B over A, and each technique's gain in both."""

from hpml import tables, tables_runs
from hpml.agreement import Agreement
from hpml.compare import percent
from hpml.plot_look import BAND, GLYPHS, INK, SOFT, clean, figure_of, finish, ratio_axis, styled

BETTER, WORSE, SAME = "#0072B2", "#D55E00", "#777777"
COLOURS = {"faster": BETTER, "slower": WORSE}
LANE_IN = 0.24


@styled
def runs(found: Agreement):
    """B's rate over A's for every case that both have, with intervals; grey: what unchanged code moves by. Returns the Axes."""
    pairs = [pair for pair in found.pairs if pair.ratio]
    figure, grid = figure_of(1.6 + LANE_IN * max(len(pairs), 1))
    axes = grid[0, 0]
    ratio_axis(axes, *_ends([value for pair in pairs for value in (pair.ratio, pair.low, pair.high) if value]))
    for y, pair in enumerate(pairs):
        shade = COLOURS.get(pair.verdict, SAME)
        if pair.phase in found.floors and pair.low is not None:
            wide = 1 + found.floors[pair.phase][0]
            axes.barh([y], [wide - 1 / wide], left=[1 / wide], height=0.8, color=BAND, zorder=0)
        if pair.low is not None:
            axes.plot([pair.low, pair.high], [y, y], color=shade, linewidth=1.5, zorder=2)
        axes.plot([pair.ratio], [y], marker="o", markersize=5, color=shade, zorder=3)
        axes.annotate(GLYPHS.get(pair.verdict, ""), (1, y), (6, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                      va="center", fontsize=8)
    _lanes(axes, [tables_runs.name(pair, pairs) for pair in pairs])
    axes.axvline(1, color=INK, linewidth=1, zorder=1)
    axes.set_xlabel("rate in B over rate in A (right of 1: B is faster)")
    count = {word: sum(pair.verdict == word for pair in pairs) for word in ("slower", "faster", "no difference")}
    broken = sum(pair.verdict == "broken" for pair in found.pairs)
    claim = f"{count['slower']} of {len(pairs)} cases slower in B, {count['faster']} faster" + (f"; {broken} broken" if broken else "")
    caption = f"A = {found.a.name}, B = {found.b.name}. Line: {100 * found.confidence:.4g} % interval; grey: the floor between runs"
    floors = ", ".join(f"{tables.PHASES.get(phase, phase)} {percent(size)}" for phase, (size, _) in found.floors.items()
                       if any(pair.phase == phase for pair in pairs))
    alt = f"Ratios of rates. {claim}. " + "; ".join(f"{tables_runs.name(p)}: {tables.ratio(p.ratio)}, {p.text}" for p in pairs) + "."
    return finish(axes, claim, f"{caption}{f' ({floors})' if floors else ''}.", alt)


@styled
def gains(found: Agreement):
    """Each technique's paired ratio to its baseline in A (open) and in B (filled); orange where the verdicts differ. Returns the Axes."""
    figure, grid = figure_of(1.6 + LANE_IN * max(len(found.gains), 1))
    axes = grid[0, 0]
    ratio_axis(axes, *_ends([value for gain in found.gains for value in gain.ratios]))
    for y, gain in enumerate(found.gains):
        shade = SAME if gain.words[0] == gain.words[1] else WORSE
        axes.plot(gain.ratios, [y, y], color=shade, linewidth=1.2, zorder=2)
        axes.plot([gain.ratios[0]], [y], marker="o", markersize=6, color="white", markeredgecolor=shade, zorder=3)
        axes.plot([gain.ratios[1]], [y], marker="o", markersize=6, color=shade, zorder=3)
    _lanes(axes, [tables_runs.name(gain, found.gains) for gain in found.gains])
    axes.axvline(1, color=INK, linewidth=1, zorder=1)
    axes.set_xlabel("ratio to the baseline of the same run")
    same = sum(gain.words[0] == gain.words[1] for gain in found.gains)
    claim = f"The same verdict in {same} of {len(found.gains)} techniques"
    alt = f"Paired ratios of techniques in two runs. {claim}. " + "; ".join(
        f"{tables_runs.name(g)}: {tables.ratio(g.ratios[0])} and {tables.ratio(g.ratios[1])}" for g in found.gains) + "."
    return finish(axes, claim, f"Open: A = {found.a.name}; filled: B = {found.b.name}; orange: other verdicts.", alt)


def _ends(values: list[float]) -> tuple[float, float]:
    return min([1.0, *values]), max([1.0, *values])


def _lanes(axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [clean(name, 46) for name in names], fontsize=7.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_color(SOFT)
