"""The pages that open the repository, written from the reference records alone: README's results and list of notebooks, and for each
machine a page of its own with every case."""

import os
import re
from pathlib import Path

from hpml import compare, env, notebooks, recommend, records, report_charts, tables, tables_int8, tables_serving, workloads
from hpml.compare import Row
from hpml.env import HpmlError
from hpml.report_results import BEST, Charts, best_of
from hpml.wording import words

BEGIN, END = "<!-- results: written by `hpml report --readme` -->", "<!-- /results -->"
LIST_BEGIN, LIST_END = "<!-- notebooks: written by `hpml report --readme` -->", "<!-- /notebooks -->"
NONE = "No machine's reference is recorded yet."


def references() -> list[tuple[Path, list[records.Record]]]:
    """(folder, records) of each reference machine, the newest first."""
    found = [(path.parent, records.read(path)) for path in env.reference_dir().glob("*/records.jsonl")]
    return sorted(found, key=lambda pair: max(r.created for r in pair[1]), reverse=True)


def _rows(found: list[records.Record]) -> list[Row]:
    # The example of notebook 42 shows how a reader's model is measured; it is none of the study's workloads.
    return [row for row in compare.techniques(compare.rows(found)) if not row.workload.endswith(".py")]


def readme_block() -> str:
    """README's results: the best stack of each workload on each machine, and where all cases stand. The machine with the most comparisons
    comes first, and the figure is its own."""
    machines = [(folder, found, _rows(found)) for folder, found in references()]
    machines.sort(key=lambda one: sum(bool(row.ratio) for row in one[2]), reverse=True)
    if not machines:
        return NONE
    lines = ["| workload | machine | best stack | instead of | ratio | quality | % of limit | notebook |", "|---" * 8 + "|"]
    for workload, phase in dict.fromkeys((row.workload, row.phase) for _, _, rows in machines for row in rows
                                         if row.phase in ("train", "infer") and not row.is_baseline):
        lines += [_best(workload, phase, rows, folder, found) for folder, found, rows in machines
                  if any((row.workload, row.phase) == (workload, phase) and not row.is_baseline for row in rows)]
    folder, _, most = machines[0]
    parts = ["\n".join(_outcome(found, rows, phase) for _, found, rows in machines for phase in ("infer", "train")
                       if any(row.phase == phase and row.ratio for row in rows)),
             f"{BEST} Ratio with its 95 % interval; the limit is what this machine was measured to reach. Of a quality that was shown "
             "once, the difference itself is held against the margin; brackets behind it are the interval that the test samples leave, "
             "where the records have the answers by sample. A ratio leads to its first record; the "
             f"machine's page has the command that measures it again.{_absent([rows for _, _, rows in machines])}",
             "\n".join(lines), _figure(folder, most, env.root())]
    parts += ["\n".join(f"- {_machine(found)} Data: {_sources(found)}. "
                        f"[All cases]({_link(folder / 'README.md', env.root())}), "
                        f"[records]({_link(folder / 'records.jsonl', env.root())})." for folder, found, rows in machines)]
    parts += [_int8(found, rows) for _, found, rows in machines]
    parts += [_serving(found) for _, found, _ in machines]
    return "\n\n".join(filter(None, parts))


def _absent(machines: list[list[Row]]) -> str:
    """What no reference machine has compared yet, so that a missing line is not taken for "no effect"."""
    compared = {row.workload for rows in machines for row in rows if row.phase in ("train", "infer") and row.ratio}
    left = [tables.title(name) for name in workloads.names() if name not in compared]
    gpu = "" if any(row.knobs.get("device") == "cuda" for rows in machines for row in rows) else " No GPU is among the machines yet."
    return (f" Not compared on any of them yet: {', '.join(left)}." if left else "") + gpu


def _int8(found: list[records.Record], rows: list[Row]) -> str:
    """What INT8 gives on one machine, with its quality; nothing where none was measured there."""
    own = _study(found)
    if not tables_int8.timed(own):
        return ""
    return (f"**INT8 on {_chip(found[0].machine)}** ([33](notebooks/33_int8_quantization.ipynb)), "
            "quality beside speed; operators: those that compute in INT8, of all convolutions and products of matrices.\n\n"
            + tables_int8.markdown(own, rows, workloads.names()))


def _serving(found: list[records.Record]) -> str:
    """What services on one machine stood under load; nothing where none was measured there."""
    own = _study(found)
    table = tables_serving.markdown(own)
    names = ",".join(dict.fromkeys(load.workload for load in tables_serving.loads(own)))
    return table and (f"**Serving on {_chip(found[0].machine)}** ([35](notebooks/35_serving_under_load.ipynb)): MLPerf LoadGen and the "
                      "service on the same cores. In time: the highest rate with P99 within the limit, beside the bound of queueing "
                      f"theory.\n\n{table}\n\nAgain: `HPML_DATA=<your data> hpml run --only 35 --workloads {names} --budget none`; one "
                      "service: `hpml load-test --workload resnet50 --precision int8 --transport http`.")


def _outcome(found: list[records.Record], rows: list[Row], phase: str) -> str:
    """What one machine showed of a phase, in two sentences."""
    mine = [row for row in rows if row.phase == phase]
    best = [row for name in dict.fromkeys(row.workload for row in mine) if (row := best_of([one for one in mine if one.workload == name]))]
    gains = [f"{tables.ratio(row.ratio)} ({tables.title(row.workload)}: {words(row.knobs, row.differs_in)}"
             f"{_over(row, rows)})" for row in sorted(best, key=lambda row: -row.ratio)]
    return (f"- {tables.PHASES[phase].capitalize()} on {_chip(found[0].machine)}: at best {', '.join(gains) or 'the baseline'}. "
            f"{_counts(mine)}")


def _over(row: Row, rows: list[Row]) -> str:
    base = tables.baseline_of(row, rows)
    return f" over {words(base.knobs, row.differs_in)}" if base else ""


def _best(workload: str, phase: str, rows: list[Row], folder: Path, found: list[records.Record]) -> str:
    """README's line of a workload and phase on one machine."""
    mine = [row for row in rows if (row.workload, row.phase) == (workload, phase)]
    row = best_of(mine)
    machine = f"[{_chip(found[0].machine)}]({_link(folder / 'README.md', env.root())})"
    name = f"{tables.title(workload)} {tables.PHASES.get(phase, phase)}"
    if row is None:
        return f"| {name} | {machine} | the baseline: no case is faster beyond the noise | | | | | |"
    base = tables.baseline_of(row, rows)
    differs = row.differs_in if base else ()
    stack, instead = (words(one.knobs, differs) for one in (row, base or row))
    ratio = _ratio(row, _link(folder / "records.jsonl", env.root()), _first_lines(found))
    return (f"| {name} | {machine} | {stack} | {instead} | {ratio}{_noisy(row)} | {row.quality_text} | {_limit(row)} "
            f"| {_number(row, env.root())} |")


def machine_page(folder: Path, found: list[records.Record]) -> str:
    """The page of a reference machine: its facts, what was worth it, every case beside its baseline, and how to make them again."""
    rows = _rows(found)
    labels = dict(zip(map(id, rows), tables.names(rows), strict=True))
    first = _first_lines(found)
    shown = [row for row in rows if not row.is_baseline and not (row.rounds == 0 and row.status == "ok")]
    best: dict[str, Row] = {}
    for row in shown:
        if row.group not in best or (row.ratio or 0) > (best[row.group].ratio or 0):
            best[row.group] = row
    names = ",".join(dict.fromkeys(row.workload for row in rows))
    again = f"`HPML_DATA=<your data> ./run_all.sh --workloads {names} --rounds 6 --budget none`"
    return "\n\n".join(filter(None, [
        f"# {_chip(found[0].machine)}", "Written by `hpml report --readme` from [records.jsonl](records.jsonl).",
        _machine(found), f"Data, training + test:\n\n{_sets(found)}", _headline(rows), _charts(folder, found, rows),
        f"## The highest ratio of each comparison\n\n{_lines(list(best.values()), rows, labels, folder, first)}",
        f"## All {len(shown)} cases beside their baselines\n\n{_lines(shown, rows, labels, folder, first)}",
        f"Each number again: {again}, or one notebook's with `--only NN`. The same values as CSV: [tables](tables)."])) + "\n"


def _study(found: list[records.Record]) -> list[records.Record]:
    return [r for r in found if not r.case["workload"].endswith(".py")]


def _charts(folder: Path, found: list[records.Record], rows: list[Row]) -> str:
    """The five charts as they lie beside the records, each with its words; what was not measured is said."""
    parts = []
    for one in report_charts.five(_study(found), rows, Charts(folder, drawing=False)):
        pictures = [f"![{tables.escape(chart.alt)}](charts/{chart.name}.png)" for chart in one.charts if chart.path]
        parts.append("\n\n".join([f"## {one.title}", *(pictures or [f"Not measured here: {one.missing}."])]))
    return "\n\n".join(parts)


def _chip(machine: dict) -> str:
    """The machine's name, with what tells CPUs of one name apart: the newest instructions that their arithmetic has."""
    name = machine["id"].rsplit("-", 1)[0].replace("-", " ")
    return name if machine["gpu"] or not machine["isa"] else f"{name} ({machine['isa'][-1]})"


def _machine(found: list[records.Record]) -> str:
    machine = found[0].machine
    chip = machine["gpu"] or f"{machine['cpu']} (family/model {machine['family_model']}; {', '.join(machine['isa'])})"
    days = sorted({r.created[:10] for r in found})
    versions = " and ".join(dict.fromkeys(_versions(r.versions) for r in found))
    commits = ", ".join(f"`{commit[:10]}`" for commit in dict.fromkeys(r.git["commit"] for r in found))
    return (f"**{chip}, {machine['cores']} cores**: measured {' to '.join(dict.fromkeys((days[0], days[-1])))} by protocol "
            f"{found[0].protocol_version} at commit {commits} with {versions}.")


def _sources(found: list[records.Record]) -> str:
    """The names of the data sets, and which of them are real."""
    sets = (r.actual["data"] for r in found if r.actual.get("data"))
    return ", ".join(dict.fromkeys(f"{one['title']} ({one['origin']})" for one in sets)) or "none"


def _sets(found: list[records.Record]) -> str:
    """Every data set at every size, with its notes, a line each."""
    lines = sorted({", ".join(filter(None, (compare.data_text(r), r.actual["data"].get("note")))) for r in found if r.actual.get("data")})
    return "\n".join(f"- {line}" for line in lines) or "none"


def _versions(versions: dict) -> str:
    return (f"torch {versions.get('torch')}, ONNX Runtime {versions.get('onnxruntime-gpu', versions.get('onnxruntime'))}, "
            f"OpenVINO {versions.get('openvino')}")


def _counts(rows: list[Row]) -> str:
    rated = [row for row in rows if row.ratio and not row.is_baseline and not compare.on_other_input(row)]
    words = {word: sum(row.verdict == word for row in rated) for word in ("faster", "slower", "no difference")}
    return (f"Of {len(rated)} comparisons {words['faster']} are faster than their baseline, {words['slower']} slower, and "
            f"{words['no difference']} show no difference.")


def _headline(rows: list[Row]) -> str:
    best = max((row for row in rows if row.verdict == "faster" and row.quality == "kept"), key=lambda row: row.ratio, default=None)
    return _counts(rows) + (f" {tables.sentence(best, tables.baseline_of(best, rows))}" if best else "")


def _lines(chosen: list[Row], rows: list[Row], labels: dict[int, str], page: Path, first: dict[tuple, int]) -> str:
    lines = ["| notebook | step | baseline | ratio | verdict | quality | % of limit |", "|---|---|---|---|---|---|---|"]
    for row in chosen:
        base = tables.baseline_of(row, rows)
        verdict = row.verdict + _noisy(row) if row.verdict in ("faster", "slower") else row.verdict_text
        step = f"{tables.title(row.workload)} {tables.PHASES.get(row.phase, row.phase)}: {labels[id(row)]}"
        lines.append(f"| {_number(row, page)} | {step} | {base.label if base else ''} | {_ratio(row, 'records.jsonl', first)} | {verdict} "
                     f"| {row.quality_text} | {_limit(row)} |")
    return "\n".join(lines)


def _ratio(row: Row, file: str, lines: dict[tuple, int]) -> str:
    """The ratio with its interval, leading to the case's first line in the file of records."""
    if not row.ratio or not row.low:
        return ""
    shown = rf"{row.ratio:.2f}x \[{row.low:.2f}, {row.high:.2f}\]"
    return f"[{shown}]({file}#L{lines[row.group, row.label]})"


def _first_lines(found: list[records.Record]) -> dict[tuple, int]:
    """(group, label) -> number of the first line in records.jsonl with a figure of this case."""
    lines: dict[tuple, int] = {}
    for number, r in enumerate(found, 1):
        if r.status == "ok":
            lines.setdefault((r.case.get("group"), r.case.get("label")), number)
    return lines


def _noisy(row: Row) -> str:
    return f"; machine too noisy (floor {compare.percent(row.floor)})" if row.floor and row.floor > compare.TOO_NOISY else ""


def _limit(row: Row) -> str:
    return f"{row.limit_percent:.0f} % ({row.limit_bound})" if row.limit_percent else ""


def _number(row: Row, page: Path) -> str:
    path = env.root() / "notebooks" / f"{row.notebook}.ipynb"
    return f"[{row.notebook[:2]}]({_link(path, page)})" if path.exists() else ""


def _link(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page)).as_posix()


def _figure(folder: Path, rows: list[Row], page: Path) -> str:
    chart = folder / "charts" / "worth.png"
    # Charts are drawn for 600 pixels; a page that is wider would enlarge it over several screens.
    return f'<img src="{_link(chart, page)}" alt="{_counts(rows)}" width="600">' if chart.exists() else ""


def readme(path: Path) -> str:
    """The text of `path` with its results and its list of notebooks written anew. Raises HpmlError when the marks of one are missing."""
    text = path.read_text()
    for begin, end, what, made in ((BEGIN, END, "results", readme_block), (LIST_BEGIN, LIST_END, "notebooks", notebook_list)):
        if begin not in text or end not in text:
            raise HpmlError(f"{path}: the marks of the block of {what} are missing ({begin} ... {end})")
        block = f"{begin}\n{made()}\n{end}"
        text = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def write(path: Path) -> list[Path]:
    """Draw the charts of each reference machine where they changed, write README at `path` and the page of each; returns their paths."""
    for folder, found in references():
        charts = Charts(folder)
        report_charts.five(_study(found), _rows(found), charts)
        charts.save(others=True)
    text = readme(path)
    pages = {path: text, **{folder / "README.md": machine_page(folder, found) for folder, found in references()},
             **{folder / recommend.NAME: recommend.text(recommend.of_reference(folder)) for folder, _ in references()}}
    for page, content in pages.items():
        page.write_text(content)
    return list(pages)


def notebook_list() -> str:
    """The course in reading order with each notebook's question."""
    lines = [f"| [{book.name}](notebooks/{book.path.name}) | {book.question} |" for book in notebooks.course()]
    return "\n".join(["| notebook | the question |", "|---|---|", *lines])
