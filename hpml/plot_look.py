"""The one look of all charts: colours, the frame with its computed claim and caption, alternative text."""

import re
import sys
import textwrap
from collections.abc import Sequence

from hpml import tables
from hpml.compare import Row, percent

LANE_IN = 0.5  # height of one case: a line of text above its bar
WIDTH_IN = 6.0  # 600 pixels at 100 dots per inch
EDGE = 0.012  # where titles and captions start, as a share of the width
# Okabe and Ito's palette (2008), told apart with every common colour blindness. One engine, one colour, in every chart.
ENGINES = {
    "eager": "#0072B2",
    "torchscript": "#56B4E9",
    "compile": "#CC79A7",
    "onnxruntime": "#E69F00",
    "openvino": "#009E73",
    "tensorrt": "#D55E00",
}
OTHER = "#777777"
# Paul Tol's muted palette, for what is not an engine.
PHASES = {"wait": "#CC6677", "copy": "#DDCC77", "forward": "#88CCEE", "backward": "#332288", "optimizer": "#44AA99"}
SERIES = ("#332288", "#CC6677", "#117733", "#AA4499", "#999933", "#882255", "#44AA99", "#661100")
GLYPHS = {"faster": "▲", "slower": "▼", "no difference": "=", "too few rounds": "?", "not measured here": "–", "baseline": "●"}
MARKS = {"kept": "✓", "lost": "✗", "not measured": "–", "not informative": "?"}
INK, SOFT, BAND = "#222222", "#666666", "#DDDDDD"
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.color": "#BBBBBB",
    "hatch.linewidth": 0.8,
    "lines.linewidth": 1.5,
    "axes.axisbelow": True,
}
RATIO_TICKS = (
    [1 + i / 50 for i in range(-5, 6)],
    [1 + i / 20 for i in range(-6, 11)],
    [1 + i / 10 for i in range(-5, 16)],
    (0.25, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 4),
    (0.1, 0.2, 0.5, 1, 2, 3, 5, 10),
    (0.001, 0.01, 0.1, 1, 10, 100, 1000),
)


def styled(function):
    """Draw with this look and leave the reader's own matplotlib settings as they are."""
    import functools

    @functools.wraps(function)
    def drawn(*args, **kwargs):
        from matplotlib import pyplot

        # Not pyplot.rc_context: it also puts back "interactive", which the notebook's backend switches on when it is first used,
        # and from then on notebooks would show no chart.
        before = {name: pyplot.rcParams[name] for name in STYLE}
        pyplot.rcParams.update(STYLE)
        try:
            return function(*args, **kwargs)
        finally:
            pyplot.rcParams.update(before)

    return drawn


def figure_of(height_in: float, *, rows: int = 1, columns: int = 1, **options):
    """(figure, axes as an array of rows x columns) of the study's width."""
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(rows, columns, figsize=(WIDTH_IN, height_in), layout="constrained", squeeze=False, **options)
    for axes in grid.flat:  # how many ticks fit is decided by this size where the figure is shown, outside of `styled`
        axes.tick_params(labelsize=STYLE["xtick.labelsize"])
    return figure, grid


def engine(knobs: dict) -> str:
    """Which engine a case ran on; a scripted or compiled training counts as that engine."""
    script = knobs.get("script", "none")
    return knobs.get("engine") or (script if script != "none" else "eager")


def colour(name: str) -> str:
    """The colour of an engine, the same in every chart."""
    return ENGINES.get("eager" if name == "torch" else name, OTHER)


def clean(value: object, width: int = 0) -> str:
    """Text from outside as text in a chart: one line, no formulas of matplotlib, cut at `width` characters."""
    line = re.sub(r"[\x00-\x1f\x7f]", "", " ".join(str(value).split())).replace("$", r"\$")
    return line if not width or len(line) <= width else line[: width - 1].rstrip() + "…"


def clean_lines(claim: str) -> str:
    """Each line of a claim, cleaned."""
    return "\n".join(clean(line) for line in claim.split("\n"))


def finish(axes, claim: str, caption: str, alt: str):
    """Give a chart its title, caption and alternative text; title and caption start at the figure's left edge. Returns the Axes."""
    figure = axes.figure
    claim = _fitting(figure, claim.replace(" %", "\u00a0%"))
    # Its height counts for the layout, its width must not: a long title beside wide labels would make the axes narrower.
    axes.set_title("\n".join("." for _ in claim.split("\n")), loc="left", pad=8)
    if caption:
        figure.supxlabel(_wrapped(caption.replace(" %", "\u00a0%"), 96), x=EDGE, ha="left", fontsize=8, color=SOFT)
    figure.hpml_alt = " ".join(alt.replace(r"\$", "$").split())
    figure.draw_without_rendering()
    edge = axes.transAxes.inverted().transform(figure.transFigure.transform((EDGE, 0)))[0]
    axes.set_title(claim, loc="left", x=edge, pad=8)
    return axes


def _fitting(figure, claim: str) -> str:
    """The title in lines that are not wider than the figure."""
    probe = figure.text(0, 0, "", fontsize=STYLE["axes.titlesize"], weight=STYLE["axes.titleweight"])
    try:
        for width in range(72, 40, -3):
            lines = _wrapped(claim, width)
            probe.set_text(lines)
            if probe.get_window_extent().width <= (1 - 2 * EDGE) * figure.bbox.width:
                break
    finally:
        probe.remove()
    return lines


def _wrapped(value: str, width: int) -> str:
    return "\n".join(line for part in value.split("\n") for line in textwrap.wrap(part, width, break_on_hyphens=False))


def halo() -> list:
    """Path effects of a word that stands on lines and bars: it stays readable."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground="white")]


def ratio_axis(axes, low: float, high: float) -> None:
    """A logarithmic x axis for ratios, so that 2x and 0.5x are equally far from 1, with plain numbers."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    low, high = min(low, 0.95), max(high, 1.05)
    axes.set_xscale("log")
    axes.set_xlim(low / (high / low) ** 0.04, high * (high / low) ** 0.04)
    inside = [[tick for tick in ticks if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]] for ticks in RATIO_TICKS]
    ticks = next(
        (
            ticks
            for fit, ticks in zip(RATIO_TICKS, inside, strict=True)
            if len(ticks) <= 8 and fit[0] <= low * 1.2 and fit[-1] >= high / 1.2
        ),
        inside[-1],
    )
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}x" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def plain_log_x(axes) -> None:
    """Few ticks with plain numbers on a logarithmic axis."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    low, high = axes.get_xlim()
    steps = (1, 2, 5) if high / low > 12 else (1, 1.5, 2, 3, 5, 7) if high / low > 3 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    ticks = [m * 10.0**e for e in range(-3, 8) for m in steps if low <= m * 10.0**e <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([tables.figure(t).removesuffix(".00").removesuffix(".0") for t in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def legend_below(axes, handles: Sequence, *, columns: int, offset: float = 36) -> None:
    """A legend `offset` points under the axes, between its label and the caption."""
    from matplotlib.transforms import ScaledTranslation

    below = axes.transAxes + ScaledTranslation(0, -offset / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        handles=handles,
        ncols=min(columns, len(handles)),
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=below,
        columnspacing=1.2,
        handletextpad=0.4,
        handlelength=1.2,
        borderaxespad=0,
    )


def provenance(rows: Sequence[Row]) -> str:
    """n rounds, machine, tier and data of the rows that a chart shows."""
    measured = [row for row in rows if row.rounds]
    counts = sorted({row.rounds for row in measured})
    n = f"n = {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} rounds" if counts else "nothing measured"
    floors = sorted({percent(row.floor) for row in measured if row.floor is not None})
    noise = f"noise floor {' / '.join(floors)}" if floors else "no noise floor recorded"
    sets = list(dict.fromkeys(row.data for row in measured))
    what = [
        n,
        noise,
        ", ".join(dict.fromkeys(row.machine for row in rows)),
        f"tier {', '.join(dict.fromkeys(row.tier for row in rows))}",
        sets[0] if len(sets) == 1 else f"{len(sets)} data sets" if sets else "",
    ]
    return clean("; ".join(filter(None, what)))


def headed(claim: str, rows: Sequence[Row]) -> str:
    """The claim, or that it is none: the smoke tier's figures are not results."""
    return f"{tables.SMOKE}\n{claim}" if any(row.tier == "smoke" for row in rows) else claim


def show_alt(axes) -> None:
    """Show a chart with its alternative text under it: as picture and Markdown in a notebook, printed elsewhere."""
    figure, alt = axes.figure, getattr(axes.figure, "hpml_alt", "")
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        print(f"Alt text: {alt}")
        return
    from matplotlib import pyplot

    display = sys.modules["IPython.display"]
    display.display(figure, metadata={"image/png": {"alt": alt}})
    pyplot.close(figure)  # else the notebook shows it again at the end of the cell
    display.display(display.Markdown(f"*Alt text: {tables.escape(alt)}*"))
