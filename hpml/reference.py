"""Reference records: a run is blessed into results/reference/<machine>/, and README's results are written from there."""

import re
import shutil
from pathlib import Path

from hpml import compare, env, notebooks, records, report, tables
from hpml.compare import Row
from hpml.env import HpmlError

BEGIN, END = "<!-- results: written by `hpml report --readme` -->", "<!-- /results -->"
LIST_BEGIN, LIST_END = "<!-- notebooks: written by `hpml report --readme` -->", "<!-- /notebooks -->"


def bless(run_id: str) -> Path:
    """Copy a run's records, tables and charts to the reference of its machine; returns the folder.

    Raises HpmlError unless every comparison with figures has 6 rounds, its noise floor and a clean, known commit.
    """
    run = env.run_dir(run_id)
    found = records.read(run / "records.jsonl")
    if not found:
        raise HpmlError(f"no records in {run}")
    short = [f"{row.technique} {row.label} ({row.rounds})" for row in compare.rows(found)
             if not row.is_baseline and 0 < row.rounds < compare.MAX_ROUNDS and row.phase != "export"]
    if short:
        raise HpmlError(f"a reference has {compare.MAX_ROUNDS} rounds of everything; fewer here: {', '.join(short)}")
    unknown = [f"{row.technique} {row.label}" for row in compare.rows(found) if row.ratio and not row.is_baseline and row.floor is None]
    if unknown:
        raise HpmlError(f"a reference knows its noise floor; none is recorded for: {', '.join(unknown)}")
    if any(r.git.get("dirty") or not r.git.get("commit") for r in found):
        raise HpmlError("a reference is measured on a clean commit: these records come from changed or unknown sources")
    report.build(run)
    target = env.reference_dir() / found[0].machine["id"]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copyfile(run / "records.jsonl", target / "records.jsonl")
    for name in ("tables", "charts"):
        shutil.copytree(run / name, target / name)
    return target


def readme_block() -> str:
    """README's results from records: for each reference machine its facts, what was worth it, the table and the figure."""
    parts = []
    folders = {path.parent: records.read(path) for path in env.reference_dir().glob("*/records.jsonl")}
    for folder, found in sorted(folders.items(), key=lambda item: item[1][0].created, reverse=True):  # the newest first
        # The example of notebook 42 shows how a reader's model is measured; it is none of the study's workloads.
        rows = [row for row in compare.techniques(compare.rows(found)) if not row.workload.endswith(".py")]
        parts += [_machine(found[0].machine, found), _headline(rows), _figure(folder, rows), _table(rows, folder)]
    return "\n\n".join(parts) if parts else "No machine's reference is recorded yet."


def _machine(machine: dict, found: list[records.Record]) -> str:
    chip = machine["gpu"] or f"{machine['cpu']} (family/model {machine['family_model']}), {', '.join(machine['isa'])}"
    versions = found[0].versions
    data = [r for r in found if r.actual.get("data")]
    texts = dict.fromkeys(", ".join(filter(None, (compare.data_text(r), r.actual["data"].get("note")))) for r in data)
    commits = ", ".join(f"`{commit[:10]}`" for commit in dict.fromkeys(r.git["commit"] for r in found))
    return (f"### {chip}, {machine['cores']} cores\n\nMeasured {found[0].created[:10]} by protocol {found[0].protocol_version} at commit "
            f"{commits} with torch "
            f"{versions.get('torch')}, ONNX Runtime {versions.get('onnxruntime-gpu', versions.get('onnxruntime'))}, OpenVINO "
            f"{versions.get('openvino')}. Data: {'; '.join(texts) or 'none'}.")


def _headline(rows: list[Row]) -> str:
    rated = [row for row in rows if row.ratio and not row.is_baseline]
    words = {word: sum(row.verdict == word for row in rated) for word in ("faster", "slower", "no difference")}
    best = max((row for row in rated if row.verdict == "faster" and row.quality == "kept"), key=lambda row: row.ratio, default=None)
    text = (f"Of {len(rated)} comparisons {words['faster']} are faster than their baseline, {words['slower']} slower, and "
            f"{words['no difference']} show no difference.")
    return text + (f" {tables.sentence(best, tables.baseline_of(best, rows))}" if best else "")


def _table(rows: list[Row], folder: Path) -> str:
    """The highest ratio of each comparison, then all cases in a fold, then where the raw values are."""
    labels = dict(zip(map(id, rows), tables.names(rows), strict=True))
    shown = [row for row in rows if not row.is_baseline and not (row.rounds == 0 and row.status == "ok")]
    best: dict[str, Row] = {}
    for row in shown:
        if row.group not in best or (row.ratio or 0) > (best[row.group].ratio or 0):
            best[row.group] = row
    run = f"[records]({_link(folder / 'records.jsonl')}), [tables]({_link(folder / 'tables')})"
    again = "`HPML_DATA=<your data> ./run_all.sh --workloads resnet50 --rounds 6 --budget none`"
    return (f"The case with the highest ratio in each comparison:\n\n{_lines(list(best.values()), rows, labels)}\n\n"
            f"<details><summary>All {len(shown)} cases beside their baselines</summary>\n\n{_lines(shown, rows, labels)}\n\n</details>\n\n"
            f"Each number again: {again}, or one notebook's with `--only NN`. Raw values: {run}.")


def _lines(chosen: list[Row], rows: list[Row], labels: dict[int, str]) -> str:
    lines = ["| notebook | step | baseline | ratio | verdict | quality | % of limit |", "|---|---|---|---|---|---|---|"]
    pages = {book.name: book for book in notebooks.course()}
    for row in chosen:
        base = tables.baseline_of(row, rows)
        number = f"[{row.notebook[:2]}](notebooks/{row.notebook}.ipynb)" if row.notebook in pages else ""
        ratio = f"{row.ratio:.2f}x [{row.low:.2f}, {row.high:.2f}]" if row.ratio and row.low else ""
        limit = f"{row.limit_percent:.0f} % ({row.limit_bound})" if row.limit_percent else ""
        noisy = f"; machine too noisy (floor {compare.percent(row.floor)})" if row.floor and row.floor > compare.TOO_NOISY else ""
        verdict = row.verdict + noisy if row.verdict in ("faster", "slower") else row.verdict_text
        against = base.label if base else ""
        lines.append(f"| {number} | {_title(row)}: {labels[id(row)]} | {against} | {ratio} | {verdict} | {row.quality_text} | {limit} |")
    return "\n".join(lines)


def _title(row: Row) -> str:
    return f"{tables.title(row.workload)} {tables.PHASES.get(row.phase, row.phase)}"


def _link(path: Path) -> str:
    return path.relative_to(env.root()).as_posix()


def _figure(folder: Path, rows: list[Row]) -> str:
    chart = folder / "charts" / "worth.png"
    return f"![{_headline(rows)}]({_link(chart)})" if chart.exists() else ""


def readme(path: Path) -> str:
    """The text of `path` with its results and its list of notebooks written anew. Raises HpmlError when the marks of one are missing."""
    text = path.read_text()
    for begin, end, what, made in ((BEGIN, END, "results", readme_block), (LIST_BEGIN, LIST_END, "notebooks", notebook_list)):
        if begin not in text or end not in text:
            raise HpmlError(f"{path}: the marks of the block of {what} are missing ({begin} ... {end})")
        block = f"{begin}\n{made()}\n{end}"
        text = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def notebook_list() -> str:
    """The course in reading order with each notebook's question."""
    lines = [f"| [{book.name}](notebooks/{book.path.name}) | {book.question} |" for book in notebooks.course()]
    return "\n".join(["| notebook | the question |", "|---|---|", *lines])
