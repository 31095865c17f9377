"""The report of a run: pages that open from a file, made from its records, its status and its executed notebooks alone."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from hpml import compare, plot, records, report_notebook, report_results, tables
from hpml.compare import Row
from hpml.env import HpmlError
from hpml.records import Record
from hpml.report_results import Charts, e

PARTS = {"0": "Before you measure", "1": "Workloads", "2": "Training ladder", "3": "Deployment", "4": "Reading the results"}
MARKS = {"ok": "✓", "failed": "✗", "timeout": "✗", "skipped": "–", "running": "…"}
SHOWN = 12  # sentences in a list of the summary; the workloads' sections have all


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
    found, problems = _records(run_dir)
    rows, refused = _rows(found)
    charts = Charts(run_dir)
    for line in range(len(notebooks)):
        _notebook_page(run_dir, notebooks, line, status)
    parts = [_summary(run_dir, status, notebooks, found, rows, charts, [*problems, *refused]), _notebook_list(notebooks)]
    parts += [report_results.workload(run_dir, name, found, rows, charts) for name in report_results.workloads(found)]
    parts.append(report_results.machine(found, charts))
    if rows:
        tables.csv(rows, run_dir / "tables" / "all.csv")
    charts.save()
    report_results.write(
        site / "index.html", _page(f"Run {status.get('run_id') or run_dir.name}", "".join(filter(None, parts)), notebooks, "index.html")
    )
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


def _part(name: str) -> str:
    return PARTS.get(name[:1], "Other") if re.match(r"\d\d", name) else "Other"


def _contents(notebooks: Sequence[dict], current: str) -> str:
    """The navigation, the same on every page."""
    items = [f'<ul><li><a href="index.html"{_here(current == "index.html")}>Summary</a></li></ul>']
    for part in [*PARTS.values(), "Other"]:
        own = [one for one in notebooks if _part(one["name"]) == part]
        if own:
            lines = "".join(
                f'<li><a href="{e(one["page"])}"{_here(one["page"] == current)}>{e(one["title"])}</a></li>'
                if one["page"]
                else f'<li class="soft">{e(one["title"])}</li>'
                for one in own
            )
            items.append(f"<h2>{e(part)}</h2><ul>{lines}</ul>")
    return f'<nav class="contents" id="contents" aria-label="Contents">{"".join(items)}</nav>'


def _here(current: bool) -> str:
    return ' aria-current="page"' if current else ""


def _page(title: str, inner: str, notebooks: Sequence[dict], current: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{e(title)}</title>\n<link rel="stylesheet" href="style.css">\n<link rel="icon" href="data:,">\n</head>\n<body>\n'
        f'<div class="frame">\n<main>\n<a class="to-contents" href="#contents">Contents</a>\n{inner}\n</main>\n'
        f"{_contents(notebooks, current)}\n</div>\n"
        f'<script src="script.js"></script>\n</body>\n</html>\n'
    )


def _notebook_page(run_dir: Path, notebooks: Sequence[dict], line: int, status: dict) -> None:
    """The page of one executed notebook. What it holds is converted once; its frame is always new."""
    one = notebooks[line]
    if not one["page"]:
        return
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
    ran = (
        f'<p class="note">{_status_mark(one)} {e(_seconds(one.get("seconds")))} {e(one.get("reason") or "")}</p>'
        if one.get("status")
        else ""
    )
    around = [other for other in notebooks if other["page"]]
    at = around.index(one)
    before = f'<a href="{e(around[at - 1]["page"])}">← {e(around[at - 1]["title"])}</a>' if at else '<a href="index.html">← Summary</a>'
    after = f'<a href="{e(around[at + 1]["page"])}">{e(around[at + 1]["title"])} →</a>' if at + 1 < len(around) else ""
    banner = f'<p class="banner">{tables.SMOKE}</p>' if status.get("tier") == "smoke" else ""
    inner = (
        f'<p class="soft">{e(_part(one["name"]))}</p>{banner}{ran}'
        '<button class="plain" id="toggle-code" type="button" hidden>Show all code</button>\n'
        f'{mark}{content}{mark}\n<div class="pages"><span>{before}</span><span>{after}</span></div>'
    )
    report_results.write(path, _page(one["title"], inner, notebooks, one["page"]))


def _facts(pairs: dict[str, object]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{e(name)}</dt><dd>{e(value)}</dd>" for name, value in pairs.items() if value not in (None, "", []))
        + "</dl>"
    )


def _seconds(value: object) -> str:
    if not isinstance(value, int | float):
        return ""
    return f"{value / 60:.1f} min" if value >= 120 else f"{tables.figure(value)} s"


def _status_mark(one: dict) -> str:
    word = str(one.get("status") or "no status")
    known = word if word in MARKS else ""
    return f'<span class="status {known}">{MARKS.get(word, "")} {e(word)}</span>'


def _summary(
    run_dir: Path,
    status: dict,
    notebooks: Sequence[dict],
    found: Sequence[Record],
    rows: Sequence[Row],
    charts: Charts,
    problems: Sequence[str],
) -> str:
    tier = status.get("tier") or next((r.case.get("tier") for r in found), None)
    text = [f"<h1>Run {e(status.get('run_id') or run_dir.name)}</h1>"]
    if tier == "smoke":
        text.append(f'<p class="banner">{tables.SMOKE}. This tier shows that everything works; its figures rest on a few iterations.</p>')
    text += [f'<p class="banner bad">{e(problem)}</p>' for problem in problems]
    text += ['<h2 id="findings">What was found</h2>', _findings(found, rows, charts), '<h2 id="facts">How it was measured</h2>',
             '<div class="facts">']
    text += [
        f"<section><h3>{e(title)}</h3>{_facts(facts)}</section>"
        for title, facts in (
            ("Machine", _machine_facts(found)),
            ("Run", _run_facts(status, notebooks, found, tier)),
            ("Results", _result_facts(found, rows)),
        )
    ]
    return "".join([*text, "</div>"])


def _findings(found: Sequence[Record], rows: Sequence[Row], charts: Charts) -> str:
    """The figure of what was worth it, then the verdicts as sentences, the largest differences first."""
    rows = compare.techniques(rows)
    others = [row for row in rows if not row.is_baseline]
    if not others:
        return "<p>Nothing measured yet.</p>" if not found else "<p>No comparison measured yet.</p>"
    text = [report_results.figure(charts.draw("worth", repr(others), plot.worth, rows))]
    verdicts = [row for row in others if row.tier != "smoke"]
    lists = {
        "Faster, quality kept": [r for r in verdicts if r.verdict == "faster" and r.quality == "kept"],
        "Faster, quality not shown to be kept": [r for r in verdicts if r.verdict == "faster" and r.quality != "kept"],
        "Slower": [r for r in verdicts if r.verdict == "slower"],
        "No difference": [r for r in verdicts if r.verdict == "no difference"],
    }
    for title, own in lists.items():
        if own:
            own = sorted(own, key=lambda row: abs(row.ratio - 1), reverse=True)
            more = f"<li>and {len(own) - SHOWN} more, in the workloads' sections</li>" if len(own) > SHOWN else ""
            text.append(
                f"<h3>{e(title)} ({len(own)})</h3><ul>"
                + "".join(f"<li>{e(tables.sentence(row, tables.baseline_of(row, rows)))}</li>" for row in own[:SHOWN])
                + more
                + "</ul>"
            )
    return "".join(text)


def _machine_facts(found: Sequence[Record]) -> dict:
    machines = {r.machine.get("id"): r.machine for r in found if r.machine}
    if not machines:
        return {"machine": "none recorded yet"}
    if len(machines) > 1:
        return {"machines": ", ".join(map(str, machines))}
    m = next(iter(machines.values()))
    return {
        "id": m.get("id"),
        "CPU": m.get("cpu"),
        "cores": m.get("cores"),
        "instructions": ", ".join(m.get("isa") or []),
        "memory": f"{m['ram_gib']} GiB" if m.get("ram_gib") else "",
        "GPU": f"{m['gpus']} x {m['gpu']}" if m.get("gpu") else "none",
        "GPU driver": m.get("gpu_driver"),
        "system": m.get("os"),
    }


def _when(moment: str | None) -> str | None:
    return f"{moment[:16].replace('T', ' ')} UTC" if moment else None


def _run_facts(status: dict, notebooks: Sequence[dict], found: Sequence[Record], tier: str | None) -> dict:
    counts: dict[str, int] = {}
    for one in notebooks:
        counts[str(one.get("status"))] = counts.get(str(one.get("status")), 0) + 1
    commits = dict.fromkeys(
        f"{r.git['commit'][:10]}{' with changes' if r.git.get('dirty') else ''}" for r in found if r.git.get("commit")
    )
    versions = dict(pair for r in found for pair in r.versions.items())
    return {
        "tier": tier,
        "data": "; ".join(dict.fromkeys(compare.data_text(r) for r in found if r.actual.get("data"))),
        "commit": ", ".join(commits),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "started": _when(status.get("started")),
        "ended": _when(status.get("ended")) or ("not yet" if status.get("started") else None),
        "budget": _seconds(status.get("budget_s")),
        "notebooks": ", ".join(f"{n} {word}" for word, n in counts.items()),
    }


def _result_facts(found: Sequence[Record], rows: Sequence[Row]) -> dict:
    states: dict[str, int] = {}
    verdicts: dict[str, int] = {}
    for record in found:
        states[record.status] = states.get(record.status, 0) + 1
    for row in rows:
        if not row.is_baseline:
            verdicts[row.verdict] = verdicts.get(row.verdict, 0) + 1
    floors = sorted({compare.percent(row.floor) for row in rows if row.floor is not None})
    busy = sum(bool(r.protocol.get("busy")) for r in found)
    return {
        "records": ", ".join(f"{n} {word}" for word, n in states.items()) or "none yet",
        **{word: f"{n} case{'s' * (n != 1)}" for word, n in verdicts.items()},
        "noise floor": ", ".join(floors),
        "busy machine": f"{busy} records" if busy else "",
    }


def _notebook_list(notebooks: Sequence[dict]) -> str:
    if not notebooks:
        return '<h2 id="notebooks">Notebooks</h2><p>No notebook has run yet.</p>'
    lines = []
    for one in notebooks:
        title = f'<a href="{e(one["page"])}">{e(one["title"])}</a>' if one["page"] else e(one["title"])
        question = f'<br><span class="soft">{e(one["question"])}</span>' if one.get("question") else ""
        lines.append(
            f"<tr><td>{e(one['name'])}</td><td>{title}{question}</td><td>{_status_mark(one)}</td>"
            f'<td class="number">{e(_seconds(one.get("seconds")))}</td><td>{e(one.get("reason") or "")}</td></tr>'
        )
    return (
        '<h2 id="notebooks">Notebooks</h2>'
        '<p><input type="search" placeholder="Search the notebooks" aria-label="Search the notebooks" hidden></p>'
        '<div class="scroll"><table class="notebooks"><thead><tr>'
        "<th>name</th><th>question</th><th>status</th><th>time</th><th>reason</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
