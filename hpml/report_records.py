"""Where each number comes from: its notebook, its records by line, and the command that makes it again."""

import hashlib
import html
from collections.abc import Sequence
from pathlib import Path

from hpml import tables
from hpml.compare import Row, is_quality_run
from hpml.records import Record

PAGE = "records.html"
HEAD = ("line", "round", "status", "samples/s", "median ms", "quality", "measured", "record")


def anchor(machine: str, group: str, label: str) -> str:
    """The id of a case's place on the page of records."""
    return "case-" + hashlib.sha256(f"{machine}\n{group}\n{label}".encode()).hexdigest()[:12]


def command(notebook: str | None, workload: str, tier: str) -> str:
    """What measures a case again, with the others of its notebook."""
    only = f" --only {notebook[:2]}" if notebook and notebook[:2].isdigit() else ""
    return f"./run_all.sh --tier {tier}{only} --workloads {workload}"


def at(row: Row) -> str:
    """The address of the row's records."""
    return f"{PAGE}#{anchor(row.machine, row.group, row.label)}"


def notebook(name: str | None, pages: set[str]) -> str:
    """The number of a notebook, linked where the report has its page."""
    number, target = html.escape((name or "")[:2]), f"{name}.html"
    return f'<a href="{html.escape(target)}" aria-label="Notebook {number}">{number}</a>' if target in pages else number


def number(text: str, row: Row) -> str:
    """A figure of the row that leads to the records it was computed from."""
    return f'<a class="figure" href="{at(row)}">{html.escape(text)}</a>' if text else ""


def sources(row: Row, pages: set[str]) -> str:
    """Notebook and records of a row, behind a sentence."""
    links = [notebook(row.notebook, pages), f'<a href="{at(row)}" aria-label="Records of {html.escape(row.label)}">records</a>']
    return f'<span class="from">[{", ".join(filter(None, links))}]</span>'


def page(found: Sequence[Record], pages: set[str], run_dir: Path) -> str:
    """The content of the page of records: each case with its rounds, the line of each in records.jsonl, its notebook and its command."""
    text = ["<h1>Records</h1>", _introduction(found, run_dir)]
    cases: dict[tuple, list[tuple[int, Record]]] = {}
    for line, r in enumerate(found, 1):
        key = r.case["workload"], r.case.get("group") or "", r.case.get("label") or "", r.machine.get("id") or ""
        cases.setdefault(key, []).append((line, r))
    for workload in dict.fromkeys(key[0] for key in cases):
        own = {key: lines for key, lines in cases.items() if key[0] == workload}
        head = "".join(f'<th scope="col">{name}</th>' for name in HEAD)
        body = "".join(_case(key, lines, pages) for key, lines in own.items())
        text.append(f"<h2>{html.escape(tables.title(workload).capitalize() if workload == 'machine' else tables.title(workload))}</h2>"
                    f'<div class="scroll"><table class="records"><thead><tr>{head}</tr></thead>{body}</table></div>')
    return "".join(text)


def _introduction(found: Sequence[Record], run_dir: Path) -> str:
    if not found:
        return "<p>No record yet.</p>"
    file = '<a href="../records.jsonl">records.jsonl</a>' if (run_dir / "records.jsonl").is_file() else "records.jsonl"
    smoke = f'<p class="banner">{tables.SMOKE}</p>' if any(r.case.get("tier") == "smoke" for r in found) else ""
    return (f"{smoke}<p>Each line of {file} is one case in one round, with its raw samples, its versions and its machine. "
            "<code>sed -n 7p records.jsonl</code> shows line 7. The command under a case measures it again, with the others of its "
            "notebook.</p>")


def _case(key: tuple, lines: Sequence[tuple[int, Record]], pages: set[str]) -> str:
    workload, group, label, machine = key
    first = lines[0][1]
    phase = tables.PHASES.get(first.case["phase"], first.case["phase"])
    again = command(first.notebook, workload, str(first.case.get("tier"))) if workload != "machine" else "./run_all.sh --only 00"
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(line, r)) + "</tr>" for line, r in lines)
    return (f'<tbody id="{anchor(machine, group, label)}"><tr><th colspan="{len(HEAD)}" scope="rowgroup">'
            f"{html.escape(phase.capitalize())}: {html.escape(label)} {notebook(first.notebook, pages)}<br>"
            f"<code>{html.escape(again)}</code></th></tr>{rows}</tbody>")


def _cells(line: int, r: Record) -> tuple[str, ...]:
    status = r.status if r.status == "ok" else f"{r.status}: {r.reason}"
    if is_quality_run(r):
        status += ", quality run"
    if r.protocol.get("busy"):
        status += ", busy"
    stats, quality = r.stats or {}, r.quality or {}
    median = stats.get("median")
    return (str(line), str((r.protocol.get("round") or 0) + 1), status, tables.figure(stats.get("per_s")),
            tables.figure(1e3 * median) if median else "", f"{100 * quality['value']:.1f} %" if quality.get("value") is not None else "",
            r.created[:16].replace("T", " "), r.record_id[:12])
