"""The report of a run: pages that open from a file, made from its records, its status and its executed notebooks alone."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from hpml import compare, records, report_notebook, report_page, report_records, report_results, report_search, report_summary, tables
from hpml.compare import Row
from hpml.env import HpmlError
from hpml.records import Record
from hpml.report_results import Charts, e


def build(run_dir: Path) -> Path:
    """Write report/index.html, a page for each executed notebook, tables/*.csv and charts/*.png of the run; returns the index.

    Works at any time of a run: with no records, with some, after a failure. Pictures and pages that are up to date stay as they are.
    """
    run_dir = Path(run_dir)
    site = run_dir / "report"
    site.mkdir(parents=True, exist_ok=True)
    for name in ("style.css", "script.js"):
        shutil.copyfile(report_notebook.ASSETS / name, site / name)
    status = _status(run_dir)
    notebooks = _notebooks(run_dir, status)
    run = f"Run {status.get('run_id') or run_dir.name}"
    found, problems = _records(run_dir)
    rows, refused = _rows(found)
    charts = Charts(run_dir)
    parts = [report_summary.summary(run, status, notebooks, found, rows, charts, [*problems, *refused]),
             report_summary.notebook_list(notebooks)]
    pages = {one["page"] for one in notebooks if one["page"]}
    parts += [report_results.workload(run_dir, name, found, rows, charts, pages) for name in report_results.workloads(found)]
    parts.append(report_results.machine(found, charts))
    if rows:
        tables.csv(rows, run_dir / "tables" / "all.csv")
    charts.save()
    texts = [(one["page"], one["title"], _notebook_page(run_dir, notebooks, line, status, run))
             for line, one in enumerate(notebooks) if one["page"]]
    index = report_page.page(run, "".join(filter(None, parts)), notebooks, "index.html", run)
    traced = report_records.page(found, pages, run_dir)
    report_results.write(site / report_records.PAGE, report_page.page("Records", traced, notebooks, report_records.PAGE, run))
    report_results.write(site / "search.js", report_search.index([("index.html", "Summary", index), *texts]))
    report_results.write(site / "index.html", index)
    return site / "index.html"


def _status(run_dir: Path) -> dict:
    try:
        found = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _records(run_dir: Path) -> tuple[list[Record], list[str]]:
    try:
        return records.read(run_dir / "records.jsonl"), []
    except HpmlError as error:
        return [], [f"the records cannot be read: {error}"]


def _rows(found: Sequence[Record]) -> tuple[list[Row], list[str]]:
    """Rows of all records, machine by machine and protocol by protocol: figures of different ones never meet in a comparison."""
    sets: dict[tuple, list[Record]] = {}
    for record in found:
        sets.setdefault((record.machine.get("id"), record.protocol_version), []).append(record)
    rows, problems = [], []
    for own in sets.values():
        try:
            rows += compare.rows(own)
        except (HpmlError, KeyError, ValueError) as error:
            problems.append(f"some records cannot be compared: {type(error).__name__}: {error}")
    return rows, problems


def _notebooks(run_dir: Path, status: dict) -> list[dict]:
    """What is known of each notebook: from status.json, and executed ones that it does not name."""
    listed = [dict(one) for one in status.get("notebooks") or [] if isinstance(one, dict) and one.get("name")]
    known = {Path(str(one["name"])).stem for one in listed}
    listed += [
        {"name": path.stem, "status": "no status"} for path in sorted((run_dir / "notebooks").glob("*.ipynb")) if path.stem not in known
    ]
    for one in listed:
        one["name"] = Path(str(one["name"])).stem
        one["path"] = run_dir / "notebooks" / f"{one['name']}.ipynb"
        one["page"] = f"{one['name']}.html" if one["path"].is_file() else None
        one["title"] = one.get("title") or one["name"]
    return listed


def _notebook_page(run_dir: Path, notebooks: Sequence[dict], line: int, status: dict, run: str) -> str:
    """Write the page of one executed notebook; returns its text. What it holds is converted once; its frame is always new."""
    one = notebooks[line]
    path = run_dir / "report" / one["page"]
    pages = {"index.html", *(other["page"] for other in notebooks if other["page"])}
    converter = report_results.sources("report_notebook.py", "report_assets/notebook/*")
    mark = f"<!--notebook {report_results.digest(one['path'].read_bytes(), converter, sorted(pages))}-->"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if old.count(mark) == 2:
        content = old.split(mark)[1]
    else:
        try:
            content = report_notebook.body(one["path"], pages)
        except HpmlError as error:
            content = f'<p class="banner bad">{e(error)}</p>'
    word, time_s, reason = report_summary.status_mark(one), report_summary.seconds(one.get("seconds")), one.get("reason") or ""
    ran = f'<p class="note">{word} {e(time_s)} {e(reason)}</p>' if one.get("status") else ""
    around = [other for other in notebooks if other["page"]]
    at = around.index(one)
    before = f'<a href="{e(around[at - 1]["page"])}">← {e(around[at - 1]["title"])}</a>' if at else '<a href="index.html">← Summary</a>'
    after = f'<a href="{e(around[at + 1]["page"])}">{e(around[at + 1]["title"])} →</a>' if at + 1 < len(around) else ""
    banner = f'<p class="banner">{tables.SMOKE}</p>' if status.get("tier") == "smoke" else ""
    inner = (
        f'<p class="soft">{e(report_page.part(one["name"]))}</p>{banner}{ran}'
        '<button class="plain" id="toggle-code" type="button" hidden>Show all code</button>\n'
        f'{mark}{content}{mark}\n<div class="pages"><span>{before}</span><span>{after}</span></div>'
    )
    text = report_page.page(one["title"], inner, notebooks, one["page"], run)
    report_results.write(path, text)
    return text
