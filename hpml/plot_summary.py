"""The chart over many comparisons: what is worth it."""

from collections.abc import Sequence

from hpml import tables
from hpml.compare import Row
from hpml.plot_look import (
    GLYPHS,
    MARKS,
    SOFT,
    clean,
    clean_lines,
    figure_of,
    finish,
    headed,
    provenance,
    styled,
)

FILLS = {"faster": "#A6CEE3", "slower": "#FDD0A2", "no difference": "#EEEEEE", "too few rounds": "#FFFFFF"}


LANE_IN = 0.25
RATED = ("train", "infer", "data")  # phases whose cases have a rate; an export or a quantization has nothing to be worth


@styled
def worth(rows: Sequence[Row]):
    """What is worth it: techniques down by phase, workloads across, one block a machine. Ratio, verdict, quality; hatched: not measured.

    Of a ladder the single steps and the whole stack are shown, not the rungs between. Returns the first machine's Axes; the others are in
    `axes.figure.axes`.
    """
    others = [row for row in rows if not row.is_baseline and row.phase in RATED and not _is_rung(row, rows)]
    machines = list(dict.fromkeys(row.machine for row in others)) or ["no machine"]
    blocks = [_worth_cells([row for row in others if row.machine == machine]) for machine in machines]
    lanes = [max(len(techniques) + len({phase for phase, _ in techniques}), 1) for techniques, _, _ in blocks]
    figure, grid = figure_of(1.6 + sum(LANE_IN * n + 0.55 for n in lanes), rows=len(machines), height_ratios=[n + 1 for n in lanes])
    for axes, machine, n, block in zip(grid[:, 0], machines, lanes, blocks, strict=True):
        _worth_block(axes, *block)
        axes.set_ylim(n, 0)
        if len(machines) > 1:
            axes.set_xlabel(clean(machine), loc="left", color=SOFT)
    good = [row for row in others if row.verdict == "faster"]
    kept = [row for row in good if row.quality == "kept"]
    measured = [row for row in others if row.ratio is not None]
    best = max(kept or good, key=lambda row: row.ratio, default=None)
    claim = f"Faster in {len(good)} of {len(measured)} measured cases, quality shown to be kept in {len(kept)} of them"
    if best:
        what = tables.settings(best, best.differs_in) or best.label
        claim += f"; {'best of these' if kept else 'most'}: {tables.title(best.workload)}, {what} ({tables.ratio(best.ratio)})"
    if any(row.tier == "smoke" for row in others):
        claim = f"{len(measured)} of {len(others)} cases ran"
    caption = (
        "▲\u00a0faster  ▼\u00a0slower  =\u00a0no difference  ?\u00a0too few rounds for a verdict; second mark, quality: ✓\u00a0kept  "
        "✗\u00a0lost  –\u00a0not measured  ?\u00a0not informative; bold: faster with quality kept; "
        "hatched: not measured here; blank: not asked.\n"
        f"{provenance(others)}."
    )
    alt = (
        f"Grid of techniques and workloads. {claim}. "
        + "; ".join(
            f"{tables.title(w)} {tables.PHASES[t[0]]}, {t[1]}: {row.verdict_text}, quality {row.quality}"
            for _, _, cells in blocks
            for (t, w), row in cells.items()
        )
        + "."
    )
    return finish(grid[0, 0], clean_lines(headed(claim, others)), caption, alt)


def _is_rung(row: Row, rows: Sequence[Row]) -> bool:
    """Whether the row is a part of a larger stack of its comparison, and a stack itself."""
    return row.stack and any(
        other.group == row.group
        and other.machine == row.machine
        and set(other.differs_in) > set(row.differs_in)
        and all(other.knobs[name] == row.knobs[name] for name in row.differs_in)
        for other in rows
    )


def _worth_cells(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], list[str], dict]:
    """((phase, technique), workloads, row by both). A case measured again counts by its last comparison with most rounds; comparisons with
    other settings of the remaining knobs are techniques of their own, named with what differs."""
    cells: dict[tuple[tuple[str, str], str], Row] = {}
    for row, label in zip(rows, tables.names(rows), strict=True):
        rest = label.removeprefix(row.label)  # what tells twins apart
        technique = f"{tables.settings(row, row.differs_in, ', ') or row.label}{rest}"
        key = ((row.phase, technique), row.workload)
        if key not in cells or row.rounds >= cells[key].rounds:
            cells[key] = row
    techniques = sorted(dict.fromkeys(t for t, _ in cells), key=lambda t: RATED.index(t[0]))  # in measuring order, phases together
    return techniques, list(dict.fromkeys(w for _, w in cells)), cells


def _worth_block(axes, techniques: Sequence[tuple[str, str]], workloads: Sequence[str], cells: dict) -> None:
    """One machine: a heading for each phase, a lane for each technique."""
    names, places, y, last = [], {}, 0, None
    for phase, technique in techniques:
        if phase != last:
            axes.text(-0.012, y + 0.5, tables.PHASES[phase].capitalize(), weight="bold", ha="right", va="center",
                      transform=axes.get_yaxis_transform())
            y, last = y + 1, phase
        places[phase, technique] = y
        names.append((y + 0.5, clean(technique, 56 if len(workloads) <= 2 else 42)))
        y += 1
    for (technique, workload), row in cells.items():
        _worth_cell(axes, places[technique], workloads.index(workload), row, 8.5 if len(workloads) <= 4 else 7, room=38 // len(workloads))
    axes.set_xlim(0, max(len(workloads), 1))
    axes.set_xticks([i + 0.5 for i in range(len(workloads))], [clean(tables.title(w), 12) for w in workloads],
                    fontsize=8.5 if len(workloads) <= 4 else 7)
    axes.set_yticks([at for at, _ in names], [text for _, text in names], fontsize=8)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def _worth_cell(axes, y: int, x: int, row: Row, fontsize: float, *, room: int) -> None:
    from matplotlib.patches import Rectangle

    measured = row.ratio is not None
    axes.add_patch(
        Rectangle(
            (x + 0.03, y + 0.06),
            0.94,
            0.88,
            facecolor=FILLS.get(row.verdict, "white"),
            edgecolor="#BBBBBB",
            hatch=None if measured else "////",
            linewidth=0.8,
        )
    )
    if measured:
        mark = MARKS.get(row.quality, "")
        axes.text(
            x + 0.5,
            y + 0.52,
            f"{GLYPHS.get(row.verdict, '')} {tables.ratio(row.ratio)} {mark}",
            ha="center",
            va="center",
            fontsize=fontsize,
            weight="bold" if row.verdict == "faster" and row.quality == "kept" else "normal",
        )
    elif room > 20:
        reason = "; ".join(tables.notes([row])).removeprefix("not measured here: ").removeprefix(f"{row.label}: ")
        axes.text(x + 0.5, y + 0.52, clean(reason or row.verdict_text, room), ha="center", va="center", fontsize=7.5,
                  clip_on=True, in_layout=False, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
