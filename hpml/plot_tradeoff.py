"""Charts of what is traded: speed against quality, latency against batch size."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from hpml import tables
from hpml.compare import Row
from hpml.plot_look import (
    BAND,
    INK,
    SOFT,
    clean,
    colour,
    engine,
    figure_of,
    finish,
    halo,
    headed,
    legend_below,
    plain_log_x,
    provenance,
    styled,
)
from hpml.wording import words

MARKERS = {"fp32": "o", "bf16": "s", "fp16": "^", "int8": "D"}
LINES = {"fp32": "-", "bf16": "--", "fp16": "-.", "int8": ":"}


def _precision(row: Row) -> str:
    return str(row.knobs.get("precision", "fp32"))


@styled
def speed_quality(rows: Sequence[Row], *, margin: float | dict[str, float] | None = None):
    """Speed against quality by engine (colour) and precision (marker), the tolerance below the baseline's quality, the Pareto line.

    `margin` is the workload's, as a share (0.01 is one point); of several workloads those that are known, by name. Several workloads
    are drawn one below the other. Cases whose quality was not measured stand at the lower edge, hollow. Returns the first Axes.
    """
    rows = [row for row in rows if row.per_s]
    workloads = list(dict.fromkeys(row.workload for row in rows)) or ["nothing"]
    figure, grid = figure_of(0.9 + 2.6 * len(workloads), rows=len(workloads))
    claims: dict[str, list[str]] = {}
    for axes, workload in zip(grid[:, 0], workloads, strict=True):
        own = margin.get(workload) if isinstance(margin, dict) else margin
        kind, what = _tradeoff(axes, [row for row in rows if row.workload == workload], own)
        claims.setdefault(kind, []).append(f"{tables.title(workload)} {what}".rstrip() if len(workloads) > 1 else what)
        if len(workloads) > 1:
            axes.text(0.01, 0.97, tables.title(workload), weight="bold", va="top", transform=axes.transAxes)
    _keys(grid[-1, 0], rows)
    unknown = [row for row in rows if row.quality_value is None]
    hollow = f"Hollow at the lower edge: quality not measured ({len(unknown)} of {len(rows)} cases). " if unknown else ""
    band = "Grey: the workload's tolerance below the baseline; dashed: Pareto line. " if margin else "Dashed: Pareto line. "
    claim = "; ".join(kind + f": {'; '.join(whats)}" * any(whats) for kind, whats in claims.items())
    alt = (
        f"Scatter of samples/s and quality. {claim}. "
        + "; ".join(f"{_words(r)}: {tables.figure(r.per_s, 'samples/s')}, quality {_points(r)}" for r in rows)
        + "."
    )
    return finish(grid[0, 0], headed(clean(claim), rows), band + hollow + provenance(rows) + ".", alt)


def _points(row: Row) -> str:
    return "not measured" if row.quality_value is None else f"{100 * row.quality_value:.1f} %"


def _tradeoff(axes, rows: Sequence[Row], margin: float | None) -> tuple[str, str]:
    """One workload's points; returns the claim, and of what it is true."""
    known = [row for row in rows if row.quality_value is not None]
    base = next((row for row in known if row.is_baseline), None)
    rates = [row.per_s for row in rows] or [1.0]
    low, high = min(rates), max(rates)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.25, high * 1.25)
    values = [100 * row.quality_value for row in known]
    floor = 100 * (base.quality_value - margin) if base and margin else None
    ends = [*values, *([floor] if floor is not None else [])] or [0.0, 100.0]
    room = max(max(ends) - min(ends), 1.0) * 0.25
    axes.set_ylim(min(ends) - 1.6 * room, max(ends) + 1.3 * room)
    if floor is not None:
        axes.axhspan(floor, floor + 100 * margin, color=BAND, zorder=0, linewidth=0)
    best: list[Row] = []
    for row in sorted(known, key=lambda r: -r.per_s):
        if not best or row.quality_value > best[-1].quality_value:
            best.append(row)
    if len(best) > 1:
        axes.plot([r.per_s for r in best], [100 * r.quality_value for r in best], color=SOFT, linestyle="--", linewidth=1, zorder=1)
    for row in rows:
        y = 100 * row.quality_value if row.quality_value is not None else axes.get_ylim()[0] + 0.35 * room
        shade = colour(engine(row.knobs))
        axes.plot(
            [row.per_s],
            [y],
            linestyle="none",
            marker=MARKERS.get(_precision(row), "X"),
            markersize=8,
            markeredgecolor=shade,
            markerfacecolor=shade if row.quality_value is not None else "white",
            zorder=3,
            clip_on=False,
        )
    plain_log_x(axes)
    batches = {row.knobs.get("batch") for row in rows}
    axes.set_xlabel(f"samples/s at batch {batches.pop()}" if len(batches) == 1 and None not in batches else "samples/s")
    axes.set_ylabel(f"{(known and known[0].quality_metric or 'quality')}, %")
    if not known:
        axes.set_yticks([])
        return "Speed is measured, quality is not", ""
    kept = [row for row in known if row.quality == "kept" or row.is_baseline]
    if not base or not kept:
        return "Quality is known, that of no baseline", f"{len(known)} of {len(rows)} cases"
    top = max(kept, key=lambda r: r.per_s)
    for row, name in ((base, "baseline"), *([] if top.is_baseline else [(top, _words(top))])):
        _named(axes, row, name, above=not any(one.per_s > row.per_s / 2 and one.quality_value > row.quality_value for one in known))
    if top.is_baseline:
        return "No faster case has been shown to keep the baseline's quality", _points(base)
    return "Fastest with quality kept", f"{_words(top)}, {tables.figure(top.per_s, 'samples/s')} at {_points(top)}"


def _named(axes, row: Row, name: str, *, above: bool) -> None:
    """The name of a point over it, or under it where others lie over it; it stays inside."""
    share = math.log(row.per_s / axes.get_xlim()[0]) / math.log(axes.get_xlim()[1] / axes.get_xlim()[0])
    axes.annotate(clean(name), (row.per_s, 100 * row.quality_value), (0, 7 if above else -7), textcoords="offset points", fontsize=8,
                  va="bottom" if above else "top", ha="left" if share < 0.15 else "right" if share > 0.6 else "center", path_effects=halo())


def _words(row: Row) -> str:
    return words(row.knobs, ("precision", "engine")) or row.label


def _keys(axes, rows: Sequence[Row]) -> None:
    """Legend under the axes: engines by colour, precisions by marker."""
    from matplotlib.lines import Line2D

    engines = list(dict.fromkeys(engine(row.knobs) for row in rows))
    kinds = list(dict.fromkeys(_precision(row) for row in rows))
    handles = [Line2D([], [], linestyle="none", marker="o", color=colour(name), label=clean(words({"engine": name}, ("engine",))))
               for name in engines]
    handles += [
        Line2D([], [], linestyle="none", marker=MARKERS.get(kind, "X"), color=INK, markerfacecolor="white",
               label=clean(words({"precision": kind}, ("precision",))))
        for kind in kinds
    ]
    if handles:
        legend_below(axes, handles, columns=6)


@styled
def latency(rows: Sequence[Row], *, published: dict[str, dict[int, float]] | None = None):
    """Milliseconds of a call by batch size, a line for each engine and precision; bars are the interval of the ratio to the baseline.

    Several workloads are drawn one below the other, each on the input and the part of the model that most of its rows have: a smaller
    picture's milliseconds beside a larger one's would compare engines that were not asked the same. published: by workload, milliseconds
    by batch size from elsewhere; a grey line of its own. Returns the first Axes.
    """
    everything, published = list(rows), published or {}
    rows = [row for row in everything if row.latency_ms and row.knobs.get("batch") and row.knobs.get("replicas", 1) == 1]
    workloads = list(dict.fromkeys(row.workload for row in rows)) or ["nothing"]
    usual = {name: Counter(map(_asked, (row for row in rows if row.workload == name))).most_common(1)[0][0] for name in workloads if rows}
    rows = [row for row in rows if _asked(row) == usual[row.workload]]
    figure, grid = figure_of(1.0 + 2.6 * len(workloads), rows=len(workloads))
    keys: dict[str, object] = {}
    for axes, workload in zip(grid[:, 0], workloads, strict=True):
        elsewhere = published.get(workload, {})
        if elsewhere:
            axes.plot(list(elsewhere), list(elsewhere.values()), linestyle=":", color="#777777", marker="s", markersize=4,
                      label="published, another machine")
        _latency_lines(axes, [row for row in rows if row.workload == workload], more=elsewhere)
        keys |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        if len(workloads) > 1:
            axes.set_title(tables.title(workload), loc="left", weight="normal")
    if keys:
        legend_below(grid[-1, 0], list(keys.values()), columns=3)
    claim = _latency_claim(rows)
    absent = [row for row in everything if row.verdict == "not measured here"]
    gone = f"Not measured: {'; '.join(dict.fromkeys(_words(row) for row in absent))}. " if absent else ""
    alt = (
        f"Lines of latency by batch size. {claim}. "
        + "; ".join(f"{_words(r)}, batch {r.knobs['batch']}: {tables.figure(r.latency_ms, 'ms')}" for r in rows)
        + f". {gone}"
        + "".join(f" Published for {tables.title(workload)}, on another machine: "
                  + "; ".join(f"batch {n}: {ms:g} ms" for n, ms in published[workload].items()) + "." for workload in workloads
                  if workload in published)
    )
    what = ("Median of a call, inputs and outputs resident; bars: 95 % interval of the ratio to the baseline. Of settings that differ "
            "otherwise (threads, hint), the fastest.")
    caption = f"{what} {clean(gone)} {provenance(rows)}."
    return finish(grid[0, 0], headed(clean(claim), rows), caption, alt)


def _asked(row: Row) -> tuple:
    return tuple(row.knobs.get(name) for name in ("image", "length", "variant", "part", "stem"))


def _latency_lines(axes, rows: Sequence[Row], *, more: Iterable[int] = ()) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    series: dict[tuple[str, str], list[Row]] = {}
    fastest: dict[tuple, Row] = {}
    for row in sorted(rows, key=lambda r: (r.knobs["batch"], -r.latency_ms)):
        fastest[engine(row.knobs), _precision(row), row.knobs["batch"]] = row
    for (name, kind, _), row in fastest.items():
        series.setdefault((name, kind), []).append(row)
    for (name, kind), found in series.items():
        x, y = [r.knobs["batch"] for r in found], [r.latency_ms for r in found]
        error = [
            [r.latency_ms * (1 - r.ratio / r.high) if r.high else 0 for r in found],
            [r.latency_ms * (r.ratio / r.low - 1) if r.low else 0 for r in found],
        ]
        axes.errorbar(
            x,
            y,
            yerr=error,
            color=colour(name),
            linestyle=LINES.get(kind, "-"),
            marker=MARKERS.get(kind, "X"),
            markersize=5,
            capsize=3,
            label=clean(words({"engine": name, "precision": kind}, ("precision", "engine"))),
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    batches = sorted({*(row.knobs["batch"] for row in rows), *more})
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{b:,}" for b in batches]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if batches:
        axes.set_xlim(batches[0] / 1.3, batches[-1] * 1.3)
    axes.grid(axis="y", color=BAND, linewidth=0.6)
    axes.set_xlabel("batch size")
    axes.set_ylabel("latency, ms")


def _latency_claim(rows: Sequence[Row]) -> str:
    if not rows:
        return "No latency measured yet"
    parts = []
    smallest = min(row.knobs["batch"] for row in rows)
    for workload in dict.fromkeys(row.workload for row in rows):
        here = [row for row in rows if row.workload == workload and row.knobs["batch"] == smallest]
        if here:
            best = min(here, key=lambda r: r.latency_ms)
            parts.append(f"{tables.title(workload)}: {_words(best)} {tables.figure(best.latency_ms, 'ms')}")
    return f"Lowest latency at batch {smallest}: " + "; ".join(part.split(": ", 1)[1] if len(parts) == 1 else part for part in parts)
