"""The chart over many comparisons: what is worth it."""

import textwrap
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
            f"{tables.title(w)}, {t}: {row.verdict_text}, quality {row.quality}"
            for _, _, cells in blocks
            for (t, w), row in cells.items()
        )
        + "."
    )
    return finish(grid[0, 0], clean_lines(headed(claim, others)), caption, alt)


def _worth_cells(rows: Sequence[Row]) -> tuple[list[str], list[str], dict]:
    """(techniques, workloads, row by both). A case measured again counts by its last comparison with most rounds; comparisons with
    other settings of the remaining knobs are techniques of their own, named with what differs."""
    cells: dict[tuple[str, str], Row] = {}
    for row, label in zip(rows, tables.names(rows), strict=True):
        rest = label.removeprefix(row.label)  # what tells twins apart
        key = (
            f"{tables.PHASES.get(row.phase, row.phase)}: {tables.settings(row, row.differs_in, ', ') or row.label}{rest}",
            row.workload,
        )
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
            fontsize=8.5,
            weight="bold" if row.verdict == "faster" and row.quality == "kept" else "normal",
        )
