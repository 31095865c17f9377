"""The chart of a ladder of designs: what each version reached, and the losses of the one that learnt its training samples by heart."""

from hpml.plot_look import BAND, SERIES, clean, figure_of, finish, plain_log_x, styled

LANE_IN = 0.24


@styled
def versions(facts: dict):
    """Median and P95 of each version's error in pixels; below, training and validation loss of the version whose losses lie farthest apart.

    `facts`: a study with `rows` (version, after, median px, P95 px) and `curves` by version, as benchmarks/shuttle_versions.py leaves it.
    Returns the Axes of the errors.
    """
    rows, curves = facts["rows"], facts["curves"]
    figure, grid = figure_of(3.6 + LANE_IN * len(rows), rows=2, height_ratios=[LANE_IN * len(rows) + 0.4, 1.7])
    errors, losses = grid[:, 0]
    for y, row in enumerate(rows):
        errors.plot([row["median px"], row["P95 px"]], [y, y], color=BAND, linewidth=5, solid_capstyle="butt", zorder=1)
        errors.plot([row["P95 px"]], [y], color=SERIES[1], marker="|", markersize=10, markeredgewidth=2, linestyle="none",
                    label="P95" if not y else "_nolegend_")
        errors.plot([row["median px"]], [y], color=SERIES[0], marker="o", linestyle="none", label="median" if not y else "_nolegend_")
    errors.set_yticks(range(len(rows)), [clean(f"{row['version']} (after {row['after']})", 34) for row in rows])
    errors.set_ylim(len(rows) - 0.4, -0.6)
    errors.set_xscale("log")
    errors.set_xlim(max(min(row["median px"] for row in rows) / 1.4, 0.1), 1.3 * max(row["P95 px"] for row in rows))
    plain_log_x(errors)
    errors.set_xlabel("error, pixels of the frame")
    errors.legend(loc="upper left")  # the first versions err most
    name = max(curves, key=lambda one: curves[one]["validation"][-1] - curves[one]["train"][-1])
    for part, line, shade in (("train", "--", SERIES[0]), ("validation", "-", SERIES[1])):
        losses.plot(range(1, len(curves[name][part]) + 1), curves[name][part], line, color=shade, marker="o", markersize=3.5,
                    label=f"{'training' if part == 'train' else part}, {clean(name)}")
    losses.set_xlabel("epoch")
    losses.set_ylabel("loss")
    losses.set_ylim(0, None)
    losses.xaxis.get_major_locator().set_params(integer=True)
    losses.legend(loc="lower left")
    best = min(rows, key=lambda row: row["median px"])
    first, last = (curves[name][part][-1] for part in ("train", "validation"))
    claim = (f"Median error {rows[0]['median px']:g} px in version {rows[0]['version']}, {best['median px']:g} px in version "
             f"{best['version']}; most learnt by heart in {name}")
    caption = (f"Losses of {name} at the end: training {first:.2f}, validation {last:.2f}. n = {facts['n']} visible test frames; "
               f"{facts['machine']['id']}; {facts['data']}.")
    alt = f"Dots of the error by version, and two curves of losses. {claim}. {caption} " + "; ".join(
        f"{row['version']}: median {row['median px']:g}, P95 {row['P95 px']:g} px" for row in rows) + "."
    return finish(errors, clean(claim), caption, alt)
