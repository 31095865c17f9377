"""The chart over many comparisons: what is worth it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpml import tables
from hpml.compare import Row, on_other_input
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
from hpml.wording import words

FILLS = {"faster": "#A6CEE3", "slower": "#FDD0A2", "no difference": "#EEEEEE", "too few rounds": "#FFFFFF"}


LANE_IN = 0.23
RATED = ("train", "infer", "data")  # phases whose cases have a rate; an export or a quantization has nothing to be worth


@dataclass(frozen=True)
class Block:
    """What one machine measured. lanes: (heading, technique) from above; cells: the row of each lane and workload."""

    lanes: list[tuple[str, str]]
    workloads: list[str]
    cells: dict[tuple[tuple[str, str], str], Row]
    missing: list[str]  # techniques that no workload could measure there


@styled
def worth(rows: Sequence[Row]):
    """What is worth it: techniques down, workloads across, one block a machine. Ratio, verdict, quality; hatched: not measured.

    A heading says what the lanes below it are compared with. Of a technique that a workload measured at several sizes one is shown: with
    all threads, the smallest batch, its quality known, the last. Of a ladder the single steps and the whole stack are shown, not the
    rungs between. Comparisons of inputs alone (batch, length) are no techniques; what no workload could measure stands in the caption.
    Returns the first machine's Axes; the others are in `axes.figure.axes`.
    """
    others = _techniques(rows)
    machines = list(dict.fromkeys(row.machine for row in others)) or ["no machine"]
    blocks = _blocks(machines, others, rows)
    lanes = [max(len(block.lanes) + len({heading for heading, _ in block.lanes}), 1) for block in blocks]
    figure, grid = figure_of(1.6 + sum(LANE_IN * n + 0.55 for n in lanes), rows=len(machines), height_ratios=[n + 1 for n in lanes])
    for axes, machine, n, block in zip(grid[:, 0], machines, lanes, blocks, strict=True):
        _draw_block(axes, block)
        axes.set_ylim(n, 0)
        if len(machines) > 1:
            axes.set_xlabel(clean(machine), loc="left", color=SOFT)
    shown = [row for block in blocks for row in block.cells.values()]
    claim = _worth_claim(shown, rows)
    missing = list(dict.fromkeys(name for block in blocks for name in block.missing))
    caption = (
        "▲\u00a0faster  ▼\u00a0slower  =\u00a0no difference  ?\u00a0too few rounds for a verdict; second mark, quality: ✓\u00a0kept  "
        "✗\u00a0lost  –\u00a0not measured  ?\u00a0not informative; bold: faster with quality kept; "
        "hatched: not measured here; blank: not asked. Of several sizes the smallest batch on all threads.\n"
        + (f"Measured for no workload: {clean(', '.join(missing))}.\n" if missing else "")
        + f"{provenance(others)}."
    )
    if len(machines) > 1:  # every cell of several machines would be minutes of listening: each machine's page reads its own
        said = "; ".join(f"{machine}: {_worth_claim(list(block.cells.values()), rows)}"
                         for machine, block in zip(machines, blocks, strict=True))
    else:
        said = "; ".join(f"{tables.title(workload)}, {heading}, {technique}: {row.verdict_text}, quality {row.quality}"
                         for block in blocks for ((heading, technique), workload), row in block.cells.items())
    alt = f"Grid of techniques and workloads. {claim}. {said}."
    return finish(grid[0, 0], clean_lines(headed(claim, others)), caption, alt)


def charted(rows: Sequence[Row]) -> list[Row]:
    """The comparisons that `worth` draws a cell for: of each technique, workload and machine one."""
    others = _techniques(rows)
    return [row for block in _blocks(dict.fromkeys(row.machine for row in others), others, rows) for row in block.cells.values()]


def _blocks(machines: Iterable[str], others: Sequence[Row], rows: Sequence[Row]) -> list:
    return [_block([row for row in others if row.machine == machine], rows) for machine in machines]


def _techniques(rows: Sequence[Row]) -> list[Row]:
    """The rows with a rate that turn a technique, without the rungs of a ladder."""
    return [row for row in rows if not row.is_baseline and row.phase in RATED and not on_other_input(row) and not _is_rung(row, rows)]


def _worth_claim(shown: Sequence[Row], rows: Sequence[Row]) -> str:
    measured = [row for row in shown if row.ratio is not None]
    if any(row.tier == "smoke" for row in shown):
        return f"{len(measured)} of {len(shown)} cases ran"
    good = [row for row in measured if row.verdict == "faster"]
    kept = [row for row in good if row.quality == "kept"]
    claim = f"Faster in {len(good)} of {len(measured)} measured cases, quality shown to be kept in {len(kept)} of them"
    if good:
        best = max(kept or good, key=lambda row: row.ratio)
        base = tables.baseline_of(best, rows)
        over = f" over {words(base.knobs, best.differs_in)}" if base else ""
        claim += (f"; {'best of these' if kept else 'most'}: {tables.title(best.workload)}, {_technique(best)} "
                  f"({tables.ratio(best.ratio)}{over})")
    return claim


def _is_rung(row: Row, rows: Sequence[Row]) -> bool:
    """Whether the row is a rung between: a stack inside a larger one of its comparison, each of whose steps was also measured alone."""
    if not row.stack:
        return False
    own = [other for other in rows if other.group == row.group and other.machine == row.machine]
    alone = {other.differs_in[0] for other in own if len(other.differs_in) == 1}
    return any(set(row.differs_in) < set(other.differs_in) <= alone
               and all(other.knobs[name] == row.knobs[name] for name in row.differs_in) for other in own)


def _technique(row: Row) -> str:
    """An engine that was stored computes as one that was not."""
    return words(row.knobs, [name for name in row.differs_in if name != "stored"]) or row.label


def _heading(row: Row, base: Row | None) -> str:
    """The phase, and of an inference and a loader what they start from."""
    name = tables.PHASES[row.phase].capitalize()
    if row.phase == "infer" and base and "engine" in base.knobs:
        return f"{name}, over {words(base.knobs, ('precision', 'engine'))}"
    if row.phase == "data" and "storage" in row.knobs:
        return f"{name}, {words(row.knobs, ('storage',))}"
    return name


def _block(rows: Sequence[Row], every: Sequence[Row]) -> Block:
    cells: dict[tuple[tuple[str, str], str], Row] = {}
    for row in rows:
        key = ((_heading(row, tables.baseline_of(row, every)), _technique(row)), row.workload)
        if key not in cells or _standing(row) >= _standing(cells[key]):
            cells[key] = row
    measured = {lane for (lane, _), row in cells.items() if row.ratio is not None}
    order = {lane: RATED.index(row.phase) for (lane, _), row in cells.items() if lane in measured or row.status != "unsupported"}
    headings = list(dict.fromkeys(heading for heading, _ in order))
    lanes = sorted(order, key=lambda lane: (order[lane], headings.index(lane[0])))  # phases together, else in measuring order
    kept = {key: row for key, row in cells.items() if key[0] in order}
    missing = [technique for (_, technique), _ in dict.fromkeys(cells) if all(technique != lane[1] for lane in order)]
    return Block(lanes, list(dict.fromkeys(workload for _, workload in kept)), kept, list(dict.fromkeys(missing)))


def _standing(row: Row) -> tuple:
    """Of several comparisons of one technique the one with the highest standing is shown."""
    return (row.ratio is not None, row.knobs.get("threads", 0) == 0 or "threads" in row.differs_in, -row.knobs.get("batch", 0),
            row.quality in ("kept", "lost"), row.rounds)


def _draw_block(axes, block: Block) -> None:
    """One machine: its headings, a lane for each technique."""
    names, places, y, last = [], {}, 0, None
    many = len(block.workloads) > 4
    for heading, technique in block.lanes:
        if heading != last:
            axes.text(-0.012, y + 0.5, heading, weight="bold", ha="right", va="center", fontsize=8.5, transform=axes.get_yaxis_transform())
            y, last = y + 1, heading
        places[heading, technique] = y
        names.append((y + 0.5, clean(technique, 40 if many else 56)))
        y += 1
    for (lane, workload), row in block.cells.items():
        _worth_cell(axes, places[lane], block.workloads.index(workload), row, 7 if many else 8.5, room=38 // len(block.workloads))
    axes.set_xlim(0, max(len(block.workloads), 1))
    axes.set_xticks([i + 0.5 for i in range(len(block.workloads))], [clean(tables.title(w), 12) for w in block.workloads],
                    fontsize=7 if many else 8.5)
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
