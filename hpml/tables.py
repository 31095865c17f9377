"""Tables and sentences: rows of a comparison as plain text, Markdown, CSV, and each verdict in words."""

import csv as csv_module
import dataclasses
import json
import re
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hpml.compare import MIN_ROUNDS, TOO_NOISY, Row, percent
from hpml.records import Record

WIDTH = 112
SMOKE = "smoke: not a result"
# How the course's workloads are written; another one is written as it is called.
TITLES = {
    "resnet50": "ResNet-50",
    "xlnet": "XLNet",
    "deeplabv3": "DeepLabV3",
    "resnet152": "ResNet-152",
    "clip": "CLIP",
    "shuttle": "Shuttle",
}
PHASES = {"train": "training", "infer": "inference", "export": "export", "quantize": "quantization", "build": "engine build",
          "profile": "profile", "serve": "serving", "data": "data loading", "pack": "packing", "transfer": "transfer"}


def figure(value: float | None, unit: str = "") -> str:
    """A number with 3 significant digits ("52.3", "1,230", "0.0123"), "" for None."""
    if value is None:
        return ""
    value = float(f"{value:.3g}")
    size = abs(value)
    if size and (size >= 1e7 or size < 1e-3):
        text = re.sub(r"e([+-])0*", lambda m: "e" + m[1].strip("+"), f"{value:.2e}")
    else:
        text = f"{value:,.{0 if size >= 100 or not size else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4}f}"
        text = text if size >= 0.1 or not size else f"{value:.3g}"
    return f"{text} {unit}" if unit else text


def si(value: float, unit: str) -> str:
    """3 significant digits with a decimal prefix: 1.23e12 FLOP/s is "1.23 TFLOP/s"."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if float(f"{value:.3g}") >= factor and unit in ("FLOP/s", "B/s"):
            return f"{figure(value / factor)} {prefix}{unit}"
    return figure(value, unit)


def ratio(value: float | None) -> str:
    """ "1.80x", "" for None."""
    return "" if value is None else f"{value:.2f}x"


def title(workload: str) -> str:
    """How a workload is written in titles and sentences."""
    name = Path(workload).stem if workload.endswith(".py") else workload
    return TITLES.get(name, name)


def verdict(row: Row) -> str:
    """The verdict without the figures that stand in columns of their own; a reason is cut off, `notes` has it whole."""
    if unrated(row):
        return "done"
    if row.verdict == "not measured here":
        return "not measured here"
    if row.verdict == "too few rounds" and row.rounds >= MIN_ROUNDS:
        return "no noise floor recorded"
    if row.verdict in ("faster", "slower"):
        return row.verdict + ("; machine too noisy" if row.floor and row.floor > TOO_NOISY else "")
    return row.verdict_text


def quality(row: Row) -> str:
    """The quality column: thousands separated; empty when there is nothing to say of a case that was not measured."""
    if row.verdict == "not measured here" and row.quality_value is None:
        return ""
    return re.sub(r"n=(\d+)", lambda m: f"n={int(m[1]):,}", row.quality_text)


def short_quality(shown: str) -> str:
    """The quality without its interval, n, margin and number of seeds, which the sentence has."""
    kept = re.split(r",? \(?(?:n=|margin|interval)", re.sub(r" \[[^]]*]", "", shown))[0]
    return kept + ")" * (kept.count("(") - kept.count(")"))


def unrated(row: Row) -> bool:
    """Whether the case ran but has no rate at all (an export): there is nothing to compare, and nothing failed."""
    return row.status == "ok" and row.per_s is None


def _interval(row: Row) -> str:
    return "" if row.low is None else f"[{row.low:.2f}, {row.high:.2f}]"


def _limit(row: Row) -> str:
    if row.limit_percent is None:
        return ""
    return f"{figure(row.limit_percent)} ({row.limit_bound})" + (" (!)" if row.limit_percent > 100 else "")


def names(rows: Sequence[Row]) -> list[str]:
    """The rows' labels; where several comparisons have the same label, with the knobs that tell them apart (", batch=8")."""
    same: dict[tuple, list[Row]] = {}
    for row in rows:
        same.setdefault((row.workload, row.phase, row.machine, row.label), []).append(row)
    found = []
    for row in rows:
        twins = same[row.workload, row.phase, row.machine, row.label]
        apart = [name for name in row.knobs if any(twin.knobs.get(name) != row.knobs[name] for twin in twins)]
        found.append(", ".join([row.label, *(f"{name}={row.knobs[name]}" for name in apart)]))
    return found


def columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Table cells by column title; columns in which no row has a value are left out, and so is what is the same in all rows."""
    several = {name: len({getattr(row, name) for row in rows}) > 1 for name in ("workload", "phase", "machine")}
    cells = {
        "workload": [title(row.workload) if several["workload"] else "" for row in rows],
        "phase": [row.phase if several["phase"] else "" for row in rows],
        "machine": [row.machine if several["machine"] else "" for row in rows],
        "case": names(rows),
        "samples/s": [figure(row.per_s) for row in rows],
        "latency ms": [figure(row.latency_ms) if row.phase == "infer" else "" for row in rows],
        "ratio": [ratio(row.ratio) for row in rows],
        "95 % interval": [_interval(row) for row in rows],
        "rounds": [str(row.rounds) if row.rounds else "" for row in rows],
        "verdict": [verdict(row) for row in rows],
        "quality": [quality(row) for row in rows],
        "memory MiB": [figure(row.memory_mib) for row in rows],
        "% of limit": [_limit(row) for row in rows],
    }
    if all(text in ("", "not measured") for text in cells["quality"]):
        cells["quality"] = ["" for _ in rows]
    return {name: texts for name, texts in cells.items() if any(texts)}


NUMBERS = ("samples/s", "latency ms", "ratio", "rounds", "memory MiB", "% of limit", "A samples/s", "B samples/s", "B / A", "in A", "in B")


def notes(rows: Sequence[Row]) -> list[str]:
    """What does not fit into a table: why a case was not measured, once for each reason; that figures are of the smoke tier."""
    reasons: dict[str, list[str]] = {}
    for row, label in zip(rows, names(rows), strict=True):
        if row.verdict == "not measured here" and not unrated(row):
            reasons.setdefault(_reason(row), []).append(label)
    found = [f"not measured here: {'; '.join(dict.fromkeys(labels))}: {reason}" for reason, labels in reasons.items()]
    disturbed = [f"{label} ({row.busy_rounds} of {row.rounds})" for row, label in zip(rows, names(rows), strict=True) if row.busy_rounds]
    if disturbed:
        found.append(f"rounds on a machine that was busy with something else: {'; '.join(disturbed)}")
    if any(row.limit_percent and round(row.limit_percent) > 100 for row in rows):
        found.append("(!) above 100 %: the measured limit is too low")
    return found


def _reason(row: Row) -> str:
    text = " ".join(row.verdict_text.removeprefix("not measured here: ").split())
    return text if row.status in ("ok", "skipped", "unsupported") else f"{text} ({row.status})"


def text(rows: Sequence[Row]) -> str:
    """Fixed-width table for notebooks and terminals, 130 characters wide at most where the cases' names allow it."""
    if not rows:
        return "no cases"
    cells = columns(rows)
    if len(grid(cells)[0]) > WIDTH and "quality" in cells:  # n and the number of seeds stand in the sentence
        cells["quality"] = [short_quality(item) for item in cells["quality"]]
    heading = [SMOKE] if any(row.tier == "smoke" for row in rows) else []
    remarks = [line for note in notes(rows) for line in textwrap.wrap(note, WIDTH, subsequent_indent="  ")]
    return "\n".join([*heading, *grid(cells), *remarks])


def grid(cells: dict[str, list[str]]) -> list[str]:
    """Columns of text by title as fixed-width lines: titles, a rule, one line a row."""
    widths = {name: max(map(len, [name, *texts])) for name, texts in cells.items()}

    def line(values: dict[str, str]) -> str:
        return "  ".join(
            value.rjust(widths[name]) if name in NUMBERS else value.ljust(widths[name]) for name, value in values.items()
        ).rstrip()

    body = [line({name: texts[i] for name, texts in cells.items()}) for i in range(len(next(iter(cells.values()))))]
    return [
        line({name: name for name in cells}).ljust(sum(widths.values()) + 2 * (len(widths) - 1)).rstrip(),
        "  ".join("-" * width for width in widths.values()),
        *body,
    ]


def markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table. Text that came from outside (reasons, names) cannot break out of its cell."""
    if not rows:
        return "no cases"
    cells = columns(rows)
    lines = ["| " + " | ".join(cells) + " |", "|" + "|".join(" ---: " if name in NUMBERS else " --- " for name in cells) + "|"]
    lines += ["| " + " | ".join(escape(texts[i]) for texts in cells.values()) + " |" for i in range(len(rows))]
    heading = [f"**{SMOKE}**", ""] if any(row.tier == "smoke" for row in rows) else []
    remarks = [line for note in notes(rows) for line in ("", escape(note))]
    return "\n".join([*heading, *lines, *remarks])


def escape(value: str) -> str:
    """Text as itself inside Markdown: on one line, without markup."""
    plain = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]$~])", r"\\\1", plain)


def csv(rows: Sequence[Row], path: Path) -> Path:
    """All fields of the rows, unrounded, one line a case; knobs as JSON. Returns the path."""
    names = [field.name for field in dataclasses.fields(Row)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv_module.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            values = dataclasses.asdict(row) | {"knobs": json.dumps(row.knobs, sort_keys=True), "differs_in": "+".join(row.differs_in)}
            writer.writerow([values[name] for name in names])
    return path


def made(records: Sequence[Record]) -> list[str]:
    """What exports, quantizations and engine builds took and left, one line a case: medians over rounds. They have no rate."""
    cases: dict[tuple, list[Record]] = {}
    for r in records:
        if r.status == "ok" and r.case["phase"] in ("export", "quantize", "build"):
            cases.setdefault((r.case["workload"], r.case["phase"], r.case["label"], r.case["group"], r.machine.get("id")), []).append(r)
    lines = []
    for (workload, phase, label, *_), own in cases.items():
        parts = []
        for name in own[-1].cold:
            values = [r.cold[name] for r in own if r.cold.get(name) is not None]
            what = name.removesuffix("_s").removesuffix("bytes").strip("_").replace("_", " ")
            if values and name.endswith("bytes"):
                parts.append(f"{what} {figure(statistics.median(values) / 2**20)} MiB".strip())
            elif values and name.endswith("_s") and name != "spawn_s":
                parts.append(f"{what} {figure(statistics.median(values))} s")
        lines.append(f"{title(workload)} {PHASES[phase]}, {label}: {', '.join(parts) or 'done'}; {len(own)} round{'s' * (len(own) != 1)}")
    return list(dict.fromkeys(lines))


def baseline_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row that `row` is compared with."""
    return next((other for other in rows if other.group == row.group and other.is_baseline), None)


def settings(row: Row, names: Sequence[str], between: str = " and ") -> str:
    """The named knobs with the row's values, "precision=bf16 and memory_format=channels_last"."""
    return between.join(f"{name}={row.knobs[name]}" for name in names if name in row.knobs)


def sentence(row: Row, baseline: Row | None = None, *, machine: bool = False) -> str:
    """The verdict on one case as a full sentence with everything that it rests on; `baseline` adds what it is compared with, `machine`
    where it was measured."""
    on = f" on {row.machine}" if machine else ""
    what = f"{title(row.workload)} {PHASES.get(row.phase, row.phase)}{_given(row)} with {settings(row, row.differs_in) or row.label}{on}"
    if row.stack:
        what += f" (a stack of {_listing(row.differs_in)})"
    before = settings(baseline, row.differs_in) if baseline else ""
    than = f"the baseline ({before})" if before else "the baseline"
    if unrated(row):
        return f"{_smoke(row)}{what} was done; it has no rate."
    if row.verdict == "not measured here":
        if row.status == "ok":  # it ran, its baseline did not
            return (
                f"{_smoke(row)}{what} has no verdict: its baseline has no figure ({figure(row.per_s, 'samples/s')} over {_rounds(row)})."
            )
        return f"{what} was not measured here: {_reason(row).rstrip('.')}."
    if row.is_baseline:
        return f"{_smoke(row)}{what} is the baseline: {figure(row.per_s, 'samples/s')}, the median of {_rounds(row)}{_of_limit(row)}."
    found = (
        f"{ratio(row.ratio)}, 95 % interval {row.low:.2f} to {row.high:.2f} over {_rounds(row)}"
        if row.low is not None
        else ratio(row.ratio)
    )
    if row.tier == "smoke":
        figures = f": {found}" if found else ""
        return f"{_smoke(row)}{what} ran beside {than}{figures}; this tier shows that it works, not how fast it is."
    if row.verdict == "too few rounds":
        why = (
            "no noise floor is recorded for this machine"
            if row.rounds >= MIN_ROUNDS
            else f"too few rounds ({row.rounds} of {MIN_ROUNDS})"
        )
        so_far = f"; so far {found} against {than}" if found else ""
        return f"No verdict on {what}: {why}{so_far}{_quality(row)}{_of_limit(row)}."
    noisy = "; machine too noisy" if row.floor > TOO_NOISY else ""
    basis = f"{found} (noise floor {percent(row.floor)}{noisy})"
    if row.verdict == "no difference":
        return f"{what} shows {row.verdict_text.split(';')[0]} from {than}: {basis}{_quality(row)}{_of_limit(row)}."
    return f"{what} is {row.verdict} than {than}: {basis}{_quality(row)}{_of_limit(row)}."


def _given(row: Row) -> str:
    """What an inference and its baseline share and other comparisons of the same engines do not: batch, part of the model, threads."""
    shared = {name: value for name, value in row.knobs.items() if row.phase == "infer" and name not in row.differs_in}
    said = [f"batch {shared['batch']}"] if "batch" in shared else []
    if shared.get("threads"):
        said.append(f"{shared['threads']} thread{'s' * (shared['threads'] != 1)}")
    of = f" of its part {shared['part']}" if shared.get("part", "whole") != "whole" else ""
    return of + (f" at {' and '.join(said)}" if said else "")


def sentences(rows: Sequence[Row]) -> list[str]:
    """One sentence for each case that has a baseline beside it; baselines themselves are left out. Of several machines each is named."""
    several = len({row.machine for row in rows}) > 1
    return [sentence(row, baseline_of(row, rows), machine=several) for row in rows if not row.is_baseline]


def strongest(compared: Sequence[Row], rows: Sequence[Row], *, most: int = 5) -> list[str]:
    """How many of the `compared` rows are faster and how many slower, each with its strongest as sentences; `rows` hold the baselines."""
    lines = []
    for word, sign in (("faster", -1), ("slower", 1)) if compared else ():
        chosen = sorted((row for row in compared if row.verdict == word), key=lambda row: sign * row.ratio)
        lines.append(f"{len(chosen)} of {len(compared)} comparisons are {word}{', the strongest:' if chosen else '.'}")
        lines += [f"  [{(row.notebook or '-')[:2]}] {sentence(row, baseline_of(row, rows), machine=True)}" for row in chosen[:most]]
    return lines


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)


def _smoke(row: Row) -> str:
    return f"{SMOKE}. " if row.tier == "smoke" else ""


def _rounds(row: Row) -> str:
    return f"{row.rounds} round{'s' * (row.rounds != 1)}"


def _quality(row: Row) -> str:
    shown = quality(row)
    if row.quality == "not measured" and row.quality_value is not None:
        return f"; quality not compared: {shown}"
    return f"; quality {shown}" if shown else ""


def _of_limit(row: Row) -> str:
    if row.limit_percent is None:
        return ""
    beyond = " (above 100 %: the measured limit is too low)" if round(row.limit_percent) > 100 else ""
    return f"; {figure(row.limit_percent)} % of the {row.limit_bound} limit{beyond}"
