"""Charts of load tests: latency and goodput against the offered rate beside the queueing bound; resolution against accuracy and rate."""

import math
from collections.abc import Sequence

from hpml import queueing, tables
from hpml.plot_look import BAND, INK, SERIES, SOFT, clean, figure_of, finish, legend_below, styled
from hpml.tables_serving import GOAL_PER_S, TRANSPORTS, Load, frontier, sent, windows
from hpml.wording import words

COLOURS = {"inprocess": SERIES[0], "http": SERIES[1]}
MARKS = {"inprocess": "o", "http": "s"}


@styled
def load(found: Sequence[Load]):
    """P50 and P99 against the queries per second that came, with the limit and the bound of queueing theory; goodput below. One machine
    and workload; a colour and a marker for each transport. Returns the upper Axes."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    found = [one for one in found if one.serving("server")]
    figure, grid = figure_of(5.9, rows=2, sharex=True, height_ratios=(1.45, 1))
    upper, lower = grid[0, 0], grid[1, 0]
    limits_s = {one.serving("server")["limit_s"] for one in found} or {queueing.LIMIT_S}
    top = max((sent(w) for one in found for w in windows(one)), default=1.0) * 1.05
    handles = []
    for one in found:
        kind = one.knobs["transport"]
        own, mark, tried = COLOURS[kind], MARKS[kind], windows(one)
        x = [sent(w) for w in tried]
        for name, line, face in (("p50_s", ":", "white"), ("p99_s", "-", own)):
            shown = [(a, 1e3 * w[name]) for a, w in zip(x, tried, strict=True) if w[name] is not None]
            upper.plot(*zip(*shown, strict=True), linestyle=line, marker=mark, color=own, markerfacecolor=face, markersize=5)
        for w in tried:
            if w["p99_s"] and w["p99_low_s"]:
                upper.plot([sent(w)] * 2, [1e3 * w["p99_low_s"], 1e3 * (w["p99_high_s"] or w["p99_s"])], color=own, linewidth=1)
        lower.plot(x, [w["goodput_per_s"] for w in tried], marker=mark, color=own, markersize=5)
        name = TRANSPORTS[kind]
        handles += [Line2D([], [], color=own, marker=mark, label=f"P99 {name}"),
                    Line2D([], [], color=own, marker=mark, linestyle=":", markerfacecolor="white", label=f"P50 {name}")]
        if one.bound:
            server = one.bound[0]
            rates = [top * i / 200 for i in range(1, 200) if top * i / 200 < queueing.FULL * server.most_per_s]
            upper.plot(rates, [1e3 * server.latency(rate) for rate in rates], color=own, linestyle="--", linewidth=1.2)
            lower.axvline(one.bound[1], color=own, linestyle="--", linewidth=1.2)
            handles.append(Line2D([], [], color=own, linestyle="--", label=f"bound {name}"))
    for limit_s in limits_s:
        upper.axhline(1e3 * limit_s, color="#AA0000", linewidth=1.2)
        upper.annotate(f"{1e3 * limit_s:.0f} ms", (1, 1e3 * limit_s), (-2, 3), xycoords=("axes fraction", "data"),
                       textcoords="offset points", color="#AA0000", ha="right", fontsize=8.5)
    upper.set_yscale("log")
    tops = [1e3 * w["p99_s"] for one in found for w in windows(one) if w["p99_s"]]
    upper.set_ylim(None, 3 * max([1e3 * max(limits_s), *tops]))
    upper.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    upper.yaxis.set_minor_formatter(NullFormatter())
    upper.set_ylabel("latency, ms")
    lower.plot([0, top], [0, top], color=SOFT, linewidth=0.8, linestyle=":")
    lower.set_ylabel("answers in time, /s")
    lower.set_xlabel("queries/s that came")
    lower.set_xlim(0, top)
    best = max((w["goodput_per_s"] for one in found for w in windows(one)), default=1.0)
    lower.set_ylim(0, best * 1.35)
    for axes in (upper, lower):
        axes.grid(axis="y", color=BAND, linewidth=0.6)
    if handles:
        legend_below(lower, handles, columns=3)
    claim = _claim(found)
    caption = ("Whisker: 95 % interval of P99 (open above where n is too small). Dashed: the best first-come-first-served server that "
               "refuses nobody (M/D/c, measured service time), its highest rate below. No P99 where more than 1 % was refused. "
               f"{_provenance(found)}")
    alt = f"Latency and goodput against offered rate. {claim}. " + " ".join(
        f"{one.name}: " + "; ".join(_said(w) for w in windows(one)) + "." for one in found)
    return finish(upper, clean(claim) if not _smoke(found) else f"{tables.SMOKE}\n{clean(claim)}", caption, alt)


def _said(window: dict) -> str:
    p99 = f"P99 {1e3 * window['p99_s']:.0f} ms" if window["p99_s"] is not None else "P99 not reached"
    return f"{tables.figure(sent(window))} offered: {p99}, {tables.figure(window['goodput_per_s'])} in time, n={window['n']}"


def _smoke(found: Sequence[Load]) -> bool:
    return any(one.tier == "smoke" for one in found)


def _provenance(found: Sequence[Load]) -> str:
    machines = ", ".join(dict.fromkeys(one.machine for one in found)) or "nothing measured"
    counts = [f"{one.confirmed()['n']:,}" for one in found if one.confirmed()]
    n = f"n = {' / '.join(counts)} in the confirmation; " if counts else ""
    return clean(f"{n}{machines}; tier {', '.join(dict.fromkeys(one.tier for one in found))}.")


def _claim(found: Sequence[Load]) -> str:
    if not found:
        return "No load test yet"
    if _smoke(found):
        return f"{tables.title(found[0].workload)}: {len(found)} service{'s' * (len(found) != 1)} ran under load"
    parts = [f"{one.stood()} {TRANSPORTS[one.knobs['transport']]}" for one in found]
    limit_ms = 1e3 * found[0].serving("server")["limit_s"]
    what = words(found[0].knobs, ("precision", "engine"))
    return (f"{tables.title(found[0].workload)}, {what}, on {found[0].serving('server')['cores']} cores: "
            f"{', '.join(parts)} queries/s within {limit_ms:.0f} ms at P99")


@styled
def resolution(found: Sequence[Load]):
    """Accuracy against Offline rate by the size of the image; the label is its side in pixels, hollow where the accuracy informs about
    nothing. A second scale gives the cores for the goal. Returns the Axes."""
    entries = frontier(found)
    figure, grid = figure_of(3.6)
    axes = grid[0, 0]
    known = [entry for entry in entries if entry["quality"]]
    for kind in dict.fromkeys((e["load"].knobs["engine"], e["load"].knobs["precision"]) for e in known):
        own = [e for e in known if (e["load"].knobs["engine"], e["load"].knobs["precision"]) == kind]
        colour = COLOURS["inprocess"] if kind[1] == "int8" else COLOURS["http"]
        axes.plot([e["per_s"] for e in own], [100 * e["quality"]["value"] for e in own], color=colour, linewidth=1.2, zorder=1)
        for e in own:
            axes.plot([e["per_s"]], [100 * e["quality"]["value"]], marker="o", color=colour, zorder=2,
                      markerfacecolor=colour if e["quality"]["informative"] else "white")
            axes.annotate(f"{e['image']} px", (e["per_s"], 100 * e["quality"]["value"]), (6, 6), textcoords="offset points", fontsize=8.5)
        label = words({"engine": kind[0], "precision": kind[1]}, ("precision", "engine"))
        axes.annotate(clean(label), (own[-1]["per_s"], 100 * own[-1]["quality"]["value"]), (6, -12),
                      textcoords="offset points", color=colour, fontsize=8.5)
    if known:
        values = [100 * e["quality"]["value"] for e in known]
        room = max(max(values) - min(values), 2.0) * 0.25
        axes.set_ylim(max(0, min(values) - room), min(100.5, max(values) + room))
        axes.set_xlim(0, max(e["per_s"] for e in known) * 1.2)
        axes.set_ylabel(f"{known[0]['quality']['metric']}, %")
        cores = (known[0]["load"].serving("offline") or known[0]["load"].serving("accuracy"))["cores"]
        above = axes.secondary_xaxis("top", functions=(lambda x: x, lambda x: x))
        above.set_xticks([e["per_s"] for e in known], [f"{e['cores']}" for e in known])
        above.set_xlabel(f"cores for {GOAL_PER_S:.0f} queries/s (measured on {cores})", fontsize=8.5)
        above.tick_params(colors=SOFT)
    axes.set_xlabel("queries/s, Offline")
    axes.grid(axis="y", color=BAND, linewidth=0.6)
    claim = _trade(known)
    hollow = "Hollow: this accuracy informs about nothing. " if any(not e["quality"]["informative"] for e in known) else ""
    n = f"n = {known[0]['quality']['n']:,} images. " if known else ""
    alt = f"Accuracy against rate by image size. {claim}. " + "; ".join(
        f"{e['image']} px: {tables.figure(e['per_s'])} queries/s, {100 * e['quality']['value']:.1f} %" for e in known) + "."
    heading = f"{tables.SMOKE}\n{clean(claim)}" if _smoke([e["load"] for e in known]) else clean(claim)
    axes.tick_params(colors=INK)
    return finish(axes, heading, f"{hollow}{n}{_provenance([e['load'] for e in known])}", alt)


def _trade(known: Sequence[dict]) -> str:
    if len(known) < 2:
        return "One size only: no frontier" if known else "No resolution measured yet"
    name = tables.title(known[0]["load"].workload)
    if _smoke([e["load"] for e in known]):
        return f"{name}: {len(known)} sizes ran"
    first, last = known[0], known[-1]
    return f"{name}, from {first['image']} to {last['image']} px: {last['per_s'] / first['per_s']:.2f}x the rate, {_points(first, last)}"


def _points(first: dict, last: dict) -> str:
    """What the accuracy loses or gains in points, where both ends inform and chance alone does not give as much."""
    from scipy.stats import norm

    ends = [entry["quality"] for entry in (first, last)]
    if not all(one["informative"] for one in ends):
        return "accuracy not informative"
    gain = ends[1]["value"] - ends[0]["value"]
    # As if the two had seen different images: of the same ones the margin is narrower, so this claims too little rather than too much.
    error = math.sqrt(sum(one["value"] * (1 - one["value"]) / one["n"] for one in ends))
    return f"{100 * gain:+.1f} points" if abs(gain) > norm.ppf(0.975) * error else "no difference of accuracy shown"
