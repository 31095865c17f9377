"""Charts of the machine and of the measuring itself: limits, noise, warm-up."""

import math
from collections.abc import Sequence

from hpml import compare, tables
from hpml.plot_look import BAND, ENGINES, INK, SERIES, SOFT, clean, colour, figure_of, finish, legend_below, styled
from hpml.records import Record


def _prefix(claim: str, records: Sequence[Record]) -> str:
    return f"{tables.SMOKE}\n{claim}" if any(r.case.get("tier") == "smoke" for r in records) else claim


@styled
def warmup_curve(record: Record):
    """Seconds of each iteration of one case; what came before the steady state is marked. Returns the Axes.

    `samples.warmup` holds the warm-up where it was kept; else the first call alone is known and drawn.
    """
    import numpy as np

    steady = np.asarray(record.samples["values"], dtype=float) * 1e3
    first_s, count = record.cold.get("first_call_s"), int(record.protocol.get("warmup") or 0)
    early = [1e3 * s for s in record.samples.get("warmup") or ([first_s] if first_s else [])]
    count = max(count, len(early))
    figure, grid = figure_of(3.2)
    axes = grid[0, 0]
    median = float(np.median(steady))
    if count:
        axes.axvspan(0.5, count + 0.5, color=BAND, linewidth=0, zorder=0)
        axes.text(
            count + 0.7,
            0.97,
            f"warm-up: {count} iteration{'s' * (count != 1)}",
            fontsize=8.5,
            color=SOFT,
            va="top",
            transform=axes.get_xaxis_transform(),
        )
    shade = SERIES[0]
    axes.plot(range(1, len(early) + 1), early, color=shade, marker="o", markersize=4, markerfacecolor="white", linewidth=1)
    axes.plot(range(count + 1, count + len(steady) + 1), steady, color=shade, marker="o", markersize=3, linewidth=1)
    axes.axhline(median, color=INK, linewidth=1, linestyle="--")
    axes.annotate(
        f"median {tables.figure(median, 'ms')}",
        (1, median),
        (0, 4),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
    )
    ceiling = max([*early, *steady])
    if ceiling > 5 * median:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.15 * ceiling)
    axes.set_xlim(0.5, count + len(steady) + 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("iteration")
    axes.set_ylabel("ms")
    spread = 100 * float(np.subtract(*np.percentile(steady, (75, 25)))) / median
    claim = f"Steady iterations take {tables.figure(median, 'ms')}, the middle half within {spread:.1f} %"
    if early:
        both = f"{tables.figure(early[0])} and {tables.figure(median, 'ms')}"
        claim = f"The first call takes {early[0] / median:.1f}x a steady iteration ({both})"
    kept = "" if record.samples.get("warmup") or not count else "Of the warm-up, only the first call was kept. "
    caption = f"{kept}{clean(record.case.get('label', ''))}, n = {len(steady)} iterations; {clean(record.machine.get('id', ''))}."
    return finish(
        axes, _prefix(f"{tables.title(record.case['workload'])}: {claim}", [record]), caption, f"Line of ms by iteration. {claim}."
    )


@styled
def noise(logs: Sequence[float]):
    """The same case against itself: each round's difference in %, and the noise floor at 3 and 6 rounds. Returns the Axes."""
    shares = [100 * math.expm1(value) for value in logs]
    figure, grid = figure_of(3.0)
    axes = grid[0, 0]
    floors = (
        {n: 100 * compare.noise_floor(logs, n) for n in (compare.MIN_ROUNDS, compare.MAX_ROUNDS)}
        if len(logs) >= compare.MIN_ROUNDS
        else {}
    )
    for (n, floor), shade, side in zip(floors.items(), ("#EEEEEE", BAND), ("bottom", "top"), strict=False):
        axes.axhspan(-floor, floor, color=shade, linewidth=0, zorder=0)
        axes.text(1.01, floor, f"{n} rounds", transform=axes.get_yaxis_transform(), fontsize=8.5, va=side, color=SOFT)
    axes.axhline(0, color=INK, linewidth=1)
    axes.plot(range(1, len(shares) + 1), shares, linestyle="none", marker="o", color=SERIES[0])
    reach = 1.2 * max([*map(abs, shares), *floors.values(), 0.5])
    axes.set_ylim(-reach, reach)
    axes.set_xlim(0.5, max(len(shares), 1) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("round")
    axes.set_ylabel("difference, %")
    if floors:
        claim = (
            f"The same case against itself differs by up to {max(map(abs, shares)):.1f} %; "
            f"noise floor {floors[compare.MIN_ROUNDS]:.1f} % at "
            f"{compare.MIN_ROUNDS} rounds, {floors[compare.MAX_ROUNDS]:.1f} % at {compare.MAX_ROUNDS}"
        )
        if floors[compare.MAX_ROUNDS] > 100 * compare.TOO_NOISY:
            claim += ": machine too noisy"
    else:
        claim = f"{len(shares)} rounds are too few for a noise floor"
    return finish(
        axes,
        claim,
        f"Points: rounds of A against A, n = {len(shares)}; grey: a difference inside the band is believed to be noise.",
        f"Points by round. {claim}.",
    )


@styled
def limits(records: Sequence[Record]):
    """The machine's measured limits: arithmetic by data type and engine, bandwidths, JPEG decoding; each unit on a scale of its own.
    Returns the Axes of the arithmetic."""
    found = [r for r in records if r.case["phase"] == "limit"]
    best: dict[tuple[str, str], Record] = {}
    for r in found:
        key = (_limit_name(r), r.knobs.get("engine", ""))
        if r.status == "ok" and (key not in best or r.actual["value"] > best[key].actual["value"]):
            best[key] = r
    arithmetic = {key: r for key, r in best.items() if r.actual["unit"] == "FLOP/s"}
    units = dict.fromkeys(["FLOP/s", "B/s", *(r.actual["unit"] for r in best.values())])
    blocks = [{key: r for key, r in best.items() if r.actual["unit"] == unit} for unit in units]
    heights = [_height(block) for block in blocks]
    figure, grid = figure_of(1.6 + sum(heights), rows=len(blocks), height_ratios=heights)
    upper, *_, lower = grid[:, 0]
    for axes, block in zip(grid[:, 0], blocks, strict=True):
        _bars(axes, block)
    engines = list(dict.fromkeys(engine for _, engine in arithmetic))
    if engines:
        from matplotlib.patches import Patch

        known = list(ENGINES)
        engines.sort(key=lambda name: known.index(name) if name in known else -1)
        legend_below(lower, [Patch(color=colour(name), label=clean(name)) for name in engines], columns=4, offset=4)
    peaks: dict[str, float] = {}
    for r in arithmetic.values():
        peaks[r.knobs["dtype"]] = max(peaks.get(r.knobs["dtype"], 0.0), r.actual["value"])
    claim = (
        "Peak: " + ", ".join(f"{dtype} {_rate(value, 'FLOP/s', dtype)}" for dtype, value in peaks.items())
        if peaks
        else "No limit measured yet"
    )
    absent = {f"{_limit_name(r)} {r.knobs.get('engine', '')}": r.reason for r in found if r.status != "ok"}
    missing = f"{len(absent)} limits not measured here. " if absent else ""
    where = clean(found[0].machine.get("id", "")) if found else ""
    caption = f"Best of repeated calls; operations counted as in the direct algorithm. Each block has a scale of its own. {missing}{where}"
    alt = f"Bars. {claim}. " + "; ".join(
        f"{name} {engine}: {_rate(r.actual['value'], r.actual['unit'], r.knobs.get('dtype'))}" for (name, engine), r in best.items()
    )
    alt += "".join(f"; {name}: not measured, {reason}" for name, reason in absent.items()) + "."
    return finish(upper, _prefix(clean(claim), found), caption, alt)


def _height(bars: dict) -> float:
    return 0.25 * max(len(bars), 1) + 0.24 * len({name for name, _ in bars}) + 0.3


def _limit_name(record: Record) -> str:
    kind, dtype = record.knobs["kind"], record.knobs.get("dtype")
    place = " (GPU)" if record.knobs.get("device") == "cuda" and kind == "memory" else ""
    return (
        f"{kind} {dtype}"
        if kind in ("matmul", "conv3x3")
        else {"jpeg": "JPEG decoding, one core"}.get(kind, f"{kind.replace('_', ' ')} bandwidth{place}")
    )


def _rate(value: float, unit: str, dtype: str | None) -> str:
    """A rate with its unit; operations on integers are no FLOPs."""
    text = tables.si(value, unit)
    return text.replace("FLOP", "OP") if dtype == "int8" else text


def _bars(axes, bars: dict) -> None:
    """Bars of one unit by limit, one below the other, with their values."""
    y, ticks = 0.0, []
    top = max((r.actual["value"] for r in bars.values()), default=1.0)
    for name in dict.fromkeys(name for name, _ in bars):
        own = {engine: r for (other, engine), r in bars.items() if other == name}
        ticks.append((y + (len(own) - 1) / 2, name))
        for engine, r in own.items():
            value = r.actual["value"]
            axes.barh([y], [value], height=0.8, color=colour(engine))
            shown = _rate(value, r.actual["unit"], r.knobs.get("dtype"))
            axes.annotate(shown, (value, y), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
            y += 1
        y += 0.6
    axes.set_ylim(max(y, 1) - 0.7, -0.7)
    axes.set_xlim(0, 1.3 * top)
    axes.set_yticks([at for at, _ in ticks], [clean(name) for _, name in ticks])
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.axvline(0, color=SOFT, linewidth=1)
    if not bars:
        axes.text(0.02, 0.5, "not measured", transform=axes.transAxes, va="center", color=SOFT)
